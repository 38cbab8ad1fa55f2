"""A whole run: from a log to a summary, with progress and checkpoints."""
