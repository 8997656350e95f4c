"""A completion of the engine against the model's own passes, and against another completion.

In fp32 tokens and rows must be those of Hugging Face's `generate`. In 16 bits, rounding depends on
the shape of a batch and can flip a choice between two tokens; then the sequences have nothing more
in common. There the model is given the engine's tokens (teacher forcing): each row must be close to
the model's, and the model must score each token close to its best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latentwire_service.engine.backend import Completion
from latentwire_service.engine.request import Request
from support.engine.device import IS_EXACT, TOLERANCE
from support.tiny_models import Generated, generate

Rows = npt.NDArray[np.float32]


def assert_as_generated(
    request: Request, model: Any, k: int | None = None, is_scaled: bool = False, **options: Any
) -> None:
    """Check a finished greedy request: tokens, number of rows, width, dtype, values.

    Args:
        request: of `EngineHarness.submit`.
        model: its own copy, with its own attention.
        k: rows that the request keeps; None: all.
        is_scaled: whether the tolerance grows with the largest number in the rows, as models
            without a final norm need it.
        options: of `generate`.
    """
    completion = request.future.result(timeout=0)
    prompt = list(request.spec.prompt.token_ids)
    if IS_EXACT:
        expected = generate(model, prompt, request.spec.sampling.max_new_tokens, **options)
        assert completion.token_ids == expected.token_ids
    else:
        expected = _forced(model, prompt, completion.token_ids)
    num_rows = len(completion.token_ids) if k is None else min(k, len(completion.token_ids))
    assert completion.hidden_state.shape == (num_rows, expected.hidden_state.shape[1])
    assert completion.hidden_state.dtype == np.float32
    scale = max(1.0, float(np.abs(expected.hidden_state).max())) if is_scaled else 1.0
    assert_rows_close(completion.hidden_state, expected.hidden_state[:num_rows], scale)


def assert_same(actual: Completion, expected: Completion) -> None:
    """Check two completions of one request, alone and in a batch.

    In 16 bits only up to the first token that differs: a row comes before the choice of its token.
    """
    if IS_EXACT:
        assert actual.token_ids == expected.token_ids
    pairs = list(zip(actual.token_ids, expected.token_ids, strict=False))
    num_equal = next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
    num_rows = min(num_equal + 1, len(actual.hidden_state), len(expected.hidden_state))
    assert_rows_close(actual.hidden_state[:num_rows], expected.hidden_state[:num_rows])


def assert_rows_close(actual: Rows, expected: Rows, scale: float = 1.0) -> None:
    """Compare `[n, hidden_size]` by single values and by the median row."""
    if not len(expected):
        return
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE.value * scale, rtol=0)
    errors = np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(errors) <= TOLERANCE.median


@torch.inference_mode()
def _forced(model: Any, prompt: list[int], token_ids: list[int]) -> Generated:
    """The model's own rows for given tokens; fails where a token is far from the model's choice."""
    output = model(
        input_ids=torch.tensor([prompt + token_ids[:-1]], device=model.device),
        output_hidden_states=True,
        use_cache=False,
    )
    start = len(prompt) - 1
    scores = output.logits[0, start:].float()
    chosen = scores[torch.arange(len(token_ids)), torch.tensor(token_ids)]
    gaps = (scores.amax(-1) - chosen) / (scores.amax(-1) - scores.amin(-1))
    assert float(gaps.max()) <= TOLERANCE.gap
    return Generated(token_ids, output.hidden_states[-1][0, start:].float().cpu().numpy())
