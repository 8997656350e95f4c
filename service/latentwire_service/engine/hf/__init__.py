"""The engine's model runner over Hugging Face transformers: loading, checking, slots."""
