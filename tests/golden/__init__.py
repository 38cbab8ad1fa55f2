"""Golden runs: the bytes of small whole runs, kept from commit to commit."""
