"""One connection: uvicorn's HTTP/1.1 over h11, with limits that neither of the two has.

Each module names one threat, the limit against it and the mechanism that enforces the limit. An
nginx in front (`deploy/gateway`) covers the same threats; a service without a gateway needs these.
"""

from latentwire_service.api.connection.protocol import Connection

__all__ = ["Connection"]
