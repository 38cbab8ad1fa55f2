"""Held-out questions of a log, ranks of their targets, and metrics."""
