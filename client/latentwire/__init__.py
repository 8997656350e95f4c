"""Python client of a latentwire service: clients, answers and errors."""

from latentwire.async_client import AsyncClient
from latentwire.call import PlanOptions
from latentwire.client import Client
from latentwire.errors import (
    ApiError,
    CompressorError,
    ConnectionFailedError,
    DatasetError,
    DeadlineExceededError,
    InternalServiceError,
    InvalidArgumentError,
    InvalidRequestError,
    LatentInvalidError,
    LatentwireError,
    MissingDependencyError,
    NotReadyError,
    NumberFormatError,
    PayloadTooLargeError,
    PromptTooLongError,
    ProtocolError,
    QueueFullError,
    TransportError,
    TransportTimeoutError,
    UnauthorizedError,
    WaitTimeoutError,
)
from latentwire.plan_latent import PlanLatent
from latentwire.protocol import InfoResponse, LatentInfo, Limits, Timings, Usage
from latentwire.stored_dataset import LatentDataset, LatentRow, load
from latentwire.streaming import AsyncPlanStream, PlanStep, PlanStream
from latentwire.version import VERSION as __version__

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncPlanStream",
    "Client",
    "CompressorError",
    "ConnectionFailedError",
    "DatasetError",
    "DeadlineExceededError",
    "InfoResponse",
    "InternalServiceError",
    "InvalidArgumentError",
    "InvalidRequestError",
    "LatentDataset",
    "LatentInfo",
    "LatentInvalidError",
    "LatentRow",
    "LatentwireError",
    "Limits",
    "MissingDependencyError",
    "NotReadyError",
    "NumberFormatError",
    "PayloadTooLargeError",
    "PlanLatent",
    "PlanOptions",
    "PlanStep",
    "PlanStream",
    "PromptTooLongError",
    "ProtocolError",
    "QueueFullError",
    "Timings",
    "TransportError",
    "TransportTimeoutError",
    "UnauthorizedError",
    "Usage",
    "WaitTimeoutError",
    "__version__",
    "load",
]
