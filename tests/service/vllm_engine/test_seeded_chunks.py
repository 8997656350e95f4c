"""On a CPU, a chunk of a prompt leaves its request's generator alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service.vllm_engine.seeded_chunks import spare_generators


@dataclass
class FakeMask:
    np: Any


@dataclass
class FakeBatch:
    num_reqs: int
    generators: dict[int, torch.Generator]


@dataclass
class FakeRunner:
    """Draws a number for each request, then rewinds as vLLM does, with its own error on a CPU."""

    input_batch: FakeBatch
    discard_request_mask: FakeMask
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fails: bool = False

    def sample_tokens(self, grammar_output: object) -> dict[int, float]:
        assert grammar_output == "grammar"
        batch = self.input_batch
        drawn = {
            index: torch.rand(1, generator=batch.generators.get(index)).item()
            for index in range(batch.num_reqs)
        }
        for index in np.nonzero(self.discard_request_mask.np[: batch.num_reqs])[0]:
            generator = batch.generators.get(int(index))
            if generator is not None:
                generator.set_offset(generator.get_offset() - 4)
        if self.fails:
            raise ValueError("the step fails")
        return drawn


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runner_of(dropped: list[bool], seeds: dict[int, int], **options: Any) -> FakeRunner:
    # vLLM's buffer is longer than the batch.
    mask = np.array([*dropped, True, True])
    generators = {index: seeded(seed) for index, seed in seeds.items()}
    return FakeRunner(FakeBatch(len(dropped), generators), FakeMask(mask), **options)


def test_a_request_draws_its_first_number_after_the_last_chunk() -> None:
    runner = runner_of([True, False, True], {0: 7, 1: 8})
    spare_generators(runner)
    expected = {seed: torch.rand(3, generator=seeded(seed)).tolist() for seed in (7, 8)}
    drawn = [runner.sample_tokens("grammar")]
    # The generators are back, each in its place.
    assert sorted(runner.input_batch.generators) == [0, 1]
    runner.discard_request_mask.np[0] = False
    drawn += [runner.sample_tokens("grammar") for _ in range(2)]
    assert [step[1] for step in drawn] == expected[8]
    assert [step[0] for step in drawn[1:]] == expected[7][:2]


def test_generators_come_back_when_a_step_fails() -> None:
    runner = runner_of([True, True], {0: 7, 1: 8}, fails=True)
    before = dict(runner.input_batch.generators)
    spare_generators(runner)
    with pytest.raises(ValueError, match="the step fails"):
        runner.sample_tokens("grammar")
    assert runner.input_batch.generators == before


def test_the_fake_fails_as_vllm_does_without_it() -> None:
    with pytest.raises(RuntimeError, match="does not use offset"):
        runner_of([True], {0: 7}).sample_tokens("grammar")


def test_a_gpus_runner_stays_as_it_is() -> None:
    runner = runner_of([True], {0: 7}, device=torch.device("cuda"))
    spare_generators(runner)
    assert "sample_tokens" not in vars(runner)
