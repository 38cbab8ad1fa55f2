"""Interaction logs: reading, normalising, describing, filtering, splitting. Imports no torch."""
