"""Our solvers in the place of a diffusers scheduler: the run of a program, called back by a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgm_sde._checks import one_of
from sgm_sde.adapters.diffusers import convention
from sgm_sde.defaults import Setting
from sgm_sde.engine.noise import Generators, Seeds
from sgm_sde.grids import Grid, GridRule
from sgm_sde.sampling import FINALS
from sgm_sde.solvers import Solver, resolve
from sgm_sde.stepping import Stepper, stepper


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
        self._start = self._says.sde.T  # the first time
        self._run: Stepper | None = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from, at the first time of a run that is prepared."""
        return float(self._says.sde.prior_transform(torch.ones(()), self._start))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as it is: it has the scale that the network knows."""
        return sample

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Prepare a run of at most that many network calls; `timesteps` has what the network expects at each.

        Raises:
            ValueError: for too few calls, another number than a grid of given times takes, or solvers that a pipeline
                cannot run.
        """
        given = self.grid is not None and not isinstance(self.grid, GridRule | str)
        run = stepper(
            self.solver,
            self._says.sde,
            self.grid,
            prediction=self._says.prediction,
            nfe=None if given else num_inference_steps,
            final=self.final,
            seed=self.seed,
        )
        if not run.starts_at_x:
            raise ValueError(f"{run.program.name} calls the network first at a state of its own: use sample()")
        called = run.times
        if given and num_inference_steps not in (None, len(called)):
            raise ValueError(f"the given grid takes {len(called)} network calls, got {num_inference_steps=}")
        self._start, self._run = run.program.times[0], run
        labels = self._says.time_label(torch.tensor(called, dtype=torch.float64))
        self.timesteps = labels.to(device=device, dtype=torch.float32 if labels.is_floating_point() else labels.dtype)
        self.num_inference_steps = len(called)

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
        run = self._run
        if run is None or run.taken >= len(run.times):
            raise ValueError(f"the run's {len(self.timesteps)} network calls are made: call set_timesteps()")
        expected = self.timesteps[run.taken]
        if not (isinstance(timestep, Tensor) and timestep.is_cuda) and float(timestep) != float(expected):
            raise ValueError(f"step {run.taken} of the run is at timestep {float(expected)}, got {float(timestep)}")
        if not run.taken:
            run.start(sample, generator)
        given = run.step(self._says.output(model_output, sample), run.times[run.taken], sample)
        return SchedulerOutput(given) if return_dict else (given,)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])
