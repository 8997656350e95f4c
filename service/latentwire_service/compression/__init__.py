"""Compressed latents: which compressors a service offers, and the threads that run them."""
