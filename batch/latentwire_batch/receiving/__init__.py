"""Answers with latents, received from the socket straight into the memory that is logged."""
