"""Training on real sequences: the teacher on the whole log, baselines on a part of it."""
