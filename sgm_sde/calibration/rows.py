"""The numbers of a table while they are fitted, and their run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_autocast
from sgm_sde.calibration.flow import Flow
from sgm_sde.calibration.table import Table


@dataclass(frozen=True)
class Rows:
    """The numbers of a `Table`, as float64 tensors on the host.

    Attributes:
        t: log s of the calls (n,).
        c: scales of the noise (n + 1,).
        B: weights of the estimates (n + 1, n), row k in its first k columns.
    """

    t: Tensor
    c: Tensor
    B: Tensor

    @property
    def n(self) -> int:
        """Number of calls."""
        return len(self.t)

    def table(self) -> Table:
        """The rows as a `Table`."""
        weights = tuple(tuple(self.B[k, :k].tolist()) for k in range(1, self.n + 1))
        return Table(tuple(self.t.exp().tolist()), tuple(self.c.tolist()), weights)

    @staticmethod
    def of(table: Table) -> Rows:
        """The numbers of a table."""
        B = torch.zeros(table.nfe + 1, table.nfe, dtype=torch.float64)
        for k, row in enumerate(table.weights, 1):
            B[k, :k] = torch.tensor(row, dtype=torch.float64)
        levels, scales = (torch.tensor(v, dtype=torch.float64) for v in (table.levels, table.scales))
        return Rows(levels.log(), scales, B)

    @staticmethod
    def first(t: Tensor) -> Rows:
        """The first row for calls at log s, and zeros after it."""
        n = len(t)
        c = torch.zeros(n + 1, dtype=torch.float64)
        c[0] = t[0].exp()
        return Rows(t, c, torch.zeros(n + 1, n, dtype=torch.float64))

    def state(self, k: int, z: Tensor, D: Tensor) -> Tensor:
        """The state (N, d) of row k from noises z (N, d) and the estimates D (>= k, N, d) before it."""
        return combined(self.c[k], self.B[k, :k], z, D[:k])

    def run(self, flow: Flow, z: Tensor, samples: range) -> tuple[Tensor, Tensor]:
        """The samples (N, d) from noises z (N, d), and the estimates (n, N, d) on the way."""
        D = torch.empty((self.n, *z.shape), dtype=z.dtype, device=z.device)
        levels = self.t.tolist()
        flow.prepare(levels)
        for k, level in enumerate(levels):
            flow.estimate(self.state(k, z, D), level, samples, out=D[k])
        return self.state(self.n, z, D), D


def combined(c: Tensor, b: Tensor, z: Tensor, D: Tensor) -> Tensor:
    """The state (N, d) of a row: c times the noise z (N, d), and weights b (k,) of estimates D (k, N, d)."""
    return added(c.item() * z, b, D)


@outside_autocast
def added(to: Tensor, b: Tensor, D: Tensor) -> Tensor:
    """A tensor (*), to which weights b (k,) of estimates D (k, *) were added in place."""
    columns = D.flatten(1).T
    return to.view(-1).addmv_(columns, b.to(to)).view(to.shape)
