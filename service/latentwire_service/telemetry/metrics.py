"""Prometheus metrics of one service, under the names that serving systems use."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from latentwire.protocol import ErrorBody
from latentwire_service.engine.backend import Completion, StepStats

_TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKEN_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_REQUEST_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics, in a registry of their own so that two apps in one process do not collide."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            "latentwire_requests", "Answered requests.", ["path", "status"], registry=registry
        )
        self._stream_errors = Counter(
            "latentwire_stream_errors",
            "Streams that ended with an error event.",
            ["code"],
            registry=registry,
        )
        self._waiting = Gauge(
            "latentwire_requests_waiting", "Requests without a slot.", registry=registry
        )
        self._running = Gauge(
            "latentwire_requests_running", "Requests that hold a slot.", registry=registry
        )
        self._kv_usage = Gauge(
            "latentwire_kv_cache_usage_ratio",
            "Part of the KV cache's slots that requests hold, 0 to 1.",
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "latentwire_prompt_tokens", "Prompt tokens computed.", registry=registry
        )
        self._generation_tokens = Counter(
            "latentwire_generation_tokens", "Tokens generated.", registry=registry
        )
        self._latent_bytes = Counter(
            "latentwire_latent_bytes", "Float32 bytes of latents answered.", registry=registry
        )
        self._ttft = Histogram(
            "latentwire_time_to_first_token_seconds",
            "Submission to first token.",
            buckets=_TTFT_BUCKETS_S,
            registry=registry,
        )
        self._per_token = Histogram(
            "latentwire_time_per_output_token_seconds",
            "Mean time between tokens of one request.",
            buckets=_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self._e2e = Histogram(
            "latentwire_e2e_request_latency_seconds",
            "Submission to last token.",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )

    def observe_step(self, stats: StepStats) -> None:
        """Count one engine step. Called on the engine's thread; the metrics are thread-safe."""
        self._prompt_tokens.inc(stats.num_prompt_tokens)
        self._generation_tokens.inc(stats.num_new_tokens)
        for seconds in stats.first_token_s:
            # Not at the end: those that never come to it are the slow ones.
            self._ttft.observe(seconds)

    def observe_load(self, num_running: int, num_waiting: int, max_slots: int) -> None:
        """Note how busy the engine is."""
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
        """Count one HTTP answer; `path` is a route's own path, so that labels stay few."""
        self._requests.labels(path, str(status)).inc()

    def observe_stream_error(self, body: ErrorBody) -> None:
        """Count one stream that broke after its status was sent."""
        self._stream_errors.labels(body.code).inc()

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)
