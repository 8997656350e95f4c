"""The latentwire service: a FastAPI app over an engine that decodes many requests together."""
