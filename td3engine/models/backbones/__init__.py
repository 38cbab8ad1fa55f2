"""One file a backbone."""
