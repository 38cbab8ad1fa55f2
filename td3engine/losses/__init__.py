"""Losses over a catalogue of items, with derivatives in closed form."""
