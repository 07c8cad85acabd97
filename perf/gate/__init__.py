"""Two revisions measured side by side, and the proof that the gate works."""
