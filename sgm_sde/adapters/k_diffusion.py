"""Our solvers as functions of k-diffusion's form, which ComfyUI and its kin call, too.

sample_dpmpp_2m = sg.adapters.k_diffusion.sampler("dpmpp_2m")
x = sample_dpmpp_2m(model, x, sigmas, extra_args={"cond": c}, callback=show)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, number
from sgm_sde._utils.files import JsonMapping
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.executor import execute
from sgm_sde.engine.noise import NoiseSource, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.times import CLOSEST, same_time
from sgm_sde.grids import Grid
from sgm_sde.processes import EDMSDE
from sgm_sde.schemes import AncestralNoise, ExponentialAdams, ExponentialRungeKutta, Solver, resolve
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Network, from_denoiser

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, object]], object]

ROOM_FOR_CHURN = 1.5  # of the process above the first level: churn raises a level by at most sqrt(2)


class SamplingFunction:
    """A solver as a function of the form that k-diffusion's `sample_*` have; made by `sampler`.

    Attributes:
        solver: the solver.
        seed: of the noise, where a call gives none.
    """

    def __init__(self, solver: Solver, seed: Seeds) -> None:
        self.solver = solver
        self.seed = seed
        name = solver.name.replace("++", "pp").replace("-", "_")
        self.__name__ = self.__qualname__ = f"sample_{name}"
        self.__doc__ = f"{solver!r} as a function of k-diffusion's form; see `sgm_sde.adapters.k_diffusion.sampler`."

    @torch.no_grad()
    def __call__(
        self,
        model: Network,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Conditions | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        seed: Seeds = None,
        **options: object,
    ) -> Tensor:
        """The samples; arguments as `sampler` describes them."""
        arguments = dict(extra_args or {})
        chosen = self.seed if seed is None else seed
        if chosen is None:
            chosen = _seed_of(arguments)
        seeds = resolve_seeds(chosen, None, len(x))

        levels = _levels(sigmas)
        if self.solver.ends_in_data and levels[-1]:
            raise ValueError(f"{self.solver.name} ends in the data: sigmas must end in 0, got {levels[-1]:g}")
        to_zero = levels[-1] == 0 and not self.solver.ends_in_data
        grid = Grid(levels[:-1] if to_zero else levels)
        first = grid.times[0]
        last = grid.times[-1]

        # Room above the first level, to which churn raises it, and below the last.
        smallest = min(last or levels[-2], first / 2)
        sde = EDMSDE(sigma_min=smallest, sigma_max=ROOM_FOR_CHURN * first)
        # Churn is divided among the steps, that to 0 among them, which our solvers always count.
        share = (grid.steps + 1) / (len(levels) - 1)
        solver, s_noise = _with_options(self.solver, options, share)
        program = solver.compile(sde, grid)

        def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
            return model(y.to(x.dtype), sigma.to(x.dtype), **arguments)

        bound = BoundScore(from_denoiser(denoiser, sde), sde, (last, sde.T))
        solver.look_at(bound.score)
        noise = _noise(solver, program, x, seeds, noise_sampler, s_noise)
        corrections = NoiseStream(seeds, "corrector", first)
        hooks = solver.hooks(sde, grid, bound, corrections, mean=self.solver.ends_in_data)
        report = _Report(callback, sigmas, x.dtype)

        from tqdm.auto import tqdm

        with tqdm(total=len(levels) - 1, disable=disable) as bar:

            def on_node(i: int, state: Tensor) -> bool:
                if i:
                    bar.update()
                return False

            state = x.to(torch.promote_types(x.dtype, torch.float32))
            end = execute(program, state, bound, noise, hooks=hooks, on_node=on_node, on_output=report).x
            if to_zero:
                denoised = bound.predict("data", end, last)
                report(end, denoised, last)
                bar.update()
                end = denoised
        return end.to(x.dtype, copy=True)


def sampler(solver: Solver | str, *, seed: Seeds = None) -> SamplingFunction:
    r"""A solver on a grid as a function of k-diffusion's form, on the process $x = x_0 + \sigma\epsilon$.

    The function returned is `f(model, x, sigmas, extra_args=None, callback=None, disable=None, **options)`:

    | argument        | meaning                                                                                     |
    |-----------------|---------------------------------------------------------------------------------------------|
    | `model`         | `model(x, sigma, **extra_args)`, the denoised data (B, *), with sigma (B,)                  |
    | `x`             | the state (B, *) at `sigmas[0]`                                                             |
    | `sigmas`        | the noise levels, decreasing; a final 0 is a last call whose denoised data are returned     |
    | `callback`      | called at the first call of each step with `x`, `i`, `sigma`, `sigma_hat`, `denoised`       |
    | `disable`       | of the progress bar; None hides it where there is no terminal                               |
    | `noise_sampler` | `noise_sampler(sigma, sigma_next)`, the standard normal noise (B, *) between two levels     |
    | `seed`          | of the noise without `noise_sampler`; that of `extra_args` or of `sampler` if not given     |
    | `options`       | of the solver, as k-diffusion has them: `eta`, `s_noise`, `s_churn`, `s_tmin`, `s_tmax`, ...|

    Names are understood as this library and as k-diffusion spell them. The method is the same at any number of steps
    (`Solver.strict`). Global random state is not touched: noise comes from the seed, or from `noise_sampler`, which is
    asked about disjoint pieces of the way down, so that increments of one Brownian path are independent noises.

    In flow matching, $dx/d\sigma = (x - D)/\sigma$ as well, with $\sigma$ the time: deterministic solvers run on it as
    they are. Stochastic ones take their noise to be that of $x = x_0 + \sigma\epsilon$.

    Args:
        solver: a name or a `Solver`.
        seed: of the noise, where a call gives none.

    Raises:
        TypeError: for a solver that finds its own steps.
        ValueError: for an unknown name; at a call, for levels that do not decrease, options that the solver does not
            have, or a `noise_sampler` for a solver that has none to ask of it.

    Source: Crowson, 2022, github.com/crowsonkb/k-diffusion.

    Examples:
        >>> model = lambda x, sigma: x / (1 + sigma[:, None] ** 2)
        >>> sigmas = torch.tensor([14.6, 3.0, 0.5, 0.0])
        >>> sampler("euler_a", seed=0)(model, 14.6 * torch.ones(2, 1), sigmas, disable=True).shape
        torch.Size([2, 1])
    """
    return SamplingFunction(resolve(solver), seed)


def _noise(
    solver: Solver,
    program: Program,
    x: Tensor,
    seeds: SampleSeeds,
    noise_sampler: NoiseSampler | None,
    s_noise: float,
) -> NoiseSource:
    """The noise of a run: the client's, or by the samples' seeds, times a factor."""
    noise: NoiseSource = NoiseStream(seeds, "solver", program.times[0])
    if noise_sampler is not None:
        if not program.stochastic:
            raise ValueError(f"noise_sampler= goes with a stochastic solver, and {solver.name} draws no noise")
        noise = _Asked(noise_sampler, program, x)
    return noise if s_noise == 1 else _Scaled(noise, s_noise)


class _Report:
    """Calls of k-diffusion's callback, one for each evaluation of the network."""

    def __init__(self, callback: Callback | None, sigmas: Tensor, dtype: torch.dtype) -> None:
        self.callback = callback
        self.sigmas = torch.as_tensor(sigmas)
        self.dtype = dtype
        self.i = 0

    def __call__(self, state: Tensor, denoised: Tensor, sigma_hat: float) -> None:
        i = self.i
        self.i += 1
        if self.callback is None:
            return
        self.callback(
            {
                "x": state.to(self.dtype, copy=True),
                "i": i,
                "sigma": self.sigmas[i],
                "sigma_hat": self.sigmas.new_tensor(sigma_hat),
                "denoised": denoised.to(self.dtype),
            }
        )


def _levels(sigmas: object) -> list[float]:
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or len(sigmas) < 2 or not sigmas.is_floating_point():
        raise ValueError(f"sigmas must be a tensor of two noise levels or more, got {described(sigmas)}")
    levels = [float(s) for s in sigmas.tolist()]
    for i, (level, lower) in enumerate(pairwise(levels)):
        if not lower < level:
            raise ValueError(f"sigmas must decrease, got sigmas[{i}] = {level:g} followed by {lower:g}")
    if levels[-1] < 0:
        raise ValueError(f"sigmas must not be negative, got {levels[-1]:g}")
    return levels


def _seed_of(arguments: JsonMapping) -> Seeds:
    """The seed that a client passes in `extra_args`."""
    return arguments.get("seed")


def _with_options(solver: Solver, options: dict[str, object], share: float) -> tuple[Solver, float]:
    """The solver with k-diffusion's options, and the factor on its noise."""
    solver = solver.strict()
    known = _option_names(solver)
    given = dict(options)
    s_noise = 1.0
    if "s_noise" in given and "s_noise" not in known and (solver.stochastic or given.get("eta")):
        s_noise = number("s_noise", given.pop("s_noise"), least=0)

    if solver.stochastic and given.get("eta") == 0 and isinstance(solver, AncestralNoise):
        del given["eta"]
        return solver.solver, s_noise
    if "eta" in given and isinstance(solver, ExponentialAdams | ExponentialRungeKutta):
        given["eta"] = _eta(solver, given["eta"])
    variant = {"midpoint": "midpoint", "heun": "exact"}.get(str(given.get("solver_type")))
    if variant is not None and "variant" in known:
        del given["solver_type"]
        given["variant"] = variant

    unknown = sorted(given.keys() - known)
    if unknown:
        takes = ", ".join(sorted(known - {"name", "source", "solver", "predictor"})) or "none"
        raise ValueError(f"{solver.name} has no option {unknown[0]!r}; its options: {takes}")

    if "s_churn" in given:
        given = _with_churn(given, share)
    changed: Any = dataclasses.replace(solver, **given) if given else solver  # type: ignore[type-var]
    return changed, s_noise


def _with_churn(given: dict[str, object], share: float) -> dict[str, object]:
    """The options with their churn for as many steps as our solvers count; without bounds of no churn."""
    churn = share * number("s_churn", given["s_churn"], least=0)
    bounds = () if churn else ("s_tmin", "s_tmax", "s_noise")
    used = {name: value for name, value in given.items() if name not in bounds}
    return used | {"s_churn": churn}


def _option_names(solver: Solver) -> set[str]:
    """The names of a solver's options."""
    if not dataclasses.is_dataclass(solver):
        return set()
    return {field.name for field in dataclasses.fields(solver) if field.init}


def _eta(solver: Solver, given: object) -> float:
    """The stochasticity for k-diffusion's eta.

    There, variance is added at the rate eta; here eta is the factor on the diffusion coefficient.
    """
    rate = number("eta", given, least=0)
    if isinstance(solver, ExponentialRungeKutta) and rate not in (0, 1):
        raise ValueError(f"{solver.name} takes eta=0 or eta=1 as k-diffusion means it, got {rate:g}")
    return math.sqrt(rate)


class _Scaled:
    """Noise times a factor."""

    def __init__(self, noise: NoiseSource, factor: float) -> None:
        self.noise = noise
        self.factor = factor

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        return self.factor * self.noise.normal(shape, dtype, device)


class _Asked:
    """Noise asked of a function of two noise levels, in the order in which a program draws it."""

    def __init__(self, noise_sampler: NoiseSampler, program: Program, x: Tensor) -> None:
        self._ask = noise_sampler
        self._pieces = iter(_pieces(program))
        self._like = x

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        start, end = (self._like.new_tensor(level) for level in next(self._pieces))
        z = self._ask(start, end)
        if not isinstance(z, Tensor) or tuple(z.shape) != shape:
            raise ValueError(f"noise_sampler must return noise of shape {shape}, got {described(z)}")
        return z.to(device=device, dtype=dtype)


def _pieces(program: Program) -> Iterator[tuple[float, float]]:
    """The noise levels between which each noise of a program is drawn: disjoint pieces, downwards.

    Raises:
        ValueError: for a program whose noises are none of such pieces.
    """
    found: list[tuple[float, float]] = []
    drawn: set[int] = set()
    reached = program.times[0]
    for stage in program.stages:
        new = [m for m, _ in stage.noises if m not in drawn]
        below = stage.t < reached and not same_time(stage.t, reached, CLOSEST)
        if len(new) > 1 or (new and not below):
            raise ValueError(
                f"noise_sampler= gives noise between two levels on the way down, and {program.name} draws noise at "
                f"levels that it has reached already: leave it out, and give seed="
            )

        if new:
            found.append((reached, stage.t))
            drawn.update(new)
        if new or stage.node:
            reached = stage.t
    return iter(found)
