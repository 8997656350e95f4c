"""Finished rows on the disk while a run is unfinished: an append-only log and its index."""
