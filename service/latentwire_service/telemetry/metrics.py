"""Prometheus metrics of one service, with the names that are usual for model servers."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from latentwire.protocol import ErrorBody
from latentwire_service.engine.backend import Completion, StepStats

_PREFIX = "latentwire"
_TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
# Probes and scrapes arrive every few seconds and are no requests of a caller.
_PROBES = frozenset({"/health", "/ready", "/metrics"})
_REQUEST_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics, in a registry of their own so that two apps in one process do not collide.

    Args:
        version: of the service.
    """

    def __init__(self, version: str = "0.0.0") -> None:
        registry = self._registry = CollectorRegistry()
        # CPU time, memory, open files and start time, as `process_...`.
        ProcessCollector(registry=registry)
        build = Info(f"{_PREFIX}_build", "Version of the service and of Python.", registry=registry)
        build.info({"version": version, "python": platform.python_version()})
        self._probes = Counter(
            f"{_PREFIX}_probes",
            "Responses to probes and scrapes: /health, /ready, /metrics.",
            ["path", "status"],
            registry=registry,
        )
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "HTTP responses, without probes.",
            ["path", "status"],
            registry=registry,
        )
        self._stream_errors = Counter(
            f"{_PREFIX}_stream_errors",
            "Streams that ended with an error event.",
            ["code"],
            registry=registry,
        )
        self._waiting = self._gauge("requests_waiting", "Requests that wait for a slot.")
        self._running = self._gauge("requests_running", "Requests that hold a slot.")
        self._kv_usage = self._gauge(
            "kv_cache_usage_ratio", "Fraction of the KV cache's slots in use, 0 to 1."
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._latent_steps = self._counter("latent_steps", "Latent steps computed.")
        self._latent_bytes = self._counter(
            "latent_bytes", "Bytes of the latents made for answers, as float32."
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "Submission to first token.", _TTFT_BUCKETS_S
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds",
            "Mean time between the tokens of one request.",
            _TOKEN_BUCKETS_S,
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Submission to last token.", _REQUEST_BUCKETS_S
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self._registry)

    def observe_step(self, stats: StepStats) -> None:
        """Count one engine step. Called on the engine's thread; the metrics are thread-safe."""
        self._prompt_tokens.inc(stats.num_prompt_tokens)
        self._generation_tokens.inc(stats.num_new_tokens)
        self._latent_steps.inc(stats.num_latent_steps)
        for seconds in stats.first_token_s:
            # Observed at the first token: slow requests that never complete must count too.
            self._ttft.observe(seconds)

    def observe_load(self, num_running: int, num_waiting: int, max_slots: int) -> None:
        """Set the gauges of how busy the engine is."""
        self._kv_usage.set(num_running / max_slots)
        self._running.set(num_running)
        self._waiting.set(num_waiting)

    def observe_completion(self, completion: Completion) -> None:
        """Count one finished plan."""
        first_s = completion.queue_s + completion.prefill_s
        self._latent_bytes.inc(completion.hidden_state.nbytes)
        self._e2e.observe(first_s + completion.decode_s)
        if len(completion.token_ids) > 1:
            self._per_token.observe(completion.decode_s / (len(completion.token_ids) - 1))

    def observe_response(self, path: str, status: int) -> None:
        """Count one HTTP response; `path` is the path of a route, so that labels stay few."""
        counter = self._probes if path in _PROBES else self._requests
        counter.labels(path, str(status)).inc()

    def observe_stream_error(self, body: ErrorBody) -> None:
        """Count one stream that broke after its status was sent."""
        self._stream_errors.labels(body.code).inc()

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)
