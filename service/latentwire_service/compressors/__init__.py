"""Compressors that are fitted to a dataset; the client package applies them."""
