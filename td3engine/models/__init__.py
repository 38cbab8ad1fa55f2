"""The recommenders that teach and learn. One file a backbone, one interface."""
