"""The HTTP layer: routes, wire formats, error responses and guards. It alone uses FastAPI."""
