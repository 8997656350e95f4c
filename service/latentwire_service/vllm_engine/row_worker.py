"""Runs inside vLLM's worker processes: takes hidden rows off the device, right before sampling.

vLLM loads `RowWorker` by its name (`worker_extension_cls`). Nothing here runs in the service's own
process. A row is the input of the LM head: after the final norm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import psutil
import torch
import zmq

from latentwire_service.vllm_engine.environment import SERVICE_PID
from latentwire_service.vllm_engine.row_ledger import RowLedger, WantedRow
from latentwire_service.vllm_engine.row_wire import encode_header
from latentwire_service.vllm_engine.seeded_chunks import spare_generators

_WATCH_PERIOD_S = 1.0


def _end_with_service(pid: int) -> None:
    """End this process when the service is gone, however it ended: a GPU must not stay taken."""
    # It may be gone already, and may go between two questions.
    with contextlib.suppress(psutil.NoSuchProcess):
        service = psutil.Process(pid)
        while service.is_running() and service.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_WATCH_PERIOD_S)
    os.kill(os.getpid(), signal.SIGKILL)


# vLLM imports this module before it loads the model.
if SERVICE_PID in os.environ and int(os.environ[SERVICE_PID]) != os.getpid():
    threading.Thread(
        target=_end_with_service,
        args=[int(os.environ[SERVICE_PID])],
        name="latentwire-watch",
        daemon=True,
    ).start()


class RowSender:
    """Copies rows to the host and sends them, without making the runner wait.

    Args:
        address: of the service's socket.
    """

    def __init__(self, address: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.PUSH)
        # Rows must not be dropped, and the runner must not wait for a service that is busy.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._queue: SimpleQueue[tuple[bytes, torch.Tensor, Any]] = SimpleQueue()
        threading.Thread(target=self._run, name="latentwire-rows", daemon=True).start()

    def send(self, rows: torch.Tensor, wanted: Sequence[WantedRow]) -> None:
        """Send `[n, hidden_size]` rows, on the model's device; nobody else writes to them."""
        header = encode_header(wanted, rows.shape[1], str(rows.dtype).removeprefix("torch."))
        copied = None
        if rows.device.type != "cpu":
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            copied = torch.Event(rows.device)
            copied.record()
            rows = host
        self._queue.put((header, rows.contiguous(), copied))

    def _run(self) -> None:
        while True:
            header, rows, copied = self._queue.get()
            if copied is not None:
                copied.synchronize()
            # numpy has no bfloat16.
            stored = rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows
            self._socket.send_multipart([header, stored.numpy().data], copy=False)


class RowHooks:
    """Finds the rows of each step in a model runner.

    Args:
        sender: gets the rows.
    """

    def __init__(self, sender: RowSender) -> None:
        self._sender = sender
        self._ledger = RowLedger()
        self._is_stepping = False

    def install(self, runner: Any) -> None:
        """Wrap the methods of a runner.

        Raises:
            RuntimeError: it is of a kind that this module does not know.
        """
        execute_model = runner.execute_model

        def noting(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._ledger.note(scheduler_output)
            self._is_stepping = True
            try:
                return execute_model(scheduler_output, *args, **kwargs)
            finally:
                self._is_stepping = False

        if hasattr(runner, "sample"):
            self._wrap_sample(runner)
        elif hasattr(runner, "model") and hasattr(runner.input_batch, "req_ids"):
            self._wrap_compute_logits(runner)
        else:
            raise RuntimeError(f"{type(runner).__name__} is not known")
        runner.execute_model = noting

    def _wrap_compute_logits(self, runner: Any) -> None:
        """Runner V1: the LM head's input holds one row for each request of the batch."""
        compute_logits = runner.model.compute_logits

        def taking(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._is_stepping:
                self._take(hidden_states, runner.input_batch.req_ids, None)
            return compute_logits(hidden_states, *args, **kwargs)

        runner.model.compute_logits = taking

    def _wrap_sample(self, runner: Any) -> None:
        """Runner V2: the output of the pass and the indices of the rows that are sampled.

        The runner needs a GPU and Triton. The tests call the method of its class with a stand-in
        model; no test runs it with a model of its own.
        """
        sample = runner.sample

        def taking(hidden_states: torch.Tensor, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
            self._take(hidden_states, input_batch.req_ids, input_batch.logits_indices)
            return sample(hidden_states, input_batch, *args, **kwargs)

        runner.sample = taking

    def _take(
        self, hidden_states: torch.Tensor, req_ids: Sequence[str], indices: torch.Tensor | None
    ) -> None:
        num_rows = len(hidden_states) if indices is None else len(indices)
        if num_rows != len(req_ids):
            raise RuntimeError(f"{num_rows} rows are sampled for {len(req_ids)} requests")
        wanted = self._ledger.take(req_ids)
        if not wanted:
            return
        if indices is None and len(wanted) == num_rows:
            # Made for this step alone: it needs no copy.
            rows = hidden_states
        else:
            chosen = _on_device([each.index for each in wanted], hidden_states.device)
            rows = hidden_states[chosen if indices is None else indices[chosen]]
        self._sender.send(rows, wanted)


def _on_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    is_cuda = device.type == "cuda"
    return torch.tensor(numbers, pin_memory=is_cuda).to(device, non_blocking=True)


class RowWorker:
    """What vLLM's workers can do besides: the methods of `collective_rpc`."""

    # Of vLLM's worker.
    model_runner: Any

    def latentwire_send_rows(self, address: str) -> bool:
        """Send rows from now on; return whether this rank is the one that has them."""
        from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

        spare_generators(self.model_runner)
        if not get_pp_group().is_last_rank or get_tensor_model_parallel_rank() != 0:
            return False
        RowHooks(RowSender(address)).install(self.model_runner)
        return True

    def latentwire_choose(self, data: bytes, num_rows: int) -> list[int] | None:
        """Return the most likely token of each of `[num_rows, hidden_size]` float32 rows.

        Only the LM head is applied, so that a missing norm shows. None on ranks without one.
        """
        from vllm.distributed import get_pp_group

        if not get_pp_group().is_last_rank:
            return None
        model = self.model_runner.model
        rows = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(num_rows, -1)
        rows = rows.to(self.model_runner.device, self.model_runner.dtype)
        with torch.inference_mode():
            if hasattr(model, "lm_head") and hasattr(model, "logits_processor"):
                logits = model.logits_processor(model.lm_head, rows)
            else:
                logits = model.compute_logits(rows)
        if logits is None:
            return None
        chosen: list[int] = logits.argmax(dim=-1).tolist()
        return chosen
