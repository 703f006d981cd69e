"""Networks of EDM, k-diffusion, score_sde, flow matching and azula: how each is called and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Generic, Protocol, TypeVar

from torch import Tensor, nn

from sgm_sde._utils.checks import described, flag
from sgm_sde._utils.elsewhere import OF_ADAPTERS, named_elsewhere
from sgm_sde._utils.wrappers import unwrapped
from sgm_sde.processes import EDMSDE, VESDE, VPSDE, DiscreteVESDE, DiscreteVPSDE, LinearSDE, RectifiedFlowSDE, SubVPSDE
from sgm_sde.scores.calls import require_network
from sgm_sde.scores.score import Score, from_denoiser, from_flow, from_noise, from_score
from sgm_sde.scores.time_labels import (
    ddpm,
    flow,
    flow_from_noise,
    noise_level,
    score_sde_ve,
    score_sde_ve_discrete,
    score_sde_vp,
)

# EDM's range of noise levels.
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0

Output = TypeVar("Output")


class _Changed(nn.Module, Generic[Output]):
    """A module with its output changed; its parameters stay in sight."""

    def __init__(self, model: nn.Module, change: Callable[[Output, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, x: Tensor, label: Tensor, /, **kwargs: object) -> Tensor:
        return self.change(self.model(x, label, **kwargs), x)


@dataclass(frozen=True)
class _ChangedFunction(Generic[Output]):
    """A function with its output changed; it can be pickled where the two can."""

    model: Callable[..., Output]
    change: Callable[[Output, Tensor], Tensor]

    def __call__(self, x: Tensor, label: Tensor, /, **kwargs: object) -> Tensor:
        return self.change(self.model(x, label, **kwargs), x)


def with_output(model: Callable[..., Output], change: Callable[[Output, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`model(x, label, **kwargs)` with its output given to `change(output, x)`; a module stays one."""
    require_network(model)
    if isinstance(model, nn.Module):
        return _Changed(model, change)
    return _ChangedFunction(model, change)


def is_changed(net: object) -> bool:
    """True for a network whose output an adapter changes, so that it is not the user's."""
    return isinstance(net, (_Changed, _ChangedFunction))


def is_negated(net: object) -> bool:
    """True for the negative of a network, as `from_flow_matching` makes it."""
    return isinstance(net, (_Changed, _ChangedFunction)) and net.change is _negative


def _negative(out: Tensor, x: Tensor) -> Tensor:
    return -out


@named_elsewhere(OF_ADAPTERS)
def from_edm(denoiser: Callable[..., Tensor], sde: LinearSDE | None = None) -> tuple[Score, LinearSDE]:
    r"""EDM's preconditioned networks and k-diffusion's denoisers: $D(x, \sigma)$ of $x = x_0 + \sigma\epsilon$.

    Args:
        denoiser: `denoiser(x, sigma, **kwargs)` with sigma (B,); returns the denoised data.
        sde: the process to run, any linear one; `EDMSDE` from 80 to 0.002 if not given, or as much of that range as
            the network declares as its `sigma_max` and `sigma_min`.

    Source: Karras et al., 2022, arXiv:2206.00364.

    Examples:
        >>> import sgm_sde as sg
        >>> score, sde = from_edm(lambda x, sigma: x / (1 + sigma[:, None] ** 2))
        >>> sg.sample(score, sde, (4, 2), solver="heun", nfe=35, seed=0)
        SampleResult(x=(4, 2) torch.float32, nfe=35, completed)
    """
    if sde is None:
        declares = unwrapped(denoiser)
        low = float(getattr(declares, "sigma_min", 0.0))
        high = float(getattr(declares, "sigma_max", math.inf))
        sde = EDMSDE(sigma_min=max(SIGMA_MIN, low), sigma_max=min(SIGMA_MAX, high))
    process = sde
    score = from_denoiser(
        denoiser, process, time_label=noise_level(process), input_scale=lambda t: 1 / process.alpha(t)
    )
    return score, process


@named_elsewhere(OF_ADAPTERS)
def from_score_sde(net: Callable[..., Tensor], sde: LinearSDE, *, levels: int | None = None) -> tuple[Score, LinearSDE]:
    r"""Networks of score_sde, DDPM and NCSN: what they take and return follows from the process.

    | process                    | label               | output                                    |
    |----------------------------|---------------------|-------------------------------------------|
    | VP, sub-VP, continuous     | 999 t               | noise, $-\sigma s$                        |
    | VE, continuous             | sigma(t)            | the score: it divides by sigma itself     |
    | VE, `levels` N             | index from the noise| the score                                 |
    | DDPM's table               | index N t - 1       | noise                                     |
    | NCSN's ladder              | index from the noise| the score                                 |

    Args:
        net: `net(x, label)`, the module itself, such as `NCSNpp`; not what `mutils.get_score_fn` makes of it.
        sde: `VPSDE`, `SubVPSDE`, `VESDE`, `DiscreteVPSDE` or `DiscreteVESDE`; see `presets`.
        levels: number of noise levels of a VE network that was trained on a ladder of them (`continuous=False`).

    Raises:
        TypeError: for another process, or `levels` on one that is not `VESDE`.

    Source: Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> score, sde = from_score_sde(lambda x, label: x / label[:, None], sg.presets.score_sde_vp())
        >>> score.prediction, float(score.time_label(torch.tensor(0.5)))
        ('noise', 499.5)
    """
    if levels is not None and _score_sde.dispatch(type(sde)) is not _on_ve:
        raise TypeError(f"levels={levels} goes with VESDE, the process of SMLD's ladder, got {described(sde)}")
    return _score_sde(sde, net, levels), sde


@singledispatch
def _score_sde(sde: object, net: Callable[..., Tensor], levels: int | None) -> Score:
    """The score of a network of score_sde on a process: one function for each that it has networks on."""
    raise TypeError(f"score_sde has networks on VP, sub-VP and VE and their tables, got {described(sde)}")


@_score_sde.register(VPSDE)
@_score_sde.register(SubVPSDE)
def _on_vp(sde: LinearSDE, net: Callable[..., Tensor], levels: int | None) -> Score:
    return from_noise(net, sde, time_label=score_sde_vp())


@_score_sde.register(DiscreteVPSDE)
def _on_table(sde: DiscreteVPSDE, net: Callable[..., Tensor], levels: int | None) -> Score:
    return from_noise(net, sde, time_label=ddpm(sde))


@_score_sde.register(VESDE)
def _on_ve(sde: VESDE, net: Callable[..., Tensor], levels: int | None) -> Score:
    return from_score(net, sde, time_label=score_sde_ve(sde) if levels is None else score_sde_ve_discrete(sde, levels))


@_score_sde.register(DiscreteVESDE)
def _on_ladder(sde: DiscreteVESDE, net: Callable[..., Tensor], levels: int | None) -> Score:
    return from_score(net, sde, time_label=score_sde_ve_discrete(sde))


@named_elsewhere(OF_ADAPTERS)
def from_flow_matching(
    net: Callable[..., Tensor],
    *,
    from_noise: bool = False,
    scale: float = 1.0,
    T: float = 0.999,
    coupled: bool = False,
) -> tuple[Score, LinearSDE]:
    r"""Rectified flow and flow matching with straight paths, in either direction of time.

    | direction          | state at the network's time $\tau$ | output         | who                                |
    |--------------------|------------------------------------|----------------|------------------------------------|
    | data to noise      | $(1-\tau) x_0 + \tau\epsilon$      | $\epsilon-x_0$ | Stable Diffusion 3, Flux, diffusers|
    | noise to data      | $\tau x_0 + (1-\tau)\epsilon$      | $x_0-\epsilon$ | Lipman et al., flow_matching, SiT  |

    Networks of torchcfm run from noise to data. Those of its `ExactOptimalTransportConditionalFlowMatcher`, of other
    couplings within a batch, and of reflow need `coupled=True`: they give no score, and a stochastic solver would have
    the wrong law.

    Args:
        net: `net(x, label, **kwargs)`.
        from_noise: whether the network's time runs from noise to data.
        scale: factor on the network's time, such as 1000 for diffusers' timesteps.
        T: where sampling starts; 1.0 is allowed for deterministic solvers whose coefficients stay finite there.
        coupled: whether data and noise were coupled in training, by optimal transport or an earlier flow, instead of
            drawn independently; what needs the score is then refused, see `from_flow`.

    Raises:
        TypeError: for a `from_noise` or `coupled` that is no bool.
        ValueError: for a scale or T out of range.

    Source: Lipman et al., 2022, arXiv:2210.02747; Liu et al., 2022, arXiv:2209.03003.

    Examples:
        >>> import torch
        >>> score, sde = from_flow_matching(lambda x, t: -x, from_noise=True)
        >>> score.denoised(torch.ones(1, 1), 0.25), float(score.time_label(torch.tensor(0.25)))
        (tensor([[0.7500]]), 0.75)
    """
    sde = RectifiedFlowSDE(T=T)
    if not flag("from_noise", from_noise):
        return from_flow(net, sde, time_label=flow(scale), coupled=coupled), sde
    reversed_net = with_output(net, _negative)
    return from_flow(reversed_net, sde, time_label=flow_from_noise(scale), coupled=coupled), sde


class _Posterior(Protocol):
    """Output of a denoiser of azula: the mean of the data given the state."""

    mean: Tensor


@named_elsewhere(OF_ADAPTERS)
def from_azula(denoiser: Callable[..., _Posterior]) -> tuple[Score, LinearSDE]:
    """A denoiser of azula with its schedule.

    Args:
        denoiser: `denoiser(x, t, **kwargs)` with a result that has `.mean`, and `denoiser.schedule(t)`, its alpha and
            sigma. azula samples to t = 0, where `schedule.sigma` is the smallest noise.

    Raises:
        TypeError: for a denoiser without a schedule.

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> class Denoiser:
        ...     def schedule(self, t): return 1 - 0.999 * t, 1e-3 + 0.999 * t
        ...     def __call__(self, x, t): return SimpleNamespace(mean=0 * x)
        >>> score, sde = from_azula(Denoiser())
        >>> score.denoised(torch.ones(1, 2), 0.5)
        tensor([[0., 0.]])
    """
    schedule = getattr(unwrapped(denoiser), "schedule", None)
    if not callable(schedule):
        raise TypeError(f"a denoiser of azula has a schedule, got {described(denoiser)}")
    sde = LinearSDE.from_schedule(lambda t: schedule(t)[0], lambda t: schedule(t)[1], T=1.0, eps=0.0)
    return from_denoiser(with_output(denoiser, lambda out, x: out.mean), sde, bare=False), sde
