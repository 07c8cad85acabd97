"""Time on a CPU: of a step, of a cold start, of an exported loss."""
