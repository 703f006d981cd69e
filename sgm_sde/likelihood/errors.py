r"""Standard errors and numerical errors of log-likelihoods, from what a run has seen.

**Probes.** At every node each probe estimates the trace with an independent error. For Rademacher probes its variance
follows from the products with the Jacobian, entry by entry (`sgm_sde.likelihood.trace`). For others it is the sample
variance of several probes per node; with one, a second probe that stays the same at all nodes, the companion, is
evaluated as well: in the difference of the two the trace cancels, and since the companion's error varies slowly from
node to node, second differences isolate the error of the fresh probe.

**Quadrature.** Over each interval the integral is by six slopes; $r_i$ is what a rule of eight adds to it, and $r'_i$
what one of ten adds to that. Where the integrand is resolved they cancel from interval to interval, and their sums tell
the error. A wave between the nodes leaves rules of more slopes no better, $R' \not< R = (\sum_i r_i^2)^{1/2}$, and is
of their size:

$$ \Big(\Big(\sum_i r_i\Big)^2 + \Big(\sum_i r'_i\Big)^2 + (1.3\max(R, R'))^2\min(1, R'/R)^8 + e^2\Big)^{1/2} $$

Besides, the integral Q over all nodes is compared with those over every other node, $Q_2$, and every fourth, $Q_4$, as
if the error fell by the same factor from each to the next:

$$ e = d_1\,\min(1, d_1/d_2), \qquad d_1 = |Q - Q_2|, \quad d_2 = |Q_2 - Q_4| $$

each the root mean square over the choices of nodes. Where steps are so long that what data look like changes from one
to the next, $d_1 < d_2$ is chance, and $d_1$ itself is taken. Where they are short, and $d_1 < 0.3\,d_2$, e is
$\max(R, R')$ at most: a wave that is resolved now and was not on half of the nodes converges faster than it did. Where
they are not short, the two sums count 2.5 times: those of a wave between the nodes may cancel by chance. Where R' is
more than 1.2 R, the wave is faster than the nodes, which see a slower one instead, and the sums count 20 times. For a
random trace the companion is integrated: the independent errors of fresh probes would count as roughness of the
integrand.

Of a kink or a jump within an interval all rules know as little. What they add to one another is a small part of the
error, of even nodes a twentieth at a jump and a sixth at a kink, and from rule to rule only a quarter to two fifths
less. A rule of twelve slopes adds $r''_i$: over all intervals its sizes are 0.53 of those of $r_i$ at a jump, 0.38 to
0.49 of them at a kink, and where an integrand is smooth, be it resolved or not, several times smaller. So

$$ 60\,\Big(\sum_i \max(r'_i, r''_i)^2 \min\Big(1, \frac{R''_i}{0.51\,R_i}\Big)^{12}\Big)^{1/2} , $$

with $R_i$ and $R''_i$ over the five intervals around i, is about twice the standard deviation of what a jump leaves by
where between two nodes it is, 0.3 to 2.4 times the most that a kink leaves, and vanishes elsewhere. The three intervals
at either end are left out, where polynomials through nodes on one side oscillate. The slopes have kinks of their own,
of which the same is taken from what the rules do to them (`of_kinks`).

**Steps.** What the embedded errors of the steps of Dormand and Prince's pair do to the log-density is added up, each
step's grown by its `stiffness`, the sum as `smoothness` and the tolerance do. Of jumps within a step,
which these hardly see, null rules tell (`roughness_of_step`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import weighted_sum
from sgm_sde._utils.shapes import dot, row_sums
from sgm_sde.likelihood.grid import MOST
from sgm_sde.likelihood.multistep import Quadrature
from sgm_sde.schemes.tableaus import DOPRI5

COARSE = 0.7  # step of lambda beyond which the convergence over parts of the nodes is chance
FINE = 0.12  # step below which an integrand may be resolved that was not on half of the nodes
CONVERGES = 0.3  # d_1 / d_2 below which it is
ROUGH = 1.3  # times what rules of more slopes add, of the size of a wave between the nodes, by the power
UNRESOLVED = 4  # of R'/R, of how little rules of still more slopes gain
CANCELLED = 2.5  # times the sum of that over steps that are not so short: of a wave it may be small by chance
FASTER = 1.2  # times what rules of 8 add, from which what those of 10 add to that says that a wave is faster than nodes
ALIASED = 20.0  # times the sum of it then
AROUND = 5  # intervals over which it is seen whether rules of more slopes gain anything
AT_ENDS = 3  # intervals at either end, over which polynomials through nodes on one side oscillate
KINKED = 6  # of R''^2/R^2, of how little they do
AT_JUMP = 0.51  # R''/R of a jump, of which they know nothing, in the mean over the intervals around it
OF_KINK = 60.0  # times what they add there, about twice the standard deviation of what a jump between two nodes leaves
NEIGHBOURS = 7  # nodes over which a variance is averaged
AT_A_TIME = 2**18  # values whose error is found together, which stay in a core's cache
TAILS = 0.45  # of the degrees of freedom that squares of normal numbers have: products with probes have longer tails
ROUNDED = 2.0  # units in the last place of each number of a state, and of a trace, that rounding is taken for
PLAUSIBLE = 2.0  # times the size of a score that the Jacobians tell, which the divergence's gradient adds to
CALIBRATED_AT = 3e-6  # tolerance of a step
ADAPTIVE_ERROR = 1.5  # times the sum of the embedded errors at that
SHARE_OF_SIGNED = 0.5, 0.7  # of the embedded errors' sum with signs in that of their sizes, from which they are smooth
ONE_SIGN = 1 / 5  # times the error where they are
COARSER = 1 / 4  # power of the tolerance: coarser steps are further off, in units of the embedded errors


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b for sizes b of 0 as well, where it is 0 if a is, and else very large."""
    return a / b.clamp(min=torch.finfo(b.dtype).tiny)


def share_unresolved(R: Tensor, R_of_more: Tensor) -> Tensor:
    """min(1, R'/R)^4 (B,), from near 0 where an integrand is resolved to 1 where rules of more slopes gain nothing."""
    return ratio(R_of_more, R).clamp(max=1.0) ** UNRESOLVED


def quadrature_error(
    values: Tensor, table: Quadrature, longest: float = 0.0, aliased: float = ALIASED
) -> tuple[Tensor, Tensor]:
    """Error (B,) of the integral of what has values (nodes, B) at the nodes, and what kinks may add to that (B,).

    Args:
        values: at the nodes.
        table: weights of the integral, and of what tells its error.
        longest: step of lambda around where data take shape.
        aliased: times the sum of what rules add where more slopes add more, as of a wave faster than even nodes.
    """
    rules = torch.from_numpy(table.remainders).to(values).flatten(0, 1).to_sparse()  # each of a few nodes
    found = []
    for some in torch.split(values, max(1, AT_A_TIME // len(values)), 1):
        remainders = torch.sparse.mm(rules, some).view(-1, len(values) - 1, some.shape[1])
        found.append(_quadrature_error(some, remainders, table, longest, aliased))
    errors, kinks = zip(*found, strict=True)
    return torch.cat(errors), torch.cat(kinks)


def _quadrature_error(
    values: Tensor, remainders: Tensor, table: Quadrature, longest: float, aliased: float
) -> tuple[Tensor, Tensor]:
    """The same, with what rules of more slopes add, (rules, intervals, B)."""
    r, r_of_more, *_ = remainders
    R = r.square().sum(0).sqrt()
    R_of_more = r_of_more.square().sum(0).sqrt()
    size = torch.maximum(R, R_of_more)

    d_1, d_2 = _distances(values, table)
    falls = ratio(d_1, d_2).clamp(max=1.0)
    e = d_1 if longest > COARSE else d_1 * falls
    sums = torch.hypot(r.sum(0), r_of_more.sum(0))
    if longest < FINE:
        e = torch.where(falls < CONVERGES, torch.minimum(e, size), e)
    else:
        sums = torch.where(R_of_more > FASTER * R, aliased, CANCELLED) * sums
    parts = [
        sums,
        ROUGH * size * share_unresolved(R, R_of_more),
        e,
    ]
    return torch.stack(parts).square().sum(0).sqrt(), of_kinks(remainders)


def of_kinks(remainders: Tensor) -> Tensor:
    """Size (B,) of what kinks and jumps leave, from what rules of more and more slopes add, (rules, intervals, B)."""
    squares = remainders.square()
    share = ratio(_sums_around(squares[-1]), _sums_around(squares[0])) / AT_JUMP**2
    gains_nothing = share.clamp_(max=1.0).square_() ** (KINKED / 2)
    seen = squares[-2:, AT_ENDS:-AT_ENDS].amax(0)
    return OF_KINK * (seen * gains_nothing).sum(0).sqrt()


def _sums_around(values: Tensor) -> Tensor:
    """Sums of values (intervals, B) over those around each interval that is not near an end."""
    inner = len(values) - 2 * AT_ENDS
    first = AT_ENDS - AROUND // 2
    total, *others = (values[k : k + inner] for k in range(first, first + AROUND))
    for other in others:
        total = total + other
    return total


def _distances(values: Tensor, table: Quadrature) -> tuple[Tensor, Tensor]:
    """|Q - Q_2| and |Q_2 - Q_4| (B,) of the integrals of values (nodes, B)."""
    rows = np.concatenate([table.weights[None], table.halves, table.quarters])
    whole, *parts = torch.from_numpy(rows).to(values) @ values
    halves = parts[:2]
    quarters = parts[2:]

    off_1 = torch.stack([half - whole for half in halves])
    off_2 = torch.stack([quarter - halves[k % 2] for k, quarter in enumerate(quarters)])
    return off_1.square().mean(0).sqrt(), off_2.square().mean(0).sqrt()


def probe_error(
    terms: Tensor, weights: Tensor, companion: Tensor | None = None, variance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Standard error (B,) of the sum over nodes of the mean over probes of terms (nodes, B, probes), and its degrees of
    freedom (B,).

    Args:
        terms: weighted terms of the sum; the probes are independent, from node to node as well.
        weights: without which they vary slowly from node to node, (nodes,).
        companion: terms (nodes, B) of the same probe at all nodes, for a single fresh one.
        variance: of the term of one probe, (nodes, B), where the probes' products with the Jacobian have told it.
    """
    w = weights.to(terms)[:, None]
    noise, freedom = _noise(terms, w, companion, variance)

    # The probes' spread changes slowly from node to node: the mean over neighbours tells it better than one square.
    smooth = _averaged(noise).clamp(min=0.0)
    total = (w.square() * smooth).sum(0)

    # Satterthwaite's degrees of freedom: the sum is also that of `shares` times each node's own estimate.
    shares = _averaged(w.square())
    squares = (shares * smooth).square().sum(0) / freedom
    return total.sqrt(), torch.where(squares > 0, total.square() / squares, torch.inf)


def _noise(terms: Tensor, w: Tensor, companion: Tensor | None, variance: Tensor | None) -> tuple[Tensor, float]:
    """Variance (nodes, B) of the mean over probes without the weights (nodes, 1), and its degrees of freedom a node."""
    n = terms.shape[2]
    if variance is not None:
        return variance / w.square() / n, n * TAILS
    if n > 1:
        values = terms / w[:, :, None]
        return values.var(2) / n, (n - 1) * TAILS

    same = 0.0 if companion is None else companion / w
    freedom = 36 / 70 * TAILS  # of second differences of independent numbers, each square in the mean over many
    return _roughness(terms[:, :, 0] / w - same), freedom


def _roughness(values: Tensor) -> Tensor:
    """Variance of each of independent numbers (nodes, B) about what varies slowly, from second differences."""
    before = values[:-2]
    here = values[1:-1]
    after = values[2:]
    differences = (after - 2 * here + before).square() / 6
    return torch.cat([differences[:1], differences, differences[-1:]])


def _averaged(values: Tensor) -> Tensor:
    """Means of values (nodes, *) over neighbours."""
    half = NEIGHBOURS // 2
    padded = torch.cat([values[:1].expand(half, -1), values, values[-1:].expand(half, -1)])
    return padded.unfold(0, NEIGHBOURS, 1).mean(2)


def fixed_probe_error(volumes: Tensor) -> tuple[Tensor, Tensor]:
    """Standard error (B,) of the mean of (B, probes), each a whole flow's, NaN for a single one, and its degrees of
    freedom (B,)."""
    n = volumes.shape[1]
    freedom = torch.full_like(volumes[:, 0], n - 1)
    if n == 1:
        return torch.full_like(volumes[:, 0], torch.nan), freedom
    return volumes.std(1) / n**0.5, freedom


def error_of_step(score: Tensor, e: Tensor, e_volume: Tensor) -> Tensor:
    r"""The change of log p (b,) by embedded errors of a step, e (b, *) of the state and (b, columns) of the volume.

    An error e of the state and e' of the volume change it by $\nabla\log p\cdot e - e'$. The embedded errors are those
    of the lower order: of the size of the step's own, but of other directions and signs. So neither of the two terms is
    taken to cancel the other, and the first is the root of the squares of what it is and of its mean over directions:

    $$ \Big((s\cdot e)^2 + \frac{|s|^2|e|^2}{d}\Big)^{1/2} + |e'|, \qquad s = \nabla\log p $$
    """
    along = dot(score, e).square()
    mean = dot(score, score) * dot(e, e) / e[0].numel()
    return (along + mean).sqrt() + e_volume.mean(1).abs()


def _null_rules(c: Sequence[float]) -> Tensor:
    """Orthonormal weights (n - 2, n) that take nothing from polynomials at places c (n,), of degree n - 2 down to 1."""
    Q, _ = np.linalg.qr(np.vander(c, increasing=True))
    return torch.from_numpy(Q[:, :1:-1].T.copy())


NULL_RULES = _null_rules(DOPRI5.c[:5] + DOPRI5.c[6:])  # the sixth stage is at the time of the last


def roughness_of_step(slopes: Tensor) -> tuple[Tensor, Tensor]:
    r"""Remainder (b,) of the slopes of a step by null rules of a high degree, and its share (b,) in that by rules of a
    low one.

    The weights of Dormand and Prince's embedded error add up to some hundredths at most up to any of the stages, those
    of the method to no more than that place is off by 0.1 to 0.4: of a jump between two stages the embedded error is
    ten times and more smaller than the step's own. Null rules tell jumps from what is smooth (Berntsen & Espelid):
    from degree to degree they leave less of a smooth integrand, by the step, and about the same of a jump or of noise.

    Args:
        slopes: at the places of the six stages of other times, (6, b, n).

    Source: Berntsen & Espelid, 1991, doi:10.1145/114697.116809 (null rules of several degrees).
    """
    left = weighted_sum(NULL_RULES.to(slopes), slopes)
    pairs = left.reshape(2, 2, *slopes.shape[1:])
    high, low = pairs.square().sum(1).mean(-1).sqrt()
    return high, ratio(high, low).clamp(max=1.0)


def smoothness(signed: Tensor, size: Tensor) -> Tensor:
    """Factor (B,) of the error, from the sums (B,) of what embedded errors do to log p with their signs, and of its
    sizes.

    Where nearly all have one sign, as on Gaussian data, steps are short beside all that varies; then those of the lower
    order are that much larger than the step's own.
    """
    least, most = SHARE_OF_SIGNED
    share = ratio(signed.abs(), size)
    return ONE_SIGN ** ((share - least) / (most - least)).clamp(0.0, 1.0)


def stiffness(h: Tensor, moved: Tensor, changed: Tensor) -> Tensor:
    r"""Length $\gamma = |h|\,|f_7 - f_6|/|z_7 - z_6|$ (b,) of a step h (b,) beside the change of the slope nearby.

    Steps that are long beside that, as where the flow leaves the ridge between two modes, have embedded errors that are
    too small, by about $1 + \gamma$. The last two stages of Dormand and Prince's pair, $z_6$ and $z_7$, are at one
    time, and their slopes f tell that change (Hairer & Wanner, 1996, section IV.2).

    Args:
        h: the step.
        moved: z_7 - z_6, (b, *).
        changed: f_7 - f_6.
    """
    return h.abs().to(moved) * ratio(dot(changed, changed), dot(moved, moved)).sqrt()


def safety_of_steps(rtol: float, atol: float) -> float:
    """Factor of the sum of the errors of steps at these tolerances."""
    return float(ADAPTIVE_ERROR * (max(rtol, atol) / CALIBRATED_AT) ** COARSER)


def sensitivity(z: Tensor, score: Tensor) -> Tensor:
    """Sum (B,) over the numbers of states z (B, *) of the square of what a relative change by 1 of it does to log p."""
    return row_sums((z * score).square())


def plausible_share(sizes: Tensor, growth: Tensor, trusted: Sequence[float], d: int) -> Tensor:
    r"""Share (nodes, B) of the network's score at each node that may be the gradient of its flow's log-density.

    Where the noise is small a network's score is its error over the noise, and grows as that falls. The gradient of the
    flow's log-density does not: along the flow, whose slope has the Jacobian $\mathbf J$, it grows at most as

    $$ \nabla\log p_k \le \max\Big(|\nabla\log p_{k-1}|\,
       \exp\int_{\theta_k}^{\theta_{k-1}} |\mathbf J|\,d\theta,\ \sqrt d\Big) , $$

    from where the score is trusted on. The floor is the size of the score of pure noise, for the gradient of the
    divergence, which adds to it.

    Args:
        sizes: of the scores, (nodes, B), from the noise to the data.
        growth: the integral from each node to the next, (nodes - 1, B).
        trusted: share of the score at each node that is trusted.
        d: dimensions.
    """
    least = d**0.5
    known = sizes[0]
    shares = [torch.ones_like(known)]
    for size, exponent, trust in zip(sizes[1:], growth, trusted[1:], strict=True):
        grown = known * exponent.clamp(max=MOST).exp()
        grown = grown.clamp(min=least)
        shares.append(ratio(PLAUSIBLE * grown, size).clamp(max=1.0))
        known = trust * size + (1 - trust) * torch.minimum(size, grown)
    return torch.stack(shares)


def rounded(dtype: torch.dtype) -> float:
    """The relative change that rounding is taken for."""
    return ROUNDED * torch.finfo(dtype).eps
