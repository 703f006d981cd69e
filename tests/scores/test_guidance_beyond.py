"""Guidance beyond classifier-free: each against its published formula, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.scores.guidance import APG, Auto, ClassifierFree, Rescaled, Thresholded, Weakened, cfg_plus_plus
from tests.helpers import F64

SDE = sg.VPSDE()
X = torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
T = torch.tensor([0.9, 0.4, 0.1], dtype=F64)
KW = {"y": sg.PerSample(Y)}


def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A network of noise with a condition."""
    return torch.tanh(x + y.reshape(-1, 1, 1)) * (1 + 0.1 * t.reshape(-1, 1, 1))


def weak_net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return 0.5 * net(x, t, y)


SCORE, WEAK = (sg.from_noise(f, SDE) for f in (net, weak_net))
EPS_C, EPS_0, EPS_W = net(X, T, Y), net(X, T, torch.zeros(3, dtype=F64)), weak_net(X, T, Y)


def shaped(c: Tensor) -> Tensor:
    return c.reshape(-1, 1, 1)


ALPHA, SIGMA = (shaped(f(T)) for f in (SDE.alpha, SDE.sigma))


def data(eps: Tensor) -> Tensor:
    return (X - SIGMA * eps) / ALPHA


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def guided(scale: Any, **options: Any) -> ClassifierFree:
    return ClassifierFree(SCORE, scale, **({"null": {"y": 0.0}} | options))


def test_a_scale_for_each_sample_and_of_the_noise_level() -> None:
    w = torch.tensor([1.0, 3.0, 0.0], dtype=F64)
    expected = EPS_0 + shaped(w) * (EPS_C - EPS_0)
    close(guided(sg.PerSample(w)).output(X, T, **KW), expected)
    levels = (SIGMA / ALPHA).flatten()
    close(guided(lambda level: 1 + level).output(X, T, **KW), EPS_0 + shaped(1 + levels) * (EPS_C - EPS_0))
    low = float(levels[2]) * 1.5
    inside = torch.where(levels > low, 1 + levels, 1.0)
    within = guided(lambda level: 1 + level, interval=(low, 1e9))
    close(within.output(X, T, **KW), EPS_0 + shaped(inside) * (EPS_C - EPS_0))
    close(Auto(SCORE, WEAK, sg.PerSample(w)).output(X, T, **KW), EPS_W + shaped(w) * (EPS_C - EPS_W))

    # A run is that of each sample's own scale.
    together = sg.sample(guided(sg.PerSample(w)), SDE, x_T=X, nfe=6, solver="ddim", model_kwargs=KW).x
    for i in range(3):
        alone = sg.sample(
            guided(float(w[i])), SDE, x_T=X[i : i + 1], nfe=6, solver="ddim", model_kwargs={"y": Y[i : i + 1]}
        )
        close(together[i : i + 1], alone.x)
    assert not guided(sg.PerSample(w)).is_density
    assert "PerSample" in repr(guided(sg.PerSample(w)))


def test_misuse_of_scales() -> None:
    for scale, match in (
        (sg.PerSample(torch.ones(2, 2)), r"one number per sample, \(B,\), got shape \(2, 2\)"),
        (sg.PerSample(torch.tensor([1.0, float("nan")])), "scale must be finite"),
        (float("inf"), "scale must be"),
        ("3", "scale must be one number"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            guided(scale)
    with pytest.raises(ValueError, match="the scale has 2 values, one per sample, and the score was asked about 3"):
        guided(sg.PerSample(torch.ones(2))).output(X, T, **KW)
    with pytest.raises(ValueError, match=r"scale\(level\) must return \(3,\) numbers, got shape \(2,\)"):
        guided(lambda level: level[:2]).output(X, T, **KW)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_rescaled(scale: float) -> None:
    """Lin et al.'s rescaling, in the prediction of the network; diffusers' `rescale_noise_cfg`."""
    cfg = EPS_0 + scale * (EPS_C - EPS_0)
    factor = EPS_C.std(dim=(1, 2), keepdim=True) / cfg.std(dim=(1, 2), keepdim=True)
    close(Rescaled(guided(scale), 0.7).output(X, T, **KW), 0.7 * factor * cfg + 0.3 * cfg)
    close(Rescaled(guided(scale), 0.0).output(X, T, **KW), cfg)


@pytest.mark.parametrize(("eta", "norm"), [(0.0, None), (1.0, None), (0.3, 0.5), (0.0, 1e3)])
def test_apg(eta: float, norm: float | None) -> None:
    """Sadat et al.'s algorithm 1 without momentum, on data estimates."""
    D_c, D_0 = data(EPS_C), data(EPS_0)
    expected = []
    for c, u in zip(D_c, D_0, strict=True):
        diff = c - u
        if norm is not None:
            diff = min(1.0, norm / float(diff.norm())) * diff
        direction = c / c.norm()
        parallel = (diff * direction).sum() * direction
        expected.append(c + (4.0 - 1) * ((diff - parallel) + eta * parallel))
    score = APG(guided(4.0), eta, norm)
    close(score.predict("data", X, T, **KW), torch.stack(expected))
    if eta == 1.0:
        close(score.output(X, T, **KW), guided(4.0).output(X, T, **KW))


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0])
def test_cfg_plus_plus(scale: float) -> None:
    """Chung et al.'s algorithm 2 step by step, from noise to the denoised end."""
    grid = sg.grids.Uniform()(SDE, 6)
    x = X
    for t, s in zip(grid.times, [*grid.times[1:], None], strict=True):
        at = torch.full((3,), t, dtype=F64)
        a, b = float(SDE.alpha(t)), float(SDE.sigma(t))
        eps_c, eps_0 = net(x, at, Y), net(x, at, 0 * Y)
        D = (x - b * (eps_0 + scale * (eps_c - eps_0))) / a
        x = D if s is None else float(SDE.alpha(s)) * D + float(SDE.sigma(s)) * eps_0
    score = guided(cfg_plus_plus(scale, SDE, grid))
    close(sg.sample(score, SDE, x_T=X, grid=grid, solver="ddim", model_kwargs=KW).x, x)
    single = sg.sample(score, SDE, x_T=X.float(), grid=grid, solver="ddim", model_kwargs={"y": sg.PerSample(Y.float())})
    torch.testing.assert_close(single.x.double(), x, rtol=1e-3, atol=1e-3)


def test_thresholds() -> None:
    """Imagen's: static, and dynamic by the quantile of each sample."""
    score = guided(8.0)
    D = data(EPS_0 + 8.0 * (EPS_C - EPS_0))
    close(Thresholded(score).predict("data", X, T, **KW), D.clamp(-1, 1))
    s = D.abs().flatten(1).quantile(0.9, dim=1).clamp(min=1.0)
    dynamic = Thresholded(score, percentile=0.9)
    close(dynamic.predict("data", X, T, **KW), torch.stack([d.clamp(-b, b) / b for d, b in zip(D, s, strict=True)]))
    assert not dynamic.is_density
    assert dynamic.branches == 2
    tame = Thresholded(SCORE, limit=1e6)
    close(tame.output(X, T, **KW), EPS_C)
    with pytest.raises(ValueError, match="a likelihood under it would be that of nothing"):
        sg.log_prob(tame, SDE, X, model_kwargs=KW, seed=0)


def test_a_weakened_branch() -> None:
    """Perturbed attention's formula: with and without classifier-free guidance, each network called once a branch."""
    close(Weakened(SCORE, WEAK, 2.0).output(X, T, **KW), EPS_C + 2.0 * (EPS_C - EPS_W))
    cfg = EPS_0 + 4.0 * (EPS_C - EPS_0)
    score = Weakened(guided(4.0), WEAK, 2.0)
    close(score.output(X, T, **KW), cfg + 2.0 * (EPS_C - EPS_W))
    assert (score.network_evals(T), score.branches) == (9, 3)
    close(Weakened(guided(4.0), WEAK, 0.0).output(X, T, **KW), cfg)
    s = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    close(Weakened(guided(4.0), WEAK, sg.PerSample(s)).output(X, T, **KW), cfg + shaped(s) * (EPS_C - EPS_W))
    level = float(SIGMA[1] / ALPHA[1])
    near = Weakened(guided(4.0), WEAK, 2.0, interval=(0.5 * level, 2 * level))
    only = shaped(torch.tensor([0.0, 2.0, 0.0], dtype=F64))
    close(near.output(X, T, **KW), cfg + only * (EPS_C - EPS_W))


def test_a_negative_condition_of_another_length() -> None:
    """Two calls, with the arguments of each branch."""
    seen: list[tuple[int, ...]] = []

    def attention(x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        seen.append(tuple(tokens.shape))
        return x + (tokens * mask).sum(1)[:, None, None]

    tokens = torch.rand(3, 5, dtype=F64)
    for negative, rows in ((torch.rand(1, 2, dtype=F64), 1), (torch.rand(3, 2, dtype=F64), 3)):
        seen.clear()
        score = ClassifierFree(
            sg.from_noise(attention, SDE), 3.0, negative={"tokens": negative, "mask": torch.ones(rows, 2, dtype=F64)}
        )
        out = score.output(X, T, tokens=tokens, mask=torch.ones(3, 5, dtype=F64))
        c, u = (X + v.expand(3, -1).sum(1)[:, None, None] for v in (tokens, negative))
        close(out, u + 3.0 * (c - u))
        assert seen == [(3, 5), (3, 2)]
    with pytest.raises(ValueError, match=r"the negative 'tokens' has 2 rows: expected 1, or one for each of 3 samples"):
        ClassifierFree(sg.from_noise(attention, SDE), 3.0, negative={"tokens": torch.ones(2, 2)}).output(
            X, T, tokens=tokens, mask=tokens
        )
    with pytest.raises(ValueError, match="negative names 'words', which the call does not have"):
        ClassifierFree(SCORE, 3.0, negative={"words": 1}).output(X, T, **KW)
    with pytest.raises(ValueError, match="not both"):
        ClassifierFree(SCORE, 3.0, null={"y": 0.0}, negative={"y": 0.0})


@pytest.mark.parametrize("wrap", [Rescaled, APG, Thresholded, lambda s: Weakened(s, WEAK, 1.0)])
def test_they_are_scores_for_every_solver(wrap: Any) -> None:
    """Seeds, several solvers, one that finds its own steps, half precision of a network."""
    score = wrap(guided(2.0))
    for solver in ("dpm++2m", "euler-ancestral", "heun"):
        a, b = (sg.sample(score, SDE, x_T=X, nfe=8, solver=solver, seed=0, model_kwargs=KW).x for _ in range(2))
        assert torch.equal(a, b)
        assert bool(a.isfinite().all())
    assert bool(sg.sample(score, SDE, x_T=X, solver="dopri5", model_kwargs=KW).x.isfinite().all())
    assert score.cast_to(torch.float32).output(X, T, **KW).dtype is F64
    with pytest.raises(TypeError, match=r"guidance wraps what from_denoiser|this changes what ClassifierFree"):
        wrap(net)
