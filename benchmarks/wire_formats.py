"""The formats of an answer compared: time to encode and to decode, and size.

    python -m benchmarks.wire_formats

Each format carries one latent of [512, 896] random float32 values. Times are the median of several
rounds on one thread. A service without a tensor codec would send nested lists.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from latentwire.plan_latent import PlanLatent
from latentwire.protocol import PlanLatentRequest, PlanLatentResponse
from latentwire.safetensors_wire import unpack
from latentwire_service.api.rendering import AnswerContext, answer_tensors, plan_response
from latentwire_service.api.wire_formats import WireFormat, render
from latentwire_service.engine.backend import Completion, FinishReason
from latentwire_service.model_service import Plan

SHAPE = (512, 896)
NUM_ROUNDS = 7


def main() -> None:
    hidden_state = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    completion = Completion(
        "A plan. " * 200, list(range(SHAPE[0])), hidden_state, FinishReason.STOP, 40, 0.0, 0.0, 0.0
    )
    plan = Plan("plan-0", 1, completion)
    context = AnswerContext(PlanLatentRequest(task="A task"), None, "model", None, "latentwire")

    def nested() -> bytes:
        body = plan_response(plan, context, answer_tensors(plan, context)).model_dump()
        return json.dumps(body | {"hidden_state": hidden_state.tolist()}).encode()

    def read_nested(content: bytes) -> Any:
        return np.array(json.loads(content)["hidden_state"], np.float32)

    def read_json(content: bytes) -> Any:
        return PlanLatent.from_response(PlanLatentResponse.model_validate_json(content))

    def read_arrow(content: bytes) -> Any:
        with pa.ipc.open_stream(content) as reader:
            (batch,) = reader
        return batch["hidden_state"].values.values.to_numpy().reshape(SHAPE)

    forms: list[tuple[str, Callable[[], bytes], Callable[[bytes], Any]]] = [
        ("nested lists", nested, read_nested),
        ("JSON, base64", lambda: render(WireFormat.JSON, plan, context), read_json),
        ("Arrow", lambda: render(WireFormat.ARROW, plan, context), read_arrow),
        ("safetensors", lambda: render(WireFormat.SAFETENSORS, plan, context), unpack),
    ]
    results = [measure(*form) for form in forms]
    print("| Form | Encode, ms | Decode, ms | Size, MB | gzip -6: size, MB | and ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, result in zip((form[0] for form in forms), results, strict=True):
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in result.values())} |")
    print(json.dumps({form[0]: result for form, result in zip(forms, results, strict=True)}))


def measure(
    _name: str, encode: Callable[[], bytes], decode: Callable[[bytes], Any]
) -> dict[str, float]:
    content = encode()
    packed = gzip.compress(content, 6)
    return {
        "encode_ms": median_ms(encode, NUM_ROUNDS),
        "decode_ms": median_ms(lambda: decode(content), NUM_ROUNDS),
        "size_mb": len(content) / 1e6,
        "gzip_mb": len(packed) / 1e6,
        "gzip_ms": median_ms(lambda: gzip.compress(content, 6), 1),
    }


def median_ms(work: Callable[[], Any], num_rounds: int) -> float:
    times = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main()
