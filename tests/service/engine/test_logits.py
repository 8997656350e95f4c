"""Changes to one request's logits stay with that request."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.errors import ProcessorError
from latentwire_service.engine.logits import RowLogits
from latentwire_service.engine.sampling_params import SamplingParams
from support.engine.fake_runner import FakeModelRunner
from support.engine.requests import NumberTokenizer, make_spec


class Favour:
    """Prefers one token, in place or not; raises at a step."""

    def __init__(self, spec: GenerationSpec, in_place: bool, fails_at: int | None) -> None:
        self._spec = spec
        self._in_place = in_place
        self._fails_at = fails_at

    @property
    def sampling(self) -> SamplingParams:
        return self._spec.sampling

    def __call__(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        if len(token_ids) == self._fails_at:
            raise RuntimeError("out of range")
        result = logits if self._in_place else logits.clone()
        result[0, 30] += 100
        return result


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("fails_at", [None, 0, 2])
def test_a_change_and_its_failure_stay_with_their_request(
    in_place: bool, fails_at: int | None
) -> None:
    def make(spec: GenerationSpec) -> RowLogits | None:
        return Favour(spec, in_place, fails_at) if spec.prompt.token_ids[0] == 7 else None

    runner = FakeModelRunner(max_slots=3)
    engine = Engine(runner, NumberTokenizer(), frozenset(), 64, lambda: 0.0, make)
    requests = [engine.new_request(make_spec([first, 5])) for first in (4, 7, 6)]
    for request in requests:
        engine.add(request)
    while engine.step() is not None:
        pass
    changed = requests.pop(1)
    if fails_at is None:
        assert changed.future.result(0).token_ids == [30] * 4
    else:
        assert isinstance(changed.future.exception(0), ProcessorError)
    assert [request.future.result(0).token_ids for request in requests] == [[6, 7, 8, 9]] * 2
