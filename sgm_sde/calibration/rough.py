r"""Random search of levels, for networks that change abruptly with time.

A network that looks its timestep up in a table has an error of its own at each entry. Its derivative with respect to a
level says nothing, and dynamic programming knows one entry of many. What helps is to try: levels near those of a table,
with the last row in closed form,

$$ \min_{c_n,\,b_n} \frac1N \sum_i w_i\,|c_n z^i + \sum_j b_{nj} D_j^i - x^i|^2 , $$

which costs one run a trial. Trials are compared by Huber's loss, so that noises between two modes do not decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgm_sde._utils.autograd import weighted_sum
from sgm_sde.calibration.closed import ridge
from sgm_sde.calibration.refine import GAP, Refinement, huber_weights
from sgm_sde.calibration.rows import Rows

TRIALS = 300
LARGEST = 0.3  # standard deviation of a move in log s, at most
SMALLEST = 0.01  # at least
MOVED = 0.5  # of the levels, in a trial
RIDGE = 1e-4  # of the Gram matrix of the last row, with a diagonal of ones


def searched(fit: Refinement, start: Rows) -> Rows:
    """The best table of all trials, the start included; the moves are the same in every call."""
    generator = torch.Generator().manual_seed(0)
    each = fit.errors(start.run(fit.flow, fit.z, fit.samples)[0])
    if not bool(each.isfinite().all()):
        return start

    best = start
    limit = fit.limit(each)
    loss = _huber(each, limit, fit.sampling_weights)
    for _ in range(TRIALS):
        if fit.late():
            break
        moved = _moved(fit, best, generator)
        if moved is None:
            continue
        rows, errors = _with_last_row(fit, moved, fit.sampling_weights * huber_weights(each, limit))
        found = _huber(errors, limit, fit.sampling_weights)
        if found < loss:
            best = rows
            each = errors
            loss = found
    return best


def _moved(fit: Refinement, rows: Rows, generator: torch.Generator) -> Rows | None:
    """The table with some levels moved, by steps of any size; None if they are no levels."""
    n = rows.n
    u = float(torch.rand((), generator=generator))
    size = LARGEST * (SMALLEST / LARGEST) ** u
    which = torch.rand(n, generator=generator) < MOVED
    t = rows.t + size * which * torch.randn(n, generator=generator, dtype=rows.t.dtype)

    apart = bool((t[:-1] - t[1:] > GAP).all())
    if not apart or float(t[0]) > fit.flow.high or float(t[-1]) < fit.flow.low:
        return None
    c = rows.c.clone()
    c[0] = t[0].exp()
    return Rows(t, c, rows.B)


def _with_last_row(fit: Refinement, rows: Rows, w: Tensor) -> tuple[Rows, Tensor]:
    """The table with the best last row near its own, and the mean square errors (N,) of the noises."""
    y, D = rows.run(fit.flow, fit.z, fit.samples)
    features = torch.cat([fit.z[None], D])
    root = w.sqrt().to(y)[:, None]
    change = ridge(root * features, root * (fit.exact - y), RIDGE)

    c = rows.c.clone()
    B = rows.B.clone()
    c[-1] += change[0]
    B[-1] += change[1:]
    y = y + weighted_sum(change.to(y), features)
    return Rows(rows.t, c, B), fit.errors(y)


def _huber(each: Tensor, limit: float, w: Tensor) -> float:
    """Huber's loss of mean square errors (N,) with weights (N,): squares up to a limit of their root, linear beyond."""
    e = each.sqrt()
    return float((w * torch.where(e < limit, each, 2 * limit * e - limit**2)).mean())
