"""Prompts that hold embeddings, as values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.backend import LATENT_STEPS, LATENTS_IN, SCORING, BackendInfo
from latentwire_service.engine.errors import InvalidParamsError, PromptTooLongError
from latentwire_service.engine.prefix_cache import PrefixCache
from latentwire_service.engine.prompt import EmbeddingSpan, Prompt
from support.engine.requests import make_spec


def rows(num_rows: int, value: float = 1.0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.full((num_rows, 3), value, np.float32)


def test_pieces_are_joined_in_order() -> None:
    prompt = Prompt.joined([[5, 6], rows(2), [], rows(0), rows(1, 2.0), (7,)])
    assert prompt.token_ids == (5, 6, 0, 0, 0, 7)
    assert prompt.embeddings == (EmbeddingSpan(2, rows(2)), EmbeddingSpan(4, rows(1, 2.0)))
    assert prompt.embedding_size == 3
    assert prompt.text_only() == Prompt((5, 6, 7))
    assert Prompt((5,)).embedding_size is None


def test_given_rows_cannot_be_written_to() -> None:
    span = EmbeddingSpan(0, rows(2))
    with pytest.raises(ValueError, match="read-only"):
        span.rows[0] = 0


@pytest.mark.parametrize("start", range(7))
@pytest.mark.parametrize("end", range(7))
def test_a_slice_holds_what_the_positions_hold(start: int, end: int) -> None:
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3)
    prompt = Prompt.joined([[5], matrix[:2], [6], matrix[2:], [7]])
    part = prompt.slice(start, end)
    assert part.token_ids == prompt.token_ids[start:end]
    held = {s.start + i: row for s in prompt.embeddings for i, row in enumerate(s.rows)}
    actual = {start + s.start + i: row for s in part.embeddings for i, row in enumerate(s.rows)}
    assert sorted(actual) == [position for position in sorted(held) if start <= position < end]
    assert all(np.shares_memory(row, held[position]) for position, row in actual.items())
    assert all((row == held[position]).all() for position, row in actual.items())


@pytest.mark.parametrize(
    ("one", "other", "num_shared"),
    [
        (Prompt.joined([[5, 6], rows(2)]), Prompt.joined([[5, 6], rows(2)]), 2),
        (Prompt.joined([[5, 6], rows(2)]), Prompt((5, 6, 0, 0)), 2),
        (Prompt.joined([[5, 6], rows(2)]), Prompt((5,)), 1),
        (Prompt.joined([rows(2), [5]]), Prompt((0, 0, 5)), 0),
        (Prompt.joined([[5, 6, 7], rows(1)]), Prompt.joined([[5], rows(1)]), 1),
    ],
)
def test_shared_positions_end_before_the_first_latent(
    one: Prompt, other: Prompt, num_shared: int
) -> None:
    assert one.num_shared(other) == num_shared
    assert other.num_shared(one) == num_shared


def test_equal_prompts_are_equal_values() -> None:
    one, same = (Prompt.joined([[5], rows(2)]) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Prompt.joined([[5], rows(2, 3.0)])
    assert one != Prompt((5, 0, 0))
    assert EmbeddingSpan(0, rows(1)) != "a span"


@pytest.mark.parametrize(
    "spans",
    [
        (EmbeddingSpan(0, rows(2)), EmbeddingSpan(1, rows(1))),
        (EmbeddingSpan(2, rows(1)), EmbeddingSpan(0, rows(1))),
        (EmbeddingSpan(3, rows(2)),),
        (EmbeddingSpan(-1, rows(1)),),
        (EmbeddingSpan(0, rows(1)), EmbeddingSpan(1, np.zeros((1, 4), np.float32))),
    ],
)
def test_spans_that_do_not_fit_are_refused(spans: tuple[EmbeddingSpan, ...]) -> None:
    with pytest.raises(ValueError, match="cannot hold embeddings|differ in width"):
        Prompt((0, 0, 0, 0), spans)


@pytest.mark.parametrize(
    "matrix", [np.zeros((0, 3), np.float32), np.zeros(3, np.float32), np.zeros((1, 3))]
)
def test_a_span_is_a_float32_matrix(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    with pytest.raises(ValueError, match="not a float32 matrix"):
        EmbeddingSpan(0, matrix)


def test_the_prefix_cache_keeps_no_latent() -> None:
    cache = PrefixCache()
    text = list(range(10, 30))
    prompts = [Prompt.joined([text, rows(30, value), [7]]) for value in (1.0, 1.0, 2.0)]
    assert cache.observe(prompts[0]) is None
    change = cache.observe(prompts[1])
    assert change is not None
    assert change.num_tokens == len(text)
    match = cache.match(prompts[2])
    assert match is not None
    assert match.num_tokens == len(text)
    # A prompt whose tokens are the placeholders shares no more.
    plain = cache.match(Prompt((*text, *[0] * 30)))
    assert plain is not None
    assert plain.num_tokens == len(text)


INFO: dict[str, object] = {"model_id": "m", "revision": None, "hidden_size": 3, "vocab_size": 9}
INFO |= {"dtype": "float32", "device": "cpu", "max_slots": 1, "max_model_len": 64}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({}, "the engine of m has no capability 'latents-in'"),
        ({"refusals": {LATENTS_IN: "it cannot"}}, "has no capability 'latents-in': it cannot"),
        (
            {"capabilities": frozenset({LATENTS_IN}), "embedding_size": 4},
            "an embedding has 3 values, but the model's have 4",
        ),
    ],
)
def test_latents_that_an_engine_cannot_take_are_refused(
    engine: dict[str, object], message: str
) -> None:
    info = BackendInfo(**(INFO | engine))  # type: ignore[arg-type]
    spec = make_spec(Prompt.joined([[5], rows(1)]))
    with pytest.raises(InvalidParamsError, match=message):
        info.check(spec)
    info.check(make_spec([5]))


def identity(rows: object, /) -> object:
    return rows


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("latent_steps", {"latent_steps": -1}),
        ("step_bridge", {"latent_steps": 1}),
    ],
)
def test_a_request_that_generates_nothing_is_refused_by_name(
    field: str, value: dict[str, Any]
) -> None:
    with pytest.raises(InvalidParamsError) as caught:
        make_spec([5], **value)
    assert caught.value.field == field


def test_latent_steps_take_positions_and_rows() -> None:
    spec = make_spec([5, 6], 3, latent_steps=4, step_bridge=identity)
    assert (spec.num_outputs, spec.num_positions, spec.max_rows) == (7, 9, 7)
    alone = make_spec([5, 6], 0, k=2, latent_steps=4, step_bridge=identity)
    assert (alone.num_outputs, alone.num_positions, alone.max_rows) == (4, 6, 2)


def test_a_request_with_more_positions_than_a_slot_is_refused() -> None:
    able = {"capabilities": frozenset({LATENT_STEPS})}
    info = BackendInfo(**(INFO | able))  # type: ignore[arg-type]
    info.check(make_spec([5] * 50, 10, latent_steps=4, step_bridge=identity))
    with pytest.raises(PromptTooLongError) as caught:
        info.check(make_spec([5] * 50, 10, latent_steps=5, step_bridge=identity))
    assert str(caught.value) == (
        "the prompt has 50 tokens, latent_steps is 5 and max_new_tokens is 10; "
        "together they must not exceed 64"
    )
    with pytest.raises(InvalidParamsError, match="no capability 'latent-steps'"):
        BackendInfo(**INFO).check(  # type: ignore[arg-type]
            make_spec([5], latent_steps=1, step_bridge=identity)
        )


def test_a_plan_that_an_engine_cannot_score_is_refused() -> None:
    with pytest.raises(InvalidParamsError, match="no capability 'scoring'"):
        BackendInfo(**INFO).check(make_spec([5], given=[6]))  # type: ignore[arg-type]
    info = BackendInfo(**(INFO | {"capabilities": frozenset({SCORING})}))  # type: ignore[arg-type]
    info.check(make_spec([5], given=[0, 8]))
    for token_id in (-1, 9):
        with pytest.raises(InvalidParamsError, match="plan: holds a token that the model does not"):
            info.check(make_spec([5], given=[6, token_id]))
    with pytest.raises(PromptTooLongError, match="5 tokens and the plan 60; together"):
        info.check(make_spec([5] * 5, 1, given=[6] * 60))
