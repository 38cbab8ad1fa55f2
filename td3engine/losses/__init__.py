"""Softmax losses over items, full and sampled, with derivatives in closed form."""
