"""Linear parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

import sgm_sde as sg
from sgm_sde.engine.program import Form
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
from tests.by_hand import EDM, LOG2, node, place
from tests.conventions import case_id

INSIDE: Any = SimpleNamespace(at=node)  # stands for a step of EDM


def test_names_of_the_linear_parts() -> None:
    """What a solver's options may be."""
    assert VARIABLES == ("log-snr", "time", "noise-level", "vp-time", "angle", "log-signal", "flow-time")
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


@pytest.mark.parametrize(("part", "factor", "std"), FACTORS, ids=case_id)
def test_factor_and_noise(part: Any, factor: Any, std: Any) -> None:
    """L and std between the noise levels 2 and 1; no noise, and L = 1, over no distance."""
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
    assert DataPart("time", 0.0).coordinate(node(0.5, sg.VPSDE())) == 0.5
    vp = DataPart("time", 0.0).lam(sg.VPSDE(), 0.5)
    assert float(vp) == pytest.approx(node(0.5, sg.VPSDE()).lam, rel=1e-13)


@pytest.mark.parametrize("variable", ["log-snr", "noise-level"])
def test_places_of_nodes_are_not_their_times(variable: str) -> None:
    assert DataPart(variable, 0.0).coordinate(node(0.5, sg.VPSDE())) != 0.5


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
