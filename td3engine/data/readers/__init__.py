"""The file formats that a log may come in."""
