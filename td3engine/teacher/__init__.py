"""Training on real sequences: the full-data model, and baselines on a part of the log."""
