"""Full-data figures from a library that shares no code with this project."""
