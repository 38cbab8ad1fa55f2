"""The Tucker-factored summary: its form, how it is read, how it is stored."""
