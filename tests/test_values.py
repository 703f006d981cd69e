"""Values by hand: constants of the literature, closed forms, limits of options, and tables of coefficients.

Each test takes milliseconds and has its expected values written out, so that a slip in one operator or constant is
found at once and close to where it is. `tools/mutation.py` runs these tests first.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import CubicSpline, PchipInterpolator
from torch import Tensor
from torch.overrides import TorchFunctionMode

import sgm_sde as sg
from sgm_sde.engine.counter import LANES, Run, philox
from sgm_sde.engine.executor import execute
from sgm_sde.engine.lowering import lower
from sgm_sde.engine.noise import LARGEST, NoiseStream, SampleSeeds, resolve_seeds
from sgm_sde.engine.phi import phi, phi_values
from sgm_sde.engine.program import Form, Program, ProgramBuilder, Stage, Step
from sgm_sde.engine.reverse import ReverseSDE
from sgm_sde.likelihood import FixedGrid
from sgm_sde.processes.base import ProcessNode, require_sde
from sgm_sde.processes.discrete import _Interpolant
from sgm_sde.processes.linear import LinearNode, ScheduleSDE
from sgm_sde.processes.predictions import MarginalValues, convert, weights
from sgm_sde.schemes.base import ADAPTIVE, REGISTRY, resolve
from sgm_sde.schemes.correctors import Corrector
from sgm_sde.schemes.exponential import Exponential
from sgm_sde.schemes.families import ADAMS
from sgm_sde.schemes.linear_part import (
    PARTS,
    POINTS,
    VARIABLES,
    VARIANTS,
    WEIGHTS,
    DataPart,
    LinearPart,
    NoisePart,
    RectifiedPart,
    VPart,
)
from sgm_sde.schemes.runge_kutta import order_of
from sgm_sde.schemes.table import WIDTH, SolverTable
from sgm_sde.testing import OrderMeasurement
from tests import golden
from tests.helpers import F64, bind, stream

EDM = sg.EDMSDE()  # alpha = 1 and sigma = t: the noise level is the time, and its logarithm minus half the log-SNR
LOG2 = math.log(2)


def column(*values: float) -> Tensor:
    """Numbers as a float64 tensor."""
    return torch.tensor(values, dtype=F64)


# --- Values are values -----------------------------------------------------------------------------------------------

FROZEN: list[Any] = [
    sg.VPSDE(),
    sg.SubVPSDE(),
    sg.CosineVPSDE(),
    sg.VESDE(),
    EDM,
    sg.RectifiedFlowSDE(),
    sg.DiscreteVPSDE([0.1, 0.2]),
    sg.DiscreteVESDE([1.0, 2.0]),
    ScheduleSDE(torch.ones_like, torch.exp),
    sg.EulerMaruyama(),
    sg.ReverseDiffusion(),
    sg.DDIM(),
    sg.Ancestral(),
    sg.Langevin(),
    sg.schemes.AnnealedLangevin(),
    sg.PredictorCorrector(sg.DDIM(), sg.Langevin()),
    sg.RungeKutta(),
    sg.Tableau([[]], [1]),
    sg.Heun(),
    sg.schemes.PNDM(),
    sg.schemes.RES(),
    sg.schemes.ExponentialAdams(),
    sg.schemes.ExponentialRungeKutta(),
    sg.schemes.AncestralNoise(sg.DPMSolver(2)),
    sg.Restart(sg.DDIM()),
    DataPart("log-snr", 0.0),
    NoisePart("log-snr", 0.0),
    VPart("angle", 0.0),
    RectifiedPart("flow-time", 0.0),
    Stage(1.0),
    Program("p", "data", (Stage(1.0, node=True),)),
    lower(Program("p", "data", (Stage(1.0, node=True),)), [(0.0, 1.0)]).instructions[0],
]


def test_values_do_not_change() -> None:
    """Processes, solvers and tables are hashable, equal to their copies, and refuse to be changed."""
    for value in FROZEN:
        name = next((field.name for field in dataclasses.fields(value)), "name")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
        assert hash(value) == hash(value)
        assert value == dataclasses.replace(value)


def test_plans_do_not_change() -> None:
    """A plan is a value too; its weights, which follow from its instructions, do not enter the comparison."""
    program = Program("p", "data", (Stage(1.0, node=True),))
    plan = lower(program, [(0.0, 1.0)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.n_slots = 3  # type: ignore[misc]
    assert plan == lower(program, [(0.0, 1.0)])
    assert hash(plan) == hash(lower(program, [(0.0, 1.0)]))
    assert plan == dataclasses.replace(plan, weights=torch.ones(3))


def test_tables_are_replaced_by_their_entries() -> None:
    """T and eps of a discrete process follow from its table, and `dataclasses.replace` asks for the table alone."""
    vp = dataclasses.replace(sg.DiscreteVPSDE([0.1, 0.2]), betas=(0.1, 0.2, 0.3, 0.4))
    ve = dataclasses.replace(sg.DiscreteVESDE([1.0, 2.0]), sigmas=(1.0, 2.0, 3.0, 4.0))
    assert (vp.T, vp.eps, ve.T, ve.eps) == (1.0, 0.25, 1.0, 0.25)
    assert (sg.DiscreteVPSDE.T, sg.DiscreteVESDE.T) == (1.0, 1.0)
    assert vp.times == ve.times == (0.25, 0.5, 0.75, 1.0)
    edm = dataclasses.replace(EDM, sigma_max=10.0)
    assert (edm.T, edm.eps) == (10.0, 0.002)
    with pytest.raises(TypeError):
        sg.EDMSDE(0.1, 1.0, 2.0)  # type: ignore[call-arg]


# --- Processes -------------------------------------------------------------------------------------------------------


def test_presets_have_the_constants_of_their_papers() -> None:
    """Constants as printed in the papers."""
    assert sg.presets.score_sde_vp() == sg.VPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=1e-3)
    assert sg.presets.score_sde_subvp() == sg.SubVPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=1e-3)
    assert sg.presets.score_sde_ve_cifar10() == sg.VESDE(sigma_min=0.01, sigma_max=50.0, T=1.0, eps=1e-5)
    assert sg.presets.cosine() == sg.CosineVPSDE(s=0.008, T=0.9946, eps=1e-3)
    assert sg.presets.edm() == sg.EDMSDE(sigma_min=0.002, sigma_max=80.0)
    assert (sg.presets.edm().T, sg.presets.edm().eps) == (80.0, 0.002)


def test_defaults_are_the_papers_too() -> None:
    """Without arguments a process is the one of its paper."""
    described = {
        sg.VPSDE: "VPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=0.001)",
        sg.SubVPSDE: "SubVPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=0.001)",
        sg.CosineVPSDE: "CosineVPSDE(s=0.008, T=0.9946, eps=0.001)",
        sg.VESDE: "VESDE(sigma_min=0.01, sigma_max=50.0, T=1.0, eps=1e-05)",
        sg.EDMSDE: "EDMSDE(sigma_min=0.002, sigma_max=80.0)",
        sg.RectifiedFlowSDE: "RectifiedFlowSDE(T=0.999, eps=0.001)",
    }
    for process, text in described.items():
        assert repr(process()) == text
    for schedule in (sg.LinearSDE.from_schedule(torch.ones_like, torch.exp), ScheduleSDE(torch.ones_like, torch.exp)):
        assert (schedule.T, schedule.eps) == (1.0, 1e-3)
    assert [p.default_grid for p in (sg.VPSDE, sg.VESDE, sg.EDMSDE)] == ["uniform", "uniform", "karras"]


def test_ddpm_s_table() -> None:
    """A thousand betas, linear from 1e-4 to 0.02 (Ho et al., section 4)."""
    betas = sg.presets.ddpm().betas
    assert len(betas) == 1000
    assert betas == pytest.approx(np.linspace(1e-4, 0.02, 1000), rel=1e-12)
    assert sg.presets.ddpm(3).betas == pytest.approx([1e-4, 0.01005, 0.02])


def test_improved_ddpm_s_table() -> None:
    """A thousand betas from cos^2((t + 0.008)/1.008 pi/2), none above 0.999 (Nichol & Dhariwal, equation 17)."""
    betas = sg.presets.iddpm_cosine().betas
    assert len(betas) == 1000
    assert (betas[0], betas[-1]) == (pytest.approx(4.128422482e-5, rel=1e-9), 0.999)  # as their code prints them
    f = np.cos((np.linspace(0, 1, 6) + 0.008) / 1.008 * np.pi / 2) ** 2
    small = sg.presets.iddpm_cosine(5).betas
    assert np.cumprod(1 - np.array(small))[:4] == pytest.approx(f[1:5] / f[0], rel=1e-12)
    assert small[4] == 0.999


def test_ncsn_s_ladder() -> None:
    """Ten levels from 1 to 0.01, each 10^(-2/9) times the one before (Song & Ermon, section 5)."""
    sigmas = sg.presets.ncsn_cifar10().sigmas
    assert sigmas == pytest.approx(np.geomspace(0.01, 1, 10), rel=1e-12)


def test_limits_of_the_processes_options() -> None:
    """What lies just inside the limits is taken, what lies on the wrong side is named."""
    assert float(sg.VPSDE(beta_min=2.0, beta_max=2.0).integrated_beta(0.5)) == 1.0  # a constant rate
    assert sg.VPSDE(eps=0.0).eps == 0.0
    assert sg.RectifiedFlowSDE(T=1.0).T == 1.0
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: sg.VPSDE(eps=1.0), "eps=1.0 and T=1.0"),
        (lambda: sg.VPSDE(eps=-0.1), "eps=-0.1"),
        (lambda: sg.VPSDE(T=math.inf), "T=inf"),
        (lambda: sg.VPSDE(eps=math.nan), "eps=nan"),
        (lambda: sg.VPSDE(beta_min=0.0), "beta_min must be positive and finite, got 0.0"),
        (lambda: sg.VPSDE(beta_max=math.inf), "beta_max must be positive and finite, got inf"),
        (lambda: sg.VESDE(sigma_min=1.0, sigma_max=1.0), "1.0 and 1.0"),
        (lambda: sg.EDMSDE(1.0, 1.0), "1.0 and 1.0"),
        (lambda: sg.DiscreteVPSDE([0.0, 0.1]), r"betas\[0\] = 0.0"),
        (lambda: sg.DiscreteVPSDE([0.1, 1.0]), r"betas\[1\] = 1.0"),
        (lambda: sg.DiscreteVESDE([0.0, 1.0]), "0.0 beside 1.0"),
        (lambda: sg.DiscreteVESDE([1.0, math.inf]), "1.0 beside inf"),
        (lambda: sg.DiscreteVESDE([1.0, 3.0, 2.0, 1.0]), "3.0 beside 2.0"),
        (lambda: sg.DiscreteVESDE([2.0, 1.0, 3.0]), "2.0 beside 1.0"),
        (lambda: sg.DiscreteVESDE([2.0]), "sigmas needs at least two entries, got 1"),
    ]
    for make, text in refused:
        with pytest.raises(ValueError, match=text):
            make()
    assert sg.DiscreteVPSDE([0.1, 0.2]).betas == (0.1, 0.2)
    assert sg.DiscreteVESDE([2.0, 1.0]).sigmas == sg.DiscreteVESDE([1.0, 2.0]).sigmas == (1.0, 2.0)


class DoubleWell(sg.SDE):
    """A process that is not linear."""

    T, eps, prior_std = 1.0, 1e-3, 2.0

    def f(self, x: Tensor, t: float | Tensor) -> Tensor:
        return x - x**3

    def g(self, t: float | Tensor) -> Tensor:
        return 3 * torch.ones_like(torch.as_tensor(t))


def test_a_process_that_is_not_linear() -> None:
    """Its prior is N(0, prior_std^2) at T alone, and its nodes have t and g alone."""
    sde = DoubleWell()
    x = column(2.0, 4.0).reshape(1, 2)
    assert sde.prior_transform(x).tolist() == sde.prior_transform(x, 1.0).tolist() == [[4.0, 8.0]]
    with pytest.raises(ValueError, match=r"T=1.0 only, not at t=0.5"):
        sde.prior_transform(x, 0.5)
    # (1 + 4)/2 of the squares, and log(2 pi)/2 + log(2) for each of the two numbers
    assert sde.prior_log_prob(x).tolist() == [pytest.approx(-2.5 - math.log(2 * math.pi) - 2 * LOG2)]
    (node,) = sde.nodes([0.5])
    assert (node.t, node.g, sde.marginal_kind) == (0.5, 3.0, "unknown")
    with pytest.raises(TypeError, match=r"this needs alpha\(t\), which DoubleWell does not have"):
        _ = node.alpha
    assert not hasattr(node, "_anything")  # as copying and pickling ask
    assert type(node) is ProcessNode


def test_what_is_no_process_is_named() -> None:
    """A class that was not called, and anything else."""
    require_sde(EDM)
    for given, text in ((sg.VPSDE, "got the class VPSDE: call it"), ("vp", "such as VPSDE\\(\\), got 'vp'")):
        with pytest.raises(TypeError, match=text):
            require_sde(given)


def test_the_reverse_process() -> None:
    """eta = 1 by default; drift f - (1 + eta^2)/2 g^2 s and diffusion eta g."""
    sde, x = DoubleWell(), torch.full((1, 1), 2.0)
    for reverse in (sde.reverse(lambda x, t: x), ReverseSDE(sde, lambda x, t: x)):
        assert reverse.eta == 1.0
        assert float(reverse.f(x, 0.5)) == -6 - 9 * 2
        assert float(reverse.g(0.5)) == 3.0
    assert float(sde.reverse(lambda x, t: x, eta=2.0).f(x, 0.5)) == -6 - 5 / 2 * 9 * 2
    assert float(sde.reverse(lambda x, t: x, eta=2.0).g(0.5)) == 6.0
    assert float(sde.reverse(lambda x, t: x, eta=0.0).f(x, 0.5)) == -6 - 1 / 2 * 9 * 2
    for eta in (-0.1, math.inf):
        with pytest.raises(ValueError, match=f"got {eta}"):
            sde.reverse(lambda x, t: x, eta)


def test_closed_forms_at_a_time() -> None:
    """Everything a process knows at t = 0.2, written out."""
    t, e = 0.2, math.exp
    B, beta = 0.1 * t + 19.9 * t**2 / 2, 0.1 + 19.9 * t
    vp = [e(-B / 2), math.sqrt(1 - e(-B)), -beta / 2 * e(-B / 2), beta * e(-B) / 2 / math.sqrt(1 - e(-B))]
    sub = [e(-B / 2), 1 - e(-B), -beta / 2 * e(-B / 2), beta * e(-B)]
    ve = 0.01 * 5000**t
    phi0, slope = math.pi / 2 * 0.008 / 1.008, math.pi / 2 / 1.008
    a = math.cos(phi0 + slope * t) / math.cos(phi0)
    da = -slope * math.sin(phi0 + slope * t) / math.cos(phi0)
    cosine = [a, math.sqrt(1 - a * a), da, -a * da / math.sqrt(1 - a * a)]
    expected: list[tuple[sg.LinearSDE, list[float], float]] = [
        (sg.VPSDE(), vp, math.sqrt(beta)),
        (sg.SubVPSDE(), sub, math.sqrt(beta * (1 - e(-2 * B)))),
        (sg.VESDE(), [1.0, ve, 0.0, math.log(5000) * ve], ve * math.sqrt(2 * math.log(5000))),
        (sg.CosineVPSDE(), cosine, math.sqrt(-2 * da / a)),
        (EDM, [1.0, t, 0.0, 1.0], math.sqrt(2 * t)),
        (sg.RectifiedFlowSDE(), [0.8, 0.2, -1.0, 1.0], math.sqrt(2 * 0.2 / 0.8)),
    ]
    for sde, (alpha, sigma, d_alpha, d_sigma), g in expected:
        got = [float(f(t)) for f in (sde.alpha, sde.sigma, sde.d_alpha, sde.d_sigma, sde.g, sde.log_snr, sde.rate)]
        log_snr = 2 * math.log(alpha / sigma)
        assert got == pytest.approx([alpha, sigma, d_alpha, d_sigma, g, log_snr, d_alpha / alpha], rel=1e-12)
        assert float(sde.time(log_snr)) == pytest.approx(t, rel=1e-12)
        mean, std = sde.marginal(torch.full((1, 1), 3.0, dtype=F64), t)
        assert (float(mean), float(std)) == pytest.approx((3 * alpha, sigma), rel=1e-12)
        scale, width = sde.transition(0.1, t)
        ratio = alpha / float(sde.alpha(0.1))
        assert float(scale) == pytest.approx(ratio, rel=1e-12)
        assert float(width) == pytest.approx(math.sqrt(sigma**2 - ratio**2 * float(sde.sigma(0.1)) ** 2), rel=1e-12)
        assert sde.prior_std == float(sde.sigma(sde.T))
        assert float(sde.prior_transform(torch.ones(1), 0.2)) == pytest.approx(sigma, rel=1e-6)


def test_closed_forms_in_single_precision_near_the_ends() -> None:
    """Small times keep their digits: B = 0.1 t, sigma = sqrt(B) and so on, to float32's rounding."""
    t = torch.tensor(1e-6)
    assert float(sg.VPSDE().sigma(t)) == pytest.approx(math.sqrt(1e-7 + 9.95e-12), rel=1e-6)
    assert float(sg.SubVPSDE().sigma(t)) == pytest.approx(1e-7 + 9.95e-12, rel=1e-6)
    assert float(sg.VESDE().sigma(t)) == pytest.approx(0.01 * 5000**1e-6, rel=1e-6)
    assert float(sg.VESDE().sigma(torch.tensor(1.0))) == 50.0
    assert float(sg.VESDE().sigma(torch.tensor(0.0))) == pytest.approx(0.01, rel=1e-7)
    times = torch.linspace(0.8, 1, 200)
    exact = 0.01 * 5000 ** times.double()
    assert float((sg.VESDE().sigma(times) / exact - 1).abs().max()) < 2.5e-7  # exponents of at most 1.7, not 8.5
    slope, phi0 = math.pi / 2 / 1.008, math.pi / 2 * 0.008 / 1.008
    late = torch.tensor(0.99)
    assert float(sg.CosineVPSDE().alpha(late)) == pytest.approx(
        math.sin(slope * (1 - float(late))) / math.cos(phi0), rel=1e-6
    )


def test_low_snr_in_single_precision() -> None:
    """At log-SNR -150, where e^150 is infinite in float32, B = 150: t (0.1 + 9.95 t) = 150."""
    t = (-0.1 + math.sqrt(0.01 + 4 * 9.95 * 150)) / (2 * 9.95)
    assert float(sg.VPSDE().time(torch.tensor(-150.0))) == pytest.approx(t, rel=1e-6)


def test_transitions_run_forward() -> None:
    """One pair of times out of order in a batch is an error; equal times are not."""
    sde = sg.VPSDE()
    with pytest.raises(ValueError, match="need s <= t"):
        sde.transition(column(0.1, 0.5), column(0.2, 0.4))
    scale, std = sde.transition(column(0.1, 0.5), column(0.1, 0.5))
    assert (scale.tolist(), std.tolist()) == ([1.0, 1.0], [0.0, 0.0])


def test_nodes_without_signal() -> None:
    """An alpha of at most 1e-15 sigma is rounding of 0: no signal, half the log-SNR minus infinity."""
    linear = LinearNode(EDM, 1.0, 0.5, 2.0, -0.25, 3.0, -2.5)
    assert (linear.alpha, linear.lam, linear.noise_level, linear.rate) == (0.5, -1.25, 4.0, -0.5)
    assert linear.g == math.sqrt(2 * 2 * (3 + 0.5 * 2))
    assert LinearNode(EDM, 1.0, 1.5e-15, 1.0, -1.0, 1.0, -68.0).lam == -34.0
    for alpha, sigma in ((1e-15, 1.0), (1.5e-15, 2.0), (0.0, 1.0)):
        node = LinearNode(EDM, 1.0, alpha, sigma, -1.0, 1.0, -80.0)
        assert (node.alpha, node.lam, node.noise_level, node.rate) == (0.0, -math.inf, math.inf, -math.inf)
    assert LinearNode(EDM, 1.0, 1.0, 1.0, 2.0, 1.0, 0.0).g == 0.0  # 2 (1 - 2) < 0
    less = linear.at_reduced_noise(0.5)
    assert (less.alpha, less.sigma, less.lam) == (0.5, 0.25, pytest.approx(math.log(2)))
    assert math.isnan(less.t)


class Counted(sg.LinearSDE):
    """alpha = 1 - t/2 and sigma = t + floor, whose log-SNR is counted."""

    T, eps = 1.0, 0.0

    def __init__(self, floor: float = 0.125) -> None:
        self.floor, self.calls = floor, 0

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 - torch.as_tensor(t) / 2

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.as_tensor(t) + self.floor

    def log_snr(self, t: float | Tensor) -> Tensor:
        self.calls += 1
        return super().log_snr(t)


def test_log_snr_of_a_schedule() -> None:
    """2 log(alpha / sigma), where no closed form is given."""
    assert float(Counted().log_snr(column(0.5))) == pytest.approx(2 * math.log(0.75 / 0.625), rel=1e-14)


def test_prior_samples_have_a_dtype() -> None:
    """torch's default by default; standard normal noise of the prior's stream times the prior's scale."""
    assert EDM.prior_sample((2, 3), seed=0).dtype == torch.get_default_dtype()
    z = EDM.prior_sample((2, 3), seed=5, t=2.0, dtype=F64)
    assert z.dtype == F64
    assert z.tolist() == (2 * NoiseStream(((5, 0), (5, 1)), "prior").normal((2, 3), F64)).tolist()
    assert EDM.prior_sample((2, 3), seed=5).tolist() == (40 * z).float().tolist()


def test_where_likelihoods_end() -> None:
    """At 1e-5 or below, but never below what the network has seen."""
    assert sg.VPSDE().likelihood_eps == sg.VESDE(eps=1e-3).likelihood_eps == DoubleWell().likelihood_eps == 1e-5
    assert sg.VPSDE(eps=1e-6).likelihood_eps == 1e-6
    assert sg.EDMSDE(0.5, 2.0).likelihood_eps == 0.5
    assert sg.DiscreteVPSDE([0.1, 0.2]).likelihood_eps == sg.DiscreteVESDE([1.0, 2.0]).likelihood_eps == 0.5


def test_bisection() -> None:
    """The inverse of any log-SNR: to the last bit, at both ends of the span too, and no more halvings than that."""
    sde = Counted()
    ends = sde.time(sde.log_snr(column(0.0, 1.0)))
    assert ends.tolist() == pytest.approx([0.0, 1.0], rel=1e-15, abs=1e-30)
    beyond = sde.time(column(2 * math.log(8) + 1e-9, 2 * math.log(0.5 / 1.125) - 1e-9))
    assert bool(beyond.isnan().all())
    for dtype, halvings in ((F64, 120), (torch.float32, 60)):
        sde.calls = 0
        sde.time(torch.zeros((), dtype=dtype))
        assert sde.calls <= halvings + 2
    tiny = Counted(floor=0.0)  # log-SNR -2 log(t) but for t/2
    assert float(tiny.time(column(2 * 60 * LOG2))) == pytest.approx(2.0**-60, rel=1e-12)


def test_schedules_are_checked() -> None:
    """On 257 even times; the message has the first of them that is wrong."""
    with pytest.raises(ValueError, match=re.escape("got 0.0 at t=0.503906")):  # 129/256
        ScheduleSDE(lambda t: torch.where(t > 0.5, 0.0, 1.0), torch.exp, eps=0.0)
    with pytest.raises(ValueError, match=re.escape("it does not at t=0.503906")):
        ScheduleSDE(lambda t: 1 + 9 * (t - 0.5).clamp(min=0), lambda t: 1 + t, eps=0.0)
    with pytest.raises(ValueError, match="must decrease"):
        ScheduleSDE(torch.ones_like, torch.ones_like)
    with pytest.raises(ValueError, match=r"sigma\(t\) must be finite and positive"):
        ScheduleSDE(torch.ones_like, lambda t: t, eps=0.0)


# --- Discrete tables -------------------------------------------------------------------------------------------------


def values_and_slopes(values: Sequence[float] | np.ndarray, n: int = 97) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The interpolant of the values at the times 0, 1/N, ..., 1, its slopes in the table's units, and where."""
    interpolant, t = _Interpolant(np.array(values)), torch.linspace(0, 1, n, dtype=F64)
    steps = len(values) - 1
    return interpolant(t).numpy(), interpolant.slope(t).numpy() / steps, t.numpy() * steps


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_smooth_tables_get_a_cubic_spline(scale: float) -> None:
    """u^3 + u is reproduced, and so is its slope 3 u^2 + 1; other smooth tables get SciPy's spline."""
    value, slope, u = values_and_slopes([scale * (u**3 + u) for u in range(6)])
    np.testing.assert_allclose(value, scale * (u**3 + u), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, scale * (3 * u**2 + 1), rtol=1e-11)
    table = scale * np.exp(np.arange(6) / 2)
    value, slope, u = values_and_slopes(table)
    np.testing.assert_allclose(value, CubicSpline(np.arange(6.0), table)(u), rtol=1e-12)
    np.testing.assert_allclose(slope, CubicSpline(np.arange(6.0), table).derivative()(u), rtol=1e-11)


ROUGH = [
    [0.0, 1.0, 2.0, 2.001, 3.001, 4.001, 5.001],  # splines through these fall between two knots, and only there
    [0.0, 5.0, 5.001, 10.001, 15.001, 16.001, 21.001],
    [0.0, 0.001, 5.001, 6.001, 7.001, 12.001],
    [0.0, 1.0, 1.01, 4.0, 4.5, 9.0, 9.01],
]


@pytest.mark.parametrize("table", ROUGH)
def test_rough_tables_get_pchip(table: list[float]) -> None:
    """Where the spline would not rise everywhere the interpolant is PCHIP, which does."""
    value, slope, u = values_and_slopes(table)
    pchip = PchipInterpolator(np.arange(float(len(table))), table)
    np.testing.assert_allclose(value, pchip(u), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, pchip.derivative()(u), rtol=1e-11, atol=1e-13)
    assert bool((np.diff(value) > 0).all())


def test_a_slope_of_zero_is_not_monotone_enough() -> None:
    """A spline that stops rising, if only at a point, would have a rate of 0 there: PCHIP again."""
    table, u = np.array([0.0, 7.0, 8.0, 9.0]), np.arange(4.0)
    if CubicSpline(u, table).derivative()(u).min() != 0:
        pytest.skip("this SciPy's rounding leaves a slope")
    assert values_and_slopes(table.tolist())[1].min() > 0.5


def falls_between_knots(table: np.ndarray) -> bool:
    """True if the spline through the table rises at its knots and falls somewhere between them."""
    slope = CubicSpline(np.arange(len(table)), table).derivative()
    return bool((slope(np.arange(len(table))) > 0).all() and slope(np.linspace(0, len(table) - 1, 999)).min() < -1e-3)


def test_splines_that_fall_between_knots_are_found() -> None:
    """In whatever interval that happens."""
    rng = np.random.default_rng(0)
    tables = [np.concatenate([[0], np.cumsum(rng.choice([1e-3, 1, 5], size=6))]) for _ in range(400)]
    tables += [np.concatenate([[0], np.cumsum(rng.exponential(size=4))]) for _ in range(400)]
    rough = [table for table in tables if falls_between_knots(table)]
    assert len(rough) > 20
    for table in rough:
        value, _, u = values_and_slopes(table.tolist())
        np.testing.assert_allclose(value, PchipInterpolator(np.arange(len(table)), table)(u), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("table", [*ROUGH, [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 10.0, 30.0, 68.0]])
def test_tables_are_inverted(table: list[float]) -> None:
    """Value to time and back, at the knots exactly; NaN beyond the ends, in a batch of all sorts."""
    interpolant = _Interpolant(np.array(table))
    knots = torch.linspace(0, 1, len(table), dtype=F64)
    inverse = interpolant.inverse(torch.tensor(table, dtype=F64))[:-1]
    assert inverse.tolist() == pytest.approx(knots[:-1].tolist(), abs=1e-15)
    t = torch.linspace(0, 1, 501, dtype=F64)
    value = interpolant(t[:-1])
    back = interpolant(interpolant.inverse(value))
    torch.testing.assert_close(back, value, rtol=1e-14, atol=1e-14)
    steep = interpolant.slope(t[:-1]) > 1e-2
    torch.testing.assert_close(interpolant.inverse(value)[steep], t[:-1][steep], rtol=1e-10, atol=1e-10)
    last = interpolant.table[:, -1].sum()
    assert interpolant.inverse(torch.stack([last, last + 1e-9])).isnan().tolist() == [False, True]
    assert float(interpolant.inverse(last)) == pytest.approx(1.0, abs=1e-15)
    beyond = interpolant.inverse(column(table[0] - 1e-9, 0.5, table[-1] + 1e-9)).isnan()
    assert beyond.tolist() == [True, False, True]
    single = interpolant.inverse(value.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(interpolant(single.double()), value, rtol=1e-5, atol=1e-5)


class Operations(TorchFunctionMode):
    """Counts calls of torch's functions."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    """How many functions of torch a call takes."""
    with Operations() as mode:
        call()
    return mode.count


def test_inversion_is_quick() -> None:
    """A straight table is inverted by its first guess, a smooth one in a few of Newton's steps, 64 at most."""
    straight, bent = _Interpolant(np.arange(4.0)), _Interpolant(np.array([0.0, 1.1, 2.1, 3.0]))
    value = column(0.25, 1.5, 2.75)
    one_step = operations(lambda: straight.inverse(value))
    assert one_step <= 60
    for x in (0.1, 0.3, 0.5, 1.3, 1.7, 2.3, 2.7):
        assert one_step < operations(lambda x=x: bent.inverse(column(x))) < 4 * one_step  # type: ignore[misc]
    several = operations(lambda: bent.inverse(column(1.1, 1.3)))
    assert several == operations(lambda: bent.inverse(column(1.3)))  # until the last of them is done
    worst = operations(lambda: _Interpolant(np.array(ROUGH[-1])).inverse(torch.linspace(0, 9, 99, dtype=F64)))
    assert worst < 40 * one_step


def test_meta_tensors_have_shapes() -> None:
    """Times on the meta device give shapes, which need no values."""
    for sde in (sg.presets.ddpm(10), sg.presets.ncsn_cifar10()):
        assert sde.time(torch.zeros(3, device="meta")).shape == (3,)
        assert sde.transition(torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))[0].shape == (3,)


def test_discrete_processes_between_their_times() -> None:
    """Constant steps of B and of log(sigma) make straight lines of both, below the first level too."""
    vp = sg.DiscreteVPSDE([0.5, 0.5, 0.5, 0.5])  # alpha-bar = 2^-(4 t)
    assert float(vp.integrated_beta(0.3)) == pytest.approx(1.2 * LOG2, rel=1e-12)
    assert float(vp.beta(0.3)) == pytest.approx(4 * LOG2, rel=1e-12)
    assert float(vp.time_of_integrated_beta(column(3 * LOG2))) == pytest.approx(0.75, rel=1e-12)
    assert (vp.T, vp.eps, repr(vp)) == (1.0, 0.25, "DiscreteVPSDE(4 betas from 0.5 to 0.5)")
    ve = sg.DiscreteVESDE([4.0, 2.0, 1.0])
    assert (ve.sigmas, ve.T, ve.eps) == ((1.0, 2.0, 4.0), 1.0, pytest.approx(1 / 3))
    ve = sg.DiscreteVESDE([1.0, 2.0, 4.0, 8.0])  # sigma = 2^(4 t - 1)
    assert float(ve.sigma(0.1)) == pytest.approx(2**-0.6, rel=1e-12)
    assert float(ve.d_sigma(0.1)) == pytest.approx(4 * LOG2 * 2**-0.6, rel=1e-12)
    assert float(ve.log_snr(0.1)) == pytest.approx(1.2 * LOG2, rel=1e-12)
    assert float(ve.time(1.2 * LOG2)) == pytest.approx(0.1, rel=1e-12)
    rough = sg.DiscreteVESDE([1.0, 2.0, 16.0])  # geometric below the smallest level: 1/2 at t = 0
    assert float(rough.sigma(0.0)) == pytest.approx(0.5, rel=1e-12)
    assert repr(ve) == "DiscreteVESDE(4 sigmas from 1 to 8)"


# --- Predictions -----------------------------------------------------------------------------------------------------

KERNEL = MarginalValues(alpha=0.6, sigma=0.8, d_alpha=-1.0, d_sigma=0.75)
PAIRS: dict[tuple[str, float, float], tuple[float, float]] = {  # (prediction, eta, sigma_data): (a, b)
    ("data", 0.0, 1.0): (1, 0),
    ("noise", 0.0, 1.0): (0, 1),
    ("score", 0.0, 1.0): (0, -1.25),
    ("v", 0.0, 1.0): (-0.8, 0.6),
    ("v", 0.0, 0.5): (-1.6, 0.3),
    ("rectified", 0.0, 1.0): (-1, 1),
    ("flow", 0.0, 1.0): (-1, 0.75),
    ("flow", 2.0, 1.0): (-1, 0.75),
    ("drift", 0.0, 1.0): (-1, 0.75),
    ("drift", 1.0, 1.0): (-1, 2 * 0.75 + 0.8 / 0.6),
    ("drift", 2.0, 1.0): (-1, 5 * 0.75 + 4 * 0.8 / 0.6),
}


def test_predictions_are_combinations_of_data_and_noise() -> None:
    """The table of `sgm_sde.processes.predictions` with numbers put in."""
    for (prediction, eta, sigma_data), pair in PAIRS.items():
        assert weights(prediction, KERNEL, eta, sigma_data) == pytest.approx(pair, rel=1e-14), prediction
    for prediction in ("flow", "drift"):  # eta = 0 by default
        assert weights(prediction, KERNEL) == (-1, 0.75)
    assert weights("v", KERNEL) == (-0.8, 0.6)


@pytest.mark.parametrize("source", ["data", "noise", "score", "v", "flow", "rectified", "drift"])
def test_any_prediction_gives_any_other(source: str) -> None:
    """From the output a D + b e at x = alpha D + sigma e, for two choices of (D, e)."""
    a_r, b_r = PAIRS[source, 0.0, 1.0]
    for target, (a_p, b_p) in PAIRS.items():
        c_x, c_r = convert(source, target[0], KERNEL, *target[1:])
        for D, e in ((1.0, 0.0), (0.0, 1.0)):
            got = c_x * (0.6 * D + 0.8 * e) + c_r * (a_r * D + b_r * e)
            assert got == pytest.approx(a_p * D + b_p * e, abs=1e-13), target


def test_the_same_prediction_is_left_alone() -> None:
    """Where it would divide by zero, too; a velocity in other units and a drift with noise are not the same."""
    silent = MarginalValues(alpha=0.0, sigma=1.0, d_alpha=-1.0, d_sigma=0.0)
    assert convert("noise", "noise", silent) == (0.0, 1.0)
    for prediction in ("data", "noise", "score", "v", "flow", "rectified"):
        assert convert(prediction, prediction, KERNEL) == (0.0, 1.0)
    assert convert("drift", "drift", KERNEL) == (0.0, 1.0)
    assert convert("drift", "drift", KERNEL, 1.0) != (0.0, 1.0)
    assert convert("v", "v", KERNEL, 0.0, 0.5) != (0.0, 1.0)
    with pytest.raises(ZeroDivisionError):
        convert("noise", "data", silent)
    with pytest.raises(
        ValueError, match="unknown prediction 'x'; known: data, noise, score, v, flow, rectified, drift"
    ):
        weights("x", KERNEL)


# --- Noise and phi-functions -----------------------------------------------------------------------------------------


# Random123's published vectors of philox4x64 with 10 rounds: counter, key, block. The last are digits of pi.
PHILOX = [
    ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ([2**64 - 1] * 4, [2**64 - 1] * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]
STREAM_NUMBERS = {"prior": 1, "solver": 2, "corrector": 3, "probe": 4, "dequantisation": 5, "measurement": 6}
SEEDS = [(0, 0), (0, 1), (7, 3), (2**32 + 7, 3), (2**64 - 1, 5)]


@pytest.mark.parametrize("counter, key, block", PHILOX)
def test_philox_known_answers(counter: list[int], key: list[int], block: str) -> None:
    """The published blocks, in arrays and by NumPy's generator, which counts before it evaluates."""
    expected = [int(word, 16) for word in block.split()]
    assert philox(tuple(counter), tuple(key)).tolist() == [expected]
    if counter[0]:
        run = Run()
        run.seek(tuple(counter), tuple(key))
        assert run.words(4).tolist() == expected
        run.seek(tuple(counter), tuple(key), skip=3)
        assert run.words(1).tolist() == expected[3:]


def test_philox_evaluations_agree() -> None:
    """Words of consecutive counters, one by one in arrays and together in C; each with its own key and counter."""
    n = 3 * LANES // 2
    run, first = Run(), np.arange(2**40, 2**40 + n, dtype=np.uint64)
    run.seek((2**40, 7, 2**63, 9), (2**64 - 1, 2))
    assert (run.words(4 * n).reshape(n, 4) == philox((first, 7, 2**63, 9), (2**64 - 1, 2))).all()
    draws, seeds = first[::-1].copy(), first * np.uint64(2**23 + 1)
    blocks = philox((first, draws, 0, 1), (seeds, 3))
    for i in (0, 1, n - 1):
        run.seek((int(first[i]), int(draws[i]), 0, 1), (int(seeds[i]), 3))
        assert run.words(4).tolist() == blocks[i].tolist()


def box_muller(words: list[int]) -> list[float]:
    """Cosines and then sines, the lower half of all the bits telling radii and the upper angles, in float64."""
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    radii = [math.sqrt(-2 * math.log((half + 0.5) / 2**32)) for half in halves[: len(words)]]
    angles = [2 * math.pi * half / 2**32 for half in halves[len(words) :]]
    return [r * f(a) for f in (math.cos, math.sin) for r, a in zip(radii, angles, strict=True)]


@pytest.mark.parametrize("name, number", STREAM_NUMBERS.items())
@pytest.mark.parametrize("d", [1, 2, 3, 11])
def test_noise_of_a_seed(name: str, number: int, d: int) -> None:
    """Row i is Box and Muller's pairs from its words of the blocks for (draw, start, repetition) under (seed, stream),
    today and in any later version."""
    k = -(-d // 2)
    for start, repeat in ((0.0, 0), (0.5, 3)):
        seeds = SampleSeeds(
            np.array([s for s, _ in SEEDS], dtype=np.uint64), np.array([i for _, i in SEEDS]), repeat=repeat
        )
        noise = NoiseStream(seeds, name, start)
        (segment,) = np.array([start]).view(np.uint64).tolist()
        for draw in range(2):
            z = noise.normal((5, d), F64)
            assert z.dtype == F64
            assert torch.equal(noise.at(draw, (5, d), torch.float32), z.float())
            for row, (seed, index) in zip(z.tolist(), SEEDS, strict=True):
                run = [w for b in range(9) for w in philox((b + 1, draw, segment, repeat), (seed, number))[0].tolist()]
                expected = box_muller(run[index * k : (index + 1) * k])[:d]
                assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
    with pytest.raises(ValueError, match="noise for 4 samples asked of a stream for 5"):
        noise.normal((4, 3), F64)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 130, 131, 4 * LARGEST + 1])
def test_noise_is_the_same_however_it_is_had(d: int) -> None:
    """Of a range, a permutation, a few, with all seeds given, with draws of their own: to the last bit."""
    n = 60 if d < 1000 else 5
    known = [NoiseStream(SampleSeeds(5, range(n)), "solver", 0.3).at(k, (n, d), torch.float32) for k in range(3)]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(d)).numpy()
    seeds = np.full(n, 5, dtype=np.uint64)
    for given in (SampleSeeds(5, order), SampleSeeds(seeds, order), [(5, i) for i in order.tolist()]):
        stream = NoiseStream(given, "solver", 0.3, draw=1)
        assert torch.equal(stream.normal((n, d), torch.float32), known[1][order])
        assert stream.draw == 2
    for i in range(0, n, 9):
        one = NoiseStream([(5, i)], "solver", 0.3).at(2, (1, d), torch.float32)
        assert torch.equal(one[0], known[2][i])
    draws = np.arange(n) % 3
    own = NoiseStream(SampleSeeds(5, range(n)), "solver", 0.3).at(draws.astype(np.uint64), (n, d), torch.float32)
    assert torch.equal(own, torch.stack([known[k][i] for i, k in enumerate(draws.tolist())]))
    twice = NoiseStream([(5, 1), (5, 1), (5, 0)] * 40, "solver", 0.3).at(0, (120, d), torch.float32)
    assert torch.equal(twice, known[0][[1, 1, 0] * 40])


def test_draws_made_ahead_are_the_draws() -> None:
    """One after another, of whatever shapes and from wherever: each is what it is when asked for by its number."""
    source, seeds = NoiseStream(SampleSeeds(5, range(3, 7)), "solver", 0.3), SampleSeeds(5, range(3, 7))
    shapes = [(4, 3)] * 9 + [(4, 2, 2)] * 3 + [(4,)] * 4 + [(4, 3)] * 5 + [(4, 0)] * 3 + [(4, 5000)] * 4
    for k, shape in enumerate(shapes):
        known = NoiseStream(seeds, "solver", 0.3).at(k, shape, torch.float32)
        assert torch.equal(source.normal(shape, torch.float32), known), k
    for draw in (2, 50, 3, 4):
        source.draw = draw
        assert torch.equal(source.normal((4, 3), F64), NoiseStream(seeds, "solver", 0.3).at(draw, (4, 3), F64))
    with pytest.raises(ValueError, match="noise for 3 samples"):
        source.normal((3, 3), F64)


def test_large_samples_are_standard_normal() -> None:
    """Neighbouring seeds, indices, draws, streams, starts and repetitions: each of mean 0, variance 1 and skew 0, of
    the right distribution, and uncorrelated with the others, in lags as well."""
    n = 2**14

    def one(stream: str = "solver", start: float = 1.0, draw: int = 0, repeat: int = 0, **of: int) -> Tensor:
        seeds = SampleSeeds(of.get("seed", 3), range(of.get("index", 0), of.get("index", 0) + 1), repeat)
        return NoiseStream(seeds, stream, start).at(draw, (1, n), torch.float32)[0]

    z = torch.stack([
        one(), one(seed=4), one(seed=3 + 2**32), one(index=1), one(draw=1), one("corrector"), one("prior"),
        one(start=0.5), one(start=math.nextafter(1, 0)), one(repeat=1),
        NoiseStream(SampleSeeds(3, range(n)), "solver", 1.0).at(0, (n, 1), torch.float32)[:, 0],
        NoiseStream(SampleSeeds(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64)), "solver", 1.0)
        .at(0, (n, 1), torch.float32)[:, 0],
        NoiseStream([(3, 0)] * n, "solver", 1.0).at(np.arange(n, dtype=np.uint64), (n, 1), torch.float32)[:, 0],
    ]).double()  # fmt: skip
    assert float(z.mean(1).abs().max()) < 4.5 / math.sqrt(n)
    assert float((z.var(1) - 1).abs().max()) < 4.5 * math.sqrt(2 / n)
    assert float(z.pow(3).mean(1).abs().max()) < 4.5 * math.sqrt(15 / n)
    assert float((z.pow(4).mean(1) - 3).abs().max()) < 4.5 * math.sqrt(96 / n)
    place = (torch.arange(n) + 0.5) / n
    assert float((torch.special.ndtr(z.sort(1).values) - place).abs().max()) < 2 / math.sqrt(n)
    for values in (z, z.square() - 1):
        lagged = torch.cat([values, values.roll(1, 1), values.roll(n // 2, 1)])
        correlation = torch.corrcoef(lagged) - torch.eye(len(lagged), dtype=F64)
        assert float(correlation.abs().max()) < 5.5 / math.sqrt(n)


@pytest.mark.slow
def test_a_hundred_million_numbers() -> None:
    """Moments and distribution of 1e8 numbers, of crowds and of images, to their statistical errors."""
    for n, d, draws in ((10**6, 2, 25), (400, 12288, 10)):
        stream = NoiseStream(SampleSeeds(11, range(n)), "solver", 1.0)
        count, moments, largest = 0, torch.zeros(4, dtype=F64), 0.0
        bins = torch.zeros(1000, dtype=F64)
        for _ in range(draws):
            z = stream.normal((n, d), torch.float32).flatten()
            count += len(z)
            largest = max(largest, float(z.abs().max()))
            powers = z.double()
            for k in range(4):
                moments[k] += powers.sum()
                powers *= z
            bins += torch.histc(torch.special.ndtr(z), 1000, 0.0, 1.0).double()
        moments /= count
        for got, exact, variance in zip(moments.tolist(), (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
            assert abs(got - exact) < 4.5 * math.sqrt(variance / count)
        chi2 = float(((bins - count / 1000) ** 2).sum() / (count / 1000))
        assert abs(chi2 - 999) < 5 * math.sqrt(2 * 999)
        assert 5.0 < largest < 6.8


def test_seeds_are_compact() -> None:
    """A range is a range, in slices and lists too; what is no range, arrays; equal to the pairs that they stand for."""
    many = resolve_seeds(3, None, 10**6)
    assert isinstance(many, SampleSeeds)
    assert isinstance(many.indices, range)
    assert many[-1] == (3, 10**6 - 1)
    assert isinstance(many[5:10].indices, range)
    assert many[5:8] == ((3, 5), (3, 6), (3, 7)) == tuple(many[5:8])
    assert many[5:8] != ((3, 5), (3, 6), (3, 8))
    assert isinstance(resolve_seeds([(3, i) for i in range(7, 12)], None, 5).indices, range)
    assert resolve_seeds(many[5:8], None, 3) == many[5:8]
    assert many.select(np.array([4, 2])) == [(3, 4), (3, 2)]
    assert resolve_seeds([(3, 4), (5, 2)], None, 2).select(np.array([1])) == [(5, 2)]
    assert hash(many[:2]) == hash(((3, 0), (3, 1)))
    assert repr(many[5:8]) == "SampleSeeds(3, range(5, 8))"
    assert repr(resolve_seeds([1, 2], None, 2)) == "SampleSeeds((1, 0), (2, 0))"
    assert many[:2].divided(3) == [(3, i) for i in range(6)]
    assert resolve_seeds([(3, 4), (5, 2)], None, 2).divided(2) == [(3, 8), (3, 9), (5, 4), (5, 5)]


def test_seeds_of_repetitions() -> None:
    """The same pairs, with a number that tells repetitions of repetitions apart, too."""
    seeds = resolve_seeds(3, None, 2)
    found = {seeds.repeat}
    for k in range(3):
        found |= {seeds.repeated(k).repeat} | {seeds.repeated(k).repeated(j).repeat for j in range(3)}
        assert tuple(seeds.repeated(k)) == tuple(seeds)
        assert seeds.repeated(k) != seeds
    assert len(found) == 13


def test_all_bits_of_a_seed_count() -> None:
    """Seeds that agree in their lower half, once one run, are two; samples of a generator never share their noise."""
    a, b = (sg.VPSDE().prior_sample((4, 3), seed=seed) for seed in (5, 7047780872))
    assert not bool((a == b).any())
    x = sg.VPSDE().prior_sample((300_000, 3), generator=torch.Generator().manual_seed(0))
    assert len(x.unique(dim=0)) == len(x)


def test_seeds_from_generators() -> None:
    """One seed a generator, whose samples are numbered, and the generator is left where that draw left it."""
    g, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = int(torch.randint(2**63 - 1, (), generator=same))
    assert resolve_seeds(None, g, 3) == tuple((drawn, i) for i in range(3))
    several = [torch.Generator().manual_seed(i) for i in range(2)]
    copies = [torch.Generator().manual_seed(i) for i in range(2)]
    expected = tuple((int(torch.randint(2**63 - 1, (), generator=c)), 0) for c in copies)
    assert resolve_seeds(None, several, 2) == expected
    for a, b in zip([g, *several], [same, *copies], strict=True):
        assert torch.equal(a.get_state(), b.get_state())
    with pytest.raises(ValueError, match="got 2 generators for 3 samples"):
        resolve_seeds(None, several, 3)
    with pytest.raises(ValueError, match="not both"):
        resolve_seeds(1, g, 3)


def test_seeds_from_numbers() -> None:
    """Any integer of 64 bits; a tensor of no dimension is one seed, of one dimension a list; none is fresh entropy."""
    assert resolve_seeds(0, None, 2) == ((0, 0), (0, 1))
    assert resolve_seeds(torch.tensor(5), None, 2) == ((5, 0), (5, 1))
    assert resolve_seeds(torch.tensor([5, 6]), None, 2) == ((5, 0), (6, 0))
    assert resolve_seeds([2**64 - 1], None, 1) == ((2**64 - 1, 0),)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=str(seed)):
            resolve_seeds(seed, None, 1)
    assert resolve_seeds([(7, 2**32 - 1)], None, 1) == ((7, 2**32 - 1),)
    with pytest.raises(ValueError, match=r"the index of a seed must lie in \[0, 2\*\*32\), got 4294967296"):
        resolve_seeds([(7, 2**32)], None, 1)
    for bad in (True, "7", 1.5):
        with pytest.raises(TypeError, match="a seed must be an int"):
            resolve_seeds(bad, None, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 1 seeds for 2 samples"):
        resolve_seeds([7], None, 2)
    fresh = {resolve_seeds(None, None, 1)[0] for _ in range(8)}
    assert len(fresh) == 8
    assert all(0 <= seed < 2**63 and index == 0 for seed, index in fresh)
    assert max(seed for seed, _ in fresh) >= 2**40


@pytest.mark.parametrize("z", [0.25, -0.25, 0.99, -0.99, 1.0, -1.0, 1.01, -1.01, 1.75, -1.75, -1.99, 6.0, -6.0, -40.0])
def test_phi_functions_on_both_sides_of_the_switch(z: float) -> None:
    """phi_k(z) = sum of z^j / (j + k)!, in exact arithmetic; from |z| = 1 on the recurrence takes over."""
    for k in range(5):
        exact = sum((Fraction(z) ** j / math.factorial(j + k) for j in range(40 if abs(z) < 2 else 180)), Fraction(0))
        assert phi(k, z) == pytest.approx(float(exact), rel=2e-13, abs=0)
        assert float(phi_values(k, column(z))) == pytest.approx(float(exact), rel=2e-13, abs=0)


def test_phi_functions_at_zero_and_far_away() -> None:
    """1/k! at 0, e^z at k = 0, and 1/((k-1)! |z|) in the limit."""
    assert [phi(k, 0.0) for k in range(4)] == [1, 1, 0.5, 1 / 6]
    assert phi(0, 2.0) == math.exp(2.0)
    assert [1e9 * phi(k, -1e9) for k in (1, 2, 3)] == pytest.approx([1, 1, 0.5], rel=1e-8)
    for k in range(4):
        several = phi_values(k, column(0.0, -1e9, 2.0, 0.5))  # near and far beside one another
        assert several.tolist() == pytest.approx([phi(k, z) for z in (0.0, -1e9, 2.0, 0.5)], rel=1e-14, abs=0)
    for call in (lambda: phi(-1, 1.0), lambda: phi_values(-1, column(1.0))):
        with pytest.raises(ValueError, match="got -1"):
            call()


# --- Linear parts ----------------------------------------------------------------------------------------------------


def node(t: float, sde: sg.SDE = EDM) -> Any:
    """The coefficients at a time."""
    return sde.nodes([t])[0]


INSIDE: Any = SimpleNamespace(at=node)  # stands for a step of EDM


def test_names_of_the_linear_parts() -> None:
    """What a solver's options may be."""
    assert VARIABLES == ("log-snr", "time", "noise-level", "vp-time", "angle", "flow-time")
    assert VARIANTS == ("exact", "midpoint", "bh1", "published", "fixed", "ipndm-v")
    parts = {"data": DataPart, "noise": NoisePart, "v": VPart, "rectified": RectifiedPart}
    assert parts == PARTS
    assert DataPart("time", 0.0) == DataPart("time", 0.0, "exact", 1.0)


def test_quadrature_of_the_moments() -> None:
    """Gauss-Legendre's on [0, 1] with 32 points, which is exact for polynomials up to degree 63."""
    assert len(POINTS) == len(WEIGHTS) == 32
    assert [float(np.sum(WEIGHTS * POINTS**k)) for k in range(64)] == pytest.approx([1 / (k + 1) for k in range(64)])


FACTORS: list[tuple[LinearPart, float, float]] = [  # from noise level 2 to 1: L and std, from the table with numbers
    (DataPart("log-snr", 0.0), 1 / 2, 0.0),
    (DataPart("log-snr", 1.0), 1 / 4, math.sqrt(3) / 2),
    (DataPart("log-snr", 2.0), 1 / 32, math.sqrt(1 - 1 / 256)),
    (NoisePart("log-snr", 0.0), 1.0, 0.0),
    (NoisePart("log-snr", 1.0), 1.0, math.sqrt(3)),
    (NoisePart("log-snr", 2.0), 1.0, 2 * math.sqrt(3)),
    (VPart("angle", 0.0), math.sqrt(2 / 5), 0.0),
    (VPart("angle", 1.0), 2 / 5, math.sqrt(2 * 3 / 5)),
    (VPart("angle", 2.0), (2 / 5) ** 2.5, math.sqrt(2 * (1 - (2 / 5) ** 4))),
    (VPart("angle", 1.0, sigma_data=2.0), 5 / 8, math.sqrt(5 * 3 / 8)),
    (RectifiedPart("flow-time", 0.0), 2 / 3, 0.0),
]


def test_factor_and_noise() -> None:
    """L and std between the noise levels 2 and 1; no noise, and L = 1, over no distance."""
    for part, factor, std in FACTORS:
        check_factor_and_noise(part, factor, std)


def check_factor_and_noise(part: LinearPart, factor: float, std: float) -> None:
    """The same for one linear part."""
    assert part.factor(node(2.0), node(1.0)) == pytest.approx(factor, rel=1e-14)
    assert part.std(node(2.0), node(1.0)) == pytest.approx(std, rel=1e-14)
    assert part.factor(node(2.0), node(2.0)) == 1.0
    if not part.eta:  # the flow runs towards the noise as well
        assert part.std(node(1.0), node(2.0)) == 0.0
        assert part.factor(node(1.0), node(2.0)) == pytest.approx(1 / factor)
    assert part.std(node(2.0), node(2.0)) == 0.0


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_marginals_are_carried_into_marginals(name: str, tau: float) -> None:
    """For data at 0, with D = 0, and for Gaussian data of standard deviation sigma_data, with v = 0."""
    sde: sg.LinearSDE = sg.VPSDE() if name == "vp" else sg.RectifiedFlowSDE()
    s, t = node(0.7, sde), node(0.3, sde)
    data, velocity = DataPart("log-snr", tau), VPart("angle", tau, sigma_data=0.5)
    variance = data.factor(s, t) ** 2 * s.sigma**2 + data.std(s, t) ** 2
    assert variance == pytest.approx(t.sigma**2, rel=1e-12)
    rho_s, rho_t = ((0.5 * k.alpha) ** 2 + k.sigma**2 for k in (s, t))
    variance = velocity.factor(s, t) ** 2 * rho_s + velocity.std(s, t) ** 2
    assert variance == pytest.approx(rho_t, rel=1e-12)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_noise_prediction_with_signal_that_fades(tau: float) -> None:
    """L = alpha_t / alpha_s and std = tau sigma_t sqrt(e^2h - 1), UniPC's B1 over B2 = h / (e^h - 1), on VP."""
    s, t, before = (node(u, sg.VPSDE()) for u in (0.7, 0.3, 0.9))
    part = NoisePart("log-snr", tau, "bh1")
    h = math.log(t.alpha / t.sigma * s.sigma / s.alpha)
    assert part.factor(s, t) == pytest.approx(t.alpha / s.alpha, rel=1e-13)
    assert part.std(s, t) == pytest.approx(tau * t.sigma * math.sqrt(math.exp(2 * h) - 1), rel=1e-12)
    r = math.log(before.alpha / before.sigma * s.sigma / s.alpha) / h
    m0, m1 = -(1 + tau**2) * t.sigma * (math.exp(h) - 1), -(1 + tau**2) * t.sigma * h / 2
    assert part.weights(s, t, [s, before]) == pytest.approx([m0 - m1 / r, m1 / r], rel=1e-11)
    c, data = (1 + tau**2) * h, DataPart("log-snr", tau, "bh1")
    m0, m1 = t.alpha * (1 - math.exp(-c)), t.alpha * c / 2
    assert data.weights(s, t, [s, before]) == pytest.approx([m0 - m1 / r, m1 / r], rel=1e-11)


def er_scale(s: float) -> float:
    """ER-SDE's noise scale."""
    return s * (math.exp(s**0.3) + 10)


def test_er_sde_s_noise_scale() -> None:
    """x_t/alpha_t = r x_s/alpha_s + ... with r = phi(t)/phi(s), noise of variance t^2 - s^2 r^2, weights summing
    to 1 - r."""
    (step, *_) = sg.schemes.ERSDE(1).compile(EDM, sg.Grid([2.0, 1.0])).stages[1:]
    r = er_scale(1.0) / er_scale(2.0)
    assert step.states == ((0, pytest.approx(r, rel=1e-13)),)
    assert step.evals == ((0, pytest.approx(1 - r, rel=1e-13)),)
    assert step.noises == ((0, pytest.approx(math.sqrt(1 - 4 * r * r), rel=1e-12)),)


def test_places_of_nodes() -> None:
    """Coordinates, their inverses, and the node at a fraction of the way, in each variable."""
    k, sde = node(0.5), EDM
    places = {"log-snr": LOG2, "time": 0.5, "noise-level": 0.5, "angle": math.atan(0.25), "flow-time": 1 / 3}
    for variable, spot in places.items():
        part = DataPart(variable, 0.0, sigma_data=2.0)
        assert part.coordinate(k) == pytest.approx(spot, rel=1e-14)
        assert float(part.lam(sde, part.coordinate(k))) == pytest.approx(LOG2, rel=1e-13)
        quarter = part.between(INSIDE, node(4.0), node(0.5), 0.25)
        a, b = part.coordinate(node(4.0)), part.coordinate(k)
        assert part.coordinate(quarter) == pytest.approx(a + (b - a) / 4, rel=1e-12)
    for variable in ("log-snr", "noise-level"):
        assert DataPart(variable, 0.0).coordinate(node(0.5, sg.VPSDE())) != 0.5
    assert DataPart("time", 0.0).coordinate(node(0.5, sg.VPSDE())) == 0.5
    vp = DataPart("time", 0.0).lam(sg.VPSDE(), 0.5)
    assert float(vp) == pytest.approx(node(0.5, sg.VPSDE()).lam, rel=1e-13)


def density(part: LinearPart, t: Any, lam: float) -> float:
    """The kernel in half the log-SNR, from the table of `sgm_sde.schemes.linear_part`."""
    tau2 = part.eta**2
    if isinstance(part, DataPart):
        return (1 + tau2) * t.alpha * math.exp(-(1 + tau2) * (t.lam - lam))
    if isinstance(part, NoisePart):
        return -(1 + tau2) * t.alpha * math.exp(-lam)
    if isinstance(part, RectifiedPart):
        share = 1 / (1 + math.exp(lam))
        return -(t.alpha + t.sigma) * share * (1 - share)
    angle, end = math.atan(math.exp(-lam) / part.sigma_data), math.atan(t.sigma / t.alpha / part.sigma_data)
    rho = math.sqrt((t.alpha * part.sigma_data) ** 2 + t.sigma**2)
    slope = -math.sin(angle) * math.cos(angle)  # d angle / d lambda
    return (1 + tau2) * rho * (math.cos(angle) / math.cos(end)) ** tau2 * slope


def place(part: LinearPart, sde: sg.LinearSDE, lam: float) -> float:
    """The variable where half the log-SNR is lam."""
    if part.variable == "angle":
        return math.atan(math.exp(-lam) / part.sigma_data)
    if part.variable == "flow-time":
        return 1 / (1 + math.exp(lam))
    time = lambda: float(sde.time(2 * lam))  # noqa: E731
    return {"log-snr": lambda: lam, "noise-level": lambda: math.exp(-lam), "time": time}[part.variable]()


COMBINATIONS = [
    *((part, variable, 1.0) for part in (DataPart, NoisePart) for variable in VARIABLES[:3]),
    (VPart, "angle", 1.0),
    (VPart, "angle", 0.5),
    (RectifiedPart, "flow-time", 1.0),
]


@pytest.mark.parametrize("tau", [0.0, 0.7])
@pytest.mark.parametrize("kind, variable, sigma_data", COMBINATIONS)
def test_moments_and_exact_weights(kind: type[LinearPart], variable: str, sigma_data: float, tau: float) -> None:
    """Moments of the kernel by SciPy's quadrature; weights integrate what their number of nodes allows, exactly."""
    sde = sg.VPSDE()
    part = kind(variable, tau, sigma_data=sigma_data)
    s, t, before, older = (node(u, sde) for u in (0.6, 0.35, 0.8, 0.9))
    a, b = place(part, sde, s.lam), place(part, sde, t.lam)

    def integral(p: Callable[[float], float]) -> float:
        value, _ = quad(
            lambda lam: density(part, t, lam) * p((place(part, sde, lam) - a) / (b - a)), s.lam, t.lam, epsrel=1e-11
        )
        return float(value)

    powers = [integral(lambda r, k=k: r**k) for k in range(4)]  # type: ignore[misc]
    assert part.moments(s, t, 4) == pytest.approx(powers, rel=1e-9)
    assert part.moments(s, t, 1) == pytest.approx(powers[:1], rel=1e-9)
    for nodes in ([s], [s, before], [t, s], [s, before, older], [t, s, before, older]):
        w = part.weights(s, t, nodes)
        assert len(w) == len(nodes)
        for k in range(len(nodes)):
            values = [(place(part, sde, n.lam) - a) / (b - a) for n in nodes]
            rho = [math.hypot(n.alpha * sigma_data, n.sigma) if kind is VPart else 1.0 for n in nodes]
            got = math.fsum(w_j * v**k * p for w_j, v, p in zip(w, values, rho, strict=True))
            assert got == pytest.approx(powers[k], rel=1e-8)


def test_moments_over_a_long_step() -> None:
    """Closed forms hold over 198 units of log-SNR, where a quadrature would not: first moments of e^h and e^-h."""
    s, t = node(10.0), node(1e-85)
    h = 86 * math.log(10)
    data, noise = DataPart("log-snr", 0.0).moments(s, t, 3), NoisePart("log-snr", 0.0).moments(s, t, 3)
    assert data == pytest.approx([1, 1 - 1 / h, 1 - 2 / h + 2 / h**2], rel=1e-12)
    assert noise == pytest.approx([-10, -10 / h, -20 / h**2], rel=1e-11)
    assert NoisePart("noise-level", 0.0).moments(s, t, 3) == pytest.approx([-10, -5, -10 / 3], rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_moments_with_a_noise_scale(n: int) -> None:
    """ER-SDE: dW = alpha_t d(phi(t)/phi(u)), in the noise level u."""
    part = sg.schemes.ERSDE(3).part(node(2.0), node(1.0))
    k = n - 1
    # by parts: the kernel's total 1 - r, less k times the integral of r^(k-1) W
    whole = 1 - er_scale(1.0) / er_scale(2.0)
    inner, _ = quad(
        lambda u: k * (2 - u) ** (k - 1) * (er_scale(1.0) / er_scale(u) - er_scale(1.0) / er_scale(2.0)) if k else 0.0,
        1,
        2,
        epsrel=1e-12,
    )
    assert part.moments(node(2.0), node(1.0), n)[-1] == pytest.approx(whole - inner, rel=1e-9)
    assert part == DataPart("noise-level", 0.0, log_scale=part.log_scale)  # type: ignore[attr-defined]
    in_log_snr = dataclasses.replace(part, variable="log-snr")
    assert in_log_snr.moments(node(2.0), node(1.0), 1) == pytest.approx([whole], rel=1e-12)


def test_published_weights() -> None:
    """From noise level 2 to 1, the earlier ones at 4 and 8: r = 0, -1, -2, in half the log-SNR."""
    s, t, before, older = node(2.0), node(1.0), node(4.0), node(8.0)

    def w(kind: type[LinearPart], variant: str, *nodes: Any, tau: float = 0.0) -> list[float]:
        return kind("log-snr", tau, variant).weights(s, t, nodes)

    assert w(DataPart, "midpoint", s, before) == pytest.approx([3 / 4, -1 / 4])  # DPM-Solver++(2M)
    assert w(DataPart, "published", s, before) == pytest.approx([3 / 4, -1 / 4])
    assert w(DataPart, "midpoint", s, before, tau=1.0) == pytest.approx([9 / 8, -3 / 8])
    assert w(NoisePart, "midpoint", s, before) == pytest.approx([-3 / 2, 1 / 2])
    assert w(DataPart, "midpoint", t, s) == pytest.approx([1 / 4, 1 / 4])  # UniC's B2: the trapezoidal rule
    assert w(DataPart, "bh1", t, s) == pytest.approx([LOG2 / 2, (1 - LOG2) / 2])  # B1 = h for B2 = e^h - 1
    assert w(DataPart, "bh1", t, s, tau=1.0) == pytest.approx([LOG2, 3 / 4 - LOG2])
    assert w(NoisePart, "bh1", t, s) == pytest.approx([-LOG2 / 2, LOG2 / 2 - 1])
    m1 = 1 - 1 / (2 * LOG2)  # integrals of e^-(1 - r)h h r^k
    m2 = 1 - 2 * m1 / LOG2
    assert w(DataPart, "exact", s, before) == pytest.approx([1 / 2 + m1, -m1])
    for variant, second in (("exact", m2), ("published", m2 / 2), ("midpoint", m2), ("bh1", m2)):
        newest, oldest = 1 / 2 + 3 * m1 / 2 + second / 2, m1 / 2 + second / 2
        assert w(DataPart, variant, s, before, older) == pytest.approx([newest, -2 * m1 - second, oldest])
    assert w(DataPart, "midpoint", s) == w(DataPart, "published", s) == w(DataPart, "bh1", s) == pytest.approx([0.5])
    with pytest.raises(ValueError, match="'bh1' is one of data and noise prediction, not of VPart"):
        VPart("angle", 0.0, "bh1").weights(s, t, [s, before])


def test_fixed_weights_are_adams_s() -> None:
    """Adams-Bashforth's, and with the step's end among the nodes Adams-Moulton's, on whatever grid."""
    part = NoisePart("noise-level", 0.0, "fixed")
    s, t, rest = node(3.0), node(1.0), [node(7.0), node(8.0), node(20.0)]
    bashforth = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    for n, w in bashforth.items():
        assert part.weights(s, t, [s, *rest][:n]) == pytest.approx([-2 * v for v in w])
    moulton = {2: [1 / 2, 1 / 2], 3: [5 / 12, 8 / 12, -1 / 12], 4: [9 / 24, 19 / 24, -5 / 24, 1 / 24]}
    for n, w in moulton.items():
        assert part.weights(s, t, [t, s, *rest][:n]) == pytest.approx([-2 * v for v in w])
    noisy = NoisePart("noise-level", 2.0, "fixed")
    assert noisy.weights(s, t, [s]) == pytest.approx([-10])


def test_before_infinity_the_newest_evaluation_is_used_alone() -> None:
    """Where alpha = 0 half the log-SNR and the noise level are infinite; the angle is not."""
    flow = sg.RectifiedFlowSDE(T=1.0)
    top, s, t = (node(u, flow) for u in (1.0, 0.6, 0.3))
    data, velocity = DataPart("log-snr", 0.0), VPart("angle", 0.0)
    e = [Form({("evals", j): 1.0}) for j in range(3)]
    assert data.usable(top, s, [(top, e[0])]) == [(top, e[0])]
    assert data.usable(s, t, [(s, e[1]), (top, e[0])]) == [(s, e[1])]
    known = [(t, e[2]), (s, e[1])]
    assert data.usable(t, node(0.1, flow), known) == known
    assert data.usable(t, top, known) == known[:1]
    assert data.usable(top, s, [(top, e[0]), (s, e[1])]) == [(top, e[0])]
    assert velocity.usable(s, t, [(s, e[1]), (top, e[0])]) == [(s, e[1]), (top, e[0])]
    assert (data.factor(top, s), data.std(top, s)) == (0.6, 0.0)
    assert data.weights(top, s, [top]) == [0.4]
    assert data.moments(top, s, 1) == [0.4]
    noisy = DataPart("log-snr", 1.0)
    assert (noisy.factor(top, s), noisy.std(top, s)) == (0.0, 0.6)


# --- Exponential integrators -----------------------------------------------------------------------------------------


def table(solver: sg.Solver, times: Sequence[float] = (4.0, 2.0, 1.0), sde: sg.SDE = EDM) -> list[dict[str, float]]:
    """The rows of a compiled solver: coefficients by the letter and number of what they multiply."""
    rows = []
    for stage in solver.compile(sde, sg.Grid(times)).stages[1:]:
        terms = [("x", stage.states), ("e", stage.evals), ("z", stage.noises)]
        rows.append({f"{letter}{j}": c for letter, pairs in terms for j, c in pairs if abs(c) > 1e-14})
    return rows


def same(rows: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    """Assert that two tables are the same but for rounding."""
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-12)


R2, R3 = math.sqrt(2), math.sqrt(3)
M1 = 1 - 1 / (2 * LOG2)  # first moment of the data kernel over h = log 2
TABLES: dict[str, tuple[sg.Solver, list[dict[str, float]]]] = {
    "dpm++1m": (sg.DPMSolverPP(1), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e1": 1 / 2}]),
    "dpm++2m": (sg.DPMSolverPP(2), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -1 / 4, "e1": 3 / 4}]),
    "sde-dpm++2m": (
        sg.DPMSolverPP(2, eta=1.0),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": R3}, {"x1": 1 / 4, "e0": -3 / 8, "e1": 9 / 8, "z1": R3 / 2}],
    ),
    "dpm2m": (
        sg.DPMSolver(2, singlestep=False),
        [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 2, "e1": -3 / 2}],
    ),
    "sde-dpm2m": (
        sg.DPMSolver(2, singlestep=False, eta=1.0),
        [{"x0": 1, "e0": -4, "z0": 2 * R3}, {"x1": 1, "e0": 1, "e1": -3, "z1": R3}],
    ),
    "lms2": (sg.schemes.LMS(2), [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 4, "e1": -5 / 4}]),
    "deis2": (sg.DEIS(2), [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 4, "e1": -5 / 4}]),  # in EDM's time
    # w = 4/5, 2/3, 1/2 and 1 + s = 5, 3, 2: x' = x/(1 + s) is on a straight line in w.
    "rectified2": (
        sg.schemes.RectifiedAdams(2),
        [
            {"x0": 3 / 5, "e0": 3 * (2 / 3 - 4 / 5)},
            {"x1": 2 / 3, "e0": -2 / 6 * -5 / 8, "e1": -2 / 6 * (1 + 5 / 8)},
        ],
    ),
    "ipndm2": (sg.schemes.IPNDM(2), [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 2, "e1": -3 / 2}]),
    # x1 becomes x0/2 + (e0 + e1)/4 once e1 is known.
    "unipc1": (sg.UniPC(1), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -1 / 8, "e1": 5 / 8}]),
    "unipc1-bh1": (
        sg.UniPC(1, variant="bh1"),
        [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -LOG2 / 4, "e1": 1 / 2 + LOG2 / 4}],
    ),
    "unipc1-exact": (
        sg.UniPC(1, variant="exact"),
        [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -M1 / 2, "e1": 1 / 2 + M1 / 2}],
    ),
    "unip2": (
        sg.UniPC(2, corrector=False),
        [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -1 / 4, "e1": 3 / 4}],
    ),
    "dpm++2s": (
        sg.DPMSolverPP(2, singlestep=True),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e1": 1 / 2},
            {"x2": 1 / R2, "e2": 1 - 1 / R2},
            {"x2": 1 / 2, "e3": 1 / 2},
        ],
    ),
    "dpm2": (
        sg.DPMSolver(2),
        [{"x0": 1, "e0": 2 * R2 - 4}, {"x0": 1, "e1": -2}, {"x2": 1, "e2": R2 - 2}, {"x2": 1, "e3": -1}],
    ),
    "seeds2": (  # one Brownian path: the end has the inner node's noise as well
        sg.schemes.SEEDS(2, prediction="noise"),
        [
            {"x0": 1, "e0": 4 * R2 - 8, "z0": 2 * R2},
            {"x0": 1, "e1": -4, "z0": 2 * R2, "z1": 2},
            {"x2": 1, "e2": 2 * R2 - 4, "z2": R2},
            {"x2": 1, "e3": -2, "z2": R2, "z3": 1},
        ],
    ),
    "sde-dpm++2s": (  # L = 1/2 for half the step, 1/4 for all of it
        sg.DPMSolverPP(2, singlestep=True, eta=1.0),
        [
            {"x0": 1 / 2, "e0": 1 / 2, "z0": 2},
            {"x0": 1 / 4, "e1": 3 / 4, "z0": 1, "z1": R2},
            {"x2": 1 / 2, "e2": 1 / 2, "z2": 1},
            {"x2": 1 / 4, "e3": 3 / 4, "z2": 1 / 2, "z3": R2 / 2},
        ],
    ),
    "exact-2s": (
        sg.schemes.ExponentialRungeKutta(stages=2),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e0": 1 / 2 - 2 * M1, "e1": 2 * M1},
            {"x2": 1 / R2, "e2": 1 - 1 / R2},
            {"x2": 1 / 2, "e2": 1 / 2 - 2 * M1, "e3": 2 * M1},
        ],
    ),
    "reduced": (
        sg.schemes.ExponentialRungeKutta(stages=2, reduced=1),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e0": 1 / 2 - 2 * M1, "e1": 2 * M1},
            {"x2": 1 / 2, "e2": 1 / 2},
        ],
    ),
    "dpm++3m": (  # a warm first step of two stages, then the two evaluations there are
        sg.DPMSolverPP(3),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e0": 1 / 2 - 2 * M1, "e1": 2 * M1},
            {"x2": 1 / 2, "e0": -M1, "e2": 1 / 2 + M1},
        ],
    ),
    "dpm2-ancestral": (  # down to s_t^2/s_s, with s_d between, and up by s_t/s_s sqrt(s_s^2 - s_t^2)
        sg.schemes.AncestralNoise(sg.DPMSolver(2)),
        [
            {"x0": 1, "e0": -2},
            {"x0": 1, "e1": -3, "z0": R3},
            {"x2": 1, "e2": -1},
            {"x2": 1, "e3": -3 / 2, "z1": R3 / 2},
        ],
    ),
    "ddim-ancestral-half": (  # up by half of that: s_d^2 = 4 - 3/4
        sg.schemes.AncestralNoise(sg.DPMSolver(1), eta=0.5),
        [
            {"x0": 1, "e0": math.sqrt(3.25) - 4, "z0": R3 / 2},
            {"x1": 1, "e1": math.sqrt(0.8125) - 2, "z1": R3 / 4},
        ],
    ),
    "res3": (
        sg.schemes.RES(),
        [
            row
            for j in (0, 3)
            for row in (
                {f"x{j}": 1 / R2, f"e{j}": 1 - 1 / R2},
                {f"x{j}": 1 / 2, f"e{j}": 1 / 2 - LOG2 * 1.69786, f"e{j + 1}": LOG2 * 1.69786},
                {f"x{j}": 1 / 2, f"e{j}": 1 / 2 - 5 * M1 / 3, f"e{j + 1}": 4 * M1 / 3, f"e{j + 2}": M1 / 3},
            )
        ],
    ),
    "heun": (
        sg.Heun(),
        [
            {"x0": 1, "e0": -2},
            {"x0": 1, "e0": -1, "e1": -1},
            {"x2": 1, "e2": -1},
            {"x2": 1, "e2": -1 / 2, "e3": -1 / 2},
        ],
    ),
    "ddim": (sg.DDIM(), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e1": 1 / 2}]),
    "ddim-1": (
        sg.DDIM(eta=1.0),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": R3}, {"x1": 1 / 4, "e1": 3 / 4, "z1": R3 / 2}],
    ),
    "ancestral": (
        sg.Ancestral(),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": R3}, {"x1": 1 / 4, "e1": 3 / 4, "z1": R3 / 2}],
    ),
    "ddpm": (
        sg.Ancestral(variance="transition"),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": 2 * R3}, {"x1": 1 / 4, "e1": 3 / 4, "z1": R3}],
    ),
    "reverse-diffusion": (  # b^2 = 12 and 3
        sg.ReverseDiffusion(),
        [{"x0": 1, "e0": 12, "z0": 2 * R3}, {"x1": 1, "e1": 3, "z1": R3}],
    ),
    "reverse-diffusion-3": (
        sg.ReverseDiffusion(eta=3.0),
        [{"x0": 1, "e0": 60, "z0": 6 * R3}, {"x1": 1, "e1": 15, "z1": 3 * R3}],
    ),
    "euler-maruyama": (  # g^2 = 2 t, over steps of 2 and 1
        sg.EulerMaruyama(),
        [{"x0": 1, "e0": -2, "z0": 4}, {"x1": 1, "e1": -1, "z1": 2}],
    ),
    "euler-maruyama-3": (
        sg.EulerMaruyama(eta=3.0),
        [{"x0": 1, "e0": -2, "z0": 12}, {"x1": 1, "e1": -1, "z1": 6}],
    ),
    "euler": (sg.RungeKutta(sg.tableaus.EULER), [{"x0": 1, "e0": -2}, {"x1": 1, "e1": -1}]),
    "annealed-langevin": (  # delta = 16 and 4 times that at the last level, which is visited as well
        sg.schemes.AnnealedLangevin(step_ratio=0.5, n_steps=1),
        [{"x0": 1, "e0": 4, "z0": 2 * R2}, {"x1": 1, "e1": 1, "z1": R2}, {"x2": 1, "e2": 1 / 4, "z2": 1 / R2}],
    ),
}
A_RES = 2 * (1 - (1 - 1 / R2) * 2 / LOG2) * 2 / LOG2 + 2 * M1 / LOG2  # 2 phi_2(-h/2) + 2 phi_2(-h)
for _row in (TABLES["res3"][1][1], TABLES["res3"][1][4]):
    for _key in list(_row)[1:]:
        _row[_key] = LOG2 * A_RES if _key in ("e1", "e4") else 1 / 2 - LOG2 * A_RES


def test_tables_by_hand() -> None:
    """EDM's process from noise level 4 over 2 to 1: h = log 2 a step, e^-h = 1/2."""
    for solver, expected in TABLES.values():
        same(table(solver.strict()), expected)


def test_steps_from_no_signal_and_to_no_noise() -> None:
    """Where half the log-SNR is infinite single-step solvers do without their inner nodes: sigma_t/sigma_s and
    alpha_t from alpha = 0, all of the data to sigma = 0."""

    class Doubled(sg.LinearSDE):
        T, eps = 1.0, 0.0

        def alpha(self, t: float | Tensor) -> Tensor:
            return 1 - torch.as_tensor(t)

        def sigma(self, t: float | Tensor) -> Tensor:
            return 2 * torch.as_tensor(t)

    for solver in (
        sg.schemes.ExponentialRungeKutta(),
        sg.schemes.ExponentialRungeKutta(stages=3),
        sg.schemes.RES(),
        sg.DDIM(),
    ):
        same(table(solver, (1.0, 0.25), Doubled()), [{"x0": 1 / 4, "e0": 3 / 4}])
        same(table(solver, (1.0, 0.0)), [{"e0": 1.0}])
    same(table(sg.DPMSolverPP(3), (1.0, 0.25), Doubled()), [{"x0": 1 / 4, "e0": 3 / 4}])


def test_res_with_signal_that_fades() -> None:
    """In the middle of the step in log-SNR; x_t = sigma_t/sigma_s x, and for data at a point, exactly."""
    flow = sg.RectifiedFlowSDE()
    program = sg.schemes.RES().compile(EDM, sg.Grid([4.0, 2.0]))
    assert [stage.t for stage in program.stages] == pytest.approx([4, 2 * R2, 2, 2])
    for row, (alpha, sigma) in zip(table(sg.schemes.RES(), (0.6, 0.3), flow)[1:], [(0.7, 0.3)] * 2, strict=True):
        assert row["x0"] == pytest.approx(sigma / 0.6)
        assert 0.4 * row["x0"] + sum(c for key, c in row.items() if key[0] == "e") == pytest.approx(alpha)


def test_inner_nodes_where_asked_for() -> None:
    """c2 = 1/4 in log-SNR from 4 to 1/4 is the noise level 2; the weights are exact for lines."""
    rows = table(sg.schemes.ExponentialRungeKutta(stages=2, c2=0.25), (4.0, 0.25))
    h = 4 * LOG2
    m1 = 1 - (1 - 1 / 16) / h
    same(rows, [{"x0": 1 / 2, "e0": 1 / 2}, {"x0": 1 / 16, "e0": 15 / 16 - 4 * m1, "e1": 4 * m1}])
    three = sg.schemes.ExponentialRungeKutta(stages=3, c2=0.25).compile(EDM, sg.Grid([16.0, 2.0]))
    assert [stage.t for stage in three.stages] == pytest.approx([16, 16 / 8**0.25, 4, 2])
    default = sg.schemes.ExponentialRungeKutta(stages=3).compile(EDM, sg.Grid([16.0, 2.0]))
    assert [stage.t for stage in default.stages] == pytest.approx([16, 8, 4, 2])
    last = {"x0": 1 / 8, "e0": 7 / 8 - 3 / 2 * (1 - 7 / 8 / (3 * LOG2)), "e2": 3 / 2 * (1 - 7 / 8 / (3 * LOG2))}
    assert table(sg.schemes.ExponentialRungeKutta(stages=3), (16.0, 2.0))[-1] == pytest.approx(last)


def test_a_warm_start_with_two_inner_nodes_leaves_one_behind() -> None:
    """Of the first step the evaluations at its start and at two thirds are remembered."""
    rows = table(sg.schemes.LMS(4), (8.0, 2.0, 1.0))
    program = sg.schemes.LMS(4).compile(EDM, sg.Grid([8.0, 2.0, 1.0]))
    assert [stage.t for stage in program.stages] == pytest.approx([8, 6, 4, 2, 1])
    assert list(rows[2]) == ["x0", "e0", "e2"]
    assert list(rows[3]) == ["x3", "e0", "e2", "e3"]
    # In the noise level from 2 to 1 with 4 and 8 before: integrals of Lagrange's polynomials through 2, 4, 8.
    lagrange = [np.poly1d(np.poly(others)) for others in ([2, 4], [2, 8], [4, 8])]
    at = [8.0, 4.0, 2.0]
    expected = [(p.integ()(1) - p.integ()(2)) / p(x) for p, x in zip(lagrange, at, strict=True)]
    assert list(rows[3].values())[1:] == pytest.approx(expected, rel=1e-10)


def test_correctors_at_every_step_but_the_last() -> None:
    """UniC with three evaluations: each step is done again with the evaluation at its end; warm starts are not."""
    cold = table(sg.schemes.UniC(sg.schemes.LMS(2, start="cold")), (4.0, 3.0, 2.0, 1.0))
    ab, am = [-3 / 2, 1 / 2], [-5 / 12, -8 / 12, 1 / 12]
    same(
        cold,
        [
            {"x0": 1, "e0": -1},
            {"x1": 1, "e0": 1 - 1 / 2 + 1 / 2, "e1": -1 / 2 - 3 / 2},
            {"x2": 1, "e0": am[2] - ab[1], "e1": am[1] - ab[0] - ab[1] * -1, "e2": am[0] + ab[0]},
        ],
    )
    # With one evaluation, that at the step's end: x1 - e1 + e0, and on with Adams-Bashforth's weights.
    same(
        table(sg.schemes.UniC(sg.schemes.LMS(2), nodes=1), (4.0, 3.0, 2.0)),
        [{"x0": 1, "e0": -1}, {"x1": 1, "e0": 3 / 2, "e1": -5 / 2}],
    )


NUMBERS: list[tuple[Any, ...]] = [  # solver, order, weak order, network calls for 10 steps, steps for 10, 3 and 0 calls
    (sg.schemes.ExponentialAdams(nodes=1), 1, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, start="warm"), 3, None, 11, 9, 2, 0),
    (sg.schemes.ExponentialAdams(nodes=3, start="warm", lower_final=True), 2, None, 11, 9, 2, 0),
    (sg.schemes.ExponentialAdams(nodes=4, start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=5, start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=3, variant="published"), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=4, variant="published", start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=1, corrector=1), 1, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=1, corrector=2), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=2, corrector=3), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4, start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=2), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4, variant="published"), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=1, eta=1.0), 1, 1, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, eta=1.0), 2, 2, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4, eta=0.5), 3, 2, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=2, eta=abs), 2, 2, 10, 10, 3, 0),
    (sg.schemes.IPNDM(4), 1, None, 10, 10, 3, 0),
    (sg.schemes.UniC(sg.schemes.IPNDM(4)), 1, None, 10, 10, 3, 0),
    (sg.schemes.UniC(sg.DPMSolverPP(3)), 4, None, 12, 8, 1, 0),
    (sg.schemes.UniC(sg.DPMSolverPP(3), 3), 3, None, 10, 10, 3, 0),
    (sg.schemes.UniC(sg.DPMSolverPP(2)), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialRungeKutta(stages=1), 1, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialRungeKutta(), 2, None, 20, 5, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3), 3, None, 30, 3, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3, reduced=2), 3, None, 28, 4, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3, reduced=20), 3, None, 20, 5, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=2, reduced=1), 2, None, 19, 5, 2, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3, eta=1.0), 3, 2, 30, 3, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=1, eta=1.0), 1, 1, 10, 10, 3, 0),
    (sg.schemes.RES(), 3, None, 30, 3, 1, 0),
    (sg.schemes.PNDM(), 1, None, 19, 2, 0, 0),
    (sg.schemes.PNDM(runge_kutta=False), 1, None, 11, 9, 2, 0),
    (sg.schemes.AncestralNoise(sg.DPMSolver(1)), 1, 1, 10, 10, 3, 0),
    (sg.schemes.AncestralNoise(sg.DPMSolver(2)), 2, 2, 20, 5, 1, 0),
    (sg.Restart(sg.DPMSolver(2), rounds=2, n_steps=2), 2, None, 28, 1, 0, 0),
    (sg.Restart(sg.DDIM()), 1, None, 13, 7, 0, 0),
    (sg.Heun(), 2, None, 20, 5, 1, 0),
    (sg.Heun(s_churn=0.5), 2, 2, 20, 5, 1, 0),
    (sg.Heun(s_churn=0.5, s_noise=1.01), 2, None, 20, 5, 1, 0),
    (sg.RungeKutta(), 4, None, 40, 2, 0, 0),
    (sg.RungeKutta(sg.tableaus.RK3), 3, None, 30, 3, 1, 0),
    (sg.EulerMaruyama(), 1, 1, 10, 10, 3, 0),
    (sg.EulerMaruyama(eta=0.0), 1, None, 10, 10, 3, 0),
    (sg.ReverseDiffusion(), 1, 1, 10, 10, 3, 0),
    (sg.DDIM(), 1, None, 10, 10, 3, 0),
    (sg.DDIM(eta=1.0), 1, 1, 10, 10, 3, 0),
    (sg.Ancestral(), 1, 1, 10, 10, 3, 0),
    (sg.schemes.AnnealedLangevin(n_steps=2), 0, None, 22, 4, 0, 0),
    (sg.PredictorCorrector(sg.DDIM(), sg.Langevin(n_steps=2)), 1, None, 30, 3, 1, 0),
    (sg.PredictorCorrector(sg.DPMSolverPP(3), sg.Langevin()), 3, None, 21, 4, 1, 0),
]


def test_orders_and_budgets() -> None:
    """Orders as documented, the cost of 10 steps, and the steps that 10, 3 and 0 network calls allow."""
    for solver, order, weak, nfe, *steps in NUMBERS:
        assert (solver.order, solver.weak_order, solver.nfe(10)) == (order, weak, nfe), solver
        assert [max(solver.steps(n), 0) for n in (10, 3, 0)] == steps, solver


def test_budgets_are_used_in_full() -> None:
    """`steps` is the largest number whose cost the budget covers; `fit` of single-step solvers spends all of it."""
    for solver, *_ in NUMBERS:
        for budget in range(40):
            steps = solver.steps(budget)
            if steps:
                assert solver.nfe(steps) <= budget
            assert solver.nfe(steps + 1) > budget
    for stages in (1, 2, 3):
        for budget in range(1, 13):
            fitted, steps = sg.schemes.ExponentialRungeKutta(stages=stages, c2=0.4 if stages > 1 else None).fit(budget)
            assert fitted.nfe(steps) == budget
            assert fitted.compile(EDM, sg.grids.Karras()(EDM, steps)).nfe == budget
    solver = sg.schemes.ExponentialRungeKutta(stages=3, c2=0.4)
    assert solver.fit(7) == (dataclasses.replace(solver, reduced=2), 3)
    assert solver.fit(2) == (dataclasses.replace(solver, reduced=1), 1)
    assert solver.fit(1) == (sg.schemes.ExponentialRungeKutta(stages=2, reduced=1), 1)
    assert sg.DDIM().fit(7) == (sg.DDIM(), 7)


def test_noise_levels_and_their_window() -> None:
    """A number or a function of the step's start; inside the window in part, in proportion of its square."""
    steps = [(node(4.0), node(2.0)), (node(2.0), node(0.5)), (node(1.0), node(0.5)), (node(0.5), node(0.25))]
    windowed = sg.schemes.ExponentialAdams(eta=2.0, window=(0.25, 1.0))
    assert [windowed.eta_on(s, t) for s, t in steps] == pytest.approx([0.0, 2 * math.sqrt(0.5), 2.0, 2.0])
    low = sg.schemes.ExponentialAdams(eta=2.0, window=(0.5, 4.0))
    assert [low.eta_on(s, t) for s, t in [*steps, (node(1.0), node(0.25))]] == pytest.approx([2, 2, 2, 0, R2])
    assert sg.schemes.ExponentialAdams(eta=lambda t: t / 2).eta_on(*steps[0]) == 2.0
    assert sg.schemes.ExponentialAdams(eta=lambda t: t / 2, window=(0.25, 1.0)).eta_on(*steps[1]) == pytest.approx(
        R2 / 2
    )
    assert sg.schemes.ExponentialAdams().eta_on(*steps[0]) == 0.0
    noisy, flow = sg.schemes.ExponentialAdams(eta=2.0), sg.RectifiedFlowSDE(T=1.0)
    assert noisy.eta_on(node(1.0, flow), node(0.5, flow)) == 2.0  # from where alpha = 0
    assert noisy.eta_on(node(1.0), node(0.0)) == 2.0  # to where sigma = 0
    with pytest.raises(ValueError, match=r"eta at t=4 must be finite, .* got -1.0"):
        sg.schemes.ExponentialAdams(eta=lambda t: -1.0).eta_on(*steps[0])
    data = sg.schemes.ExponentialAdams(eta=0.5, variable="time", variant="midpoint").part(*steps[0])
    assert data == DataPart("time", 0.5, "midpoint", 1.0)
    velocity = sg.schemes.Rosenbrock(2, sigma_data=0.3).part(*steps[0])
    assert velocity == VPart("angle", 0.0, "exact", 0.3)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: sg.schemes.ExponentialAdams(prediction="score"),
        "prediction must be one of 'data', 'noise', 'v', 'rectified', got",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(variable="angle"),
        "of data must be one of 'log-snr', 'time', 'noise",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(prediction="v", variable="time"),
        "of v must be one of 'angle', 'log-snr', got",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(prediction="rectified", variable="angle"),
        "must be one of 'flow-time', got",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(prediction="rectified", eta=1.0),
        "prediction='rectified' is for the flow, got eta=1.0",
    ),
    (lambda: sg.schemes.ExponentialAdams(prediction="rectified", variant="bh1"), "made for data or noise in log-SNR"),
    (
        lambda: sg.schemes.ExponentialAdams(variant="x"),
        "variant must be one of 'exact', 'midpoint', 'bh1', 'published', 'fix",
    ),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", variant="bh1"), "made for data or noise in log-SNR"),
    (lambda: sg.schemes.ExponentialAdams(variable="time", variant="bh1"), "made for data or noise in log-SNR"),
    (lambda: sg.schemes.ExponentialAdams(variable="noise-level", variant="fixed"), "made for noise in the noise level"),
    (lambda: sg.schemes.ExponentialAdams(prediction="noise", variant="fixed"), "made for noise in the noise level"),
    (lambda: sg.schemes.ExponentialAdams(eta=-0.5), r"eta must be finite, at least 0 and at most 1e\+06, got -0.5$"),
    (lambda: sg.schemes.ExponentialAdams(eta=math.inf), r"eta must be finite, at least 0 and at most 1e\+06, got inf$"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="x"), "noise_scale must be one of 'er', got 'x'"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", eta=1.0), "without eta"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", eta=abs), "without eta"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", prediction="noise"), "goes with data prediction"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", window=(0.1, 1.0)), "without eta"),
    (lambda: sg.schemes.ExponentialAdams(eta=1.0, window=(1.0, 0.5)), "0 <= low <= high"),
    (lambda: sg.schemes.ExponentialAdams(eta=1.0, window=(-1.0, 0.5)), "0 <= low <= high"),
    (lambda: sg.schemes.ExponentialAdams(window=(0.1, 1.0)), "window acts on eta, which is 0"),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", near_noise=7.0), "near_noise acts on v in log-SNR"),
    (lambda: sg.schemes.Rosenbrock(variable="log-snr", near_noise=0.0), "near_noise must be finite, above 0"),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", sigma_data=0.0), "sigma_data must be finite, above 0"),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", sigma_data=math.inf), "sigma_data must be finite, above 0"),
    (lambda: sg.schemes.ExponentialAdams(sigma_data=0.5), "sigma_data acts on v-prediction, got it with data"),
    (lambda: sg.schemes.ExponentialAdams(nodes=0), "nodes must be an integer of at least 1, got 0"),
    (lambda: sg.schemes.ExponentialAdams(nodes=1.5), "nodes must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.schemes.ExponentialAdams(nodes=2, corrector=4), r"between 0 and nodes \+ 1 = 3, got 4"),
    (lambda: sg.schemes.ExponentialAdams(corrector=-1), "got -1"),
    (lambda: sg.schemes.ExponentialAdams(corrector=1.5), "got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.schemes.ExponentialAdams(start="hot"), "start must be one of 'cold', 'warm', got 'hot'"),
    (lambda: sg.schemes.ExponentialAdams(nodes=2, start="warm"), "start='warm' changes nothing at order 2"),
    (
        lambda: sg.schemes.ExponentialAdams(nodes=2, corrector=3, start="warm"),
        "start='warm' changes nothing at order 3",
    ),
    (lambda: sg.schemes.ExponentialAdams(nodes=3, variant="published", start="warm"), "changes nothing at order 2"),
    (
        lambda: sg.schemes.ExponentialAdams(nodes=3, corrector=4, variant="published", start="warm"),
        "start='warm' changes nothing at order 3",
    ),
    (lambda: sg.schemes.ExponentialAdams(nodes=3, start="warm", eta=1.0), "start='warm' is for deterministic solvers"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=0), "stages must be an integer of at least 1, got 0"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=4), "stages must be one of 1, 2, 3, got 4"),
    (
        lambda: sg.schemes.ExponentialRungeKutta(variant="bh1"),
        "must be one of 'exact', 'midpoint'",
    ),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=3, variant="midpoint"), "one of two stages, got stages=3"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=1, variant="midpoint"), "one of two stages, got stages=1"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=1, c2=0.5), "c2 must lie inside the step"),
    (lambda: sg.schemes.ExponentialRungeKutta(c2=0.0), "c2 must lie inside the step"),
    (lambda: sg.schemes.ExponentialRungeKutta(c2=1.0), "c2 must lie inside the step"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=3, c2=2 / 3), "for three stages below 2/3"),
    (lambda: sg.schemes.ExponentialRungeKutta(reduced=-1), "reduced must be an integer of at least 0"),
    (lambda: sg.schemes.ExponentialRungeKutta(reduced=0.5), "reduced must be an integer of at least 0"),  # type: ignore[arg-type]
    (lambda: sg.schemes.ExponentialRungeKutta(stages=1, reduced=1), "must be 0 for one stage, got 1"),
    (lambda: sg.DPMSolverPP(0), "order must be an integer of at least 1, got 0"),
    (lambda: sg.DPMSolverPP(1.5), "got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.DPMSolver(4), "order must be 1, 2 or 3, multistep also more, got 4"),
    (lambda: sg.DPMSolver(2, start="warm"), "a single-step solver needs no start, got start='warm'"),
    (lambda: sg.DPMSolverPP(1, variant="midpoint"), "order 1 has no variants, got variant='midpoint'"),
    (lambda: sg.UniPC(variant="bh3"), "variant must be one of 'bh1', 'bh2', 'exact', got 'bh3'"),
    (lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=0.0), "eta must be finite, above 0 and at most 1, got 0.0"),
    (lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=1.5), "eta must be finite, above 0 and at most 1, got 1.5"),
    (lambda: sg.Restart(sg.DDIM(), s_min=0.0), "need 0 < s_min < s_max, got 0.0 and 0.3"),
    (lambda: sg.Restart(sg.DDIM(), s_min=0.3), "need 0 < s_min < s_max, got 0.3 and 0.3"),
    (lambda: sg.Restart(sg.DDIM(), s_max=math.inf), "got 0.14 and inf"),
    (lambda: sg.Restart(sg.DDIM(), rounds=0), "rounds must be an integer of at least 1, got 0"),
    (lambda: sg.Restart(sg.DDIM(), n_steps=1.5), "n_steps must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.Heun(s_churn=-1.0), "s_churn must be at least 0, got -1.0"),
    (lambda: sg.Heun(s_churn=1.0, s_tmin=2.0, s_tmax=1.0), "need s_tmin <= s_tmax, got 2.0 and 1.0"),
    (lambda: sg.Heun(s_tmin=0.1), "s_churn is 0"),
    (lambda: sg.DDIM(eta=1.01), "eta must be finite, at least 0 and at most 1, got 1.01"),
    (lambda: sg.DDIM(eta=-0.1), "got -0.1"),
    (lambda: sg.EulerMaruyama(eta=-0.1), r"at least 0 and at most 1e\+06, got -0.1"),
    (lambda: sg.EulerMaruyama(eta=math.inf), r"at least 0 and at most 1e\+06, got inf"),
    (lambda: sg.Ancestral(variance="x"), "variance must be one of 'posterior', 'transition', got 'x'"),
    (lambda: sg.Langevin(snr=0.0), "snr must be positive and finite, got 0.0"),
    (lambda: sg.Langevin(snr=math.inf), "snr must be positive and finite, got inf"),
    (lambda: sg.Langevin(n_steps=0), "n_steps must be an integer of at least 1, got 0"),
    (lambda: sg.Langevin(n_steps=1.5), "n_steps must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.Langevin(norm="x"), "norm must be one of 'expected', 'sample', 'batch', got 'x'"),
    (lambda: sg.Langevin(snr=1.0), "snr must be below 1, from where on updates are not stable, got 1.0"),
    (lambda: sg.Langevin(data_std=-0.5), "data_std must be finite, at least 0 .* got -0.5"),
    (lambda: sg.Langevin(data_std=math.inf), "data_std must be finite, at least 0 .* got inf"),
    (lambda: sg.Langevin(data_std=0.5, norm="batch"), "data_std=0.5 goes with norm='expected', got norm='batch'"),
    (lambda: sg.schemes.AnnealedLangevin(step_ratio=0.0), "step_ratio must be positive and finite, got 0.0"),
    (
        lambda: sg.schemes.AnnealedLangevin(4.0),
        "step_ratio must be below 4, from where on updates are not stable, got 4.0",
    ),
    (lambda: sg.PredictorCorrector(sg.DDIM(), sg.Langevin(), order="PP"), "order must be one of 'PC', 'CP', got 'PP'"),
]


def test_options_out_of_range_are_refused() -> None:
    """The message names the option and the value."""
    for make, text in REFUSED:
        with pytest.raises(ValueError, match=text):
            make()


def test_options_at_their_limits_are_taken() -> None:
    """The last value inside each limit, and combinations that are allowed."""
    sg.schemes.ExponentialAdams(eta=1.0, window=(0.5, 0.5))
    sg.schemes.ExponentialAdams(eta=1.0, window=(0.0, 0.5))
    sg.schemes.ExponentialAdams(prediction="noise", variable="log-snr", variant="bh1")
    sg.schemes.ExponentialAdams(prediction="noise", variable="noise-level", variant="fixed", corrector=3)
    sg.schemes.ExponentialAdams(noise_scale="er", window=(0.0, math.inf))
    sg.schemes.ExponentialRungeKutta(stages=3, c2=0.66)
    sg.schemes.ExponentialRungeKutta(stages=2, c2=0.99, variant="midpoint", reduced=1)
    sg.DPMSolverPP(5)
    sg.DPMSolverPP(3, singlestep=True)
    sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=1.0)
    sg.Heun(s_churn=1.0, s_tmin=1.0, s_tmax=1.0)
    sg.DDIM(eta=1.0)
    sg.EulerMaruyama(eta=1e6)
    for make in (
        lambda: sg.schemes.AncestralNoise(sg.DPMSolver(3)),
        lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2, eta=1.0)),
        lambda: sg.schemes.AncestralNoise(sg.DDIM()),
        lambda: sg.Restart("ddim"),  # type: ignore[arg-type]
        lambda: sg.schemes.UniC(sg.DDIM()),
        lambda: sg.schemes.ExponentialAdams(3),  # type: ignore[call-arg, arg-type]
        lambda: sg.schemes.ExponentialRungeKutta(3),  # type: ignore[call-arg, arg-type]
        lambda: Exponential("data"),  # type: ignore[abstract, call-arg]
        lambda: sg.PredictorCorrector("ddim", sg.Langevin()),  # type: ignore[arg-type]
        lambda: sg.PredictorCorrector(sg.DDIM(), sg.DDIM()),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            make()


def adams(**options: Any) -> sg.schemes.ExponentialAdams:
    """The multistep solver of the options."""
    return sg.schemes.ExponentialAdams(**options)


def lowering(**options: Any) -> sg.schemes.ExponentialAdams:
    """The same, of lower order at the end of grids of few steps, as the literature's codes are."""
    return adams(lower_final=None, **options)


def single(**options: Any) -> sg.schemes.ExponentialRungeKutta:
    """The single-step solver of the options."""
    return sg.schemes.ExponentialRungeKutta(**options)


NOISE: dict[str, Any] = {"prediction": "noise"}
LEVEL: dict[str, Any] = {"prediction": "noise", "variable": "noise-level"}
CASES: list[tuple[sg.Solver, str, sg.Solver]] = [  # what a paper's name stands for, what it calls itself
    (sg.DPMSolverPP(), "dpm++2m", lowering(variant="midpoint")),
    (sg.DPMSolverPP(1), "dpm++1m", adams(nodes=1)),
    (sg.DPMSolverPP(3), "dpm++3m", lowering(nodes=3, start="warm")),
    (sg.DPMSolverPP(3, start="cold"), "dpm++3m-cold", lowering(nodes=3)),
    (sg.DPMSolverPP(2, start="cold"), "dpm++2m", lowering(variant="midpoint")),
    (sg.DPMSolverPP(3, eta=1.0), "sde-dpm++3m", lowering(nodes=3, eta=1.0)),
    (sg.DPMSolverPP(2, eta=abs), "sde-dpm++2m", lowering(variant="midpoint", eta=abs)),
    (sg.DPMSolverPP(3, eta=abs), "sde-dpm++3m", lowering(nodes=3, eta=abs)),
    (sg.DPMSolverPP(3, variant="published"), "dpm++3m-published", lowering(nodes=3, variant="published")),
    (sg.DPMSolverPP(4, variant="published"), "dpm++4m-published", lowering(nodes=4, variant="published", start="warm")),
    (sg.DPMSolverPP(2, singlestep=True), "dpm++2s", single(variant="midpoint")),
    (sg.DPMSolver(), "dpm2", single(**NOISE, variant="midpoint")),
    (sg.DPMSolver(3), "dpm3", single(**NOISE, stages=3)),
    (sg.DPMSolver(1, eta=1.0), "sde-dpm1", single(**NOISE, stages=1, eta=1.0)),
    (sg.DPMSolver(2, singlestep=False), "dpm2m", lowering(**NOISE, variant="midpoint")),
    (sg.DPMSolver(3, singlestep=False), "dpm3m", lowering(**NOISE, nodes=3, start="warm")),
    (sg.DEIS(), "deis3", lowering(**NOISE, variable="time", nodes=3, start="warm")),
    (sg.DEIS(2), "deis2", lowering(**NOISE, variable="time")),
    (sg.schemes.LMS(), "lms4", adams(**LEVEL, nodes=4, start="warm")),
    (sg.schemes.LMS(2), "lms2", adams(**LEVEL)),
    (sg.schemes.IPNDM(), "ipndm4", adams(**LEVEL, variant="fixed", nodes=4)),
    (sg.schemes.UniC(sg.DEIS(2)), "deis2-unic", lowering(**NOISE, variable="time", corrector=3)),
    (sg.schemes.UniC(sg.schemes.LMS(4), 2), "lms4-unic", adams(**LEVEL, nodes=4, corrector=2)),
    (sg.schemes.UniC(sg.schemes.LMS(4)), "lms4-unic", adams(**LEVEL, nodes=4, corrector=5, start="warm")),
    (sg.UniPC(), "unipc3", lowering(variant="midpoint", nodes=3, corrector=4)),
    (sg.UniPC(2, variant="bh1", prediction="noise"), "unipc2", lowering(**NOISE, variant="bh1", corrector=3)),
    (sg.UniPC(3, variant="exact", start="warm"), "unipc3", lowering(nodes=3, corrector=4, start="warm")),
    (sg.UniPC(2, corrector=False), "unip2", lowering(variant="midpoint")),
    (sg.SASolver(), "sa-solver", lowering(nodes=2, corrector=3, eta=1.0, window=(0.05, 1.0))),
    (sg.SASolver(3), "sa-solver", lowering(nodes=3, corrector=4, eta=1.0, window=(0.05, 1.0))),
    (sg.SASolver(3, lower_final=False), "sa-solver", adams(nodes=3, corrector=4, eta=1.0, window=(0.05, 1.0))),
    (sg.UniPC(1), "unipc1", adams(variant="midpoint", nodes=1, corrector=2)),
    (sg.UniPC(lower_final=True), "unipc3", adams(variant="midpoint", nodes=3, corrector=4, lower_final=True)),
    (sg.DEIS(lower_final=False), "deis3", adams(**NOISE, variable="time", nodes=3, start="warm")),
    (sg.DPMSolverPP(lower_final=False), "dpm++2m", adams(variant="midpoint")),
    (sg.SASolver(2, corrector=0), "sa-solver", lowering(nodes=2, eta=1.0, window=(0.05, 1.0))),
    (sg.schemes.SEEDS(), "seeds2", single(eta=1.0)),
    (sg.schemes.SEEDS(3), "seeds3", single(stages=3, eta=1.0)),
    (sg.schemes.SEEDS(prediction="noise"), "seeds2-published", single(**NOISE, variant="midpoint", eta=1.0)),
    (sg.schemes.SEEDS(3, prediction="noise"), "seeds3-published", single(**NOISE, stages=3, eta=1.0)),
    (sg.schemes.Rosenbrock(), "rosenbrock2", lowering(prediction="v", sigma_data=0.5)),
    (sg.schemes.Rosenbrock(3), "rosenbrock3", lowering(prediction="v", sigma_data=0.5, nodes=3, start="warm")),
    (sg.schemes.Rosenbrock(3, eta=1.0), "rosenbrock3", lowering(prediction="v", sigma_data=0.5, nodes=3, eta=1.0)),
    (sg.schemes.RectifiedAdams(), "rectified2", lowering(prediction="rectified")),
    (sg.schemes.RectifiedAdams(3), "rectified3", lowering(prediction="rectified", nodes=3, start="warm")),
    (sg.schemes.RectifiedAdams(3, start="cold"), "rectified3", lowering(prediction="rectified", nodes=3)),
    (sg.schemes.ERSDE(), "er-sde3", adams(variable="noise-level", noise_scale="er", nodes=3)),
]


def test_families_are_cases_of_the_exponential_integrators() -> None:
    """Each paper's solver is the exponential integrator with these options, and calls itself by its own name."""
    for solver, name, case in CASES:
        assert isinstance(case, sg.schemes.ExponentialAdams | sg.schemes.ExponentialRungeKutta)
        assert solver.name == name
        assert solver == dataclasses.replace(case, name=solver.name, source=solver.source)
        assert repr(solver) == repr(case)


def test_exponential_integrators_show_what_is_not_default() -> None:
    """And the variable only where it is not the prediction's own."""
    assert repr(sg.schemes.ExponentialAdams()) == "ExponentialAdams()"
    assert repr(adams(variable="log-snr", name="x", source="y")) == "ExponentialAdams()"
    assert repr(adams(variable="time", nodes=4)) == "ExponentialAdams(variable='time', nodes=4)"
    assert repr(adams(prediction="v")) == "ExponentialAdams(prediction='v')"
    assert (adams().variable, adams(**NOISE).variable, adams(prediction="v").variable) == (
        "log-snr",
        "log-snr",
        "angle",
    )
    assert (adams().eta, adams().sigma_data, adams().window, adams().nodes) == (0.0, 1.0, (0.0, math.inf), 2)
    assert (adams().stochastic, adams(eta=0.1).stochastic, adams(eta=abs).stochastic) == (False, True, True)


def test_ipndm_with_variable_steps() -> None:
    """The published code's weights of three evaluations, by a loop in its symbols; the exact ones on even steps."""
    times = (7.0, 4.0, 2.5, 1.0, 0.7)
    rows = table(sg.schemes.IPNDM(3, variable_steps=True), times)
    for i in (2, 3):
        h, h1, h2 = (times[j + 1] - times[j] for j in (i, i - 1, i - 2))
        temp = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        c = ((2 + h / h1) / 2 + temp, -(h / h1) / 2 - (1 + h1 / h2) * temp, temp * h1 / h2)
        same([rows[i]], [{f"x{i}": 1, f"e{i - 2}": h * c[2], f"e{i - 1}": h * c[1], f"e{i}": h * c[0]}])
        assert sum(c) == pytest.approx(1)
    even = (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    for order in (2, 3, 4):
        same(
            table(sg.schemes.IPNDM(order, variable_steps=True), even), table(sg.schemes.LMS(order, start="cold"), even)
        )
    assert table(sg.schemes.IPNDM(2, variable_steps=True), times) == table(sg.schemes.LMS(2), times)


def test_pndm() -> None:
    """Three steps of four evaluations, averaged as Runge-Kutta's, then Adams-Bashforth's fixed weights."""
    rows = table(sg.schemes.PNDM(), (5.0, 4.0, 3.0, 2.0, 1.0))
    same(
        rows[:4],
        [
            {"x0": 1, "e0": -1 / 2},
            {"x0": 1, "e1": -1 / 2},
            {"x0": 1, "e2": -1},
            {"x0": 1, "e0": -1 / 6, "e1": -1 / 3, "e2": -1 / 3, "e3": -1 / 6},
        ],
    )
    same(rows[-1:], [{"x12": 1, "e0": 9 / 24, "e4": -37 / 24, "e8": 59 / 24, "e12": -55 / 24}])
    vp = sg.VPSDE()
    s, half, t = (node(u, vp) for u in (0.8, 0.6, 0.4))
    (first, *_) = table(sg.schemes.PNDM(), (0.8, 0.4), vp)
    change = half.alpha * (half.sigma / half.alpha - s.sigma / s.alpha)
    assert first == pytest.approx({"x0": half.alpha / s.alpha, "e0": change})
    assert t.alpha > half.alpha
    assert [sg.schemes.PNDM().nfe(n) for n in (0, 1, 2, 3, 4)] == [0, 4, 8, 12, 13]
    assert [sg.schemes.PNDM().steps(n) for n in (3, 4, 11, 12, 13, 20)] == [0, 1, 2, 3, 4, 11]


def test_plms() -> None:
    """Heun's method in the noise level, then Adams-Bashforth's fixed weights of two, three and four evaluations."""
    rows = table(sg.schemes.PNDM(runge_kutta=False), (6.0, 5.0, 4.0, 3.0, 2.0, 1.0))
    same(rows[:2], [{"x0": 1, "e0": -1}, {"x0": 1, "e0": -1 / 2, "e1": -1 / 2}])
    same(rows[2:3], [{"x2": 1, "e0": 1 / 2, "e2": -3 / 2}])
    same(rows[3:4], [{"x3": 1, "e0": -5 / 12, "e2": 16 / 12, "e3": -23 / 12}])
    same(rows[4:5], [{"x4": 1, "e0": 9 / 24, "e2": -37 / 24, "e3": 59 / 24, "e4": -55 / 24}])
    same(rows[5:], [{"x5": 1, "e2": 9 / 24, "e3": -37 / 24, "e4": 59 / 24, "e5": -55 / 24}])
    assert [sg.schemes.PNDM(runge_kutta=False).nfe(n) for n in (0, 1, 2, 10)] == [0, 2, 3, 11]
    assert [sg.schemes.PNDM(runge_kutta=False).steps(n) for n in (0, 1, 2, 10)] == [0, 0, 1, 9]
    assert (sg.schemes.PNDM().runge_kutta, sg.schemes.PNDM().name, sg.schemes.PNDM(runge_kutta=False).name) == (
        True,
        "pndm",
        "plms",
    )
    assert all(math.isclose(math.fsum(w), 1) for w in ADAMS.values())


def test_restarts() -> None:
    """At the first node at or below s_min: up to s_max with noise, and down in steps even in s^(1/7), twice."""
    solver = sg.Restart(sg.DPMSolverPP(1), s_min=0.6, s_max=3.0, rounds=2, n_steps=2)
    program = solver.compile(EDM, sg.Grid([4.0, 2.0, 0.5, 0.25]))
    m = ((3 ** (1 / 7) + 0.5 ** (1 / 7)) / 2) ** 7
    assert [stage.t for stage in program.stages] == pytest.approx([4, 2, 0.5, 3, m, 0.5, 3, m, 0.5, 0.5, 0.25])
    assert [stage.node for stage in program.stages] == [k in (0, 1, 9, 10) for k in range(11)]
    rows = table(solver, (4.0, 2.0, 0.5, 0.25))
    down = [{"x": m / 3, "e": 1 - m / 3}, {"x": 0.5 / m, "e": 1 - 0.5 / m}]
    for j in (0, 1):
        up, first, second = rows[2 + 3 * j : 5 + 3 * j]
        assert up == pytest.approx({f"x{2 + 3 * j}": 1, f"z{j}": math.sqrt(8.75)})
        assert list(first.values()) == pytest.approx(list(down[0].values()))
        assert list(second.values()) == pytest.approx(list(down[1].values()))
    assert program.nfe == solver.nfe(3) == 3 + 2 * 2
    assert (solver.name, solver.prediction, solver.nfe_per_step) == ("dpm++1m-restart", "data", 1)
    assert (solver.stochastic, solver.weak_order, solver.eta, solver.sigma_data) == (True, None, 0.0, 1.0)
    noisy = sg.Restart(sg.schemes.Rosenbrock(2, sigma_data=0.25, eta=0.5))
    assert (noisy.eta, noisy.sigma_data) == (0.5, 0.25)


def test_restarts_scale_with_alpha() -> None:
    """x alpha_max/alpha_min + alpha_max sqrt(s_max^2 - s_min^2) z, on a process with signal that fades."""
    vp = sg.VPSDE()
    low = node(0.2, vp)
    s_max = node(0.5, vp).noise_level
    rows = table(sg.Restart(sg.DDIM(), s_min=low.noise_level * 1.01, s_max=s_max, n_steps=1), (1.0, 0.2, 0.1), vp)
    alpha = node(0.5, vp).alpha
    up = {"x1": alpha / low.alpha, "z1": alpha * math.sqrt(s_max**2 - low.noise_level**2)}
    assert list(rows[1].values()) == pytest.approx(list(up.values()), rel=1e-9)


def test_restarts_need_a_grid_that_covers_them() -> None:
    """Ends included, and asked for before the first step alone; the history of the last pass goes on."""
    edges = sg.Restart(sg.DDIM(), s_min=1.0, s_max=4.0, n_steps=1)
    assert edges.compile(EDM, sg.Grid([4.0, 1.0])).nfe == 2
    for s_min, s_max in ((0.9, 4.0), (1.0, 4.1)):
        with pytest.raises(ValueError, match=r"this one runs from 4 to 1"):
            sg.Restart(sg.DDIM(), s_min=s_min, s_max=s_max).compile(EDM, sg.Grid([4.0, 1.0]))
    rows = table(sg.Restart(sg.schemes.LMS(2), s_min=1.0, s_max=3.0, n_steps=2), (4.0, 2.0, 1.0, 0.5))
    assert list(rows[-1]) == ["x6", "e4", "e6"]


def test_ancestral_noise_names_itself() -> None:
    """What it is made of, and at most weak order 2."""
    solver = sg.schemes.AncestralNoise(sg.DPMSolver(2))
    assert (solver.name, solver.prediction, solver.eta, solver.stochastic) == ("dpm2-ancestral", "noise", 1.0, True)


# --- Runge-Kutta and Heun --------------------------------------------------------------------------------------------


def test_tableaus_of_the_literature() -> None:
    """Nodes, weights and orders as printed."""
    known = {
        sg.tableaus.EULER: ((0,), (1,), 1),
        sg.tableaus.MIDPOINT: ((0, 1 / 2), (0, 1), 2),
        sg.tableaus.HEUN2: ((0, 1), (1 / 2, 1 / 2), 2),
        sg.tableaus.RALSTON: ((0, 2 / 3), (1 / 4, 3 / 4), 2),
        sg.tableaus.RK3: ((0, 1 / 2, 1), (1 / 6, 2 / 3, 1 / 6), 3),
        sg.tableaus.RK4: ((0, 1 / 2, 1 / 2, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    }
    for tableau, (c, b, order) in known.items():
        assert (tableau.c, tableau.b, tableau.order) == (c, b, order)
    assert sg.tableaus.RK3.a == ((), (1 / 2,), (-1, 2))
    assert sg.tableaus.RK4.a == ((), (1 / 2,), (0, 1 / 2), (0, 0, 1))
    assert sg.RungeKutta().tableau == sg.tableaus.RK4
    assert repr(sg.tableaus.RK4) == "Tableau('rk4', 4 stages)"
    assert (sg.Tableau([[]], [1]).name, sg.Tableau([[]], [1]).source) == ("tableau", "user")


ORDERS: list[tuple[list[list[float]], list[float], int]] = [  # each fails one condition of the next order
    ([[], [1 / 2]], [1 / 2, 1 / 2], 1),  # b c = 1/4
    ([[], [1 / 2], [1 / 4, 1 / 4]], [0, 0.5, 0.5], 2),  # b c^2 = 1/4
    ([[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4], 3),  # Heun's third-order method
    ([[], [1 / 2], [3 / 4 - 1e-3, 1e-3]], [2 / 9, 1 / 3, 4 / 9], 2),  # b A c
    ([[], [1 / 2], [0, 3 / 4]], [2 / 9, 1 / 3, 4 / 9], 3),  # Ralston's third-order method
    ([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8], 4),  # Kutta's 3/8 rule
]


@pytest.mark.parametrize("a, b, order", ORDERS)
def test_orders_of_tableaus(a: list[list[float]], b: list[float], order: int) -> None:
    """From Butcher's conditions, and no more than they say."""
    assert sg.Tableau(a, b).order == order


def test_order_conditions_have_a_tolerance() -> None:
    """RK4 with b A A c = 1/24 off by half of 1e-10 is of order 4, by one and a half times of order 3."""
    for error, order in ((0.5e-10, 4), (1.5e-10, 3)):
        change = 24 * error  # which leaves the other conditions as they are, since c2 = c3
        assert sg.Tableau([[], [1 / 2], [0, 1 / 2], [0, -change, 1 + change]], sg.tableaus.RK4.b).order == order


def test_orders_from_0_to_8() -> None:
    """Weights that do not sum to 1, errors as large as the tolerance, and no tree of more than 8 nodes."""
    assert order_of(((),), (0.5,)) == 0
    assert order_of(((),), (1.0,)) == 1
    assert order_of(((),), (1.0,), tolerance=0.5) == 8  # b c misses 1/2 by 1/2, and no condition is missed by more


def test_tableaus_are_checked() -> None:
    """Rows, weights and nodes; rounding near 0 and 1 is removed, and no more than rounding."""
    for a, b, text in (
        ([[], [1, 2]], [0, 1], r"rows of lengths 0..1, got \[0, 2\]"),
        ([[]], [0.9], "must sum to 1, got 0.9"),
        ([[]], [1 + 1e-8], "must sum to 1"),
        ([[], [1.5]], [0, 1], r"must lie in \[0, 1\], got \(0.0, 1.5\)"),
        ([[], [-0.5]], [0, 1], r"must lie in \[0, 1\]"),
        ([[], [1 + 1.5e-12]], [0, 1], r"must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=text):
            sg.Tableau(a, b)  # type: ignore[arg-type]
    assert sg.Tableau([[], [1 + 0.5e-12]], [0, 1]).c == (0.0, 1.0)
    assert sg.Tableau([[], [1 - 1.5e-12]], [0, 1]).c == (0.0, 1 - 1.5e-12)
    assert sg.Tableau([[], [0.75]], [0, 1]).c == (0.0, 0.75)
    assert sg.Tableau([[], [1e-12]], [0, 1]).c == (0.0, 1e-12)
    with pytest.raises(ValueError, match="must sum to 1"):
        sg.Tableau([[], [0.5]], [0, 1 + 2e-9])


def test_runge_kutta_s_steps() -> None:
    """Stages at t + c h with the tableau's coefficients times h."""
    rows = table(sg.RungeKutta(sg.tableaus.RK3), (4.0, 2.0))
    same(
        rows,
        [{"x0": 1, "e0": -1}, {"x0": 1, "e0": 2, "e1": -4}, {"x0": 1, "e0": -1 / 3, "e1": -4 / 3, "e2": -1 / 3}],
    )
    program = sg.RungeKutta(sg.tableaus.RK3).compile(EDM, sg.Grid([4.0, 2.0]))
    assert [stage.t for stage in program.stages] == [4, 3, 2, 2]
    assert program.prediction == "drift"


def churned(solver: sg.Heun, *times: float) -> list[float]:
    """Coefficients of a step's noise at its raised state, 0 for a step without; for the steps of a grid."""
    program = solver.compile(EDM, sg.Grid(times))
    starts = [k for k, stage in enumerate(program.stages) if stage.node]
    return [dict(program.stages[k + 1].noises).get(j, 0.0) for j, k in enumerate(starts[:-1])]


def test_churn() -> None:
    """gamma = min(S_churn / N, sqrt(2) - 1) with N noise levels: s_hat = (1 + gamma) s, noise sqrt(s_hat^2 - s^2)."""
    assert churned(sg.Heun(s_churn=0.75), 4.0, 2.0, 1.0) == pytest.approx([3.0, 1.5])
    assert churned(sg.Heun(s_churn=3.0), 4.0, 2.0, 1.0) == pytest.approx([4.0, 2.0])  # gamma at its limit
    assert churned(sg.Heun(s_churn=0.75, s_noise=1.5), 4.0, 2.0) == pytest.approx([1.5 * 4 * math.sqrt(1.375**2 - 1)])
    program = sg.Heun(s_churn=0.75).compile(EDM, sg.Grid([4.0, 2.0, 1.0]))
    assert [stage.t for stage in program.stages] == pytest.approx([4, 5, 2, 2, 2.5, 1, 1])
    same(
        table(sg.Heun(s_churn=0.75))[:3],
        [{"x0": 1, "z0": 3}, {"x0": 1, "e1": -3, "z0": 3}, {"x0": 1, "e1": -3 / 2, "e2": -3 / 2, "z0": 3}],
    )


def test_churn_within_its_limits() -> None:
    """S_tmin and S_tmax belong to the stretch with churn; the level of T is never exceeded."""

    def noisy(**options: float) -> list[bool]:
        program = sg.Heun(s_churn=0.75, **options).compile(EDM, sg.Grid([8.0, 4.0, 2.0, 1.0]))
        starts = [k for k, stage in enumerate(program.stages) if stage.node]
        return [not math.isclose(program.stages[k + 1].t, program.stages[k].t / 2) for k in starts[:-1]]

    assert noisy() == [True, True, True]
    assert noisy(s_tmin=4.0) == [True, True, False]
    assert noisy(s_tmax=4.0) == [False, True, True]
    assert noisy(s_tmin=4.0, s_tmax=4.0) == [False, True, False]
    top = sg.Heun(s_churn=0.75).compile(sg.EDMSDE(1.0, 4.0), sg.Grid([4.0, 3.5, 1.0]))
    assert max(stage.t for stage in top.stages) == 4.0
    vp = sg.VPSDE()
    s, t = node(0.5, vp), node(0.3, vp)
    up, euler, end = table(sg.Heun(s_churn=0.5), (0.5, 0.3), vp)
    hat = 1.25 * s.noise_level
    alpha, h = 1 / math.sqrt(1 + hat**2), t.alpha * (t.noise_level - hat)
    raised = {"x0": 1 / s.alpha, "z0": 0.75 * s.noise_level}  # in x / alpha
    assert up == pytest.approx({key: alpha * c for key, c in raised.items()}, rel=1e-9)
    level = {key: t.alpha * c for key, c in raised.items()}
    assert euler == pytest.approx({**level, "e1": h}, rel=1e-9)
    assert end == pytest.approx({**level, "e1": h / 2, "e2": h / 2}, rel=1e-9)
    assert t.lam > s.lam
    assert (sg.Heun(s_churn=0.5).stochastic, sg.Heun().stochastic) == (True, False)


# --- Correctors ------------------------------------------------------------------------------------------------------


def test_defaults_of_the_correctors() -> None:
    """The papers' constants."""
    assert repr(sg.Langevin()) == "Langevin(snr=0.16, n_steps=1, norm='expected', data_std=0.0)"
    assert repr(sg.schemes.AnnealedLangevin()) == "AnnealedLangevin(step_ratio=0.2, n_steps=100)"
    assert sg.PredictorCorrector(sg.DDIM(), sg.Langevin()).sequence == "PC"
    assert sg.PredictorCorrector(sg.DDIM(), sg.Langevin()).stochastic and sg.schemes.AnnealedLangevin().stochastic
    assert sg.PredictorCorrector(sg.DDIM(), sg.Langevin(), "PC", sequence="CP").sequence == "CP"


def test_langevin_s_update() -> None:
    """epsilon = 2 a (r |z|/|s|)^2 with the norms of each sample, or of the batch on average; a number of its own."""
    x, s = torch.zeros(2, 2, dtype=F64), column(3.0, 4.0, 6.0, 8.0).reshape(2, 2)  # |s| = 5, 10
    z = column(1.0, 0.0, 0.0, 3.0).reshape(2, 2)  # |z| = 1, 3
    ratios = {"sample": (1 / 5, 3 / 10), "batch": (2 / 7.5, 2 / 7.5)}
    for norm, ratio in ratios.items():
        mean, added = sg.Langevin(snr=0.5, norm=norm).update(x + 1, s, z, 0.25)
        epsilon = [2 * 0.25 * (0.5 * q) ** 2 for q in ratio]
        for row in (0, 1):
            assert mean[row].tolist() == pytest.approx([1 + epsilon[row] * v for v in s[row].tolist()])
            assert added[row].tolist() == pytest.approx([math.sqrt(2 * epsilon[row]) * v for v in z[row].tolist()])
    mean, added = sg.Langevin(norm="sample").update(x + 1, 0 * s, z, 1.0)  # no score, no move
    assert (mean.tolist(), added.tolist()) == ([[1, 1], [1, 1]], [[0, 0], [0, 0]])
    mean, added = sg.Langevin().update(x + 1, s, z, 0.5)
    assert (mean.tolist(), added.tolist()) == ([[2.5, 3], [4, 5]], [[1, 0], [0, 3]])


def test_langevin_s_factor() -> None:
    """Published: (alpha_i / alpha_(i+1))^2 to the next cleaner node, t = 0 after the last. Ours: none."""
    grid = sg.Grid([0.75, 0.5, 0.25])
    flow = sg.RectifiedFlowSDE()
    factors = [1 / 4, 4 / 9, 9 / 16]
    for norm in ("sample", "batch"):
        assert sg.Langevin(norm=norm).constants(flow, grid) == pytest.approx(factors)
        assert sg.Langevin(norm=norm).constants(DoubleWell(), grid) == [1.0, 1.0, 1.0]
    with pytest.raises(TypeError, match=r"Langevin\(\) takes its step size from alpha\(t\) and sigma\(t\)"):
        sg.Langevin().constants(DoubleWell(), grid)
    # On flow alpha = 1 - t and sigma = t.
    known = [2 * 0.1**2 * t**2 for t in grid.times]
    assert sg.Langevin(0.1).constants(flow, grid) == pytest.approx(known)
    wide = [2 * 0.1**2 * (t**2 + (1 - t) ** 2 * 9) for t in grid.times]
    assert sg.Langevin(0.1, data_std=3.0).constants(flow, grid) == pytest.approx(wide)
    annealed = sg.schemes.AnnealedLangevin(step_ratio=0.5)
    assert annealed.constants(EDM, sg.Grid([4.0, 2.0, 1.0])) == [8.0, 2.0, 0.5]
    mean, added = annealed.update(column(1.0), column(2.0), column(3.0), 0.25)
    assert (float(mean), float(added)) == (1.25, 1.5)


class Halving(Corrector):
    """Halves the state and adds the noise's constant, here 1 a node."""

    n_steps = 2

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        return x / 2, torch.full_like(x, constant)


class Network:
    """Stands for a bound model."""

    def predict(self, target: str, x: Tensor, t: float) -> Tensor:
        return x


@pytest.mark.parametrize("mean", [False, True])
def test_correctors_at_a_node(mean: bool) -> None:
    """n_steps updates with their noise, without the noise of the very last one if the run ends in a mean."""
    grid = sg.Grid([4.0, 2.0, 1.0])
    correct = Halving().corrector(EDM, grid, Network(), stream(1), mean=mean)
    for i in range(3):
        x = float(correct(torch.full((1, 1), 4.0), i))
        assert x == ((4 / 2 + 1) / 2 + 1 if i < 2 or not mean else (4 / 2 + 1) / 2)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("order", ["PC", "CP"])
def test_predictor_corrector_s_nodes(order: str, mean: bool) -> None:
    """PC corrects all nodes but the first, CP all but the last; who has the last word leaves its noise out."""
    grid = sg.Grid([4.0, 2.0, 1.0])
    outer = sg.PredictorCorrector(sg.PredictorCorrector(sg.DDIM(eta=1.0), Halving(), "CP"), Halving(), order)
    inner_hook, hook = outer.hooks(EDM, grid, Network(), stream(1), mean=mean)
    corrected, no_noise = (4 / 2 + 1) / 2 + 1, (4 / 2 + 1) / 2
    last = no_noise if mean else corrected
    expected = [4.0, corrected, last] if order == "PC" else [corrected, corrected, 4.0]
    four = torch.full((1, 1), 4.0)
    assert [float(hook(four, i)) for i in range(3)] == expected
    assert [float(inner_hook(four, i)) for i in range(3)] == [corrected, corrected, 4.0]
    program = sg.DDIM(eta=1.0).compile(EDM, grid)
    ended = sg.PredictorCorrector(sg.DDIM(eta=1.0), Halving(), order).end_in_mean(program)
    assert bool(ended.stages[-1].noises) is (order == "PC")


@pytest.mark.parametrize("order", ["PC", "CP"])
def test_a_predictor_s_own_hooks_end_in_a_mean_with_cp(order: str) -> None:
    """The predictor's hooks are told of the mean only where they have the last word."""
    told: list[bool] = []

    class Hooked(sg.DDIM):
        def hooks(self, sde: Any, grid: Any, model: Any, noise: Any, *, mean: bool) -> tuple[Any, ...]:
            told.append(mean)
            return ()

    solver = sg.PredictorCorrector(Hooked(), Halving(), order)
    for mean in (False, True):
        solver.hooks(EDM, sg.Grid([4.0, 2.0]), Network(), stream(1), mean=mean)
    assert told == [False, order == "CP"]


# --- Registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REGISTRY, *ADAPTIVE])
def test_the_registry(name: str) -> None:
    """What the names stand for, their orders, cost and grids, as in the table that a person has looked at."""
    assert golden.expected().get(name) == golden.registry(name), "if that is meant: python -m tests.golden"


def test_the_registry_has_no_other_names() -> None:
    """Nothing has left it, and the table prints all of it in its order."""
    table = sg.solvers()
    assert list(golden.expected()) == list(table) == [*REGISTRY, *ADAPTIVE]
    assert list(table.fixed) == list(REGISTRY)
    assert [row[0] for row in table.rows()] == list(table)
    assert len(table) == len(REGISTRY) + len(ADAPTIVE)


def test_the_registry_as_text() -> None:
    """Columns as wide as their widest cell, under a line; sources that are longer go on below."""
    long = dataclasses.replace(sg.schemes.ExponentialAdams(), source="Someone, 2024, arXiv:2401.00001; " * 2 + "end")
    fixed = {"a": sg.DDIM(), "longer": sg.Heun(s_churn=1.0), "b": long}
    lines = str(SolverTable(fixed, {"c": sg.schemes.GGF()})).splitlines()
    assert lines[0] == "name    order  weak  NFE   grid (VP / EDM)   source"
    assert lines[1].startswith("------  -----  ----  ----  ----------------  ---")
    assert lines[2] == "a       1      -     1     uniform / karras  Song, Meng & Ermon, 2021, arXiv:2010.02502"
    assert lines[3].startswith("longer  2      2     2     karras            Karras")
    assert [line[:2].strip() for line in lines[4:]] == ["b", "", "c"]
    assert lines[5] == " " * 45 + "arXiv:2401.00001; end"
    assert max(map(len, lines)) == len(lines[1]) == WIDTH
    assert max(map(len, str(sg.solvers()).splitlines())) == WIDTH


def test_what_results_print() -> None:
    """What a person wants to see, in a line or a small table."""
    points = torch.eye(3)
    assert repr(sg.oracles.Gaussian(points[0], 1.0)) == "Gaussian(one component of shape (3,))"
    assert repr(sg.oracles.GaussianMixture(points, 0.1)) == "GaussianMixture(3 components of shape (3,))"
    assert repr(sg.oracles.Empirical(points, 0.1)) == "Empirical(3 points of shape (3,), bandwidth 0.1)"
    info = sg.options.StepInfo(1, 4, 0.5, 0.25, points, None, 2)
    assert repr(info) == "StepInfo(step 2 of 4, t=0.5 -> 0.25, x=(3, 3), nfe=2)"

    order = OrderMeasurement((10, 20, 40), (0.04, 0.01, 0.0025))
    assert str(order).splitlines() == [
        " steps     error  order", "    10  4.00e-02", "    20  1.00e-02   2.00", "    40  2.50e-03   2.00",
        "order 2.00",
    ]  # fmt: skip
    noisy = OrderMeasurement((10, 20), (0.04, 0.01), (1e-4, 1e-4))
    assert repr(noisy).splitlines()[1:] == [
        "    10  4.00e-02 +- 1e-04", "    20  1.00e-02 +- 1e-04   2.00", "order 2.00 +- 0.01",
    ]  # fmt: skip

    vp = sg.VPSDE()
    score = sg.oracles.Gaussian(points[0], 1.0).score(vp)
    found = sg.log_prob(score, vp, torch.zeros(6, 3), trace="exact", method=FixedGrid(8))
    text = repr(found)
    assert text.startswith(", ".join([f"{float(found.value[0]):.3f} +- 0"] * 4) + ", ... for 6 samples nats; mean ")
    assert str(found.protocol) in text
    assert text.endswith(f"{found.nfe} network calls)")


def test_the_registry_as_a_mapping() -> None:
    """Names of other libraries lead there, adaptive ones too; others are no keys; a notebook shows all of them."""
    table = sg.solvers()
    assert table["ddim"] == sg.DDIM()
    assert table["dpmpp_2m"] == table["dpm++2m"]
    assert table["dopri5"] == sg.Adaptive(sg.tableaus.DOPRI5)
    assert "ddim" in table and "dopri5" in table and "unipc_3" not in table and 3 not in table
    assert dict(table) == table.fixed | table.adaptive
    with pytest.raises(KeyError):
        table["nothing"]
    shown = table._repr_html_()
    assert shown.count("<tr>") == len(table) + 1
    assert all(f"<td>{name}</td>" in shown for name in table)
    assert "Zhang &amp; Chen" in shown


def test_unknown_names_are_met_with_near_ones() -> None:
    """The four nearest, the best first."""
    for name, nearest in (("dpm++9", "dpm++"), ("eulr-xx", "euler"), ("unipc33", "unipc3"), ("zzzzzz", "")):
        with pytest.raises(ValueError, match="unknown solver") as error:
            resolve(name)
        shown = re.findall(r"'([^']+)'", str(error.value).split("did you mean")[1])
        assert set(shown) <= set(REGISTRY)
        assert len(shown) == 4
        assert shown[0].startswith(nearest)
    assert resolve("ddim") == sg.DDIM()
    assert resolve(sg.DDIM()) == sg.DDIM()
    with pytest.raises(TypeError, match="the class DDIM: call it"):
        resolve(sg.DDIM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DDIM", "ddim"),
        ("PC", "pc"),
        ("euler_a", "euler-ancestral"),
        ("euler_ancestral", "euler-ancestral"),
        ("Heun", "heun"),
        ("lms", "lms4"),
        ("dpm_2", "dpm2"),
        ("dpm_2_ancestral", "dpm2-ancestral"),
        ("dpmpp_2m", "dpm++2m"),
        ("DPM++2M", "dpm++2m"),
        ("dpmpp_2s_ancestral", "dpm++2s-ancestral"),
        ("dpmpp_sde", "sde-dpm++2s"),
        ("dpmpp_2m_sde", "sde-dpm++2m"),
        ("dpmpp_3m_sde", "sde-dpm++3m"),
        ("ipndm", "ipndm4"),
        ("ipndm_v", "ipndm-v4"),
        ("seeds_2", "seeds2"),
        ("er_sde", "er-sde3"),
        ("sa_solver", "sa-solver"),
    ],
)
def test_names_of_other_libraries(theirs: str, ours: str) -> None:
    """k-diffusion's, ComfyUI's and the papers' spellings are the registry's names."""
    assert resolve(theirs) == resolve(ours) == REGISTRY[ours]()


# --- Programs and their tracing --------------------------------------------------------------------------------------

ZERO = Stage(2.0, evaluate=True, node=True)
END = Stage(1.0, states=((0, 1.0),), evals=((0, 0.5),), node=True)


def test_programs_are_checked() -> None:
    """Where they start and end, what they refer to, and that their numbers are finite."""
    ok = Program("p", "data", (ZERO, END))
    assert (ok.eta, ok.sigma_data, ok.nfe, ok.steps, ok.times, ok.stochastic) == (0.0, 1.0, 1, 1, (2.0, 1.0), False)
    start, ends = "starts with the initial state", "starts and ends at a node"
    wrong: list[tuple[tuple[Stage, ...], str]] = [
        ((), start),
        ((dataclasses.replace(ZERO, states=((0, 1.0),)), END), start),
        ((dataclasses.replace(ZERO, evals=((0, 1.0),)), END), start),
        ((dataclasses.replace(ZERO, node=False), END), ends),
        ((ZERO, dataclasses.replace(END, node=False)), ends),
        ((ZERO, Stage(1.0, states=((0, math.inf),), node=True)), "coefficient inf on state 0 in stage 1, at t=1"),
        ((ZERO, Stage(1.0, noises=((3, math.nan),), node=True)), "coefficient nan on noise 3"),
        ((ZERO, Stage(1.0, states=((1, 1.0),), node=True)), "stage 1 refers to state 1, which does not exist yet"),
        ((ZERO, Stage(1.0, evals=((-1, 1.0),), node=True)), "stage 1 refers to eval -1"),
        ((Stage(2.0, node=True), END), "stage 1 refers to eval 0, which is not evaluated"),
    ]
    for stages, text in wrong:
        with pytest.raises(ValueError, match=text):
            Program("p", "data", stages)
    Program("p", "data", (ZERO, Stage(1.0, states=((0, 1.0),), noises=((7, 1.0),), node=True)))
    assert hash(ok) == hash(Program("p", "data", (ZERO, END)))
    assert hash(ok) != hash(Program("q", "data", (ZERO, END)))
    assert hash(ok) != hash(Program("p", "data", (ZERO, dataclasses.replace(END, t=0.5))))


def test_programs_know_their_noise() -> None:
    """Any stage's noise makes a program stochastic; the last stage's own can be left out."""
    noisy = Stage(1.5, states=((0, 1.0),), noises=((0, 1.0),))
    last = Stage(1.0, states=((1, 1.0),), noises=((0, 0.5), (1, 2.0)), node=True)
    program = Program("p", "data", (ZERO, noisy, last))
    assert program.stochastic
    assert program.without_final_noise().stages == (ZERO, noisy, dataclasses.replace(last, noises=((0, 0.5),)))
    text = str(program).splitlines()
    assert text[0] == "p: 1 steps, 1 evaluations of the data"
    assert text[1:] == [
        "*e x0 (t=2) = initial state",
        "   x1 (t=1.5) = +1 x0 +1 z0",
        "*  x2 (t=1) = +1 x1 +0.5 z0 +2 z1",
    ]
    assert Program.from_json(program.to_json()) == program
    for text_ in ("[]", "{}", '{"stages": [{}]}'):
        with pytest.raises(ValueError, match="not the JSON of a program"):
            Program.from_json(text_)


def test_forms() -> None:
    """Linear forms add, scale and negate; terms of coefficient 0 are left out of a table."""
    x, e = Form({("states", 0): 1.0}), Form({("evals", 2): 4.0, ("evals", 1): 0.0})
    assert (x + x + e).terms == {("states", 0): 2.0, ("evals", 2): 4.0, ("evals", 1): 0.0}
    assert (-e).terms == {("evals", 2): -4.0, ("evals", 1): 0.0}
    assert (e / 8).terms[("evals", 2)] == 0.5
    assert (3 * e).terms[("evals", 2)] == (e * 3).terms[("evals", 2)] == 12.0
    assert (x - 2 * x).terms == {("states", 0): -1.0}
    assert e.of("evals") == ((2, 4.0),)
    assert (e + Form({("evals", 0): 1.0})).of("evals") == ((0, 1.0), (2, 4.0))
    assert e.of("states") == ()
    assert Form.combine([2.0, 3.0, 5.0], [x, e]).terms == {("states", 0): 2.0, ("evals", 2): 12.0, ("evals", 1): 0.0}
    assert Form.combine([], []).terms == {}


def traced(times: Sequence[float] = (4.0, 2.0, 1.0, 0.5), i: int = 0, sde: sg.SDE = EDM) -> tuple[ProgramBuilder, Step]:
    """A tracer and its step i, with the states of the steps before."""
    tracer = ProgramBuilder(sde, tuple(times))
    for j in range(i):
        tracer.add(Form({("states", j): 0.5}), times[j + 1], node=True)
    return tracer, Step(tracer, tracer.path, i)


def test_what_a_step_sees() -> None:
    """Its number, its nodes, the path's last, and its own state."""
    _, k = traced(i=1)
    assert (k.i, k.n, k.start.t, k.end.t, k.last.t) == (1, 3, 2.0, 1.0, 0.5)
    assert k.x.terms == {("states", 1): 1.0}
    assert k.memory == {}
    other = k.with_end(node(0.7))
    assert (other.i, other.start.t, other.end.t) == (1, 2.0, 0.7)


def test_evaluations_are_asked_for_once() -> None:
    """The step's own state is not copied, other states are stages; the history has each step's evaluation once."""
    tracer, k = traced()
    first = k.evaluate(k.x, k.start)
    again = k.evaluate(k.x, k.start)
    assert first.terms == again.terms == {("evals", 0): 1.0}
    assert len(tracer.stages) == 1
    assert tracer.stages[0].evaluate
    assert len(tracer.path.history) == 1
    inner = k.evaluate(k.x, k.end)  # the same state at another time is another stage
    assert inner.terms == {("evals", 1): 1.0}
    assert k.evaluate(0.5 * k.x, k.start).terms == {("evals", 2): 1.0}
    noise = k.noise()
    assert k.evaluate(noise, k.start).terms == {("evals", 3): 1.0}
    assert k.evaluate(1.0 * first, k.start).terms == {("evals", 4): 1.0}
    assert k.evaluate(k.x + first, k.start).terms == {("evals", 5): 1.0}
    assert len(tracer.path.history) == 1
    assert [stage.t for stage in tracer.stages] == [4.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    assert [stage.node for stage in tracer.stages] == [True] + [False] * 5
    assert k.keep(k.x, k.start).terms == k.x.terms
    assert k.keep(2 * k.x, k.start).terms == {("states", 6): 1.0}


def test_noises_are_numbered() -> None:
    """From 0, one at a time."""
    tracer, k = traced()
    assert [k.noise().terms for _ in range(3)] == [{("noises", m): 1.0} for m in range(3)]
    assert tracer.n_noises == 3


def test_the_history() -> None:
    """Newest first, as far as there is one."""
    tracer, k = traced()
    forms = [Form({("evals", j): 1.0}) for j in range(3)]
    for t, form in zip((4.0, 3.0, 2.0), forms, strict=True):
        k.remember(node(t), form)
    assert [n.t for n, _ in k.known(2)] == [2.0, 3.0]
    assert [n.t for n, _ in k.known(3)] == [n.t for n, _ in k.known(9)] == [2.0, 3.0, 4.0]
    assert [n.t for n, _ in k.known(1)] == [2.0]
    assert k.previous(0) == (tracer.path.history[2][0], forms[2])
    assert k.previous(2)[1] is forms[0]


def test_times_inside_a_step() -> None:
    """Between T and the grid's end; within rounding of a step's ends they are its ends, beyond by rounding moved in."""
    tracer, k = traced((4.0, 2.0, 1.0), 1)
    assert k.at(2 * (1 + 1e-13)) is k.start
    assert k.at(1 * (1 + 1e-13)) is k.end
    assert k.at(2 * (1 + 1.5e-12)) is not k.start
    assert k.at(4.0) is not k.start
    assert k.at(1.5).t == 1.5
    assert k.at(1.5) is k.at(1.5)
    assert k.at(1 - 3e-9).t == k.at(1 - 1e-9 * 80).t == 1.0  # up to 1e-9 of the largest time
    for t in (1 - 100e-9, 80 * (1 + 1.5e-9), 0.5, 100.0):
        with pytest.raises(ValueError, match=r"lies outside \[1.0, 80.0\]"):
            k.at(t)
    assert k.at(80 * (1 + 0.5e-9)).t == k.at(80 * (1 + 1e-9)).t == 80.0
    assert k.at(80.0).t == 80.0
    assert k.at_noise_level(3.0).t == pytest.approx(3.0)
    assert k.at_noise_level(80.0).t == k.at_noise_level(100.0).t == 80.0
    assert tracer.node(1.5) is tracer.node(1.5)
    _, first = traced((4.0, 2.0, 1.0))
    assert first.at(1 + 1e-13).t == 1 + 1e-13  # the end of another step


def test_times_up_to_the_grid_s_start() -> None:
    """A grid that starts beyond T, as a user's own process may have it, reaches up to its own start."""
    _, k = traced((100.0, 2.0, 1.0), 1)
    assert k.at(90.0).t == 90.0
    with pytest.raises(ValueError, match=r"\[1.0, 100.0\]"):
        k.at(101.0)
    _, k = traced((0.5, 1.0, 2.0))  # and so does one that runs up, from data to noise
    assert k.at(0.7).t == 0.7
    with pytest.raises(ValueError, match=r"\[0.5, 80.0\]"):
        k.at(0.4)


@dataclasses.dataclass(frozen=True)
class Fixed(sg.Solver):
    """A solver whose facts are given."""

    prediction: str = "drift"
    eta: float = 0.5
    sigma_data: float = 0.25
    name = "fixed"
    order = 1
    source = "here"

    def step(self, k: Step) -> Form:
        return k.x + 2 * k.evaluate(k.x, k.start)


def test_programs_carry_what_their_prediction_needs() -> None:
    """eta with the drift, sigma_data with the velocity, and neither with anything else."""
    expected = {"drift": (0.5, 1.0), "v": (0.0, 0.25), "data": (0.0, 1.0)}
    for prediction, pair in expected.items():
        program = Fixed(prediction).compile(EDM, sg.Grid([2.0, 1.0]))
        assert (program.name, program.prediction, program.eta, program.sigma_data) == ("fixed", prediction, *pair)
        assert [stage.t for stage in program.stages] == [2.0, 1.0]


def test_solvers_by_default() -> None:
    """What a solver is that says nothing: deterministic, one call a step, no hooks."""

    class Plain(sg.Solver):
        name, order, prediction, source = "plain", 1, "data", "here"

        def step(self, k: Step) -> Form:
            return k.x / k.start.alpha / 0.0

    plain = Plain()
    assert (plain.weak_order, plain.nfe_per_step, plain.eta, plain.sigma_data) == (None, 1, 0.0, 1.0)
    assert (plain.stochastic, plain.nfe(7), plain.steps(7), plain.fit(7)) == (False, 7, 7, (plain, 7))
    assert plain.steps(-1) == 0
    grid = sg.Grid([2.0, 1.0])
    assert plain.hooks(EDM, grid, None, stream(1), mean=True) == ()
    with pytest.raises(ValueError, match=r"plain divides by zero in the step from t=2.0 to t=1.0"):
        plain.compile(EDM, grid)


def test_solvers_without_a_hash_are_compiled_too() -> None:
    """A list among the options only costs the cache; other errors are not hidden by it."""

    @dataclasses.dataclass
    class Listed(sg.Solver):
        options: list[float]
        name = "listed"
        order = 1
        prediction = "data"
        source = "here"

        def step(self, k: Step) -> Form:
            return self.options[0] * k.x

    grid = sg.Grid([2.0, 1.0])
    assert Listed([0.5]).compile(EDM, grid).stages[1].states == ((0, 0.5),)
    with pytest.raises(TypeError, match="float"):
        Fixed("data", eta=0.0).compile(EDM, grid).stages[1].states[0] + 1.0  # type: ignore[operator]

    class Wrong(Fixed):
        def step(self, k: Step) -> Form:
            raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        Wrong().compile(EDM, grid)


# --- The executor ----------------------------------------------------------------------------------------------------


def test_runs_report_their_nodes_and_outputs() -> None:
    """States at the nodes, outputs at the first evaluation after each."""
    program = sg.Heun().compile(EDM, sg.Grid([4.0, 2.0, 1.0]))
    model = bind(sg.from_noise(lambda x, t: torch.ones_like(x), EDM), EDM, (4.0, 1.0))
    seen: list[tuple[int, float]] = []
    outputs: list[tuple[float, float]] = []
    x = torch.full((2, 3), 8.0, dtype=F64)
    for grad in (False, True):
        seen.clear()
        outputs.clear()
        run = execute(
            program,
            x,
            model,
            stream(2),
            on_node=lambda i, x: seen.append((i, float(x[0, 0]))),  # type: ignore[arg-type, return-value]
            on_output=lambda x, r, t: outputs.append((float(x[0, 0]), t)),
            grad=grad,
        )
        assert seen == [(0, 8.0), (1, 6.0), (2, 5.0)]
        assert outputs == [(8.0, 4.0), (6.0, 2.0)]
        assert (run.nodes, run.x.tolist()) == (3, [[5.0] * 3] * 2)
        assert x.tolist() == [[8.0] * 3] * 2
    stopped = execute(program, x, model, stream(2), on_node=lambda i, x: i == 1)
    assert (stopped.nodes, float(stopped.x[0, 0])) == (2, 6.0)


def test_runs_keep_no_graph_unless_asked() -> None:
    """Memory is reused by default; with grad every number has its history."""
    program = sg.DDIM().compile(EDM, sg.Grid([4.0, 2.0]))
    model = bind(sg.from_denoiser(lambda x, t: x / 2, EDM), EDM, (4.0, 2.0))
    x = torch.ones(1, 1, dtype=F64, requires_grad=True)
    with torch.no_grad():
        assert not execute(program, x, model, stream(1)).x.requires_grad
    (slope,) = torch.autograd.grad(execute(program, x, model, stream(1), grad=True).x.sum(), x)
    assert float(slope) == 0.75


def test_plans_of_common_tables() -> None:
    """One register for a chain, no rows where each evaluation serves the next state alone."""
    ddim = sg.DDIM().compile(EDM, sg.Grid([4.0, 2.0, 1.0]))
    plan = lower(ddim, [(0.0, 1.0)] * 3)
    assert (plan.n_slots, plan.n_registers) == (0, 1)
    assert [ins.output for ins in plan.instructions] == [None, 0.5, 0.5]
    assert [ins.beta for ins in plan.instructions] == [0.0, 0.5, 0.5]
    folded = lower(ddim, [(0.25, 2.0)] * 3)  # e = x/4 + 2 r
    assert [ins.beta for ins in folded.instructions] == [0.0, 0.625, 0.625]
    assert [ins.output for ins in folded.instructions] == [None, 1.0, 1.0]
    multistep = lower(
        sg.DPMSolverPP(2, lower_final=False).compile(EDM, sg.Grid([4.0, 2.0, 1.0, 0.5])), [(0.0, 1.0)] * 4
    )
    assert (multistep.n_slots, multistep.n_registers) == (2, 1)
    assert [ins.store is not None for ins in multistep.instructions] == [True, True, False, False]
    seeds = lower(sg.schemes.SEEDS(2).compile(EDM, sg.Grid([4.0, 2.0])), [(0.0, 1.0)] * 3)
    assert [[row is not None for _, row in ins.noises] for ins in seeds.instructions] == [[], [True], [False]]
    mixed = lower(sg.DPMSolverPP(2, lower_final=False).compile(EDM, sg.Grid([4.0, 2.0, 1.0])), [(0.5, 0.25)] * 3)
    assert mixed.instructions[0].mix == (1.0, 0.5)
    mixed = lower(sg.DPMSolverPP(2, lower_final=False).compile(EDM, sg.Grid([4.0, 2.0, 1.0])), [(0.25, 0.5)] * 3)
    assert mixed.instructions[0].mix == (0.5, 1.0)
    assert mixed.instructions[0].output is None
