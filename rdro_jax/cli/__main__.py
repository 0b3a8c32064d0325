"""`python -m rdro_jax.cli`: the command line where no script is installed."""

import sys

from rdro_jax.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
