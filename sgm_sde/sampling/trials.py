"""Choice of solver and grid for a network and a budget, by a trial on a small batch."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Real
from typing import TYPE_CHECKING, TypedDict, overload

import torch
from torch import Tensor

from sgm_sde._utils.checks import arguments, described, moment, shape_of_samples, table_size
from sgm_sde._utils.elsewhere import OF_TRIALS, SOLVERS, instead_of, named_elsewhere
from sgm_sde._utils.shapes import flat
from sgm_sde._utils.tree import Conditions
from sgm_sde._utils.units import in_units, units_of
from sgm_sde._utils.warn import warn
from sgm_sde.engine.noise import Generators, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.grids import Thinned
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.candidates import default_candidates, scale_of_candidates
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.sampling.job import device_of
from sgm_sde.sampling.options import Execution
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.sampler import sample
from sgm_sde.sampling.statuses import NonFiniteWarning
from sgm_sde.schemes import Solver
from sgm_sde.schemes.base import called
from sgm_sde.scores.conditions import AmbiguousArgument, resolve, rows_at
from sgm_sde.scores.score import Score, as_score

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PilotOptions", "PilotResult", "PilotResults", "PilotWarning", "default_candidates", "pilot"]

WHOLE = Thinned(even=1.0, last=1e-30, clean=0.0)  # the whole flow in even steps of log-SNR, where it has no bound too
REFERENCE = Setting("dpm3m", WHOLE)
CHECK = Setting("lms4", WHOLE)  # a second opinion on the reference, on other nodes
LARGE = 0.5  # of the samples' standard deviation: an error that makes another sample
REFERENCE_NFE = 256  # network calls of a reference, and how many times those of a run it has at least, and by default
TIGHT = 2
TIGHTER = 4
FEWEST_OF_REFERENCE = 16  # with less, both references are all start and end
FEW_NOISES = 8  # below which a ranking says little about other noises
NEGLIGIBLE = 1e-4  # of the samples' standard deviation: an error of which it does not matter whose it is
FEW_OF = 16  # one of so many noises that make half of the mean square says little of it
MOST_FINALISTS, LEAST_FINALISTS = 12, 4  # candidates that run on all noises
SECOND = 24  # candidates of the second round, at most
ASIDE = "cannot "  # how remarks begin that are no warning
NOT_EXACT = (  # how errors end, where what should be exact is not finite
    "if no larger reference_nfe= helps, the network does not predict what it was taken for: see from_noise, "
    "from_denoiser, from_v and from_flow"
)


class PilotWarning(UserWarning):
    """A trial whose result cannot be relied on; the result's remarks say why."""


@dataclass(frozen=True, init=False)
class PilotResult(Setting):
    """The best setting of a trial; `sample(solver=...)` takes it as it is.

    Attributes:
        solver: the best solver.
        grid: its grid.
        errors: pairs (setting, root-mean-square error in units of the samples' standard deviation) of those tried on
            all noises, the best first: by the geometric mean of that error and of `typical`, since single samples that
            change sides between modes outweigh all others.
        typical: their errors without the tenth of the noises on which each is off most.
        network_evals: what the network saw in the trials of this budget, counted in samples.
        shared_evals: the same of the two references, which serve all budgets.
        reference_error: the same distance between two references by different methods: errors of its size say
            nothing.
        nfe: the budget.
        remarks: sentences about what the trial could not find out.

    Examples:
        >>> import sgm_sde as sg
        >>> found = PilotResult([(Setting(sg.DDIM()), 0.05), (Setting(sg.Heun()), 0.07)], 0.001, nfe=8)
        >>> found.solver, found.budget
        (DDIM(eta=0.0), 8)
    """

    errors: tuple[tuple[Setting, float], ...] = field(default=(), compare=False)
    reference_error: float = field(default=0.0, compare=False)
    nfe: int = 0
    remarks: tuple[str, ...] = field(default=(), compare=False)
    typical: tuple[float, ...] = field(default=(), compare=False)
    network_evals: int = field(default=0, compare=False)
    shared_evals: int = field(default=0, compare=False)

    def __init__(
        self,
        errors: Sequence[tuple[Setting, float]],
        reference_error: float,
        nfe: int,
        remarks: Sequence[str] = (),
        typical: Sequence[float] = (),
        network_evals: int = 0,
        shared_evals: int = 0,
    ) -> None:
        super().__init__(errors[0][0].solver, errors[0][0].grid, nfe)
        object.__setattr__(self, "errors", tuple(errors))
        object.__setattr__(self, "reference_error", reference_error)
        object.__setattr__(self, "remarks", tuple(remarks))
        object.__setattr__(self, "typical", tuple(typical))
        object.__setattr__(self, "network_evals", network_evals)
        object.__setattr__(self, "shared_evals", shared_evals)

    def __str__(self) -> str:
        title = f"at {_calls(self.nfe)}, reference known to {self.reference_error:.0e}"
        names = texts_of([setting for setting, _ in self.errors])
        rows = [f"{error:.3e}  {name}" for name, (_, error) in zip(names, self.errors, strict=True)]
        if self.typical:
            title = f"{title}; errors on all noises, and but for the tenth that is off most"
            rows = [f"{row[:9]}  {typical:.3e}{row[9:]}" for row, typical in zip(rows, self.typical, strict=True)]
        return "\n".join([f"{title}:", *rows, *self.remarks])

    __repr__ = __str__


class PilotResults(dict[int, PilotResult]):
    """The best settings of a trial by their budget of network calls, which prints as they do one by one.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2).score(sde)
        >>> found = sg.pilot(score, sde, (16, 1), nfe=[4, 6], candidates=["dpm++2m", "ddim"], seed=0)
        >>> {nfe: best.solver.name for nfe, best in found.items()}
        {4: 'dpm++2m', 6: 'dpm++2m'}
    """

    def __missing__(self, nfe: int) -> PilotResult:
        raise KeyError(f"no trial at {nfe!r} network calls; there are trials at {', '.join(map(str, self))}")

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.values()))

    __repr__ = __str__


def _calls(nfe: int) -> str:
    """A number of network calls in words."""
    return "1 call" if nfe == 1 else f"{nfe} calls"


def texts_of(settings: Sequence[Setting]) -> list[str]:
    """Texts of settings, with the options in which solvers differ where two would be alike."""
    short = [str(Setting(setting.solver, setting.grid)) for setting in settings]
    alike: dict[str, list[Solver]] = {}
    for name, setting in zip(short, settings, strict=True):
        alike.setdefault(name, []).append(setting.solver)
    return [_named(setting, alike[name]) for name, setting in zip(short, settings, strict=True)]


def _named(setting: Setting, solvers: Sequence[Solver]) -> str:
    """The text of a setting, with the options in which its solver differs from others of its name."""
    solver = setting.solver
    plain = str(Setting(solver, setting.grid))
    if len(set(solvers)) < 2:
        return plain
    if not is_dataclass(solver):
        return plain.replace(solver.name, repr(solver), 1)

    options = [
        f"{option.name}={getattr(solver, option.name)!r}"
        for option in fields(solver)
        if len({repr(vars(other).get(option.name)) for other in solvers}) > 1
    ]
    return plain.replace(solver.name, f"{solver.name}({', '.join(options)})", 1)


class PilotOptions(TypedDict, total=False):
    """Options of `pilot`."""

    candidates: Sequence[Setting | str] | None
    reference_nfe: int | None
    seed: Seeds
    generator: Generators
    final: str
    t_end: float | None
    model_kwargs: Conditions | None
    dtype: torch.dtype | None
    device: torch.device | str | None


@overload
def pilot(
    score_fn: ScoreFn,
    sde: LinearSDE,
    shape: Sequence[int],
    *,
    nfe: int,
    **options: Unpack[PilotOptions],
) -> PilotResult: ...


@overload
def pilot(
    score_fn: ScoreFn,
    sde: LinearSDE,
    shape: Sequence[int],
    *,
    nfe: Sequence[int],
    **options: Unpack[PilotOptions],
) -> PilotResults: ...


@named_elsewhere(OF_TRIALS | instead_of((*SOLVERS, "solver", "solvers"), "candidates=[...]"))
def pilot(
    score_fn: ScoreFn,
    sde: LinearSDE,
    shape: Sequence[int],
    *,
    nfe: int | Sequence[int],
    candidates: Sequence[Setting | str] | None = None,
    reference_nfe: int | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    final: str = "denoise",
    t_end: float | None = None,
    model_kwargs: Conditions | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PilotResult | PilotResults:
    """Trial of solvers and grids on a small batch, against a tight solution of the flow from the same noises.

    No single method is best everywhere: the order of the candidates differs between networks, tenfold at times. All
    candidates run on a few of the noises, the better ones on more, the best on all. The trials of all budgets take no
    more evaluations of the network than the two references, `2 * reference_nfe` a sample, unless even a race on two
    noises with four finalists does, as for many budgets at once.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        shape: (B, *) of the trial; 32 samples tell more than 16.
        nfe: the budget of network calls that the choice is for, or several: one pair of references serves them all.
        candidates: settings, or names of solvers on their default grid; `default_candidates` of the budget if not
            given, for the scale of the reference's samples where that is below 0.2 or above 5.
        reference_nfe: network calls of each of the two references, at least twice the largest budget; by default 256,
            or four times the largest budget if that is more.
        seed: of the noises; one int or one per sample.
        generator: instead of `seed`.
        final: what to compare: `"denoise"`, the samples, or `"none"` and `"mean"`, the states at the end, which are one
            without noise.
        t_end: where to end, if not where each grid does; log-SNR must be finite there.
        model_kwargs: passed on to the network. With an argument that may have one row per sample or not
            (`sg.PerSample`), all trials run on all noises, and fewer of the default candidates do.
        dtype: of the samples; torch's default if not given.
        device: of the samples; the network's if it has parameters.

    Returns:
        the best setting, with the errors of those tried on all noises; for several budgets `PilotResults`, a dictionary
        of them.

    Raises:
        ValueError: for an empty list, a budget that a given candidate cannot keep, random candidates, too few calls of
            the references, or a reference that is not finite or of which half the samples are of no plausible size.
        TypeError: for a process without alpha and sigma.

    Warns:
        PilotWarning: if the reference is not known well enough to rank the best, the best is a poor one, or all of it
            rests on one noise.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2).score(sde)
        >>> best = sg.pilot(score, sde, (16, 1), nfe=10, seed=0)
        >>> sg.sample(score, sde, (4, 1), solver=best, seed=1).nfe
        10
    """
    require_sde(sde)
    if not has_scalar_marginal(sde):
        raise TypeError(f"a pilot needs a LinearSDE for its reference, got {described(sde)}")
    budgets = budgets_of(nfe)
    given = None if candidates is None else _candidates(candidates)
    for setting in given or ():
        for budget in budgets:
            plan(sde, setting, nfe=budget, final=final, t_end=t_end)  # refused before the references are paid for
    if t_end is not None:
        _require_log_snr(sde, t_end)
    reference_nfe = _calls_of_reference(reference_nfe, max(budgets))
    options: RunOptions = {"t_end": t_end, "final": final, "execution": Execution(dtype=dtype, device=device)}
    trial = _trial(score_fn, sde, shape, seed, generator, reference_nfe, options, model_kwargs)

    # As many runs of a sample for each budget as cost what the references do.
    runs = 2 * reference_nfe * trial.batch // sum(budgets)
    found = PilotResults()
    for budget in budgets:
        if given is None:
            found[budget] = trial.race(trial.candidates(budget), budget, runs)
        else:
            found[budget] = trial.race(given, budget, runs, least=len(given))

    for result in found.values():
        serious = [remark for remark in result.remarks if not remark.startswith(ASIDE)]
        if serious:
            warn(f"pilot at {_calls(result.nfe)}: {'; '.join(serious)}", PilotWarning)
    return found if isinstance(nfe, Sequence) else found[budgets[0]]


def budgets_of(nfe: int | Sequence[int]) -> list[int]:
    """The budgets, in the order given and each once."""
    if isinstance(nfe, Sequence) and not isinstance(nfe, str):
        budgets = [table_size(f"nfe[{i}]", budget) for i, budget in enumerate(nfe)]
    elif isinstance(nfe, Real):
        budgets = [table_size("nfe", nfe)]
    else:
        raise ValueError(f"nfe must be an integer of at least 1, or a list of such, got {described(nfe)}")
    if not budgets:
        raise ValueError("nfe must be a number of network calls or a sequence of them, got an empty one")
    return list(dict.fromkeys(budgets))


def _calls_of_reference(given: int | None, budget: int) -> int:
    """Network calls of each reference, beside the largest budget."""
    if given is None:
        return max(REFERENCE_NFE, TIGHTER * budget)
    least = max(FEWEST_OF_REFERENCE, TIGHT * budget)
    calls = table_size("reference_nfe", given)
    if calls < least:
        raise ValueError(
            f"reference_nfe={calls} is no tight solution beside runs of {_calls(budget)}: give {least} at least"
        )
    return calls


def _require_log_snr(sde: LinearSDE, t_end: float) -> None:
    """Raise ValueError for an end where no reference can go."""
    end = moment("t_end", t_end)
    if 0 <= end <= sde.T and not math.isfinite(float(sde.log_snr(end))):
        raise ValueError(
            f"the references of a pilot end where log-SNR is finite, and it is {float(sde.log_snr(end)):g} at "
            f"t_end={end:g}: give a later one, such as sde.eps = {sde.eps:g}"
        )


def _candidates(candidates: Sequence[Setting | str]) -> list[Setting]:
    """Settings from what the caller gave."""
    if isinstance(candidates, str | Setting | Solver | Tensor) or not isinstance(candidates, Iterable):
        raise TypeError(f"candidates must be a sequence of settings or names, got {described(candidates)}")
    tried = []
    for i, candidate in enumerate(candidates):
        if not isinstance(candidate, Setting | Solver | str):
            raise TypeError(
                f"candidates[{i}] must be a name, a solver, or a solver with its grid, sg.Setting(solver, grid), got "
                f"{described(candidate)}"
            )
        tried.append(candidate if isinstance(candidate, Setting) else Setting(candidate))
    if not tried:
        raise ValueError("a pilot needs at least one candidate, got none")
    for setting in tried:
        if setting.solver.stochastic:
            raise ValueError(f"a pilot compares deterministic solvers, got {called(setting.solver)}, which adds noise")
    return list(dict.fromkeys(tried))


@dataclass(frozen=True)
class _Round:
    """A round of a race: how many candidates run on how many noises."""

    candidates: int
    noises: int


def _schedule(candidates: int, batch: int, runs: int) -> list[_Round]:
    """Rounds of a race of all candidates, of at most `runs` runs of a sample if a race of so many can be so short.

    The first round has an eighth of the noises, at least two; the next ones a quarter and all of them. What a race must
    save, it saves on the later rounds, down to four finalists, and then on the noises of the first.
    """
    some = max(4, batch // 4)
    if some >= batch or candidates <= LEAST_FINALISTS:
        return [_Round(candidates, batch)]

    races = [
        [_Round(candidates, few), _Round(min(SECOND, candidates, 2 * finalists + 2), some), _Round(finalists, batch)]
        for few in (max(2, batch // 8), max(2, batch // 16), 2)
        for finalists in range(min(MOST_FINALISTS, candidates), LEAST_FINALISTS - 1, -1)
    ]
    return next((race for race in races if _runs(race) <= runs), races[-1])


def _runs(race: Sequence[_Round]) -> int:
    """Runs of a sample that a race takes: in a later round only its further noises are new."""
    done = [0, *(heat.noises for heat in race)]
    return sum(heat.candidates * (heat.noises - before) for heat, before in zip(race, done, strict=False))


class RunOptions(TypedDict):
    """Options of `sample` that all runs of a race share."""

    t_end: float | None
    final: str
    execution: Execution


@dataclass(eq=False)
class Race:
    """Runs of settings from the noises of a trial, compared with exact samples.

    Args:
        score: the score.
        sde: its process.
        event: shape of one sample.
        seeds: of the noises.
        exact: where the flow takes them, (B, d), denoised as `options` say.
        doubt: how well that is known, in units of the samples' standard deviation.
        options: options of `sample` for all runs.
        kwargs: arguments of the network for all noises.
        resolved: the same, where it is known which have one row per sample; None where it is not.

    Attributes:
        network_evals: what the network saw in all runs, counted in samples.
        shared_evals: the part of it that was not in races.
        odd: samples of the reference that are of a size that nothing in their run accounts for.
        batch: number of noises.
        data_std: the scale that candidates are for.
        units: factors of the numbers of a sample, and of `exact`, before they are compared; None for nothing.
    """

    score: Score
    sde: LinearSDE
    event: Sequence[int]
    seeds: SampleSeeds
    exact: Tensor
    doubt: float
    options: RunOptions
    kwargs: Mapping[str, object]
    resolved: Mapping[str, object] | None
    network_evals: int = field(default=0, init=False)
    shared_evals: int = field(default=0, init=False)
    odd: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        exact = self.exact.double()
        self.batch = len(exact)
        self.data_std = self._scale(exact)
        self.units = units_of(exact, self.event, self._last_noise) if self.batch > 1 else None
        self.exact = in_units(exact, self.units)

    @property
    def spread(self) -> float:
        """Standard deviation of the samples around their mean, 1 if they are all the same."""
        return _around_mean(self.exact) or 1.0

    def _scale(self, exact: Tensor) -> float:
        """The scale that candidates are for: that of the samples around their mean, but not below the noise at eps."""
        if self.batch == 1:
            return 1.0
        return scale_of_candidates(max(_around_mean(exact), self._last_noise))

    @property
    def _last_noise(self) -> float:
        """The noise level at eps."""
        (eps,) = self.sde.nodes((self.sde.eps,))
        return eps.noise_level

    def options_to(self, t_end: float | None) -> RunOptions:
        """The options of a run that ends at a time, or where all runs do."""
        return self.options if t_end is None else {**self.options, "t_end": t_end}

    def candidates(self, budget: int) -> list[Setting]:
        """The default candidates at a budget that are possible."""
        return self.possible(default_candidates(budget, self.data_std, **self.score.traits), budget)

    def possible(self, settings: Sequence[Setting], budget: int) -> list[Setting]:
        """Those whose solver can make a step within a budget, on a grid that the process has; each run once."""
        found: dict[Hashable, Setting] = {}
        for setting in settings:
            try:
                solver, grid, program = plan(
                    self.sde, setting, nfe=budget, final=self.options["final"], t_end=self.options["t_end"]
                )
            except (ValueError, TypeError):  # refused, in words that say why
                continue
            found.setdefault((solver, grid) if program is None else program, setting)
        return list(found.values())

    def errors(
        self,
        setting: Setting,
        budget: int,
        noises: int,
        t_end: float | None = None,
        first: int = 0,
    ) -> Tensor:
        """Mean square error of the noises from `first` on to a number, in units of the samples' variance.

        It is infinite for those that do not stay finite.
        """
        some = slice(first, noises)
        kwargs = self.kwargs
        if noises - first < self.batch:
            assert self.resolved is not None
            kwargs = rows_at(self.resolved, some)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a candidate that fails has an infinite error
            run = sample(
                self.score, self.sde, (noises - first, *self.event), solver=setting, nfe=budget, seed=self.seeds[some],
                model_kwargs=kwargs, **self.options_to(t_end),
            )  # fmt: skip
        self.network_evals += run.network_evals
        off = in_units(flat(run.x.double()), self.units) - self.exact[some]
        square = off.square().mean(1) / self.spread**2
        return square.nan_to_num(nan=math.inf)

    @staticmethod
    def rmse(errors: Tensor) -> float:
        """Root mean square over samples."""
        return float(errors.mean().sqrt())

    @staticmethod
    def typical(errors: Tensor) -> float:
        """Root mean square over samples but for the tenth of largest error, of four samples and more at least one.

        A sample that starts near the boundary between two modes may change sides under any setting. Its error outweighs
        all others, and tells little of which setting is good on other noises.
        """
        return float(errors[_usual(errors)].mean().sqrt())

    @staticmethod
    def rank(errors: Tensor) -> float:
        """The measure of the ranking: the geometric mean of the errors on all samples and on those but for a tenth.

        By the former alone a single sample decides, by the latter alone a setting whose samples often change sides is
        as good as one whose do not.
        """
        rmse = Race.rmse(errors)
        return math.sqrt(rmse * Race.typical(errors)) if math.isfinite(rmse) else math.inf

    def race(self, candidates: Sequence[Setting], budget: int, runs: int, least: int = LEAST_FINALISTS) -> PilotResult:
        """The best of the candidates at a budget: all on a few noises, the better ones on more.

        Where no trial can run on a part of the noises, only as many candidates run as `runs` runs of a sample cover,
        but not less than `least`.
        """
        rounds = _schedule(len(candidates), self.batch, runs)
        left_out = 0
        if self.resolved is None:
            tried = min(len(candidates), max(least, runs // self.batch))
            left_out = len(candidates) - tried
            rounds = [_Round(tried, self.batch)]

        before = self.network_evals
        ranked = [(setting, self.exact.new_zeros(0)) for setting in candidates]
        failed: set[Setting] = set()
        for heat in rounds:
            done = len(ranked[0][1])
            for k, (setting, known) in enumerate(ranked[: heat.candidates]):
                errors = torch.cat([known, self.errors(setting, budget, heat.noises, first=done)])
                ranked[k] = setting, errors
                if not bool(errors.isfinite().all()):
                    failed.add(setting)
            ranked = sorted(ranked[: heat.candidates], key=lambda pair: self.rank(pair[1]))

        remarks = self._remarks(ranked)
        if left_out:
            remarks.append(
                f"cannot run {left_out} of {len(candidates)} candidates at this cost on the whole batch: mark the "
                f"arguments that have one row per sample, sg.PerSample(...)"
            )
        if failed:
            remarks.append(f"cannot use {len(failed)} of {len(candidates)} candidates, which did not stay finite")
        return PilotResult(
            [(setting, self.rmse(errors)) for setting, errors in ranked],
            self.doubt,
            budget,
            remarks,
            [self.typical(errors) for _, errors in ranked],
            self.network_evals - before,
            self.shared_evals,
        )

    def _remarks(self, ranked: Sequence[tuple[Setting, Tensor]]) -> list[str]:
        """Remarks on questions that the race left open, those that are worth a warning first."""
        setting, best = ranked[0]
        error = self.rmse(best)
        remarks = []
        if self.odd:
            remarks.append(
                f"of the exact samples themselves {self.odd} of {self.batch} are of a size that nothing in their run "
                f"accounts for, as of a network that is hardly trained: see sgm_sde.testing.check_score"
            )
        if self.doubt > 0 and not self.doubt < error / 3:
            remarks.append(
                f"the reference is known to {self.doubt:.1e} only, which does not rank errors of {error:.1e}: "
                f"give a larger reference_nfe="
            )
        if not math.isfinite(error):
            remarks.append(
                f"even the best, {setting}, does not stay finite: the network returns infinite or NaN values at times "
                f"or states that the reference does not meet"
            )
        elif not error < LARGE:
            remarks.append(
                f"even the best, {setting}, is off by {error:.2g} standard deviations of the samples: give more calls"
            )
        few = of_half(best)
        if self.batch == 1:
            remarks.append("one noise does not tell which setting is good on others: give a shape of 32 samples")
        elif self.batch < FEW_NOISES:
            remarks.append(f"cannot tell much about other noises from {self.batch}: give a shape of 32 samples")
        elif NEGLIGIBLE < error < math.inf and few <= max(1, self.batch // FEW_OF):
            of = "one noise makes" if few == 1 else f"{few} noises make"
            remarks.append(
                f"cannot tell how large the error is on other noises, where {of} half of the mean square of "
                f"{len(best)}: it may be far from {error:.1e}; give a shape of more samples"
            )
        if len(ranked) > 1 and self._alike(best, ranked[1][1]):
            one, other = texts_of([setting, ranked[1][0]])
            remarks.append(f"cannot tell {one} and {other} apart on {len(best)} noises: either will do")
        return remarks

    def _alike(self, best: Tensor, second: Tensor) -> bool:
        """True if the difference of two settings' errors is less than two standard errors, or a hundredth of them."""
        difference = (second - best)[_usual(torch.maximum(second, best))]
        if len(difference) < 2:
            return False
        uncertain = 2 * float(difference.std()) / math.sqrt(len(difference))
        return float(difference.mean()) <= max(uncertain, 0.01 * self.typical(best) ** 2)


def _around_mean(x: Tensor) -> float:
    """Standard deviation of samples (n, d) around their mean, over all d numbers; of one, that of its numbers."""
    variance = x.var(0) if len(x) > 1 else x.var(correction=min(1, x.numel() - 1))
    return float(variance.mean().sqrt())


def of_half(errors: Tensor) -> int:
    """The number of noises that make half of the mean square, the largest first."""
    sums = errors.sort(descending=True).values.cumsum(0)
    return int((sums < sums[-1] / 2).sum()) + 1


def _usual(errors: Tensor) -> Tensor:
    """Numbers of the noises but for the tenth of largest error, of four and more at least one."""
    left_out = max(1, len(errors) // 10) if len(errors) >= 4 else 0
    return errors.argsort()[: len(errors) - left_out]


def device_with_numbers(score: Score, device: torch.device | str | None) -> torch.device:
    """The device of samples that are looked at: the one that is named, the network's, or torch's default.

    Raises:
        ValueError: for one that is not on this machine, and for the device meta.
    """
    place = device_of(score, device)
    if place.type == "meta":
        raise ValueError("solvers are compared by their samples, and those on the device meta have no numbers")
    return place


def _trial(
    score_fn: ScoreFn,
    sde: LinearSDE,
    shape: Sequence[int],
    seed: Seeds,
    generator: Generators,
    reference_nfe: int,
    options: RunOptions,
    model_kwargs: Conditions | None,
) -> Race:
    """The race of a pilot: its exact samples by a tight solution, and by another how well they are known."""
    score = as_score(score_fn, sde)
    batch, *event = shape_of_samples("shape", shape)
    device_with_numbers(score, options["execution"].device)
    seed = secrets.randbits(63) if seed is None and generator is None else seed
    seeds = resolve_seeds(seed, generator, batch)  # the same noises for all
    kwargs = arguments("model_kwargs", model_kwargs)
    try:
        resolved: Mapping[str, object] | None = resolve(kwargs, batch, score.conditions)
    except AmbiguousArgument:
        resolved = None  # no trial on some of the noises

    t_end = sde.eps if options["t_end"] is None else options["t_end"]  # a reference goes on to eps
    with warnings.catch_warnings():
        for category in (ImplausibleWarning, NonFiniteWarning):
            warnings.simplefilter("ignore", category)  # the error says it
        reference = sample(
            score_fn, sde, shape, solver=REFERENCE, nfe=reference_nfe, seed=seeds, model_kwargs=model_kwargs,
            **options | {"t_end": t_end},
        )  # fmt: skip
    told = reference.status
    if not told.ok and (2 * len(told.samples) >= batch or not bool(reference.x.isfinite().all())):
        raise ValueError(f"there is no reference to compare with: {told.message}; {NOT_EXACT}")
    race = Race(score, sde, event, seeds, flat(reference.x), 0.0, options, kwargs, resolved)
    race.odd = 0 if told.ok else len(told.samples)
    race.doubt = race.rmse(race.errors(CHECK, reference_nfe, batch, t_end))
    race.network_evals += reference.network_evals
    race.shared_evals = race.network_evals
    return race
