"""Two runs against each other: what moved, by which rule, and what of it was accepted."""
