"""Metrics without noise: graphs, operators, host reads, memory, nodes, machine code."""
