# ruff: noqa: E501 - a table of faults
"""Faults that were found by trial, each with its minimal input, what came out then, and the right value.

    python -m tests.faults        # a table of what comes out now

`tests/test_faults.py` runs each. Faults of runs and files are in tests/runs/test_distributed.py, test_store.py, test_identity.py and
test_damage.py.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import training
from sgm_sde.data.images import to_uint8
from sgm_sde.likelihood import AdaptiveFlow, FixedGrid, Hutchinson

VP, EDM, FLOW = sg.VPSDE(), sg.EDMSDE(), sg.RectifiedFlowSDE()


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: of the fault.
        was: what came out when it was found.
        right: what has to come out.
        now: returns what comes out now, and whether that is right.
    """

    name: str
    was: str
    right: str
    now: Callable[[], tuple[str, bool]]


FAULTS: list[Fault] = []


def fault(name: str, was: str, right: str) -> Callable[[Callable[[], tuple[str, bool]]], None]:
    """Add a fault to the list."""

    def add(now: Callable[[], tuple[str, bool]]) -> None:
        FAULTS.append(Fault(name, was, right, now))

    return add


def normal(dims: int, mean: float = 0.0, variance: float = 1.0) -> sg.oracles.Gaussian:
    """A Gaussian with independent entries."""
    return sg.oracles.Gaussian(torch.full((dims,), mean), variance)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refusal(call: Callable[[], Any]) -> str:
    """The text of the ValueError or TypeError that a call ends in; none if it returns, another error passes."""
    try:
        call()
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def refused(text: str, *calls: Callable[[], Any]) -> tuple[str, bool]:
    """Refusals of calls, and whether each has one that contains the text."""
    found = [refusal(call) for call in calls]
    return found[0][:70] or "accepted", all(text in one for one in found)


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """Collect the names of warnings."""
    names: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    names += [one.category.__name__ for one in caught]


# --- laws ------------------------------------------------------------------------------------------------------------


@fault("PC with Langevin, N(0, 1) in 1 dimension, 100 steps", "standard deviation 154", "1")
def _() -> tuple[str, bool]:
    pc = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.16))
    stds = [float(sg.sample(normal(d).score(VP), VP, (2000, d), solver=pc, steps=100, seed=0).x.std()) for d in (1, 2)]
    return ", ".join(f"{s:.3f}" for s in stds), all(abs(s - 1) < 0.05 for s in stds)


@fault("PC with Langevin, a batch of one", "variance 2755 for 0.25 (norm='batch')", "the sample of a batch of many")
def _() -> tuple[str, bool]:
    score = normal(1, 0.3, 0.25).score(VP)
    pc = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.16))
    many = sg.sample(score, VP, (400, 1), solver=pc, steps=100, seed=5).x
    one = sg.sample(score, VP, (1, 1), solver=pc, steps=100, seed=[(5, 7)]).x
    apart = float((one - many[7:8]).abs().max())
    return f"apart by {apart:.1g}, variance {float(many.var()):.3f}", apart < 1e-5 and abs(
        float(many.var()) - 0.25
    ) < 0.06


@fault("norms of Langevin that are published, in 1 dimension", "silent", "a warning")
def _() -> tuple[str, bool]:
    with told() as names:
        pc = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.16, norm="sample"))
        sg.sample(normal(1).score(VP), VP, (4, 1), solver=pc, steps=20, seed=0)
    return ", ".join(sorted(set(names))), bool(names)


@fault("one time twice but for a millionth, sde-dpm2m-published and unipc2", "variances of 19.5, 0.85", "0.25")
def _() -> tuple[str, bool]:
    t = list(sg.grids.LogSNR()(VP, 60).times)
    twice = sorted([*t, t[30] * (1 - 1e-6)], reverse=True)
    score, x = normal(1, 0.3, 0.25).score(VP), randn(3000, 1)

    def variance(solver: str, grid: list[float]) -> float:
        return float(sg.sample(score, VP, x_T=x, solver=solver, grid=grid, seed=0).x.var())

    found = [variance(s, twice) for s in ("sde-dpm2m-published", "sde-dpm++2m", "unipc2", "dpm5m-cold")]
    return ", ".join(f"{v:.3f}" for v in found), all(abs(v - 0.25) < 0.02 for v in found)


@fault("two calls with one seed, the second from the first's end", "standard deviation 1.17", "1")
def _() -> tuple[str, bool]:
    score, options = normal(4).score(VP), {"solver": "euler-maruyama", "steps": 60, "seed": 0}
    first = sg.sample(score, VP, (1500, 4), t_end=0.5, final="none", **options)
    std = float(sg.sample(score, VP, x_T=first.x, t_start=0.5, **options).x.std())
    return f"{std:.3f}", abs(std - 1) < 0.03


@fault(
    "named solvers on VP without a grid, nfe=10, data of std 0.3", "unipc3 0.709, dpm++3m 0.725, sa-solver 2.07", "0.3"
)
def _() -> tuple[str, bool]:
    score = normal(4, 0.4, 0.09).score(VP)
    names = ("dpm++2m", "dpm++3m", "unipc3", "sde-dpm++2m")
    stds = [float(sg.sample(score, VP, (600, 4), solver=name, nfe=10, seed=0).x.std()) for name in names]
    return ", ".join(f"{s:.3f}" for s in stds), all(abs(s - 0.3) < 0.06 for s in stds)


@fault("seeds2, seeds3 on a rectified flow, 10 steps", "standard deviation 143 for 0.3", "0.3")
def _() -> tuple[str, bool]:
    score = normal(4, 0.4, 0.09).score(FLOW)
    stds = [float(sg.sample(score, FLOW, (600, 4), solver=s, steps=10, seed=0).x.std()) for s in ("seeds2", "seeds3")]
    return ", ".join(f"{s:.3f}" for s in stds), all(abs(s - 0.3) < 0.03 for s in stds)


@fault("annealed-langevin of the registry on EDM, flow and sub-VP", "not finite", "finite, or an error")
def _() -> tuple[str, bool]:
    ends = []
    for sde in (EDM, FLOW, sg.SubVPSDE()):
        with told():
            x = sg.sample(normal(1).score(sde), sde, (8, 1), solver="annealed-langevin", steps=10, seed=0).x
        ends.append(bool(torch.isfinite(x).all()))
    return str(ends), all(ends)


@fault("100000 samples from a generator", "1 pair that shares its noise; 9 of 300000", "none")
def _() -> tuple[str, bool]:
    x = VP.prior_sample((100_000, 3), generator=torch.Generator().manual_seed(0))
    pairs = len(x) - len(torch.unique(x, dim=0))
    return f"{pairs} pairs", pairs == 0


@fault("the seeds 5 and 7047780872", "the same noise", "another")
def _() -> tuple[str, bool]:
    a, b = (VP.prior_sample((3, 2), seed=seed) for seed in (5, 7047780872))
    return "another" if not torch.equal(a, b) else "the same", not torch.equal(a, b)


# --- meaning guessed from sizes --------------------------------------------------------------------------------------


@fault(
    "a table of 10 numbers in model_kwargs of a batch of 10, dopri5", "0.699 for 1", "an error, or 1 where it is marked"
)
def _() -> tuple[str, bool]:
    def net(x: Tensor, t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(x / 0.1) * c.sum() / 45 * (1 + y[:, None])

    ends = []
    for B in (9, 10):
        given = {"y": sg.PerSample(torch.arange(float(B))), "c": sg.Shared(torch.arange(10.0))}
        run = sg.sample(sg.from_denoiser(net, EDM), EDM, x_T=randn(B, 1) * 80, solver="dopri5", model_kwargs=given)
        ends.append(float(run.x[0].abs()))
    bare = {"y": torch.arange(10.0), "c": torch.arange(10.0)}
    text = refusal(
        lambda: sg.sample(sg.from_denoiser(net, EDM), EDM, (10, 1), solver="dopri5", seed=0, model_kwargs=bare)
    )
    return f"{ends}; bare: {text[:50]}", all(abs(x - 1) < 1e-3 for x in ends) and "PerSample" in text


class _Table(torch.nn.Module):
    def forward(self, x: Tensor, s: Tensor, y: Tensor, table: Tensor) -> Tensor:
        return x * 0 + table.sum(0)[:1]


@fault("a shared table of 3 rows under guidance, batches of 2, 3, 4", "3, 6, 3", "3, 3, 3")
def _() -> tuple[str, bool]:
    guided = sg.guidance.ClassifierFree(sg.from_denoiser(_Table(), EDM), 2.0, null={"y": 10})
    ends = []
    for B in (2, 3, 4):
        given = {"y": torch.zeros(B, dtype=torch.long), "table": sg.Shared(torch.ones(3, 4))}
        ends.append(float(sg.sample(guided, EDM, (B, 1), nfe=5, seed=0, model_kwargs=given).x[0]))
    given["table"] = torch.ones(4, 4)
    text = refusal(lambda: sg.sample(guided, EDM, (4, 1), nfe=5, seed=0, model_kwargs=given))
    return f"{ends}; bare: {text[:40]}", all(abs(x - 3) < 1e-6 for x in ends) and "Shared" in text


class _Nested(torch.nn.Module):
    def forward(self, x: Tensor, s: Tensor, ctx: Tensor, added: dict[str, Tensor]) -> Tensor:
        return x + added["e"]


@fault("guidance with a dictionary among the conditions", "RuntimeError 6 vs 3", "runs; nulls by nested name")
def _() -> tuple[str, bool]:
    score = sg.from_denoiser(_Nested(), EDM)
    given = {"ctx": torch.zeros(3, 4), "added": {"e": torch.zeros(3, 2)}}
    for null in ({"ctx": 0.0}, {"added": {"e": 0.0}}):
        guided = sg.guidance.ClassifierFree(score, 2.0, null=null)
        marked = given if "added" in null else given | {"added": {"e": sg.PerSample(torch.zeros(3, 2))}}
        marked = marked if "ctx" in null else marked | {"ctx": sg.PerSample(torch.zeros(3, 4))}
        x = sg.sample(guided, EDM, (3, 2), nfe=4, seed=0, model_kwargs=marked).x
    return f"{tuple(x.shape)}", x.shape == (3, 2)


@fault(
    "null={'y': None}", "'NoneType' object cannot be interpreted as an integer", "the network is called without a label"
)
def _() -> tuple[str, bool]:
    labels: list[Any] = []

    def net(x: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        labels.append(y)
        return 0 * x

    guided = sg.guidance.ClassifierFree(sg.from_denoiser(net, EDM), 2.0, null={"y": None})
    sg.sample(guided, EDM, (3, 2), nfe=3, seed=0, model_kwargs={"y": torch.zeros(3, dtype=torch.long)})
    return f"{sum(y is None for y in labels)} of {len(labels)} calls", any(y is None for y in labels)


# --- one scaling, one kind of operator -------------------------------------------------------------------------------


@fault("affine operators in MMPS, PiGDM, DiffPIR", "means of 1e3 to 1e5 for 0.3", "an error")
def _() -> tuple[str, bool]:
    return refused("linear", lambda: sg.inverse.LinearMap(lambda x: (x + 1) / 2, (2,)),
                   lambda: sg.inverse.LinearMap(lambda x: torch.fft.fft(x).abs(), (2,)),
                   lambda: sg.inverse.LinearMap(lambda x: x**2, (2,)))  # fmt: skip


@fault("DPS with the absolute Fourier transform", "the measurement ignored bit for bit", "it counts")
def _() -> tuple[str, bool]:
    score, truth = normal(2).score(EDM), torch.tensor([0.3, -0.2])
    operator = sg.inverse.NonlinearMap(lambda x: torch.fft.fft(x).abs(), (2,))
    seen = sg.inverse.Measurement(operator, operator.apply(truth[None])[0], 0.05)

    def misfit(solver: Any) -> float:
        x = sg.sample(score, EDM, (100, 2), solver=solver, steps=50, seed=0).x
        return float((operator.apply(x) - seen.y).square().mean().sqrt())

    with_, without = misfit(sg.inverse.DPS(sg.Ancestral(), seen)), misfit(sg.Ancestral())
    return f"misfit {with_:.2f}, without {without:.2f}", with_ < 0.8 * without


@fault("DPS on EDM and VE beside VP, the same denoiser", "PSNR 7.0, 7.1 beside 23.7", "the same")
def _() -> tuple[str, bool]:
    oracle = sg.oracles.GaussianMixture(0.5 * randn(4, 16), 0.1)
    truth = oracle.sample(8, VP, 0.0, seed=1)
    operator = sg.inverse.Mask(torch.arange(16) % 2 == 0)
    seen = sg.inverse.Measurement(operator, operator.apply(truth) + 0.05 * randn(8, 16, seed=2) * operator.mask, 0.05)
    errors = []
    for sde in (VP, EDM, sg.VESDE(), FLOW):
        solver = sg.inverse.DPS(sg.Ancestral(), seen)
        x = sg.sample(oracle.score(sde), sde, (8, 16), solver=solver, steps=100, grid="log-snr", seed=0).x
        errors.append(float((x - truth).square().mean().sqrt()))
    return ", ".join(f"{e:.3f}" for e in errors), max(errors) < 1.5 * min(errors)


# --- yardsticks and conventions --------------------------------------------------------------------------------------


@fault("labels of a ladder of 4 levels", "2, 2, 1, 0", "3, 2, 1, 0")
def _() -> tuple[str, bool]:
    sde = sg.DiscreteVESDE([10.0, 1.0, 0.1, 0.01])
    labels = sg.time_labels.score_sde_ve_discrete(sde)(torch.tensor(sde.times, dtype=torch.float64)).round().tolist()
    return str(labels), labels == [3, 2, 1, 0]


@fault("the index of a time below the first of a table", "-1, the noisiest", "0")
def _() -> tuple[str, bool]:
    index = sg.time_labels.ddpm(1000, integer=True)(torch.tensor([1e-5, 1.0]))
    return str(index.tolist()), index.tolist() == [0, 999]


@fault("a network that looks its time up", "RuntimeError: indices ... got torch.FloatTensor", "runs")
def _() -> tuple[str, bool]:
    table, process = torch.nn.Embedding(1000, 2), sg.presets.ddpm()
    config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}

    def net(x: Tensor, t: Tensor, **_: Any) -> Tensor:
        return x + 0 * table(t)

    sg.sample(sg.from_noise(net, process, time_label=sg.time_labels.ddpm(1000, integer=True)), process, (2, 2), nfe=5)
    sg.sample(*sg.adapters.from_diffusers(net, config, integer=True), (2, 2), nfe=5)
    return "runs", True


@fault("EMA of bfloat16 weights", "1.0 after 10000 updates towards 2", "2.0")
def _() -> tuple[str, bool]:
    net = torch.nn.Linear(1, 1, bias=False).bfloat16()
    net.weight.data.fill_(1.0)
    ema = training.EMA(net, 0.999)
    ema.updates = 10**6
    net.weight.data.fill_(2.0)
    for _ in range(10_000):
        ema.update(net)
    found = float(ema.average["weight"])
    return f"{found:.5f}", abs(found - (2 - 0.999**10_000)) < 1e-3


@fault("covariances that are none, at a scale of 1e-9 and below", "accepted, as others", "an error")
def _() -> tuple[str, bool]:
    return refused("", lambda: sg.oracles.Gaussian(torch.zeros(2), 1e-11 * torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
                   lambda: sg.oracles.Gaussian(torch.zeros(2), 1e-9 * torch.tensor([[1.0, 0.9], [0.0, 1.0]]))) if all(
        refusal(call) for call in (
            lambda: sg.oracles.Gaussian(torch.zeros(2), 1e-11 * torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
            lambda: sg.oracles.Gaussian(torch.zeros(2), 1e-9 * torch.tensor([[1.0, 0.9], [0.0, 1.0]])))
    ) else ("accepted", False)  # fmt: skip


@fault("a mixture's weight of 1e-60 in single precision", "-198.616", "-136.771")
def _() -> tuple[str, bool]:
    weights = torch.tensor([1e-60, 1.0], dtype=torch.float64)
    value = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1, weights).log_prob(torch.tensor([[-1.0]]))
    return f"{float(value):.3f}", abs(float(value) + 136.771) < 0.01


@fault("oracles of NaN means, and infinite weights", "accepted", "an error")
def _() -> tuple[str, bool]:
    calls = (
        lambda: sg.oracles.Gaussian(torch.tensor([math.nan]), 1.0),
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), 1.0, [math.inf, 1.0]),
    )
    return refused("finite", *calls)


@fault("a Gaussian's log-density under autocast", "off by 3.8e-3", "the same")
def _() -> tuple[str, bool]:
    covariance = 0.3 * torch.eye(3) + 0.1
    oracle, x = sg.oracles.Gaussian(torch.zeros(3), covariance), randn(4, 3)
    plain = oracle.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        apart = float((oracle.log_prob(x) - plain).abs().max())
    return f"{apart:.1g}", apart < 1e-5


@fault("LogNormal(mean=-20) and (+20), Importance at eps=0", "inf, 0.0, NaN", "within [eps, T], or an error")
def _() -> tuple[str, bool]:
    fine, shown = True, list[str]()
    for times, sde in ((training.LogNormal(mean=-20.0, std=1.0), EDM), (training.LogNormal(mean=20.0, std=1.0), EDM)):
        generator = torch.Generator().manual_seed(0)
        text = refusal(lambda times=times, sde=sde, g=generator: times.draw(sde, 4, g))
        if text:
            shown.append(text[:30])
            continue
        drawn = times.draw(sde, 4, generator)
        drawn = drawn[0] if isinstance(drawn, tuple) else drawn
        fine &= bool(((drawn >= sde.eps * (1 - 1e-6)) & (drawn <= sde.T * (1 + 1e-6))).all())
        shown.append(f"{float(drawn[0]):g}")
    text = refusal(lambda: training.Importance().draw(sg.VPSDE(eps=0.0), 4, torch.Generator().manual_seed(0)))
    return "; ".join([*shown, text[:40]]), fine and bool(text)


@fault(
    "default standard error of a likelihood, Jacobian diagonal, 64 dimensions of two scales", "0.353 nats for 0", "0"
)
def _() -> tuple[str, bool]:
    score, x = _two_scales(64)
    result = sg.log_prob(score, VP, x, seed=0, trace="hutchinson", method=FixedGrid(48))
    worst = float(result.stderr.max())
    return f"{worst:.2g} nats", worst < 1e-3


@fault("log-density of data of two scales, 64 dimensions", "0.1 nats, nothing said", "the stated error covers it")
def _() -> tuple[str, bool]:
    score, x = _two_scales(64)
    with told():
        result = sg.log_prob(score, VP, x, seed=0, trace="exact")
    reference = sg.log_prob(score, VP, x, seed=0, trace="exact", method=AdaptiveFlow(rtol=1e-7, atol=1e-7))
    apart = (result.value - reference.value).abs()
    return f"error {float(apart.max()):.1g}, stated {float(result.error.max()):.1g}", bool(
        (apart <= 3 * result.error + 1e-3).all()
    )


def _two_scales(dims: int) -> tuple[sg.Score, Tensor]:
    std = torch.cat([torch.full((dims // 2,), 0.5), torch.full((dims // 2,), 1e-3)]).double()

    def net(x: Tensor, t: Tensor) -> Tensor:
        a, s = VP.alpha(t).to(x)[:, None], VP.sigma(t).to(x)[:, None]
        return a * std.to(x) ** 2 / (a * a * std.to(x) ** 2 + s * s) * x

    return sg.from_denoiser(net, VP), std * randn(2, dims, seed=1).double()


@fault("probes in 1 dimension, where they are exact", "standard errors 0.004, 0.011", "0")
def _() -> tuple[str, bool]:
    score = sg.oracles.GaussianMixture(torch.tensor([[-0.5], [0.5]]), 0.2).score(VP)
    result = sg.log_prob(score, VP, torch.tensor([[0.1], [0.6]]), seed=0, trace=Hutchinson(), method=FixedGrid(24))
    return f"{float(result.stderr.max()):.1g}", float(result.stderr.max()) < 1e-4


@fault("log_prob on VPSDE(beta_max=3000), VPSDE(T=100), VPSDE(T=10)", "IndexError; -14.7 for -8.9, silent",
       "a value within its error, a warning, or an error")  # fmt: skip
def _() -> tuple[str, bool]:
    x, fine, shown = torch.tensor([[0.1, -0.2, 0.3]]), True, []
    for sde, method in (
        (sg.VPSDE(beta_max=3000.0), None),
        (sg.VPSDE(T=100.0), None),
        (sg.VPSDE(T=10.0), None),
    ):
        oracle = normal(3, 0.0, 0.09)
        options = {} if method is None else {"method": method}
        with told() as names, np.errstate(all="ignore"):
            text = refusal(lambda s=sde, o=oracle, p=options: sg.log_prob(o.score(s), s, x, seed=0, trace="exact", **p))
            if text:
                shown.append(text[:30])
                continue
            result = sg.log_prob(oracle.score(sde), sde, x, seed=0, trace="exact", **options)
        right = float(oracle.log_prob(x, sde, sde.likelihood_eps))
        apart = abs(float(result.value) - right)
        fine &= apart <= 3 * float(result.error) + 1e-2 or bool(names)
        shown.append(f"off by {apart:.1g}, stated {float(result.error):.1g}{' + warning' * bool(names)}")
    return "; ".join(shown), fine


@fault("bits/dim of the shipped digits by the shortest call", "4.16, above the 4.09 of a guess", "about 2.1")
def _() -> tuple[str, bool]:
    from sgm_sde.nn.digits import digits_data

    images = ((digits_data("held_out")[0][:16] + 1) * 8).round().long()
    value = sg.load_model("digits").bits_per_dim(images, seed=0, method=FixedGrid(24)).value
    return f"{value:.2f}", abs(value - 2.14) < 0.2


@fault(
    "ranges that are not the network's, digits in bits/dim", "216, 316233 and negative bits, as any result", "an error"
)
def _() -> tuple[str, bool]:
    from sgm_sde.nn.digits import digits_data

    images, model = ((digits_data("held_out")[0][:24] + 1) * 8).round().long(), sg.load_model("digits")

    def bits(**options: Any) -> Callable[[], Any]:
        return lambda: model.bits_per_dim(images, seed=0, method=FixedGrid(24), **options)

    calls = [bits(data_range=given) for given in ((0, 1), (0, 16), (0, 255), (-0.5, 0.5), (-2, 2))]
    zero_one = (images > 8).long()
    calls.append(lambda: model.bits_per_dim(zero_one, seed=0, method=FixedGrid(12)))
    return refused("", *calls)[0], all(refusal(call) for call in calls)


@fault("8-bit images of another range as data", "taken as they are", "an error")
def _() -> tuple[str, bool]:
    levels = torch.arange(256.0).reshape(1, 256)
    images = levels.reshape(4, 1, 8, 8)
    score, generator = normal(64).score(VP), torch.Generator().manual_seed(0)
    calls = (
        lambda: to_uint8(levels / 255, (-1.0, 1.0)),
        lambda: to_uint8(levels, (-1.0, 1.0)),
        lambda: to_uint8(levels / 127.5 - 1, (0.0, 1.0)),
        lambda: training.denoising_score_matching(score, images, generator=generator),
        lambda: training.score_matching(score, images, generator=generator),
    )
    right = [to_uint8(x, given) for x, given in
             ((levels / 255, (0.0, 1.0)), (levels, (0.0, 255.0)), (levels / 127.5 - 1, (-1.0, 1.0)))]  # fmt: skip
    same = all(torch.equal(x, levels.byte()) for x in right)
    return refusal(calls[0])[:70], same and all("8-bit" in refusal(call) for call in calls)


@fault("integer types of numpy in a shape", "refused, though nfe and seeds take them", "taken")
def _() -> tuple[str, bool]:
    x = sg.sample(normal(3).score(VP), VP, (np.int64(4), 3), nfe=np.int64(4), seed=0).x
    return str(tuple(x.shape)), x.shape == (4, 3)


# --- times and grids -------------------------------------------------------------------------------------------------


@fault("k-diffusion's float32 sigmas as a grid, and float32 ends of a flow", "beyond T=14.6146", "accepted")
def _() -> tuple[str, bool]:
    sde = sg.EDMSDE(sigma_min=0.0292, sigma_max=14.6146)
    r = torch.linspace(0, 1, 10)
    grid = (14.6146 ** (1 / 7) + r * (0.0292 ** (1 / 7) - 14.6146 ** (1 / 7))) ** 7
    sg.sample(lambda x, t: -x, sde, x_T=torch.zeros(1, 2), grid=grid)
    with told():
        sg.sample(lambda x, t: -x, FLOW, (1, 2), grid=torch.linspace(0.999, 0.001, 11), seed=0)
    for sigma_max in torch.linspace(5, 200, 40).tolist():
        one = sg.EDMSDE(sigma_max=sigma_max)
        sg.sample(
            lambda x, t: -x / (1 + t[:, None] ** 2),
            one,
            x_T=torch.zeros(1, 1),
            grid=torch.linspace(sigma_max, 0.002, 4),
        )
    return "accepted", True


@fault("k-diffusion's sigmas with their last 0", "11 calls for 10, the network at 0; heun refused", "10 calls")
def _() -> tuple[str, bool]:
    sigmas = torch.cat([torch.linspace(14.0, 0.1, 10), torch.zeros(1)])
    times: list[float] = []

    def denoiser(x: Tensor, s: Tensor) -> Tensor:
        times.append(float(s.min()))
        return 0 * x

    run = sg.sample(sg.from_denoiser(denoiser, EDM), EDM, (2, 2), solver="euler", grid=sigmas, seed=0)
    sg.sample(sg.from_denoiser(denoiser, EDM), EDM, (2, 2), solver="heun", grid=sigmas, seed=0)
    return f"{run.nfe} calls, least {min(times):g}", run.nfe == 10 and min(times) > 0


@fault(
    "t_start of a sample each, scales as functions, grids of 2 dimensions",
    "torch's own words",
    "ours, naming the argument",
)
def _() -> tuple[str, bool]:
    score = normal(2).score(VP)
    text = refusal(lambda: sg.sample(score, VP, (4, 2), nfe=5, seed=0, t_start=torch.full((4,), 0.5)))
    table = refusal(lambda: sg.sample(score, VP, (4, 2), seed=0, grid=torch.tensor([[1.0, 0.5], [0.3, 0.1]])))
    guided = sg.guidance.Auto(score, normal(2, 0.1).score(VP), lambda level: 1 + level)
    x = sg.sample(guided, VP, (4, 2), nfe=4, seed=0).x
    each = sg.sample(sg.guidance.Auto(score, score, sg.PerSample(torch.linspace(0, 2, 4))), VP, (4, 2), nfe=4, seed=0).x
    return text[:50], "t_start" in text and "grid" in table and x.shape == each.shape


# --- words -----------------------------------------------------------------------------------------------------------


@fault("Karras(1e-3), EDMSDE(sigma_max=1e300), CLD(mass=1e-300), data_std=1e-300",
       "OverflowError, ZeroDivisionError", "an error of ours, or a number")  # fmt: skip
def _() -> tuple[str, bool]:
    x = torch.zeros(2, 2)
    calls: list[Callable[[], Any]] = [
        lambda: sg.grids.Karras(1e-3)(EDM, 5),
        lambda: sg.grids.Karras(rho=1e-300)(EDM, 5),
        lambda: sg.sample(lambda x, t: -x, sg.EDMSDE(sigma_max=1e300), (2, 2), nfe=5, seed=0),
        lambda: sg.sample(lambda x, t: -x, sg.CLD(mass=1e-300), (2, 2, 2), steps=5, seed=0),
        lambda: sg.log_prob(normal(2).score(VP), VP, x, method=FixedGrid(8, data_std=1e-300)),
        lambda: sg.elbo(normal(2).score(VP), VP, x, data_std=1e-300, seed=0),
    ]
    with told(), np.errstate(all="ignore"):
        texts = [refusal(call) for call in calls]
    return f"{sum(map(bool, texts))} refused, {sum(not t for t in texts)} run", True


@fault("a score on CLD called with (2, 3), slerp of lists, Score of a list, data_range=5, a Grid of rows", "torch's and Python's words",
       "ours")  # fmt: skip
def _() -> tuple[str, bool]:
    joint = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sg.CLD())
    score = normal(2).score(VP)
    levels = torch.tensor([[3, 7]])
    calls: list[Callable[[], Any]] = [
        lambda: joint(torch.zeros(2, 3), 0.5),
        lambda: sg.likelihood.slerp([1.0], [2.0], 0.5),
        lambda: sg.Score([], VP, "noise"),  # type: ignore[arg-type]
        lambda: sg.bits_per_dim(score, VP, levels, n_levels=16, data_range=5),  # type: ignore[arg-type]
        lambda: sg.Grid([[1.0], [0.5]]),  # type: ignore[list-item]
        lambda: sg.sample(score, VP, (2, 2), nfe=5, t_start="x"),  # type: ignore[arg-type]
        lambda: sg.VPSDE(eps="x"),  # type: ignore[arg-type]
        lambda: sg.Record(5),  # type: ignore[arg-type]
        lambda: sg.bits_per_dim(score, VP, levels, n_levels=16, data_range=(-1, 1), dequantize=5),  # type: ignore[arg-type]
        lambda: sg.sample(score, VP, (2, 2), nfe=1e300),  # type: ignore[arg-type]
        lambda: sg.Execution(device=5),  # type: ignore[arg-type]
    ]
    texts = [refusal(call) for call in calls]
    foreign = ("object", "unpack", "Python", "expected", "not supported", "size of tensor", "positional")
    return texts[3][:60], all(texts) and not [t for t in texts for word in foreign if word in t]


@fault("nfe='20'; class_labels=; num_steps=, batch_size= of sample; device='cuda' without one", "Python's and torch's words, no hints",
       "words and hints")  # fmt: skip
def _() -> tuple[str, bool]:
    score = normal(2).score(VP)

    def run(**options: Any) -> str:
        return refusal(lambda: sg.sample(score, VP, (2, 2), **options))

    texts = [run(nfe="20"), run(class_labels=3), run(num_steps=3), run(batch_size=3)]
    texts.append(refusal(lambda: sg.Execution(device="cuda:77")))
    asked = ("nfe must be", "class_labels", "num_steps", "batch_size", "cuda:77")
    return texts[1][:70], all(word in text for word, text in zip(asked, texts, strict=True))


@fault(
    "an operator that measures in MMPS' place of DPS and the reverse",
    "'solver must be a name or a Solver'",
    "what to pass where",
)
def _() -> tuple[str, bool]:
    seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.zeros(2), 0.1)
    score = normal(2).score(VP)
    one = refusal(lambda: sg.sample(score, VP, (2, 2), nfe=5, solver=sg.inverse.MMPS(score, seen)))  # type: ignore[arg-type]
    other = refusal(lambda: sg.sample(sg.inverse.DPS(sg.Ancestral(), seen), VP, (2, 2), nfe=5))  # type: ignore[arg-type]
    third = refusal(lambda: sg.inverse.DPS(score, seen))  # type: ignore[arg-type]
    return one[:70], "score" in one and "solver" in other and bool(third)


@fault("names of solvers as others spell them", "all 70 names as a hint", "found, or first in the hint")
def _() -> tuple[str, bool]:
    score = normal(2).score(VP)
    said = {name: refusal(lambda n=name: sg.sample(score, VP, (2, 2), solver=n, nfe=8, seed=0)) for name in
            ("DDIM", "PC", "dpmpp_2m", "euler_a", "DPMSolverMultistepScheduler")}  # fmt: skip
    return "; ".join(f"{n}: {t[:40] or 'found'}" for n, t in said.items()), all(
        len(text) < 400 for text in said.values()
    )


@fault("'ddim' in sg.solvers(); sg.solvers()['ddim']; dopri5 among them", "False; TypeError; not", "a mapping")
def _() -> tuple[str, bool]:
    table = sg.solvers()
    width = max(map(len, str(table).splitlines()))
    return f"{len(table)} names, {width} columns", "ddim" in table and bool(
        table["ddim"]
    ) and "dopri5" in table and width <= 100


@fault(
    "log_snr at a node of one's own solver; D.clamp; the product of two forms",
    "'VPSDE does not have log_snr'; AttributeError; ufunc 'isfinite'",
    "there; a linear form, in words",
)
def _() -> tuple[str, bool]:
    class Own(sg.Solver):
        name, order, prediction, source = "own", 1, "data", "here"

        def __init__(self, squares: bool) -> None:
            self.squares = squares

        def step(self, k: Any) -> Any:
            assert k.end.log_snr > k.start.log_snr
            D = k.evaluate(k.x, k.start)
            return k.x * D if self.squares else D.clamp(-1, 1)

    texts = []
    for squares in (True, False):
        try:
            sg.sample(normal(2).score(VP), VP, (2, 2), solver=Own(squares), steps=3, seed=0)
        except (TypeError, AttributeError) as error:
            texts.append(str(error))
    return texts[0][:80], len(texts) == 2 and all("linear form" in text for text in texts)


@fault("a network with dropout in train mode", "two runs of one seed differ, silently", "a warning")
def _() -> tuple[str, bool]:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    with told() as names:
        sg.sample(sg.from_noise(lambda x, t: net(x), VP), VP, (4, 2), nfe=4, seed=0)
        module = _Around(net)
        sg.sample(sg.from_noise(module, VP), VP, (4, 2), nfe=4, seed=0)
    return ", ".join(sorted(set(names))), any("Train" in name for name in names)


class _Around(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)


@fault("modules of the package that are not imported yet", "AttributeError", "there")
def _() -> tuple[str, bool]:
    names = ("training", "nn", "metrics", "distributed", "store", "bench", "demo", "latent")
    return ", ".join(names), all(getattr(sg, name) is not None for name in names)


@fault("prints of likelihoods, steps and oracles", "all values; object at 0x7f", "a line for people")
def _() -> tuple[str, bool]:
    result = sg.log_prob(normal(2).score(VP), VP, randn(200, 2), seed=0, method=FixedGrid(8))
    texts = [repr(result), repr(normal(2))]
    return texts[1][:60], all(len(text) < 400 and " at 0x" not in text for text in texts)


# --- errors of others ------------------------------------------------------------------------------------------------


@fault("StopIteration from a network", "AttributeError: 'str' object has no attribute 'x'", "as it is")
def _() -> tuple[str, bool]:
    def net(x: Tensor, t: Tensor) -> Tensor:
        raise StopIteration

    ends = []
    for solver in ("ddim", "heun", "dpm++2m", "dopri5", "pc"):
        try:
            sg.sample(sg.from_noise(net, VP), VP, (2, 2), solver=solver, nfe=None if solver == "dopri5" else 8, seed=0)
        except Exception as error:
            ends.append(type(error).__name__)
    return ", ".join(ends), ends == ["StopIteration"] * 5


@fault("out of memory in the refinement of a likelihood", "swallowed, and more memory asked for", "passes")
def _() -> tuple[str, bool]:
    ends = []
    for k in (1, 30, 52, 60, 75, 120):
        calls, score = [0], normal(3, 0.0, 1e-4).score(VP)

        def net(x: Tensor, t: Tensor, calls: list[int] = calls, k: int = k, score: Any = score) -> Tensor:
            calls[0] += 1
            if calls[0] >= k:
                raise torch.OutOfMemoryError("out of memory")
            return score(x, t)

        try:
            with told():
                sg.log_prob(sg.from_score(net, VP), VP, 3 * randn(6, 3), seed=0, trace="hutchinson")
            ends.append("returned" if calls[0] < k else "swallowed")
        except torch.OutOfMemoryError:
            ends.append("passed")
    return ", ".join(ends), "swallowed" not in ends and "passed" in ends


@fault("networks that a process closes over, 80 of them", "64 stay alive", "none")
def _() -> tuple[str, bool]:
    alive: list[Any] = []
    for _ in range(80):
        net = torch.nn.Linear(1, 1)
        alive.append(weakref.ref(net))

        def alpha(t: Tensor, net: torch.nn.Module = net) -> Tensor:
            return 1 - 0.999 * t

        sde = sg.LinearSDE.from_schedule(alpha, lambda t: 1e-3 + 0.999 * t, T=1.0, eps=1e-3)
        sg.sample(lambda x, t: -x, sde, (1, 1), nfe=3, solver="ddim", seed=0)
        del sde, alpha, net
    gc.collect()
    left = sum(one() is not None for one in alive)
    return f"{left} alive", left <= 1


@fault(
    "budgets of PredictorCorrector around PNDM, PLMS and warm multistep solvers", "9 calls too many", "none exceeded"
)
def _() -> tuple[str, bool]:
    score, over = normal(2).score(VP), 0
    for predictor in (
        sg.schemes.PNDM(),
        sg.schemes.PNDM(runge_kutta=False),
        sg.DPMSolverPP(3, start="warm"),
        sg.DEIS(3),
    ):
        for nfe in (12, 15, 20, 33):
            pc = sg.PredictorCorrector(predictor, sg.Langevin(n_steps=1))
            if not refusal(lambda p=pc, n=nfe: sg.sampling.planning.plan(VP, p, nfe=n)):
                over += sg.sample(score, VP, (2, 2), solver=pc, nfe=nfe, seed=0).nfe > nfe
    return f"{over} exceeded", over == 0


@fault("options that do nothing: data_std of rk45-scipy, n_times of a flow's bound", "ignored", "an error")
def _() -> tuple[str, bool]:
    from torch.distributions import Normal

    model = sg.latent.LatentScoreModel(
        lambda x: Normal(0.5 * x, 0.7), lambda z: Normal(z, 1.0), normal(2).score(VP), VP
    )
    calls = (
        lambda: sg.likelihood.ScipyRK45(data_std=0.5),  # type: ignore[call-arg]
        lambda: model.bound(randn(2, 2), method="flow", n_times=3),
        lambda: sg.encode(normal(2).score(VP), VP, randn(2, 2), rtol=1e-3),  # type: ignore[call-arg]
    )
    texts = [refusal(call) for call in calls]
    return texts[1][:60], all(texts)


@fault(
    "the programs of F11: no rows, odd indices, NaN times, negative sigma_data, unknown predictions",
    "accepted",
    "an error",
)
def _() -> tuple[str, bool]:
    import json

    good = sg.sampling.planning.plan(VP, "sde-dpm++2m", nfe=6)[2]
    assert good is not None
    text, accepted = good.to_json(), []
    stage = json.loads(text)["stages"][1]
    changes: list[tuple[str, Any]] = [("t", math.nan), ("t", None), ("t", "0.5"), ("evaluate", "no"), ("states", [[0.5, 1.0]]),
                                      ("states", [[True, 1.0]]), ("noises", [[-1, 1.0]]), ("noises", [[10**18, 1.0]]),
                                      ("noises", [["a", 1.0]])]  # fmt: skip
    for key, value in changes:
        data = json.loads(text)
        assert key in stage
        data["stages"][1][key] = value
        if not refusal(lambda d=data: sg.Program.from_json(json.dumps(d))):
            accepted.append(key)
    return f"{len(changes) - len(accepted)} of {len(changes)} refused", not accepted


@fault("16-bit grey pictures", "99.6 % of pixels white", "an error")
def _() -> tuple[str, bool]:
    import tempfile
    from pathlib import Path

    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
        Image.fromarray(ramp).save(Path(folder) / "0.png")
        return refused("mode", lambda: training.load_images(folder))


def main() -> int:
    """Print the table; the exit status counts what is not right."""
    sys.stdout.write("| fault | then | right | now |\n|---|---|---|---|\n")
    wrong = 0
    for one in FAULTS:
        started = time.perf_counter()
        try:
            shown, right = one.now()
        except Exception as error:
            shown, right = f"{type(error).__name__}: {error}"[:120], False
        wrong += not right
        mark = "" if right else " **WRONG**"
        shown = shown.replace("|", "/").replace("\n", " ")
        sys.stdout.write(f"| {one.name} | {one.was} | {one.right} | {shown}{mark} |\n")
        sys.stderr.write(f"{time.perf_counter() - started:.1f} s\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
