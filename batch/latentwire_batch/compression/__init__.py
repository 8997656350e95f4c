"""Compressed latents: while rows are collected, and for datasets that exist."""
