"""Copies hidden rows off the device: once per step for all requests, parallel to other work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Rows on their way to the host.

    Attributes:
        rows: `[n, hidden_size]` float32 on the CPU; pinned, and valid after `wait`, on CUDA.
        done: event that ends the copy; None when the rows are on the host already.
    """

    rows: torch.Tensor
    done: torch.cuda.Event | None

    def wait(self) -> npt.NDArray[np.float32]:
        """Wait for the rows and return them; the next copy may overwrite them."""
        if self.done is not None:
            self.done.synchronize()
        array: npt.NDArray[np.float32] = self.rows.numpy()
        return array


class RowCopier:
    """Copies rows of one step at a time.

    On CUDA, it copies into pinned memory on a stream of its own, while the main stream samples.

    Args:
        device: device of the rows.
        max_rows: most rows of one step.
        hidden_size: width H.
    """

    def __init__(self, device: torch.device, max_rows: int, hidden_size: int) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._pinned = torch.empty((max_rows, hidden_size), pin_memory=True)

    def start(self, hidden: torch.Tensor) -> PendingRows:
        """Start to copy `[n, hidden_size]`, any floating dtype, to float32 on the CPU."""
        if self._stream is None:
            return PendingRows(hidden.to("cpu", torch.float32), None)
        rows = hidden.float()
        target = self._pinned[: len(rows)]
        self._stream.wait_stream(torch.cuda.current_stream(hidden.device))
        with torch.cuda.stream(self._stream):
            target.copy_(rows, non_blocking=True)
            rows.record_stream(self._stream)
            done = self._stream.record_event()
        return PendingRows(target, done)
