"""A score bound to one run: counts calls, makes time tensors, knows every conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde.engine.program import Program
from sgm_sde.engine.reverse import ReverseSDE
from sgm_sde.processes.base import SDE
from sgm_sde.processes.predictions import convert
from sgm_sde.scores.score import Score


class BoundModel:
    """What the executor and the correctors call.

    Args:
        score: the score.
        sde: its process.
        times: (end, start) of the run; no call leaves them.
        model_kwargs: passed on to the network at each call.

    Attributes:
        nfe: number of network calls so far.
    """

    def __init__(
        self,
        score: Score,
        sde: SDE,
        times: tuple[float, float],
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.score, self.sde = score, sde
        self._low, self._high = times
        self._kwargs = dict(model_kwargs or {})
        self._drift: ReverseSDE | None = None
        self._at: dict[float, Any] = {}
        self.nfe = 0

    def conversions(self, program: Program) -> list[tuple[float, float]]:
        """Coefficients from the network's output to the program's prediction, one pair a stage.

        Raises:
            ValueError: where the network's prediction does not determine what the program needs.
        """
        if not self.sde.is_linear:
            self._require(program.prediction in ("score", "drift"), program.prediction)
            self._drift = ReverseSDE(self.sde, self._call, program.eta) if program.prediction == "drift" else None
            return [(0.0, 1.0)] * len(program.stages)
        nodes = self.sde.nodes([stage.t for stage in program.stages])
        return [
            self._convert(program.prediction, node, program.eta) if stage.evaluate else (0.0, 1.0)
            for node, stage in zip(nodes, program.stages, strict=True)
        ]

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        """The network's output at x (B, *) and time t; the reverse drift for a process that is not linear."""
        return self._output(x, t) if self._drift is None else self._drift.f(x, self._times(x, t))

    def predict(self, target: str, x: Tensor, t: float, output: Tensor | None = None) -> Tensor:
        """A prediction at x (B, *) and t, by a network call or from the output of one."""
        if not self.sde.is_linear:
            self._require(target == "score" and output is None, target)
            return self._output(x, t).to(x.dtype)
        if t not in self._at:  # correctors come back to the same time
            self._at = {t: self.sde.nodes([t])[0]}
        c_x, c_r = self._convert(target, self._at[t], 0.0)
        output = self._output(x, t) if output is None else output
        return c_r * output.to(x.dtype) if c_x == 0 else torch.add(c_r * output.to(x.dtype), x, alpha=c_x)

    def _output(self, x: Tensor, t: float) -> Tensor:
        return self._call(x, self._times(x, t))

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        self.nfe += 1
        return self.score.output(x, t, **self._kwargs)

    def _times(self, x: Tensor, t: float) -> Tensor:
        """The time as a tensor (B,) in the state's dtype, rounded into the run and never out of it."""
        if x.dtype != torch.float64:
            rounded = np.float32(t)
            if float(rounded) < self._low:  # as Python floats: NumPy would round the bound as well
                rounded = np.nextafter(rounded, np.float32(np.inf))
            elif float(rounded) > self._high:
                rounded = np.nextafter(rounded, np.float32(-np.inf))
            t = float(rounded)
        return torch.full((len(x),), t, dtype=x.dtype, device=x.device)

    def _convert(self, target: str, node: Any, eta: float) -> tuple[float, float]:
        try:
            c_x, c_r = convert(self.score.prediction, target, node, eta)
        except ZeroDivisionError:
            c_x = c_r = float("nan")
        if not (np.isfinite(c_x) and np.isfinite(c_r)):
            raise ValueError(
                f"a network that predicts {self.score.prediction} does not determine the {target} at t={node.t}, "
                f"where alpha={node.alpha} and sigma={node.sigma}: start below it (t_start=, or a smaller T)"
            )
        return c_x, c_r

    def _require(self, possible: bool, target: str) -> None:
        if not possible:
            raise TypeError(f"the {target} cannot be had on {self.sde!r}: it needs a process with alpha and sigma")
