"""Runs in pieces: stopped and resumed, and a batch in parts, to the bit what one call gives."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.engine.executor import Run
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.sampling import compiled
from sgm_sde.sampling.planning import plan
from sgm_sde.schemes import REGISTRY
from sgm_sde.scores.model import BoundScore
from tests.conventions import case_id, some_slow
from tests.helpers import DOUBLE, F64, elementwise_score

VP, EDM, CLD, FLOW = sg.VPSDE(), sg.EDMSDE(), sg.CLD(), sg.RectifiedFlowSDE()
MODES = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.3)
SEEN = inverse.Measurement(inverse.Mask(torch.tensor([True, False])), torch.tensor([0.5, 0.0]))

# What keeps something from node to node: histories, correctors, measurements, passes back.
SAMPLERS: dict[str, sg.Solver] = {
    **{name: make() for name, make in REGISTRY.items()},
    "annealed-langevin": sg.schemes.AnnealedLangevin(n_steps=2),
    "pc of 3": sg.PredictorCorrector(sg.DPMSolverPP(3), sg.Langevin(snr=0.1, n_steps=2)),
    "cp": sg.PredictorCorrector(sg.Ancestral(), sg.Langevin(snr=0.1), order="CP"),
    "sa3": sg.SASolver(3),
    "replacement": inverse.Replacement(sg.Ancestral(), SEEN),
    "fixed replacement": inverse.Replacement(sg.DPMSolverPP(3), SEEN, "fixed"),
    "fixed replacement of pc": inverse.Replacement(
        sg.PredictorCorrector(sg.DDIM(), sg.Langevin(snr=0.1), order="CP"), SEEN, "fixed"
    ),
    "repaint": inverse.RePaint(sg.DDIM(eta=1.0), SEEN, resamples=2, jump=2),
    "dps": inverse.DPS(sg.Ancestral(), SEEN, zeta=0.3),
}


def until(t: float, **options: Any) -> sg.Execution:
    """Stop there."""
    return sg.Execution(until=t, **options)


def pieces(score: Any, sde: sg.SDE, nodes: list[int], execution: sg.Execution | None = None, **options: Any) -> Any:
    """The result of a run that is stopped at some nodes and resumed, and that of one call."""
    whole = sg.sample(score, sde, execution=execution, **options)
    batch_size = None if execution is None else execution.batch_size
    run = sg.sample(score, sde, execution=until(whole.times[nodes[0]], batch_size=batch_size), **options)
    for i in nodes[1:]:
        run = sg.sample(score, sde, resume=run, execution=until(whole.times[i], batch_size=batch_size))
    return sg.sample(score, sde, resume=run, execution=execution), whole


# --- stopped and resumed ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("name", ["dpm++3m", "er-sde3", "pc of 3", "fixed replacement"])
def test_a_result_that_was_saved_goes_on(name: str, tmp_path: Path) -> None:
    """By `torch.save`, with all that the rest of the run builds on."""
    score, options = MODES.score(VP), {"shape": (3, 2), "solver": SAMPLERS[name], "seed": 5}
    grid = plan(VP, SAMPLERS[name], steps=5)[1]
    whole = sg.sample(score, VP, grid=grid, **options)
    torch.save(sg.sample(score, VP, grid=grid, execution=until(grid.times[3]), **options), tmp_path / "first.pt")
    kept = torch.load(tmp_path / "first.pt", weights_only=False)
    assert kept.continuation.t == grid.times[3]
    assert torch.equal(sg.sample(score, VP, resume=kept).x, whole.x)


@pytest.mark.parametrize("sde", [VP, *some_slow([EDM])], ids=case_id)
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # five steps are too few for some
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_in_two_pieces_is_the_run(name: str, sde: Any) -> None:
    """Split at every node, for every solver: the same bits, trajectory and calls as in one call."""
    score, options = MODES.score(sde), {"shape": (3, 2), "solver": SAMPLERS[name], "seed": 5}
    grid = plan(sde, SAMPLERS[name], steps=5)[1]
    whole = sg.sample(score, sde, grid=grid, record=sg.Record("all"), **options)
    for i in range(1, 5):
        first = sg.sample(score, sde, grid=grid, execution=until(grid.times[i]), **options)
        assert first.status.stopped
        assert f"t={grid.times[i]:.6g}" in first.status.message
        rest = sg.sample(score, sde, resume=first, record=sg.Record("all"))
        assert torch.equal(rest.x, whole.x)
        assert rest.trajectory is not None
        assert whole.trajectory is not None
        assert torch.equal(rest.trajectory, whole.trajectory[i + 1 :])
        assert first.nfe + rest.nfe == whole.nfe
        assert rest.seeds == whole.seeds


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("nodes", [[1], [3], [1, 2, 4]], ids=case_id)
@pytest.mark.parametrize("name", ["euler", "heun2", "euler-maruyama", "ddim", "lms3", "sscs"])
def test_on_a_process_with_a_matrix(name: str, nodes: Any) -> None:
    """The same where coefficients are matrices."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
    solver: Any = {"ddim": sg.schemes.GDDIM(), "lms3": sg.schemes.GDDIM(nodes=3), "sscs": sg.schemes.SSCS()}.get(
        name, name
    )
    got, whole = pieces(oracle.score(CLD), CLD, nodes, shape=(3, 2, 1), solver=solver, steps=5, seed=1)
    assert torch.equal(got.x, whole.x)


@pytest.mark.parametrize("solver", ["heun2", "euler-maruyama"])
def test_on_a_process_that_is_not_linear(solver: str) -> None:
    """And where there is no table but that of the drift."""

    class Cubic(sg.SDE):
        T, eps = 1.0, 1e-3

        def f(self, x: Tensor, t: Any) -> Tensor:
            return -x - 0.1 * x**3

        def g(self, t: Any) -> Tensor:
            return torch.ones_like(torch.as_tensor(t))

        @property
        def prior_std(self) -> float:
            return 1.0

    sde = Cubic()
    got, whole = pieces(lambda x, t: -x, sde, [2, 3], shape=(3, 2), solver=solver, steps=5, seed=1)
    assert torch.equal(got.x, whole.x)


@pytest.mark.parametrize("nodes", [[1], [4], [2, 3, 7]], ids=case_id)
@pytest.mark.parametrize("name", ["euler-maruyama", "sde-dpm++2m", "ancestral"])
def test_along_brownian_paths(name: str, nodes: Any) -> None:
    """noise="path": the path goes on, between the nodes of its tree too."""
    got, whole = pieces(
        MODES.score(VP), VP, nodes, shape=(3, 2), solver=name, grid="log-snr", steps=9, seed=1, noise="path"
    )
    assert torch.equal(got.x, whole.x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_stopped_by_the_callback(dtype: torch.dtype) -> None:
    """After a stop by the callback, in lower precision than the run's own too."""
    options: dict[str, Any] = {
        "shape": (3, 2),
        "solver": "unipc3",
        "nfe": 9,
        "seed": 2,
        "execution": sg.Execution(dtype=dtype),
    }
    whole = sg.sample(elementwise_score(VP), VP, **options)
    stop = sg.Record(callback=lambda info: info.i == 3)
    run = sg.sample(elementwise_score(VP), VP, record=stop, **options)
    run.x.zero_()  # what was returned is the caller's
    rest = sg.sample(elementwise_score(VP), VP, resume=run)
    assert torch.equal(rest.x, whole.x)
    assert rest.x.dtype == dtype


def test_a_callback_sees_the_steps_of_the_whole_run() -> None:
    """Numbers and times of the steps go on."""
    seen: list[tuple[int, int, float]] = []
    record = sg.Record(callback=lambda info: seen.append((info.i, info.n, info.t_next)))
    first = sg.sample(MODES.score(VP), VP, (2, 2), solver="dpm++2m", steps=5, seed=0, execution=until_of(5, 2))
    sg.sample(MODES.score(VP), VP, resume=first, record=record)
    assert [(i, n) for i, n, _ in seen] == [(2, 5), (3, 5), (4, 5)]
    assert tuple(t for *_, t in seen) == first.times[3:]


def until_of(steps: int, node: int, solver: str = "dpm++2m", **options: Any) -> sg.Execution:
    """Stop at a node of the solver's own grid."""
    return until(plan(VP, solver, steps=steps)[1].times[node], **options)


def test_gradients_go_through_a_stop() -> None:
    """With enable_grad the derivative of the whole run by its start is that of one call."""
    x_T = VP.prior_sample((2, 2), seed=0, dtype=F64).requires_grad_()
    score, grad = elementwise_score(VP), {"enable_grad": True}
    options: dict[str, Any] = {"x_T": x_T, "solver": "dpm++3m", "steps": 5, "seed": 0}
    whole = sg.sample(score, VP, execution=sg.Execution(**grad), **options).x
    first = sg.sample(score, VP, execution=until_of(5, 2, "dpm++3m", **grad), **options)
    rest = sg.sample(score, VP, resume=first, execution=sg.Execution(**grad)).x
    slopes = [torch.autograd.grad(x.square().sum(), x_T)[0] for x in (whole, rest)]
    assert torch.equal(*slopes)


# --- with something else from there on -------------------------------------------------------------------------------


def test_another_network_goes_on_with_the_history() -> None:
    """What one call with a network that changes at that time gives; to rounding where it predicts something else."""
    other = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), 0.4)
    grid = plan(VP, "dpm++3m", steps=6)[1]
    middle = grid.times[3]

    def changing(x: Tensor, t: Tensor) -> Tensor:
        return (MODES if float(t[0]) > middle + 1e-4 else other).score(VP)(x, t)

    options: dict[str, Any] = {"shape": (3, 2), "solver": "dpm++3m", "grid": grid, "seed": 0}
    whole = sg.sample(changing, VP, execution=DOUBLE, **options).x
    first = sg.sample(
        lambda x, t: MODES.score(VP)(x, t), VP, execution=sg.Execution(until=middle, dtype=F64), **options
    )
    assert torch.equal(sg.sample(lambda x, t: other.score(VP)(x, t), VP, resume=first).x, whole)

    noise = sg.from_noise(lambda x, t: -VP.sigma(t)[:, None] * other.score(VP)(x, t), VP)
    torch.testing.assert_close(sg.sample(noise, VP, resume=first).x, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["lms3", "unipc2", "heun"])
def test_another_solver_starts_there(solver: str) -> None:
    """It has no history: a run of its own from the state, whose noise is none that was seen before."""
    grid = plan(VP, "dpm++3m", steps=6)[1]
    first = sg.sample(MODES.score(VP), VP, (3, 2), solver="dpm++3m", grid=grid, seed=0, execution=until(grid.times[3]))
    got = sg.sample(MODES.score(VP), VP, resume=first, solver=solver)
    alone = sg.sample(MODES.score(VP), VP, x_T=first.x, solver=solver, grid=grid.times[3:])
    assert torch.equal(got.x, alone.x)
    assert got.times == grid.times[3:]


def test_another_grid_from_there_on() -> None:
    """A method of one step goes on as in one call over both grids; a multistep method keeps its history too."""
    score, rest = MODES.score(VP), (0.45, 0.3, 0.2, 0.1, 0.05, 1e-3)
    for solver in ("ancestral", "euler-maruyama", "heun", "dpm++2m", "pc", "sde-dpm++2m"):
        start = (1.0, 0.8, 0.7, 0.6, 0.5)
        options: dict[str, Any] = {"shape": (3, 2), "solver": solver, "seed": 0}
        whole = sg.sample(score, VP, grid=[*start, *rest], **options)
        first = sg.sample(score, VP, grid=[*start, 0.45, 0.1], execution=until(0.5), **options)
        for grid in ([0.5, *rest], [*start, *rest]):
            got = sg.sample(score, VP, resume=first, grid=grid)
            assert torch.equal(got.x, whole.x)
            assert got.times == whole.times
    by_rule = sg.sample(score, VP, resume=first, steps=4, grid="uniform", t_end=0.1)
    assert len(by_rule.times) == 4 + 5
    assert by_rule.times[4] == 0.5
    assert by_rule.times[-1] == 0.1
    assert sg.sample(score, VP, resume=first, nfe=7).nfe <= 7


def test_a_run_that_ended_goes_on() -> None:
    """Two runs, one from where the other ended, are the run over both grids; their noise is not the same."""
    score = MODES.score(VP)
    options: dict[str, Any] = {"shape": (3, 2), "solver": "ancestral", "seed": 0}
    whole = sg.sample(score, VP, grid=[1.0, 0.8, 0.5, 0.3, 0.1], **options)
    first = sg.sample(score, VP, grid=[1.0, 0.8, 0.5], final="none", **options)
    assert torch.equal(sg.sample(score, VP, resume=first, grid=[0.5, 0.3, 0.1], final="denoise").x, whole.x)
    with pytest.raises(ValueError, match=r"reached the end of its grid at t=0.5: give nfe="):
        sg.sample(score, VP, resume=first)
    again = sg.sample(score, VP, resume=first, t_end=0.1, steps=1)
    once_more = sg.sample(score, VP, resume=sg.sample(score, VP, resume=first, t_end=0.1, steps=1), t_end=0.01, steps=1)
    assert not torch.equal(again.x, once_more.x)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"seed": 0}, "leave out seed=0"),
        ({"shape": (3, 2)}, r"leave out shape=\(3, 2\)"),
        ({"x_T": torch.zeros(3, 2)}, r"leave out x_T=a tensor of shape \(3, 2\)"),
        ({"t_start": 0.5}, "leave out t_start=0.5"),
        ({"execution": DOUBLE}, "leave out dtype"),
        ({"execution": sg.Execution(device="cpu")}, "leave out device"),
        ({"solver": "dopri5"}, "dopri5 finds its own steps"),
        ({"grid": [0.9, 0.1]}, "the run stands at t=.* got one from t=0.9"),
        ({"execution": sg.Execution(until=0.99)}, "until must be a time of the grid between its ends, got 0.99"),
        ({"sde": sg.VPSDE(beta_max=10.0)}, "cannot be resumed on another process"),
    ],
)
def test_what_cannot_go_on_is_refused(options: dict[str, Any], shown: str) -> None:
    """In one sentence, with the value."""
    sde = options.pop("sde", VP)
    first = sg.sample(MODES.score(VP), VP, (3, 2), solver="dpm++2m", steps=5, seed=0, execution=until_of(5, 2))
    with pytest.raises(ValueError, match=shown):
        sg.sample(MODES.score(sde), sde, resume=first, **options)


def test_what_is_no_run_in_pieces_is_refused() -> None:
    """Solvers that find their own steps, complete runs, and what is no result."""
    score = MODES.score(VP)
    with pytest.raises(ValueError, match="found its own steps cannot be resumed"):
        sg.sample(score, VP, resume=sg.sample(score, VP, (2, 2), solver="bosh3", seed=0))
    with pytest.raises(ValueError, match=r"the run is complete.*Execution\(until=...\)"):
        sg.sample(score, VP, resume=sg.sample(score, VP, (2, 2), nfe=5, seed=0))
    with pytest.raises(TypeError, match=r"resume must be the result of sample\(\), got 3"):
        sg.sample(score, VP, resume=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"until must be .* got 0.123; the nearest is"):
        sg.sample(score, VP, (2, 2), steps=5, execution=until(0.123))
    assert sg.sample(score, VP, (2, 2), nfe=5, seed=0).continuation is None


# --- a batch in parts ------------------------------------------------------------------------------------------------

PARTS = ("ddim", "unipc3", "heun", "euler-maruyama", "sde-dpm++3m", "sa-solver", "pc", "dpm++3m-restart")


@pytest.mark.parametrize("seed", [3, [9, (9, 4), 2, (1, 2**32 - 1), 7, 7, 0]], ids=case_id)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_a_batch_in_parts_is_the_batch(name: str, seed: Any, size: int) -> None:
    """Samples and trajectories are the same bits whatever the size of the parts."""
    options: dict[str, Any] = {"shape": (7, 3), "solver": name, "steps": 4, "record": sg.Record("all")}
    whole = sg.sample(elementwise_score(VP), VP, seed=seed, **options)

    got = sg.sample(elementwise_score(VP), VP, seed=seed, execution=sg.Execution(batch_size=size), **options)
    assert torch.equal(got.x, whole.x)
    assert got.trajectory is not None
    assert torch.equal(got.trajectory, whole.trajectory)
    assert (got.nfe, got.network_evals, got.times, got.seeds) == (
        whole.nfe,
        whole.network_evals,
        whole.times,
        whole.seeds,
    )


def test_states_given_and_conditions_go_with_their_samples() -> None:
    """Parts take their rows of x_T and of the conditions, and what all share as it is."""
    seen: list[int] = []

    def net(x: Tensor, t: Tensor, shift: Tensor, table: Tensor) -> Tensor:
        seen.append(len(x))
        return -x + shift[:, None] * table.sum()

    kwargs = {"shift": sg.PerSample(torch.arange(5.0)), "table": sg.Shared(torch.ones(5) / 5)}
    x_T = VP.prior_sample((5, 3), seed=0, dtype=torch.bfloat16)
    options: dict[str, Any] = {"x_T": x_T, "solver": "dpm++2m", "steps": 3, "seed": 0, "model_kwargs": kwargs}
    whole = sg.sample(net, VP, **options)
    got = sg.sample(net, VP, execution=sg.Execution(batch_size=2), **options)
    assert torch.equal(got.x, whole.x)
    assert seen == [5] * 4 + [2] * 4 + [2] * 4 + [1] * 4
    with pytest.raises(ValueError, match="nothing says whether"):
        sg.sample(net, VP, **{**options, "model_kwargs": {"shift": torch.arange(5.0), "table": torch.ones(2)}},
                  execution=sg.Execution(batch_size=2))  # fmt: skip


BY_LABEL = sg.from_denoiser(lambda x, t, y: 0.5 * x + y[:, None], VP)
OF_A_PART = "of shape \\(4,\\) has as many rows as the network gets in one call, 4, and there are 8 samples"


@pytest.mark.parametrize("solver", ["ddim", "bosh3"])
@pytest.mark.parametrize("named", [False, True])
def test_labels_as_many_as_a_part_has_samples_are_refused(solver: str, named: bool) -> None:
    """They would be taken for each part anew; those in `Shared` are."""
    score = BY_LABEL
    if named:
        score = sg.guidance.ClassifierFree(score, 2.0, null={"y": 0.0})
    options: dict[str, Any] = {"solver": solver, "seed": 0, "execution": sg.Execution(batch_size=4)}
    with pytest.raises(ValueError, match=OF_A_PART):
        sg.sample(score, VP, (8, 2), model_kwargs={"y": torch.ones(4)}, **options)


def test_shared_labels_as_many_as_a_part_has_samples() -> None:
    y = torch.linspace(0.0, 0.5, 4)
    options: dict[str, Any] = {"solver": "ddim", "steps": 4, "seed": 0}
    parts = sg.sample(
        BY_LABEL, VP, (8, 2), model_kwargs={"y": sg.Shared(y)}, execution=sg.Execution(batch_size=4), **options
    )
    whole = sg.sample(BY_LABEL, VP, (8, 2), model_kwargs={"y": sg.PerSample(y.repeat(2))}, **options)
    assert torch.equal(parts.x, whole.x)


def test_a_single_row_is_the_same_for_all_in_parts_of_one() -> None:
    options: dict[str, Any] = {"solver": "ddim", "steps": 4, "seed": 0, "model_kwargs": {"y": torch.ones(1)}}
    parts = sg.sample(BY_LABEL, VP, (3, 2), execution=sg.Execution(batch_size=1), **options)
    assert torch.equal(parts.x, sg.sample(BY_LABEL, VP, (3, 2), **options).x)


def test_densities_in_parts_refuse_labels_as_many_as_a_part_has_samples() -> None:
    with pytest.raises(ValueError, match=OF_A_PART):
        sg.log_prob(BY_LABEL, VP, torch.zeros(8, 2), batch_size=4, model_kwargs={"y": torch.ones(4)})


@pytest.mark.parametrize("solver", ["bosh3", sg.schemes.GGF(rtol=0.2)], ids=case_id)
def test_solvers_that_find_their_own_steps_in_parts(solver: Any) -> None:
    """Every sample has its own steps, whatever the parts; the record of them is of all samples."""
    options: dict[str, Any] = {"shape": (5, 2), "solver": solver, "seed": 1}
    whole = sg.sample(elementwise_score(VP), VP, **options)
    got = sg.sample(elementwise_score(VP), VP, execution=sg.Execution(batch_size=2), **options)
    assert torch.equal(got.x, whole.x)
    assert whole.control is not None
    assert got.control is not None
    assert torch.equal(got.control.evaluations, whole.control.evaluations)
    assert got.control.outcome == whole.control.outcome


@pytest.mark.parametrize("solver", ["ddim", "pc", "bosh3"])
def test_the_status_is_of_all_parts(solver: str) -> None:
    """Samples that went wrong have their numbers in the batch, and the message is that of one batch."""

    def broken(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        return torch.where((weight[:, None] == 1) & (t[:, None] < 0.5), math.nan, -x)

    weight = torch.zeros(7)
    weight[[2, 6]] = 1
    kwargs = {"weight": sg.PerSample(weight)}
    steps = {} if solver == "bosh3" else {"steps": 5}
    messages = []
    for size in (7, 3):
        with pytest.warns(sg.sampling.NonFiniteWarning):
            res = sg.sample(
                broken, VP, (7, 2), solver=solver, seed=0, model_kwargs=kwargs, **steps,
                execution=sg.Execution(batch_size=size),
            )  # fmt: skip
        assert res.status.samples == (2, 6)
        messages.append(res.status.message)
    assert messages[0] == messages[1]


@pytest.mark.parametrize("solver", ["dpm++3m", "ancestral"])
def test_pieces_of_parts(solver: str) -> None:
    """A batch in parts that is stopped goes on in parts, of any size."""
    got, whole = pieces(
        elementwise_score(VP), VP, [2, 4], sg.Execution(batch_size=2), shape=(5, 2), solver=solver, steps=6, seed=0
    )
    assert torch.equal(got.x, whole.x)
    assert torch.equal(sg.sample(elementwise_score(VP), VP, (5, 2), solver=solver, steps=6, seed=0).x, whole.x)


def test_memory_is_that_of_a_part() -> None:
    """The network is never asked about more samples at a time, and the prior is drawn part by part."""
    largest = 0

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(x))
        return -x

    res = sg.sample(net, VP, (1000, 1), solver="ancestral", steps=2, seed=0, execution=sg.Execution(batch_size=64))
    assert res.x.shape == (1000, 1)
    assert largest == 64


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sg.Execution(dtype="float32"), TypeError, "floating-point torch.dtype, got 'float32'"),  # type: ignore[arg-type]
    (lambda: sg.Execution(dtype=torch.int64), TypeError, "int64"),
    (lambda: sg.Execution(batch_size=0), ValueError, "batch_size must be an integer of at least 1, got 0"),
    (lambda: sg.Execution(batch_size=2.5), ValueError, "2.5"),
    (lambda: sg.Execution(batch_size=2, enable_grad=True), ValueError, "batch_size= would save nothing"),
    (lambda: sg.Execution(until="0.5"), TypeError, "until must be one number, got '0.5'"),
    (lambda: sg.Execution(until=math.nan), ValueError, "until must be finite, at least 0, got nan"),
    (lambda: sg.Execution(until=-0.5), ValueError, "until must be finite, at least 0, got -0.5"),
    (lambda: sg.Execution(device="cuda:77"), ValueError, "device 'cuda:77' is not on this machine"),
    (lambda: sg.Execution(device="xla"), ValueError, "device 'xla' is none that torch can use here"),
    (lambda: sg.Execution(device="gpu"), ValueError, "device must be a device such as 'cpu', .* got 'gpu'"),
    (lambda: sg.Execution(device=3), TypeError, "device must be a torch.device or its name, got 3"),
    (lambda: sg.Execution(compile="yes"), TypeError, "compile must be True or False, got 'yes'"),
    (lambda: sg.likelihood.FixedGrid(data_std=1e-300), ValueError, "data_std must be finite, at least 1e-06"),
    (lambda: sg.likelihood.AdjointFlow(parameters=3), TypeError, "parameters must be a sequence of tensors, got 3"),
    (lambda: sg.likelihood.Hutchinson(basis=sg.likelihood.Hutchinson()), ValueError, "basis must be one of 'pixel'"),
    (lambda: sg.Record("some"), ValueError, "trajectory must be 'all' or a sequence of times, got 'some'"),
    (lambda: sg.Record(5), TypeError, "trajectory must be a sequence of numbers, got 5"),
    (lambda: sg.Record(True), TypeError, "trajectory must be 'all' or a sequence of times, got True"),
    (lambda: sg.Record([0.5, "a"]), TypeError, r"trajectory\[1\] must be one number, got 'a'"),
    (lambda: sg.Record([0.5, math.inf]), ValueError, r"trajectory\[1\] must be finite, at least 0, got inf"),
    (lambda: sg.Record(progress=1), TypeError, "progress must be True or False, got 1"),
    (lambda: sg.Record(callback=3), TypeError, "callback must be a function of a StepInfo, got 3"),
    (
        lambda: sg.sample(
            MODES.score(VP), VP, (3, 2), record=sg.Record(callback=print), execution=sg.Execution(batch_size=2)
        ),
        ValueError,
        "leave out batch_size=",
    ),
]


@pytest.mark.parametrize(("call", "error", "shown"), REFUSED)
def test_options_that_exclude_each_other(call: Callable[[], Any], error: type[Exception], shown: str) -> None:
    """Refused where they are written."""
    with pytest.raises(error, match=shown):
        call()


# --- compiled networks -----------------------------------------------------------------------------------------------


def test_nothing_outlives_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compile=True makes of a network, and a recorded graph, go with it; copies and pickles have none of it."""

    class Recorded:
        def __init__(self, program: Any, x: Tensor, model: Any) -> None:
            self.model = model

        def replay(self, x: Tensor, noise: Any) -> Run:
            return Run(x)

    monkeypatch.setattr(torch, "compile", lambda net: lambda *args: net(*args))
    monkeypatch.setattr(compiled, "Recording", Recorded)

    class Net(torch.nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x)

    nets: list[Any] = [Net(2, 2), lambda x, t: -x]
    for net in nets:
        score = sg.from_noise(net, VP)
        first, again = (compiled.compile_network(score).net for _ in range(2))
        assert first is again
        program = plan(VP, "ddim", steps=2)[2]
        model = BoundScore(score, VP, (VP.eps, VP.T))
        assert program is not None
        compiled.replay(program, torch.zeros(3, 2), model, NoiseStream(((0, 0),) * 3, "solver"), None)
        assert len(vars(net)[compiled.HELD].recordings) == 1
        del score, first, again, model
    copied = copy.deepcopy(nets[0])
    assert vars(copied)[compiled.HELD].compiled is None
    assert vars(copied)[compiled.HELD].recordings == {}
    assert nets[0].state_dict().keys() == {"weight", "bias"}

    gone = [weakref.ref(net) for net in nets]
    del net
    nets.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
