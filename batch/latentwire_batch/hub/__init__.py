"""Finished datasets on the Hugging Face hub."""
