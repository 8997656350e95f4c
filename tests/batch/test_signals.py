from __future__ import annotations

import signal

import pytest

from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica


@pytest.mark.parametrize(
    "step",
    [
        "latentwire_batch.collect.opened_tasks",
        "latentwire_batch.collect.Assembly",
        "latentwire_batch.output.destination.install",
    ],
)
def test_sigterm_interrupts_the_steps_that_have_no_event_loop(
    step: str, collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(*_args: object, **_kwargs: object) -> None:
        # Without a handler, the signal would end the tests.
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(step, interrupted)
        ended = collect(replicas=[stub])
    assert ended.status == 130
    assert ended.stderr.endswith(
        "latentwire collect: interrupted; rerun the same command to resume\n"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert collect(replicas=[stub]).status == 0
