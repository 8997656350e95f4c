"""Bridges: hidden rows of a sender to input embeddings of the loaded model."""
