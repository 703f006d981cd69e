"""Our solvers in the place of a diffusers scheduler: the run of a program, called back by a pipeline."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgm_sde._checks import one_of
from sgm_sde.adapters.diffusers import convention
from sgm_sde.defaults import Setting, default_setting
from sgm_sde.engine.executor import stages
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.grids import Grid, GridRule
from sgm_sde.sampling import FINALS, _make_grid
from sgm_sde.scores.model import BoundModel
from sgm_sde.scores.score import Score
from sgm_sde.solvers import Solver, resolve


@dataclass(frozen=True)
class SchedulerOutput:
    """What a step returns.

    Attributes:
        prev_sample: the state (B, *) at which the network is called next; after the last step, the sample.
    """

    prev_sample: Tensor


class Config(dict[str, Any]):
    """A dictionary whose entries are attributes, too, as pipelines expect."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class SolverScheduler:
    """Any of our solvers as a scheduler for diffusers' pipelines.

    A timestep is a network call: `set_timesteps(n)` takes the most steps that n calls allow, as `sample(nfe=n)` does,
    and a solver with several calls a step has a timestep for each. A pipeline's result is that of `sample` from the
    same noise with the same seed. Correctors call the network themselves, and cannot be had this way.

    Between calls the state is kept in at least float32; where the pipeline changes it, its change counts.

    Args:
        scheduler: the scheduler that the network was trained with, or its configuration; see `from_diffusers`.
        solver: a name, a `Solver` or a `Setting`; that of `default_setting` if not given.
        grid: a rule, its name, or times, which then decide the number of calls; as `sample` takes it.
        final: `"denoise"`, `"mean"` or `"none"`; as `sample` takes it.
        seed: of the solver's noise, as `sample` takes it. Without one it is drawn from the pipeline's generator.
        T: where sampling starts, for flow matching.
        integer: timesteps as int64, each the nearest of the table, for models that look them up in an `nn.Embedding`.

    Raises:
        ValueError: for options out of range; at a step, if there is none left or its timestep is not the run's.

    Example:
        >>> scheduler = SolverScheduler({"beta_schedule": "linear"}, "dpm++2m")
        >>> scheduler.set_timesteps(5)
        >>> x = torch.ones(1, 2)
        >>> for t in scheduler.timesteps:
        ...     x = scheduler.step(0.5 * x, t, x).prev_sample
        >>> len(scheduler.timesteps), bool(x.isfinite().all())
        (5, True)
    """

    order = 1

    def __init__(
        self,
        scheduler: Any,
        solver: Solver | Setting | str | None = None,
        *,
        grid: Grid | GridRule | str | list[float] | None = None,
        final: str = "denoise",
        seed: Seeds = None,
        T: float | None = None,
        integer: bool = False,
    ) -> None:
        one_of("final", final, FINALS)
        self._says = convention(scheduler, T, integer)
        self.config = Config(self._says.config)
        self.config.setdefault("num_train_timesteps", 1000)
        self.solver = solver if solver is None or isinstance(solver, Setting) else resolve(solver)
        if isinstance(solver, Setting) and grid is not None:
            raise ValueError(f"the setting {solver} brings its own grid: give no grid= besides, or its solver alone")
        self.grid, self.final, self.seed = grid, final, seed
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._ends = self._says.sde.T, self._says.sde.eps  # first and last time
        self._run: Generator[tuple[Tensor, Tensor], Tensor, Tensor] | None = None
        self._taken = 0
        self._state = torch.empty(0)
        self._given = self._state, 0  # what the pipeline got, and how often it had been written to

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from, at the first time of a run that is prepared."""
        return float(self._says.sde.prior_transform(torch.ones(()), self._ends[0]))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as it is: it has the scale that the network knows."""
        return sample

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Prepare a run of at most that many network calls; `timesteps` has what the network expects at each.

        Raises:
            ValueError: for too few calls, another number than a grid of given times takes, or solvers that a pipeline
                cannot run.
        """
        sde, denoise = self._says.sde, self.final == "denoise"
        setting = default_setting(sde, num_inference_steps) if self.solver is None else self.solver
        solver = setting.solver if isinstance(setting, Setting) else setting
        grid = setting.grid if isinstance(setting, Setting) and self.grid is None else self.grid
        budget = num_inference_steps if grid is None or isinstance(grid, GridRule | str) else None
        solver, placed = _make_grid(sde, solver, denoise, budget, None, grid, None, None)
        self._ends = placed.times[0], placed.times[-1]
        score = Score(_called_back, sde, self._says.prediction, time_label=self._says.time_label)
        self._model = BoundModel(score, sde, (placed.times[-1], placed.times[0]))
        if solver.hooks(sde, placed, self._model, NoiseStream((), "corrector"), mean=self.final == "mean"):
            raise ValueError(f"{solver.name} calls the network between timesteps: use sample() with from_diffusers()")
        program = solver.compile(sde, placed)
        self._program = solver.end_in_mean(program) if self.final == "mean" else program
        called = [stage.t for stage in self._program.stages if stage.evaluate]
        if called and not self._program.stages[0].evaluate:
            raise ValueError(f"{solver.name} calls the network first at a state of its own: use sample()")
        self._denoise = denoise and not solver.ends_in_data
        called += [placed.times[-1]] * self._denoise
        if budget is None and num_inference_steps not in (None, len(called)):
            raise ValueError(f"the given grid takes {len(called)} network calls, got {num_inference_steps=}")
        labels = self._says.time_label(torch.tensor(called, dtype=torch.float64))
        self.timesteps = labels.to(device=device, dtype=torch.float32 if labels.is_floating_point() else labels.dtype)
        self.num_inference_steps, self._run, self._taken = len(called), None, 0

    def step(
        self,
        model_output: Any,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Go on with the network's output at `sample` (B, *) to the state where it is called next.

        Args:
            model_output: what the network returned.
            timestep: that of the call.
            sample: the state that it was called with.
            eta: 0; noise is an option of the solver.
            use_clipped_model_output: false; nothing is clipped.
            generator: where the seeds of the solver's noise are drawn from at the first step, without `seed=`.
            return_dict: whether to return an object with `prev_sample`, or a tuple.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                f"got eta={eta} and use_clipped_model_output={use_clipped_model_output}: noise is an option of the "
                f"solver, such as DDIM(eta=1.0), and nothing is clipped"
            )
        if self._taken >= len(self.timesteps):
            raise ValueError(f"the run's {len(self.timesteps)} network calls are made: call set_timesteps()")
        expected = self.timesteps[self._taken]
        if not (isinstance(timestep, Tensor) and timestep.is_cuda) and float(timestep) != float(expected):
            raise ValueError(f"step {self._taken} of the run is at timestep {float(expected)}, got {float(timestep)}")
        if self._run is None:
            seeds = resolve_seeds(self.seed, generator if self.seed is None else None, len(sample))
            x = sample.to(torch.promote_types(sample.dtype, torch.float32))
            self._run = self._inside_out(x, NoiseStream(seeds, "solver", self._ends[0]))
            self._state, _ = next(self._run)
        elif sample is not self._given[0] or _version(sample) != self._given[1]:
            self._state.copy_(sample)
        self._taken += 1
        output = self._says.output(model_output, sample)
        try:
            self._state, _ = self._run.send(output)
            result = self._state
        except StopIteration as end:
            result = end.value
        # A copy: the state is memory of the run.
        given = result.to(sample.dtype, copy=True)
        self._given = given, _version(given)
        return SchedulerOutput(given) if return_dict else (given,)

    def _inside_out(self, x: Tensor, noise: NoiseStream) -> Generator[tuple[Tensor, Tensor], Tensor, Tensor]:
        run = yield from stages(self._program, x, self._model, noise)
        if not self._denoise:
            return run.x
        end = self._ends[1]
        output = yield run.x, self._model.times([end], run.x)[0]
        return self._model.predict("data", run.x, end, output)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _called_back(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("the pipeline calls the network")


def _version(x: Tensor) -> int:
    """How often x was written to."""
    return 0 if x.is_inference() else x._version
