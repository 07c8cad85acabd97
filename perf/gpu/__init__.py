"""The GPU suite, and what a compiler tells of a GPU where there is none."""
