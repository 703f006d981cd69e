"""Which solver and grid suit a network at a budget of calls: a trial on a small batch of noises."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sgm_sde.defaults import Setting
from sgm_sde.engine.noise import Generators, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling import SampleResult, sample
from sgm_sde.solvers import RectifiedAdams, UniC, UniPC

REFERENCE = Setting("unipc4", "log-snr")
CHECK = Setting("lms4", "karras")  # a second opinion on the reference


@dataclass(frozen=True, init=False)
class PilotResult(Setting):
    """The best setting of a trial; `sample(solver=...)` takes it as it is.

    Attributes:
        solver: the best solver.
        grid: its grid.
        errors: pairs (setting, root-mean-square error relative to the samples' spread), the best first.
        reference_error: the same distance between two references by different methods: errors of its size say
            nothing.
        nfe: the budget.
    """

    errors: tuple[tuple[Setting, float], ...] = field(default=(), compare=False)
    reference_error: float = field(default=0.0, compare=False)
    nfe: int = 0

    def __init__(self, errors: Sequence[tuple[Setting, float]], reference_error: float, nfe: int) -> None:
        super().__init__(errors[0][0].solver, errors[0][0].grid)
        for name, value in (("errors", tuple(errors)), ("reference_error", reference_error), ("nfe", nfe)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        lines = [f"{error:.3e}  {setting}" for setting, error in self.errors]
        return "\n".join([f"at {self.nfe} calls, reference known to {self.reference_error:.0e}:", *lines])


def default_candidates() -> tuple[Setting, ...]:
    """What `pilot` tries by default: the best of the accuracy benchmark, which differ from one network to another."""
    return (
        Setting("dpm5m-cold", "log-snr"),
        Setting("dpm5m-cold", "karras"),
        Setting("dpm4m-cold", "log-snr"),
        Setting("ipndm3", "log-snr"),
        Setting("ipndm3", "karras"),
        Setting(replace(UniC(RectifiedAdams(2)), lower_final=True), "log-snr"),
        Setting(UniC(RectifiedAdams(5, start="cold")), "log-snr"),
        Setting(UniPC(3, prediction="noise", lower_final=True), "log-snr"),
    )


def pilot(
    score_fn: ScoreFn,
    sde: LinearSDE,
    shape: Sequence[int],
    *,
    nfe: int,
    candidates: Sequence[Setting | str] | None = None,
    reference_nfe: int = 256,
    seed: Seeds = None,
    generator: Generators = None,
    final: str = "denoise",
    t_end: float | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PilotResult:
    """Try solvers and grids on a small batch, against a tight solution from the same noises.

    No single method is best everywhere: the order of the candidates differs between networks, tenfold at times.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        shape: (B, *) of the trial, such as 16 samples.
        nfe: the budget of network calls that the choice is for.
        candidates: settings, or names of solvers on the process' own grid; `default_candidates()` if not given.
        reference_nfe: network calls of each of the two references.
        seed: of the noises; one int or one per sample.
        generator: instead of `seed`.
        final: what to compare: `"denoise"`, the samples, or `"none"`, the states at the end.
        t_end: where to end, default `sde.eps`.
        model_kwargs: passed on to the network.
        dtype: of the samples; torch's default if not given.
        device: of the samples; the network's if it has parameters.

    Returns:
        the best setting, with the errors of all.

    Raises:
        ValueError: for an empty list, a budget that a candidate cannot keep, random candidates, or a reference that is
            not finite.
        TypeError: for a process without alpha and sigma.

    Example:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2).score(sde)
        >>> best = sg.pilot(score, sde, (16, 1), nfe=10, seed=0)
        >>> sg.sample(score, sde, (4, 1), solver=best, nfe=10, seed=1).nfe
        10
    """
    require_sde(sde)
    if not sde.is_linear:
        raise TypeError(f"a pilot needs a LinearSDE for its reference, got {sde!r}")
    tried = [
        c if isinstance(c, Setting) else Setting(c)
        for c in (default_candidates() if candidates is None else candidates)
    ]
    if not tried:
        raise ValueError("a pilot needs at least one candidate, got none")
    for setting in tried:
        if setting.solver.stochastic:
            raise ValueError(f"a pilot compares deterministic solvers, got {setting.solver.name}, which adds noise")
    if generator is not None:  # the same noises for all: drawn from once
        seed, generator = resolve_seeds(None, generator, shape[0]), None
    seed = secrets.randbits(63) if seed is None else seed

    def end(setting: Setting, budget: int) -> SampleResult:
        return sample(
            score_fn, sde, shape, solver=setting, nfe=budget, t_end=t_end, seed=seed, final=final,
            model_kwargs=model_kwargs, dtype=dtype, device=device,
        )  # fmt: skip

    reference = end(REFERENCE, reference_nfe)
    if not reference.status.ok:
        raise ValueError(f"there is no reference to compare with: {reference.status.message}")
    exact, check = reference.x.double(), end(CHECK, reference_nfe).x.double()
    spread = float(exact.std()) or 1.0

    def distance(x: Tensor) -> float:
        error = float((x - exact).square().mean().sqrt()) / spread
        return error if math.isfinite(error) else math.inf

    errors = sorted(((setting, distance(end(setting, nfe).x.double())) for setting in tried), key=lambda pair: pair[1])
    return PilotResult(errors, distance(check), nfe)
