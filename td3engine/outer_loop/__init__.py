"""Training the summary."""
