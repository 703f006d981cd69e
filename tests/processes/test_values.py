"""Processes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.engine.reverse import ReverseSDE
from sgm_sde.processes.base import ProcessNode, require_sde
from sgm_sde.processes.linear import LinearNode, ScheduleSDE
from tests.by_hand import EDM, LOG2, DoubleWell, column
from tests.conventions import case_id
from tests.helpers import F64


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


@pytest.mark.parametrize(
    ("given", "text"),
    [(sg.VPSDE, "got the class VPSDE: call it"), ("vp", "such as VPSDE\\(\\), got 'vp'")],
    ids=case_id,
)
def test_what_is_no_process_is_named(given: Any, text: str) -> None:
    """A class that was not called, and anything else."""
    require_sde(EDM)
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
