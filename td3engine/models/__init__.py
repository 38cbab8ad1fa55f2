"""Recommenders: backbones, their registry, and the model of backbone and item table."""
