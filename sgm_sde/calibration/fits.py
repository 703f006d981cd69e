"""The fits of a table to a network at a budget: in closed form, refined from there in several ways, and searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sgm_sde.calibration import closed
from sgm_sde.calibration.exact import Exact, mean_squares
from sgm_sde.calibration.flow import Flow
from sgm_sde.calibration.kept import Kept
from sgm_sde.calibration.network import network_of, process_of
from sgm_sde.calibration.refine import Refinement
from sgm_sde.calibration.rough import searched
from sgm_sde.calibration.rows import Rows
from sgm_sde.calibration.table import Calibrated
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.planning import plan


@dataclass(frozen=True)
class _Fit:
    """Kind of a refinement, with what results call it; see `Refinement` for the flags."""

    words: str
    consistent: bool = False
    robust: bool = True
    bounded: bool = False
    held: bool = False


FITS = {  # by what is stored of a budget
    "robust": _Fit("refined, consistent", consistent=True),
    "bounded": _Fit("refined, consistent, of bounded influence", consistent=True, bounded=True),
    "further": _Fit("refined, consistent, from bounded influence", consistent=True),
    "free": _Fit("refined, from consistent", robust=False),
    "direct": _Fit("refined", robust=False),
    "shelf": _Fit("refined, consistent, from levels off the shelf", consistent=True),
    "free-shelf": _Fit("refined, from consistent from levels off the shelf", robust=False),
    "direct-shelf": _Fit("refined, robust, from levels off the shelf"),
    "searched": _Fit("levels searched", held=True),
    "searched-further": _Fit("levels searched, from refined", held=True),
}


class Fits:
    """The fits to exact samples.

    Args:
        flow: the network, with the noises that are fitted to first.
        exact: exact trajectories.
        kept: where finished fits are.
        tell: what is done with words on what is done now.
    """

    def __init__(self, flow: Flow, exact: Exact, kept: Kept, tell: Callable[[str], object]) -> None:
        self.flow = flow
        self.exact = exact
        self.noises = range(len(exact.of_fit))
        self.kept = kept
        self.tell = tell

    def of(self, n: int, shelf: Sequence[Setting], late: Callable[[], bool]) -> list[tuple[str, Setting]]:
        """All fits, by name; some start from the levels of settings off the shelf."""
        flow = self.flow
        exact = self.exact
        samples = self.noises
        z = flow.noise(samples)
        at_random = exact.at_random
        some = slice(exact.of_fit.at_random)
        closed_form = partial(closed.fit_rows, flow, at_random, z[some], exact.scale, samples=samples[some])
        log_levels = at_random.log_levels
        chosen = closed.levels(closed.weighted_grams(at_random, z[some], exact.scale, exact.units), n)
        plain = closed_form(chosen, consistent=False)
        consistent = closed_form(chosen, consistent=True)
        found = {"least squares": plain, "least squares, consistent": consistent}

        def refined(name: str, start: Rows) -> Rows:
            kind = FITS[name]
            self.tell(f"{n} calls: {kind.words}")
            fit = Refinement(
                flow, z, exact.fit.end, exact.scale, samples, kind.consistent, late, kind.robust, kind.bounded,
                kind.held, exact.of_fit.weights,
            )  # fmt: skip

            def make() -> Rows:
                return fit.fit(searched(fit, start) if kind.held else start)

            found[kind.words] = self.kept.rows(f"budget-{n}-{name}", make, flow, late)
            return found[kind.words]

        def error(rows: Rows) -> float:
            return self._error(rows, z)

        # All noises at once; and what most of them say first, then all.
        robust = refined("robust", consistent)
        bounded = refined("bounded", consistent)
        further = refined("further", bounded)

        # Rows that need not be consistent, from the best of these and from the closed form.
        refined("free", min(robust, bounded, further, key=error))
        refined("direct", plain)

        # From the levels of what is off the shelf: dynamic programming looks at single steps.
        others = [levels for levels in levels_of(shelf, n, flow.sde, log_levels) if levels != chosen]
        if others:
            starts = [closed_form(levels, consistent=False) for levels in others]
            levels, start = min(zip(others, starts, strict=True), key=lambda pair: error(pair[1]))
            placed = refined("shelf", closed_form(levels, consistent=True))
            refined("free-shelf", placed)
            refined("direct-shelf", start)

        # Derivatives with respect to levels say nothing of a rough network.
        if exact.rough:
            refined("searched", plain)
            refined("searched-further", min(found.values(), key=error))

        return [(name, self._setting(rows)) for name, rows in found.items()]

    def _setting(self, rows: Rows) -> Setting:
        process = process_of(self.flow.sde)
        network = network_of(self.flow.score)
        return Setting(Calibrated(rows.table(), process, network))

    def _error(self, rows: Rows, z: Tensor) -> float:
        each = mean_squares(rows.run(self.flow, z, self.noises)[0], self.exact.fit.end)
        error = self.exact.of_fit.mean(each)
        return error if math.isfinite(error) else math.inf


def levels_of(settings: Sequence[Setting], n: int, sde: LinearSDE, log_levels: Tensor) -> list[list[int]]:
    """The levels nearest to those of the n calls of settings, as indices; of settings with fewer levels none."""
    found = []
    for setting in settings:
        _, grid, program = plan(sde, setting, nfe=n)
        times = [] if program is None else [stage.t for stage in program.stages if stage.evaluate]
        times = sorted({*times, grid.times[-1]}, reverse=True)[:n]
        wanted = [math.log(node.noise_level) for node in sde.nodes(times) if node.noise_level > 0]
        levels = closed.nearest(log_levels, wanted)
        if levels is not None and len(levels) == n:
            found.append(levels)
    return found
