"""Holdout sets of a log, ranks of their targets, and metrics."""
