"""The check at start: whether vLLM's rows are what a latent is defined to be.

Every row is compared with the LM head's choice. For a small model, a pass of Hugging Face's over
the same tokens is the reference as well.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from latentwire_service.engine.backend import BackendInfo
from latentwire_service.engine.errors import ModelError
from latentwire_service.engine.hf.loader import ModelFiles, load_model
from latentwire_service.vllm_engine.engine import Core
from latentwire_service.vllm_engine.events import NewTokens, RequestFailed
from latentwire_service.vllm_engine.row_wire import RowBatch

logger = logging.getLogger(__name__)

_NUM_TOKENS = 4
_TEXT = "Name three colors, and say where they are seen."
# Never the number of another request.
_REQUEST = -1
_TIMEOUT_S = 300.0
_SMALL_MODEL_BYTES = 2**30
# Of the difference's length to the row's; a wrong position or a missing norm is about 1.
_TOLERANCE = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.15}

Rows = npt.NDArray[np.float32]


class CheckedCore(Core, Protocol):
    """What the check needs besides."""

    def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `RowWorker`."""
        ...


def check_rows(
    core: CheckedCore, files: ModelFiles, info: BackendInfo, *, is_quantized: bool
) -> None:
    """Generate a few tokens, and compare their rows with the definition.

    Args:
        core: started; no other request runs.
        files: of the model.
        info: of the model.
        is_quantized: whether the weights that vLLM computes with are others than in the files.

    Raises:
        ModelError: the rows are not right; the message says in what.
    """
    prompt = files.tokenizer.encode(_TEXT, add_special_tokens=False)[: info.max_model_len - 8]
    token_ids, rows = _generate(core, prompt, info.hidden_size)
    _check_choice(core, token_ids, rows)
    size = None if is_quantized else _weight_bytes(files)
    if size is not None and size <= _SMALL_MODEL_BYTES:
        _compare(rows, _reference(files, [*prompt, *token_ids], len(prompt)), info.dtype)
    logger.info("vLLM's hidden rows are those of the definition")


def _generate(core: CheckedCore, prompt: list[int], hidden_size: int) -> tuple[list[int], Rows]:
    params = {"temperature": 0.0, "max_tokens": _NUM_TOKENS, "ignore_eos": True}
    core.submit(_REQUEST, prompt, params, _NUM_TOKENS)
    token_ids: list[int] = []
    rows: dict[int, Rows] = {}
    give_up_at = time.monotonic() + _TIMEOUT_S
    while len(token_ids) < _NUM_TOKENS or len(rows) < _NUM_TOKENS:
        if time.monotonic() > give_up_at:
            raise _failed(f"{len(token_ids)} tokens came with {len(rows)} rows")
        for event in core.events(0.1):
            if isinstance(event, NewTokens):
                token_ids += event.token_ids
            elif isinstance(event, RowBatch):
                rows.update(zip(event.indices, event.rows, strict=True))
            elif isinstance(event, RequestFailed):
                raise _failed(event.reason)
            elif event is None:
                raise ModelError("vLLM's engine process ended on its first request")
    if sorted(rows) != list(range(_NUM_TOKENS)):
        raise _failed(f"the rows are numbered {sorted(rows)}")
    stacked = np.stack([rows[index] for index in range(_NUM_TOKENS)])
    if stacked.shape[1] != hidden_size:
        raise _failed(f"a row has {stacked.shape[1]} values, not {hidden_size}")
    if not np.isfinite(stacked).all():
        raise _failed("a row holds a value that is not finite")
    return token_ids, stacked


def _check_choice(core: CheckedCore, token_ids: list[int], rows: Rows) -> None:
    answers = core.call_workers("latentwire_choose", rows.tobytes(), len(rows))
    chosen = next((answer for answer in answers if answer is not None), None)
    if chosen != token_ids:
        raise _failed(f"the LM head makes tokens {chosen} of the rows of tokens {token_ids}")


def _compare(rows: Rows, reference: Rows, dtype: str) -> None:
    lengths = np.linalg.norm(reference, axis=1)
    errors = np.linalg.norm(rows - reference, axis=1) / np.maximum(lengths, 1e-30)
    worst = int(np.argmax(errors))
    if errors[worst] > _TOLERANCE[dtype]:
        raise _failed(
            f"row {worst} differs from Hugging Face's by {errors[worst]:.3g} of its length, more "
            f"than {_TOLERANCE[dtype]:g}"
        )


@torch.inference_mode()
def _reference(files: ModelFiles, token_ids: list[int], num_prompt: int) -> Rows:
    """Return the rows that predict the tokens after the prompt, in one pass of Hugging Face's."""
    transformers_logging.disable_progress_bar()
    loaded = load_model(
        files.location,
        device=torch.device("cpu"),
        dtype=torch.float32,
        cache_dir=Path(),
        revision=files.revision,
    )
    output = loaded.model(torch.tensor([token_ids[:-1]]), output_hidden_states=True)
    rows: Rows = output.hidden_states[-1][0, num_prompt - 1 :].float().numpy()
    return rows


def _weight_bytes(files: ModelFiles) -> int | None:
    """Return the size of a model's files of weights; None when they are not found."""
    folder = Path(files.location)
    if not folder.is_dir():
        config = cached_file(
            files.location, "config.json", revision=files.revision, local_files_only=True
        )
        if config is None:
            return None
        folder = Path(config).parent
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None


def _failed(reason: str) -> ModelError:
    return ModelError(f"vLLM's hidden rows are not those of the definition: {reason}")
