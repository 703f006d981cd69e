r"""Test beds as the networks of users are: what a solver's error is measured on.

    python -m benchmarks.beds                 # the list, with how well each reference is known
    python -m benchmarks.beds references      # all references into benchmarks/beds/, those that changed computed anew

A bed is a score on a process, a batch of noises, and the state to which the exact probability flow of that very score
takes them. Three families:

- `exact`: exact scores of mixtures and of points;
- `rough`: exact scores whose noise estimate is off, as a trained network's is. `sin`: by $a \sin(w\,\ell)$ with the
  log-SNR $\ell$. `table`: by 5 % noise, fixed for each of 1000 entries, which is what a network that looks its timestep
  up has. `bias`: by a fixed direction near pure noise, $b\,e^{-10 \alpha/\sqrt{\alpha^2 + \sigma^2}}$;
- `network`: trained networks, those that ship with the package and those of `bed_networks.py`: with class labels,
  guided (scale 3), and in bfloat16.

Half of the beds are for choosing (`half="choose"`), the other half are looked at for the final table only (`"report"`).
Both have every family, every kind of roughness and every process.

**The error.** From the noise z a run starts at sigma(t) z, t the first time of its grid, and ends in what a user gets:
the denoised estimate at the last time, which is one of the calls of the budget. The reference is the limit of that run
for infinitely many calls: the flow from `sde.T` to `sde.eps`, denoised there. The error is the root mean square of the
difference over samples and coordinates, divided by the standard deviation of the data.

**The reference** is RK4 in log-SNR on x / alpha in double precision, an integrator of its own, so that a fault of the
library does not hide. Its nodes are dense in log-SNR and in time, since what a network makes of its timestep is rough
near pure noise, and include every time at which a score jumps. `doubt` is its distance to the same with half as many
steps, in units of the error. References are stored with a hash of the bed's recipe; one whose recipe has changed is
computed again, and kept in out/beds.

    from benchmarks import beds
    for bed in beds.load(half="choose"):
        print(bed.name, beds.error(bed, "dpm++2m", nfe=10, grid="log-snr"))
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import bed_networks, command
from sgm_sde.engine.executor import PreDrawnNoise, Stages, prepare
from sgm_sde.engine.program import Program
from sgm_sde.sampling.planning import plan
from sgm_sde.scores.model import BoundScore
from sgm_sde.testing import default_oracle
from sgm_sde.zoo.shipped import digits_score, fashion_score

HERE = Path(__file__).parent / "beds"
CACHE = HERE.parents[1] / "out" / "beds"
BUDGETS = (4, 5, 6, 8, 10, 12, 16, 20, 35, 50)
HALVES = ("choose", "report")
FAMILIES = ("exact", "rough", "network")
F64 = torch.float64

PROCESSES: dict[str, Callable[[], sg.LinearSDE]] = {
    "vp": sg.VPSDE,
    "ddpm": sg.presets.ddpm,
    "capped": sg.presets.iddpm_cosine,  # betas at most 0.999: log-SNR(T) = -19.8
    "cosine": sg.presets.cosine,
    "flow": sg.RectifiedFlowSDE,
    "edm": sg.EDMSDE,
    "ve": sg.VESDE,
}


# ----------------------------------------------------------------------------------------------------------------- list


@dataclass(frozen=True)
class Recipe:
    """What fixes a bed.

    Attributes:
        half: "choose" or "report"; no part of the hash.
        family: "exact", "rough" or "network".
        process: a key of `PROCESSES`.
        source: a key of `DATA`, or a network's name.
        rough: kind of roughness and its numbers.
        mode: of a network: "labels", "guided", "bfloat16" or "plain".
    """

    half: str
    family: str
    process: str
    source: str
    rough: tuple[Any, ...] = ()
    mode: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        rough = "-".join(map(str, self.rough))
        return "/".join(filter(None, [self.family, rough, self.source, self.mode, self.process]))

    def hash(self, *more: str) -> str:
        """Of the recipe and of whatever else its reference depends on."""
        text = repr([self.name, REFERENCE, VERSION, *more])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _list() -> list[Recipe]:
    """All beds. Names of data and networks: see `DATA` and `NETWORKS`."""
    found: list[Recipe] = []

    def add(half: str, family: str, process: str, source: str, *rough: Any, mode: str = "") -> None:
        found.append(Recipe(half, family, process, source, rough, mode))

    # Exact scores. The data go round: each half has every process and every kind of data.
    exact = {
        "vp": ("points", "mixture-2"),
        "ddpm": ("mixture-64", "points"),
        "capped": ("mixture-2", "mixture-64"),
        "cosine": ("points", "mixture-1"),
        "flow": ("mixture-768", "mixture-2"),
        "edm": ("mixture-2", "points"),
        "ve": ("mixture-1", "mixture-768"),
    }
    for process, sources in exact.items():
        for half, source in zip(HALVES, sources, strict=True):
            add(half, "exact", process, source)

    # a sin(w l): all nine pairs (a, w) in each half, two of them on each process.
    amplitudes, frequencies = (0.003, 0.01, 0.03), (1, 3, 8)
    pairs = [(a, w) for w in frequencies for a in amplitudes]
    # The published example is 0.01 sin(3 l) on these three: for choosing.
    pairs_of = {
        "choose": {"vp": (4, 8), "ddpm": (4, 2), "flow": (4, 6),
                   "capped": (0, 5), "cosine": (1, 7), "edm": (3, 8), "ve": (4, 2)},
        "report": {"vp": (1, 5), "ddpm": (7, 0), "flow": (5, 2),
                   "capped": (3, 8), "cosine": (4, 6), "edm": (1, 5), "ve": (7, 3)},
    }  # fmt: skip
    sources = ("mixture-2", "points", "mixture-2", "mixture-64", "mixture-1", "points", "mixture-768")
    for half, shift in (("choose", 0), ("report", 3)):
        for i, (process, indices) in enumerate(pairs_of[half].items()):
            for j, k in enumerate(indices):
                source = "mixture-2" if pairs[k] == (0.01, 3) else sources[(2 * i + j + shift) % len(sources)]
                add(half, "rough", process, source, "sin", *pairs[k])

    # A fixed error of 5 % for each of 1000 entries.
    for half, table in (
        ("choose", {"ddpm": "mixture-64", "capped": "points", "vp": "mixture-2", "flow": "points"}),
        ("report", {"ddpm": "points", "capped": "mixture-64", "vp": "points", "flow": "mixture-2"}),
    ):
        for process, source in table.items():
            add(half, "rough", process, source, "table", 0.05)

    # A bias near pure noise.
    biased = ("mixture-64", "points", "mixture-2", "mixture-768", "points", "mixture-2", "mixture-1")
    for half, size, shift in (("choose", 0.08, 0), ("report", 0.05, 4)):
        for i, process in enumerate(PROCESSES):
            add(half, "rough", process, biased[(i + shift) % len(biased)], "bias", size)

    # Networks; which of two trainings (0 or 1) goes to which half goes round as well.
    networks = {
        "choose": {
            "digits-linear-0 ddpm": "labels guided", "digits-capped-1 capped": "labels bfloat16",
            "digits-lookup-0 ddpm": "labels", "digits-v-1 cosine": "labels", "digits-flow-0 flow": "labels guided",
            "moons-vp-1 vp": "plain", "moons-ve-0 ve": "plain", "moons-flow-1 flow": "plain", "digits edm": "labels",
            "digits vp": "guided", "fashion vp": "labels",
        },
        "report": {
            "digits-linear-1 ddpm": "labels bfloat16", "digits-capped-0 capped": "labels guided",
            "digits-lookup-1 ddpm": "labels", "digits-v-0 cosine": "labels guided",
            "digits-flow-1 flow": "labels bfloat16", "moons-vp-0 vp": "plain", "moons-ve-1 ve": "plain",
            "moons-flow-0 flow": "plain", "digits vp": "labels", "digits edm": "guided", "fashion edm": "labels",
        },
    }  # fmt: skip
    for half, entries in networks.items():
        for names, modes in entries.items():
            source, process = names.split()
            for mode in modes.split():
                add(half, "network", process, source, mode=mode)
    return found


# ----------------------------------------------------------------------------------------------------------------- data


class Data:
    """Data whose denoiser is known.

    Attributes:
        n: how many noises its beds have; where a sample of few dimensions ends is decided late, so there are more.
        shape: of one sample.
        std: standard deviation around the mean, over coordinates.
    """

    def __init__(self, n: int, shape: Sequence[int], std: float) -> None:
        self.n, self.shape, self.std = n, tuple(shape), std

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The data expected at x (B, *) with kernel coefficients (B,)."""
        raise NotImplementedError


class Mixture(Data):
    """A mixture of Gaussians with diagonal covariances: `sg.oracles.GaussianMixture`, by matrix products."""

    def __init__(self, n: int, oracle: sg.oracles.GaussianMixture) -> None:
        self.weights, self.means = oracle.weights, oracle.means
        self.variances = oracle.variances.expand_as(oracle.means)
        mean = self.weights @ self.means
        variances = self.weights @ (self.variances + (self.means - mean).square())
        super().__init__(n, oracle.event_shape, float(variances.mean().sqrt()))

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The data expected at x (B, *) with kernel coefficients (B,); fast where a bed's samples share theirs."""
        kernel = torch.stack([alpha, sigma])
        shared = kernel.reshape(2, -1, self.n if len(alpha) % self.n == 0 else 1)
        if (shared != shared[..., :1]).any():
            shared = kernel[..., None]
        a, s = shared[..., :1, None].unbind(0)
        groups = len(a)
        y = x.reshape(groups, -1, self.means.shape[1])

        marginal = a.square() * self.variances + s.square()  # (groups, K, d)
        inverse = marginal.reciprocal()
        scaled = a * self.means * inverse
        constant = (scaled * a * self.means + marginal.log()).sum(2) / 2 - self.weights.log()
        log_p = y @ scaled.mT - y.square() @ inverse.mT / 2 - constant[:, None]
        p = log_p.softmax(2)

        gain = a * self.variances * inverse  # of the residual x - alpha m
        mean = p @ (self.means * (1 - a * gain)) + y * (p @ gain)
        return mean.reshape(x.shape)


class Points(Data):
    """Equal Gaussians on many points: `sg.oracles.Empirical`, by matrix products."""

    def __init__(self, n: int, points: Tensor, bandwidth: float) -> None:
        super().__init__(n, points.shape[1:], math.hypot(spread(points), bandwidth))
        self.points, self.variance = points.to(F64).flatten(1), bandwidth**2
        self.halves = self.points.square().sum(1) / 2

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The data expected at x (B, *) with kernel coefficients (B,)."""
        y, s2 = x.flatten(1) / alpha[:, None], (sigma / alpha)[:, None].square()
        mean = ((y @ self.points.T - self.halves) / (s2 + self.variance)).softmax(1) @ self.points
        return (mean + self.variance / (s2 + self.variance) * (y - mean)).reshape(x.shape)


def spread(data: Tensor) -> float:
    """Standard deviation of data (N, *) around its mean."""
    return float((data - data.mean(0)).square().mean().sqrt())


def _mixture(n: int, components: int, shape: Sequence[int], scale: float, least: float, greatest: float) -> Mixture:
    """Components of random means, their standard deviations spread evenly in the logarithm."""
    generator = torch.Generator().manual_seed(0)
    means = scale * torch.randn(components, *shape, generator=generator, dtype=F64)
    stds = least * (greatest / least) ** torch.rand(means.shape, generator=generator, dtype=F64)
    return Mixture(n, sg.oracles.GaussianMixture(means, stds))


def _given(kind: str) -> sg.oracles.GaussianMixture:
    """One of the mixtures that orders are measured on."""
    oracle = default_oracle(kind)
    assert isinstance(oracle, sg.oracles.GaussianMixture)
    return oracle


def _digits_points() -> Points:
    from sgm_sde.nn.digits import digits_data

    digits = torch.cat([digits_data("train")[0], digits_data("held_out")[0]])
    return Points(32, digits[::8], 0.15)


DATA: dict[str, Callable[[], Data]] = {
    "mixture-1": lambda: Mixture(128, _given("scalar")),
    "mixture-2": lambda: Mixture(128, _given("mixture")),
    "mixture-64": lambda: _mixture(32, 10, (64,), 0.5, 0.05, 1.0),
    "mixture-768": lambda: _mixture(8, 6, (3, 16, 16), 0.5, 0.1, 0.6),
    "points": _digits_points,
}


@cache
def data(name: str) -> Data:
    """The data of that name."""
    return DATA[name]()


# ----------------------------------------------------------------------------------------------------------------- beds


@dataclass(eq=False)
class Bed:
    """A score, noises and how far a run may be from where they belong.

    Attributes:
        recipe: what fixes it.
        sde: the process.
        score: the score on it.
        shape: (B, *).
        data_std: standard deviation of the data, in which errors are measured.
        dtype: of the states: float64 for oracles, float32 for networks.
        model_kwargs: what the network is called with.
        jumps: times at which the score jumps.
        steps: of the reference, evenly spread in log-SNR, and evenly spread in time.
        weights: a hash of the network's, "" for an oracle.
    """

    recipe: Recipe
    sde: Any
    score: sg.Score
    shape: tuple[int, ...]
    data_std: float
    dtype: torch.dtype = F64
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    jumps: tuple[float, ...] = ()
    steps: tuple[int, int] = (500, 0)
    weights: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.recipe.name

    @property
    def family(self) -> str:
        """ "exact", "rough" or "network"."""
        return self.recipe.family

    @property
    def process(self) -> str:
        """Key of `PROCESSES`."""
        return self.recipe.process

    @property
    def half(self) -> str:
        """ "choose" or "report"."""
        return self.recipe.half

    @property
    def hash(self) -> str:
        """Of all that the reference depends on."""
        return self.recipe.hash(repr((self.shape, str(self.dtype), self.steps)), self.weights)

    @cached_property
    def noise(self) -> Tensor:
        """Standard normal noise z (B, *): a run that starts at t starts from sigma(t) z."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(0)).to(self.dtype)

    @cached_property
    def reference(self) -> Reference:
        """Where the exact flow takes the noises."""
        return reference(self)

    def __repr__(self) -> str:
        return f"Bed({self.name}, {self.half})"


def _oracle_bed(recipe: Recipe) -> Bed:
    """A bed without a network."""
    sde: Any = PROCESSES[recipe.process]()
    of = data(recipe.source)

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        return of.denoised(x, sde.alpha(t).to(x.dtype), sde.sigma(t).to(x.dtype))

    shape = (of.n, *of.shape)
    if not recipe.rough:
        return Bed(recipe, sde, sg.from_denoiser(denoised, sde, bare=False), shape, of.std)
    kind, *numbers = recipe.rough
    off, jumps = {"sin": _wave, "table": _table, "bias": _bias}[kind](sde, of.shape, *numbers)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        column = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (k(t).to(x.dtype).reshape(column) for k in (sde.alpha, sde.sigma))
        return (x - alpha * denoised(x, t)) / sigma + off(t).to(x.dtype)

    steps = (200, 0) if jumps else (500, 0)  # there is a node at each jump besides
    return Bed(recipe, sde, sg.from_noise(noise, sde), shape, of.std, jumps=jumps, steps=steps)


Off = Callable[[Tensor], Tensor]  # from times (B,) to what the noise estimate is off by, (B, *) or (B, 1, ...)


def _wave(sde: Any, shape: tuple[int, ...], a: float, w: float) -> tuple[Off, tuple[float, ...]]:
    """A wave in log-SNR, the same in all coordinates."""
    column = (-1, *[1] * len(shape))
    return lambda t: a * (w * sde.log_snr(t)).sin().reshape(column), ()


def _table(sde: Any, shape: tuple[int, ...], size: float, n: int = 1000) -> tuple[Off, tuple[float, ...]]:
    """Normal numbers, fixed for each entry of a table of n evenly spread times."""
    rows = size * torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    return lambda t: rows[(n * t / sde.T - 1).round().long().clamp(0, n - 1)], table_jumps(sde, n)


def table_jumps(sde: Any, n: int = 1000) -> tuple[float, ...]:
    """Where the nearest entry of a table of n evenly spread times changes."""
    return tuple(sde.T * (i + 1.5) / n for i in range(n - 1))


def _bias(sde: Any, shape: tuple[int, ...], size: float) -> tuple[Off, tuple[float, ...]]:
    """A fixed direction, where next to no signal is left."""
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    direction /= direction.square().mean().sqrt()
    column = (-1, *[1] * len(shape))

    def off(t: Tensor) -> Tensor:
        signal = sde.log_snr(t).sigmoid().sqrt()
        return size * (-10 * signal).exp().reshape(column) * direction

    return off, ()


def load(half: str | None = None, family: str | None = None, names: str | None = None) -> list[Bed]:
    """The beds of a half and family, all if not given; those whose name contains `names`."""
    for option, value, known in (("half", half, HALVES), ("family", family, FAMILIES)):
        if value not in (None, *known):
            raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, got {value!r}")
    chosen = [r for r in RECIPES if half in (None, r.half) and family in (None, r.family) and (names or "") in r.name]
    return [bed(r.name) for r in chosen if r.family != "network" or _network_exists(r.source)]


@cache
def bed(name: str) -> Bed:
    """The bed of that name."""
    recipe = next((r for r in RECIPES if r.name == name), None)
    if recipe is None:
        raise ValueError(f"unknown bed {name!r}; `python -m benchmarks.beds` lists them")
    if recipe.family != "network":
        return _oracle_bed(recipe)
    return _network_bed(recipe)


SHIPPED = {"digits": digits_score, "fashion": fashion_score}
GUIDANCE = 3.0


def _network_exists(source: str) -> bool:
    return source in SHIPPED or bed_networks.exists(source)


def _network_bed(recipe: Recipe) -> Bed:
    """A bed of a trained network."""
    sde, source = PROCESSES[recipe.process](), recipe.source
    jumps: tuple[float, ...] = ()
    if source in SHIPPED:
        score = SHIPPED[source](sde)
        net: Any = score.net
        asset = resources.files("sgm_sde") / "zoo" / "assets" / f"{source}_denoiser.safetensors"
        weights, std = hashlib.sha256(asset.read_bytes()).hexdigest()[:16], float(net.sigma_data)
        shape, steps = ((16, 1, 8, 8) if source == "digits" else (2, 1, 28, 28)), (300, 0)
    else:
        net = bed_networks.trained(source)
        if recipe.mode == "bfloat16":
            net = bed_networks.in_bfloat16(net)
        score = bed_networks.score(source, net)
        weights, std = bed_networks.weights_hash(source), bed_networks.data_std(source)
        n = 8 if source.endswith("-0") else 16  # the networks of the first training take three times as long
        if source.startswith("moons"):
            shape, steps = (64, 2), (400, 400)
        elif "lookup" in source:
            shape, steps, jumps = (n, 1, 8, 8), (200, 0), table_jumps(sde)
        else:
            shape, steps = (n, 1, 8, 8), (150, 350)  # three indices a step
    kwargs = {} if recipe.mode == "plain" else {"y": torch.arange(shape[0]) % 10}
    if recipe.mode == "guided":
        score = sg.guidance.ClassifierFree(score, GUIDANCE, null={"y": bed_networks.CLASSES})
    return Bed(recipe, sde, score, shape, std, torch.float32, kwargs, jumps, steps, weights)


# ----------------------------------------------------------------------------------------------------------- references


VERSION = 1
REFERENCE = "RK4 in log-SNR on x / alpha, denoised at eps"


@dataclass(frozen=True)
class Reference:
    """Where the exact flow takes the noises of a bed, in double precision, and how well it is known."""

    x: Tensor
    doubt: float


def rk4(slope: Callable[[Tensor, int], Tensor], y: Tensor, h: float) -> Tensor:
    """One step of RK4, of length h, by the slope of a state at the step's start, middle and end (0, 1, 2)."""
    k1 = slope(y, 0)
    k2 = slope(y + h / 2 * k1, 1)
    k3 = slope(y + h / 2 * k2, 1)
    k4 = slope(y + h * k3, 2)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@torch.no_grad()
def flow(bed: Bed, steps: tuple[int, int]) -> Tensor:
    """The state at `sde.eps`, denoised: RK4 on y = x / alpha, dy/d(sigma/alpha) = noise, in log-SNR."""
    sde = bed.sde
    first, last = (float(sde.log_snr(torch.tensor(t, dtype=F64))) for t in (sde.T, sde.eps))
    levels = [torch.linspace(first, last, steps[0] + 1, dtype=F64)]
    if steps[1]:
        levels.append(sde.log_snr(torch.linspace(sde.T, sde.eps, steps[1] + 1, dtype=F64)[1:-1]))
    if bed.jumps:
        jumps = torch.tensor(bed.jumps, dtype=F64)
        levels.append(sde.log_snr(jumps[(jumps > sde.eps) & (jumps < sde.T)]))
    grid = torch.cat(levels).sort().values
    grid = grid[torch.cat([torch.ones(1, dtype=torch.bool), grid.diff() > 1e-9])]

    # Three evaluations a step that meet no node, where a score may jump.
    start, end = grid[:-1], grid[1:]
    inside = 1e-7 * (end - start)
    places = torch.stack([start + inside, (start + end) / 2, end - inside], 1)
    times, factors = sde.time(places), (-places / 2).exp()
    alphas = sde.alpha(times)

    y = bed.noise.to(F64) * float(sde.sigma(sde.T)) / float(sde.alpha(sde.T))
    for h, t, s, alpha in zip((end - start).tolist(), times.tolist(), factors.tolist(), alphas.tolist(), strict=True):

        def slope(y: Tensor, j: int, t: list[float] = t, s: list[float] = s, alpha: list[float] = alpha) -> Tensor:
            time = torch.full((len(y),), t[j], dtype=F64)
            noise = bed.score.predict("noise", alpha[j] * y, time, **bed.model_kwargs)
            return -s[j] / 2 * noise

        y = rk4(slope, y, h)
    time = torch.full((len(y),), sde.eps, dtype=F64)
    return bed.score.predict("data", float(sde.alpha(sde.eps)) * y, time, **bed.model_kwargs)


def solve_reference(bed: Bed) -> Reference:
    """The reference, computed."""
    exact = flow(bed, bed.steps)
    coarse = flow(bed, (bed.steps[0] // 2, bed.steps[1] // 2))
    return Reference(exact, float((exact - coarse).square().mean().sqrt()) / bed.data_std)


def reference(bed: Bed) -> Reference:
    """The reference, out of the repository's file or the cache, or computed and put into the cache."""
    index = _read_index()
    if index.get(bed.name, {}).get("hash") == bed.hash:
        with safetensors.safe_open(HERE / "references.safetensors", "pt") as file:
            return Reference(file.get_tensor(bed.name).to(F64), index[bed.name]["doubt"])
    cached = CACHE / "references" / f"{bed.hash}.safetensors"
    if not cached.exists():
        found = solve_reference(bed)
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        safetensors.torch.save_file({"x": found.x.contiguous()}, partial, {"doubt": f"{found.doubt:.3g}"})
        partial.replace(cached)
    with safetensors.safe_open(cached, "pt") as file:
        return Reference(file.get_tensor("x"), float(file.metadata()["doubt"]))


def _read_index() -> dict[str, Any]:
    file = HERE / "references.json"
    return json.loads(file.read_text()) if file.exists() else {}


def store_references(chosen: Sequence[Bed]) -> None:
    """Write the references of the beds into the repository's file, in single precision."""
    found = {bed.name: bed for bed in chosen}
    index = {
        name: {"hash": bed.hash, "doubt": float(f"{bed.reference.doubt:.3g}")} for name, bed in sorted(found.items())
    }
    tensors = {name: bed.reference.x.float().contiguous() for name, bed in sorted(found.items())}
    safetensors.torch.save_file(tensors, HERE / "references.safetensors")
    (HERE / "references.json").write_text(json.dumps(index, indent=1) + "\n")


# --------------------------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Error:
    """The error of a run, relative to the standard deviation of the data; infinite where it is not finite.

    Attributes:
        rmse: root mean square over samples and coordinates.
        median: median over samples of their root mean squares.
    """

    rmse: float
    median: float


@torch.no_grad()
def run(bed: Bed, solver: Any, nfe: int, grid: Any = None, **options: Any) -> Tensor:
    """What a user gets for a budget of calls, from the bed's noise at the first time of the grid.

    Args:
        bed: the bed.
        solver: what `sample(solver=...)` takes; None for the default.
        nfe: the budget, the final call within it.
        grid: what `sample(grid=...)` takes.
        options: `t_start`, `t_end`, `final`.
    """
    final = options.pop("final", "denoise")
    found, times, _ = plan(bed.sde, solver, nfe=nfe, grid=grid, final=final, **bed.score.traits, **options)
    x = float(bed.sde.sigma(times.times[0])) * bed.noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        res = sg.sample(
            bed.score, bed.sde, x_T=x, solver=found, grid=times, final=final, model_kwargs=bed.model_kwargs, seed=0
        )
    if res.nfe > nfe:
        raise AssertionError(f"{bed.name}: {solver} took {res.nfe} calls of {nfe}")
    return res.x


def errors(bed: Bed, solver: Any, nfe: int, grid: Any = None, **options: Any) -> Error:
    """The error of what a user gets; see `run`."""
    return compare(bed, run(bed, solver, nfe, grid, **options))


def error(bed: Bed, solver: Any, nfe: int, grid: Any = None, **options: Any) -> float:
    """The root-mean-square error of what a user gets; see `run`."""
    return errors(bed, solver, nfe, grid, **options).rmse


@torch.no_grad()
def errors_of(bed: Bed, programs: Sequence[Program], rows: int = 1024) -> list[Error]:
    """The errors of many deterministic programs: at each stage they see the network together, `rows` rows at a time.

    Each starts at its first time, and is denoised at its last. The same numbers as `errors`, but for the rounding of a
    network at another batch size.
    """
    found: list[Error | None] = [None] * len(programs)
    n = len(bed.noise)
    share = max(1, rows // n)

    def start(program: Program) -> Stages:
        first, last = program.times[0], program.times[-1]
        model = BoundScore(bed.score, bed.sde, (last, first), bed.model_kwargs)
        x = float(bed.sde.sigma(first)) * bed.noise
        run = yield from prepare(program, x, model, PreDrawnNoise(())).stages()
        output = yield run.x, model.times([last], run.x)[0]
        return model.predict("data", run.x, last, output)  # type: ignore[return-value]

    loops = {i: start(program) for i, program in enumerate(programs)}
    asked = {i: next(loop) for i, loop in loops.items()}
    while asked:
        answers: dict[int, Tensor] = {}
        order = list(asked)
        for some in (order[k : k + share] for k in range(0, len(order), share)):
            x, t = (torch.cat([asked[i][j] for i in some]) for j in (0, 1))
            kwargs = {name: value.repeat(len(some)) for name, value in bed.model_kwargs.items()}
            answers |= zip(some, bed.score.output(x, t, **kwargs).split(n), strict=True)
        for i, output in answers.items():
            try:
                asked[i] = loops[i].send(output)
            except StopIteration as end:
                found[i] = compare(bed, end.value)
                del asked[i]
    return [e for e in found if e is not None]


def by_sample(bed: Bed, x: Tensor) -> Tensor:
    """The errors (B,) of the samples of an end state."""
    off = (x.to(F64) - bed.reference.x).flatten(1)
    return off.square().mean(1).sqrt() / bed.data_std


def compare(bed: Bed, x: Tensor) -> Error:
    """The error of an end state."""
    each = by_sample(bed, x)
    values = (float(each.square().mean().sqrt()), float(each.median()))
    return Error(*(value if math.isfinite(value) else math.inf for value in values))


RECIPES = tuple(_list())


def main(argv: Sequence[str] | None = None) -> None:
    """List the beds, or compute their references."""
    parser = command.parser(__doc__)
    parser.add_argument("what", nargs="?", choices=["list", "references"], default="list")
    args = command.begin(parser, argv)
    if args.what == "references":
        store_references(load())
    for half in HALVES:
        sys.stdout.write(f"{half}\n")
        for bed in load(half):
            sys.stdout.write(f"  {bed.name:45s} {bed.shape!s:18s} doubt {bed.reference.doubt:.1e}\n")


if __name__ == "__main__":
    main()
