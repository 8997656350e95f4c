"""The engine: continuous batching over the slots of one KV cache.

It must not know HTTP, FastAPI, pydantic or the client package; it speaks in its own types and
raises its own errors.
"""
