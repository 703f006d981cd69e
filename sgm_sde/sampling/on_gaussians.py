r"""A run's table on Gaussian data, where the truth is known: whether a budget is too small for solver and grid.

For data N(0, S^2) the denoiser is $D = \tfrac{\alpha S^2}{\alpha^2 S^2 + \sigma^2}\,x$, so every stage of a table is a
sum of the start and the noises, $x_k = a_k x_0 + \sum_m b_{km} z_m$. With $e_t^2 = \alpha_t^2 S^2 + \sigma_t^2$ the run
should end with the standard deviation $e_n$ and ends with

$$ \hat e_n = \sqrt{a_n^2 e_0^2 + \sum_m b_{nm}^2} $$

Too few steps for a solver, or steps where it is not stable, show here before any network is called: what ends too
large on Gaussian data of every scale between the ends of the process is hardly right on others. Data at a point, and
tables fitted to a network, are the exceptions.
"""

from __future__ import annotations

import numpy as np

from sgm_sde._utils.cache import cached
from sgm_sde.engine.matrix import number
from sgm_sde.engine.program import Program
from sgm_sde.processes.linear import LinearNode, LinearSDE

MOST_CALLS = 100  # of tables that are looked at: with more, no solver in the registry misses
SCALES = 12
LARGEST = 1e3  # scale, where the process starts from alpha = 0
AMONG_NOISE = 20.0  # noise level at the start over the largest scale, so that the start says little of the data
FROM_NOISE = 0.1  # share of the process' first noise level, from which on a table starts from noise
ABOVE_END = 3.0  # smallest scale over the noise level at the end
MISSED = 2.0  # times as large as it should be


@cached(maxsize=64, holders=(1,))
def std_ratio(program: Program, sde: LinearSDE) -> float:
    r"""The ratio $\hat e_n / e_n$ in which a run ends, at the scale of Gaussian data where it is the least.

    Args:
        program: the table, of at most 100 network calls; the ratio of longer ones is taken for 1.
        sde: the process.
    """
    S = scales(sde, program)
    if program.nfe > MOST_CALLS or not len(S):
        return 1.0

    times = [stage.t for stage in program.stages]
    nodes = dict(zip(times, sde.nodes(times), strict=True))
    try:
        of_start_and_noises = _end(program, nodes, S)
    except ZeroDivisionError:  # a prediction that does not exist at alpha = 0 or sigma = 0
        return 1.0

    of_start_and_noises[:, 0] *= _marginal_std(nodes[times[0]], S)
    ratios = np.linalg.norm(of_start_and_noises, axis=1) / _marginal_std(nodes[times[-1]], S)
    ratios[np.isnan(ratios)] = np.inf
    return float(ratios.min())


def scales(sde: LinearSDE, program: Program) -> np.ndarray:
    """The scales of data that are looked at: between the noise levels of the table's ends.

    None if these are close, or if the table starts in the middle of the process, where data may be as large as noise.
    """
    first, start, end = sde.nodes((sde.T, program.times[0], program.times[-1]))
    smallest = max(ABOVE_END * end.noise_level, 1 / LARGEST)
    largest = min(start.noise_level / AMONG_NOISE, LARGEST)
    from_noise = start.noise_level >= FROM_NOISE * min(first.noise_level, LARGEST)
    return np.geomspace(smallest, largest, SCALES if from_noise and smallest < largest else 0)


def misses_gaussians(program: Program, sde: LinearSDE) -> bool:
    """True if a run ends at least twice as large as it should, on Gaussian data of any scale."""
    return std_ratio(program, sde) >= MISSED


def _marginal_std(node: LinearNode, S: np.ndarray) -> np.ndarray:
    """The standard deviations of the state at a node."""
    return np.hypot(node.alpha * S, node.sigma)


def _end(program: Program, nodes: dict[float, LinearNode], S: np.ndarray) -> np.ndarray:
    """The coefficients (scales, 1 + noises) of the start and of the noises in the last state."""
    noises = 1 + max((m for stage in program.stages for m, _ in stage.noises), default=-1)
    states: list[np.ndarray] = []
    evaluations: dict[int, np.ndarray] = {}
    for k, stage in enumerate(program.stages):
        x = np.zeros((len(S), 1 + noises))
        x[:, 0] = 0.0 if states else 1.0
        for j, A in stage.states:
            x += number(A) * states[j]
        for j, B in stage.evals:
            x += number(B) * evaluations[j]
        for m, C in stage.noises:
            x[:, 1 + m] += number(C)

        states.append(x)
        if stage.evaluate:
            node = nodes[stage.t]
            c_x, c_r = node.convert("data", program.prediction, program.eta, program.sigma_data)
            denoiser = node.alpha * S**2 / _marginal_std(node, S) ** 2
            evaluations[k] = (c_x + c_r * denoiser)[:, None] * x
    return states[-1]
