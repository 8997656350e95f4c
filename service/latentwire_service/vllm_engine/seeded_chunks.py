"""Runs inside vLLM's worker processes: a chunk of a prompt takes no number from a request's seed.

vLLM samples a token after every chunk, and drops it unless the chunk is the last. It rewinds the
request's generator then, which only generators of GPUs can do. On a CPU, the worker process would
end.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def spare_generators(runner: Any) -> None:
    """Make a model runner of a CPU leave generators alone where it drops the token.

    Args:
        runner: of vLLM. One that keeps no generators stays as it is.
    """
    if runner.device.type != "cpu" or not hasattr(runner, "discard_request_mask"):
        return
    sample_tokens = runner.sample_tokens

    def sparing(*args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        dropped = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0]
        spared = {
            index: batch.generators.pop(index)
            for index in dropped.tolist()
            if index in batch.generators
        }
        try:
            return sample_tokens(*args, **kwargs)
        finally:
            batch.generators.update(spared)

    runner.sample_tokens = sparing
