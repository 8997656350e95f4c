"""The engine: continuous batching over the slots of one KV cache.

It must not know HTTP, FastAPI, pydantic or the client package. It has its own types and errors;
The service uses only the types in `backend`.
"""
