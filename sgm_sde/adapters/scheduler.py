"""Our solvers in the place of a diffusers scheduler: a run driven from outside, by a pipeline."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, flag, number, one_of, unknown
from sgm_sde._utils.files import JsonMapping, JsonObject
from sgm_sde._utils.shapes import expand, in_range
from sgm_sde.adapters.diffusers import N_TIMESTEPS, Convention, convention
from sgm_sde.engine.noise import Generators, Seeds
from sgm_sde.engine.times import at_ends, same_time
from sgm_sde.grids import RULES, Distilled, Grid, GridRule, Shifted
from sgm_sde.identity import from_spec, spec
from sgm_sde.processes import LinearSDE, RectifiedFlowSDE
from sgm_sde.sampling.defaults import Setting, default_setting
from sgm_sde.sampling.planning import FINALS, solver_of
from sgm_sde.sampling.stepping import Stepper, require_output, require_steppable, stepper
from sgm_sde.schemes import TCD, Consistency, Solver, resolve
from sgm_sde.scores.score import taken_for_bare

SAME_TIMESTEP = 1e-6  # timesteps closer than this share of the largest are one, in single precision
OWN = "_sgm_sde"  # our options in a saved configuration; other schedulers leave private entries alone

# Networks that were distilled to a map to the data, which are not to be taken for the mean of the data.
FEW_STEPS: dict[str, Solver] = {
    "LCMScheduler": Consistency(),
    "FlowMatchLCMScheduler": Consistency(),
    "TCDScheduler": TCD(),
}


@dataclass(frozen=True)
class SchedulerOutput:
    """Output of a step.

    Attributes:
        prev_sample: the state (B, *) at which the network is called next; after the last step, the sample.
    """

    prev_sample: Tensor


class Config(JsonObject):
    """A dictionary whose entries are attributes, too, as pipelines expect."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class SolverScheduler:
    """A solver of this library as a scheduler for diffusers' pipelines.

    A timestep is a network call: `set_timesteps(n)` takes the most steps that n calls allow, as `sample(nfe=n)` does,
    and a solver with several calls per step has a timestep for each. A pipeline's result is that of `sample` from the
    same noise with the same seed. Correctors call the network themselves, and are not available this way.

    Between calls the state is kept in at least float32; where the pipeline changes it, its change counts. Estimates of
    the data are kept in range where the configuration says so (`clip_sample`, `thresholding`), and the noise follows
    from what was kept, as with `clip=True` of `from_diffusers`; `from_config(config, clip_sample=False)` leaves them.

    Where diffusers is imported, instances are schedulers of diffusers, too: `save_pretrained`, `from_pretrained` and
    `from_config` keep solver and grid, `compatibles` names what it can be swapped for, and pipelines load with it.
    Copies and pickles of it continue from where it stands, also in the middle of a run.

    On flow matching the grid of a named solver is shifted as the configuration says (`shift`, `flow_shift`, or `mu`
    with `use_dynamic_shifting`), unless another one is given. Solvers of few steps take the timesteps of the
    distillation, `grids.Distilled` with the configuration's `original_inference_steps`.

    Args:
        scheduler: the scheduler that the network was trained with, or its configuration; see `from_diffusers`.
        solver: a name, a `Solver` or a `Setting`; if not given, `"lcm"` for LCMScheduler and FlowMatchLCMScheduler,
            `"tcd"` for TCDScheduler, and that of `default_setting` for others, which sees no network: of a pipeline
            that guides, or of a flow of coupled pairs, name it, as in `default_setting(sde, 20, guided=True)`.
        grid: a rule, its name, or times, which then decide the number of calls; as `sample` takes it. `"scheduler"`
            for the timesteps that the scheduler itself would take, with its spacing and shift.
        final: `"denoise"`, `"mean"` or `"none"`; as `sample` takes it.
        seed: of the solver's noise, as `sample` takes it. Without one it is drawn from the pipeline's generator.
        T: where sampling starts, for flow matching. If not given, timesteps of the pipeline's own may start at 1 where
            the solver's coefficients are finite there, and start at 0.999 else.
        integer: timesteps as int64, each the nearest of the table, for models that look them up in an `nn.Embedding`.
        unit_noise: `init_noise_sigma` is 1, as in diffusers, instead of the standard deviation of the noise at the
            first time, which is a little less: the same seed then gives the same image as in diffusers.

    Raises:
        ValueError: for options out of range; at a step, if there is none left or its timestep is not the run's.

    Examples:
        >>> scheduler = SolverScheduler({"beta_schedule": "linear"}, "dpm++2m")
        >>> scheduler.set_timesteps(5)
        >>> x = torch.ones(1, 2)
        >>> for t in scheduler.timesteps:
        ...     x = scheduler.step(0.5 * x, t, x).prev_sample
        >>> len(scheduler.timesteps), bool(x.isfinite().all())
        (5, True)
    """

    order = 1

    def __new__(cls, *args: Any, **kwargs: object) -> SolverScheduler:
        """One of diffusers' schedulers where diffusers is imported."""
        return object.__new__(_of_diffusers() if cls is SolverScheduler and "diffusers" in sys.modules else cls)

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
        unit_noise: bool = False,
    ) -> None:
        one_of("final", final, FINALS)
        if isinstance(solver, Setting) and grid is not None:
            raise ValueError(
                f"the setting {solver.plain} brings its own grid: give no grid= besides, or its solver alone"
            )
        self.solver = solver if solver is None or isinstance(solver, Setting) else resolve(solver)
        if self.solver is not None:
            require_steppable(_without_grid(self.solver))
        self.grid = _checked_grid(grid)
        self.final = final
        self.seed = seed
        self.T = T
        self.integer = flag("integer", integer)
        self.unit_noise = flag("unit_noise", unit_noise)

        self._convention = convention(scheduler, T, integer)
        config = dict(self._convention.config)
        config.setdefault("num_train_timesteps", N_TIMESTEPS)
        if solver is None and "original_inference_steps" in config and "_class_name" not in config:
            raise ValueError(
                "the configuration has original_inference_steps, that of a network of few steps, and no class: name "
                "the solver, such as 'lcm' or 'tcd'"
            )
        self._keep_config(config)

        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._start = self._convention.sde.T  # the first time
        self._sde: LinearSDE = self._convention.sde  # on which the run is
        self._run: Stepper | None = None
        self._begin: int | None = None
        self._first = 0  # number of the timestep that the run begins at

    def _keep_config(self, config: JsonObject) -> None:
        self.config = Config(config)

    @classmethod
    def from_config(cls, config: JsonMapping, return_unused_kwargs: bool = False, **kwargs: object) -> Any:
        """The scheduler of a configuration, our own or another scheduler's, with some of its entries changed.

        Args:
            config: of any scheduler that `from_diffusers` reads, or that of a `SolverScheduler`.
            return_unused_kwargs: whether to return a pair with a dictionary of what was not used: none, here.
            kwargs: our options, or entries of the configuration.

        Raises:
            TypeError: for what is no configuration.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be a configuration as a dictionary, got {described(config)}")
        known = dict(config)
        own = dict(known.pop(OWN, None) or {})
        if "trained_with" in own:
            known["_class_name"] = own.pop("trained_with")

        options: JsonObject = {}
        for name, value in own.items():
            options[name] = from_spec(value) if isinstance(value, Mapping) else value
        for name in OPTIONS:
            if name in kwargs:
                options[name] = kwargs.pop(name)

        scheduler = cls(known | kwargs, **options)
        return (scheduler, {}) if return_unused_kwargs else scheduler

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: object) -> Any:
        """The scheduler in a folder that `save_pretrained` wrote, its own or another scheduler's; with diffusers."""
        return _of_diffusers().from_pretrained(*args, **kwargs)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from, at the first time of a run that is prepared."""
        if self.unit_noise or self._convention.is_flow:  # pipelines of flow matching start from noise as it is
            return 1.0
        return float(self._sde.prior_transform(torch.ones(()), self._start))

    @property
    def begin_index(self) -> int | None:
        """Number of the timestep at which the run begins, if it was set."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later timestep, with noised data: what image-to-image pipelines do.

        Raises:
            ValueError: unless a step of the solver begins there.
        """
        run = self._run
        if run is None:
            raise ValueError("there is no run to begin: call set_timesteps()")
        begin_index = int(begin_index)
        if run.taken:
            raise ValueError(f"{run.taken} of the run's network calls are made: call set_timesteps() first")

        if begin_index != self._first:
            if self._first:
                raise ValueError(f"the run begins at timestep {self._first} already: call set_timesteps() first")
            self._run = self._from(run, begin_index)
        self._begin = begin_index
        self._first = begin_index

    def _from(self, run: Stepper, index: int) -> Stepper:
        """The run on the rest of its grid, from one of its calls on."""
        starts = run.begins
        if index in starts:
            rest = [t for t in run.program.times if t <= run.times[index]]
            later = self._stepper(solver_of(self._solver), self._sde, rest)
            if later.times == run.times[index:]:
                return later

        some = ", ".join(map(str, starts[:6])) + (", ..." if len(starts) > 6 else "")
        raise ValueError(
            f"timestep {index} of {len(run.times)} lies within a step of {run.program.name}, whose steps begin at "
            f"{some}: take another strength or number of steps, or a solver of one call per step"
        )

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """The state as it is: it has the scale that the network knows."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""The data noised to timesteps: $\alpha_t x_0 + \sigma_t\epsilon$.

        Args:
            original_samples: the data (B, *).
            noise: standard normal noise (B, *).
            timesteps: what the network expects as its time there, (B,), (1,) or ().

        Returns:
            the states (B, *).
        """
        t = self._times_of(torch.as_tensor(timesteps).reshape(-1))
        x0 = original_samples.double()
        n = len(x0)
        alpha = self._sde.alpha(t).to(x0.device).expand(n)
        sigma = self._sde.sigma(t).to(x0.device).expand(n)
        noisy = expand(alpha, x0) * x0 + expand(sigma, x0) * noise.double()
        return noisy.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """The same with the arguments as schedulers of flow matching take them.

        Raises:
            ValueError: without the noise.
        """
        if noise is None:
            raise ValueError("scale_noise needs the noise: scale_noise(sample, timestep, noise)")
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def _times_of(self, labels: Tensor) -> Tensor:
        """The times (B,) in float64 of timesteps (B,): the run's own where they are among them."""
        times = self._convention.time_of(labels)
        if self._run is None or not len(self.timesteps):
            return times

        known = self.timesteps.to(device="cpu", dtype=torch.float64)
        own = torch.tensor(self._all_times, dtype=torch.float64)
        distance = (labels.detach().to(known)[:, None] - known).abs()
        nearest = distance.argmin(1)
        least = distance.gather(1, nearest[:, None])[:, 0]
        near = least <= SAME_TIMESTEP * known.abs().max()
        return torch.where(near, own[nearest], times)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """Prepare a run of at most that many network calls; `timesteps` has what the network expects at each.

        Args:
            num_inference_steps: the number of calls.
            device: of `timesteps`.
            timesteps: where to call the network, instead of a number, as it knows its time.
            sigmas: the same as noise levels, sigma / alpha, of which a final 0 is the data; of flow matching, as the
                unshifted times. If the scheduler was made with a grid, only their number counts.
            mu: of the resolution, for flow matching; used where the configuration says `use_dynamic_shifting`, as in
                diffusers, whose pipelines pass it in any case.
            original_inference_steps: of the distillation, for solvers of few steps; that of the configuration, or 50,
                if not given.
            strength: the share of the table that is gone through, from a start below the noisiest timestep: how
                pipelines of latent consistency models go from an image to an image.

        Raises:
            ValueError: for too few calls, another number than a grid of given times takes, or solvers that a pipeline
                cannot run.
        """
        self._check_arguments(timesteps, sigmas, mu)
        convention = self._convention
        given = timesteps if timesteps is not None else sigmas
        n = num_inference_steps
        if given is not None:
            ends_in_data = sigmas is not None and len(given) > 1 and float(given[-1]) == 0
            n = len(given) - ends_in_data

        self._solver = self._method(n)
        distilled = self._distilled(self._solver, original_inference_steps, given is not None)
        t_start = self._first_time(strength, distilled, given is not None)

        sde = convention.sde
        if self.grid == "scheduler" or (self.grid is None and given is not None):
            # Times of a setting's own grid make room for those that are given.
            self._solver = _without_grid(self._solver)
            labels = timesteps if given is not None else _own_timesteps(convention, n, mu)
            times = self._given_times(labels, sigmas, mu)
            run, sde = self._at_given(times)
        else:
            asked = num_inference_steps if given is None else None
            run = self._on_grid(n, asked, distilled, mu, t_start)
        if not run.starts_at_x:
            raise ValueError(f"{run.program.name} calls the network first at a state of its own: use sample()")
        self._prepare(run, sde, device)

    def _prepare(self, run: Stepper, sde: LinearSDE, device: torch.device | str | None) -> None:
        """Make a run on a process the one that the pipeline drives."""
        convention = self._convention
        self._run = run
        self._sde = sde
        self._start = run.program.times[0]
        self._begin = None
        self._first = 0
        self._all_times = run.times

        label = convention.time_label(torch.tensor(run.times, dtype=torch.float64))
        dtype = torch.float32 if label.is_floating_point() else label.dtype
        self.timesteps = label.to(device=device, dtype=dtype)
        self.num_inference_steps = len(run.times)
        self._to_data = [node.convert(convention.prediction, "data") for node in sde.nodes(run.times)]

    def _check_arguments(
        self, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, mu: float | None
    ) -> None:
        if timesteps is not None and sigmas is not None:
            raise ValueError("give timesteps= or sigmas=, not both")
        convention = self._convention
        if mu is not None and not convention.is_flow:
            raise ValueError(f"mu={mu} is a shift of flow matching's times, and this is {convention.sde!r}")
        dynamic = bool(convention.config.get("use_dynamic_shifting"))
        if dynamic and mu is None and self.grid is None and timesteps is None:
            raise ValueError("the configuration has use_dynamic_shifting=True: pass mu=, as a pipeline does")

    def _on_grid(
        self, n: int | None, asked: int | None, distilled: Distilled | None, mu: float | None, t_start: float | None
    ) -> Stepper:
        """The run on a grid: the scheduler's own, else that of a distillation, a shift, or the solver."""
        sde = self._convention.sde
        grid: Any = self.grid
        if grid is None:
            grid = distilled
            shifted = self._shifted(mu) if self._convention.is_flow else None
            if shifted is not None:
                grid = shifted
                self._solver = _without_grid(self._solver)
        if grid is None or isinstance(grid, GridRule | str):
            return self._stepper(self._solver, sde, grid, n, t_start)

        run = self._stepper(self._solver, sde, grid, None, t_start)
        if asked not in (None, len(run.times)):
            raise ValueError(f"the given grid takes {len(run.times)} network calls, got num_inference_steps={asked}")
        return run

    def _method(self, nfe: int | None) -> Solver | Setting:
        """The solver, or the default of the scheduler that the network was trained with."""
        if self.solver is not None:
            return self.solver
        trained_with = str(self._convention.config.get("_class_name"))
        few_steps = FEW_STEPS.get(trained_with)
        if few_steps is not None:
            return few_steps
        sde = self._convention.sde
        return default_setting(sde, nfe, bare=taken_for_bare(self._convention.prediction, sde))

    def _distilled(self, solver: Solver | Setting, asked: int | None, given: bool) -> Distilled | None:
        """The timesteps of a distillation, for solvers of few steps whose grid is left to them."""
        by_solver = self.grid is None and not given
        applies = isinstance(solver, Solver) and "distilled" in solver.grids and by_solver
        if asked is not None and not applies:
            raise ValueError(
                f"original_inference_steps={asked} goes with a solver of few steps on its own timesteps, such as "
                f"'lcm', and this run has the solver {solver} and the grid {self.grid if self.grid else 'given'}"
            )
        if not applies or self._convention.is_flow:
            return None
        steps = self._convention.config.get("original_inference_steps", 50) if asked is None else asked
        return Distilled(check_integer("original_inference_steps", steps, least=1))

    def _first_time(self, strength: float, distilled: Distilled | None, given: bool) -> float | None:
        """Time at which a share of the table begins; None for all of it."""
        strength = number("strength", strength, above=0, most=1)
        if strength == 1:
            return None
        placed = isinstance(self.grid, GridRule | str | None) and self.grid != "scheduler" and not given
        if self._convention.is_flow or not placed:
            raise ValueError(f"strength={strength} goes with a table whose timesteps are left to the solver")

        n = self._convention.n
        timesteps = n if distilled is None else distilled.original_steps
        entries = int(timesteps * strength) * (n // timesteps)
        if not entries:
            raise ValueError(f"strength={strength} leaves none of {timesteps} timesteps")
        return entries / n

    def _stepper(
        self,
        solver: Solver | Setting,
        sde: LinearSDE,
        grid: Grid | GridRule | str | Sequence[float] | None,
        nfe: int | None = None,
        t_start: float | None = None,
    ) -> Stepper:
        whole = isinstance(grid, GridRule | str | None) and self._convention.is_flow
        return stepper(
            solver,
            sde,
            grid,
            prediction=self._convention.prediction,
            nfe=nfe,
            # Pipelines of flow matching start from noise alone, whatever the grid.
            t_start=sde.T if whole else t_start,
            final=self.final,
            seed=self.seed,
        )

    def _shifted(self, mu: float | None) -> Shifted | None:
        """The grid that the configuration of a flow matching asks for, if any."""
        config = self._convention.config
        if mu is not None and config.get("use_dynamic_shifting"):
            if config.get("time_shift_type", "exponential") == "linear":
                return Shifted(mu)
            return Shifted.of_resolution(mu)
        shift = self._constant_shift()
        return None if shift == 1 or self._is_left_to_default else Shifted(shift)

    @property
    def _is_left_to_default(self) -> bool:
        """True if the solver is that of `default_setting`, which has a grid of its own."""
        return self.solver is None and str(self._convention.config.get("_class_name")) not in FEW_STEPS

    def _constant_shift(self) -> float:
        """The shift of a configuration, by the name that its scheduler has for it; 1 without one."""
        config = self._convention.config
        return float(config.get("shift") or config.get("flow_shift") or 1.0)

    def _given_times(
        self, labels: Sequence[float] | None, sigmas: Sequence[float] | None, mu: float | None
    ) -> list[float]:
        """Times of given timesteps or noise levels."""
        convention = self._convention
        if labels is not None:
            t = convention.time_of(torch.as_tensor(labels, dtype=torch.float64).reshape(-1))
            return [float(value) for value in t]

        levels = torch.as_tensor(sigmas, dtype=torch.float64).reshape(-1)
        if len(levels) > 1 and float(levels[-1]) == 0:
            levels = levels[:-1]
        return self._shifted_times(levels, mu) if convention.is_flow else _times_of_levels(convention.sde, levels)

    def _shifted_times(self, t: Tensor, mu: float | None) -> list[float]:
        """The times of a flow matching shifted as the configuration says."""
        shift = self._shifted(mu)
        factor = 1.0 if shift is None else shift.shift
        if shift is None and self._is_left_to_default:
            factor = self._constant_shift()
        return [float(value) for value in factor * t / (1 + (factor - 1) * t)]

    def _at_given(self, times: list[float]) -> tuple[Stepper, LinearSDE]:
        """The run at given times, on flow matching from t = 1 where that can be."""
        sde = self._convention.sde
        if self.final != "denoise" and times[-1] > sde.eps and not same_time(times[-1], sde.eps):
            times = [*times, sde.eps]  # the network is called at each of the given times, and the state is one behind

        first, *others = times
        if self._convention.is_flow and self.T is None and first > sde.T:
            pure = RectifiedFlowSDE(T=1.0, eps=min(1e-3, times[-1]))
            try:
                return self._stepper(self._solver, pure, [min(first, 1.0), *others]), pure
            except ValueError:  # coefficients that are not finite at t = 1
                pass
        start = sde.T if first > sde.T else at_ends(sde, first)
        return self._stepper(self._solver, sde, [start, *others]), sde

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Continue with the network's output at `sample` (B, *) to the state where it is called next.

        Args:
            model_output: what the network returned.
            timestep: that of the call.
            sample: the state that it was called with.
            eta: 0; noise is an option of the solver.
            use_clipped_model_output: whether the noise follows from the clipped estimate of the data: true where the
                configuration clips, and so left out or true.
            generator: where the seeds of the solver's noise are drawn from at the first step, without `seed=`.
            return_dict: whether to return an object with `prev_sample`, or a pair of it and the estimate of the data,
                as pipelines of latent consistency models take it.

        Raises:
            ValueError: before `set_timesteps`, after the last call, at another timestep than the run's, and for an
                option that would do nothing.
        """
        threshold = self._convention.threshold
        if eta or (use_clipped_model_output and not threshold):
            raise ValueError(
                f"got eta={eta} and use_clipped_model_output={use_clipped_model_output}: noise is an option of the "
                f"solver, such as DDIM(eta=1.0), and nothing is clipped unless the configuration says so"
            )
        run = self._run
        if run is None:
            raise ValueError("there is no run to step on: call set_timesteps() first")
        if run.taken >= len(run.times):
            raise ValueError(f"the run's {len(self.timesteps)} network calls are made: call set_timesteps()")
        call = self._first + run.taken
        self._require_timestep(call, timestep)

        if not run.taken:
            run.start(sample, generator)
        output = self._convention.output(model_output, sample)
        require_output(output, sample)
        c_x, c_r = self._to_data[call]
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        data = c_x * x + c_r * output.to(x.dtype)
        if threshold:
            data = in_range(data, **threshold)
            output = (data - c_x * x) / c_r
        state = run.step(output, run.times[run.taken], sample)
        if return_dict:
            return SchedulerOutput(state)
        if run.denoise and run.taken == len(run.times):
            return state, state
        return state, data.to(sample.dtype)

    def _require_timestep(self, call: int, timestep: Tensor | float) -> None:
        """Raise ValueError unless a call of the run is at this timestep."""
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":  # reading it would wait for the device
            return
        expected = float(self.timesteps[call])
        if float(timestep) != expected:
            raise ValueError(f"step {call} of the run is at timestep {expected}, got {float(timestep)}")

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


_own, *_arguments = inspect.signature(SolverScheduler.__init__).parameters.values()
SolverScheduler.__signature__ = inspect.Signature(_arguments)  # type: ignore[attr-defined]  # not that of __new__


OPTIONS = ("solver", "grid", "final", "seed", "T", "integer", "unit_noise")


def _checked_grid(grid: Grid | GridRule | str | list[float] | None) -> Grid | GridRule | str | list[float] | None:
    """A grid as it is given, if it is a rule, its name, times, or "scheduler"."""
    if isinstance(grid, str) and grid not in RULES and grid != "scheduler":
        raise unknown("grid", grid, (*RULES, "scheduler"))
    if not isinstance(grid, str | GridRule | None):
        Grid.of(grid)
    return grid


def _without_grid(solver: Solver | Setting) -> Solver:
    """The solver alone, which calls the network at the last of the times that are given, too."""
    return solver_of(solver).ending_in_a_state()


def _times_of_levels(sde: LinearSDE, levels: Tensor) -> list[float]:
    """The times of noise levels sigma / alpha, that of T for those beyond it."""
    lowest = float(sde.log_snr(sde.T))
    log_snr = (-2 * levels.log()).clamp(min=lowest)
    return [float(sde.time(value)) for value in log_snr]


def options_as_json(scheduler: SolverScheduler) -> JsonObject:
    """Our options as JSON values, those that differ from the defaults."""
    defaults: JsonObject = {
        "solver": None, "grid": None, "final": "denoise", "seed": None, "T": None, "integer": False,
        "unit_noise": False,
    }  # fmt: skip
    values = {name: getattr(scheduler, name) for name in OPTIONS}
    return {name: spec(value) for name, value in values.items() if value is not defaults[name]}


def _own_timesteps(convention: Convention, n: int | None, mu: float | None) -> list[float]:
    """The timesteps that the scheduler of a configuration takes itself."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError('grid="scheduler" asks the scheduler itself: pip install diffusers') from error

    name = convention.config.get("_class_name")
    kind: Any = getattr(diffusers, str(name), None)
    if kind is None:
        raise ValueError(f'grid="scheduler" needs one of diffusers\' schedulers, got a configuration of {name!r}')
    scheduler = kind.from_config({key: value for key, value in convention.config.items() if key != OWN})
    scheduler.set_timesteps(n, **({} if mu is None else {"mu": mu}))
    timesteps = set(scheduler.timesteps.double().tolist())  # schedulers of several stages name them twice
    return sorted(timesteps, reverse=True)


def _of_diffusers() -> Any:
    try:
        from sgm_sde.adapters import diffusers_scheduler
    except ImportError as error:
        raise ImportError("this is done by diffusers: pip install diffusers") from error
    return diffusers_scheduler.SolverScheduler
