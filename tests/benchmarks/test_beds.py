"""The test beds of the benchmarks: a half for choosing and a half for the table, references that are right, errors."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

import sgm_sde as sg
from benchmarks import beds, defaults
from tests.conventions import case_id

GAUSSIAN = sg.oracles.Gaussian(torch.tensor([0.3, -0.2]), 0.25)


def made(sde: sg.LinearSDE, score: sg.Score, shape: tuple[int, ...], **options: object) -> beds.Bed:
    """A bed that is not in the list."""
    return beds.Bed(beds.Recipe("choose", "exact", "vp", "made"), sde, score, shape, 0.5, **options)  # type: ignore[arg-type]


def test_halves_are_equally_large() -> None:
    assert len({r.name for r in beds.RECIPES}) == len(beds.RECIPES)
    counts = Counter((r.half, r.family) for r in beds.RECIPES)
    assert all(abs(counts["choose", f] - counts["report", f]) <= 1 for f in beds.FAMILIES)


@pytest.mark.parametrize("half", beds.HALVES, ids=case_id)
def test_each_half_has_every_family_process_and_roughness(half: str) -> None:
    here = [r for r in beds.RECIPES if r.half == half]
    assert {(r.family, r.process) for r in here} == {(f, p) for f in beds.FAMILIES for p in beds.PROCESSES}
    assert {r.rough[0] for r in here if r.rough} == {"sin", "table", "bias"}
    assert {r.rough[1:] for r in here if r.rough[:1] == ("sin",)} == {
        (a, w) for a in (0.003, 0.01, 0.03) for w in (1, 3, 8)
    }
    assert {r.mode for r in here if r.mode} == {"labels", "guided", "bfloat16", "plain"}


def test_a_name_tells_the_bed_but_not_its_half() -> None:
    recipe = beds.RECIPES[0]
    other = replace(recipe, half="report" if recipe.half == "choose" else "choose")
    assert recipe.hash() == other.hash()
    assert recipe.hash() != replace(recipe, source="mixture-1").hash()
    with pytest.raises(ValueError, match="unknown bed"):
        beds.bed("nothing")
    with pytest.raises(ValueError, match="half must be"):
        beds.load(half="both")


@pytest.mark.parametrize("name", ["mixture-1", "mixture-64"])
def test_the_scale_of_mixtures(name: str) -> None:
    data = beds.data(name)
    oracle = sg.oracles.GaussianMixture(data.means, data.variances.sqrt(), data.weights)  # type: ignore[attr-defined]
    assert math.isclose(data.std, float(beds.spread(oracle.sample(4000, seed=0))), rel_tol=0.03)


@pytest.mark.parametrize("name", ["mixture-1", "mixture-64"])
@pytest.mark.parametrize("groups", [1, 3])
def test_mixtures_by_matrix_products_are_the_oracles(name: str, groups: int) -> None:
    data = beds.data(name)
    oracle = sg.oracles.GaussianMixture(data.means, data.variances.sqrt(), data.weights)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)

    level = torch.rand(groups, generator=generator, dtype=torch.float64).repeat_interleave(data.n)
    x = 2 * torch.randn(len(level), *data.shape, generator=generator, dtype=torch.float64)
    for alpha, sigma in ((level, 3 * level), (level.flip(0), torch.rand(len(level), generator=generator) + 0.01)):
        exact = oracle.denoised(x, alpha, sigma.double())
        torch.testing.assert_close(data.denoised(x, alpha, sigma.double()), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.presets.iddpm_cosine(), sg.RectifiedFlowSDE(), sg.EDMSDE(), sg.VESDE()])
def test_the_reference_is_the_flow_of_a_gaussian(sde: sg.LinearSDE) -> None:
    bed = made(sde, GAUSSIAN.score(sde), (8, 2))
    end = GAUSSIAN.flow(sde.prior_std * bed.noise, sde, sde.T, sde.eps)
    exact = bed.score.denoised(end, sde.eps)
    torch.testing.assert_close(beds.flow(bed, (400, 0)), exact, rtol=0, atol=1e-6)


def test_the_reference_meets_no_jump() -> None:
    """Off by 1 before t = 0.5 and not after: the flow of the two parts, one after the other."""
    sde = sg.VPSDE()
    exact = GAUSSIAN.score(sde)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return exact.predict("noise", x, t) + (t > 0.5).to(x)[:, None]

    bed = made(sde, sg.from_noise(net, sde), (8, 2), jumps=(0.5,))
    coarse, fine = (beds.flow(bed, (n, 0)) for n in (200, 400))
    torch.testing.assert_close(coarse, fine, rtol=1e-6, atol=1e-6)


def test_errors_fall_to_nothing_and_count_calls() -> None:
    sde = sg.VPSDE()
    bed = made(sde, GAUSSIAN.score(sde), (8, 2))
    bed.reference = beds.solve_reference(bed)
    assert bed.reference.doubt < 1e-6
    assert beds.error(bed, "unipc4", 200, "log-snr") < 1e-5
    few, more = (beds.errors(bed, "ddim", nfe, "log-snr") for nfe in (5, 10))
    assert more.rmse < 0.7 * few.rmse and few.median < 2 * few.rmse
    assert beds.error(bed, None, 10) == beds.error(bed, sg.defaults.default_setting(sde, 10), 10)
    assert beds.compare(bed, torch.full((8, 2), torch.nan)) == beds.Error(math.inf, math.inf)


def test_programs_that_run_together_end_where_each_ends_alone() -> None:
    sde = sg.RectifiedFlowSDE()
    bed = made(sde, sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.3).score(sde), (8, 2))
    bed.reference = beds.Reference(torch.zeros(8, 2, dtype=torch.float64), 0.0)
    names = ("ddim", "dpm++2m", "heun", "ipndm3")
    programs = [sg.sampling.planning.plan(sde, name, nfe=8, grid="log-snr")[2] for name in names]
    together = beds.errors_of(bed, programs, rows=16)  # type: ignore[arg-type]
    for name, error in zip(names, together, strict=True):
        alone = beds.errors(bed, name, 8, "log-snr")
        assert math.isclose(error.rmse, alone.rmse, rel_tol=1e-9)
        assert math.isclose(error.median, alone.median, rel_tol=1e-9)


def test_a_summary_has_ratios_to_the_best_and_growth() -> None:
    sde = sg.VPSDE()
    bed = made(sde, GAUSSIAN.score(sde), (8, 2))
    bed.reference = beds.Reference(torch.zeros(8, 2, dtype=torch.float64), 1e-3)
    errors = {nfe: 0.4 if nfe == 20 else 1.0 / nfe for nfe in beds.BUDGETS}
    half, twice = ({nfe: factor * e for nfe, e in errors.items()} for factor in (0.5, 2))
    row = defaults.Row(bed, errors, half, twice, twice)
    assert row.over(row.best, 5) == 2
    assert row.over({5: 0.0}, 5) == 200  # nothing is known to be less than the doubt
    assert math.isclose(row.growth(20), 0.4 * 16)
    assert row.growth(4) == 0
    line = defaults.summary([row], "one")[-3]
    assert line.split(" | ")[:5] == ["| 35", "4.00", "4.0", "2.00", "2.00"]


def test_candidates_are_what_the_registry_has_on_three_grids() -> None:
    found = list(defaults.candidates())
    assert len({str(c) for c in found}) == len(found) > 150
    assert not any(c.build().stochastic for c in found)
    assert {c.grid for c in found} == {None, "log-snr", "karras"}
    assert any(c.lower_final for c in found)


def test_references_are_kept_with_the_hash_of_their_bed(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(beds, "HERE", tmp_path / "nothing")
    monkeypatch.setattr(beds, "CACHE", tmp_path)
    sde = sg.VPSDE()
    bed = made(sde, GAUSSIAN.score(sde), (8, 2), steps=(50, 0))
    first = beds.reference(bed)
    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr(beds, "solve_reference", lambda bed: pytest.fail("computed again"))
    again = beds.reference(bed)
    assert torch.equal(again.x, first.x)
    beds.store_references([bed])
    stored = beds.reference(bed)
    assert not torch.equal(stored.x, first.x)
    torch.testing.assert_close(stored.x, first.x, rtol=0, atol=1e-6)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        beds.reference(made(sde, GAUSSIAN.score(sde), (8, 2), steps=(60, 0)))


@functools.cache
def committed() -> tuple[dict[str, dict[str, object]], dict[str, dict[str, object]]]:
    """What is kept of the beds, and of the best of the registry on them."""
    return beds._read_index(), defaults.frozen()


def test_what_is_committed_is_in_the_list() -> None:
    known, _ = committed()
    assert set(known) <= {recipe.name for recipe in beds.RECIPES}


@pytest.mark.parametrize("name", [r.name for r in beds.RECIPES if r.source != "points"])  # those data are elsewhere
def test_what_is_committed_goes_with_the_list(name: str) -> None:
    """Weights, references and the best of the registry are those of the recipes that the list has now."""
    known, frozen = committed()
    bed = beds.bed(name)
    assert known[bed.name]["hash"] == frozen[bed.name]["hash"] == bed.hash, f"make beds: {bed.name}"
    assert known[bed.name]["doubt"] < 0.01
    assert set(frozen[bed.name]["best"]) == set(map(str, beds.BUDGETS))
