"""The HTTP layer: routes, wire formats, error answers, guards. Only here is FastAPI known."""
