"""The wheel as a stranger meets it: `make wheel-check`, or python tests/release/check_wheel.py [EXTRA ...].

Builds it, compares its files with the repository's, installs it in an environment of its own and uses it from a folder
outside of the checkout: import, help, the start of the quickstart up to its first step. Then pip is asked whether each
extra (or those named) can be had beside it; nothing of them is installed.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_SECONDS, USE_SECONDS, HELP_SECONDS, QUICKSTART_SECONDS = 2.0, 20.0, 0.5, 1800
RUNS = 5
FIRST_STEP = re.compile(r"step +1/")
PIP = ("-m", "pip", "--disable-pip-version-check")


def main(extras: list[str]) -> None:
    """Check everything; ends with an AssertionError or CalledProcessError at the first thing that is wrong."""
    with tempfile.TemporaryDirectory(prefix="rdro-wheel-") as scratch:
        wheel = build(Path(scratch))
        check_files(wheel)
        python = install(wheel, Path(scratch))
        outside = Path(scratch) / "outside"
        outside.mkdir()
        # The package imports nothing by itself: a name brings what it needs, jax and more, when it is first asked for.
        use = "import rdro_jax; rdro_jax.train; rdro_jax.losses"
        time_of("import rdro_jax, names alone", [python, "-c", "import rdro_jax"], outside, IMPORT_SECONDS)
        time_of(f"{use}, with jax and all a run imports", [python, "-c", use], outside, USE_SECONDS)
        time_of("rdro --help", [rdro(python), "--help"], outside, HELP_SECONDS)
        begin_quickstart(rdro(python), outside)
        for extra in extras or sorted(PROJECT["optional-dependencies"]):
            check_extra(python, wheel, extra)
    print("the wheel is whole")


def build(folder: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, *PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    version = PROJECT["version"]
    assert wheel.name == f"rdro_jax-{version}-py3-none-any.whl", wheel.name
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    return wheel


def check_files(wheel: Path) -> None:
    """The wheel holds what git holds of the package, py.typed and package data among it, and nothing else."""
    listed = subprocess.run(["git", "ls-files", "rdro_jax"], cwd=ROOT, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = set(listed.stdout.split())
    assert held == wanted, sorted(held ^ wanted)
    assert "rdro_jax/py.typed" in held
    print(f"{len(held)} files, as in git")


def install(wheel: Path, folder: Path) -> str:
    """Python of a new environment with the wheel and what the quickstart needs."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
    python = str(folder / "environment" / "bin" / "python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, *PIP, "install", "--quiet", *constraints, f"{wheel}[quickstart]"], check=True)
    return python


def rdro(python: str) -> str:
    """The command beside an interpreter."""
    return str(Path(python).with_name("rdro"))


def time_of(what: str, command: list[str], folder: Path, limit: float) -> None:
    """Print wall and CPU seconds of the quickest of some runs; the wall time must be below the limit.

    The quickest, for whatever else the machine does is not ours; the first may also compile Python files.
    """
    taken = []
    for _ in range(RUNS):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, env=clean(), check=True, capture_output=True)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    wall, cpu = min(taken)
    print(f"{what}: {wall:.2f} s, {cpu:.2f} s of CPU, below {limit:g} s wanted (load {os.getloadavg()[0]:.1f})")
    assert wall < limit, (command, taken)


def clean() -> dict[str, str]:
    """The environment without what would lead Python back to the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def begin_quickstart(command: str, folder: Path) -> None:
    """Run `rdro quickstart` until it has trained a step; the rest is what `make quickstart` runs."""
    begin = time.monotonic()
    with (folder / "said").open("w") as said:
        process = subprocess.Popen([command, "quickstart"], cwd=folder, env=clean(), stdout=said, stderr=said)
        while not FIRST_STEP.search((folder / "said").read_text()):
            text = (folder / "said").read_text()
            assert process.poll() is None, text
            assert time.monotonic() - begin < QUICKSTART_SECONDS, text
            time.sleep(1)
        process.kill()
        process.wait()
    print(f"rdro quickstart: at its first step after {time.monotonic() - begin:.0f} s")


def check_extra(python: str, wheel: Path, extra: str) -> None:
    """Raise where pip finds no set of packages for an extra."""
    subprocess.run([python, *PIP, "install", "--quiet", "--dry-run", f"{wheel}[{extra}]"], env=clean(), check=True)
    print(f"[{extra}] can be had")


if __name__ == "__main__":
    main(sys.argv[1:])
