"""A solver with the grid it goes with, and which one `sample` takes when nobody names one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import (
    FAR,
    check_integer,
    described,
    flag,
    instance_of,
    levels_of,
    moment,
    number,
    table_size,
)
from sgm_sde.grids import Grid, GridRule, Thinned, Uniform, rule
from sgm_sde.identity import Value
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import EARLIEST
from sgm_sde.schemes import GDDIM, ExponentialAdams, RectifiedAdams, Rosenbrock, Solver, UniC, resolve

# Network calls from which on the default is another setting.
FEW = 6
SOME = 16
MANY = 30
SIGMA_DATA = 0.7  # between that of images, 0.5, and that of VP's velocity
# Levels sigma / alpha of noise, for data of unit scale. Above the first a network sees next to no signal; up to the
# second, noises that it takes far out of the data are still on their way, and follow polynomials in the noise level.
NO_SIGNAL_ABOVE = 40.0
LINEAR_BELOW = 5.0
# The same for the long steps of 6 to 29 calls, which take single noises further out.
NO_SIGNAL_FAR_OUT = 60.0
LINEAR_FAR_OUT = 20.0
CENTRED_BELOW = 10.0  # where the network's data estimate tells the mean of the data, and not its own errors
CENTRED_GUIDED = 3.0  # where guidance has no longer thrown it out of the data
NO_SIGNAL_TILTED = 1.0  # an added gradient may be several times the noise, wherever there is little signal
EVEN_DEEP = 70.0  # calls from which on steps where networks see nothing but noise are as long as others
FEWEST_ENTRIES = 8  # of a table, below which its times alone are too few steps
ANOTHER_SCALE = 1.01  # of states, between one entry of a table and the next
# Networks that predict the data without a skip connection: the last level of each setting, and the share of the density
# of levels that is left out near the data, where their samples still change.
BARE_LAST = (1.5, 0.25, 0.15, 0.3)
BARE_CLEAN = 0.1
BARE_GUIDED = 0.06  # of the last level of other guided scores
TILTED_LAST = (12.0, 20.0, 30.0, 60.0)  # factors of the last level, from 6, 10, 16 and 30 calls on
EVEN_TILTED = 40  # calls from which on steps are short enough for a corrector beside an added gradient
FINAL_NODES = 3  # data estimates that a sample is made from below MANY calls
# Where a process itself says that its data are not of about unit scale: factors between scale and noise levels.
BELOW_START = 4.0
ABOVE_END = 5.0
PRIOR_OVER_DATA = 2000.0  # VESDE's prior for images of 1024 x 1024 pixels has 1348
DATA_OVER_END = 1000.0  # EDM has 250; a process that goes further down is not for wide data alone
NARROWEST = 1 / FAR  # scale of data
WIDEST = FAR / 10  # scale of data, so that levels of noise that solvers take are above it


@dataclass(frozen=True)
class Setting(Value):
    """A solver and the grid rule it goes with, which `sample(solver=...)` takes in a solver's place.

    Args:
        solver: a solver or its name.
        grid: a grid rule or its name; None for the solver's `default_grid`.
        nfe: the budget of network calls that it was chosen for, which `sample` takes where none is given; that of the
            solver, or any, if not given.

    Raises:
        ValueError: for unknown names, and a budget that is not an integer from 1 to a million.
        TypeError: for a grid of given times, or anything else that is no solver or rule.

    Examples:
        >>> Setting("dpm++3m", "log-snr").solver.order
        3
    """

    solver: Solver
    grid: GridRule | None = None
    nfe: int | None = None

    def __init__(self, solver: Solver | str, grid: GridRule | str | None = None, nfe: int | None = None) -> None:
        if isinstance(grid, Grid) or not (grid is None or isinstance(grid, GridRule | str)):
            raise TypeError(f"the grid of a setting must be a rule or its name, got {described(grid)}")
        object.__setattr__(self, "solver", resolve(solver))
        object.__setattr__(self, "grid", rule(grid) if isinstance(grid, str) else grid)
        object.__setattr__(self, "nfe", None if nfe is None else table_size("nfe", nfe))

    @property
    def budget(self) -> int | None:
        """The number of network calls that it was chosen for; None for any."""
        return self.solver.budget if self.nfe is None else self.nfe

    @property
    def plain(self) -> Setting:
        """Solver and grid alone, without what a pilot or a calibration tells besides."""
        return Setting(self.solver, self.grid)

    def __str__(self) -> str:
        return f"{self.solver.name} on {'its default grid' if self.grid is None else repr(self.grid)}"


def adams_near_noise(
    nodes: int,
    corrector: int,
    data_std: float = 1.0,
    *,
    no_signal_above: float = NO_SIGNAL_ABOVE,
    linear_below: float = LINEAR_BELOW,
    centred_below: float | None = None,
    lower_final: bool = True,
    final_nodes: int = 0,
) -> ExponentialAdams:
    """Adams' method on v with a corrector, which does not multiply what networks are off by near pure noise.

    Args:
        nodes: evaluations that a step uses.
        corrector: evaluations that the corrector uses; 0 for none.
        data_std: scale of the data, in whose units all levels of noise are.
        no_signal_above: see `schemes.Rosenbrock`; so is the next.
        linear_below: noise level below which polynomials are in about the noise level.
        centred_below: noise level from which on v is taken about a data estimate; None for never.
        lower_final: whether the last steps use ever fewer evaluations.
        final_nodes: evaluations that the sample is made from at the end; 0 to end in a state.

    Raises:
        ValueError: for fewer evaluations than 1, of a corrector than 0, or a scale below 1e-6 or above 100 000.

    Examples:
        >>> adams_near_noise(4, 4).name
        'rosenbrock4-log-signal-sigma0.7-above40-below5-cold-lowered-unic4'
    """
    nodes = check_integer("nodes", nodes)
    corrector = check_integer("corrector", corrector, 0)
    data_std = number("data_std", data_std, least=NARROWEST, most=WIDEST)

    def scaled(option: str, level: float) -> float:
        return min(number(option, level, above=0) * data_std, FAR)

    adams = Rosenbrock(
        nodes,
        sigma_data=SIGMA_DATA * data_std,
        variable="log-signal",
        no_signal_above=scaled("no_signal_above", no_signal_above),
        linear_below=scaled("linear_below", linear_below),
        centred_below=None if centred_below is None else scaled("centred_below", centred_below),
        start="cold",
        lower_final=flag("lower_final", lower_final),
    )
    corrected = UniC(adams, nodes=corrector) if corrector else adams
    ending = f"-final{final_nodes}" if final_nodes else ""
    assert isinstance(corrected, ExponentialAdams)
    return replace(corrected, final_nodes=final_nodes, name=corrected.name + ending)


def settings(data_std: float = 1.0, bare: bool = False) -> tuple[Setting, ...]:
    """The settings for the fewest network calls, few, some and many, on data of a scale.

    Args:
        data_std: the scale.
        bare: whether they are for a network that predicts the data without a skip connection.

    Raises:
        ValueError: for a scale below 1e-6 or above 100 000.
        TypeError: for a `bare` that is not True or False.

    Examples:
        >>> len(settings(0.1))
        4
    """
    fewest = adams_near_noise(3, 3, data_std, centred_below=CENTRED_BELOW, final_nodes=FINAL_NODES)
    few, some = (_adams_far_out(nodes, data_std) for nodes in (3, 5))
    many = adams_near_noise(5, 5, data_std, lower_final=False)

    of_few = Thinned(even=16.0, even_deep=EVEN_DEEP, data_std=data_std, to_data=True)
    of_fewest = replace(of_few, even=45.0, last=5.0, near_noise=-7.0, near_data=3.0, clean=0.2)
    of_some = replace(of_few, even=30.0, last=5.0, near_noise=-3.0, clean=0.6)
    of_many = replace(of_some, even=45.0, last=3.0, near_data=3.0, to_data=False)
    grids = [of_fewest, of_few, of_some, of_many]
    if flag("bare", bare):
        grids = [replace(grid, last=last, clean=BARE_CLEAN) for grid, last in zip(grids, BARE_LAST, strict=True)]

    solvers = (fewest, few, some, many)
    return tuple(Setting(solver, grid) for solver, grid in zip(solvers, grids, strict=True))


def guided_settings(data_std: float = 1.0, jumps: Sequence[float] = (), bare: bool = False) -> tuple[Setting, ...]:
    """The settings for guided scores on data of a scale: below 9 calls, and from 9, 11 and 30 calls on.

    Strong guidance makes the flow stiff, where methods through many evaluations are not stable: more calls err more.
    Below 9 calls steps are so long that a corrector throws samples out, and these go through two evaluations without
    one; up to 10 calls through one evaluation, corrected through two, from there on through two and three. Where the
    score jumps they start anew, and go through one and two up to 29 calls.

    Args:
        data_std: the scale.
        jumps: noise levels at which the score jumps.
        bare: as for `settings`.

    Raises:
        ValueError: for a scale below 1e-6 or above 100 000.
        TypeError: for a `bare` that is not True or False.

    Examples:
        >>> [setting.solver.nodes for setting in guided_settings()]
        [2, 1, 2, 2]
    """
    jumps = levels_of("jumps", jumps)
    _, of_few, of_some, _ = (setting.grid for setting in settings(data_std))
    assert isinstance(of_few, Thinned) and isinstance(of_some, Thinned)
    stiff = replace(of_some, even=100.0, last=10.0, clean=0.8)

    lowest = adams_near_noise(2, 0, data_std, centred_below=CENTRED_GUIDED, lower_final=False, final_nodes=FINAL_NODES)
    low = adams_near_noise(1, 2, data_std, centred_below=CENTRED_GUIDED, lower_final=False, final_nodes=FINAL_NODES)
    some = adams_near_noise(2, 3, data_std, centred_below=CENTRED_GUIDED, final_nodes=FINAL_NODES)
    many = adams_near_noise(2, 3, data_std, final_nodes=FINAL_NODES)

    if jumps:
        early = (low, stiff)
        late = (many, stiff)
        chosen = [early, early, early, late]
    else:
        of_few = replace(of_few, even=30.0)
        of_lowest = replace(of_few, last=5.0, near_noise=-4.0)
        of_many = replace(of_some, even=45.0)
        chosen = [(lowest, of_lowest), (low, of_few), (some, stiff), (many, of_many)]

    solvers = [solver for solver, _ in chosen]
    grids = [grid for _, grid in chosen]
    if flag("bare", bare):
        grids = [replace(grid, last=BARE_GUIDED * grid.last) for grid in grids]
    return tuple(across(Setting(solver, grid), jumps) for solver, grid in zip(solvers, grids, strict=True))


def tilted_settings(data_std: float = 1.0, jumps: Sequence[float] = ()) -> tuple[Setting, ...]:
    r"""The settings for scores with an added gradient on data of a scale, below 6 calls and from `TILTED_BOUNDS` on.

    The gradient of a reward $r(x)$ does not fall with the signal. Of $-w|x|^2$ it adds $-2 w x$ to a score of $-x$: per
    unit of $\log\alpha$ the flow draws states together by $e^{-2w}$, however small alpha is. Of steps of length h an
    Euler step in the logarithm is stable up to $2 w h = 2$, one that is corrected through two evaluations up to 1, and
    polynomials through more up to less. So it is the Euler step above sigma / alpha = 1, and DDIM's below, to a last
    call at a level that falls as 1 / n; from 40 calls on, corrected.

    Args:
        data_std: the scale.
        jumps: noise levels at which the score jumps.

    Raises:
        ValueError: for a scale below 1e-6 or above 100 000.

    Examples:
        >>> [setting.solver.corrector for setting in tilted_settings()]
        [0, 0, 0, 0, 0, 2]
    """
    data_std = number("data_std", data_std, least=NARROWEST, most=WIDEST)
    jumps = levels_of("jumps", jumps)
    even = Thinned(even_deep=EVEN_DEEP, data_std=data_std, to_data=True, even=1.0)
    grids = [replace(even, even=16.0), *(replace(even, last=last) for last in TILTED_LAST)]

    euler, corrected = (
        adams_near_noise(
            1, corrector, data_std, no_signal_above=NO_SIGNAL_TILTED, lower_final=False, final_nodes=final_nodes
        )
        for corrector, final_nodes in ((0, 1), (2, FINAL_NODES))
    )
    chosen = [*(Setting(euler, grid) for grid in grids), Setting(corrected, replace(even, last=30.0))]
    return tuple(across(setting, jumps) for setting in chosen)


def _adams_far_out(nodes: int, data_std: float) -> ExponentialAdams:
    """Adams' method on long steps, for noises that it takes far out of the data."""
    return adams_near_noise(
        nodes,
        nodes,
        data_std,
        no_signal_above=NO_SIGNAL_FAR_OUT,
        linear_below=LINEAR_FAR_OUT,
        centred_below=CENTRED_BELOW,
        final_nodes=FINAL_NODES,
    )


def across(setting: Setting, jumps: Sequence[float]) -> Setting:
    """A setting whose polynomials do not go across jumps of the score, with a node at each where its grid can.

    Args:
        setting: the setting; one whose solver knows of no jumps is left as it is.
        jumps: noise levels at which the score jumps.

    Raises:
        TypeError: for what is no setting, or no sequence of numbers.
        ValueError: for a level that is not positive and finite, or a solver with a warm start.

    Examples:
        >>> across(SETTINGS[0], [3.0]).grid.jumps
        (3.0,)
    """
    instance_of("setting", setting, Setting, "a Setting")
    jumps = levels_of("jumps", jumps)
    if not jumps or not isinstance(setting.solver, ExponentialAdams):
        return setting
    grid = replace(setting.grid, jumps=jumps) if isinstance(setting.grid, Thinned) else setting.grid
    return Setting(setting.solver.with_jumps(jumps), grid, setting.nfe)


def on_table(setting: Setting) -> Setting:
    """A setting that calls the network at times of a process' table, where its grid can and there is one.

    Args:
        setting: the setting; one on another grid than `Thinned` is left as it is.

    Raises:
        TypeError: for what is no setting.

    Examples:
        >>> on_table(SETTINGS[1]).grid
        Thinned(even=16, even_deep=70, to_data=True, on_table=True)
    """
    instance_of("setting", setting, Setting, "a Setting")
    grid = setting.grid
    if not isinstance(grid, Thinned):
        return setting
    return Setting(setting.solver, replace(grid, on_table=True), setting.nfe)


def with_room(setting: Setting, nfe: int) -> Setting:
    """A setting whose grid has a node at no more jumps than lie between the first call of a budget and the last.

    Args:
        setting: the setting.
        nfe: the budget. Of more jumps than it has room for those at most noise stay; the solver knows of all.

    Raises:
        TypeError: for what is no setting.
        ValueError: for a budget that is not an integer of at least 1.

    Examples:
        >>> with_room(across(SETTINGS[0], [3.0, 0.3]), 3).grid.jumps
        (3.0,)
    """
    instance_of("setting", setting, Setting, "a Setting")
    room = max(check_integer("nfe", nfe) - 2, 0)
    if not isinstance(setting.grid, Thinned) or len(setting.grid.jumps) <= room:
        return setting
    return Setting(setting.solver, replace(setting.grid, jumps=setting.grid.jumps[:room]), setting.nfe)


SETTINGS = settings()
GUIDED = guided_settings()
TILTED = tilted_settings()
BOUNDS = (FEW, SOME, MANY)
STIFF = 11  # calls from which on guided scores are taken through two evaluations
CORRECTED = 9  # calls from which on their steps are short enough for a corrector
GUIDED_BOUNDS = (CORRECTED, STIFF, MANY)
TILTED_BOUNDS = (FEW, 10, SOME, MANY, EVEN_TILTED)


def straight_adams(nodes: int, corrector: int | None = None) -> ExponentialAdams:
    """Adams' method in the coordinates of rectified flow, with a corrector.

    Args:
        nodes: evaluations that a step uses.
        corrector: evaluations that the corrector uses; one more if not given.

    Raises:
        ValueError: for numbers of evaluations below 1, or a corrector of more than one above a step's.

    Examples:
        >>> straight_adams(2).name
        'rectified2-unlowered-unic'
    """
    adams = RectifiedAdams(check_integer("nodes", nodes), start="cold", lower_final=False)
    return UniC(adams, None if corrector is None else check_integer("corrector", corrector))


def straight_settings(data_std: float = 1.0) -> tuple[Setting, Setting]:
    """The settings for flows of coupled pairs, whose paths are nearly straight, for few network calls and for more.

    Args:
        data_std: scale of the data.

    Raises:
        ValueError: for a scale below 1e-6 or above 100 000.

    Examples:
        >>> [setting.solver.nodes for setting in straight_settings()]
        [2, 3]
    """
    data_std = number("data_std", data_std, least=NARROWEST, most=WIDEST)
    few = Thinned(data_std=data_std, last=3.0, near_noise=-3.0, near_data=3.0)
    more = replace(few, even_deep=200.0)
    return Setting(straight_adams(2), few), Setting(straight_adams(3, 3), more)


OF_THREE = 8  # network calls, from which on the default for coupled pairs is through three evaluations

# For processes with a matrix: below OF_HISTORY calls, steps are too long for evaluations before them to tell more.
OF_HISTORY = 8
WITH_A_MATRIX = Setting(GDDIM(1), "quadratic"), Setting(GDDIM(3), "quadratic")


def default_final(sde: SDE) -> str:
    """The last update of a run where none is named: `"denoise"` where predictions convert, else `"mean"`.

    Examples:
        >>> import sgm_sde as sg
        >>> default_final(sg.VPSDE()), default_final(sg.CLD())
        ('denoise', 'denoise')
    """
    return "denoise" if sde.marginal_kind != "unknown" else "mean"


def default_setting(
    sde: SDE,
    nfe: int | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    data_std: float | None = None,
    coupled: bool = False,
    guided: bool = False,
    tilted: bool = False,
    bare: bool = False,
    jumps: Sequence[float] = (),
) -> Setting:
    """The solver and grid that `sample` takes when none is named, by the budget of network calls.

    Adams' method on the velocity with a corrector (`UniC` of `Rosenbrock`), which near pure noise integrates what a
    network is off by instead of multiplying it and is stable where modes are narrower than the noise, on the grid
    `grids.Thinned`, which spans the whole process with the longest steps near pure noise: through three evaluations,
    from 16 calls on five. Below 30 calls the last steps use ever fewer, and the sample is made from the last three at
    once, unless the end is given. All of it was chosen on half of the test beds of `python -m benchmarks.defaults`,
    which prints what it reaches on the other half, and on networks of other recipes.

    Guidance makes the flow stiff: for a guided score it is Adams' method through two evaluations without a corrector,
    from 9 calls on through one, corrected through two, and from 11 calls on through two and three. Where the score
    jumps, at the ends of an interval of guidance, there are nodes, at which the method starts anew, and it goes through
    one up to 29 calls. Chosen on half of the cells of `python -m benchmarks.guided_defaults`.

    Gradients of a function of x, a classifier or reward, make it stiff near pure noise as well: for a score that one
    has been added to it is Euler's step in the logarithm of the noise level, and from 40 calls on corrected. Chosen on
    half of the cells of `python -m benchmarks.rewards`.

    On a table whose states at one entry are of another scale than at the next, as NCSN's, the network is called at
    entries, and at the grid's end, up to three times for each (`Thinned(on_table=True)`): the budget, or `steps`, may
    then not be used up.

    Samples of a network that predicts the data without a skip connection change down to the least noise, and so its
    levels go further down.

    Where a given time has no finite log-SNR (alpha = 0 or sigma = 0), the default is Adams' method in the coordinates
    of rectified flow on the process' own grid. For flows of coupled pairs it is that method with a corrector on
    `Thinned`, chosen on half of the networks of `python -m benchmarks.coupled_flows`. For a process with a matrix it is
    gDDIM, through three evaluations from 8 calls on, chosen on one half of the beds of `python -m
    benchmarks.cld_defaults`; to the end at t = 0, and for a nonlinear process, it is Heun's method in time. These are
    the same for guided scores.

    Args:
        sde: the process.
        nfe: the budget, which what is returned brings with it: `sample` needs none besides. 50 if not given.
        t_start: where sampling starts, if it is given.
        t_end: where it ends, if it is given.
        data_std: scale of the data as the network knows them. `sample` takes 1, or the nearest scale between 5 times
            the noise level at eps, or a 2000th of the prior's standard deviation, and a quarter of the noise level at
            T. Where the data's own is below 0.2 or above 5, what is returned for it errs several times less.
        coupled: whether the network is a flow of coupled pairs of data and noise, as the score says.
        guided: whether guidance has changed the score, as the score says.
        tilted: whether the gradient of a function has been added to it, as the score says.
        bare: whether the network predicts the data without a skip connection, as the score says; see `from_denoiser`.
        jumps: noise levels sigma / alpha at which the score jumps, as it says.

    Raises:
        TypeError: for something that is no process, or a time or scale that is no number.
        ValueError: for a budget that is not an integer of at least 1, times outside of the process, a scale below 1e-6
            or above 100 000, and for a scale or coupled pairs where the default does not depend on them.

    Examples:
        >>> import sgm_sde as sg
        >>> print(default_setting(sg.VPSDE(), 12).grid)
        Thinned(even=16, even_deep=70, to_data=True)
        >>> print(default_setting(sg.VPSDE()).grid)
        Thinned(even_deep=70, last=3, near_noise=-3, near_data=3, clean=0.6)
    """
    require_sde(sde)
    budget = 50 if nfe is None else check_integer("nfe", nfe)
    coupled = flag("coupled", coupled)
    guided = flag("guided", guided)
    tilted = flag("tilted", tilted)
    bare = flag("bare", bare)
    jumps = levels_of("jumps", jumps)
    if data_std is not None:
        data_std = number("data_std", data_std, least=NARROWEST, most=WIDEST)
    times = _given_times(sde, t_start, t_end)
    _require_levels(sde, times, {"data_std": data_std, "coupled": coupled or None})
    if has_matrix_marginal(sde) and all(t >= EARLIEST * sde.T for t in [sde.eps, *times]):
        few, more = WITH_A_MATRIX
        chosen = few if budget < OF_HISTORY else more
    elif not has_scalar_marginal(sde):
        chosen = Setting("heun2")
    else:
        setting = _linear_setting(
            sde,
            budget,
            times,
            data_std,
            coupled=coupled,
            guided=guided,
            tilted=tilted,
            bare=bare,
            jumps=jumps,
        )
        chosen = with_room(setting, budget)
        chosen = chosen if t_end is None else _to_a_given_end(chosen)
    return Setting(chosen.solver, chosen.grid, nfe)


def _linear_setting(
    sde: LinearSDE,
    budget: int,
    times: Sequence[float],
    data_std: float | None,
    coupled: bool,
    guided: bool,
    tilted: bool,
    bare: bool,
    jumps: tuple[float, ...],
) -> Setting:
    """The setting for a process of noise levels, to an end that is not given."""
    if _beyond_levels(sde, times) is not None:
        return across(Setting("rectified2"), jumps)
    if data_std is None:
        data_std = scale_of_data(sde)
    if coupled:
        few, more = straight_settings(data_std)
        return across(few if budget < OF_THREE else more, jumps)
    setting = _by_budget(budget, data_std, guided, tilted, bare, jumps)
    return on_table(setting) if _scales_of_a_table(sde) else setting


@cached(maxsize=64)
def _scales_of_a_table(sde: LinearSDE) -> bool:
    """True where states at one entry of a table are of another scale than at the next, and none may stand for it."""
    nodes = sde.nodes(sde.table_times or ())
    scales = [math.hypot(node.alpha, node.sigma) for node in nodes]
    return len(scales) >= FEWEST_ENTRIES and any(max(a, b) > ANOTHER_SCALE * min(a, b) for a, b in pairwise(scales))


def _beyond_levels(sde: LinearSDE, times: Sequence[float]) -> float | None:
    """The first of the times given at which a process has no finite log-SNR; None without one."""
    return next((t for t in times if 0 <= t <= sde.T and not math.isfinite(float(sde.log_snr(t)))), None)


def _require_levels(sde: SDE, times: Sequence[float], options: Mapping[str, object]) -> None:
    """Raise ValueError for an option of which the default depends where a run goes along finite noise levels alone."""
    given = next((f"{name}={value}" for name, value in options.items() if value is not None), None)
    if given is None:
        return
    if not has_scalar_marginal(sde):
        raise ValueError(
            f"{given} changes nothing: the default on {described(sde)} does not depend on it; leave it out"
        )
    if given.startswith("data_std") and (t := _beyond_levels(sde, times)) is not None:
        raise ValueError(f"{given} changes nothing for a run from or to t={t}, where log-SNR is infinite: leave it out")


def _by_budget(
    budget: int, data_std: float, guided: bool, tilted: bool, bare: bool, jumps: tuple[float, ...]
) -> Setting:
    """The setting for a budget, on data of a scale."""
    if tilted:
        by_budget = tilted_settings(data_std, jumps) if jumps or data_std != 1 else TILTED
        return by_budget[bisect_right(TILTED_BOUNDS, budget)]
    if guided or jumps:
        by_budget = guided_settings(data_std, jumps, bare) if jumps or bare or data_std != 1 else GUIDED
        return by_budget[bisect_right(GUIDED_BOUNDS, budget)]
    by_budget = settings(data_std, bare) if data_std != 1 or bare else SETTINGS
    return by_budget[bisect_right(BOUNDS, budget)]


@cached(maxsize=64)
def scale_of_data(sde: SDE) -> float:
    """The scale of data nearest to 1 that the noise levels of a linear process are made for, to one digit.

    Noise far above data of scale 1 tells that they are wider where the process ends far above them, too: one from
    100 000 to 1e-8 may be for any.

    Raises:
        TypeError: for something that is no process, or one with a matrix.

    Examples:
        >>> import sgm_sde as sg
        >>> scale_of_data(sg.EDMSDE()), scale_of_data(sg.EDMSDE(10.0, 400_000.0))
        (1.0, 200.0)
    """
    require_sde(sde)
    start, end = sde.nodes((sde.T, sde.eps))
    by_start = sde.prior_std / PRIOR_OVER_DATA
    by_end = DATA_OVER_END * end.noise_level
    least = max(ABOVE_END * end.noise_level, min(by_start, by_end))
    most = min(start.noise_level / BELOW_START, WIDEST)
    return max(float(f"{min(max(1.0, least), most):.1g}"), NARROWEST)


def _given_times(sde: SDE, t_start: float | None, t_end: float | None) -> list[float]:
    """Start and end, where they are given.

    Raises:
        TypeError: for what is no time.
        ValueError: for times outside of the process.
    """
    given = {name: moment(name, t) for name, t in {"t_start": t_start, "t_end": t_end}.items() if t is not None}
    if not given:
        return []
    goes_on = 0 < given.get("t_start", sde.T) <= sde.eps  # by a rule, to an end below that of the process
    Uniform()(sde, 1, **({"t_end": 0.0} if goes_on else {}) | given)
    return list(given.values())


def _to_a_given_end(setting: Setting) -> Setting:
    """A default whose last call is at the end, and not before it."""
    grid = replace(setting.grid, to_data=False) if isinstance(setting.grid, Thinned) else setting.grid
    return Setting(setting.solver.ending_in_a_state(), grid)
