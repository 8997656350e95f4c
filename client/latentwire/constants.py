"""Default timeouts, limits and retry numbers of the client, and the names of the wire contract."""

from __future__ import annotations

DEFAULT_BASE_URL = "http://127.0.0.1:8000"

DEFAULT_CONNECT_TIMEOUT_S = 5.0
# A plan of 512 tokens on a busy CPU replica takes minutes, and a queued request waits longer still.
DEFAULT_TIMEOUT_S = 600.0
# A probe asks whether the service is there; one that takes longer than this to say so is not.
PROBE_TIMEOUT_S = 10.0
READY_POLL_INTERVAL_S = 0.25
# Loading a model of some billion parameters from a cold disk takes minutes.
DEFAULT_READY_TIMEOUT_S = 300.0

DEFAULT_MAX_RETRIES = 4
INITIAL_RETRY_DELAY_S = 0.5
MAX_RETRY_DELAY_S = 8.0
# A service may ask for more patience than our own backoff has, but not for unbounded patience.
MAX_RETRY_AFTER_S = 60.0

# How much of an unexpected answer an error message quotes.
MAX_QUOTED_CHARS = 200

PROBLEM_MEDIA_TYPE = "application/problem+json"
EVENT_STREAM_MEDIA_TYPE = "text/event-stream"
JSON_MEDIA_TYPE = "application/json"
SAFETENSORS_MEDIA_TYPE = "application/x-safetensors"
ARROW_STREAM_MEDIA_TYPE = "application/vnd.apache.arrow.stream"

DEFAULT_PROMPT_TEMPLATE = "Please provide a general plan to solve this task.\nThe task is: {task}"
DEFAULT_MAX_NEW_TOKENS = 512
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
# Seeds are non-negative signed 64-bit integers: what Arrow, JSON readers and torch agree on.
MAX_SEED = 2**63 - 1

REQUEST_ID_HEADER = "X-Request-Id"
"""Names a request in the logs of all that it passes."""
REQUEST_ID_PATTERN = r"[A-Za-z0-9._:-]{1,128}"
"""What may go into a header and a log line as it is."""
