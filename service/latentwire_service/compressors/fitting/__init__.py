"""`latentwire fit-compressor`: fits a compressor to a dataset of latents."""
