"""The log-density of samples in the network calls that draw them, whichever solver on a grid takes the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import described, table_size
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.executor import execute
from sgm_sde.engine.lowering import Plan
from sgm_sde.engine.noise import SampleSeeds
from sgm_sde.engine.program import Program
from sgm_sde.likelihood.checks import check_finite, unknown_densities
from sgm_sde.likelihood.errors import CANCELLED
from sgm_sde.likelihood.integrals import Integrals
from sgm_sde.likelihood.methods import FixedGrid, Trace, resolve_trace
from sgm_sde.likelihood.multistep import quadrature_on
from sgm_sde.likelihood.nodes import Nodes
from sgm_sde.likelihood.problem import NoNoise, Problem
from sgm_sde.likelihood.results import LikelihoodProtocol, LogProbResult
from sgm_sde.likelihood.trace import TraceScore
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.schemes import AdaptiveSolver, PredictorCorrector, Solver
from sgm_sde.scores.score import Score

LEAST_STEPS = 6  # that a quadrature with an error takes


class _Along(Integrals):
    """Integrals along the steps of a solver, which may ask the network more than once a step.

    A bias of the score that is there at all times moves the flow, whose density gathers it on the way: its gradient is
    soon further from the score than the bias. The small jumps of `log_prob`'s own grid forgive that, and those of a
    solver's do not.
    """

    off_gradient = 4.0
    off_prior = 12.0
    off_noise = 0.0  # a and b tell enough of jumps as large as these
    fluctuation = 0.0  # steps are uneven, and their rules no sign of a wave
    aliased = CANCELLED
    kinked = 0.0

    def plan(self, program: Program) -> Plan:
        """The program made ready for what the network predicts."""
        self._at_node = iter([stage.node for stage in program.stages if stage.evaluate])
        return super().plan(program)

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output, and at a node its trace."""
        return super().evaluate(x, t) if next(self._at_node, True) else self.model.output(x, t)


def solver_arguments(
    nfe: int | None, by_steps: bool, final: str | None, others: Mapping[str, object]
) -> tuple[int | None, str]:
    """The budget that is left to the solver, if it has one, and the end of its run.

    Raises:
        ValueError: for another end than the flow's, and what a run with its log-density does not take.
    """
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"log_prob=True takes no {name}=, got {described(value)}")
    if final not in (None, "none"):
        raise ValueError(f"log_prob=True ends with the flow, final='none', got final={final!r}")
    if by_steps:
        return None, "none"
    budget = table_size("nfe", nfe)
    if budget <= LEAST_STEPS:
        raise ValueError(
            f"log_prob=True takes a call at the samples after at least {LEAST_STEPS} steps, nfe={LEAST_STEPS + 1} or "
            f"more, got nfe={budget}"
        )
    return budget - 1, "none"


def require_flow(
    sde: SDE,
    solver: Solver | AdaptiveSolver,
    name: str,
    program: Program | None,
    times: tuple[float, ...],
    by_rule: bool,
) -> None:
    """Raise unless a run is one along the probability flow on a grid, from its prior or, `by_rule`, from where the rule
    of its grid begins; its solver is known by a name.

    Raises:
        ValueError: for stochastic and adaptive solvers, correctors, another start than T, and few steps.
        TypeError: for a process without alpha and sigma.
    """
    if not has_scalar_marginal(sde):
        raise TypeError(f"log_prob=True needs a LinearSDE, got {described(sde)}")
    if program is None:
        raise ValueError(f"log_prob=True needs a solver on a grid, and {name} finds its own steps")
    asked = [stage.evaluate for stage in program.stages if stage.node]
    if program.stochastic or not all(asked[:-1]) or isinstance(solver, PredictorCorrector):
        raise ValueError(
            f"log_prob=True needs a deterministic solver of the probability flow, such as 'dpm++3m' or 'heun', "
            f"and {name} is none: its samples have no density along the way"
        )
    if times[0] != sde.T and not by_rule:
        raise ValueError(f"log_prob=True starts from the prior at T = {sde.T:g}, got a grid from t = {times[0]:g}")
    if len(times) <= LEAST_STEPS:
        raise ValueError(f"log_prob=True needs at least {LEAST_STEPS} steps, got {len(times) - 1} of {name}")


def require_states_of_flow(solver: object) -> None:
    """Raise ValueError for a solver, fitted to a network, say, whose states are not those of the flow."""
    if isinstance(solver, Solver) and solver.lags:
        raise ValueError(
            f"log_prob=True needs states along the probability flow, and those of {solver.name} are elsewhere: draw "
            f"the samples alone, and ask log_prob(score, sde, x) for their density"
        )


def draw_with_log_prob(
    score: Score,
    sde: LinearSDE,
    x_T: Tensor,
    program: Program,
    seeds: SampleSeeds,
    trace: bool | str | Trace,
    model_kwargs: Conditions | None,
    on_output: Callable[[Tensor, Tensor, float], None],
) -> tuple[Tensor, LogProbResult]:
    r"""Samples (B, *) by the solver's program from states x_T (B, *), and their log-density under the probability flow.

    The trace of the network's Jacobian is taken at each node of the grid and at the samples. The integrals are those of
    `log_prob`'s fixed grid, by polynomials in lambda. The solver's states do not lie on one trajectory of the flow; the
    score corrects the log-density for that to first order.

    Args:
        score: the score.
        sde: a linear process.
        x_T: states from the prior, at the program's first time.
        program: of a run that `require_flow` lets pass.
        seeds: of the probes.
        trace: True for the default, or as `log_prob` takes it.
        model_kwargs: passed on to the network.
        on_output: called with the state, the network's output and the time at each node.
    """
    times = program.times
    exact_or_probes = resolve_trace(None if isinstance(trace, bool) else trace, x_T)
    estimate = exact_or_probes.estimate(x_T, seeds, True)
    model = TraceScore(score, sde, (times[-1], times[0]), model_kwargs, len(x_T))

    # Where a rule begins below T, states there are the prior's in the scale of the linear part of the flow.
    one = torch.ones(1, dtype=torch.float64)
    scale = float(sde.prior_transform(one, times[0])) / sde.prior_std
    problem = Problem(model, x_T, times[-1], estimate, to_noise=False, prior_std=scale * sde.prior_std)
    integrals = _Along(problem, _nodes(sde, times))
    x = execute(program, x_T, integrals, NoNoise(), grad=torch.is_grad_enabled(), on_output=on_output).x
    integrals.evaluate(x, model.times([times[-1]], x)[0])
    found = integrals.solution(x)

    at_T = sde.prior_log_prob(x_T / scale) - problem.d * math.log(scale)
    value = at_T - found.volume
    check_finite(value, "the log-likelihood")
    unresolved = unknown_densities(found.stated, problem.d)

    protocol = LikelihoodProtocol(
        estimator="point log p_eps",
        eps=times[-1],
        method=f"{program.name} with {len(times) - 1} steps",
        trace=str(estimate),
        prior=f"N(0, {scale * sde.prior_std:.4g}^2)",
    )
    result = LogProbResult(
        value=value,
        stderr=found.stderr,
        error=found.stated,
        latent=x_T,
        prior=at_T,
        divergence=-found.volume,
        decoder=torch.zeros_like(value),
        defect=found.defect,
        freedom=found.freedom,
        unresolved=unresolved.samples,
        reasons=unresolved.reasons,
        nfe=model.nfe,
        vjps=model.vjps,
        protocol=protocol,
    )
    return x, result


def _nodes(sde: LinearSDE, times: tuple[float, ...]) -> Nodes:
    """The grid of a run, with the quadrature on it.

    Raises:
        ValueError: where it begins at an infinite log-SNR.
    """
    s = FixedGrid().data_std
    lam = np.array([node.lam for node in sde.nodes(times)])
    if not np.isfinite(lam).all():
        raise ValueError(f"log_prob=True needs a finite log-SNR at all times, and that at t = {times[0]:g} is infinite")
    return Nodes(sde, times, quadrature_on(lam, s), s)
