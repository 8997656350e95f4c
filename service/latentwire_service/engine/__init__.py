"""The engine: continuous batching over the slots of one KV cache.

It must not know HTTP, FastAPI, pydantic or the client package. It has its own types and errors;
`backend` is what the service may know of it.
"""
