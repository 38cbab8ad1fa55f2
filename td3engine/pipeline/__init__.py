"""A whole distillation: log in, summary out."""
