"""A solver's run in a loop of the caller's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, known_arguments, moment, require_floating
from sgm_sde._utils.elsewhere import OF_RUNS, named_elsewhere
from sgm_sde.engine.executor import Loop, Position, Stages, prepare
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, check_seeds, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.times import ROUNDING, same_time
from sgm_sde.grids import Grid, GridRule
from sgm_sde.processes.base import SDE
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.planning import final_update, follows_a_flow, plan
from sgm_sde.schemes import AdaptiveSolver, Solver
from sgm_sde.schemes.base import called
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score, Traits

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Stepper", "stepper"]


@named_elsewhere(OF_RUNS)
def stepper(
    solver: Solver | Setting | str | None,
    sde: SDE,
    grid: Grid | GridRule | str | Sequence[float] | None = None,
    *,
    prediction: str = "score",
    nfe: int | None = None,
    steps: int | None = None,
    t_start: float | None = None,
    final: str | None = None,
    seed: Seeds = None,
    **traits: Unpack[Traits],
) -> Stepper:
    """The run of a solver on a grid, driven step by step by its caller, who evaluates the network.

    Solver, grid, budget and seed mean what they mean for `sample`, and so does the result: the loop below returns the
    samples of `sample` from the same `x_T` with the same seed.

    Args:
        solver: a name, a `Solver` or a `Setting`; that of `default_setting` if None.
        sde: the process.
        grid: a rule, its name, or times.
        prediction: what the network returns: `"noise"`, `"data"`, `"v"`, `"flow"` or `"score"`.
        nfe: number of network evaluations, at most; 50 if neither `steps` nor times are given.
        steps: number of steps, instead of `nfe`.
        t_start: where to start; as `sample` takes it.
        final: `"denoise"`, `"mean"` or `"none"`; as `sample` takes it.
        seed: of the solver's noise.
        traits: of the score, where there is one, as its `traits` has them: the default solver depends on them, and a
            flow of coupled pairs (`coupled=True`) takes deterministic solvers alone.

    Raises:
        ValueError: for arguments out of range, and a solver that evaluates the network between two steps, such as a
            predictor-corrector, or adds noise to a flow of coupled pairs.
        TypeError: for a solver that finds its own steps, or arguments of the wrong type.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma: x / (1 + sigma**2)
        >>> s = sg.stepping.stepper("dpm++2m", sg.EDMSDE(), nfe=5, prediction="data", seed=0)
        >>> x = x_T = 80 * torch.ones(1, 2)
        >>> for t in s.times:
        ...     x = s.step(net(x, t), t, x)
        >>> score = sg.from_denoiser(lambda x, t: net(x, t[:, None]), sg.EDMSDE())
        >>> res = sg.sample(score, sg.EDMSDE(), x_T=x_T, solver="dpm++2m", nfe=5, seed=0)
        >>> bool((x == res.x).all()), len(s.times) == res.nfe
        (True, True)
    """
    final = final_update(sde, final)
    known_arguments("stepper", traits, Traits.__annotations__)
    chosen, _, program = plan(sde, solver, nfe=nfe, steps=steps, grid=grid, t_start=t_start, final=final, **traits)
    if program is None or isinstance(chosen, AdaptiveSolver):
        raise TypeError(f"{called(chosen, solver)} finds its own steps, and a solver on a grid is needed here")

    require_steppable(chosen)
    if traits.get("coupled") and not follows_a_flow(chosen, program):
        raise ValueError(
            f"{called(chosen, solver)} adds noise by the score, which a flow of coupled pairs does not give"
        )
    denoise = final == "denoise" and not chosen.ends_in_data
    return Stepper(program, sde, prediction=prediction, denoise=denoise, seed=seed)


def require_output(output: object, x: Tensor) -> None:
    """Raise ValueError unless a network's output has the shape of its state x (B, *)."""
    if not isinstance(output, Tensor) or output.shape != x.shape:
        raise ValueError(f"the network's output must be a tensor of shape {tuple(x.shape)}, got {described(output)}")


def require_steppable(solver: Solver) -> None:
    """Raise ValueError for a solver that calls the network itself, between those calls that the caller makes."""
    if solver.has_hooks:
        raise ValueError(f"{called(solver)} calls the network between timesteps: use sample(), which calls it itself")


class Stepper:
    """A run of a program whose network calls are made outside; made by `stepper`.

    Between calls the state is kept in at least float32. What the caller does to a state before the next call counts. A
    run can be copied and pickled at any of its calls; the copy continues from there.

    Args:
        program: the table of a solver on a grid.
        sde: its process.
        prediction: what the network returns.
        denoise: whether a last call gives the estimate of the data after the last step.
        seed: of the solver's noise.

    Attributes:
        times: where the network is called, in this order; a solver of several stages calls it more than once a step.
        taken: how many of the calls have been made.

    Examples:
        >>> import sgm_sde as sg
        >>> s = stepper("ddim", sg.EDMSDE(), steps=2, prediction="data", final="none")
        >>> x = torch.ones(1, 2)
        >>> for t in s.times:
        ...     x = s.step(x / (1 + t**2), t, x)
        >>> s.taken, x.shape
        (2, torch.Size([1, 2]))
    """

    def __init__(
        self, program: Program, sde: SDE, *, prediction: str, denoise: bool = False, seed: Seeds = None
    ) -> None:
        check_seeds(seed)
        self.program = program
        self.sde = sde
        self.prediction = prediction
        self.denoise = denoise
        self.seed = seed
        self._prepare()
        self._called = [k for k, stage in enumerate(program.stages) if stage.evaluate]
        times = [program.stages[k].t for k in self._called]
        self.times = (*times, program.times[-1]) if denoise else tuple(times)
        self.reset()

    def _prepare(self) -> None:
        times = self.program.times
        score = Score(_called_outside, self.sde, self.prediction)
        self._model = BoundScore(score, self.sde, (times[-1], times[0]))

    def reset(self) -> None:
        """Forget the run, so that the next step is the first."""
        self.taken = 0
        self._loop: Loop | None = None
        self._stages: Stages | None = None
        self._noise: NoiseStream | None = None
        self._state = torch.empty(0)
        self._given = self._state, 0  # what the caller got, and how often it had been written to
        self._copied = False

    @property
    def begins(self) -> tuple[int, ...]:
        """The numbers of the calls at which a step begins, the denoising call included."""
        nodes = [i for i, k in enumerate(self._called) if self.program.stages[k].node]
        return (*nodes, len(self._called)) if self.denoise else tuple(nodes)

    @property
    def starts_at_x(self) -> bool:
        """True if the network is called first at the state that the run starts from."""
        return not self._called or self._called[0] == 0

    def start(self, x: Tensor, generator: Generators = None) -> Tensor:
        """The state (B, *) at which the network is called first, from x (B, *) at the grid's first time.

        For most solvers it is x, and `step` starts by itself; those that add noise to it first, such as EDM's sampler
        with churn, need this call.

        Args:
            x: the initial state.
            generator: where a seed is drawn from, if none was given.

        Raises:
            ValueError: if the run has started.
        """
        if self._stages is not None:
            raise ValueError("the run has started: call reset() for another one")
        if not isinstance(x, Tensor) or x.ndim == 0 or not x.is_floating_point():
            raise TypeError(f"the state must be a floating-point tensor (B, *), got {described(x)}")

        seeds = resolve_seeds(self.seed, generator if self.seed is None else None, len(x))
        self._noise = NoiseStream(seeds, "solver", self.program.times[0])
        with torch.no_grad():
            state = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)
            self._begin(state, None)
            if self.starts_at_x:
                self._given = x, _version(x)
                return x
            return self._give(x, self._state)

    def step(self, output: Tensor, t: Tensor | float | int, x: Tensor) -> Tensor:
        """The state (B, *) at which the network is called next, or, after the last call, the sample.

        Args:
            output: what the network returned, (B, *).
            t: the time of the call, `times[taken]`.
            x: the state that it was called with, (B, *).

        Raises:
            ValueError: for another time, an output of another shape than x, or if the run has ended.
        """
        self._require_next(output, t, x)
        if self._stages is None:
            if not self.starts_at_x:
                raise ValueError(
                    f"{self.program.name} does not call the network at the initial state: begin with x = start(x)"
                )
            self.start(x)
        elif self._is_another(x):
            with torch.no_grad():
                self._state.copy_(x)

        output = output.detach()
        with torch.no_grad():
            self.taken += 1
            if self.denoise and self.taken == len(self.times):
                data = self._model.predict("data", self._state, self.program.times[-1], output)
                return self._give(x, data)
            self._advance(output)
            return self._give(x, self._state)

    def _require_next(self, output: Tensor, t: Tensor | float | int, x: Tensor) -> None:
        """Raise ValueError for what is not the network's output in the call that comes next."""
        if self.taken >= len(self.times):
            raise ValueError(f"the run's {len(self.times)} network calls are made: call reset() for another one")

        require_floating("x", x)
        expected = self.times[self.taken]
        on_device = isinstance(t, Tensor) and t.device.type != "cpu"  # reading it would wait for the device
        if not on_device:
            given = moment("t", t.squeeze() if isinstance(t, Tensor) else t)
            if not same_time(given, expected, 10 * ROUNDING):
                raise ValueError(f"call {self.taken} of the run is at t={expected}, got t={given}")
        require_output(output, x)

    def _begin(self, x: Tensor, start: Position | None) -> None:
        """Advance to the first network call from x, or to the one at which a run stood."""
        assert self._noise is not None
        self._loop = prepare(self.program, x, self._model, self._noise, start=start)
        self._stages = self._loop.stages()
        self._advance(None)

    def _advance(self, output: Tensor | None) -> None:
        """Advance to the next network call, or to the end."""
        assert self._stages is not None
        try:
            # `send(None)` is what starts a generator.
            self._state, _ = self._stages.send(output)
        except StopIteration as end:
            self._state = end.value.x

    def _give(self, x: Tensor, result: Tensor) -> Tensor:
        """A copy in the dtype of x: the state is memory of the run."""
        given = result.to(x.dtype, copy=True)
        self._given = given, _version(given)
        self._copied = False
        return given

    def _is_another(self, x: Tensor) -> bool:
        """True if the caller has made another state of the one that it got."""
        given, version = self._given
        if self._copied:  # the caller holds what the original of this run gave
            return x.shape != given.shape or not torch.equal(x, given)
        return x is not given or _version(x) != version

    def __getstate__(self) -> dict[str, object]:
        state = {name: value for name, value in self.__dict__.items() if name not in _REMADE}
        state["_state"] = self._state.clone()
        # What the caller got, not what it may have written there since.
        state["_given"] = self._state.to(self._given[0].dtype, copy=True), 0

        if self._loop is not None and self._noise is not None:
            waits = self.taken < len(self._called)
            position = replace(self._loop.position(), x=state["_state"]) if waits else None
            state["_saved"] = position, self._noise.seeds, self._noise.draw
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        position, seeds, draw = state.pop("_saved", (None, None, 0))
        self.__dict__.update(state)
        self._prepare()
        self._loop = None
        self._stages = None
        self._noise = None
        self._copied = True
        if seeds is None:  # it has not started
            return

        self._noise = NoiseStream(seeds, "solver", self.program.times[0], draw)
        if position is not None:
            self._begin(self._state, position)
        else:
            self._stages = prepare(self.program, self._state, self._model, self._noise).stages()  # at its end


_REMADE = {"_model", "_loop", "_stages", "_noise"}


def _called_outside(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("the network is called outside of the run")


def _version(x: Tensor) -> int:
    """Version counter of x."""
    return 0 if x.is_inference() else x._version
