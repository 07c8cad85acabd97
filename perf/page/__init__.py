"""The history as one HTML file."""
