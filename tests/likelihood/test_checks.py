"""Bad input."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.likelihood import (
    AdaptiveFlow,
    AdjointFlow,
    Exact,
    FixedGrid,
    Hutchinson,
    LikelihoodWarning,
    ScipyRK45,
    Stretched,
)
from sgm_sde.likelihood.trace import probe_transform
from tests.helpers import F64, GAUSSIAN
from tests.likelihood.cases import VP

SCORE = GAUSSIAN.score(VP)


X = torch.zeros(2, 2, dtype=F64)
WEIGHT = torch.ones((), dtype=F64, requires_grad=True)  # by which there is a gradient


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.long)}, TypeError, "int64"),
        ({"x": [[0.0]]}, TypeError, "tensor"),
        ({"x": torch.zeros(0, 2)}, ValueError, r"at least one sample, got shape \(0, 2\)"),
        ({"x": torch.full((2, 2), math.nan)}, ValueError, "sample 0"),
        ({"eps": 0.0}, ValueError, r"eps must lie in \(0, T\)"),
        ({"eps": 1.0}, ValueError, "1.0"),
        ({"trace": "hutch++"}, ValueError, "hutch"),
        ({"trace": 3}, TypeError, r"trace must be a name, Hutchinson\(\.\.\.\) or Exact\(\.\.\.\), got 3"),
        ({"method": FixedGrid}, TypeError, "method must be a name or a method"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"method": "dopri5"}, ValueError, "dopri5"),
        ({"method": "rk45-scipy", "enable_grad": True}, ValueError, "gradients"),
        ({"method": "adaptive", "enable_grad": True}, ValueError, "gradients"),
        ({"trace": Hutchinson(basis="dct")}, ValueError, r"\(B, C, H, W\), got x of shape \(B, 2\)"),
        ({"trace": Hutchinson(basis="pilot")}, ValueError, "images"),
        ({"prior": 3}, TypeError, "prior must be a function .* got 3"),
        ({"prior": lambda z: z.sum()}, ValueError, r"the prior must return one number per sample, \(2,\), got \(\)"),
        ({"prior": lambda z: z}, ValueError, r"got \(2, 2\)"),
        ({"prior": lambda z: None}, ValueError, "got NoneType"),
        ({"prior": lambda z: z.sum(1) * math.nan}, ValueError, "the prior's log-density of sample 0 is nan"),
        ({"score_fn": lambda x, t: torch.zeros_like(x)}, ValueError, "gives no gradient with respect to x"),
        ({"score_fn": lambda x, t: -x.detach()}, ValueError, "gives no gradient .* One whose output is constant"),
        ({"score_fn": lambda x, t: -WEIGHT * x.detach()}, ValueError, "gives no gradient with respect to x"),
        ({"method": "rk45-scipy", "score_fn": lambda x, t: x * math.nan}, ValueError, "at t=1e-05 in samples 0, 1"),
        (
            {"method": "rk45-scipy", "score_fn": lambda x, t: -x + (x - x.detach()).abs().sqrt()},
            ValueError,
            "the trace of the network's Jacobian is not finite at t=1e-05 in samples 0, 1",
        ),
        (
            {"score_fn": lambda x, t: -x + torch.where(t[:, None] > 0.5, (x - x.detach()).abs().sqrt(), 0 * x)},
            ValueError,
            "the trace of the network's Jacobian is not finite at t=",
        ),
        ({"decoder": "laplace"}, ValueError, "laplace"),
        ({"method": "adaptive", "score_fn": lambda x, t: x * math.nan}, ValueError, "sample 0 stopped at t="),
        ({"method": "dopri5-adjoint", "score_fn": lambda x, t: x * math.nan}, ValueError, "gave up"),
        ({"score_fn": lambda x, t: x * math.nan}, ValueError, "not finite"),
        ({"seed": [1, 2, 3]}, ValueError, "3 seeds for 2"),
        ({"sde": sg.VPSDE}, TypeError, "class VPSDE: call it"),
    ],
)
def test_bad_input_to_log_prob(options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """An error at the call, in the user's words."""
    given_options = {"score_fn": SCORE, "sde": VP, "x": X, **options}
    with pytest.raises(error, match=shown):
        sg.log_prob(**given_options)


@pytest.mark.parametrize("flow", [sg.log_prob, sg.encode])
@pytest.mark.parametrize("first", [0.0, 0.4])
def test_where_a_flow_stops_being_finite(flow: Callable[..., Any], first: float) -> None:
    """At the first node of the grid at which the network fails, in that sample."""

    def fails(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((torch.arange(len(x)) == 1)[:, None] & (t[:, None] > first), math.inf, SCORE(x, t))

    t = min(t for t in Stretched(data_std=0.5)(VP, 48, t_end=VP.likelihood_eps).times if t > first)
    with pytest.raises(ValueError, match=f"output is not finite at t={t:.6g} in sample 1"):
        flow(fails, VP, X, method=FixedGrid(48))


def test_a_failure_ends_the_run_with_its_grid() -> None:
    """On 49 nodes, though another sample would go on to finer grids; both that fail are named."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)
    score, calls = oracle.score(VP), []
    x = torch.tensor([[3.0, 0.0], [0.75, 0.0], [4.0, 0.0]], dtype=F64)

    def fails(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        late = (x[:, :1] > 3.5) & (t[:, None] > 1e-4)
        return torch.where(late | (x[:, :1] == 3.0), math.nan, score(x, t))

    with pytest.raises(ValueError, match="output is not finite at t=1e-05 in sample 0 and later in 2"):
        sg.log_prob(fails, VP, x)
    assert calls == [3] * 50  # and once more at the node where it fails


def test_a_failure_on_a_finer_grid_alone() -> None:
    """Only samples that went there are named."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)
    rule, ends = Stretched(data_std=0.5), {"t_end": VP.likelihood_eps}
    t_bad = next(t for t in rule(VP, 96, **ends).times[48:] if t not in rule(VP, 48, **ends).times)
    score, x = oracle.score(VP), torch.tensor([[1.0, 0.0], [0.75, 0.0]], dtype=F64)

    def fails(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(((t - t_bad).abs() < 1e-9)[:, None], math.nan, score(x, t))

    stated = sg.log_prob(score, VP, x, method=FixedGrid(48)).error / 2
    assert (stated > 1e-4).tolist() == [False, True]
    with pytest.raises(ValueError, match=f"output is not finite at t={t_bad:.6g} in sample 1"):
        sg.log_prob(fails, VP, x)


@pytest.mark.parametrize("method", [FixedGrid(48), AdaptiveFlow(), ScipyRK45()])
def test_a_failure_in_a_later_part_is_named_by_its_number_in_the_batch(method: Any) -> None:
    """Sample 4 of 5, which is the first of the third part of two; so is a prior that fails there."""
    x = torch.zeros(5, 2, dtype=F64)
    x[4] = 0.25

    def fails(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((x == 0.25).all(1, keepdim=True), math.nan, SCORE(x, t))

    with pytest.raises(ValueError, match=r"sample 4\b.*not finite|not finite at t=1e-05 in sample 4$"):
        sg.log_prob(fails, VP, x, method=method, batch_size=2)

    away = sg.log_prob(SCORE, VP, x, method=method).latent[4]

    def prior(latent: Tensor) -> Tensor:
        return torch.where((latent - away).norm(dim=1) < 1e-6, math.nan, latent.sum(1))

    with pytest.raises(ValueError, match="the prior's log-density of sample 4 is nan"):
        sg.log_prob(SCORE, VP, x, method=method, batch_size=2, prior=prior)


@pytest.mark.parametrize("held", [False, True])
def test_arguments_that_only_look_like_rows(held: bool) -> None:
    """Samples that go on alone get what they got in their batch, though a table be as long as it, or hidden."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.4, 0.0]], dtype=F64)
    table, label = torch.tensor([0.3, 0.0, 9.0], dtype=F64), torch.tensor([1, 1, 0])
    shift, score = torch.stack([table[label], torch.zeros(3, dtype=F64)], 1), oracle.score(VP)

    def moved(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return score(x - VP.alpha(t)[:, None] * shift, t)

    def by_table(x: Tensor, t: Tensor, table: Tensor, label: Tensor) -> Tensor:
        return moved(x, t, torch.stack([table[label], 0 * table[label]], 1))

    exactly = oracle.log_prob(x - VP.alpha(torch.tensor(1e-5, dtype=F64)) * shift, VP, 1e-5)
    if held:
        res = sg.log_prob(lambda x, t: moved(x, t, shift[: len(x)]), VP, x, seed=5)
    else:
        res = sg.log_prob(by_table, VP, x, seed=5, model_kwargs={"table": table, "label": label})
    assert float((res.value - exactly).abs().max()) < 2e-4
    alone = sg.log_prob(moved, VP, x[2:], seed=5, model_kwargs={"shift": shift[2:]})
    assert float((alone.value - exactly[2:]).abs().max()) < 2e-4


@pytest.mark.parametrize("basis", ["colour", "dct"])
def test_probes_under_autocast(basis: str) -> None:
    """Their transform stays orthonormal."""
    z = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = probe_transform(basis, (3, 8, 8))(z)
    assert torch.equal(rounded, probe_transform(basis, (3, 8, 8))(z))


def test_far_points_are_told_the_scale() -> None:
    """Modes 100 standard deviations and more from 0, for which the default grid is not made."""
    modes = torch.tensor([[99.0, 100.0], [101.0, 101.0]], dtype=F64)
    oracle = sg.oracles.GaussianMixture(modes, 0.2)
    with pytest.warns(
        sg.likelihood.LikelihoodWarning, match=r"its numbers are around 100, .*method=FixedGrid\(data_std=100\)"
    ):
        far = sg.log_prob(oracle.score(VP), VP, modes)
    assert far.unresolved
    assert not sg.log_prob(oracle.score(VP), VP, modes, method=FixedGrid(data_std=100)).unresolved


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_autocast_leaves_all_but_the_network_alone(trace: str) -> None:
    """Near a ridge samples go on to steps of their own, whose null rules are a matrix product."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.2)
    x = torch.tensor([[0.1, 0.0], [1.0, 0.0]])

    def value() -> Tensor:
        return sg.log_prob(oracle.score(VP), VP, x, method="adaptive", trace=trace, seed=0).value

    with torch.autocast("cpu", torch.bfloat16):
        found = value()
    assert torch.equal(found, value())


@pytest.mark.parametrize(
    "options", [{}, {"trace": "exact"}, {"method": "adaptive"}, {"method": "rk45-scipy"}, {"decoder": "gaussian"}]
)
def test_scalars(options: dict[str, Any]) -> None:
    """Data (B,) are a dimension."""
    x = torch.tensor([0.1, -0.7, 0.4], dtype=F64)
    value = sg.log_prob(scalar_score, VP, x, seed=0, **options).value
    exactly = torch.distributions.Normal(0.0, 0.5).log_prob(x)
    assert value.shape == (3,)
    assert float((value - exactly).abs().max()) < 1e-4
    assert torch.equal(value, sg.log_prob(scalar_score, VP, x[:, None], seed=0, **options).value)


def scalar_score(x: Tensor, t: Tensor) -> Tensor:
    variance = 0.25 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2
    return -x / (variance if x.ndim == 1 else variance[:, None])


def test_a_code_that_its_dtype_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"the other end of sample 0 is beyond torch\.float16"):
        sg.encode(lambda x, t: -50 * x, VP, torch.full((1, 2), 60000.0, dtype=torch.float16))


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # not its data
def test_sixteen_bits() -> None:
    """Unsigned integers of any width."""
    images = torch.tensor([[0, 65535], [9, 700]])
    wide = sg.bits_per_dim(SCORE, VP, images.to(torch.uint16), n_levels=65536, data_range=(-1, 1), seed=0)
    assert wide.value == sg.bits_per_dim(SCORE, VP, images, n_levels=65536, data_range=(-1, 1), seed=0).value


def test_a_failure_that_does_not_repeat() -> None:
    """It has a sample, but no time."""
    calls = iter([math.nan])
    with pytest.raises(ValueError, match="the log-likelihood of sample 0 is nan: the score is not finite"):
        sg.log_prob(lambda x, t: SCORE(x, t) * next(calls, 1.0), VP, X, method=FixedGrid(48))


def test_likelihoods_in_inference_mode() -> None:
    """Autograd is off for good there, but not for the trace."""

    def scaled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return SCORE(x, t) * y[:, None]

    y = torch.full((len(X),), 0.5, dtype=F64)
    outside = sg.log_prob(scaled, VP, X, seed=0, model_kwargs={"y": y})
    with torch.inference_mode():
        inside = sg.log_prob(scaled, VP, X.clone(), seed=0, model_kwargs={"y": y.clone()})
    assert torch.equal(inside.value, outside.value)


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"images": X}, TypeError, "float64"),
        ({"images": torch.tensor([[0, 256]])}, ValueError, "0 to 256"),
        ({"images": torch.tensor([[-1, 3]])}, ValueError, "-1 to 3"),
        ({"n_levels": 1}, ValueError, "1"),
        ({"data_range": (1.0, -1.0)}, ValueError, r"\(1.0, -1.0\)"),
        ({"repeats": 0}, ValueError, "0"),
        ({"dequantize": "gaussian"}, ValueError, "gaussian"),
        ({"decoder": "gaussian"}, ValueError, "decoder"),
        ({"enable_grad": True}, ValueError, "enable_grad"),
        ({"eps": 1.0}, ValueError, "eps"),
        ({"data_range": (0.0, math.inf)}, ValueError, "inf"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_bad_input_to_bits_per_dim(options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """Integers in the range only, and no unknown option."""
    given_options = {"images": torch.tensor([[1, 2]]), "n_levels": 256, "data_range": (-1.0, 1.0), **options}
    with pytest.raises(error, match=shown):
        sg.bits_per_dim(SCORE, VP, **given_options)


@pytest.mark.parametrize(
    ("make", "error", "shown"),
    [
        (lambda: FixedGrid(5), ValueError, "5"),
        (lambda: FixedGrid(10.5), ValueError, "10.5"),  # type: ignore[arg-type]
        (lambda: FixedGrid(math.inf), ValueError, "got inf"),  # type: ignore[arg-type]
        (lambda: FixedGrid(data_std=0.0), ValueError, "0.0"),
        (lambda: FixedGrid(atol=-1.0), ValueError, "-1.0"),
        (lambda: FixedGrid(atol=0.0), ValueError, "both"),
        (lambda: AdaptiveFlow(data_std=-1.0), ValueError, "-1.0"),
        (lambda: AdaptiveFlow(rtol=-1.0), ValueError, "-1.0"),
        (lambda: AdjointFlow(atol=math.nan), ValueError, "nan"),
        (lambda: ScipyRK45(rtol=math.inf), ValueError, "inf"),
        (lambda: Hutchinson(0), ValueError, "0"),
        (lambda: Hutchinson(2.0), ValueError, "n_probes must be an integer of at least 1, got 2.0"),  # type: ignore[arg-type]
        (lambda: Hutchinson(probe="uniform"), ValueError, "uniform"),
        (lambda: Hutchinson(basis="wavelet"), ValueError, "wavelet"),
        (lambda: Exact(0), ValueError, "0"),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], shown: str) -> None:
    """Of a method or a trace, where they are written."""
    with pytest.raises(error, match=shown):
        make()


CLD = sg.CLD()
UNIT = sg.oracles.Gaussian(torch.zeros(2), 1.0)
TWO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sg.log_prob(UNIT.score(CLD), CLD, TWO[:, None].expand(2, 2, 2), method=FixedGrid(data_std=0.7)),  # type: ignore[arg-type]
        lambda: sg.encode(UNIT.score(VP), VP, TWO, method="rk45-scipy"),
        lambda: sg.decode(UNIT.score(VP), VP, TWO, method=AdjointFlow()),
    ],
    ids=["log_prob", "encode", "decode"],
)
def test_options_that_would_do_nothing(call: Callable[[], object]) -> None:
    """An error, whichever of them it is."""
    with pytest.raises(ValueError, match=r"data_std=|goes from data to noise only"):
        call()


def test_the_scale_of_the_data_is_positive() -> None:
    with pytest.raises(ValueError, match=r"data_std must be finite, at least 1e-06 .* got -7"):
        sg.log_prob(UNIT.score(VP), VP, TWO, method=FixedGrid(data_std=-7))


def half_detached(x: Tensor, t: Tensor) -> Tensor:
    noise = SCORE.predict("noise", x, t)
    return torch.cat([noise[:, :1], noise[:, 1:].detach()], 1)


def rounded(x: Tensor, t: Tensor) -> Tensor:
    return SCORE.predict("noise", (64 * x).round() / 64, t)


def less_its_greatest(x: Tensor, t: Tensor) -> Tensor:
    """What is taken off is added again, so that all of the gradient is there."""
    noise = SCORE.predict("noise", x, t)
    greatest = noise.amax(1, keepdim=True).detach()
    return (noise - greatest) + greatest


@pytest.mark.filterwarnings("ignore:the numerical error")
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("net", "lost"), [(half_detached, 0.5), (rounded, 1.0)])
@pytest.mark.parametrize("call", [sg.log_prob, partial(sg.decode, log_prob=True)])
def test_networks_that_lose_some_of_their_gradient_are_told(
    call: Callable[..., object], net: Callable[[Tensor, Tensor], Tensor], lost: float, rows: int
) -> None:
    """Their divergence is that of what is left."""
    x = GAUSSIAN.sample(rows, VP, 1e-5, seed=0, dtype=F64)
    with pytest.warns(LikelihoodWarning, match="the log-likelihoods are wrong: the network's gradient") as told:
        call(sg.from_noise(net, VP), VP, x, method=FixedGrid(48))
    (share,) = re.findall(r"output, (\d+)% of how it changes", str(told[0].message))
    assert int(share) == pytest.approx(100 * lost, abs=15)


def test_a_network_that_may_lose_some_is_asked_three_times_more() -> None:
    """And nothing is said where it has lost none; one in which nothing can be lost is asked no more than before."""
    x = GAUSSIAN.sample(3, VP, 1e-5, seed=0, dtype=F64)
    found, plain = (
        sg.log_prob(sg.from_noise(net, VP), VP, x, method=FixedGrid(48))
        for net in (less_its_greatest, lambda x, t: SCORE.predict("noise", x, t))
    )
    assert (found.nfe, plain.nfe) == (52, 49) and (found.vjps, plain.vjps) == (99, 98)
    torch.testing.assert_close(found.value, plain.value)


FLOWS: list[Callable[..., Any]] = [sg.log_prob, sg.encode, sg.decode, sg.elbo]


@pytest.mark.parametrize("function", FLOWS, ids=[function.__name__ for function in FLOWS])
def test_densities_are_refused_within_transformations(function: Callable[..., Any]) -> None:
    """With what gives gradients instead: the grid and the error follow from values."""
    sde = sg.VPSDE()
    score = sg.from_noise(lambda x, t: 0.5 * x, sde)
    with pytest.raises(RuntimeError, match=r"within a transformation of torch\.func.*enable_grad=True"):
        torch.func.vmap(lambda x: function(score, sde, x).nfe)(torch.ones(2, 3, 1))
