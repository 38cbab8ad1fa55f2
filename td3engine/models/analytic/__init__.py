"""Layers and encoders whose first and second derivatives are written out."""
