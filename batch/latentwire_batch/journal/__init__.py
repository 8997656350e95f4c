"""Settled rows of an unfinished run, on disk: an append-only log and its index."""
