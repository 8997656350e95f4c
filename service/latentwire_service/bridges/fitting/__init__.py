"""`latentwire fit-bridge`: fits a bridge to a dataset of latents and a frozen receiver."""
