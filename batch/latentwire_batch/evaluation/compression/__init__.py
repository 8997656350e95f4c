"""`latentwire evaluate --compressor`: what a compressed latent costs, and what it still carries."""
