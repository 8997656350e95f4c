"""Domain errors of the engine. It does not know their HTTP statuses.

EngineError
├── InvalidParamsError       a sampling parameter is out of range (field)
├── PromptTooLongError       prompt and new tokens do not fit one slot
├── QueueFullError           the queue is full
├── EngineUnavailableError   loading, draining, stopped or failed
│   └── EngineFailedError        failed after it had accepted the request
├── RequestCancelledError    the caller gave the request up
├── DeadlineExceededError    the request's deadline expired
├── LatentInvalidError       a hidden row is missing, of another width, or not finite
├── DetokenizationError      the tokenizer cannot decode the tokens
├── ProcessorError           a change to the logits raised
├── StepBridgeError          a bridge cannot make the inputs of latent steps
├── NoTokenError             every token is excluded
└── ModelError               the model cannot be served
    ├── ModelNotFoundError       nothing loadable under that name
    ├── DamagedModelError        its files cannot be read, or are not complete
    └── UnsupportedModelError    loaded, but not a decoder with a standard KV cache
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class InvalidParamsError(EngineError):
    """A sampling parameter is out of range; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class PromptTooLongError(EngineError):
    """Prompt, `latent_steps` and `max_new_tokens` do not fit into `max_model_len` positions.

    With a plan to be scored, `max_new_tokens` is the number of its tokens.
    """

    def __init__(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        max_model_len: int,
        latent_steps: int = 0,
        *,
        has_plan: bool = False,
    ) -> None:
        parts = [f"the prompt has {prompt_tokens} tokens"]
        if latent_steps:
            parts.append(f"latent_steps is {latent_steps}")
        new = f"the plan {max_new_tokens}" if has_plan else f"max_new_tokens is {max_new_tokens}"
        super().__init__(
            f"{', '.join(parts)} and {new}; together they must not exceed {max_model_len}"
        )
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.max_model_len = max_model_len


class QueueFullError(EngineError):
    """The queue is full, or the request was displaced from it. A retry may succeed later."""

    def __init__(self, max_queue: int, retry_after_s: float) -> None:
        super().__init__(f"{max_queue} requests are already waiting")
        self.max_queue = max_queue
        self.retry_after_s = retry_after_s


class EngineUnavailableError(EngineError):
    """The engine accepts no requests: it is loading, draining, stopped or failed."""


class EngineFailedError(EngineUnavailableError):
    """The engine failed after it had accepted the request, perhaps because of it."""


class RequestCancelledError(EngineError):
    """The caller gave the request up before it finished."""


class DeadlineExceededError(EngineError):
    """The request's deadline expired before it finished."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request did not finish within {timeout_s:g} s")
        self.timeout_s = timeout_s


class DetokenizationError(EngineError):
    """The tokenizer cannot decode the tokens; the cause is its own exception."""


class ProcessorError(EngineError):
    """A change to the request's logits raised; the cause is its own exception."""


class StepBridgeError(EngineError):
    """The bridge of a request's latent steps raised, or gave other shapes; the cause tells."""


class NoTokenError(EngineError):
    """The request's parameters and the model's generation defaults leave no token to choose."""


class LatentInvalidError(EngineError):
    """Hidden rows break the latent's invariant: rows == min(k, L), width == H, all finite."""


class ModelError(EngineError):
    """The model cannot be served."""


class ModelNotFoundError(ModelError):
    """No model can be loaded under that name."""


class DamagedModelError(ModelError):
    """The model's files are there, but they cannot be read as a model."""


class UnsupportedModelError(ModelError):
    """The model is not a decoder-only language model with a standard KV cache."""
