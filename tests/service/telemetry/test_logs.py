"""What a log record may say of an error: its causes, and no path, host name or input."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable

import pytest

from latentwire.protocol import PlanLatentRequest
from latentwire_service.telemetry.logs import PathlessFormatter, format_traceback


def raised(function: Callable[[], object]) -> Exception:
    # Any error will do: its traceback is what is tested.
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def fail_to_read() -> None:
    raise OSError("no space left for /home/somebody/models/weights.bin")


def fail_to_load() -> None:
    try:
        fail_to_read()
    except OSError as error:
        raise RuntimeError("the model cannot be loaded") from error


def fail_while_failing() -> None:
    try:
        fail_to_read()
    except OSError:
        # Without `from`, so that the first error is the context and not the cause.
        raise RuntimeError("the clean-up failed")  # noqa: B904


def fail_alone() -> None:
    try:
        fail_to_read()
    except OSError:
        raise RuntimeError("the model cannot be loaded") from None


def test_a_cause_is_logged_before_its_effect() -> None:
    lines = format_traceback(raised(fail_to_load)).splitlines()
    cause = lines.index("OSError: no space left for /home/somebody/models/weights.bin")
    assert "test_logs.py:" in lines[cause - 1]
    assert lines[cause - 1].endswith(" in fail_to_read")
    assert "direct cause" in lines[cause + 1]
    assert lines[-2].endswith(" in fail_to_load")
    assert lines[-1] == "RuntimeError: the model cannot be loaded"


def test_an_error_during_another_is_logged_with_it() -> None:
    text = format_traceback(raised(fail_while_failing))
    assert "OSError: no space left" in text
    assert "During handling" in text


def test_a_suppressed_context_is_not_logged() -> None:
    assert "OSError" not in format_traceback(raised(fail_alone))


def test_a_traceback_holds_no_path_and_no_source_line() -> None:
    error = raised(fail_to_load)
    record = logging.LogRecord(
        "name", logging.ERROR, __file__, 1, "failed", (), (type(error), error, error.__traceback__)
    )
    text = PathlessFormatter("%(message)s").format(record)
    assert "OSError: no space left for weights.bin" in text
    assert "/" not in text
    assert "raise OSError" not in text


def test_a_traceback_does_not_name_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")

    def fail() -> None:
        raise OSError("node-17: node-17.cluster refused node-170")

    assert format_traceback(raised(fail)).endswith("localhost: localhost.cluster refused node-170")


def test_a_validation_error_is_logged_without_its_input() -> None:
    def fail() -> None:
        PlanLatentRequest.model_validate({"task": "x", "seed": "SECRET"})

    text = format_traceback(raised(fail))
    assert text.endswith("ValidationError: seed: must be a whole number")
    assert "SECRET" not in text


def test_a_traceback_is_bounded() -> None:
    def fail_deep(depth: int) -> None:
        if depth:
            fail_deep(depth - 1)
        raise ValueError("x" * 100_000)

    def fail_often() -> None:
        error: Exception | None = None
        for number in range(100):
            try:
                raise RuntimeError(f"number {number}") from error
            except RuntimeError as own:
                error = own
        assert error is not None
        raise error

    deep = format_traceback(raised(lambda: fail_deep(sys.getrecursionlimit() // 2)))
    assert len(deep) < 6000
    assert deep.splitlines()[0].endswith(" in fail_deep")
    often = format_traceback(raised(fail_often))
    assert often.endswith("number 99")
    assert often.count("RuntimeError") == 8


def test_a_cycle_of_causes_ends() -> None:
    error = RuntimeError("round")
    other = RuntimeError("and round")
    error.__cause__, other.__cause__ = other, error
    assert format_traceback(error).count("RuntimeError") == 2
