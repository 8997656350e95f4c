"""Slots and their length, from settings and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentwire_service.engine.errors import ModelError
from latentwire_service.engine.hf.memory import Capacity, available_bytes, plan_capacity

MIB = 2**20
# One position takes 1,000 bytes of keys and values; a hidden row takes 24.
BASE: dict[str, Any] = {
    "max_slots": None,
    "max_model_len": None,
    "model_max_len": 2048,
    "bytes_per_position": 1000,
    "row_bytes": 24,
    "available": 1000 * MIB,
    "memory_fraction": 0.5,
}


@pytest.mark.parametrize(
    ("changes", "slots", "length"),
    [
        ({}, 64, 2048),
        ({"max_slots": 3}, 3, 2048),
        ({"max_model_len": 100}, 64, 100),
        ({"max_slots": 100, "max_model_len": 50}, 100, 50),
        ({"model_max_len": 131072}, 64, 4096),
        ({"model_max_len": 131072, "max_model_len": 8192}, 62, 8192),
        ({"model_max_len": None}, 64, 4096),
        ({"model_max_len": None, "max_model_len": 10_000}, 51, 10_000),
        ({"available": 42 * MIB}, 10, 2048),
        # Not even one slot of the usual length fits, so there is one shorter slot.
        ({"available": 2_048_000}, 1, 999),
        ({"max_slots": 1, "max_model_len": 1}, 1, 1),
        # This many slots fit only if they are shorter.
        ({"max_slots": 1000}, 1000, 511),
        # With hidden rows in the host's memory, the scarcer memory decides.
        ({"host_available": 1000 * MIB}, 64, 2048),
        ({"host_available": 2 * MIB}, 21, 2048),
    ],
)
def test_capacity(changes: dict[str, Any], slots: int, length: int) -> None:
    given = BASE | changes
    capacity = plan_capacity(**given)
    assert (capacity.max_slots, capacity.max_model_len) == (slots, length)
    assert capacity == Capacity(
        slots,
        length,
        cache_bytes=slots * (length + 1) * 1000,
        budget_bytes=given["available"] // 2,
    )
    rows_budget = given.get("host_available", given["available"]) // 2
    assert slots * length * 24 <= rows_budget
    assert capacity.cache_bytes <= capacity.budget_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 2049}, "2049 exceeds the 2048 positions"),
        (
            {"max_slots": 1000, "max_model_len": 2048},
            r"1000 slot\(s\) of 2048 positions need 2001 MiB; 500 MiB may",
        ),
        ({"max_slots": 4, "max_model_len": 512, "host_available": 1000}, "0 MiB may be used"),
        ({"available": 2 * MIB, "max_model_len": 2048}, "2048 positions need 2 MiB; 1 MiB may"),
        ({"available": 0}, "0 MiB may be used"),
        ({"available": -5 * MIB}, "may be used"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_numbers(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        plan_capacity(**(BASE | changes))


def test_the_cpu_has_available_memory() -> None:
    assert available_bytes(torch.device("cpu")) > 0
