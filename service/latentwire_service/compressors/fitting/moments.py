"""Mean and covariance of rows from sums in float64: memory does not grow with the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentwire_service.fitting.training import Tensors


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """The distribution of rows, reduced to its main directions.

    Attributes:
        mean: `[H]` float64.
        variance: `[H]` float64, of each column.
        components: `[D, H]` float64: orthonormal directions, the one with the largest variance
            first. The entry of largest magnitude is positive.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    components: torch.Tensor


class Moments:
    """Sums over rows.

    Args:
        width: H.
        device: of the sums; one without float64 is replaced by the CPU.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        place = torch.device("cpu") if device.type == "mps" else device
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64, device=place)
        self._products = torch.zeros(width, width, dtype=torch.float64, device=place)

    def add(self, rows: torch.Tensor) -> None:
        """Add rows `[n, H]` float32."""
        wide = rows.to(self._sum.device).double()
        self.count += len(wide)
        self._sum += wide.sum(0)
        self._products += wide.T @ wide

    def tensors(self) -> Tensors:
        """Return the sums, for `restore`."""
        return {"sum": self._sum, "products": self._products}

    def restore(self, tensors: Tensors, count: int) -> None:
        """Continue from what `tensors` returned.

        Args:
            tensors: the sums.
            count: rows that they are of.
        """
        self.count = count
        self._sum.copy_(tensors["sum"])
        self._products.copy_(tensors["products"])

    def principal(self, dim: int) -> Principal:
        """Return the `dim` directions in which the rows vary most.

        Args:
            dim: D, at most H.
        """
        mean = self._sum / self.count
        covariance = self._products / self.count - torch.outer(mean, mean)
        # On the CPU: the same libraries decide between directions of equal variance everywhere.
        _, vectors = torch.linalg.eigh(covariance.cpu())
        components = vectors.T.flip(0)[:dim]
        largest = components.abs().argmax(1, keepdim=True)
        signs = torch.where(components.gather(1, largest) < 0, -1.0, 1.0)
        variance = covariance.diagonal().clamp_min(0)
        return Principal(mean.cpu(), variance.cpu(), (components * signs).contiguous())
