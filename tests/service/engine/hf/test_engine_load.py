"""The engine under many requests: memory does not grow, and no request waits for another."""

from __future__ import annotations

import gc
import random
import resource
from collections import Counter
from pathlib import Path

import pytest
import torch

from latentwire_service.engine.errors import RequestCancelledError
from latentwire_service.engine.request import HiddenRows, Request
from support.engine.harness import EngineHarness
from support.tiny_models import build_model, llama_config, random_prompts

PAGE = resource.getpagesize()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_long_prompt_never_keeps_running_requests_from_their_token() -> None:
    """Each step computes one chunk of the long prompt and one token of every running request."""
    config = llama_config(max_position_embeddings=4200)
    chunk = 256
    harness = EngineHarness(
        build_model(config), max_slots=17, max_model_len=4200, prefill_chunk=chunk, eos=()
    )
    running = [harness.submit(prompt, 60) for prompt in random_prompts([5] * 16)]
    while not all(request.token_ids for request in running):
        harness.engine.step()
    long_prompt = harness.submit(random_prompts([4000])[0], 4)
    num_steps = 0
    while not long_prompt.token_ids:
        before = [len(request.token_ids) for request in running]
        stats = harness.engine.step()
        num_steps += 1
        assert stats is not None
        assert stats.num_prompt_tokens <= chunk
        assert [len(request.token_ids) for request in running] == [n + 1 for n in before]
    assert num_steps == -(-4000 // chunk)
    harness.run()
    assert len(long_prompt.future.result(0).token_ids) == 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_two_thousand_requests_a_third_cancelled_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    model = build_model(llama_config(num_hidden_layers=1))
    harness = EngineHarness(model, max_slots=32, max_model_len=64, prefill_chunk=256)
    rng = random.Random(7)
    outcomes: Counter[str] = Counter()
    live: list[Request] = []
    others = kept_rows()

    def submit_one(index: int) -> None:
        prompt = random_prompts([rng.randint(1, 30)], seed=index)[0]
        k = rng.choice([None, 0, 4])
        live.append(
            harness.submit(prompt, rng.randint(1, 12), k=k, do_sample=True, top_p=0.9, seed=index)
        )

    def settle() -> None:
        for request in [request for request in live if request.future.done()]:
            live.remove(request)
            error = request.future.exception(0)
            outcomes["finished" if error is None else type(error).__name__] += 1

    def run(count: int) -> None:
        for index in range(count):
            submit_one(index)
            if index % 3 == 0:
                harness.engine.cancel(rng.choice(live))
            if len(live) > 48:
                harness.engine.step()
            settle()
        harness.run()
        settle()

    run(1500)
    gc.collect()
    warm = resident_bytes()
    run(2000)
    gc.collect()
    # A kept step would show: its logits alone are 40 kB, and there are over a thousand steps. The
    # warm-up lets the allocator and oneDNN's cache of kernels settle.
    assert resident_bytes() - warm < 24 * 2**20
    # Services of other tests that ended before their requests did may hold some of theirs.
    assert kept_rows() <= others
    assert not live
    assert harness.engine.num_running == harness.engine.num_waiting == 0
    assert outcomes.keys() == {"finished", RequestCancelledError.__name__}
    assert outcomes.total() == 3500
    assert outcomes[RequestCancelledError.__name__] > 500


def kept_rows() -> set[int]:
    gc.collect()
    return {id(kept) for kept in gc.get_objects() if type(kept) is HiddenRows}
