"""Instructions of a step, counted by Callgrind."""
