"""Defaults and limits of the client, and the names of the wire contract."""

from __future__ import annotations

DEFAULT_BASE_URL = "http://127.0.0.1:8000"

DEFAULT_CONNECT_TIMEOUT_S = 5.0
# A plan of 512 tokens on a busy CPU replica takes minutes, and a queued request even longer.
DEFAULT_TIMEOUT_S = 600.0
# A service that does not answer a probe within this time counts as unavailable.
PROBE_TIMEOUT_S = 10.0
READY_POLL_INTERVAL_S = 0.25
# Loading a model of several billion parameters from a cold disk takes minutes.
DEFAULT_READY_TIMEOUT_S = 300.0

# A busy service is retried for as long as one answer may take, a broken connection this often.
DEFAULT_RETRY_TIMEOUT_S = 600.0
DEFAULT_MAX_RETRIES = 4
INITIAL_RETRY_DELAY_S = 0.5
MAX_RETRY_DELAY_S = 8.0
# `Retry-After` may exceed the client's own backoff, but not without bound.
MAX_RETRY_AFTER_S = 60.0

# Length of the part of an unexpected answer that an error message quotes.
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
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_MESSAGES = 1024
# Parts of one message.
MAX_PARTS = 256
# Names of roles, bridges and tensors, and of variables of a chat template.
MAX_NAME_CHARS = 128
MAX_TEMPLATE_KWARGS = 32
MAX_TEMPLATE_TEXT_CHARS = 4096
# Seeds are non-negative signed 64-bit integers: the range that Arrow, JSON readers and torch share.
MAX_SEED = 2**63 - 1

REQUEST_ID_HEADER = "X-Request-Id"
"""Identifies a request in the logs of every service on its way."""
REQUEST_ID_PATTERN = r"[A-Za-z0-9._:-]{1,128}"
"""Request ids that are safe in a header and a log line."""
