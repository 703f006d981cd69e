"""Guided scores against closed forms on mixtures whose class posteriors are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import sgm_sde as sg
from sgm_sde._utils.shapes import expand
from sgm_sde.likelihood import FixedGrid
from sgm_sde.nn import load_digits_classifier, load_digits_denoiser
from sgm_sde.scores.conditions import AmbiguousArgument
from sgm_sde.scores.guidance import (
    APG,
    Auto,
    Classifier,
    ClassifierFree,
    Rescaled,
    Thresholded,
    Weakened,
    ZeroStar,
    cfg_plus_plus,
    from_classifier,
)
from tests.conventions import case_id, some_slow
from tests.helpers import ALL, DOUBLE, F64, LINEAR, Recorder, sampler

MEANS = torch.tensor([[-1.5, 0.0], [0.5, 1.0], [1.0, -1.0]], dtype=F64)


STDS = torch.tensor([0.4, 0.3, 0.5], dtype=F64)


WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=F64)


MIXTURE = sg.oracles.GaussianMixture(MEANS, STDS, WEIGHTS)


# Class 0 is the first component, class 1 the other two; 2 stands for no class.
MEMBERS = ([0], [1, 2])


CLASSES = [sg.oracles.GaussianMixture(MEANS[k], STDS[k], WEIGHTS[k]) for k in MEMBERS]


NULL = 2


FROM = {"data": sg.from_denoiser, "noise": sg.from_noise, "score": sg.from_score,
        "v": sg.from_v, "flow": sg.from_flow}  # fmt: skip


def class_score(sde: sg.LinearSDE, prediction: str = "data") -> sg.Score:
    """A class-conditional network: the exact score of a sample's class, that of all data for the label 2."""
    parts = [oracle.score(sde) for oracle in (*CLASSES, MIXTURE)]

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        outputs = torch.stack([part.predict(prediction, x, t) for part in parts])
        return outputs[y, torch.arange(len(x))]

    return FROM[prediction](net, sde)


def log_posterior(sde: sg.LinearSDE) -> Callable[..., Tensor]:
    """log p(y | x, t), exactly."""

    def log_p(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return log_posteriors(x, t, sde).gather(1, y[:, None])[:, 0]

    return log_p


def log_posteriors(x: Tensor, t: Tensor, sde: sg.LinearSDE) -> Tensor:
    """log p(y | x, t) of both classes, exactly, (B, 2)."""
    r = MIXTURE.responsibilities(x, sde, t)
    return torch.stack([r[:, k].sum(1) for k in MEMBERS], 1).log()


def points(sde: sg.LinearSDE, n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """States, times and labels of a batch, each sample at a time of its own."""
    generator = torch.Generator().manual_seed(0)
    t = sde.eps + (0.9 * sde.T - sde.eps) * torch.linspace(0.02, 1, n, dtype=F64) ** 2
    x = MIXTURE.sample(n, sde, t, seed=0, dtype=F64)
    return x, t, torch.randint(2, (n,), generator=generator)


def close(a: Tensor, b: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize("prediction", FROM)
@pytest.mark.parametrize("name", ["vp", "ve", "edm", "flow", "sub-vp"])
@pytest.mark.parametrize("w", [0.0, 0.7, 1.0, 3.0])
def test_both_guidances_are_the_same_score(name: str, prediction: str, w: float) -> None:
    """By Bayes' rule s(x) + w grad log p(y | x) = s(x) + w (s(x | y) - s(x)), in whatever a network predicts."""
    sde = LINEAR[name]
    x, t, y = points(sde)
    D, D_y = MIXTURE.score(sde).denoised(x, t), class_score(sde).denoised(x, t, y=y)
    expected = D + w * (D_y - D)
    free = ClassifierFree(class_score(sde, prediction), w, {"y": NULL})
    marginal = FROM[prediction](lambda x, t: MIXTURE.score(sde).predict(prediction, x, t), sde)
    close(free.denoised(x, t, y=y), expected)
    close(Classifier(marginal, log_posterior(sde), w).denoised(x, t, y=y), expected)
    assert free.prediction == prediction  # no conversion stands between the network and a solver


def test_class_proportions_and_laws() -> None:
    """Scale 1 of classifier guidance samples each class' own law: members in their proportions, each one Gaussian."""
    n, sde = 6000, sg.VPSDE()
    y = torch.arange(n) % 2
    classifier = from_classifier(lambda x, t: log_posteriors(x, t, sde))
    score = Classifier(MIXTURE.score(sde), classifier)
    res = sg.sample(
        score,
        sde,
        (n, 2),
        nfe=30,
        seed=range(10_000, 10_000 + n),
        model_kwargs={"y": y},
        execution=DOUBLE,
    )
    assert (res.nfe, res.network_evals) == (30, 30 * n)
    component = MIXTURE.responsibilities(res.x).argmax(1)
    assert float(((component > 0) == y).double().mean()) > 0.995  # the classes overlap this little
    share = float((component[y == 1] == 2).double().mean())
    p = float(WEIGHTS[2] / WEIGHTS[1:].sum())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / (n / 2))
    for label, members in enumerate(MEMBERS):
        x = res.x[y == label]
        w = WEIGHTS[members] / WEIGHTS[members].sum()
        mean = (w[:, None] * MEANS[members]).sum(0)
        variance = (w[:, None] * (STDS[members][:, None] ** 2 + MEANS[members] ** 2)).sum(0) - mean**2
        assert bool(((x.mean(0) - mean).abs() < 4 * (variance / len(x)).sqrt()).all())
        assert bool(((x - mean).square().mean(0) / variance - 1).abs().max() < 4 * math.sqrt(3 / len(x)))
        for axis in range(2):

            def cdf(v: Any, members: list[int] = members, w: Tensor = w, axis: int = axis) -> Any:
                z = (torch.as_tensor(v)[:, None] - MEANS[members, axis]) / STDS[members]
                return (w * torch.special.ndtr(z)).sum(1).numpy()

            assert kstest(x[:, axis].numpy(), cdf).pvalue > 1e-3


@pytest.mark.parametrize("w", [0.0, 2.0, 5.0])
def test_scale_on_gaussian_classes(w: float) -> None:
    """Two Gaussians of one width: the guided flow moves the class' mean, in closed form, and keeps its width.

    With s(x | y) = -(x - alpha m_y) / v and a null class of the same form, v = alpha^2 c + sigma^2, the guided score is
    that of a Gaussian around m_0 + w (m_y - m_0), whose flow is known.
    """
    sde, c = sg.VPSDE(), 0.25
    m0, m1 = torch.zeros(2, dtype=F64), torch.tensor([1.0, -0.5], dtype=F64)
    parts = [sg.oracles.Gaussian(m, c).score(sde) for m in (m1, m0)]

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y[:, None] == 0, parts[0].denoised(x, t), parts[1].denoised(x, t))

    x_T = torch.randn(64, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    score = ClassifierFree(sg.from_denoiser(net, sde), w, {"y": 1})
    kwargs = {"y": torch.zeros(64, dtype=torch.long)}
    res = sg.sample(score, sde, x_T=x_T, solver="unipc4", grid="log-snr", steps=80, final="none", model_kwargs=kwargs)
    expected = sg.oracles.Gaussian(m0 + w * (m1 - m0), c).flow(x_T, sde, sde.T, sde.eps)
    close(res.x, expected, 1e-5)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm++3m", "unipc3", "rk4", "ancestral", "seeds2", "pc", "deis3"])
def test_every_solver_takes_a_guided_score(name: str) -> None:
    """The guided score and the same combination written by hand give the same samples, of whatever solver."""
    sde = sg.VPSDE()
    y = torch.arange(8) % 2
    score = class_score(sde, "noise")

    def by_hand(x: Tensor, t: Tensor) -> Tensor:
        null = score(x, t, y=torch.full_like(y, NULL))
        return null + 2.0 * (score(x, t, y=y) - null)

    options: dict[str, Any] = {
        "shape": (8, 2),
        "solver": sampler(name, sde),
        "steps": 8,
        "seed": 3,
        "execution": DOUBLE,
    }
    guided = ClassifierFree(score, 2.0, {"y": NULL})
    res = sg.sample(guided, sde, model_kwargs={"y": y}, **options)
    close(res.x, sg.sample(by_hand, sde, **options).x, 1e-7)
    assert res.network_evals == 2 * 8 * res.nfe
    assert name in ALL


def test_branches_are_called_once_and_only_when_needed() -> None:
    """One call of 2B rows; B rows where one branch is enough, by scale or by noise level."""
    sde = sg.EDMSDE()
    net = Recorder(class_score(sde).net)
    score = sg.from_denoiser(net, sde)
    levels = [80.0, 10.0, 5.0, 2.0, 1.0, 0.1]
    options: dict[str, Any] = {
        "grid": levels,
        "solver": "ddim",
        "seed": 0,
        "model_kwargs": {"y": torch.zeros(3).long()},
    }
    for scale, interval, doubled in [
        (3.0, None, range(6)),
        (1.0, None, ()),
        (0.0, None, ()),
        (3.0, (1.0, 10.0), (1, 2, 3)),  # above 1, up to 10
        (0.0, (1.0, 10.0), ()),
        (3.0, (20.0, 70.0), ()),
    ]:
        net.states.clear()
        res = sg.sample(ClassifierFree(score, scale, {"y": NULL}, interval=interval), sde, (3, 2), **options)
        rows = [6 if i in doubled else 3 for i in range(6)]
        assert [len(x) for x in net.states] == rows
        assert (res.nfe, res.network_evals) == (6, sum(rows))


def test_interval() -> None:
    """Guided in the interval, plainly conditional outside, each sample by its own noise level."""
    sde = sg.VPSDE()
    x, t, y = points(sde)
    level = sde.sigma(t) / sde.alpha(t)
    inside = (level > 0.2) & (level <= 2.0)
    assert 0 < int(inside.sum()) < len(x)
    score = class_score(sde, "v")
    plain, full = score(x, t, y=y), ClassifierFree(score, 2.7, {"y": NULL})(x, t, y=y)
    close(
        ClassifierFree(score, 2.7, {"y": NULL}, interval=(0.2, 2.0))(x, t, y=y),
        torch.where(inside[:, None], full, plain),
    )
    marginal = MIXTURE.score(sde)
    log_p = log_posterior(sde)
    parts = [Classifier(marginal, log_p, w)(x, t, y=y) for w in (2.7, 0.0)]
    guided = Classifier(marginal, log_p, 2.7, interval=(0.2, 2.0))
    close(guided(x, t, y=y), torch.where(inside[:, None], *parts))


def test_autoguidance_and_nesting() -> None:
    """Away from a weaker score of another prediction; guided scores wrap guided scores, rows adding up."""
    sde = sg.VPSDE()
    x, t, y = points(sde)
    strong, weak = class_score(sde, "noise"), class_score(sg.VPSDE(), "v")
    blurred = sg.oracles.GaussianMixture(MEANS, 2 * STDS, WEIGHTS).score(sde)
    auto = Auto(MIXTURE.score(sde), blurred, 2.5)
    close(auto(x, t), blurred(x, t) + 2.5 * (MIXTURE.score(sde)(x, t) - blurred(x, t)))
    close(Auto(strong, weak, 3.0)(x, t, y=y), strong(x, t, y=y), 1e-7)

    inner = Auto(strong, sg.from_score(lambda x, t, y: blurred(x, t), sde), 2.0)
    outer = ClassifierFree(inner, 3.0, {"y": NULL})
    null = inner(x, t, y=torch.full_like(y, NULL))
    close(outer(x, t, y=y), null + 3.0 * (inner(x, t, y=y) - null))
    both = Classifier(outer, log_posterior(sde), 0.5, shared=True)
    gradient = class_score(sde)(x, t, y=y) - MIXTURE.score(sde)(x, t)
    close(both(x, t, y=y), outer(x, t, y=y) + 0.5 * gradient, 1e-7)
    for score, rows in ((inner, 2), (outer, 4), (both, 4)):
        res = sg.sample(score, sde, (5, 2), nfe=3, seed=0, model_kwargs={"y": y[:5]}, execution=DOUBLE)
        assert res.network_evals == rows * 5 * 3


def test_negative_condition() -> None:
    """A null condition that means something, one per sample."""
    sde = sg.VPSDE()
    x, t, y = points(sde)
    score = class_score(sde)
    s, s_not = score(x, t, y=y), score(x, t, y=1 - y)
    close(ClassifierFree(score, 1.5, {"y": 1 - y})(x, t, y=y), s_not + 1.5 * (s - s_not))


def test_arguments_of_the_null_branch() -> None:
    """Conditions of any shape are doubled with their null, other rows with themselves, the rest is passed on."""
    seen: dict[str, Any] = {}

    def net(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        seen.update(kwargs)
        return x

    score = ClassifierFree(sg.from_denoiser(net, sg.VPSDE()), 2.0, {"text": torch.zeros(4, 3)})
    text, mask, table = torch.ones(2, 4, 3), torch.arange(2), torch.ones(7)
    score(torch.ones(2, 5), 0.5, text=text, mask=sg.PerSample(mask), table=table, flag=True)
    assert torch.equal(seen["text"], torch.cat([text, torch.zeros(2, 4, 3)]))
    assert torch.equal(seen["mask"], torch.tensor([0, 1, 0, 1]))
    assert seen["table"] is table
    assert seen["flag"] is True


def test_a_sample_is_its_own() -> None:
    """Guided samples do not depend on their batch, nor on labels of batch-mates."""
    sde = sg.VPSDE()
    score = ClassifierFree(class_score(sde), 2.0, {"y": NULL}, interval=(0.1, 5.0))
    y = torch.tensor([0, 1, 1, 0, 1])
    options: dict[str, Any] = {"nfe": 6, "solver": "sde-dpm++2m", "execution": DOUBLE}
    all_of_them = sg.sample(score, sde, (5, 2), seed=range(5), model_kwargs={"y": y}, **options).x
    last = sg.sample(score, sde, (2, 2), seed=[3, 4], model_kwargs={"y": y[3:]}, **options).x
    close(last, all_of_them[3:], 1e-12)


def test_adaptive_solvers() -> None:
    """Samples at times of their own, some in the interval and some not: each as if alone."""
    sde = sg.VPSDE()
    score = class_score(sde, "noise")
    y = torch.tensor([0, 1, 1, 0])
    options: dict[str, Any] = {"solver": "dopri5", "execution": DOUBLE}
    guided = ClassifierFree(score, 2.0, {"y": NULL}, interval=(0.1, 5.0))
    res = sg.sample(guided, sde, (4, 2), seed=range(4), model_kwargs={"y": y}, **options)
    alone = sg.sample(guided, sde, (1, 2), seed=[2], model_kwargs={"y": y[2:3]}, **options)
    close(alone.x[0], res.x[2], 1e-12)
    assert 4 < res.network_evals < 8 * res.nfe


class Linear(torch.nn.Module):
    """A classifier of noisy data with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False, dtype=F64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -0.5], [0.2, 0.7]]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x) * (1 + t)[:, None]


def test_no_trace_of_the_gradient() -> None:
    """Neither requires_grad of states and parameters nor gradients change, and no graph is left without gradients."""
    sde = sg.VPSDE()
    x, t, y = points(sde)
    net = Linear()
    score = Classifier(MIXTURE.score(sde), from_classifier(net), 2.0)
    with torch.no_grad():
        out = score(x, t, y=y)
        assert not torch.is_grad_enabled()
    assert not (out.requires_grad or x.requires_grad)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    frozen = Linear().requires_grad_(False)
    close(Classifier(MIXTURE.score(sde), from_classifier(frozen), 2.0)(x, t, y=y), out)
    assert not any(p.requires_grad for p in frozen.parameters())
    res = sg.sample(score, sde, (12, 2), nfe=4, seed=0, model_kwargs={"y": y}, execution=DOUBLE)
    assert not res.x.requires_grad


def test_backpropagation_through_guidance() -> None:
    """With gradients on, those of a guided sample with respect to its start and to the classifier are exact."""
    sde = sg.VPSDE()
    x_T = torch.randn(2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1])
    net = Linear()
    score = Classifier(MIXTURE.score(sde), from_classifier(net), 2.0)

    def run(x_T: Tensor, weight: Tensor) -> Tensor:
        def log_p(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return (
                torch.func.functional_call(net, {"layer.weight": weight}, (x, t))
                .log_softmax(1)
                .gather(1, y[:, None])[:, 0]
            )

        guided = Classifier(MIXTURE.score(sde), log_p, 2.0)
        return sg.sample(
            guided,
            sde,
            x_T=x_T,
            solver="dpm++2m",
            steps=3,
            model_kwargs={"y": y},
            execution=sg.Execution(enable_grad=True),
        ).x

    weight = net.layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x_T.requires_grad_(), weight))
    assert score.parts[0].is_density


def test_likelihood() -> None:
    """Scale 1 with the exact posterior: the likelihood of the class' own data; beyond, an error in words."""
    sde = sg.VPSDE()
    n = 6
    x = CLASSES[1].sample(n, sde, 1e-5, seed=0, dtype=F64)
    kwargs = {"y": torch.ones(n, dtype=torch.long)}
    score = Classifier(MIXTURE.score(sde), log_posterior(sde))
    result = sg.log_prob(score, sde, x, trace="exact", model_kwargs=kwargs)
    own = sg.log_prob(CLASSES[1].score(sde), sde, x, trace="exact")
    close(result.value, own.value, 1e-7)
    prior = lambda z: CLASSES[1].log_prob(z, sde, sde.T)  # noqa: E731
    fine = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(192), prior=prior, model_kwargs=kwargs)
    close(fine.value, CLASSES[1].log_prob(x, sde, 1e-5), 5e-4)
    free = ClassifierFree(class_score(sde), 1.0, {"y": NULL}, interval=(0.1, 1.0))
    close(sg.log_prob(free, sde, x, trace="exact", model_kwargs=kwargs).value, result.value, 1e-7)
    null = ClassifierFree(class_score(sde), 0.0, {"y": NULL})
    value = sg.log_prob(null, sde, x, trace="exact", model_kwargs=kwargs).value
    close(value, sg.log_prob(MIXTURE.score(sde), sde, x, trace="exact").value, 1e-9)
    for bad in (
        Classifier(MIXTURE.score(sde), log_posterior(sde), 2.0),
        Classifier(MIXTURE.score(sde), log_posterior(sde), 1.0, interval=(0.1, 1.0)),
        ClassifierFree(class_score(sde), 3.0, {"y": NULL}),
        ClassifierFree(class_score(sde), 0.0, {"y": NULL}, interval=(0.1, 1.0)),
        Auto(class_score(sde), class_score(sde), 1.5),
        Auto(ClassifierFree(class_score(sde), 3.0, {"y": NULL}), class_score(sde), 1.0),
    ):
        with pytest.raises(ValueError, match="not the score of the forward process' marginals"):
            sg.log_prob(bad, sde, x, model_kwargs=kwargs)
        z = sg.encode(bad, sde, x, model_kwargs=kwargs)  # a map back and forth needs no density
        assert z.x.shape == x.shape


def test_digits() -> None:
    """The shipped network: the asked digit is found more often the stronger the guidance; 1 in 10 without."""
    sde, n = sg.EDMSDE(), 300
    score, classifier = sg.from_denoiser(load_digits_denoiser(), sde), load_digits_classifier()
    y = torch.arange(n) % 10
    found = []
    for scale in (0.0, 1.0, 2.0):
        guided = ClassifierFree(score, scale)  # the network declares its null label
        res = sg.sample(guided, sde, (n, 1, 8, 8), nfe=8, seed=0, model_kwargs={"y": y})
        found.append(float((classifier(res.x).argmax(1) == y).double().mean()))
    assert abs(found[0] - 0.1) < 4 * math.sqrt(0.09 / n)
    assert found[0] < 0.3 < found[1] <= found[2]


VP = sg.VPSDE()


def _constant(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=x.dtype)


def _stuck(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=x.dtype, requires_grad=True) * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree(class_score(VP), 2.0), "no null label"),
        (lambda: ClassifierFree(class_score(VP), 2.0, {}), "got null={}"),
        (lambda: ClassifierFree(class_score(VP), math.nan, {"y": 2}), "scale must be finite, .* got nan"),
        (lambda: ClassifierFree(class_score(VP), 2.0, {"y": 2}, interval=(1.0, 0.5)), r"got \(1.0, 0.5\)"),
        (lambda: Auto(class_score(VP), class_score(sg.VESDE()), 2.0), "different processes"),
    ],
)
def test_bad_options(make: Callable[[], sg.Score], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="use from_score"):
        Auto(lambda x, t: x, class_score(VP), 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a function of .x, t, y., got 3"):
        Classifier(MIXTURE.score(VP), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sequence of names"):
        Classifier(MIXTURE.score(VP), _constant, condition="y")


@pytest.mark.parametrize(
    ("score", "kwargs", "message"),
    [
        (ClassifierFree(class_score(VP), 2.0, {"y": 2}), {}, r"asks for the condition 'y'.* got \[\]"),
        (ClassifierFree(class_score(VP), 2.0, {"y": 2}), {"y": 1}, "one row per sample, 4 in all, got 1"),
        (ClassifierFree(class_score(VP), 2.0, {"y": 2}), {"y": torch.zeros(3).long()}, r"shape \(3,\)"),
        (ClassifierFree(class_score(VP), 2.0, {"y": torch.zeros(3)}), {"y": torch.zeros(4).long()}, "does not expand"),
        (Classifier(MIXTURE.score(VP), _constant), {}, "asks for the condition 'y'"),
        (Classifier(MIXTURE.score(VP), _constant), {"y": torch.zeros(4).long()}, "does not depend on x"),
        (Classifier(MIXTURE.score(VP), _stuck), {"y": torch.zeros(4).long()}, "does not depend on x"),
        (Classifier(MIXTURE.score(VP), lambda x, t, y: x), {"y": 0}, r"one number per sample, \(4,\), got \(4, 2\)"),
        (Classifier(MIXTURE.score(VP), lambda x, t, y: 1.0), {"y": 0}, "got float"),
        (Classifier(MIXTURE.score(VP), from_classifier(Linear())), {"y": torch.tensor([0, 1, 2, 0])}, r"\[0, 2\)"),
        (Classifier(MIXTURE.score(VP), from_classifier(Linear())), {"y": torch.zeros(4)}, "integers"),
        (Classifier(MIXTURE.score(VP), from_classifier(lambda x, t: x[:, 0])), {"y": torch.zeros(4).long()}, "logits"),
    ],
)  # fmt: skip
def test_bad_calls(score: sg.Score, kwargs: Mapping[str, Any], message: str) -> None:
    """Errors at the call, with the values."""
    with pytest.raises(ValueError, match=message):
        sg.sample(score, VP, (4, 2), nfe=3, seed=0, model_kwargs=kwargs, execution=DOUBLE)


def test_inference_mode() -> None:
    """Autograd is off for good there, but not for the classifier."""
    x, t, y = points(VP)
    score = Classifier(MIXTURE.score(VP), log_posterior(VP))
    with torch.inference_mode():
        guided = score(x.clone(), t.clone(), y=y.clone())
    assert torch.equal(guided, score(x, t, y=y))


def test_networks_are_compiled_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """compile=True compiles what is wrapped, and the run is the same; casts go to every network."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or (lambda *a, **k: net(*a, **k)))
    strong, weak = class_score(VP), class_score(VP)
    score = Auto(ClassifierFree(strong, 2.0, {"y": NULL}), weak, 1.5)
    options: dict[str, Any] = {"nfe": 4, "seed": 0, "model_kwargs": {"y": torch.zeros(3).long()}}
    executions = [sg.Execution(compile=flag, dtype=F64) for flag in (True, False)]
    a, b = (sg.sample(score, VP, (3, 2), execution=execution, **options) for execution in executions)
    assert compiled == [strong.net, weak.net]
    close(a.x, b.x)
    assert (a.network_evals, b.network_evals) == (36, 36)
    half = score.cast_to(torch.bfloat16)
    assert [part.dtype for part in half.parts] == [torch.bfloat16] * 2  # type: ignore[attr-defined]
    assert "scale=1.5" in repr(score)


@pytest.mark.parametrize("nfe", [6, 8, 10])
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_the_default_is_better_than_ddim_under_strong_guidance(process: str, nfe: int) -> None:
    """Six modes in 16 dimensions at scale 5, against a tight solution: at few calls too."""
    sde = {"vp": sg.VPSDE(), "edm": sg.EDMSDE()}[process]
    means = torch.randn(6, 16, generator=torch.Generator().manual_seed(0), dtype=F64)
    oracles = [sg.oracles.GaussianMixture(means[k : k + 1], 0.2) for k in range(6)]
    scores = [oracle.score(sde) for oracle in (*oracles, sg.oracles.GaussianMixture(means, 0.2))]

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        noises = torch.stack([-score(x, t) * sde.sigma(t)[:, None] for score in scores])
        return noises[y, torch.arange(len(x))]

    guided = ClassifierFree(sg.from_noise(net, sde), 5.0, {"y": torch.tensor(6)})
    y = torch.arange(12) % 6

    def run(**options: Any) -> Tensor:
        return sg.sample(guided, sde, (12, 16), seed=1, model_kwargs={"y": y}, execution=DOUBLE, **options).x

    exact = run(solver="dpm++3m", nfe=150)
    assert float((run(nfe=nfe) - exact).square().mean()) < float((run(solver="ddim", nfe=nfe) - exact).square().mean())


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
    with pytest.raises(ValueError, match="the scale has 2 rows: expected one for each of 3 samples"):
        guided(sg.PerSample(torch.ones(2))).output(X, T, **KW)
    with pytest.raises(ValueError, match=r"scale\(level\) must return \(3,\) numbers, got shape \(2,\)"):
        guided(lambda level: level[:2]).output(X, T, **KW)


@pytest.mark.parametrize(
    "scale, match",
    [
        (sg.PerSample(torch.ones(2, 2)), r"one number per sample, \(B,\), got shape \(2, 2\)"),
        (sg.PerSample(torch.tensor([1.0, float("nan")])), "scale must be finite"),
        (float("inf"), "scale must be"),
        ("3", "scale must be one number"),
    ],
    ids=case_id,
)
def test_scales_are_finite_numbers(scale: object, match: str) -> None:
    """One, or one per sample."""
    with pytest.raises((TypeError, ValueError), match=match):
        guided(scale)


OF_ONE_NUMBER: dict[str, Callable[[sg.guidance.ClassifierFree], sg.Score]] = {
    "rescaled": Rescaled,
    "zero star": ZeroStar,
    "apg": lambda guided: APG(guided, norm=0.1),
    "thresholded": lambda guided: Thresholded(guided, percentile=0.9),
}


@pytest.mark.parametrize("name", OF_ONE_NUMBER)
def test_states_of_one_number(name: str) -> None:
    """Of shape (B,) as of (B, 1), without torch's warning on the standard deviation of one number."""

    def net(x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        return x / (1 + expand(sigma, x) ** 2) + expand(y, x)

    scored = sg.from_denoiser(net, sg.EDMSDE())
    score = OF_ONE_NUMBER[name](sg.guidance.ClassifierFree(scored, 3.0, null={"y": 0.0}))
    x = torch.linspace(-2, 2, 5, dtype=F64)
    kwargs = {"y": torch.linspace(0, 1, 5, dtype=F64)}
    flat = score.denoised(x, 1.5, **kwargs)
    assert torch.equal(flat, score.denoised(x[:, None], 1.5, **kwargs)[:, 0])


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
    bounded = Thresholded(score, percentile=0.9, most=1.1)
    s = s.clamp(max=1.1)
    close(bounded.predict("data", X, T, **KW), torch.stack([d.clamp(-b, b) / b for d, b in zip(D, s, strict=True)]))
    with pytest.raises(ValueError, match=r"most=2\.0 bounds a dynamic threshold"):
        Thresholded(score, most=2.0)
    assert not dynamic.is_density
    assert dynamic.branches == 2
    tame = Thresholded(SCORE, limit=1e6)
    close(tame.output(X, T, **KW), EPS_C)
    with pytest.raises(ValueError, match="a likelihood under it would be that of nothing"):
        sg.log_prob(tame, SDE, X, model_kwargs=KW, seed=0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_zero_star(scale: float) -> None:
    """Fan et al.'s formula, sample by sample, in the prediction of the network."""
    s = torch.linalg.lstsq(EPS_0.flatten(1)[..., None], EPS_C.flatten(1)[..., None]).solution
    base = s * EPS_0
    close(ZeroStar(guided(scale)).output(X, T, **KW), base + scale * (EPS_C - base))


def test_zero_star_away_from_nothing() -> None:
    """A null prediction of 0 has no direction."""
    score = sg.from_flow(lambda x, t, y: expand(y, x) * torch.ones_like(x), sg.RectifiedFlowSDE())
    found = ZeroStar(ClassifierFree(score, 3.0, null={"y": 0.0})).output(X, T, y=torch.ones(3, dtype=F64))
    assert torch.equal(found, torch.full_like(X, 3.0))


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


OF_DATA = sg.from_denoiser(lambda x, t, y: 0.5 * (x + shaped(y)).tanh(), SDE)


MARKED = sg.PerSample(torch.linspace(-1.0, 1.0, 7, dtype=F64))


@pytest.mark.parametrize("solver", ["ddim", "bosh3", *some_slow(["heun", "dopri5", "ggf"])])
@pytest.mark.parametrize(
    "options",
    [
        {"null": {"y": MARKED}},
        {"null": {"y": MARKED.value}},
        {"null": None, "negative": {"y": MARKED}},
        {"null": None, "negative": {"y": MARKED.value}},
        {"scale": MARKED},
        {"scale": MARKED, "interval": (0.1, 2.0)},
    ],
    ids=["marked null", "null", "marked negative", "negative", "scale", "scale in an interval"],
)
def test_what_guidance_keeps_of_each_sample_goes_with_it_in_parts(options: dict[str, Any], solver: str) -> None:
    """Bit for bit, and of samples that leave their batch."""
    score = ClassifierFree(OF_DATA, **({"scale": 3.0, "null": {"y": 0.0}} | options))
    kwargs = {"y": sg.PerSample(torch.linspace(0.0, 2.0, 7, dtype=F64))}

    def run(batch_size: int | None) -> Tensor:
        execution = sg.Execution(batch_size=batch_size, dtype=F64)
        nfe = {"nfe": 12} if solver in ("ddim", "heun") else {}
        return sg.sample(
            score, SDE, (7, 2, 2), solver=solver, seed=3, model_kwargs=kwargs, execution=execution, **nfe
        ).x

    whole = run(None)
    assert torch.equal(run(2), whole)
    assert torch.equal(run(5), whole)


@pytest.mark.parametrize(
    "options", [{"null": {"y": MARKED}}, {"null": None, "negative": {"y": MARKED}}], ids=["null", "negative"]
)
def test_a_marked_null_condition_is_that_of_each_sample(options: dict[str, Any]) -> None:
    x = torch.ones(7, 2, 2, dtype=F64)
    t = torch.full((7,), 0.5, dtype=F64)
    y = torch.arange(7, dtype=F64)
    with_c, without = (SCORE.output(x, t, y=value) for value in (y, MARKED.value))
    close(guided(3.0, **options).output(x, t, y=y), without + 3.0 * (with_c - without))


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "options, name",
    [
        ({"null": {"y": MARKED}}, "the null condition 'y'"),
        ({"null": None, "negative": {"y": MARKED}}, "the negative 'y'"),
        ({"null": None, "negative": {"y": MARKED.value}}, "the negative 'y'"),
        ({"scale": MARKED}, "the scale"),
    ],
    ids=case_id,
)
def test_rows_of_other_samples_are_refused(options: dict[str, Any], name: str, batch_size: int | None) -> None:
    """In parts, too, whose numbers of samples may be those of the rows."""
    score = guided(**({"scale": 3.0} | options))
    run = {"nfe": 4, "seed": 0, "model_kwargs": {"y": sg.PerSample(torch.zeros(8, dtype=F64))}}
    with pytest.raises(ValueError, match=f"{name} has 7 rows: expected one for each of 8 samples"):
        sg.sample(score, SDE, (8, 2, 2), execution=sg.Execution(batch_size=batch_size), **run)


def test_an_argument_of_the_size_of_both_branches_is_ambiguous() -> None:
    """As those are that come with both conditions, of which the order would not be known."""

    def net(x: Tensor, t: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return x + shaped(y * weight)

    score = ClassifierFree(sg.from_noise(net, SDE), 3.0, null={"y": 0.0})
    with pytest.raises(AmbiguousArgument, match="as many rows as the network gets in one call, 6, and there are 3"):
        score.output(X, T, y=Y, weight=torch.ones(6))


def test_a_negative_argument_that_is_shared_has_any_length() -> None:
    def net(x: Tensor, t: Tensor, table: Tensor) -> Tensor:
        return x + table.sum()

    tables = torch.ones(4, dtype=F64), torch.ones(2, dtype=F64)
    score = ClassifierFree(sg.from_noise(net, SDE), 3.0, negative={"table": sg.Shared(tables[1])})
    close(score.output(X, T, table=tables[0]), X + 2 + 3.0 * 2)


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
    with pytest.raises(ValueError, match=r"the negative 'tokens' has 2 rows: expected one for each of 3 samples"):
        ClassifierFree(sg.from_noise(attention, SDE), 3.0, negative={"tokens": torch.ones(2, 2)}).output(
            X, T, tokens=tokens, mask=tokens
        )
    with pytest.raises(ValueError, match="negative names 'words', which the call does not have"):
        ClassifierFree(SCORE, 3.0, negative={"words": 1}).output(X, T, **KW)
    with pytest.raises(ValueError, match="not both"):
        ClassifierFree(SCORE, 3.0, null={"y": 0.0}, negative={"y": 0.0})


@pytest.mark.parametrize("wrap", [Rescaled, ZeroStar, APG, Thresholded, lambda s: Weakened(s, WEAK, 1.0)])
def test_they_are_scores_for_own_steps_and_half_precision(wrap: Any) -> None:
    """Of a network; what is none is refused."""
    score = wrap(guided(2.0))
    assert bool(sg.sample(score, SDE, x_T=X, solver="dopri5", model_kwargs=KW).x.isfinite().all())
    assert score.cast_to(torch.float32).output(X, T, **KW).dtype is F64
    with pytest.raises(TypeError, match=r"guidance wraps what from_denoiser|this changes what ClassifierFree"):
        wrap(net)


@pytest.mark.parametrize("wrap", [Rescaled, ZeroStar, APG, Thresholded, lambda s: Weakened(s, WEAK, 1.0)])
@pytest.mark.parametrize("solver", ["dpm++2m", "euler-ancestral", "heun"])
def test_they_are_scores_for_every_solver(wrap: Any, solver: str) -> None:
    """Seeds and several solvers."""
    score = wrap(guided(2.0))

    a, b = (sg.sample(score, SDE, x_T=X, nfe=8, solver=solver, seed=0, model_kwargs=KW).x for _ in range(2))
    assert torch.equal(a, b)
    assert bool(a.isfinite().all())


def test_two_conditions_are_guided_one_around_the_other() -> None:
    """Each with a scale of its own: what is refused is the same condition twice."""
    net = lambda x, t, y, z: y[:, None] + 10 * z[:, None] + 0 * x  # noqa: E731
    one = ClassifierFree(sg.from_denoiser(net, sg.VPSDE()), 2.0, null={"y": 0.0})
    both = ClassifierFree(one, 3.0, null={"z": 0.0})
    ones = torch.ones(2)
    torch.testing.assert_close(both.output(torch.zeros(2, 1), ones, y=ones, z=ones), torch.full((2, 1), 32.0))


@pytest.mark.parametrize("null", [torch.tensor(10.5), 10.5], ids=["tensor", "number"])
def test_a_null_class_with_a_fraction_is_refused(null: Any) -> None:
    """Cut to the class 10 it would be another class."""
    score = sg.from_noise(lambda x, t, y: x * y[:, None], sg.VPSDE())
    guided = sg.guidance.ClassifierFree(score, 2.0, {"y": null})
    with pytest.raises(ValueError, match="the null condition 'y' is "):
        guided(torch.ones(2, 3), 0.5, y=torch.tensor([1, 2]))


def test_guidance_in_two_intervals_is_not_guidance_twice() -> None:
    """Pieces of a scale by noise level: each applies where the other does not."""
    sde = sg.VPSDE()
    score = sg.from_noise(lambda x, t, y: x * y[:, None], sde)
    high = sg.guidance.ClassifierFree(score, 2.0, {"y": 0}, interval=(1.0, 5.0))
    both = sg.guidance.ClassifierFree(high, 3.0, {"y": 0}, interval=(0.1, 1.0))
    x, y = torch.ones(2, 3), torch.tensor([1, 2])
    t = sde.time_of_noise_level(torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(both.predict("noise", x, t, y=y), torch.tensor([[3.0], [4.0]]).expand(2, 3))


def test_rewards_without_a_condition_say_so() -> None:
    """A function of state and time alone."""

    def reward(x: Tensor, t: Tensor) -> Tensor:
        return -x.square().sum(1)

    with pytest.raises(TypeError, match=r"function of \(x, t, y\), or of \(x, t\) with condition=\(\), got"):
        Classifier(MIXTURE.score(VP), reward)
    assert Classifier(MIXTURE.score(VP), reward, condition=()).conditions == frozenset()
