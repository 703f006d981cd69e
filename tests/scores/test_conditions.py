"""Arguments of the network: what goes with its sample, and what is the same for all, is what the caller says."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde._utils.tree import each_leaf, map_leaves, shown
from sgm_sde.scores.conditions import bare, resolve
from tests.conventions import case_id, some_slow

EDM = sg.EDMSDE()
VP = sg.VPSDE()
F64 = torch.float64


@dataclass(frozen=True)
class Frozen:
    """A condition as a frozen dataclass."""

    a: Any
    b: int = 1


class Pair(NamedTuple):
    """A condition as a named tuple."""

    first: Any
    second: Any


def test_one_walk_goes_through_every_container() -> None:
    """Types stay, paths are what one would write, and what does not change is the same object."""
    nested = {"a": [torch.ones(1), (2, None)], "b": Frozen(torch.ones(1)), "c": Pair("text", torch.ones(1))}
    assert [shown(path) for path, _ in each_leaf(nested)] == [
        "a[0]", "a[1][0]", "a[1][1]", "b.a", "b.b", "c[0]", "c[1]",
    ]  # fmt: skip
    doubled = map_leaves(lambda _, leaf: 2 * leaf if isinstance(leaf, Tensor) else leaf, nested)
    assert isinstance(doubled["b"], Frozen) and isinstance(doubled["c"], Pair)
    assert [float(t) for t in (doubled["a"][0], doubled["b"].a, doubled["c"].second)] == [2.0, 2.0, 2.0]
    assert doubled["a"][1] is nested["a"][1] and doubled["b"].b == 1
    assert map_leaves(lambda _, leaf: leaf, nested) is nested
    user: UserDict[str, Any] = UserDict(x=torch.ones(1))
    assert isinstance(map_leaves(lambda _, leaf: leaf + 1, user), UserDict)


def by_table(x: Tensor, t: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """A denoiser with a label a sample and a table of ten numbers for all."""
    return torch.tanh(x / 0.1) * c.sum() / 45 * (1 + y[:, None])


def test_a_table_as_long_as_the_batch_is_no_row_of_it() -> None:
    """The samples of an adaptive solver are +-(1 + y), whatever the length of the batch."""
    for batch in (9, 10):
        x = torch.randn(batch, 1, generator=torch.Generator().manual_seed(0)) * 80
        y, c = torch.arange(float(batch)), torch.arange(10.0)
        kwargs: dict[str, Any] = {"y": sg.PerSample(y), "c": sg.Shared(c)}
        res = sg.sample(sg.from_denoiser(by_table, EDM), EDM, x_T=x, solver="dopri5", model_kwargs=kwargs)
        torch.testing.assert_close(res.x[:, 0].abs(), 1 + y, rtol=1e-4, atol=0)

    for kwargs, name in (
        ({"y": y, "c": sg.Shared(c)}, "y"),
        ({"y": sg.PerSample(y), "c": c}, "c"),
    ):
        wanted = rf"'{name}' of shape \(10,\) has as many rows as .* 10, .* sg.PerSample\({name}\) .* sg.Shared"
        for solver in ("dopri5", "ggf", "torchdiffeq:dopri5"):
            with pytest.raises(ValueError, match=wanted):
                sg.sample(sg.from_denoiser(by_table, EDM), EDM, x_T=x, solver=solver, model_kwargs=kwargs)
        on_grid = sg.sample(sg.from_denoiser(by_table, EDM), EDM, x_T=x, solver="heun", nfe=9, model_kwargs=kwargs)
        assert on_grid.status.ok
    with pytest.raises(ValueError, match=r"'y' of shape \(10,\) has as many rows"):
        sg.encode(sg.from_denoiser(by_table, EDM), EDM, x, method="adaptive", model_kwargs={"y": y, "c": c})
    alone = {"y": y[:1], "c": c[:1]}
    assert sg.sample(sg.from_denoiser(by_table, EDM), EDM, x_T=x[:1], solver="dopri5", model_kwargs=alone).status.ok


def test_what_is_marked_must_be_so() -> None:
    """A row for each sample, and a tensor at all."""
    kwargs = {"y": sg.PerSample({"a": torch.zeros(2, 3)}), "c": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"'y.a' is marked PerSample and has shape \(2, 3\): .* each of 4 samples"):
        sg.sample(sg.from_denoiser(by_table, EDM), EDM, (4, 1), nfe=4, model_kwargs=kwargs)
    with pytest.raises(
        TypeError, match="PerSample takes a tensor, an array or a list, or a mapping or sequence of them, got 3"
    ):
        sg.PerSample(3)
    with pytest.raises(TypeError, match="got another mark"):
        sg.Shared(sg.PerSample(torch.zeros(1)))
    marked = resolve({"a": [torch.zeros(3), sg.PerSample((torch.zeros(2), None))]}, 2)
    assert isinstance(marked["a"][0], sg.Shared) and isinstance(marked["a"][1][0], sg.PerSample)
    assert bare(marked)["a"][1][1] is None


class Nested(nn.Module):
    """A network with conditions as SDXL's UNet and ControlNets have them."""

    def forward(
        self, x: Tensor, t: Tensor, ctx: Tensor, added: dict[str, Tensor], residuals: list[Tensor], table: Tensor
    ) -> Tensor:
        total = ctx.mean(1) + added["embeds"][:, 0] + added["ids"][:, 0] + sum(r[:, 0] for r in residuals)
        return 0 * x + (total + table.sum())[:, None]


def nested_kwargs(batch: int) -> dict[str, Any]:
    """Arguments for `Nested`."""
    return {
        "ctx": torch.full((batch, 4), 1.0),
        "added": {"embeds": torch.full((batch, 2), 2.0), "ids": sg.PerSample(torch.full((batch, 1), 4.0))},
        "residuals": [torch.full((batch, 1), 8.0), torch.full((batch, 1), 16.0)],
        "table": sg.Shared(torch.ones(3, 4)),
    }


NULL = {"ctx": 0.5, "added": {"embeds": torch.tensor([0.25, 0.0])}, "residuals": 0.0}


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # a network of no data
@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("solver", ["ddim", "dopri5"])
def test_guidance_walks_nested_conditions(batch: int, solver: str) -> None:
    """Null conditions go to where they are named; a table of three rows is the same for batches of three, too."""
    score = sg.from_denoiser(Nested(), EDM)
    guided = sg.guidance.ClassifierFree(score, 2.0, null=NULL)
    main, null = 31.0 + 12.0, 4.75 + 12.0
    # From some noises dopri5 takes 57 calls, as its first steps are small; what is left of the budget is not used.
    x = sg.sample(guided, EDM, (batch, 1), solver=solver, nfe=80, seed=0, model_kwargs=nested_kwargs(batch)).x
    torch.testing.assert_close(x, torch.full((batch, 1), null + 2 * (main - null)))
    for scale, value in ((0.0, null), (1.0, main)):
        plain = sg.guidance.ClassifierFree(score, scale, null=NULL)
        x = sg.sample(plain, EDM, (batch, 1), solver="ddim", nfe=4, seed=0, model_kwargs=nested_kwargs(batch)).x
        torch.testing.assert_close(x, torch.full((batch, 1), value))


def test_guidance_asks_what_else_goes_with_the_samples() -> None:
    """A condition that nothing names, and one that is not there, are errors that say what to write."""
    guided = sg.guidance.ClassifierFree(sg.from_denoiser(Nested(), EDM), 2.0, null=NULL)
    kwargs = nested_kwargs(3)
    kwargs["added"]["ids"] = kwargs["added"]["ids"].value
    with pytest.raises(ValueError, match=r"'added.ids' of shape \(3, 1\) .* sg.PerSample\(added.ids\)"):
        sg.sample(guided, EDM, (3, 1), nfe=4, seed=0, model_kwargs=kwargs)
    kwargs = nested_kwargs(3) | {"table": torch.ones(3, 4)}
    with pytest.raises(ValueError, match=r"'table' of shape \(3, 4\) has as many rows"):
        sg.sample(guided, EDM, (3, 1), nfe=4, seed=0, model_kwargs=kwargs)
    del kwargs["added"]["embeds"]
    with pytest.raises(ValueError, match=r"'added.embeds': pass .*'added': .*, got \['ids'\] in 'added'"):
        sg.sample(guided, EDM, (3, 1), nfe=4, seed=0, model_kwargs=kwargs)
    with pytest.raises(TypeError, match=r"'added.embeds' must be None, a number, a text or a tensor, got b'none'"):
        sg.guidance.ClassifierFree(sg.from_denoiser(Nested(), EDM), 2.0, null={"added": {"embeds": b"none"}})
    with pytest.raises(TypeError, match=r"null must map names .* got 3"):
        sg.guidance.ClassifierFree(sg.from_denoiser(Nested(), EDM), 2.0, null=3)  # type: ignore[arg-type]


def test_none_as_the_null_label() -> None:
    """Networks for which None means no condition are called twice, with B rows each."""
    seen: list[Any] = []

    def net(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(y)
        return 0 * x + (1.0 if y is None else y[:, None])

    guided = sg.guidance.ClassifierFree(sg.from_denoiser(net, EDM), 3.0, null={"y": None})
    y = torch.tensor([2.0, 5.0])
    res = sg.sample(guided, EDM, (2, 1), nfe=4, seed=0, model_kwargs={"y": y})
    torch.testing.assert_close(res.x[:, 0], 1 + 3 * (y - 1))
    assert (res.nfe, res.network_evals) == (4, 16) and sum(given is None for given in seen) == 4


def test_what_names_a_condition_names_it_everywhere() -> None:
    """The network's own declaration, guidance and classifiers: no marks needed with adaptive solvers."""

    class Declared(nn.Module):
        NULL_LABEL = 3

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return 0 * x + y[:, None].to(x)

    y = torch.tensor([0, 1, 2])
    score = sg.from_denoiser(Declared(), EDM)
    x = sg.sample(score, EDM, (3, 1), solver="dopri5", seed=0, model_kwargs={"y": y}).x
    torch.testing.assert_close(x[:, 0], y.float(), atol=1e-3, rtol=0)

    def log_p(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert len(y) == len(x)
        return -((x[:, 0] - y) ** 2)

    guided = sg.guidance.Classifier(sg.oracles.Gaussian(torch.zeros(1), 1.0).score(VP), log_p)
    assert guided.conditions == {("y",)}
    res = sg.sample(guided, VP, (3, 1), solver="dopri5", seed=0, model_kwargs={"y": y})
    assert res.status.ok
    seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True])), torch.tensor([0.0]), std=1.0)
    assert ("y",) in sg.inverse.DiffPIR(score, seen).conditions


TEXTS = {"a": -1.0, "b": 1.0, "": 0.0}


def by_text(x: Tensor, t: Tensor, prompt: Any) -> Tensor:
    """A denoiser whose data lie at one point for each text; a list, a tuple or an array of as many as x has rows."""
    assert len(prompt) == len(x)
    return 0 * x + torch.tensor([TEXTS[text] for text in prompt], dtype=x.dtype)[:, None]


TEXTUAL = sg.from_denoiser(by_text, EDM)
KINDS: dict[str, Any] = {"list": list, "tuple": tuple, "array": np.array}
IN_PARTS: dict[str, dict[str, Any]] = {
    "whole": {"solver": "ddim", "nfe": 5},
    "parts": {"solver": "ddim", "nfe": 5, "execution": sg.Execution(batch_size=2)},
    "odd parts": {"solver": "ddim", "nfe": 5, "execution": sg.Execution(batch_size=3)},
    "adaptive": {"solver": "dopri5"},
    "parallel": {"solver": "ddim", "nfe": 5, "execution": sg.Execution(parallel=2)},
}


def drawn(score: sg.Score, prompt: object, how: str) -> Tensor:
    """Four samples."""
    return sg.sample(score, EDM, (4, 1), seed=0, model_kwargs={"prompt": prompt}, **IN_PARTS[how]).x[:, 0]


@pytest.mark.parametrize("how", IN_PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_go_with_their_samples(kind: str, how: str) -> None:
    x = drawn(TEXTUAL, sg.PerSample(KINDS[kind](["a", "a", "b", "b"])), how)
    torch.testing.assert_close(x, torch.tensor([-1.0, -1.0, 1.0, 1.0]), rtol=0, atol=2e-3)


@pytest.mark.parametrize("how", ["parts", "odd parts", "adaptive", "parallel"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_as_many_as_samples_are_asked_for(kind: str, how: str) -> None:
    """They may be the same for all, as a tensor of that length may be."""
    with pytest.raises(ValueError, match=r"'prompt' of .*4.* has as many rows as .* sg.PerSample\(prompt\)"):
        drawn(TEXTUAL, KINDS[kind](["a", "a", "b", "b"]), how)


@pytest.mark.parametrize(
    "run",
    [
        lambda kwargs: sg.log_prob(sg.from_denoiser(by_text, VP), VP, torch.zeros(4, 1), batch_size=2, **kwargs),
        lambda kwargs: sg.calibrate(TEXTUAL, EDM, (4, 1), nfe=3, seed=0, **kwargs),
    ],
    ids=["log_prob", "calibrate"],
)
def test_texts_as_many_as_samples_are_asked_for_elsewhere(run: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=r"'prompt' of 4 entries has as many rows as"):
        run({"model_kwargs": {"prompt": ["a", "a", "b", "b"]}})


def test_shared_lists_and_lists_of_other_lengths_stay_whole() -> None:
    seen: list[Any] = []

    def net(x: Tensor, t: Tensor, **given: Any) -> Tensor:
        seen.append(given)
        return 0 * x

    kwargs = {"sizes": [32, 32, 3], "names": sg.Shared(["a", "b", "c", "d"])}
    whole = {"sizes": [32, 32, 3], "names": ["a", "b", "c", "d"]}
    sg.sample(sg.from_denoiser(net, EDM), EDM, (4, 1), seed=0, model_kwargs=kwargs, **IN_PARTS["parts"])
    assert seen == [whole] * len(seen) and seen


def test_rows_are_counted_before_the_network_is_called() -> None:
    with pytest.raises(ValueError, match=r"'prompt' is marked PerSample and has 3 rows: .* each of 4 samples"):
        drawn(TEXTUAL, sg.PerSample(["a", "a", "b"]), "whole")
    with pytest.raises(ValueError, match=r"'prompt' is marked PerSample and has shape \(3,\): .* each of 4 samples"):
        drawn(TEXTUAL, sg.PerSample(np.array(["a", "a", "b"])), "whole")


@pytest.mark.parametrize(
    "run",
    [
        lambda kwargs: sg.log_prob(sg.from_denoiser(by_text, VP), VP, torch.zeros(4, 1), **kwargs),
        lambda kwargs: sg.elbo(sg.from_denoiser(by_text, VP), VP, torch.zeros(4, 1), seed=0, **kwargs),
        lambda kwargs: sg.sample(sg.from_denoiser(by_text, VP), VP, (4, 1), steps=8, log_prob=True, **kwargs),
    ],
    ids=["log_prob", "elbo", "along"],
)
def test_rows_are_counted_in_every_call(run: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match="'prompt' is marked PerSample and has 3 rows"):
        run({"model_kwargs": {"prompt": sg.PerSample(["a", "a", "b"])}})


NULLS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "one": ({"null": {"prompt": ""}}, [-2.0, -2.0, 2.0, 2.0]),
    "each": ({"null": {"prompt": ["", "", "b", "a"]}}, [-2.0, -2.0, 1.0, 3.0]),
    "marked": ({"null": {"prompt": sg.PerSample(["", "", "b", "a"])}}, [-2.0, -2.0, 1.0, 3.0]),
    "negative": ({"negative": {"prompt": sg.PerSample(["", "", "b", "a"])}}, [-2.0, -2.0, 1.0, 3.0]),
}


@pytest.mark.parametrize("how", ["whole", "parts", "odd parts", "adaptive"])
@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_guide(kind: str, null: str, how: str) -> None:
    """D = D_null + 2 (D - D_null), with a null text for all or one of each sample's."""
    options, wanted = NULLS[null]
    score = sg.guidance.ClassifierFree(TEXTUAL, 2.0, **options)
    x = drawn(score, sg.PerSample(KINDS[kind](["a", "a", "b", "b"])), how)
    torch.testing.assert_close(x, torch.tensor(wanted), rtol=0, atol=4e-3)


def test_a_null_text_is_for_a_list_of_texts() -> None:
    score = sg.guidance.ClassifierFree(TEXTUAL, 2.0, null={"prompt": ""})
    with pytest.raises(ValueError, match="the condition must be a list of 4 entries, one per sample, got 'a'"):
        drawn(score, "a", "whole")
    with pytest.raises(ValueError, match="null condition 'prompt' has 3 rows: expected one for each of 4 samples"):
        drawn(sg.guidance.ClassifierFree(TEXTUAL, 2.0, null={"prompt": [""] * 3}), ["a"] * 4, "whole")


RIDGES = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2).score(VP)
ON_RIDGES = torch.tensor([[1.0, 0.0], [0.1, 0.0]], dtype=F64)


class Failing(nn.Module):
    """A network whose call of a number raises an error."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return RIDGES(x, t)


@pytest.mark.parametrize("at", [1, 50, 147, *some_slow([20, 60, 100])])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("full"), RuntimeError("shape"), ValueError("bad"), IndexError("far"), StopIteration()],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_network_pass_a_refinement(at: int, error: BaseException) -> None:
    """A sample that goes on to finer grids does so with every error of the network's, running out of memory too."""
    with pytest.raises(type(error)) as raised:
        sg.log_prob(sg.from_score(Failing(at, error), VP), VP, ON_RIDGES, seed=0)
    assert raised.value is error


def test_samples_between_ridges_are_refined() -> None:
    """By more calls than the first grid has."""
    assert sg.log_prob(RIDGES, VP, ON_RIDGES, seed=0).nfe > 49


@dataclass
class Inputs:
    """A condition as a dataclass, with something that is no tensor."""

    labels: Tensor
    scale: float = 1.0
    names: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    "marked, options",
    [(True, {}), (False, {}), pytest.param(True, {"method": "adaptive"}, marks=pytest.mark.slow)],
    ids=case_id,
)
def test_samples_keep_their_conditions_in_a_likelihood(marked: bool, options: dict[str, object]) -> None:
    """Alone as in their batch, where the condition lies in a dataclass and the samples go on to finer grids."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)
    score = oracle.score(VP)

    def moved(x: Tensor, t: Tensor, cond: Inputs) -> Tensor:
        assert len(cond.labels) == len(x) and cond.names == ["a", "b"]
        return score(x - VP.alpha(t)[:, None] * cond.labels[:, None], t)

    x, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.4, 0.0]], dtype=F64), torch.tensor([0.0, 0.1, 0.3], dtype=F64)

    def value(rows: slice, marked: bool, **options: Any) -> Tensor:
        cond = Inputs(labels[rows], names=["a", "b"])
        kwargs = {"cond": sg.PerSample(cond) if marked else cond}
        return sg.log_prob(moved, VP, x[rows], trace="exact", model_kwargs=kwargs, **options).value

    together = value(slice(None), marked, **options)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], value(slice(i, i + 1), marked, **options))


@pytest.mark.parametrize("mark", [lambda y: y, sg.PerSample, lambda y: {"a": [y]}], ids=["bare", "marked", "nested"])
def test_arguments_without_numbers_are_refused(mark: Any) -> None:
    """Before the network is called, unless the states have none either."""
    kwargs = {"y": mark(torch.zeros(2, device="meta"))}
    with pytest.raises(TypeError, match=r"model_kwargs\['y'\] is on the device meta, which has no numbers"):
        sg.sample(lambda x, t, y: 1 / 0, sg.VPSDE(), (2, 2), nfe=4, model_kwargs=kwargs)
    x_T = torch.zeros(2, 2, device="meta")
    assert sg.sample(lambda x, t, y: -x, sg.VPSDE(), x_T=x_T, nfe=4, model_kwargs=kwargs).x.is_meta
