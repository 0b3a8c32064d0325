"""What the parts of a step cost on this machine. Run by `make bench`; no test asserts a time."""
