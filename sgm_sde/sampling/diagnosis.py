r"""Diagnosis of a run: samples that neither the noise nor the network's own estimates account for.

Whatever the solver, the state at node m is $x_m = \alpha_m x_0 + \sigma_m\epsilon$ with the sample $x_0$ that it leads
to and a noise of unit size, and the network estimates $x_0$ by $D_m$. So with $|x|$ the root mean square of the d
numbers of a sample

$$ |x_0| \le \tfrac32\max\Big(\frac{|x_m|}{\alpha_m}, |D_m|\Big) + \kappa\,\frac{\sigma_{m-1}}{\alpha_{m-1}}, \qquad
   \kappa = 2 + \frac{6}{\sqrt d} $$

and the other way round, where a run has been thrown far out and drawn back,

$$ \frac{|x_m|}{\alpha_m} \le \tfrac32 |x_0| + \kappa\,\frac{\sigma_{m-1}}{\alpha_{m-1}} $$

for every m: from one time to the end a sample moves by what the noise allows. Nor are state and estimate, whose
distance is the noise estimated there, further apart than twice that, with what they differ by at the start:

$$ \Big|\frac{x_m}{\alpha_m} - D_m\Big| = \frac{\sigma_m}{\alpha_m}|\epsilon_m| \le
   2\Big(\kappa + \tfrac32|\epsilon_0|\Big)\frac{\sigma_{m-1}}{\alpha_{m-1}}, \qquad m > 0 $$

which a denoiser taken for the noise breaks near the data, whatever the size of its samples; runs as they should be stay
below a third of the bound. Of networks that predict the data it is not asked: what they are off by is many times the
noise near the data, and their samples may be right. Nor is it of guided scores, which are of no density: what guidance
adds may be several times the noise. The second is not asked of these either: guidance pulls states far out, and lets
them go where the noise is small.

Of $\kappa$, 2 is for the noise and the error of a solver, 6 standard deviations for chance; the noise is that of the
node before, since errors may be as large as the step, and the half is for errors in proportion to the state, as of a
drift. What is larger has come out of the solver, or of a network that predicts something else, and not out of the data,
whatever their scale. And where the noise estimated at the start points against the state, which is noise itself, the
network's output is the noise, taken for the score, which has the other sign. A flow $\epsilon - D$ that runs against
the noise there is one of data of the scale s, $D = \tfrac{\alpha s^2}{\sigma^2} x$ up to their mean; where samples are
8 times smaller than this s, it is a flow in the wrong direction.

Where a run starts from noise, the network sees that it does: with $\epsilon_T$ and $D_T$ what it estimates there,

$$ \Big|\epsilon_T - \frac{x_T}{\sigma_T}\Big| = \frac{\alpha_T}{\sigma_T}|D_T| \le
   \tfrac12\max\Big(1, \frac{|x_T|}{\sigma_T}\Big) \quad\text{or}\quad |D_T| \le 8|x_0| . $$

A network that is given another time than it was trained with finds little of the noise. What it leaves would be data,
whose samples would be of that size. Where they are not, the network has not understood what it was asked.

What cannot be told, whatever looks at one sample: a run as a whole at another scale, as data of that scale would give
it. In one and two dimensions a noise of unit size, taken for the score, ends there: it is the score of a density of
that scale.

States that a caller gives at T are noise of the prior, within a factor of 5 whatever was done to them, or noised data,
which the samples account for. Others are noise of another process' scale, unless they are zero.

On a process with a matrix, all that a state z of several blocks says of the data is
$y = w^\top z \sim N(x_0, s^2)$ (`MatrixSDE.observation`), so a run there is watched as one of y with $\alpha = 1$ and
$\sigma = s$. Of the network's estimate of the noise, $z = \mu D + L\epsilon$, it leaves $D = y - w^\top L\epsilon$.

Sizes are kept on the device, at the start and at the nodes 1, 2, 4, 8, ... from the end, and looked at with the result.
Of few numbers states and outputs are kept in their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde._utils.shapes import dimension, dot, flat, row_sums
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.processes.linear import LinearNode, LinearSDE
from sgm_sde.processes.matrix import MatrixNode, MatrixSDE

__all__ = ["ImplausibleWarning", "StartWarning", "UnsuitedWarning"]

GROWTH = 1.5
KAPPA = 2.0
CHANCE = 6.0
APART = 2.0
UNSEEN = 48.0  # kappa where nothing of the run but its ends is known
DIRECTION = 16  # dimensions from which on a direction is more than chance
AGAINST = -0.97  # cosine of the noise estimated at the start with the state
REVERSED = -0.9  # cosine of the flow with it
START = 5.0  # factor between the size of a state at T and the prior's from which on it is not one of the prior's
NOISE = 10.0  # sigma / alpha from which on a start is noise
LEFT = 0.5  # of the noise at the start, by a network that does not see it
SMALL = 2**14  # numbers of a batch up to which states and outputs are kept until the end
SPARSE = 8.0  # how much smaller than the scale of all data a sample may be


class ImplausibleWarning(UserWarning):
    """Samples are larger, or further from the network's estimates, than their run accounts for."""


class StartWarning(ImplausibleWarning):
    """Samples start from states at T that are not of the prior's size."""


class UnsuitedWarning(ImplausibleWarning):
    """In so few calls the solver misses even Gaussian data on its grid, of any scale up to a twentieth of the noise."""


class Observed(NamedTuple):
    """Coefficients of the blocks of a state, and of the network's output there, in what they say of the data.

    Attributes:
        y: of the state's in what it says.
        D_of_state: of the state's in the estimate of the data.
        D_of_output: of the output's.
    """

    y: tuple[float, ...]
    D_of_state: tuple[float, ...]
    D_of_output: tuple[float, ...]

    @staticmethod
    def at(node: MatrixNode, prediction: str) -> Observed:
        """Coefficients at a node, for a network of a prediction."""
        w = node.observation
        of_state, of_output = (w @ node.L @ c for c in node.converted(prediction, "noise"))
        return Observed(tuple(w), tuple(w - of_state), tuple(-of_output))

    def state(self, z: Tensor) -> Tensor:
        """y (B, *) of a state (B, k, *)."""
        return _sum_of_blocks(self.y, z)

    def data(self, z: Tensor, output: Tensor) -> Tensor:
        """D (B, *) of a state and the output there."""
        return _sum_of_blocks(self.D_of_state, z) + _sum_of_blocks(self.D_of_output, output.to(z.dtype))


def _sum_of_blocks(coefficients: Sequence[float], z: Tensor) -> Tensor:
    blocks = zip(coefficients, z.unbind(1), strict=False)  # the process refuses states of other blocks, in its words
    return torch.stack([c * block for c, block in blocks]).sum(0)


@dataclass(frozen=True)
class Look:
    """A node at which norms are kept.

    Attributes:
        alpha: the signal's scale.
        reach: sigma / alpha at the node before.
        data: coefficients of state and output in the estimate of the data.
        noise: the same for the noise.
        level: sigma / alpha.
        observed: what the state of several blocks, and the output there, are looked at as; None of one.
    """

    alpha: float
    reach: float
    data: tuple[float, float]
    noise: tuple[float, float]
    level: float
    observed: Observed | None = None


def _converted(node: LinearNode, prediction: str, target: str) -> tuple[float, float]:
    """Coefficients of state and output, infinite where they are not known."""
    try:
        c_x, c_r = node.convert(prediction, target)
    except ZeroDivisionError:
        return math.inf, math.inf
    return (c_x, c_r) if math.isfinite(c_x) and math.isfinite(c_r) else (math.inf, math.inf)


def _looked_at(n: int) -> list[int]:
    """The nodes of n steps at which sizes are kept."""
    return sorted({0} | {n - 2**j for j in range(n.bit_length()) if 2**j <= n})


@cached(maxsize=64)
def _looks_at_blocks(sde: MatrixSDE, times: tuple[float, ...], prediction: str) -> Mapping[float, Look]:
    at = _looked_at(len(times) - 1)
    nodes = sde.nodes([times[m] for m in at])
    before = sde.nodes([times[max(m - 1, 0)] for m in at])
    return {
        node.t: Look(
            alpha=1.0,
            reach=previous.observation_noise,
            data=(0.0, 1.0),
            noise=(1 / node.observation_noise, -1 / node.observation_noise),
            level=node.observation_noise,
            observed=Observed.at(node, prediction),
        )
        for node, previous in zip(nodes, before, strict=True)
    }


@cached(maxsize=64)
def _looks(sde: LinearSDE, times: tuple[float, ...], prediction: str) -> Mapping[float, Look]:
    at = _looked_at(len(times) - 1)
    nodes = sde.nodes(times)
    return {
        times[m]: Look(
            nodes[m].alpha,
            nodes[max(m - 1, 0)].sigma / nodes[max(m - 1, 0)].alpha if nodes[max(m - 1, 0)].alpha else math.inf,
            _converted(nodes[m], prediction, "data"),
            _converted(nodes[m], prediction, "noise"),
            nodes[m].sigma / nodes[m].alpha if nodes[m].alpha else math.inf,
        )
        for m in at
    }


def looks_of(sde: SDE, times: tuple[float, ...], prediction: str) -> Mapping[float, Look]:
    """The looks of a run along times by a network of a prediction; none on a nonlinear process."""
    if has_matrix_marginal(sde):
        return _looks_at_blocks(sde, times, prediction)
    return _looks(sde, times, prediction) if has_scalar_marginal(sde) else {}


@cached(maxsize=64)
def signal_at(sde: SDE, t: float) -> float:
    """Scale of the data in a state's first block at a time, infinite on a nonlinear process."""
    if has_matrix_marginal(sde):
        mu, _ = sde.kernel(t)
        return abs(float(mu[0]))
    return float(sde.alpha(t)) if has_scalar_marginal(sde) else math.inf


def root_mean_square(x: Tensor) -> Tensor:
    """|x| (B,) of x (B, *), at least in float32."""
    rows = flat(x.detach())
    dtype = torch.promote_types(x.dtype, torch.float32)
    if rows.shape[1] in (2, 3):  # torch takes several times as long for norms of so few numbers as for their squares
        return row_sums(rows.to(dtype).square()).sqrt_().div_(math.sqrt(rows.shape[1]))
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).div_(math.sqrt(rows.shape[1]))


def _sizes(x: Tensor) -> Tensor:
    """|x| (m, B) of x (m, B, *)."""
    return root_mean_square(x.flatten(0, 1)).view(len(x), -1)


class Columns(NamedTuple):
    """Numbers of m looks, to go with sizes (m, B): of one on another device than the CPU, which would wait, Python's.

    Attributes:
        alpha: the signal's scale.
        reach: sigma / alpha at the node before.
        level: sigma / alpha.
        x_of_data: coefficient of the state in the estimate of the data, without its sign.
        r_of_data: the output's.
        x_of_noise: coefficient of the state in the estimate of the noise, 0 where that is not known.
        r_of_noise: the output's.
        apart: how far state and estimate may be apart, in units of the noise; any distance where it is not known.
    """

    alpha: Tensor | float
    reach: Tensor | float
    level: Tensor | float
    x_of_data: Tensor | float
    r_of_data: Tensor | float
    x_of_noise: Tensor | float
    r_of_noise: Tensor | float
    apart: Tensor | float

    @staticmethod
    @lru_cache(maxsize=256)
    def of(looks: tuple[Look, ...], dtype: torch.dtype, device: torch.device) -> Columns:
        """Those of looks, for sizes of a kind."""
        rows = [_numbers(look) for look in looks]
        if len(rows) == 1 and device.type != "cpu":
            return Columns(*rows[0])
        return Columns(*torch.tensor(rows, dtype=dtype, device=device)[:, :, None].unbind(1))

    def noise(self, x: Tensor, output: Tensor) -> Tensor:
        """The noise estimated (m, B, *) of states and outputs."""
        c_x, c_r = self.x_of_noise, self.r_of_noise
        if isinstance(c_x, Tensor) and isinstance(c_r, Tensor):
            shape = (-1, *[1] * (x.ndim - 1))
            c_x, c_r = c_x.view(shape), c_r.view(shape)
        return (x * c_x).add_(output * c_r)


def _numbers(look: Look) -> tuple[float, ...]:
    x_of_data, r_of_data = map(abs, look.data)
    known = math.isfinite(look.noise[0])
    noise = look.noise if known else (0.0, 0.0)
    return look.alpha, look.reach, look.level, x_of_data, r_of_data, *noise, APART * look.reach if known else math.inf


class Watch:
    """The size of a run's states and outputs, sample by sample, without a call or a wait.

    Args:
        sde: the process; on a nonlinear one nothing is watched.
        times: the grid, or where else its steps first ask the network, and the end.
        prediction: what the network predicts.
        x: the states (B, *) to start from.
        guided: whether the solver moves states by more than network and noise, so that their sizes on the way say
            nothing: DPS goes up to a unit a step in what was measured, however small the noise. The start still counts.
        reach: how far it moves a sample at most, as a norm; infinite where that is not known.
        density: whether the score is that of the process' marginals, and not guided: a reward at scale 1 is not known
            from a likelihood, and pulls states as far out.
        lags: whether states may be far from the marginal of their time, as under few Langevin updates per level.
    """

    def __init__(
        self,
        sde: SDE,
        times: tuple[float, ...],
        prediction: str,
        x: Tensor,
        *,
        guided: bool = False,
        reach: float = math.inf,
        density: bool = True,
        lags: bool = False,
    ) -> None:
        self.has_blocks = has_matrix_marginal(sde)
        self.looks: Mapping[float, Look] = {}
        if not x.is_meta:
            self.looks = looks_of(sde, times, prediction)
        if guided and self.looks:
            self.looks = {times[0]: self.looks[times[0]]}
        self.alpha_end = signal_at(sde, times[-1]) if self.looks else 1.0
        if self.looks and (observed := self.looks[times[0]].observed) is not None:
            x = observed.state(x.detach())
        self.start = times[0]
        self.end = times[-1]
        self.sde = sde
        self.guided = guided
        self.reach = reach
        self.lags = lags
        self.density = density
        self.estimates_noise = prediction not in ("data", "data_x") and density  # also in part, as v does
        self.flow = prediction == "flow"
        self._size = root_mean_square(x) if self.looks else None  # of the start, until a look has told more
        self._limit: Tensor | None = None  # of a sample's size, the least of those known so far
        self._least: Tensor | None = None  # the size of a sample that accounts for the states, the most so far
        self._against: Tensor | None = None
        self._noise: Tensor | None = None  # the size (1, B) of the noise estimated at the start
        self._pending: list[tuple[Look, Tensor, Tensor]] = []  # looks that are not accounted for yet
        self._apart: Tensor | None = None  # where state and estimated data were further apart than the noise allows

    def see(self, x: Tensor, output: Tensor, t: float) -> None:
        """Keep the sizes of a node's state and of the network's output there; what is small is kept itself for now."""
        look = self.looks.get(t)
        if look is None:
            return

        self._size = None
        x = x.detach()
        output = output.detach().to(x.dtype)
        if look.observed is not None:
            output = look.observed.data(x, output)
            x = look.observed.state(x)
        if x.numel() > SMALL:
            self._account((look,), x[None], output[None])
        else:
            self._pending.append((look, x.clone(), output.clone()))

    def _settle(self) -> None:
        """Account for what has been kept, all of it at once: little of the time of an operation is arithmetic there."""
        if self._pending:
            looks, states, outputs = zip(*self._pending, strict=True)
            self._pending = []
            self._account(looks, torch.stack(states), torch.stack(outputs))

    def _account(self, looks: tuple[Look, ...], x: Tensor, output: Tensor) -> None:
        """Keep what the sizes of states and outputs (m, B, *) at some looks leave for a sample's size."""
        size = _sizes(x)
        of_output = _sizes(output)
        first = looks[0] is self.looks[self.start]
        if first:
            self._see_start(looks[0], x[0], output[0], size[0], of_output[0])

        columns = Columns.of(looks, size.dtype, size.device)
        expected = KAPPA + CHANCE / math.sqrt(dimension(x[0]))
        if self.estimates_noise and not self.lags:
            of_noise = (of_output * columns.r_of_noise).abs_()
            if any(look.noise[0] for look in looks):
                of_noise = _sizes(columns.noise(x, output))
            if first and math.isfinite(looks[0].noise[0]):
                self._noise = of_noise[:1]
            self._see_noise(of_noise, columns, expected)

        # In place: of a million samples of two numbers, a number each is half a state.
        estimate = of_output.mul_(columns.r_of_data)
        if any(look.data[0] for look in looks):
            estimate.add_(size * columns.x_of_data)
        kappa = UNSEEN if self.lags else expected  # many updates at a level go far
        self._see_sizes(size.div_(columns.alpha), estimate, kappa * columns.reach)

    def _see_start(self, look: Look, x: Tensor, output: Tensor, size: Tensor, of_output: Tensor) -> None:
        """Keep what the output says of the noise that a run starts from, with the sizes (B,) of state and output."""
        d = dimension(x)
        if d >= DIRECTION and math.isfinite(look.noise[0]):
            across = dot(x, output) / d
            self._against = self._points_against(across, look, size, of_output)
            if self.flow:
                self._account_for(self._of_reversed_flow(across, look, size, of_output))

        if self.estimates_noise and not self.lags and NOISE <= look.level < math.inf:
            c_x, c_r = look.data
            of_data = root_mean_square((c_x * x).add_(output, alpha=c_r)) if c_x else of_output * abs(c_r)
            accounted = (size / look.alpha).clamp_(min=look.level).mul_(LEFT)
            blind = of_data.masked_fill(of_data <= accounted, 0.0).div_(SPARSE)  # the network saw little of the noise
            self._account_for(blind.nan_to_num_(nan=-math.inf, posinf=math.inf))

    def _see_noise(self, of_noise: Tensor, columns: Columns, expected: float) -> None:
        """Compare the sizes of the noise estimated (m, B) with that of the first."""
        if self._noise is not None:
            allowed = self._noise.mul(GROWTH).add_(expected) * columns.apart
            apart = of_noise * columns.level > allowed
            apart = apart[0] if len(apart) == 1 else apart.any(0)
            self._apart = apart if self._apart is None else self._apart.logical_or_(apart)

    def _see_sizes(self, state: Tensor, estimate: Tensor, noise: Tensor | float) -> None:
        """Keep what the sizes (m, B) of states and estimates, and the most that noise does, leave for a sample's."""
        limit = torch.maximum(state, estimate, out=estimate).mul_(GROWTH).add_(noise)
        limit.nan_to_num_(nan=math.inf, posinf=math.inf)  # where nothing is known, in a third of the time of a mask
        one = len(state) == 1
        limit = limit[0] if one else limit.amin(0)
        self._limit = limit if self._limit is None else torch.minimum(self._limit, limit, out=limit)
        if not self.density:
            return

        least = state.sub_(noise).div_(GROWTH)
        least.nan_to_num_(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        self._account_for(least[0] if one else least.amax(0))

    def _account_for(self, least: Tensor) -> None:
        """Keep the least sizes (B,) of samples that account for what was seen, which are used up."""
        self._least = least if self._least is None else torch.maximum(self._least, least, out=least)

    @staticmethod
    def _points_against(across: Tensor, look: Look, size: Tensor, of_output: Tensor) -> Tensor:
        """Mask (B,) of states that the noise estimated there points against; `across` is <x, output> / d."""
        c_x, c_r = look.noise
        noise = (c_x**2 * size**2 + 2 * c_x * c_r * across + c_r**2 * of_output**2).clamp(min=0).sqrt()
        along = c_x * size**2 + c_r * across
        return (along < AGAINST * noise * size) & (noise * look.reach * look.alpha > 0.3 * size)

    @staticmethod
    def _of_reversed_flow(across: Tensor, look: Look, size: Tensor, of_output: Tensor) -> Tensor:
        """The least size (B,) of samples where the flow runs against the noise at the start, -inf elsewhere."""
        against = across < REVERSED * size * of_output
        if not look.alpha:
            return torch.where(against, math.inf, -math.inf)

        c_x, c_r = look.data
        data_per_state = c_x + c_r * across / size**2  # s^2 alpha / sigma^2 of data of the scale s
        scale = data_per_state.clamp(min=0).mul_(look.alpha).sqrt_().mul_(look.level)
        return scale.div_(SPARSE).masked_fill_(~against, -math.inf)

    def implausible(self, sample: Tensor, *, denoised: bool) -> Tensor:
        """Mask (B,) of final states x (B, *), denoised or not, that the run cannot account for."""
        self._settle()
        none = torch.zeros(len(sample), dtype=torch.bool, device=sample.device)
        if not self.looks:
            return none
        size = root_mean_square(sample[:, 0] if self.has_blocks else sample)
        if not denoised:
            size = size / max(self.alpha_end, 1e-12)
        if self.guided:
            moved = self.reach / math.sqrt(max(dimension(sample), 1))
            beyond = none if self._limit is None else size > self._limit + moved
            return beyond if self._against is None else beyond | self._against
        if self._limit is None:
            look = self.looks[self.start]
            assert self._size is not None
            far: Tensor = look.alpha * size > self._size + UNSEEN * look.alpha * look.reach
            return far
        far = size > self._limit
        if self._least is not None and not self.lags:
            far = far | (size < self._least)
        if self._apart is not None:
            far = far | self._apart
        return far if self._against is None else far | self._against


def size_of_start(x: Tensor, sde: SDE) -> Tensor:
    """The root mean square (b,) of states (b, *) given at T, of their first block on a process with a matrix."""
    return root_mean_square(x[:, 0] if has_matrix_marginal(sde) and x.ndim > 1 else x)


def strange_starts(start: Tensor, sample: Tensor, sde: SDE) -> Tensor:
    """The sizes (b,) of states at T that are neither of the prior nor noised data, NaN of others.

    Args:
        start: sizes (b,) of the states.
        sample: the samples (b, *) that they led to.
        sde: the process; on a nonlinear one nothing is known of states at T.
    """
    d = dimension(sample)
    if has_matrix_marginal(sde):
        d //= sde.blocks
    signal, prior_std = scales_at_T(sde)
    if d < DIRECTION or signal == math.inf:
        return torch.full_like(start, math.nan)

    most = size_of_start(sample, sde).mul(GROWTH * signal).add_(START * prior_std)
    strange = (start > most) | ((start > 0) & (start < prior_std / START))
    return start.masked_fill(~strange, math.nan)


@cached(maxsize=64)
def scales_at_T(sde: SDE) -> tuple[float, float]:
    """Scales of the data, infinite on a nonlinear process, and of the prior at T."""
    return signal_at(sde, sde.T), sde.prior_std


def words_of_starts(sizes: Sequence[float], samples: Sequence[int], n: int, sde: SDE) -> str:
    """Status message for samples from states at T that are not of the prior's size."""
    right = "sde.prior_transform(noise)" if has_matrix_marginal(sde) else "sde.prior_std * noise"
    return (
        f"{len(samples)} of {n} samples ({listed(samples)}) start from x_T of root mean square {sizes[0]:.3g}, where "
        f"the prior has the standard deviation {sde.prior_std:.3g}: write x_T = {right}"
    )


def words_of_sizes(samples: Sequence[int], n: int) -> str:
    """Status message for implausible samples."""
    return (
        f"{len(samples)} of {n} samples ({listed(samples)}) are of a size that nothing in their run accounts for, "
        f"further from the network's estimates than the noise it estimates allows, or from a start whose noise the "
        f"network does not see"
    )


def advice(sde: SDE) -> str:
    """Words for how to repair implausible samples, by what there is on the process."""
    steps, scores = "what `pilot` finds, more calls", "`from_noise`, `from_denoiser`, `from_v` or `from_flow`"
    if has_matrix_marginal(sde):
        steps, scores = "more calls", "`from_noise`, `from_denoiser` or `scores.from_velocity_noise`"
    return (
        f"try {steps}, or, if the network does not predict what it was taken for, {scores}; if it was trained with "
        f"other times, `time_label=`"
    )


def words_of_misses(solver: str, n: int, sde: SDE) -> str:
    """Status message for all samples of a table that misses Gaussian data."""
    others = "or another solver" if has_matrix_marginal(sde) else "another solver, or what `pilot` finds"
    return (
        f"all {n} samples: in so few calls on this grid {solver} ends at least twice as large as it should even on "
        f"Gaussian data, of any scale up to a twentieth of the noise at its start; take more calls, {others}"
    )


def listed(samples: Sequence[int], most: int = 8) -> str:
    """Some of the samples' numbers as text."""
    return ", ".join(map(str, samples[:most])) + (", ..." if len(samples) > most else "")
