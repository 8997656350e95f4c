"""Sampling against Hugging Face's own processors, and what a seed promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from latentwire_service.engine import sampler
from latentwire_service.engine.hf.loader import load_model
from latentwire_service.engine.sampler import SamplingBatch, keep_candidates, sample
from latentwire_service.engine.sampling_params import SamplingParams
from support.engine.device import DEVICE

VOCAB_SIZE = 1000

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 2.5, "top_p": 0.3},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.8},
    {"temperature": 0.2, "top_k": 500, "top_p": 0.99},
    {"top_p": 1e-6},
    {"temperature": 3.0},
]


def params(seed: int = 0, **changes: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, seed=seed, **changes)


def batch_of(rows: Sequence[SamplingParams], step: int = 0) -> SamplingBatch:
    return SamplingBatch.build(rows, [step] * len(rows), DEVICE)


def reference(logits: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Hugging Face's probabilities, `[B, vocab_size]`, in the order `generate` applies them."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(settings.get("temperature", 1.0))])
    if settings.get("top_k", 0):
        chain.append(TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1.0) < 1:
        chain.append(TopPLogitsWarper(settings["top_p"]))
    # These processors look at the logits only.
    no_tokens = cast(torch.LongTensor, torch.zeros(len(logits), 1, dtype=torch.long, device=DEVICE))
    scores = cast(torch.FloatTensor, logits)
    return torch.softmax(chain(no_tokens, scores), dim=-1)


def kept_probabilities(logits: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Ours, `[B, vocab_size]`, over all tokens as candidates."""
    rows = [params(**settings)] * len(logits)
    scaled = logits / settings.get("temperature", 1.0)
    kept = keep_candidates(scaled, batch_of(rows), logits.shape[-1])
    probabilities = torch.softmax(kept.logits, dim=-1)
    return torch.zeros_like(logits).scatter(1, kept.token_ids, probabilities)


def make_logits(kind: str, num_rows: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(num_rows, VOCAB_SIZE, generator=generator)
    if kind == "peaked":
        noise[torch.arange(num_rows), torch.arange(num_rows) * 31] += 30.0
    return (noise if kind == "flat" else noise * 4).to(DEVICE)


@pytest.mark.parametrize("kind", ["flat", "steep", "peaked"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_kept_tokens_and_probabilities_equal_hugging_face(
    kind: str, settings: dict[str, Any]
) -> None:
    logits = make_logits(kind)
    expected = reference(logits, settings)
    actual = kept_probabilities(logits, settings)
    assert ((actual > 0) == (expected > 0)).all()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("top_k", "num_kept"), [(2, 4), (4, 4), (5, 5)])
def test_ties_with_the_kth_token_are_all_kept(top_k: int, num_kept: int) -> None:
    logits = torch.tensor([[3.0, 5.0, 3.0, 3.0, 1.0, 0.0]], device=DEVICE)
    expected = reference(logits, {"top_k": top_k})
    actual = kept_probabilities(logits, {"top_k": top_k})
    assert (actual > 0).sum() == num_kept
    torch.testing.assert_close(actual, expected)


def test_of_tied_tokens_the_nucleus_takes_as_many_as_it_needs() -> None:
    logits = torch.zeros(1, 8, device=DEVICE)
    for top_p in (0.1, 0.3, 0.6, 0.9):
        expected = reference(logits, {"top_p": top_p})
        actual = kept_probabilities(logits, {"top_p": top_p})
        # Which of the equals are taken is either's own choice.
        torch.testing.assert_close(actual.sort().values, expected.sort().values)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["flat", "steep", "peaked"])
def test_few_candidates_give_the_same_tokens_as_all_of_them(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(9)
    scale = {"flat": 0.5, "steep": 3.0, "peaked": 8.0}[kind]
    logits = torch.randn(6, 9000, generator=generator).to(DEVICE) * scale
    batch = batch_of([params(seed=seed, **settings) for seed in range(6)])
    usual = sample(logits, batch)
    monkeypatch.setattr(sampler, "NUM_CANDIDATES", ())
    assert torch.equal(sample(logits, batch), usual)


@pytest.fixture(scope="module")
def real_logits() -> torch.Tensor:
    """`[R, 49152]`: what the demo model predicts after each token of a text."""
    cache = Path.home() / ".cache/latentwire"
    loaded = load_model("demo", device=DEVICE, dtype=torch.float32, cache_dir=cache)
    text = "Please provide a plan. First, fill the kettle with vinegar and water; then boil it"
    with torch.inference_mode():
        ids = torch.tensor([loaded.tokenizer.encode(text)], device=DEVICE)
        logits: torch.Tensor = loaded.model(input_ids=ids).logits[0]
    return logits


@pytest.mark.slow
@pytest.mark.demo_model
@pytest.mark.parametrize("count", [*sampler.NUM_CANDIDATES, None])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.9},
        {"top_p": 0.5},
        {"top_k": 50},
        {"temperature": 1.4, "top_k": 400, "top_p": 0.8},
    ],
    ids=str,
)
def test_complete_candidates_of_real_logits_equal_hugging_face(
    real_logits: torch.Tensor, settings: dict[str, Any], count: int | None
) -> None:
    expected = reference(real_logits, settings)
    rows = [params(**settings)] * len(real_logits)
    scaled = real_logits / settings.get("temperature", 1.0)
    found = keep_candidates(scaled, batch_of(rows), count or real_logits.shape[-1])
    probabilities = torch.softmax(found.logits, dim=-1)
    actual = torch.zeros_like(real_logits).scatter(1, found.token_ids, probabilities)
    complete = found.is_complete
    assert ((actual > 0) == (expected > 0))[complete].all()
    torch.testing.assert_close(actual[complete], expected[complete], rtol=1e-4, atol=1e-7)
    if count is None:
        assert complete.all()
        return
    # Those that do not say so are those for which there are too few, bar equals at the edge; top-p
    # counts its mass over what top-k keeps.
    num_needed = (expected > 0).sum(-1).clamp(min=settings.get("top_k", 0))
    assert (num_needed[~complete] >= count - 1).all()


@pytest.mark.slow
@pytest.mark.demo_model
def test_tokens_of_real_logits_are_drawn_as_often_as_their_probabilities_say(
    real_logits: torch.Tensor,
) -> None:
    """Rows whose nuclei need the first, the second and the third number of candidates."""
    expected = reference(real_logits, {"top_p": 0.9})
    num_kept = (expected > 0).sum(-1)
    first, second, *_ = sampler.NUM_CANDIDATES
    num_draws = 3000
    for low, high in ((3, first), (first, second), (second, real_logits.shape[-1])):
        (rows,) = ((num_kept > low) & (num_kept <= high)).nonzero(as_tuple=True)
        row = int(rows[0])
        seeds = [params(seed=seed, top_p=0.9) for seed in range(num_draws)]
        drawn = torch.cat(
            [
                sample(real_logits[row].expand(len(part), -1), batch_of(part))
                for part in (seeds[i : i + 250] for i in range(0, num_draws, 250))
            ]
        )
        counts = drawn.bincount(minlength=real_logits.shape[-1]).double()
        # Tokens that are expected often enough each for itself, the others together.
        is_own = expected[row] * num_draws >= 10
        observed = torch.cat([counts[is_own], counts[~is_own].sum()[None]])
        weights = torch.cat([expected[row][is_own], expected[row][~is_own].sum()[None]]).double()
        kept = weights > 0
        assert observed[~kept].sum() == 0
        means = weights[kept] * num_draws
        statistic = ((observed[kept] - means) ** 2 / means).sum()
        assert statistic < chi_square_bound(int(kept.sum()) - 1)
        assert counts[expected[row] == 0].sum() == 0


def chi_square_bound(degrees: int) -> float:
    """Wilson and Hilferty's approximation of the point exceeded once in 100,000 times."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + 4.265 * spread**0.5) ** 3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.6}, {"top_p": 0.8}, {"top_k": 6}, {"top_k": 8, "top_p": 0.85}],
    ids=str,
)
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    num_draws = 20_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 1.2
    expected = reference(logits, settings)[0] * num_draws
    batch = batch_of([params(seed=seed, **settings) for seed in range(num_draws)])
    drawn = sample(logits.expand(num_draws, -1), batch)
    counts = torch.bincount(drawn, minlength=12).float()
    is_kept = expected > 0
    assert counts[~is_kept].sum() == 0
    statistic = ((counts - expected)[is_kept] ** 2 / expected[is_kept]).sum()
    assert statistic < chi_square_bound(int(is_kept.sum()) - 1)


def test_steps_of_one_seed_are_as_independent_as_seeds() -> None:
    num_draws = 20_000
    batch = SamplingBatch.build([params(seed=77)] * num_draws, range(num_draws), DEVICE)
    drawn = sample(torch.zeros(num_draws, 10, device=DEVICE), batch)
    pairs = torch.bincount(drawn[:-1] * 10 + drawn[1:], minlength=100).float()
    expected = (num_draws - 1) / 100
    assert ((pairs - expected) ** 2 / expected).sum() < chi_square_bound(99)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_neighbours_and_row_order_change_nothing(settings: dict[str, Any]) -> None:
    logits = make_logits("steep", num_rows=8)
    # Settings differ between rows, so that every path runs in one batch.
    others = [SETTINGS[(row * 3) % len(SETTINGS)] for row in range(7)]
    rows = [params(seed=100, **settings), *(params(seed=row, **o) for row, o in enumerate(others))]
    rows[4] = params(do_sample=False)
    alone = [sample(logits[row : row + 1], batch_of([rows[row]]))[0].item() for row in range(8)]
    together = sample(logits, batch_of(rows)).tolist()
    order = torch.tensor([5, 0, 7, 2, 1, 6, 4, 3])
    shuffled = sample(logits[order], batch_of([rows[row] for row in order])).tolist()
    assert together == alone
    assert shuffled == [alone[row] for row in order]


def test_noise_depends_on_seed_step_and_token_only() -> None:
    logits = torch.zeros(1, VOCAB_SIZE, device=DEVICE)

    def draw(seed: int, step: int, shift: float = 0.0) -> float:
        return sample(logits + shift, batch_of([params(seed=seed)], step))[0].item()

    assert draw(3, 4) == draw(3, 4) == draw(3, 4, shift=8.0)
    grid = {(seed, step): draw(seed, step) for seed in range(12) for step in range(12)}
    # 144 draws of 1,000 values: some 10 coincide by chance; a pattern would repeat whole rows.
    assert len(set(grid.values())) > 120
    assert draw(2**63 - 1, 0) != draw(2**62, 0) or draw(2**63 - 1, 1) != draw(2**62, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 5}], ids=str)
def test_a_tiny_temperature_is_greedy(settings: dict[str, Any], dtype: torch.dtype) -> None:
    logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    logits = logits.to(DEVICE, dtype)
    logits[torch.arange(4), torch.tensor([5, 900, 17, 0])] = 60.0
    for temperature in (1e-3, 1e-12, 1e-300):
        rows = [params(seed=s, temperature=temperature, **settings) for s in range(4)]
        assert sample(logits, batch_of(rows)).tolist() == [5, 900, 17, 0]


def test_a_large_temperature_levels_all_tokens() -> None:
    logits = torch.tensor([[0.0, 5.0, -5.0, 2.0]], device=DEVICE).expand(8000, -1)
    rows = [params(seed=seed, temperature=1e6) for seed in range(8000)]
    counts = torch.bincount(sample(logits, batch_of(rows)), minlength=4).float()
    assert ((counts - 2000) ** 2 / 2000).sum() < chi_square_bound(3)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_ruled_out_by_the_model_are_never_drawn(settings: dict[str, Any]) -> None:
    logits = torch.full((64, 50), float("-inf"), device=DEVICE)
    logits[:, [3, 40]] = torch.tensor([1.0, 1.5], device=DEVICE)
    rows = [params(seed=seed, **settings) for seed in range(64)]
    assert set(sample(logits, batch_of(rows)).tolist()) <= {3, 40}


def test_a_top_k_beyond_the_vocabulary_keeps_everything() -> None:
    logits = make_logits("flat", num_rows=4)
    with_k = [params(seed=seed, top_k=2**62) for seed in range(4)]
    without = [params(seed=seed) for seed in range(4)]
    assert torch.equal(sample(logits, batch_of(with_k)), sample(logits, batch_of(without)))
