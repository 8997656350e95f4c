"""What a request wants of the latent, and whether the answer has it."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from latentwire import InvalidArgumentError, ProtocolError
from latentwire.answer_form import COMPRESSED, Output
from latentwire.compressors import base


def test_the_wire_contract_has_the_words_of_the_compressors() -> None:
    # It cannot import them: they import the package's errors, and those the contract.
    assert COMPRESSED == base.COMPRESSED
    assert get_args(Output) == get_args(base.Output)


@pytest.mark.parametrize(
    ("sent", "changes", "name"),
    [
        ({"compressor": "first"}, {}, "compressor"),
        ({"return_hidden_state": False}, {}, "return_hidden_state"),
        ({}, {"hidden_state": None}, "return_hidden_state"),
    ],
)
def test_an_answer_in_another_form_than_requested_is_refused(
    server: Any, call: Any, wire: Any, sent: dict[str, Any], changes: dict[str, Any], name: str
) -> None:
    body = wire.plan_body() | changes
    if changes:
        body["usage"]["latent_rows"] = 0
    server.script = [wire.json_answer(body)]
    with pytest.raises(ProtocolError, match=f"the request has {name} "):
        call("plan_latent", "Clean the kettle", **sent)


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"dtype": "int2"}, "dtype"),
        ({"compressor": ""}, "compressor"),
        ({"return_hidden_state": "perhaps"}, "return_hidden_state"),
    ],
)
def test_a_wrong_form_of_the_answer_is_refused_before_it_is_sent(
    server: Any, call: Any, wire: Any, sent: dict[str, Any], field: str
) -> None:
    server.script = [wire.json_answer(wire.plan_body())]
    with pytest.raises(InvalidArgumentError) as raised:
        call("plan_latent", "Clean the kettle", **sent)
    assert raised.value.field == field
    assert not server.received
