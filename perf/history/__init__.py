"""The history of runs as series, and where their levels change."""
