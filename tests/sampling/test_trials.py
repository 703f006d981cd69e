"""A pilot in a newcomer's hands: what it refuses, at once and in whose words, and what it says of itself."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.sampling.candidates import scale_of_candidates
from tests.conventions import case_id, some_slow
from tests.helpers import F64

VP = sg.VPSDE()
ORACLE = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, -0.5]]), 0.2)
SCORE = ORACLE.score(VP)
QUICK = {"reference_nfe": 64, "seed": 0}


class Counted:
    """A score that counts its calls."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor] = SCORE) -> None:
        self.score = score
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The score."""
        self.calls += 1
        return self.score(x, t)


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"nfe": {5, 8}}, ValueError, r"integer of at least 1, or a list of such, got \{"),
        ({"nfe": torch.tensor([5, 8])}, ValueError, "or a list of such, got a tensor"),
        ({"nfe": [5, 0]}, ValueError, r"nfe\[1\] must be an integer of at least 1, got 0"),
        ({"nfe": []}, ValueError, "an empty one"),
        ({"nfe": "5"}, ValueError, "got '5'"),
        ({"nfe": None}, ValueError, "got None"),
        ({"candidates": "ddim"}, TypeError, "sequence of settings or names, got 'ddim'"),
        ({"candidates": sg.DDIM()}, TypeError, "sequence of settings or names"),
        ({"candidates": 3}, TypeError, "sequence of settings or names, got 3"),
        (
            {"candidates": [("dpm++2m", "karras")]},
            TypeError,
            r"candidates\[0\].*sg.Setting\(solver, grid\), got \('dpm",
        ),
        ({"candidates": ["ddim", None]}, TypeError, r"candidates\[1\].*got None"),
        ({"candidates": ["dopri5"]}, TypeError, "finds its own steps"),
        ({"candidates": ["ddim", "rk4"], "nfe": [8, 3]}, ValueError, "nfe=3 is too small: one step of rk4"),
        ({"reference_nfe": 0}, ValueError, "0"),
        ({"reference_nfe": 3, "nfe": 1}, ValueError, "reference_nfe=3 .* 1 call: give 16 at least"),
        ({"reference_nfe": 64, "nfe": [5, 100]}, ValueError, "reference_nfe=64 .* 100 calls: give 200 at least"),
        ({"t_end": 0.0}, ValueError, "log-SNR is finite, and it is inf at t_end=0: give a later one.*0.001"),
        ({"t_end": 1.0}, ValueError, "t_end=1.0"),
        ({"final": "clean"}, ValueError, "clean"),
        ({"device": "meta"}, ValueError, "on the device meta have no numbers"),
    ],
)
def test_it_refuses_before_the_network_is_called(options: dict[str, object], error: type, shown: str) -> None:
    """A run of 512 calls a sample is not begun for what cannot end well."""
    score = Counted()
    with pytest.raises(error, match=shown):
        sg.pilot(score, VP, (8, 2), **{"nfe": 8, **QUICK, **options})
    assert score.calls == 0


@pytest.mark.parametrize("nfe, calls", [(10, 256), ([8, 100], 400)], ids=case_id)
def test_the_references_are_tight_beside_large_budgets(nfe: int | list[int], calls: int) -> None:
    """By default they have 256 calls, and four times those of the largest budget if that is more."""
    score = Counted()
    sg.pilot(score, VP, (8, 2), nfe=nfe, candidates=["dpm++2m"], seed=0)
    assert score.calls == 2 * calls + int(np.sum(nfe))


def test_what_a_pilot_costs() -> None:
    """No noise runs twice with a setting, and all trials together take no more than the two references."""
    rows = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return SCORE(x, t)

    found = sg.pilot(counted, VP, (32, 2), nfe=[5, 10, 20], seed=0)
    trials = sum(result.network_evals for result in found.values())
    assert {result.shared_evals for result in found.values()} == {2 * 256 * 32}
    assert trials + 2 * 256 * 32 == rows
    assert 0.8 * 2 * 256 * 32 < trials <= 2 * 256 * 32

    best = found[10].errors[0]
    x, exact = (
        sg.sample(SCORE, VP, (32, 2), solver=solver, nfe=nfe, t_end=t_end, seed=0).x
        for solver, nfe, t_end in ((found[10], 10, None), (sg.trials.REFERENCE, 256, VP.eps))
    )
    spread = exact.double().var(0).mean().sqrt()
    assert float((x - exact).double().square().mean().sqrt() / spread) == pytest.approx(best[1], rel=1e-4)


def test_errors_are_in_units_of_the_spread_around_the_mean() -> None:
    """However far from 0, and from one another, the means of the numbers are."""
    candidates = ["ddim"]
    near, far = (
        sg.pilot(sg.oracles.Gaussian(mean, 1.0).score(VP), VP, (32, 2), nfe=10, candidates=candidates, seed=0)
        for mean in (torch.zeros(2), torch.tensor([30.0, -30.0]))
    )
    assert far.errors[0][1] == pytest.approx(near.errors[0][1], rel=0.1)


@pytest.mark.parametrize("scale", [50.0, *some_slow([0.02])])
def test_candidates_for_the_scale_of_the_data(scale: float) -> None:
    """Where it is far from 1, those for its scale err less than half as much as those for unit scale."""
    modes = torch.tensor([[-1.0], [0.3], [1.2]], dtype=torch.float64)
    score = sg.oracles.GaussianMixture(scale * modes, 0.2 * scale).score(VP)
    options = {"nfe": 8, "seed": 0, "dtype": torch.float64}
    found = sg.pilot(score, VP, (64, 1), **options)
    of_unit_scale = sg.pilot(score, VP, (64, 1), candidates=sg.trials.default_candidates(8), **options)
    assert found.errors[0][1] < 0.5 * of_unit_scale.errors[0][1]


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.scale.ScaleWarning")  # whose calls are enough, but could do more
def test_processes_of_wide_data_are_run_from_their_start() -> None:
    """Noise far above that of unit data is no end of a grid where the process has it for wider data."""
    c = 5000.0
    sde = sg.EDMSDE(0.002 * c, 80 * c)
    score = sg.oracles.Gaussian(torch.zeros(3), c**2).score(sde)
    x = sde.prior_sample((256, 3), seed=0, dtype=F64)
    exact = x * c**2 / math.hypot(c, sde.T) / math.hypot(c, sde.eps)

    def error(solver: sg.Setting | None, nfe: int) -> float:
        run = sg.sample(score, sde, x_T=x, nfe=nfe, solver=solver)
        assert run.times[0] == sde.T
        return float((run.x - exact).square().mean().sqrt() / c)

    assert error(None, 10) < 0.05
    assert error(None, 50) < 1e-4
    found = sg.pilot(score, sde, (64, 3), nfe=10, seed=1, dtype=F64)
    assert error(found, 10) == pytest.approx(found.errors[0][1], rel=0.5)


@pytest.mark.parametrize(
    "sde, scale",
    [
        (VP, 1.0),
        (sg.VESDE(0.01, 1348.0), 1.0),
        (sg.RectifiedFlowSDE(), 1.0),
        (sg.CosineVPSDE(), 1.0),
        (sg.EDMSDE(10.0, 4e5), 200.0),
        (sg.EDMSDE(2e-6, 0.08), 0.02),
    ],
    ids=case_id,
)
def test_scale_that_the_default_takes_data_for(sde: sg.LinearSDE, scale: float) -> None:
    """Unit scale, or the nearest between the noise levels of the process' ends."""
    default = sg.defaults.default_setting
    assert default(sde, 12) == default(sde, 12, data_std=scale)


def test_numbers_of_unlike_scale_count_alike() -> None:
    """Of two numbers the small one is not the price of the large one: each is measured in its own scale."""
    scale = torch.tensor([8.0, 0.03])

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        y = x / scale
        s2 = (sigma[:, None] / scale).square()
        return scale * (0.09 * y + s2 * (y / (s2 + 0.09)).tanh()) / (s2 + 0.09)

    sde = sg.EDMSDE()
    score = sg.from_denoiser(denoised, sde)
    found = sg.pilot(score, sde, (64, 2), nfe=8, seed=0)
    x = sg.sample(score, sde, (200, 2), solver=found, seed=9).x
    exact = sg.sample(score, sde, (200, 2), solver="unipc3", grid="log-snr", steps=200, seed=9).x
    assert float(((x - exact) / exact.std(0)).square().mean(0).sqrt().max()) < 0.2


@pytest.mark.parametrize(
    "std, scale", [(0.16, 0.2), (0.044, 0.04), (0.3, 1.0), (4.0, 1.0), (340.0, 300.0), (1e6, 1e5)], ids=case_id
)
def test_which_scale_candidates_take_data_for(std: float, scale: float) -> None:
    """To one digit where it is below 0.2 or above 5, as far as solvers go."""
    assert scale_of_candidates(std) == pytest.approx(scale)


def test_solvers_by_object_and_several_spellings() -> None:
    """Names, solvers, settings and earlier results are candidates, in any iterable; each runs once."""
    first = sg.pilot(SCORE, VP, (8, 2), nfe=8, candidates=["ddim", sg.DDIM(), sg.Setting("ddim")], **QUICK)
    assert len(first.errors) == 1
    found = sg.pilot(SCORE, VP, (8, 2), nfe=8, candidates=(c for c in [first, "dpm++2m", sg.DPMSolver(2)]), **QUICK)
    assert len(found.errors) == 3
    assert found.nfe == 8


def test_budgets_are_given_once_or_in_any_sequence() -> None:
    """One number gives a result, a sequence a dictionary, each budget once."""
    options = {"candidates": ["ipndm3", "dpm++2m"], **QUICK}
    one = sg.pilot(SCORE, VP, (8, 2), nfe=np.int64(5), **options)
    assert one.nfe == 5
    for nfe in ([5, 5], (5,), range(5, 6)):
        found = sg.pilot(SCORE, VP, (8, 2), nfe=nfe, **options)
        assert list(found) == [5]
        assert found[5].errors == one.errors
    with pytest.raises(KeyError, match="no trial at 8 network calls; there are trials at 5"):
        found[8]
    assert str(found) == repr(found) == str(one)


@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_smallest_budgets(nfe: int) -> None:
    """There are candidates for one call, and each of them runs once."""
    with pytest.warns(sg.trials.PilotWarning, match="even the best") if nfe == 1 else _silent():
        found = sg.pilot(SCORE, VP, (8, 2), nfe=nfe, **QUICK)
    assert found.nfe == nfe
    assert sg.sample(SCORE, VP, (3, 2), solver=found, nfe=nfe, seed=1).nfe <= nfe
    assert str(found).startswith("at 1 call," if nfe == 1 else f"at {nfe} calls,")
    programs = [sg.sampling.plan(VP, setting, nfe=nfe, final="denoise")[2] for setting, _ in found.errors]
    assert len(set(programs)) == len(programs)


def _silent() -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


def test_one_noise_is_no_trial() -> None:
    """Of one noise it warns, of a few it remarks; no error is undefined."""
    with pytest.warns(sg.trials.PilotWarning, match="one noise does not tell which setting is good on others"):
        one = sg.pilot(SCORE, VP, (1, 2), nfe=8, **QUICK)
    assert all(math.isfinite(error) for _, error in one.errors)
    assert not any(remark.startswith("cannot tell") for remark in one.remarks)

    number = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(VP)
    with pytest.warns(sg.trials.PilotWarning, match="one noise"):  # a single number, which has no spread
        alone = sg.pilot(number, VP, (1, 1), nfe=8, candidates=["ddim", "heun"], **QUICK)
    assert all(math.isfinite(error) for _, error in alone.errors)

    few = sg.pilot(SCORE, VP, (3, 2), nfe=8, **QUICK)
    assert "cannot tell much about other noises from 3: give a shape of 32 samples" in few.remarks
    assert not any("much" in remark for remark in sg.pilot(SCORE, VP, (8, 2), nfe=8, **QUICK).remarks)


def test_what_is_exact_is_known_exactly() -> None:
    """Where all candidates and both references agree to the bit, the reference is not called unknown."""
    origin = sg.from_denoiser(lambda x, t: torch.zeros_like(x), VP)
    found = sg.pilot(origin, VP, (8, 2), nfe=8, candidates=["ddim", "dpm++2m"], **QUICK)
    assert [error for _, error in found.errors] == [0.0, 0.0]
    assert found.reference_error == 0
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("cannot tell ddim")


def test_a_reference_that_is_not_known_is_said() -> None:
    """A network that looks its time up jumps from one entry to the next, and a solution of few calls skips most."""
    generator = torch.Generator().manual_seed(0)
    table = 0.3 * torch.randn(1000, 1, 2, generator=generator)

    def looked_up(x: Tensor, t: Tensor) -> Tensor:
        return SCORE(x, t) + table[(1000 * t - 1).round().long().clamp(0, 999), 0] / VP.sigma(t)[:, None]

    with pytest.warns(sg.trials.PilotWarning, match=r"reference is known to .* give a larger reference_nfe="):
        rough = sg.pilot(looked_up, VP, (16, 2), nfe=20, **QUICK)
    smooth = sg.pilot(SCORE, VP, (16, 2), nfe=8, **QUICK)
    assert rough.reference_error > 10 * smooth.reference_error
    assert not any("reference" in remark for remark in smooth.remarks)


@pytest.mark.parametrize("nfe, poor", [(2, True), (12, False)])
def test_the_error_is_what_the_poor_best_has(nfe: int, poor: bool) -> None:
    """It is said to be off by more than half a standard deviation if and only if it is."""
    with pytest.warns(sg.trials.PilotWarning) if poor else _silent():
        found = sg.pilot(SCORE, VP, (16, 2), nfe=nfe, candidates=["ddim", "euler"], **QUICK)
    error = found.errors[0][1]
    said = [remark for remark in found.remarks if remark.startswith("even the best")]
    assert (error >= 0.5) == bool(said) == poor
    assert all(f"is off by {error:.2g} standard deviations" in remark for remark in said)


def test_candidates_that_do_not_stay_finite_lose() -> None:
    """Where a network returns NaN at times that the reference does not meet, the others are ranked, and it is said."""
    times = Counted()
    met: set[float] = set()

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        met.add(float(t[0]))
        return times(x, t)

    sg.pilot(recorded, VP, (8, 2), nfe=8, candidates=["dpm++2m"], **QUICK)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        known = t.double()[:, None].sub(torch.tensor(sorted(met), dtype=F64)).abs().amin(1) < 1e-7
        return torch.where(known[:, None], SCORE(x, t), math.nan)

    candidates = ["dpm++2m", sg.Setting("ddim", "log-snr"), sg.Setting("ddim", "uniform")]
    found = sg.pilot(broken, VP, (8, 2), nfe=8, candidates=candidates, **QUICK)
    assert found.remarks[-1] == "cannot use 1 of 3 candidates, which did not stay finite"
    assert found.errors[-1][1] == math.inf
    with pytest.warns(sg.trials.PilotWarning, match=r"even the best, ddim on .* does not stay finite"):
        none = sg.pilot(broken, VP, (8, 2), nfe=8, candidates=[sg.Setting("ddim", "uniform")], **QUICK)
    assert not any("standard deviations" in remark for remark in none.remarks)


def test_a_network_that_is_not_what_it_was_taken_for() -> None:
    """The error names what to look at; the warnings of the reference's run do not come on top."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        return -SCORE(x, t) * VP.sigma(t)[:, None]

    with pytest.raises(ValueError, match=r"no reference to compare with: 8 of 8 .* from_noise"):
        sg.pilot(noise, VP, (8, 2), nfe=8, **QUICK)


def test_some_exact_samples_of_no_plausible_size_are_no_reason_to_refuse() -> None:
    """Noises beyond .53, where the network has the sign wrong, end far out; the trial runs on, and says so."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        right = -SCORE(x, t) * VP.sigma(t)[:, None]
        return torch.where(x[:, :1] > 0.53, -right, right)

    with pytest.warns(sg.trials.PilotWarning, match="of the exact samples themselves [1-7] of 16 are of a size"):
        found = sg.pilot(sg.from_noise(noise, VP), VP, (16, 2), nfe=8, candidates=["ddim", "dpm++2m"], **QUICK)
    assert found.errors[0][1] < math.inf


GIVEN = [
    sg.Setting(solver, grid)
    for solver in ("euler", "ddim", "heun", "midpoint", "ipndm2", "dpm++2m", "dpm3m", "deis3")
    for grid in ("log-snr", "karras", "uniform", None)
]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((16, 2), {"nfe": [4, 8, 24], "reference_nfe": 64}),
        ((4, 2), {"nfe": 8, "reference_nfe": 16}),
        ((16, 2), {"nfe": 10, "reference_nfe": 20}),
    ],
    ids=["many budgets", "few noises", "a short reference"],
)
def test_all_given_candidates_run_in_any_order(
    shape: tuple[int, ...], options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be saved is saved on noises and finalists."""
    met: set[sg.Setting] = set()
    errors = sg.trials.Race.errors

    def watched(race: sg.trials.Race, setting: sg.Setting, *args: object, **kwargs: object) -> Tensor:
        met.add(setting)
        return errors(race, setting, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sg.trials.Race, "errors", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.trials.PilotWarning)
        one, other = (
            sg.pilot(SCORE, VP, shape, candidates=given, seed=0, **options)  # type: ignore[call-overload]
            for given in (GIVEN, GIVEN[::-1])
        )
    assert met > set(GIVEN)
    results = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else [(one, other)]
    for here, there in results:
        assert here.errors[0][1] == there.errors[0][1]


@pytest.mark.parametrize("candidates", range(1, 60, 3))
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32, 128])
def test_a_race_costs_what_it_may(candidates: int, batch: int) -> None:
    """Within the runs that are allowed where a race can be so short; else the shortest."""
    lengths = []
    for runs in (1, 100, 300, 500, 10000):
        race = sg.trials._schedule(candidates, batch, runs)
        assert race[0].candidates == candidates
        assert race[-1].noises == batch
        lengths.append(sg.trials._runs(race))
        assert lengths[-1] <= max(runs, lengths[0])
    assert lengths == sorted(lengths)


def test_fewer_defaults_run_where_all_noises_must() -> None:
    """The result says how many did not, and what to mark."""
    labels = torch.arange(16)
    score = sg.from_noise(lambda x, t, y: VP.sigma(t[:, None]) * -SCORE(x, t), VP)
    best = sg.pilot(score, VP, (16, 2), nfe=20, model_kwargs={"y": labels}, **QUICK)
    (remark,) = [remark for remark in best.remarks if "candidates at this cost" in remark]
    assert remark.endswith("sg.PerSample(...)")
    marked = sg.pilot(score, VP, (16, 2), nfe=20, model_kwargs={"y": sg.PerSample(labels)}, **QUICK)
    assert not [remark for remark in marked.remarks if "candidates at this cost" in remark]


def test_ranks_are_of_two_errors() -> None:
    """One sample that changes sides does not decide alone, a setting whose samples often do loses all the same."""
    quiet, loud = torch.full((32,), 1e-4), torch.full((32,), 4e-4)
    once, often = quiet.clone(), quiet.clone()
    once[0] = 1e-2
    often[:3] = 4.0
    rank = sg.trials.Race.rank
    assert rank(quiet) == pytest.approx(1e-2)
    assert rank(quiet) < rank(once) < rank(loud) < rank(often)
    assert rank(often) == pytest.approx(math.sqrt(math.sqrt((3 * 4.0 + 29e-4) / 32) * 1e-2))
    broken = quiet.clone()
    broken[5] = math.inf
    assert rank(broken) == math.inf
    assert rank(torch.tensor([0.0, 0.0, 0.0, math.inf])) == math.inf


def test_what_a_pilot_prints() -> None:
    """Both errors of each setting, the best first, then what it could not find out."""
    found = sg.pilot(SCORE, VP, (16, 2), nfe=8, **QUICK)
    title, *rows = str(found).split("\n")
    assert title.startswith("at 8 calls, reference known to ")
    for row, (setting, error), typical in zip(rows, found.errors, found.typical, strict=False):
        assert row == f"{error:.3e}  {typical:.3e}  {setting}"
        assert typical <= error
    ranks = [error * typical for (_, error), typical in zip(found.errors, found.typical, strict=True)]
    assert ranks == sorted(ranks)
    assert rows[len(found.errors) :] == list(found.remarks)


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.checks.LikelihoodWarning")
def test_the_budget_of_a_setting_is_that_of_its_trial() -> None:
    """Unless the caller names another, in calls or in steps."""
    best = sg.pilot(SCORE, VP, (8, 2), nfe=8, candidates=["ddim"], **QUICK)
    shape = (4, 2)
    assert best.budget == 8
    assert sg.Setting("ddim").budget is None
    assert sg.sample(SCORE, VP, shape, solver=best, seed=0).nfe == 8
    assert sg.sample(SCORE, VP, shape, solver=best, nfe=10, seed=0).nfe == 10
    assert sg.sample(SCORE, VP, shape, solver=best, steps=3, seed=0).nfe == 4
    assert sg.sample(SCORE, VP, shape, solver=best, log_prob=True, seed=0).nfe == 8
    assert len(sg.stepping.stepper(best, VP, prediction="score", seed=0).times) == 8


def test_settings_of_several_budgets_are_no_solver() -> None:
    """The error names the budgets, and what to give."""
    results = sg.pilot(SCORE, VP, (8, 2), nfe=[12, 16], candidates=["dpm++2m"], **QUICK)
    with pytest.raises(TypeError, match=r"a PilotResults of 12, 16: give one of them, such as found\[12\]$"):
        sg.sample(SCORE, VP, (4, 2), solver=results, seed=0)


def test_settings_of_one_name_are_told_apart() -> None:
    """By the options in which they differ, and no others."""
    one, other = (replace(sg.schemes.Rosenbrock(2, sigma_data=s), name="mine") for s in (0.4, 0.8))
    candidates = [sg.Setting(one, "log-snr"), sg.Setting(other, "log-snr"), "ddim"]
    found = sg.pilot(SCORE, VP, (8, 2), nfe=8, candidates=candidates, **QUICK)
    names = {row.split("  ")[-1] for row in str(found).split("\n")[1:4]}
    assert names == {
        "mine(sigma_data=0.4) on LogSNR()",
        "mine(sigma_data=0.8) on LogSNR()",
        "ddim on its default grid",
    }


def test_an_interrupted_pilot_leaves_nothing_behind() -> None:
    """After an interruption the same call gives what it would have given, the global random state untouched."""
    options = {"candidates": ["ipndm3", "dpm++2m"], **QUICK}
    expected = sg.pilot(SCORE, VP, (8, 2), nfe=8, **options)
    state = torch.get_rng_state()

    def interrupted(x: Tensor, t: Tensor) -> Tensor:
        if counted.calls == 140:
            raise KeyboardInterrupt
        return counted(x, t)

    counted = Counted()
    with pytest.raises(KeyboardInterrupt):
        sg.pilot(interrupted, VP, (8, 2), nfe=8, **options)
    again = sg.pilot(SCORE, VP, (8, 2), nfe=8, **options)
    assert again.errors == expected.errors
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    """The network sees states of the dtype asked for, or of single precision at least."""
    seen = set()

    def typed(x: Tensor, t: Tensor) -> Tensor:
        seen.add(x.dtype)
        return SCORE(x, t)

    found = sg.pilot(typed, VP, (8, 2), nfe=8, candidates=["ddim", "dpm++2m"], dtype=dtype, **QUICK)
    assert len(seen) == 1
    assert found.errors[0][0].solver.name == "dpm++2m"


def test_guided_and_latent_scores() -> None:
    """A guided score goes with its conditions, marked or not; a prior of latents is a score like another."""

    def noise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert len(y) == len(x)
        return -SCORE(x, t) * VP.sigma(t)[:, None] + 0.1 * (y >= 0)[:, None]

    guided = sg.guidance.ClassifierFree(sg.from_noise(noise, VP), 3.0, null={"y": -1})
    labels = torch.arange(16)
    plain, marked = (
        sg.pilot(guided, VP, (16, 2), nfe=8, model_kwargs={"y": y}, **QUICK) for y in (labels, sg.PerSample(labels))
    )
    assert plain.errors == marked.errors

    mixed = sg.latent.MixedNoise(lambda x, t: VP.sigma(t)[:, None] * x, VP, (2,), initial=0.1)
    prior = sg.from_noise(mixed, VP)
    found = sg.pilot(prior, VP, (8, 2), nfe=5, candidates=["ddim", "dpm++2m"], **QUICK)
    assert math.isfinite(found.errors[0][1])


def test_a_process_of_a_table() -> None:
    """Candidates run on the times of a discrete process, whose table the reference passes over."""
    sde = sg.presets.ddpm()
    found = sg.pilot(ORACLE.score(sde), sde, (8, 2), nfe=[5, 10], **QUICK)
    assert found[10].errors[0][1] < found[5].errors[0][1] < 0.2


def remarks_on_other_noises(law: Any, n: int) -> list[str]:
    """Those of a pilot on n noises that say the error on others may be far from what is stated."""
    score = law.score(VP)
    found = sg.pilot(score, VP, (n, 2), nfe=12, candidates=["unipc2"], reference_nfe=64, seed=1)
    return [remark for remark in found.remarks if "how large the error is on other noises" in remark]


def test_an_error_that_is_that_of_single_noises_is_told() -> None:
    """Of data with heavy tails; a Gaussian's errors are alike, and few noises have a remark of their own."""
    heavy = sg.oracles.GaussianMixture(
        torch.zeros(3, 2), torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.6, 0.37, 0.03])
    )
    (said,) = remarks_on_other_noises(heavy, 32)
    assert said.startswith("cannot tell how large the error is on other noises, where one noise makes half")
    assert remarks_on_other_noises(sg.oracles.Gaussian(torch.zeros(2), 0.25), 32) == []
    assert remarks_on_other_noises(heavy, 4) == []
