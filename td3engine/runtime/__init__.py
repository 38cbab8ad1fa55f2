"""What a computing process settles: seeds, torch, other processes."""
