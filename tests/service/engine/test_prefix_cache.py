"""A shared prompt prefix is computed once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.errors import LatentInvalidError
from latentwire_service.engine.prefix_cache import (
    MAX_PREFIXES,
    MIN_PREFIX_TOKENS,
    PrefixCache,
    PrefixChange,
    PrefixMatch,
)
from latentwire_service.engine.prompt import Prompt
from support.engine.harness import EngineHarness
from support.tiny_models import build_model, generate, llama_config, random_prompts

TEMPLATE = list(range(100, 140))


def prompt_of(token_ids: Sequence[int]) -> Prompt:
    return Prompt(tuple(token_ids))


def prompts_with_template(count: int, seed: int = 0) -> list[list[int]]:
    lengths = [3 + 2 * index for index in range(count)]
    return [TEMPLATE + tail for tail in random_prompts(lengths, seed=seed)]


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(llama_config())


def test_a_prefix_is_learnt_from_two_prompts_that_share_it() -> None:
    cache = PrefixCache()
    assert cache.observe(prompt_of([*TEMPLATE, 1, 2])) is None
    change = cache.observe(prompt_of([*TEMPLATE, 3, 4]))
    assert change is not None
    assert (change.num_tokens, change.evicted_ids) == (len(TEMPLATE), [])
    assert cache.match(prompt_of([*TEMPLATE, 9])) == PrefixMatch(change.prefix_id, len(TEMPLATE))
    assert cache.observe(prompt_of([*TEMPLATE, 5])) is None


def test_the_last_prompt_position_is_always_computed() -> None:
    cache = PrefixCache()
    cache.observe(prompt_of(TEMPLATE))
    cache.observe(prompt_of(TEMPLATE))
    match = cache.match(prompt_of(TEMPLATE))
    assert match is not None
    assert match.num_tokens == len(TEMPLATE) - 1


def test_short_prefixes_are_not_kept() -> None:
    cache = PrefixCache()
    short = TEMPLATE[: MIN_PREFIX_TOKENS - 1]
    cache.observe(prompt_of([*short, 1]))
    assert cache.observe(prompt_of([*short, 2])) is None
    assert cache.match(prompt_of([*short, 3])) is None


def test_the_least_recently_used_prefix_makes_room() -> None:
    cache = PrefixCache()
    templates = [[start] * 20 for start in range(MAX_PREFIXES + 1)]
    changes = []
    for template in templates[:-1]:
        cache.observe(prompt_of([*template, 7]))
        changes.append(cache.observe(prompt_of([*template, 8])))
    assert cache.match(prompt_of([*templates[0], 9])) is not None
    cache.observe(prompt_of([*templates[-1], 7]))
    last = cache.observe(prompt_of([*templates[-1], 8]))
    assert last is not None
    assert changes[1] is not None
    assert last.evicted_ids == [changes[1].prefix_id]
    assert cache.match(prompt_of([*templates[1], 9])) is None


def test_kept_prefixes_have_a_bounded_number_of_positions() -> None:
    cache = PrefixCache(max_tokens=50)

    def learn(start: int, length: int) -> PrefixChange | None:
        template = [start] * length
        cache.observe(prompt_of([*template, 7]))
        return cache.observe(prompt_of([*template, 8]))

    first, second = learn(1, 20), learn(2, 25)
    assert first is not None
    assert second is not None
    assert second.evicted_ids == []
    both = learn(3, 40)
    assert both is not None
    assert both.evicted_ids == [first.prefix_id, second.prefix_id]
    # Of a longer one, the first positions are kept, once.
    longest = learn(4, 90)
    assert longest is not None
    assert (longest.num_tokens, longest.evicted_ids) == (50, [both.prefix_id])
    assert cache.match(prompt_of([4] * 90)) == PrefixMatch(longest.prefix_id, 50)
    assert learn(4, 90) is None


@pytest.mark.parametrize("max_slots", [1, 3, 8])
def test_requests_that_share_a_template_equal_generate_and_compute_it_less(
    model: Any, max_slots: int
) -> None:
    harness = EngineHarness(model, max_slots=max_slots)
    prompts = prompts_with_template(8)
    requests = [harness.submit(prompt, 6) for prompt in prompts]
    num_computed = 0
    while (stats := harness.engine.step()) is not None:
        num_computed += stats.num_prompt_tokens
    for request in requests:
        expected = generate(model, request.spec.prompt.token_ids, 6)
        completion = request.future.result(timeout=0)
        assert completion.token_ids == expected.token_ids
        assert completion.prompt_tokens == len(request.spec.prompt.token_ids)
        np.testing.assert_allclose(completion.hidden_state, expected.hidden_state, atol=1e-4)
    # Two prompts teach the prefix; the others, bar those already under way, skip it.
    assert num_computed <= sum(map(len, prompts)) - 5 * len(TEMPLATE)


def test_a_kept_prefix_survives_its_request(model: Any) -> None:
    harness = EngineHarness(model, max_slots=2)
    for prompt in prompts_with_template(2):
        harness.submit(prompt, 2)
    harness.run()
    # The slots' first tenants are overwritten by an unrelated prompt.
    harness.submit(random_prompts([90], seed=5)[0], 2)
    harness.run()
    late = harness.submit([*TEMPLATE, 17, 18, 19], 8)
    stats = harness.engine.step()
    assert stats is not None
    assert stats.num_prompt_tokens == 3
    harness.run()
    expected = generate(model, late.spec.prompt.token_ids, 8)
    assert late.future.result(0).token_ids == expected.token_ids


def test_a_prompt_whose_hidden_state_is_not_finite_teaches_no_prefix() -> None:
    poisoned = build_model(llama_config())
    poisoned.get_input_embeddings().weight.data[200] = float("nan")
    harness = EngineHarness(poisoned, max_slots=2)
    bad = [harness.submit([200, *TEMPLATE, last], 2) for last in (3, 4, 5)]
    harness.run()
    assert all(isinstance(r.future.exception(0), LatentInvalidError) for r in bad)
    stats_request = harness.submit([200, *TEMPLATE, 6], 2)
    stats = harness.engine.step()
    assert stats is not None
    assert stats.num_prompt_tokens == len(stats_request.spec.prompt.token_ids)
