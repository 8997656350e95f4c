"""What is compared: the usual ways to get text or latents, vLLM, and latentwire over vLLM."""
