"""Messages, latents and files of requests that are refused, each with the field at fault."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from latentwire.safetensors_wire import pack_request
from latentwire.tensors import encode_base64, encode_hidden_state
from support.latent_requests import OPTIONS, SAFETENSORS, body, latent, matrix, plan, post_escaped
from support.live_server import LiveServer
from support.requests import assert_problem
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake", "local")


def int8(**changes: Any) -> dict[str, Any]:
    return encode_hidden_state(matrix(3), "int8").model_dump(mode="json") | changes


def float16(value: bytes = b"\x00\x00") -> dict[str, Any]:
    data = base64.b64encode(value * HIDDEN_SIZE).decode()
    return {"data": data, "shape": [1, HIDDEN_SIZE], "dtype": "float16"}


HUGE = {"data": "", "shape": [1, 10**9]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a lying shape": (latent(hidden_state=HUGE), "messages.0.content.0.latent"),
    "a lying number of rows": (
        latent(hidden_state={"data": "", "shape": [3, HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state.data",
    ),
    "negative sizes": (
        latent(hidden_state={"data": "", "shape": [-1, -HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state",
    ),
    "data that is not base64": (
        latent(hidden_state={"data": "@" * 16 * 16, "shape": [1, HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state.data",
    ),
    "no rows": (
        latent(hidden_state={"data": "", "shape": [0, HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state",
    ),
    "width 0": (
        latent(hidden_state={"data": "", "shape": [3, 0]}),
        "messages.0.content.0.hidden_state",
    ),
    "another width": (latent(matrix(2, HIDDEN_SIZE + 1)), "messages.0.content.0.latent"),
    "NaN": (
        latent(np.full((2, HIDDEN_SIZE), np.nan, np.float32)),
        "messages.0.content.0.hidden_state",
    ),
    "infinity": (
        latent(np.full((2, HIDDEN_SIZE), np.inf, np.float32)),
        "messages.0.content.0.hidden_state",
    ),
    "an unknown bridge": (latent(bridge="x" * 99), "messages.0.content.0.bridge"),
    "another model": (
        latent(bridge="weights", latent={"model": "other"}),
        "messages.0.content.0.latent",
    ),
    "another model, no bridge named": (
        latent(bridge=None, latent={"model": "other"}),
        "messages.0.content.0.latent",
    ),
    "another layer": (
        latent(bridge="weights", latent={"model": "tiny", "layer": "12"}),
        "messages.0.content.0.latent",
    ),
    "rows that are not normed": (
        latent(bridge="weights", latent={"model": "tiny", "normed": False}),
        "messages.0.content.0.latent",
    ),
    "a tensor that is not there": (
        latent(hidden_state="t"),
        "messages.0.content.0.hidden_state",
    ),
    "another dtype": (
        latent(hidden_state={"data": "", "shape": [1, 1], "dtype": "float64"}),
        "messages.0.content.0.hidden_state.dtype",
    ),
    "int8 without scales": (
        latent(hidden_state=int8(scales=None)),
        "messages.0.content.0.hidden_state.scales",
    ),
    "scales for fewer rows": (
        latent(hidden_state=int8(scales="AAAAAA==")),
        "messages.0.content.0.hidden_state.scales",
    ),
    "a scale that is not finite": (
        latent(hidden_state=int8(scales=encode_base64(np.full(3, np.nan)).decode())),
        "messages.0.content.0.hidden_state",
    ),
    "an infinite scale": (
        latent(hidden_state=int8(scales=encode_base64(np.full(3, np.inf)).decode())),
        "messages.0.content.0.hidden_state",
    ),
    "int8 values named int4": (
        latent(hidden_state=int8(dtype="int4")),
        "messages.0.content.0.hidden_state.data",
    ),
    "rotated float16": (
        latent(hidden_state={**float16(), "rotation": 0}),
        "messages.0.content.0.hidden_state.rotation",
    ),
    "a rotation below 0": (
        latent(hidden_state=int8(rotation=-1)),
        "messages.0.content.0.hidden_state.rotation",
    ),
    "a float16 infinity": (
        latent(hidden_state=float16(b"\x00\x7c")),
        "messages.0.content.0.hidden_state",
    ),
    "a model that is not Unicode": (
        latent(bridge="weights", latent={"model": "\ud800"}),
        "messages.0.content.0.latent.model",
    ),
    "a long model": (
        latent(bridge=None, latent={"model": "x" * 9000}),
        "messages.0.content.0.latent.model",
    ),
    "a revision that is not Unicode": (
        latent(bridge="weights", latent={"model": "tiny", "revision": "\udfff"}),
        "messages.0.content.0.latent.revision",
    ),
    "a layer that is not Unicode": (
        latent(bridge="weights", latent={"model": "tiny", "layer": "\ud800"}),
        "messages.0.content.0.latent.layer",
    ),
    "a long layer": (
        latent(bridge="weights", latent={"model": "tiny", "layer": "x" * 9000}),
        "messages.0.content.0.latent.layer",
    ),
    "a huge number of a layer": (
        latent(bridge="weights", latent={"model": "tiny", "layer": 10**300}),
        "messages.0.content.0.latent.layer",
    ),
    "a layer that is a list": (
        latent(bridge="weights", latent={"model": "tiny", "layer": [1]}),
        "messages.0.content.0.latent.layer",
    ),
    "normed as text": (
        latent(bridge="weights", latent={"model": "tiny", "normed": "yes"}),
        "messages.0.content.0.latent.normed",
    ),
    "sizes as text": (
        latent(hidden_state={"data": "", "shape": ["3", str(HIDDEN_SIZE)]}),
        "messages.0.content.0.hidden_state.shape.0",
    ),
    "an image": ({"type": "image_url", "image_url": "x"}, "messages.0.content.0"),
    "no type": ({"text": "x"}, "messages.0.content.0"),
    "an unknown field": ({"type": "text", "text": "x", "cache": 1}, "messages.0.content.0.cache"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_part_that_cannot_be_read_is_named(server: LiveServer, name: str) -> None:
    part, field = REFUSED[name]
    answer = post_escaped(server, body(part))
    assert_problem(answer, 422, "invalid-request", field)
    assert len(answer.content) < 1000
    assert plan(server, body({"type": "text", "text": "x"})).token_ids


EXCLUSIVE: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "task"),
    "both": ({"task": "Go", "messages": [{"role": "user", "content": "Go"}]}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "system with messages": (
        {"messages": [{"role": "user", "content": "Go"}], "system": "x"},
        "system",
    ),
    "template with messages": (
        {"messages": [{"role": "user", "content": "Go"}], "prompt_template": "{task}"},
        "prompt_template",
    ),
    "no tokens": ({"task": "Go", "max_new_tokens": 0}, "max_new_tokens"),
    "a role that is no text": ({"messages": [{"role": 1, "content": "x"}]}, "messages.0.role"),
    "an empty role": ({"messages": [{"role": "", "content": "x"}]}, "messages.0.role"),
    "content that is a number": (
        {"messages": [{"role": "user", "content": 1}]},
        "messages.0.content",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a nested variable": (
        {"task": "Go", "chat_template_kwargs": {"a": {}}},
        "chat_template_kwargs",
    ),
    "an empty plan": ({"task": "Go", "plan": ""}, "plan"),
    "no text without markup": (
        {"messages": [{"role": "user", "content": ""}], "chat_template": "none"},
        "messages",
    ),
    "a variable that is a list": (
        {"task": "Go", "chat_template_kwargs": {"a": [1]}},
        "chat_template_kwargs",
    ),
    "a variable that is not Unicode": (
        {"task": "Go", "chat_template_kwargs": {"a": "\ud800"}},
        "chat_template_kwargs",
    ),
    "a variable whose name is none": (
        {"task": "Go", "chat_template_kwargs": {"a b": 1}},
        "chat_template_kwargs",
    ),
    "a step bridge without steps": ({"task": "Go", "step_bridge": "weights"}, "step_bridge"),
}


@pytest.mark.backends("fake", "local", "vllm")
@pytest.mark.parametrize("name", list(EXCLUSIVE))
def test_fields_that_exclude_each_other_are_named(server: LiveServer, name: str) -> None:
    sent, field = EXCLUSIVE[name]
    answer = post_escaped(server, {**OPTIONS, **sent})
    assert_problem(answer, 422, "invalid-request", field)


@pytest.mark.backends("fake", "local", "vllm")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_variables_of_the_template_are_finite(server: LiveServer, number: str) -> None:
    sent = f'{{"task": "Go", "chat_template_kwargs": {{"a": {number}}}}}'
    answer = server.http.post(
        "/plan_latent", content=sent, headers={"Content-Type": "application/json"}
    )
    assert_problem(answer, 422, "invalid-request", "chat_template_kwargs")


def with_places(*places: tuple[int, int, int], num_bytes: int = 32) -> bytes:
    """A file with a tensor of so many rows of two values for each `(rows, start, end)`."""
    header = json.dumps(
        {"__metadata__": {"task": "Go"}}
        | {
            f"t{index}": {"dtype": "F32", "shape": [rows, 2], "data_offsets": [start, end]}
            for index, (rows, start, end) in enumerate(places)
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes(num_bytes)


BROKEN = {
    "two tensors in one place": with_places((4, 0, 32), (4, 0, 32)),
    "tensors that overlap": with_places((3, 0, 24), (2, 16, 32)),
    "a tensor inside another": with_places((4, 0, 32), (1, 8, 16)),
    "a gap between tensors": with_places((1, 0, 8), (2, 16, 32)),
    "bytes after the tensors": with_places((3, 0, 24)),
    "a tensor that ends before it begins": with_places((4, 32, 0)),
    "more rows than fit, of width 0": with_places((4, 0, 32), num_bytes=32).replace(
        b"[4, 2]", b"[9999999999999999999999, 0]"
    ),
    "a tensor of numbers": with_places((4, 0, 32)).replace(b'"F32"', b'"I32"'),
    "empty": b"",
    "a cut length": b"\x01\x00",
    "a header beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": (4).to_bytes(8, "little") + b"nope",
    "a header that is a list": (2).to_bytes(8, "little") + b"[]",
    "metadata that are a list": (19).to_bytes(8, "little") + b'{"__metadata__":[]}',
    "a nested header": (20_000).to_bytes(8, "little") + b"[" * 10_000 + b"]" * 10_000,
    "a tensor beyond the file": pack_request({"task": "Go"}, {"t": matrix(1)})[:-4],
    "a tensor of another dtype": pack_request({"task": "Go"}, {"t": matrix(1)}).replace(
        b'"F32"', b'"F16"'
    ),
}


@pytest.mark.backends("fake", "local", "vllm")
@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_safetensors_request_is_refused(server: LiveServer, name: str) -> None:
    answer = server.http.post("/plan_latent", content=BROKEN[name], headers=SAFETENSORS)
    assert_problem(answer, 422, "invalid-request", "body")
