"""Forward processes: their kernels against autograd, one another and independent formulas."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sgm_sde as sg
from sgm_sde.processes.discrete import _Interpolant
from sgm_sde.processes.linear import LinearNode, ScheduleSDE
from sgm_sde.testing import CheckError, check_sde
from tests.by_hand import EDM, LOG2, column
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, LINEAR

fractions = st.floats(0.0, 1.0)


def at(sde: sg.LinearSDE, u: float) -> Tensor:
    """The time at a fraction of the way from eps to T."""
    return torch.tensor(sde.eps + u * (sde.T - sde.eps), dtype=F64)


@pytest.mark.parametrize("process", LINEAR)
def test_declarations_agree(process: str) -> None:
    """Shapes, prior, drift and diffusion against autograd, semigroup, inverse, forward simulation."""
    assert len(check_sde(LINEAR[process])) == 7


@pytest.mark.parametrize("process", LINEAR)
@given(u=fractions, v=fractions, w=fractions)
def test_transitions_compose(process: str, u: float, v: float, w: float) -> None:
    """x_t | x_r is x_t | x_s after x_s | x_r, for any three times."""
    sde = LINEAR[process]
    r, s, t = (at(sde, q) for q in sorted((u, v, w)))
    (a1, b1), (a2, b2), (a, b) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
    torch.testing.assert_close(a, a1 * a2, rtol=1e-9, atol=0)
    torch.testing.assert_close(b**2, (a2 * b1) ** 2 + b2**2, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("process", LINEAR)
@given(u=fractions)
def test_time_is_the_inverse_of_log_snr(process: str, u: float) -> None:
    """time(log_snr(t)) = t to rounding."""
    sde = LINEAR[process]
    t = at(sde, u)
    torch.testing.assert_close(sde.time(sde.log_snr(t)), t, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", LINEAR)
@given(u=st.floats(1e-3, 1.0))
def test_derivatives_and_coefficients(process: str, u: float) -> None:
    """d_alpha, d_sigma, f and g are those of alpha and sigma, by autograd."""
    sde = LINEAR[process]
    t = at(sde, u).requires_grad_()
    (da,) = torch.autograd.grad(sde.alpha(t) + 0 * t, t)
    (ds,) = torch.autograd.grad(sde.sigma(t), t)
    t, alpha, sigma = t.detach(), sde.alpha(t).detach(), sde.sigma(t).detach()
    torch.testing.assert_close(sde.d_alpha(t), da, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sde.d_sigma(t), ds, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sde.f(torch.ones(1, dtype=F64), t)[0], da / alpha, rtol=1e-9, atol=1e-12)
    g2 = 2 * sigma * ds - 2 * da / alpha * sigma**2
    torch.testing.assert_close(sde.g(t) ** 2, g2, rtol=1e-8, atol=1e-12)
    (node,) = sde.nodes([float(t)])
    for got, expected in (
        (node.alpha, alpha),
        (node.sigma, sigma),
        (node.d_alpha, da),
        (node.d_sigma, ds),
        (node.g, sde.g(t)),
        (node.rate, da / alpha),
        (node.noise_level, sigma / alpha),
        (node.lam, (alpha / sigma).log()),
    ):
        assert got == pytest.approx(float(expected), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 0.99])
def test_closed_forms_from_the_literature(t: float) -> None:
    """alpha and sigma against formulas typed in again from the papers."""
    B = 0.1 * t + 0.5 * 19.9 * t**2
    assert float(sg.VPSDE().alpha(t)) == pytest.approx(math.exp(-B / 2), rel=1e-12)
    assert float(sg.VPSDE().sigma(t)) == pytest.approx(math.sqrt(1 - math.exp(-B)), rel=1e-9)
    assert float(sg.SubVPSDE().sigma(t)) == pytest.approx(1 - math.exp(-B), rel=1e-9)
    assert float(sg.SubVPSDE().g(t)) == pytest.approx(math.sqrt((0.1 + 19.9 * t) * (1 - math.exp(-2 * B))), rel=1e-9)
    assert float(sg.VESDE(0.01, 50.0).sigma(t)) == pytest.approx(0.01 * 5000**t, rel=1e-12)
    assert float(sg.VESDE(0.01, 50.0).g(t)) == pytest.approx(0.01 * 5000**t * math.sqrt(2 * math.log(5000)), rel=1e-12)
    phi = (t + 0.008) / 1.008 * math.pi / 2
    assert float(sg.CosineVPSDE().alpha(t)) == pytest.approx(
        math.cos(phi) / math.cos(0.008 / 1.008 * math.pi / 2), rel=1e-12
    )
    assert float(sg.EDMSDE().g(t)) == pytest.approx(math.sqrt(2 * t), rel=1e-12)
    assert float(sg.RectifiedFlowSDE().g(t)) == pytest.approx(math.sqrt(2 * t / (1 - t)), rel=1e-12)


@given(first=st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=30))
def test_ddpm_ladder_at_its_times(first: list[float]) -> None:
    """At the table's times the process has DDPM's kernel, between them DDPM's transitions, whatever the table that does
    not fall throughout."""
    betas = [*first, first[0]]
    sde = sg.DiscreteVPSDE(betas)
    times = torch.tensor(sde.times, dtype=F64)
    a_bar = np.cumprod(1 - np.array(betas))
    np.testing.assert_allclose(sde.alpha(times).numpy() ** 2, a_bar, rtol=1e-9)
    scale, std = sde.transition(times[:-1], times[1:])
    np.testing.assert_allclose(scale.numpy() ** 2, 1 - np.array(betas[1:]), rtol=1e-9)
    np.testing.assert_allclose(std.numpy() ** 2, betas[1:], rtol=1e-8)
    fine = torch.linspace(0, 1, 999, dtype=F64)
    assert bool((sde.integrated_beta(fine).diff() >= 0).all())


@given(steps=st.lists(st.floats(0.05, 2.0), min_size=1, max_size=30), flip=st.booleans())
def test_ncsn_ladder_at_its_times(steps: list[float], flip: bool) -> None:
    """At the ladder's times the process has its noise levels, in either order given; in between it is monotone."""
    levels = np.exp(np.cumsum([-3.0, *steps]))
    sde = sg.DiscreteVESDE(levels[::-1] if flip else levels)
    np.testing.assert_allclose(sde.sigma(torch.tensor(sde.times, dtype=F64)).numpy(), levels, rtol=1e-9)
    fine = torch.linspace(0, 1, 999, dtype=F64)
    assert bool((sde.sigma(fine).diff() > 0).all())
    assert (sde.T, sde.eps) == (1.0, 1 / len(levels))


@pytest.mark.parametrize("process", LINEAR)
def test_float32_keeps_its_digits_near_both_ends(process: str) -> None:
    """Relative error of sigma below 1e-6 down to t = 1e-6, of alpha and g wherever they are used."""
    sde = LINEAR[process]
    t32 = torch.cat([torch.logspace(-6, 0, 400), 1 - torch.logspace(-6, -1, 100)]) * sde.T
    t32 = t32[t32 <= sde.T]
    t64 = t32.double()
    for f in (sde.sigma, sde.alpha, sde.g):
        exact = f(t64)
        kept = torch.isfinite(exact) & (exact != 0)
        relative = ((f(t32).double() - exact) / exact)[kept].abs().max()
        assert relative < 1e-6, f
        assert f(t32).dtype == torch.float32


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 5), (4, 3, 2, 2), (4, 1, 2, 2, 2)])
def test_any_rank_and_a_time_per_sample(process: str, shape: tuple[int, ...]) -> None:
    """t of shape (B,) is the same as one call for each sample, for x of any rank."""
    sde = LINEAR[process]
    x = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.stack([at(sde, u) for u in (0.1, 0.4, 0.7, 1.0)])
    mean, std = sde.marginal(x, t)
    for i in range(4):
        m, s = sde.marginal(x[i : i + 1], t[i])
        torch.testing.assert_close(mean[i : i + 1], m)
        torch.testing.assert_close((std + 0 * x)[i : i + 1], s.expand_as(m))
        torch.testing.assert_close(sde.f(x, t)[i : i + 1], sde.f(x[i : i + 1], t[i]))
    assert sde.prior_log_prob(x).shape == (4,)


@pytest.mark.parametrize("process", LINEAR)
def test_prior_density_is_torch_s(process: str) -> None:
    """prior_log_prob is that of N(0, sigma(T)^2 I)."""
    sde = LINEAR[process]
    x = 0.3 * sde.prior_std * torch.ones(2, 3, 4, dtype=F64)
    normal = torch.distributions.Normal(0.0, float(sde.sigma(sde.T)))
    torch.testing.assert_close(sde.prior_log_prob(x), normal.log_prob(x).sum((1, 2)))


def test_integer_times_are_named() -> None:
    """By their dtype."""
    with pytest.raises(TypeError, match="int64"):
        sg.VPSDE().alpha(torch.tensor(1))


def test_unknown_options_of_a_process_are_refused() -> None:
    with pytest.raises(TypeError):
        sg.VPSDE(beta=3.0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: sg.VPSDE(beta_min=-1.0), "-1.0"),
        (lambda: sg.VPSDE(beta_min=30.0), "30.0"),
        (lambda: sg.VPSDE(eps=2.0), "eps=2.0"),
        (lambda: sg.VESDE(sigma_min=90.0, sigma_max=1.0), "90.0 and 1.0"),
        (lambda: sg.EDMSDE(sigma_min=0.0), "0.0"),
        (lambda: sg.EDMSDE(3.0, 2.0), "3.0 and 2.0"),
        (lambda: sg.RectifiedFlowSDE(T=1.5), "1.5"),
        (lambda: sg.CosineVPSDE(T=1.0), "1.0"),
        (lambda: sg.CosineVPSDE(s=0.0), "s must"),
        (lambda: sg.DiscreteVPSDE([0.1]), "got 1"),
        (lambda: sg.DiscreteVPSDE([0.1, 1.0]), r"betas\[1\] = 1.0"),
        (lambda: sg.DiscreteVESDE([1.0, 1.0]), "1.0 beside 1.0"),
        (lambda: sg.DiscreteVESDE([-1.0, 1.0]), "-1.0"),
        (lambda: sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=1.0), "alpha"),
        (lambda: sg.LinearSDE.from_schedule(lambda t: 1 + 9 * t, lambda t: 1 + t), "decrease"),
        (lambda: sg.LinearSDE.from_schedule(lambda t: 1.0, lambda t: t), "float"),
        (lambda: sg.VPSDE().transition(0.5, 0.4), "0.5"),
        (lambda: sg.VPSDE().f(torch.zeros(3, 2), torch.zeros(2)), r"\(2,\)"),
        (lambda: sg.VPSDE().reverse(lambda x, t: x, eta=-1.0), "-1.0"),
    ],
    ids=case_id,
)
def test_bad_input_is_named(call: Callable[..., object], text: str) -> None:
    """Each wrong argument raises, and the message holds the offending value."""
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    "call", [lambda: check_sde("vp"), lambda: sg.from_noise(lambda x, t: x, sg.VPSDE)], ids=case_id
)
def test_what_is_no_process_is_refused(call: Callable[..., object]) -> None:
    """A name and a class are none."""
    with pytest.raises(TypeError, match="sde must be a forward process"):
        call()


def test_transitions_have_shapes_on_the_device_meta() -> None:
    """Wherever one of the two times has no number."""
    without = torch.zeros(3, device="meta")
    for s, t in ((without, 0.5), (0.5, without), (without, without)):
        assert [part.shape for part in sg.VESDE().transition(s, t)] == [(3,), (3,)]


def test_slopes_of_a_schedule_in_inference_mode() -> None:
    """Autograd records nothing there, and a slope of zero would be f = 0."""
    sde = sg.LinearSDE.from_schedule(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))
    x, t = torch.ones(3, 2, dtype=F64), torch.linspace(0.1, 0.9, 3, dtype=F64)
    with torch.inference_mode():
        f, g = sde.f(x, t), sde.g(t)
        copies = sde.f(x.clone(), t.clone()), sde.g(t.clone())
    torch.testing.assert_close(f, -1.5 * torch.tan(1.5 * t)[:, None] * x)
    torch.testing.assert_close(g, (3 * torch.tan(1.5 * t)).sqrt())
    assert torch.equal(f, copies[0]) and torch.equal(g, copies[1])


def test_schedules_of_the_user_are_inverted() -> None:
    """From log-SNR to the time; beyond the ends there is none."""
    vp = sg.VPSDE()
    own = sg.LinearSDE.from_schedule(vp.alpha, vp.sigma, T=1.0, eps=1e-3)
    t = torch.linspace(1e-3, 1, 50, dtype=F64)
    torch.testing.assert_close(own.time(vp.log_snr(t)), t, rtol=1e-9, atol=0)
    assert math.isnan(float(own.time(torch.tensor(-50.0, dtype=F64))))


class Angles(sg.LinearSDE):
    """A class of the user's, of torch's functions, which take no numbers."""

    T, eps = 1.0, 1e-3

    def alpha(self, t: Any) -> Tensor:
        """Signal scale."""
        return torch.cos(1.5 * t)

    def sigma(self, t: Any) -> Tensor:
        """Noise scale."""
        return torch.sin(1.5 * t)


@pytest.mark.parametrize("method", ["alpha", "sigma", "d_alpha", "d_sigma", "rate", "g", "log_snr"])
def test_classes_of_the_user_take_numbers(method: str) -> None:
    """Times that are numbers, as those of the ends are, reach their functions as tensors, by any name."""
    function = getattr(Angles(), method)
    t = torch.tensor(0.3, dtype=F64)
    assert torch.equal(function(0.3), function(t))
    assert torch.equal(function(t=0.3), function(t))


def test_classes_of_the_user_are_schedules() -> None:
    """Samples, codes and densities as of the same functions given to `from_schedule`."""
    own = Angles()
    same = sg.LinearSDE.from_schedule(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))
    assert own.prior_std == same.prior_std
    check_sde(own)

    x = torch.ones(2, 2)
    oracle = sg.oracles.Gaussian(torch.zeros(2), 0.25)
    drawn = [sg.sample(oracle.score(sde), sde, (2, 2), nfe=8, seed=0).x for sde in (own, same)]
    densities = [sg.log_prob(oracle.score(sde), sde, x, eps=1e-3).value for sde in (own, same)]
    torch.testing.assert_close(*drawn)
    torch.testing.assert_close(*densities)


@pytest.mark.parametrize("method", ["alpha", "sigma", "d_alpha", "d_sigma", "g", "log_snr"])
def test_schedules_of_the_user(method: str) -> None:
    """from_schedule gives the built-in process back when given its alpha and sigma."""
    vp = sg.VPSDE()
    own = sg.LinearSDE.from_schedule(vp.alpha, vp.sigma, T=1.0, eps=1e-3)
    t = torch.linspace(1e-3, 1, 50, dtype=F64)

    torch.testing.assert_close(getattr(own, method)(t), getattr(vp, method)(t), rtol=1e-9, atol=1e-12)


class Wrong(sg.VPSDE):
    """A VP process with one thing off."""

    def __init__(self, what: str) -> None:
        super().__init__()
        object.__setattr__(self, "what", what)

    def beta(self, t: float | Tensor) -> Tensor:
        return super().beta(t) * (2 if self.what == "f" else 1)

    def g(self, t: float | Tensor) -> Tensor:
        return super().g(t) * (math.sqrt(2) if self.what == "g" else 1)

    def time(self, log_snr: float | Tensor) -> Tensor:
        return super().time(log_snr) * (1 if self.what != "time" else 1.01)

    def transition(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        scale, std = super().transition(s, t)
        return scale, std * (1.01 if self.what == "transition" else 1)

    @property
    def prior_std(self) -> float:
        return super().prior_std * (1.2 if self.what == "prior" else 1)

    def prior_transform(self, z: Tensor, t: float | None = None) -> Tensor:
        return super().prior_transform(z, t) * (1.2 if self.what == "sample" else 1)


@pytest.mark.parametrize("what", ["f", "g", "time", "transition", "prior", "sample"])
def test_the_check_finds_what_is_wrong(what: str) -> None:
    """check_sde raises on a factor in any declaration, and says where."""
    check_sde(Wrong("nothing"))
    with pytest.raises(CheckError):
        check_sde(Wrong(what))


class Pendulum(sg.SDE):
    """A drift that is not linear in x."""

    T, eps, prior_std = 1.0, 1e-3, 1.0  # type: ignore[assignment]

    def f(self, x: Tensor, t: float | Tensor) -> Tensor:
        return torch.sin(x) - x

    def g(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


def test_a_process_of_drift_and_diffusion_only() -> None:
    """A nonlinear process samples with solvers of the reverse drift; others say what they lack."""
    sde = Pendulum()
    assert len(check_sde(sde)) == 2
    score = lambda x, t: -x  # noqa: E731
    for solver in ("euler-maruyama", "rk4", "euler"):
        res = sg.sample(score, sde, shape=(3, 2), solver=solver, steps=20, seed=0, execution=DOUBLE)
        assert res.status.ok
    by_hand = sde.prior_sample((3, 2), seed=0, dtype=F64)
    times = np.linspace(1, 1e-3, 21)
    for t, s in itertools.pairwise(times):
        by_hand = by_hand - (t - s) * (by_hand.sin() - by_hand + by_hand / 2)
    torch.testing.assert_close(res.x, by_hand, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="denoise"):
        sg.sample(score, sde, shape=(3, 2), solver="euler", steps=5, final="denoise")
    with pytest.raises(TypeError, match="LinearSDE"):
        sg.from_noise(lambda x, t: x, sde)
    pc = sg.PredictorCorrector(sg.EulerMaruyama(), sg.Langevin(norm="batch"))
    assert sg.sample(score, sde, shape=(64, 2), solver=pc, steps=5, seed=0).nfe == 10
    with pytest.raises(TypeError, match=r"Pendulum.*norm='batch'"):
        sg.sample(score, sde, shape=(3, 2), solver=sg.PredictorCorrector(sg.EulerMaruyama(), sg.Langevin()), steps=5)


@pytest.mark.parametrize("grid", ["log-snr", "karras"])
def test_grids_that_drift_and_diffusion_do_not_have(grid: str) -> None:
    sde = Pendulum()

    with pytest.raises(TypeError, match=r"needs a process with alpha\(t\) and sigma\(t\)"):
        sg.sample(lambda x, t: -x, sde, (3, 2), solver="euler-maruyama", steps=2, grid=grid)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m", "reverse-diffusion"])
def test_solvers_that_drift_and_diffusion_do_not_have(solver: str) -> None:
    sde = Pendulum()
    score = lambda x, t: -x  # noqa: E731

    with pytest.raises(TypeError, match="Pendulum"):
        sg.sample(score, sde, shape=(3, 2), solver=solver, steps=5, seed=0)


TABLES = [sg.DiscreteVPSDE([0.1, 0.1]), sg.DiscreteVESDE([1.0, 2.0, 7.0])]
TABLES += [sg.presets.ddpm(n) for n in (50, 100)] + [sg.presets.iddpm_cosine(n) for n in (20, 100)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sde", TABLES, ids=lambda sde: f"{type(sde).__name__}-{len(sde.times)}")
def test_the_last_time_of_a_table_is_its_own(sde: sg.LinearSDE, dtype: torch.dtype) -> None:
    """time(log_snr(T)) is T on tables of any length, rounding on the way included; beyond the table it is NaN."""
    end = torch.ones((), dtype=dtype)
    assert float(sde.time(sde.log_snr(end))) == pytest.approx(1, abs=1e-4)
    assert bool(sde.time(sde.log_snr(end) - 0.1).isnan())


def test_far_log_snr_in_float32() -> None:
    """The inverse of log-SNR does not overflow where exp(-log_snr) does."""
    log_snr = torch.tensor([-80.0, -89.0, -95.0, -100.5])
    assert bool(torch.isfinite(sg.VPSDE().time(log_snr)).all())
    torch.testing.assert_close(sg.VPSDE().time(log_snr).double(), sg.VPSDE().time(log_snr.double()), rtol=1e-6, atol=0)


def test_the_flow_ends_at_one() -> None:
    """T may be 1, where the data are gone, and nothing beyond."""
    assert sg.RectifiedFlowSDE(T=1.0).T == 1.0
    with pytest.raises(ValueError, match=r"need T <= 1, got 1\.5"):
        sg.RectifiedFlowSDE(T=1.5)


def test_ladders_go_one_way_and_on_below_their_first_level() -> None:
    """Equal neighbours are refused; sigma(0) goes on by the first ratio: 1/2 below 1 and 2."""
    with pytest.raises(ValueError, match=r"strictly monotone, got 1\.0 beside 1\.0"):
        sg.DiscreteVESDE([1.0, 1.0, 2.0])
    sde = sg.DiscreteVESDE([3.0, 6.0, 12.0])
    assert float(sde.sigma(0.0)) == pytest.approx(1.5, rel=1e-12)


@pytest.mark.parametrize(
    ("knots", "end", "way"), [([-1.0, 0.0, 1.0, 2.0], 2.0, 1), ([-2.0, -1.0, 0.0, 1.0], -2.0, -1)], ids=case_id
)
def test_tables_are_inverted_up_to_rounding_beyond_their_range(knots: Any, end: float, way: int) -> None:
    """By 8 roundings of the largest value, included; what lies further outside is NaN."""
    eps = torch.finfo(F64).eps
    table = _Interpolant(np.array(knots))
    values = torch.tensor([end, end + way * 16 * eps, end + way * 18 * eps, end + way * 24 * eps], dtype=F64)
    assert table.inverse(values).isnan().tolist() == [False, False, True, True]


def test_conversions_at_a_node_without_options() -> None:
    """eta = 0 and sigma_data = 1: the flow's drift f - g^2 s / 2, and the velocity of data of variance 1."""
    sde = sg.VPSDE()
    (node,) = sde.nodes([0.4])
    assert isinstance(node, LinearNode)
    assert node.convert("score", "drift") == pytest.approx((node.rate, -(node.g**2) / 2))
    assert node.convert("score", "drift") == node.convert("score", "drift", 0.0, 1.0)
    assert node.convert("data", "v") == node.convert("data", "v", 0.0, 1.0)
    assert node.convert("data", "v") != node.convert("data", "v", 0.0, 2.0)


def test_schedules_may_return_one_value() -> None:
    """For all times."""
    sde = sg.LinearSDE.from_schedule(lambda t: torch.ones((), dtype=t.dtype), torch.exp)
    assert sde.alpha(torch.tensor([0.1, 0.2], dtype=F64)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "wrong, shown", [(lambda t: 1.0, "got float"), (lambda t: torch.ones(3, dtype=F64), r"got \(3,\)")], ids=case_id
)
def test_schedules_return_tensors_of_the_times_shape(wrong: Callable[..., object], shown: str) -> None:
    """A number and another shape are named."""
    with pytest.raises(ValueError, match=rf"alpha\(t\) must return a tensor of the shape \(257,\) of t, {shown}"):
        sg.LinearSDE.from_schedule(wrong, torch.exp)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "sections"), [(F64, 20), (torch.float32, 10)])
def test_the_inverse_asks_for_times_of_the_process_alone(dtype: torch.dtype, sections: int) -> None:
    """[0, T] cut into 64, 20 times or 10, after a look at both ends; never a time beyond T."""
    asked: list[float] = []

    class Watched(sg.LinearSDE):
        T, eps = 2.0, 1e-3

        def alpha(self, t: float | Tensor) -> Tensor:
            return torch.ones_like(torch.as_tensor(t))

        def sigma(self, t: float | Tensor) -> Tensor:
            return torch.as_tensor(t) + 0.125

        def log_snr(self, t: float | Tensor) -> Tensor:
            asked.append(float(torch.as_tensor(t).max()))
            return super().log_snr(t)

    assert float(Watched().time(torch.tensor(0.0, dtype=dtype))) == pytest.approx(0.875)
    assert len(asked) == sections + 2
    assert max(asked) == 2.0


def test_every_process_converts_predictions_as_its_marginal_allows():
    """The same call on each kind: a known marginal gives any prediction, a mere drift that of the reverse process."""

    class Cubic(sg.SDE):
        T, eps, prior_std = 1.0, 1e-3, 1.0

        def f(self, x: Tensor, t: Tensor) -> Tensor:
            return -(x**3)

        def g(self, t: Tensor) -> Tensor:
            return 1 + t

    x, t, out = torch.tensor([[1.0], [2.0]]), torch.tensor([0.25, 0.5]), torch.tensor([[0.5], [-1.0]])
    sde = Cubic()
    assert (sde.marginal_kind, sg.VPSDE().marginal_kind, sg.CLD().marginal_kind) == ("unknown", "scalar", "matrix")
    expected = torch.tensor([[-1.0 - 0.5 * (1 + 0.25) * 1.25**2 * 0.5], [-8.0 + 0.5 * (1 + 0.25) * 1.5**2]])
    torch.testing.assert_close(sde.convert("score", "drift", x, t, out, 0.5), expected)
    assert sde.convert("score", "score", x, t, out) is out
    assert (sde.evaluated("score", "drift"), sg.VPSDE().evaluated("noise", "drift")) == ("drift", "noise")
    for refused in (lambda: sde.convert("score", "data", x, t, out), lambda: sde.evaluated("score", "noise")):
        with pytest.raises(TypeError, match="it needs a process with alpha"):
            refused()
    with pytest.raises(TypeError, match="log-SNR cannot be computed"):
        sde.log_snr(0.5)
    with pytest.raises(TypeError, match="log-SNR cannot be computed"):
        sde.time(0.0)

    vp = sg.VPSDE()
    alpha, sigma = (c(t)[:, None] for c in (vp.alpha, vp.sigma))
    torch.testing.assert_close(vp.convert("noise", "data", x, t, out), (x - sigma * out) / alpha)


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
    with pytest.raises(ValueError, match="need 0 <= s <= t"):
        sde.transition(column(0.1, 0.5), column(0.2, 0.4))
    scale, std = sde.transition(column(0.1, 0.5), column(0.1, 0.5))
    assert (scale.tolist(), std.tolist()) == ([1.0, 1.0], [0.0, 0.0])


def test_nodes_by_hand() -> None:
    """With little signal, with drift that rounding makes negative, with less noise."""
    linear = LinearNode(EDM, 1.0, 0.5, 2.0, -0.25, 3.0, -2.5)
    assert (linear.alpha, linear.lam, linear.noise_level, linear.rate) == (0.5, -1.25, 4.0, -0.5)
    assert linear.g == math.sqrt(2 * 2 * (3 + 0.5 * 2))
    assert LinearNode(EDM, 1.0, 1.5e-15, 1.0, -1.0, 1.0, -68.0).lam == -34.0
    assert LinearNode(EDM, 1.0, 1.0, 1.0, 2.0, 1.0, 0.0).g == 0.0  # 2 (1 - 2) < 0
    less = linear.at_reduced_noise(0.5)
    assert (less.alpha, less.sigma, less.lam) == (0.5, 0.25, pytest.approx(math.log(2)))
    assert math.isnan(less.t)


@pytest.mark.parametrize("alpha, sigma", [(1e-15, 1.0), (1.5e-15, 2.0), (0.0, 1.0)])
def test_nodes_without_signal(alpha: float, sigma: float) -> None:
    """An alpha of at most 1e-15 sigma is rounding of 0: no signal, half the log-SNR minus infinity."""
    node = LinearNode(EDM, 1.0, alpha, sigma, -1.0, 1.0, -80.0)
    assert (node.alpha, node.lam, node.noise_level, node.rate) == (0.0, -math.inf, math.inf, -math.inf)


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


def test_bisection() -> None:
    """The inverse of any log-SNR: to the last bit, at both ends of the span too."""
    sde = Counted()
    ends = sde.time(sde.log_snr(column(0.0, 1.0)))
    assert ends.tolist() == pytest.approx([0.0, 1.0], rel=1e-15, abs=1e-30)
    beyond = sde.time(column(2 * math.log(8) + 1e-9, 2 * math.log(0.5 / 1.125) - 1e-9))
    assert bool(beyond.isnan().all())
    tiny = Counted(floor=0.0)  # log-SNR -2 log(t) but for t/2
    assert float(tiny.time(column(2 * 60 * LOG2))) == pytest.approx(2.0**-60, rel=1e-12)


@pytest.mark.parametrize("dtype, halvings", [(F64, 120), (torch.float32, 60)], ids=case_id)
def test_bisection_takes_no_more_halvings_than_bits(dtype: torch.dtype, halvings: int) -> None:
    sde = Counted()
    sde.time(torch.zeros((), dtype=dtype))  # the span is found once
    sde.calls = 0
    sde.time(torch.zeros((), dtype=dtype))
    assert sde.calls <= halvings + 2


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


class ToPureNoise(sg.LinearSDE):
    """Nothing is left of the data at T."""

    T, eps = 2.0, 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t / 2

    def sigma(self, t: Tensor) -> Tensor:
        return t / 2


def test_a_process_that_ends_in_pure_noise_is_told_where_to_end() -> None:
    """Its drift is infinite there, which alone says nothing of what to do."""
    words = "^f is -inf at t=2: nothing is left of the data there, end earlier, as at T=1.998$"
    with pytest.raises(CheckError, match=words):
        check_sde(ToPureNoise())

    class Earlier(ToPureNoise):
        T = 1.998

    assert len(check_sde(Earlier())) == 7


def test_a_number_by_the_name_of_a_function_of_time_is_refused() -> None:
    """Such as a field of a dataclass, which would take the function's place."""
    with pytest.raises(TypeError, match=r"^Decay.rate is 2.0, and rate a function of time: call it otherwise$"):
        type("Decay", (sg.LinearSDE,), {"rate": 2.0})
