"""Candidates of a trial of solvers and grids, where none are given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgm_sde._utils.checks import check_integer, flag, levels_of, number
from sgm_sde.grids import GridRule, Karras, LogSNR, Thinned, Uniform, Widening
from sgm_sde.sampling.defaults import (
    EVEN_DEEP,
    NARROWEST,
    WIDEST,
    Setting,
    adams_near_noise,
    guided_settings,
    on_table,
    settings,
    straight_adams,
    straight_settings,
    tilted_settings,
    with_room,
)
from sgm_sde.schemes import DEIS, DPMSolver, RectifiedAdams, Rosenbrock, Solver, UniC, UniPC

__all__ = ["default_candidates"]

SOME, MANY = 8, 15  # network calls, from which on there are other candidates
UNIT_SCALE = 0.2, 5.0  # standard deviations of data that settings for unit scale serve well
NO_SIGNAL_ABOVE = 7.0  # sigma / alpha, for data of unit scale
WARM = DPMSolver(3, singlestep=False, start="warm", lower_final=True)

Crossed = list[tuple[Sequence[Solver | str], Sequence[GridRule | None]]]  # solvers, each on all of the grids


def _noise(nodes: int) -> Solver:
    """Adams' method on the noise in log-SNR."""
    return DPMSolver(nodes, singlestep=False, start="cold", lower_final=False)


# Solvers of the literature, as they are at any scale of the data.
AT_FEW_CALLS: Crossed = [
    (["midpoint", "dpm++2s", "ipndm3"], [LogSNR()]),
    (["ipndm2", "ipndm3"], [Karras()]),
    (["ipndm3", DEIS(2), UniPC(2, lower_final=True)], [Uniform()]),
    (["midpoint", "ddim", RectifiedAdams(2, lower_final=True)], [None]),
]
AT_SOME_CALLS: Crossed = [
    ([UniPC(2, lower_final=True), WARM, _noise(4), "dpm++2s", "ralston"], [LogSNR()]),
    ([DPMSolver(2, singlestep=False), "ipndm3"], [Karras()]),
    (["ipndm3"], [Uniform()]),
    (["midpoint", RectifiedAdams(2)], [None]),
]
AT_MANY_CALLS: Crossed = [
    ([UniPC(3, lower_final=True), WARM, _noise(4), _noise(5), "unipc4", "lms4"], [LogSNR()]),
    ([WARM, _noise(4), "ipndm3"], [Karras()]),
    ([RectifiedAdams(2), RectifiedAdams(3), "rk4"], [None]),
]


def default_candidates(
    nfe: int | None = None,
    data_std: float = 1.0,
    coupled: bool = False,
    guided: bool = False,
    tilted: bool = False,
    bare: bool = False,
    jumps: Sequence[float] = (),
) -> tuple[Setting, ...]:
    """Default candidates of `pilot` at a budget, those of all budgets if none is given.

    Chosen on half of the test beds of `python -m benchmarks.defaults`, as settings that are near the best on some of
    them: Adams' methods on several linear parts, on grids of several ranges of noise levels (`Widening`) and of the
    whole process with longer steps near pure noise (`Thinned`), with the defaults of `sample`; and methods of the
    literature, even in log-SNR, on Karras' grid, and on their own. There are some forty for a budget: a race of more
    of them, at the same cost, tells less of each.

    Args:
        nfe: the budget of network calls.
        data_std: scale of the data, in whose units the candidates' own levels of noise are.
        coupled: whether they are for a flow of coupled pairs, whose defaults are then among them.
        guided: whether they are for a guided score, whose default is then among them.
        tilted: whether they are for a score with an added gradient, whose default is then among them.
        bare: whether they are for a network that predicts the data without a skip connection, whose defaults are then
            among them.
        jumps: noise levels at which the score jumps; the default for such a score is then among them.

    Raises:
        ValueError: for a budget below 1, or a scale below 1e-6 or above 100 000.

    Examples:
        >>> len(default_candidates(10)) < len(default_candidates())
        True
    """
    jumps = levels_of("jumps", jumps)
    if nfe is None:
        by_budget = (
            default_candidates(calls, data_std, coupled, guided, tilted, bare, jumps)
            for calls in (SOME - 1, SOME, MANY)
        )
        return tuple(dict.fromkeys(itertools.chain.from_iterable(by_budget)))
    nfe = check_integer("nfe", nfe)
    data = _Scaled(number("data_std", data_std, least=NARROWEST, most=WIDEST))

    of_sample = settings(data.std)
    found = [*of_sample, *map(on_table, of_sample)]
    if flag("bare", bare):
        found += settings(data.std, bare)
    if flag("coupled", coupled):
        found += straight_settings(data.std)
    if flag("guided", guided) or jumps:
        plain = guided_settings(data.std, bare=bare)
        found += [*plain, *(with_room(one, nfe) for one in guided_settings(data.std, jumps, bare))]
    if flag("tilted", tilted):
        found += [with_room(one, nfe) for one in tilted_settings(data.std, jumps)]
    for solvers, rules in data.at(nfe):
        found += [Setting(solver, rule) for solver in solvers for rule in rules]
    return tuple(dict.fromkeys(found))


def scale_of_candidates(std: float) -> float:
    """The scale that candidates take data of a standard deviation for: 1 for about unit scale, else to one digit."""
    least, most = UNIT_SCALE
    return 1.0 if least <= std <= most else max(min(float(f"{std:.1g}"), WIDEST), NARROWEST)


@dataclass(frozen=True)
class _Scaled:
    """Candidates for data of a scale."""

    std: float

    def at(self, nfe: int) -> Crossed:
        """Those for a budget."""
        if nfe < SOME:
            return self.few_calls()
        return self.some_calls() if nfe < MANY else self.many_calls()

    def few_calls(self) -> Crossed:
        straight = RectifiedAdams(3, start="cold", lower_final=False)
        near, far = self._near_and_far()
        around = [replace(self._widening, last=2.5), replace(self._widening, first=0.2, last=1.0)]
        early, _, long = self._whole()
        adams = [self._near_noise(2), self._near_noise(3)]
        return [
            ([straight_adams(2), straight_adams(3), straight, *adams, _noise(3)], [near, far]),
            ([straight_adams(3), _noise(3)], around),
            ([self._log_signal(3)], [near, far, early]),
            ([self._near_noise(2), self._small(3), straight_adams(2)], [self._wide(), long]),
            *AT_FEW_CALLS,
        ]

    def some_calls(self) -> Crossed:
        near, far = self._near_and_far()
        early, late, long = self._whole()
        adams = [self._near_noise(2), self._near_noise(3)]
        return [
            ([straight_adams(2), straight_adams(3), *adams], [early, late, long]),
            ([straight_adams(4), self._small(3)], [early, long]),
            ([straight_adams(2), straight_adams(3), _noise(4), self._small(3)], [near, far]),
            ([self._near_noise(2)], [self._wide(), self._thinned]),
            ([self._log_signal(3)], [long]),
            ([self._log_signal(4)], [early]),
            *AT_SOME_CALLS,
        ]

    def many_calls(self) -> Crossed:
        near, far = self._near_and_far()
        early, late, long = self._whole()
        three = self._near_noise(3)
        small = [self._small(3), self._small(4)]
        return [
            ([straight_adams(3), straight_adams(4), three, self._near_noise(4), *small], [early, late, long]),
            ([three, straight_adams(4)], [replace(self._thinned, even=64.0)]),
            ([three, self._log_signal(3), self._log_signal(5)], [self._thinned]),
            ([self._log_signal(4)], [late]),
            ([self._log_signal(5)], [early, late]),
            ([straight_adams(2), straight_adams(3), three, *small, _noise(3), _noise(4)], [far]),
            ([_noise(4), _noise(5)], [near]),
            *AT_MANY_CALLS,
        ]

    def _near_noise(self, nodes: int) -> Solver:
        """Adams' method on v with a corrector."""
        corrector = {2: 3, 3: 3, 4: 5}[nodes]
        return UniC(self._adams(nodes, 0.7), nodes=corrector)

    def _small(self, nodes: int) -> Solver:
        """The same for data of a smaller scale, which is often better."""
        return UniC(self._adams(nodes, 0.4), nodes=nodes + 1)

    def _log_signal(self, nodes: int) -> Solver:
        """Adams' method on v in log-signal, with a corrector."""
        return adams_near_noise(nodes, nodes, self.std, no_signal_above=NO_SIGNAL_ABOVE, linear_below=0.7)

    def _adams(self, nodes: int, sigma_data: float) -> Solver:
        """Adams' method on v in log-SNR."""
        return Rosenbrock(
            nodes,
            sigma_data=sigma_data * self.std,
            variable="log-snr",
            no_signal_above=NO_SIGNAL_ABOVE * self.std,
            start="cold",
            lower_final=False,
        )

    def _near_and_far(self) -> tuple[GridRule, GridRule]:
        """Grids of a narrow range of noise levels and of a wide one."""
        return self._widening, replace(self._widening, first=0.01, last=2.5)

    def _whole(self) -> tuple[GridRule, GridRule, GridRule]:
        """Grids of the whole process: with many calls near pure noise, with as many and few near the data, long."""
        early = replace(self._thinned, even=100.0, last=5.0)
        late = replace(self._thinned, even=100.0, last=2.0, clean=0.6)
        long = replace(self._thinned, last=5.0, near_data=3.0, clean=0.1)
        return early, late, long

    def _wide(self) -> GridRule:
        return replace(self._thinned, last=5.0, near_noise=-7.0, near_data=3.0, clean=0.2)

    @property
    def _widening(self) -> Widening:
        return Widening(data_std=self.std)

    @property
    def _thinned(self) -> Thinned:
        return Thinned(even_deep=EVEN_DEEP, data_std=self.std)
