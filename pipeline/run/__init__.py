"""A run on disk: its directory, what fixes its training, what it was made from, its store."""
