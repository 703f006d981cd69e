"""Errors as calibrations state them, over those on many noises, for many draws of the noises that are held out.

    python -m benchmarks.calibrated_stated                # three networks; about a minute each
    python -m benchmarks.calibrated_stated --names board

Two networks of `benchmarks.calibrated_fresh`, trained shorter, and a rough score of a mixture are calibrated once.
All that was compared then runs from 8192 other noises, beside exact samples by the calibration's number of calls and by
1024. Of these noises 544 or 2176 are drawn 100 times, as 32 or 128 held-out ones and 16 times as many more, and a
setting is chosen and its error stated

- naively: the error on the noises that the choice was made on, by the same exact samples as those of the fit, in units
  of the standard deviation of 64 other samples;
- as the library does: cross-fitted, by surer samples for an eighth of the noises or for all, in units of those held
  out.

Printed are the mean of stated over true with its standard error, and how often the two are within two of the stated
standard errors.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import beds, command
from benchmarks.calibrated_fresh import recipes, score_of, trained
from sgm_sde.calibration.choice import Comparison
from sgm_sde.calibration.strata import Strata
from sgm_sde.sampling.trials import REFERENCE

BUDGETS = (4, 8)
NOISES = 64  # of the fit
HELD_OUT = (544, 2176)
ALL = 8192
SURELY = 1024  # calls
DRAWS = 100
STEPS = 1000  # of the training
BATCH = 1024
SEED = 5
ROUGH = "rough/bias-0.08/mixture-2/edm"
NAMES = ("board", "numbers", ROUGH)

Errors = dict[sg.calibration.HeldOut, Tensor]  # mean squares (N,)


@dataclass(frozen=True)
class Network:
    """A score with its process."""

    score: sg.Score
    sde: sg.LinearSDE
    shape: tuple[int, ...]
    dtype: torch.dtype

    def run(self, solver: object, nfe: int) -> Tensor:
        """Samples of all noises (N, d)."""
        exact = solver is REFERENCE
        parts = [
            sg.sample(
                self.score, self.sde, (BATCH, *self.shape), solver=solver, nfe=nfe, final="denoise",
                seed=[10**7 + k + i for i in range(BATCH)], t_end=self.sde.eps if exact else None,
                execution=sg.Execution(dtype=self.dtype),
            ).x
            for k in range(0, ALL, BATCH)
        ]  # fmt: skip
        return torch.cat(parts).flatten(1).double()


def network_of(name: str) -> Network:
    """One of them; those of recipes are trained here."""
    if name == ROUGH:
        (bed,) = beds.load("choose", None, ROUGH)
        return Network(bed.score, bed.sde, tuple(bed.shape[1:]), bed.dtype)
    recipe = replace(recipes()[name], steps=STEPS)
    return Network(score_of(recipe, trained(recipe)), recipe.sde, recipe.shape, torch.float32)


@dataclass(frozen=True)
class Draws:
    """Errors on all noises at one budget.

    Attributes:
        same: by exact samples of as many calls as those of the fit.
        sure: by those of many more.
        ends: the latter (N, d).
        doubt: how well the former are known.
    """

    same: Errors
    sure: Errors
    ends: Tensor
    doubt: float

    @property
    def variance(self) -> Tensor:
        """Mean square distances (N,) of the samples from their mean."""
        return (self.ends - self.ends.mean()).square().mean(1)

    def naively(self, held: Tensor, others: Tensor) -> tuple[float, float]:
        """Stated over true, and their distance in standard errors."""
        compared = self._compared(held, None)
        taken = compared.best(lambda one: True).taken
        unit = float(self.ends[others].std()) / math.sqrt(float(self.variance.mean()))
        return self._beside(taken.rmse / unit, taken.stderr / unit, taken)

    def as_stated(self, held: Tensor) -> tuple[float, float]:
        """The same, of what the library states."""
        unit = self.variance[held].mean() / self.variance.mean()
        compared = self._compared(held, self.variance[held] / self.variance[held].mean(), float(unit))
        taken = compared.best(lambda one: True).taken
        parts = compared.by_part(lambda one: True)
        each = compared.cross_fitted(parts)
        unsure = compared.unsure(each, self.doubt)
        for one, part in parts:
            here = unsure & part
            each[here] = self._of(self.sure, one)[held][here] / unit
        stated = compared.measured(taken.name, taken.setting, each)
        return self._beside(stated.rmse, stated.stderr, taken)

    def _compared(self, held: Tensor, spread: Tensor | None, unit: float = 1.0) -> Comparison:
        found = Comparison(Strata.even(range(len(held))), spread)
        for one, each in self.same.items():
            found.add(one.name, one.setting, each[held] / unit)
        return found

    def _beside(self, stated: float, stderr: float, taken: sg.calibration.HeldOut) -> tuple[float, float]:
        true = math.sqrt(self._of(self.sure, taken).mean())
        return stated / true, (stated - true) / stderr

    @staticmethod
    def _of(errors: Errors, one: sg.calibration.HeldOut) -> Tensor:
        return next(each for other, each in errors.items() if other.setting is one.setting)


def draws_of(network: Network) -> dict[int, Draws]:
    """Errors of all that is compared in a calibration, by budget."""
    shape = (NOISES, *network.shape)
    found = sg.calibrate(network.score, network.sde, shape, nfe=BUDGETS, held_out=32, seed=SEED, dtype=network.dtype)
    result = {}
    ends = network.run(REFERENCE, SURELY)
    unit = ends.var(correction=0)
    for nfe, one in found.items():
        same = network.run(REFERENCE, int(one.protocol["reference_nfe"]))
        samples = {error: network.run(error.setting, nfe) for error in one.errors}
        of_same, of_sure = (
            {error: (x - exact).square().mean(1) / unit for error, x in samples.items()} for exact in (same, ends)
        )
        result[nfe] = Draws(of_same, of_sure, ends, one.reference_error)
    return result


def shown(found: Sequence[tuple[float, float]]) -> str:
    """Mean of ratios with its standard error, and the part within two standard errors."""
    ratios = [ratio for ratio, _ in found]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    within = sum(abs(away) <= 2 for _, away in found) / len(found)
    return f"{statistics.mean(ratios):.3f} +- {error:.3f} | {within:.0%}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each network, budget and number of noises."""
    parser = command.parser(__doc__)
    parser.add_argument("--names", default="", help="networks whose name contains this")
    args = command.begin(parser, argv)
    sys.stdout.write(
        "| network | calls | noises | naively: stated / true | within two | as stated: stated / true | within two |\n"
        "|---|---:|---:|---:|---:|---:|---:|\n"
    )
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (name for name in NAMES if args.names in name):
            for nfe, draws in draws_of(network_of(name)).items():
                for count in HELD_OUT:
                    orders = [torch.randperm(ALL, generator=generator) for _ in range(DRAWS)]
                    naively = [draws.naively(order[NOISES:][:count], order[:NOISES]) for order in orders]
                    stated = [draws.as_stated(order[NOISES:][:count]) for order in orders]
                    sys.stdout.write(f"| {name} | {nfe} | {count} | {shown(naively)} | {shown(stated)} |\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
