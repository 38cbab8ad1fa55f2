"""The Tucker-factored summary: factors, soft sequences, and files."""
