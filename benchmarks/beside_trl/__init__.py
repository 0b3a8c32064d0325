"""The train step beside TRL's, in one run."""
