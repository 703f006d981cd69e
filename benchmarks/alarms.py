"""Which runs `sample` says went wrong: none of those that did not, and every listed fault.

    python -m benchmarks.alarms --out out/alarms

Runs that are as they should be: exact scores of Gaussians and mixtures in 1, 2 and 64 dimensions at the scales 1e-3, 1
and 1e3, and the networks of digits and clothes, on every process, each with solvers of every kind at budgets at which
they are near their best. Runs guided at scales up to 10 are counted by themselves: few calls throw single samples of
these far out, and what is named is compared with a tight solution. Faults: networks taken for what they are not, and a
solver thrown far out by what a network says near pure noise. A run counts as found if any of its samples is named. Of a
last kind, runs that went wrong in ways that sizes tell of in part only, it is counted how many are found; and of all
deterministic solvers with few calls, how many of the samples that they throw far out. And of runs of the default on
data of small scales, what those err by whose samples are said to be averages; and of data far from the noise at T, how
many are told. Takes six minutes.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks import beds, command
from sgm_sde.sampling.diagnosis import scales_at_T
from sgm_sde.sampling.on_gaussians import misses_gaussians
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.resolution import UnresolvedWarning
from sgm_sde.sampling.start import PriorWarning

PROCESSES: dict[str, sg.LinearSDE] = {
    "VP": sg.VPSDE(),
    "sub-VP": sg.SubVPSDE(),
    "cosine": sg.CosineVPSDE(),
    "DDPM": sg.presets.ddpm(),
    "flow": sg.RectifiedFlowSDE(),
    "EDM": sg.EDMSDE(),
    "VE": sg.VESDE(),
}
SCALES = (1e-3, 1.0, 1e3)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"solver": "ipndm3", "grid": "log-snr", "nfe": 6},
    {"solver": "dpm++2m", "grid": "log-snr", "nfe": 12},
    {"solver": "unipc3", "grid": "log-snr", "nfe": 20},
    {"solver": "ddim", "grid": "log-snr", "nfe": 10},
    {"solver": "heun", "grid": "karras", "nfe": 21},
    {"solver": "sde-dpm++2m", "grid": "log-snr", "nfe": 30},
    {"solver": "ancestral", "grid": "log-snr", "nfe": 40},
    {"solver": "dopri5"},
    {"nfe": 8},
    {"nfe": 20},
    {"nfe": 50},
)


@dataclass
class Case:
    """A run: its name, the score, the process, the shape and what else `sample` is given."""

    name: str
    score: Callable[..., Tensor]
    sde: sg.SDE
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> sg.SampleResult:
        """The run, without its warnings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape = None if "x_T" in self.options else self.shape
            return sg.sample(self.score, self.sde, shape, seed=0, **self.options)

    def samples_named(self) -> int:
        """How many samples the status names, other than for a density that is not known."""
        result = self.run()
        found = result.log_prob
        of_density = found is not None and result.status == found.status
        return 0 if of_density else len(result.status.samples)


def data(scale: float) -> dict[str, tuple[Any, int]]:
    """Laws whose scores are known: names, and their dimensions."""
    modes = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    far, flat = torch.tensor([[-5.0], [0.0], [5.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]])
    return {
        "Gaussian": (sg.oracles.Gaussian(torch.tensor([0.3 * scale]), (0.5 * scale) ** 2), 1),
        "far modes": (sg.oracles.GaussianMixture(far * scale, 0.01 * scale), 1),
        "three modes": (sg.oracles.GaussianMixture(flat * scale, 0.2 * scale), 2),
        "ten modes": (sg.oracles.GaussianMixture(modes * scale, 0.3 * scale), 64),
    }


def right_runs(scales: tuple[float, ...] = SCALES, n: int = 64) -> Iterator[Case]:
    """Runs in which nothing is wrong."""
    for scale, (process, sde) in itertools.product(scales, PROCESSES.items()):
        for (law, (oracle, d)), options in itertools.product(data(scale).items(), SETTINGS):
            name = f"{law} x {scale:g}, {process}, {options.get('solver', 'default')}"
            yield Case(name, oracle.score(sde), sde, (n, d), dict(options))


def network_runs(n: int = 8) -> Iterator[Case]:
    """The same of the networks that ship."""
    for name in ("digits", "fashion"):
        model = sg.load_model(name)
        labels = {"model_kwargs": {"y": torch.arange(n) % 10}}
        settings = SETTINGS if name == "digits" else SETTINGS[1:2]
        for options in settings:
            shape = (n, *model.shape)
            yield Case(f"{name}, {options.get('solver', 'default')}", model.score, model.sde, shape, options | labels)


CLD_SETTINGS: tuple[dict[str, Any], ...] = (
    {"nfe": 20},
    {"nfe": 50},
    {"solver": sg.schemes.GDDIM(3), "nfe": 20},
    {"solver": sg.schemes.SSCS(), "nfe": 100},
    {"solver": "euler-maruyama", "nfe": 400},
    {"solver": "rk4", "nfe": 100},
    {"solver": "dopri5"},
)


def cld_runs(scales: tuple[float, ...] = SCALES, n: int = 64) -> Iterator[Case]:
    """Runs on CLD, with exact scores."""
    sde = sg.CLD()
    for scale, options in itertools.product(scales, CLD_SETTINGS):
        for law, (oracle, d) in data(scale).items():
            solver = options.get("solver", "default")
            name = f"{law} x {scale:g}, CLD, {getattr(solver, 'name', solver)} on CLD"
            yield Case(name, oracle.score(sde), sde, (n, 2, d), dict(options))


BELOW_NOISE = (1e-3, 1.0, 30.0)  # scales of data less than the noise at T: two points are far from each other
TOKEN_SETTINGS: tuple[tuple[str | None, int], ...] = (
    (None, 12), (None, 20), ("ddim", 10), ("dpm++2m", 10), ("ancestral", 40), ("heun", 20),
)  # fmt: skip


def of_tokens(scale: float, sde: sg.LinearSDE) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact score of independent tokens, each of two points near its own mean, at a time for each."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (k(t).to(x) for k in (sde.alpha, sde.sigma))
        alpha, sigma = (k if k.ndim == x.ndim else k[:, None, None] for k in (alpha, sigma))
        mean = scale * torch.arange(x.shape[1])[:, None] / 4
        variance = alpha**2 * (0.1 * scale) ** 2 + sigma**2
        side = (alpha * scale * (x - alpha * mean) / variance).tanh()  # of the two points
        return -(x - alpha * (mean + scale * side)) / variance

    return score


def token_runs(scales: tuple[float, ...] = BELOW_NOISE, n: int = 64) -> Iterator[Case]:
    """Runs with times for each of four tokens, one number or sixteen each, together, by stages and one by one."""
    for scale, (process, sde) in itertools.product(scales, PROCESSES.items()):
        for (solver, steps), late, d in itertools.product(TOKEN_SETTINGS, (0, 1, 40), (1, 16)):
            if solver is None and scale != 1:  # which takes data for about unit scale
                continue
            times = sg.grids.rule("log-snr")(sde, steps)
            delay = min(late, steps)
            grid = sg.grids.TokenGrid.staggered(times, torch.arange(4)[:, None] * delay)
            name = f"tokens of {d} x {scale:g}, {delay} apart, {process}, {solver or 'default'} on tokens"
            yield Case(name, of_tokens(scale, sde), sde, (n, 4, d), {"solver": solver, "grid": grid})


LOG_PROB_SETTINGS: tuple[dict[str, Any], ...] = (
    {"nfe": 30},
    {"nfe": 50},
    {"solver": "dpm++2m", "grid": "log-snr", "nfe": 30},
    {"solver": "heun", "grid": "karras", "nfe": 31},
)


def log_prob_runs(scales: tuple[float, ...] = SCALES, n: int = 16) -> Iterator[Case]:
    """Runs that find the samples' log-density on the way."""
    for scale, (process, sde) in itertools.product(scales, PROCESSES.items()):
        for (law, (oracle, d)), options in itertools.product(data(scale).items(), LOG_PROB_SETTINGS):
            name = f"{law} x {scale:g}, {process}, {options.get('solver', 'default')} with log_prob"
            yield Case(name, oracle.score(sde), sde, (n, d), options | {"log_prob": "exact"})


STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "half the temperature": lambda z: z / 2,
    "twice the temperature": lambda z: 2 * z,
    "the mean of two": lambda z: (z + z.flip(0)) / 2,
    "half the numbers 0": lambda z: torch.cat([z[:, :32], 0 * z[:, 32:]], 1),
    "zeros": lambda z: 0 * z,
}


def runs_from_given_states(n: int = 16) -> Iterator[Case]:
    """Runs from states that the caller gives, of the prior's size more or less, or noised data."""
    for scale, (process, sde) in itertools.product((1.0, 1e3), PROCESSES.items()):
        oracle, d = data(scale)["ten modes"]
        noise = torch.randn(n, d, generator=torch.Generator().manual_seed(4))
        starts = {name: sde.prior_std * start(noise) for name, start in STARTS.items()}
        starts["noised data"] = float(sde.alpha(sde.T)) * oracle.sample(n, seed=5) + float(sde.sigma(sde.T)) * noise
        for (start, x_T), solver in itertools.product(starts.items(), ("default", "dpm++2m", "dopri5")):
            run: dict[str, Any] = {"x_T": x_T, "solver": None if solver == "default" else solver}
            run |= {} if solver == "dopri5" else {"nfe": 20}
            yield Case(f"{start} x {scale:g}, {process}, {solver} from x_T", oracle.score(sde), sde, (n, d), run)


GUIDED_SETTINGS: tuple[dict[str, Any], ...] = (
    {"solver": "ddim", "grid": "log-snr", "nfe": 10},
    {"solver": "dpm++2m", "grid": "log-snr", "nfe": 20},
    {"nfe": 8},
    {"nfe": 20},
)


TIGHT: dict[str, Any] = {"solver": "dpm++3m", "grid": "log-snr", "nfe": 400}


def guided_runs(n: int = 32) -> Iterator[Case]:
    """Runs guided towards one of four classes of modes, at scales from 1 to 10, and the network of digits."""
    for (process, sde), d, scale in itertools.product(PROCESSES.items(), (2, 64), (1.0, 3.0, 7.5, 10.0)):
        modes = torch.randn(4, 2, d, generator=torch.Generator().manual_seed(3))
        laws = [sg.oracles.GaussianMixture(of, 0.3) for of in (*modes, modes.flatten(0, 1))]
        guided = sg.guidance.ClassifierFree(one_of(laws, sde), scale, {"y": torch.tensor(len(modes))})
        labels = {"model_kwargs": {"y": torch.arange(n) % len(modes)}}
        for options in GUIDED_SETTINGS:
            name = f"guided {scale:g} times in {d} dimensions, {process}, {options.get('solver', 'default')}"
            yield Case(name, guided, sde, (n, d), options | labels)

    model = sg.load_model("digits")
    for scale, options in itertools.product((3.0, 7.5, 10.0), GUIDED_SETTINGS):
        guided = sg.guidance.ClassifierFree(model.score, scale, {"y": torch.tensor(10)})
        labels = {"model_kwargs": {"y": torch.arange(n) % 10}}
        name = f"guided {scale:g} times on digits, {options.get('solver', 'default')}"
        yield Case(name, guided, model.sde, (n, *model.shape), options | labels)


def one_of(laws: Sequence[sg.oracles.GaussianMixture], sde: sg.LinearSDE) -> sg.Score:
    """The exact noise of that of several laws which y names."""
    scores = [sg.from_score(law.score(sde), sde) for law in laws]

    def noise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        noises = torch.stack([score.predict("noise", x, t) for score in scores])
        return noises[y, torch.arange(len(x))]

    return sg.from_noise(noise, sde)


def faults(n: int = 32) -> Iterator[Case]:
    """Runs that went wrong."""
    laws = {name: law for name, law in data(1.0).items() if name != "far modes"}
    for (law, (oracle, d)), (process, sde) in itertools.product(laws.items(), PROCESSES.items()):
        score = oracle.score(sde)
        predicting = sg.from_score(score, sde)

        def noise(x: Tensor, t: Tensor, score: Any = score, sde: Any = sde) -> Tensor:
            return -sde.sigma(t).to(x)[:, None] * score(x, t)

        def denoised(x: Tensor, t: Tensor, score: Any = predicting) -> Tensor:
            return score.predict("data", x, t)  # type: ignore[no-any-return]

        for solver, nfe in (("ipndm3", 20), ("euler-maruyama", 50)):
            run = {"solver": solver, "nfe": nfe}
            where = f"{law}, {process}, {solver}"
            yield Case(f"noise taken for a score: {where}", noise, sde, (n, d), run)
            yield Case(f"a denoiser taken for noise: {where}", sg.from_noise(denoised, sde), sde, (n, d), run)
    oracle, d = laws["ten modes"]
    for process, sde in PROCESSES.items():
        score = oracle.score(sde)

        def unit_noise(x: Tensor, t: Tensor, score: Any = score, d: int = d) -> Tensor:
            return -nn.functional.normalize(score(x, t), dim=1) * d**0.5

        name = f"noise of unit size taken for a score: ten modes, {process}"
        yield Case(name, unit_noise, sde, (n, d), {"solver": "ipndm3", "nfe": 20})
    for scale in SCALES[:2]:
        oracle, d = data(scale)["ten modes"]
        sde = PROCESSES["flow"]
        score = sg.from_score(oracle.score(sde), sde)
        for solver, nfe in ((None, 20), ("ipndm3", 20), ("euler-maruyama", 50)):
            run = {"solver": solver, "nfe": nfe}
            name = f"a flow in the wrong direction: ten modes x {scale:g}, {solver or 'default'}"
            yield Case(name, reversed_flow(score, sde), sde, (n, d), run)
    oracle, d = laws["ten modes"]
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(4))
    for (process, sde), solver in itertools.product(PROCESSES.items(), (None, "dpm++2m", "dopri5")):
        wide = sde.prior_std > 10
        run = {"x_T": noise if wide else 80 * noise, "solver": solver} | ({} if solver == "dopri5" else {"nfe": 20})
        what = "unit noise in the place of the prior's" if wide else "noise of the size 80 in the place of the prior's"
        yield Case(f"{what}: ten modes, {process}, {solver or 'default'}", oracle.score(sde), sde, (n, d), run)
    yield from other_faults(n)
    model = sg.load_model("digits")
    net, options = model.score.net, {"time_label": model.score.time_label}
    labels = {"model_kwargs": {"y": torch.arange(n) % 10}}
    for what, wrong in (("noise", sg.from_noise), ("a score", sg.from_score)):
        for solver, nfe in (("ipndm3", 20), ("heun", 35), ("euler-maruyama", 50)):
            name = f"a denoiser taken for {what}: digits, {solver}"
            run = {"solver": solver, "nfe": nfe} | labels
            yield Case(name, wrong(net, model.sde, **options), model.sde, (n, *model.shape), run)

    capped = sg.presets.iddpm_cosine()
    for (law, (oracle, d)), nfe in itertools.product(laws.items(), (8, 20)):
        direction = torch.randn(d, generator=torch.Generator().manual_seed(2)).sign()
        score = sg.from_noise(biased(oracle.score(capped), capped, direction), capped)
        yield Case(
            f"a bias near pure noise: {law}, capped table, ddim", score, capped, (n, d), {"solver": "ddim", "nfe": nfe}
        )


def other_faults(n: int = 32) -> Iterator[Case]:
    """The noise taken for the score on CLD, in runs with times for each token, and in those with their density."""
    cld = sg.CLD()
    laws = {name: law for name, law in data(1.0).items() if name != "far modes"}
    for (law, (oracle, d)), options in itertools.product(laws.items(), CLD_SETTINGS):
        exact = sg.from_score(oracle.score(cld), cld)

        def of_blocks(z: Tensor, t: Tensor, exact: Any = exact) -> Tensor:
            return exact.predict("noise", z, t)  # type: ignore[no-any-return]

        yield Case(f"noise taken for a score on CLD: {law}, {options}", of_blocks, cld, (n, 2, d), dict(options))

    for process, sde in PROCESSES.items():
        exact_score = of_tokens(1.0, sde)

        def noise(x: Tensor, t: Tensor, score: Any = exact_score, sde: Any = sde) -> Tensor:
            sigma = sde.sigma(t).to(x)
            return -(sigma if t.ndim == x.ndim else sigma[:, None, None]) * score(x, t)

        for (solver, steps), late in itertools.product(TOKEN_SETTINGS, (0, 1, 40)):
            times = sg.grids.rule("log-snr")(sde, steps)
            grid = sg.grids.TokenGrid.staggered(times, torch.arange(4)[:, None] * min(late, steps))
            name = f"noise taken for a score on tokens: {process}, {solver or 'default'}, {late} apart"
            yield Case(name, noise, sde, (n, 4, 16), {"solver": solver, "grid": grid})

        for options in LOG_PROB_SETTINGS:
            name = f"noise taken for a score, with log_prob: {process}, {options.get('solver', 'default')}"
            yield Case(name, noise, sde, (n, 4, 4), options | {"log_prob": "exact"})


def reversed_flow(score: sg.Score, sde: sg.LinearSDE) -> sg.Score:
    """A flow from noise to data, taken for one from data to noise."""

    def flow(x: Tensor, t: Tensor) -> Tensor:
        return -score.predict("flow", x, t)

    return sg.from_flow(flow, sde)


def biased(score: Callable[..., Tensor], sde: sg.LinearSDE, direction: Tensor) -> Callable[..., Tensor]:
    """The noise that a score says, off by 8 % where next to no signal is left."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (k(t).to(x)[:, None] for k in (sde.alpha, sde.sigma))
        return -sigma * score(x, t) + 0.08 * (-10 * alpha).exp() * direction

    return noise


UNSTABLE: dict[str, tuple[Any, int]] = {
    "sde-dpm2m-published at 8 calls": ("sde-dpm2m-published", 8),
    "sde-dpm3m-published at 12 calls": ("sde-dpm3m-published", 12),
    "seeds3-published at 13 calls": ("seeds3-published", 13),
    "Langevin by a sample's norm": (
        sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.5, norm="sample")),
        60,
    ),
    "annealed Langevin of large steps": (sg.schemes.AnnealedLangevin(step_ratio=3.9, n_steps=3), 60),
}


def hard_faults(n: int = 32) -> Iterator[Case]:
    """Runs that went wrong, some of which end as data of another scale would."""
    laws = {name: law for name, law in data(1.0).items() if name != "far modes"}
    for (law, (oracle, d)), (process, sde) in itertools.product(laws.items(), PROCESSES.items()):
        score = sg.from_score(oracle.score(sde), sde)
        for name, (solver, nfe) in UNSTABLE.items():
            yield Case(f"{name}: {law}, {process}", score, sde, (n, d), {"solver": solver, "nfe": nfe})

        def unit_noise(x: Tensor, t: Tensor, score: Any = score, d: int = d) -> Tensor:
            return nn.functional.normalize(score.predict("noise", x, t), dim=1) * d**0.5

        for solver, nfe in (("ipndm3", 20), ("euler-maruyama", 50)):
            run = {"solver": solver, "nfe": nfe}
            where = f"{law}, {process}, {solver}"
            if d < 16:
                yield Case(f"noise of unit size taken for a score: {where}", unit_noise, sde, (n, d), run)
            if d < 16 and process == "flow":
                name = f"a flow in the wrong direction, in 1 and 2 dimensions: {where}"
                yield Case(name, reversed_flow(score, sde), sde, (n, d), run)


def went_wrong(x: Tensor) -> bool:
    """True if samples are three times as large as the data, which have unit size or less, or not finite."""
    return not float(x.double().square().mean().sqrt()) <= 3.0


def partly(cases: Iterator[Case]) -> list[str]:
    """How many of those that went wrong are found, by kind."""
    total: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for case in cases:
        result = case.run()
        if went_wrong(result.x):
            kind = case.name.split(":")[0]
            total[kind] += 1
            found[kind] += not result.status.ok
    lines = ["| faults that sizes tell of in part: samples beyond three times the data's size | runs | found |"]
    lines += ["|---|--:|--:|", *(f"| {kind} | {total[kind]} | {found[kind]} |" for kind in total), ""]
    return lines


FEW_CALLS = (4, 8)
TOO_FEW = (4, 6, 8, 10, 12, 16, 20, 30, 50)


def sizes(x: Tensor) -> Tensor:
    """Root mean square (B,) of each sample."""
    return x.double().flatten(1).square().mean(1).sqrt()


def with_few_calls(bed: beds.Bed) -> Iterator[sg.SampleResult]:
    """Runs of all deterministic solvers that make a step with so few calls, on the noises of a bed."""
    deterministic = [solver for solver in sg.solvers().fixed.values() if not solver.stochastic]
    for nfe, solver in itertools.product(FEW_CALLS, deterministic):
        try:
            _, grid, _ = plan(bed.sde, solver, nfe=nfe)
        except ValueError:  # less than a step
            continue

        x_T = float(bed.sde.sigma(grid.times[0])) * bed.noise
        options = {"solver": solver, "nfe": nfe, "x_T": x_T, "model_kwargs": bed.model_kwargs}
        yield Case(bed.name, bed.score, bed.sde, (), options).run()


def few_calls(chosen: Sequence[beds.Bed]) -> list[str]:
    """Of runs with few calls on test beds: which are named, what these err by, and how many large samples are named.

    A sample is too large if it is ten times as large as both the exact one and the data.
    """
    errors_of_named = []
    runs = too_large = named = 0
    for bed in chosen:
        limit = 10 * sizes(bed.reference.x).clamp(min=bed.data_std)
        for result in with_few_calls(bed):
            large = sizes(result.x) > limit
            runs += 1
            too_large += int(large.sum())
            named += int(large[list(result.status.samples)].sum())
            if "Gaussian" in result.status.message:
                errors_of_named.append(float(beds.by_sample(bed, result.x).median()))

    return [
        f"| deterministic solvers with {' and '.join(map(str, FEW_CALLS))} calls on test beds | |",
        "|---|--:|",
        f"| runs | {runs} |",
        f"| named as they miss Gaussian data | {len(errors_of_named)} |",
        f"| least error of these, median over samples | {min(errors_of_named):.2g} |",
        f"| samples that end ten times too large | {too_large} |",
        f"| of which named | {named} |",
        "",
    ]


def report(title: str, cases: Iterator[Case], expected: bool) -> list[str]:
    """One line a kind, and one a run that is not as expected."""
    total: Counter[str] = Counter()
    found: Counter[str] = Counter()
    wrong = []
    for case in cases:
        kind = case.name.split(":")[0] if expected else case.name.rsplit(", ", 1)[1]
        total[kind] += 1
        named = case.samples_named()
        found[kind] += named > 0
        if (named > 0) is not expected:
            wrong.append(f"| {'missed' if expected else 'false alarm'}: {case.name} | 1 | {named} samples |")
    lines = [f"| {title} | runs | named |", "|---|--:|--:|"]
    lines += [f"| {kind} | {total[kind]} | {found[kind]} |" for kind in total]
    return [*lines, f"| all | {sum(total.values())} | {sum(found.values())} |", *wrong, ""]


def report_guided(cases: Iterator[Case]) -> list[str]:
    """Guided runs by scale: the samples named, and those of them that are off by less than half their size.

    At the largest scales few calls throw single samples out, which come back in another place. To name these is right.
    """
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        kind = case.name.split(", ")[0]
        count = counts.setdefault(kind, Counter())
        count["runs"] += 1
        result = case.run()
        named = list(result.status.samples)
        if not named:
            continue

        tight = Case("", case.score, case.sde, case.shape, TIGHT | {"model_kwargs": case.options["model_kwargs"]})
        exact = tight.run().x[named].flatten(1)
        off = result.x[named].flatten(1) - exact
        count["named"] += len(named)
        count["false"] += int((off.norm(dim=1) < exact.norm(dim=1) / 2).sum())
    lines = ["| guided | runs | samples named | of which off by less than half their size |", "|---|--:|--:|--:|"]
    return [*lines, *(f"| {kind} | {c['runs']} | {c['named']} | {c['false']} |" for kind, c in counts.items()), ""]


SMALL_SCALES = (1e-3, 5e-3, 0.02, 0.1, 0.2, 1.0)
CALLS_OF_THE_DEFAULT = (4, 5, 8, 12, 20, 35, 50)


def on_small_data(n: int = 64) -> list[str]:
    """Runs of the default on data of small scales: by whether its samples are said to be averages, what they err by.

    Where the process itself ends in more noise than the data vary by, its flow has lost them as well: of these runs it
    is the share of the data's standard deviation that is not there.
    """
    found: dict[str, list[float]] = {"said to average the data": [], "without a word": [], "said of the end, lost": []}
    for scale, (process, sde) in itertools.product(SMALL_SCALES, PROCESSES.items()):
        for law, (oracle, d) in data(scale).items():
            x_T = sde.prior_sample((n, d), seed=0)
            case = Case(f"{law} x {scale:g}, {process}", oracle.score(sde), sde, (), {"x_T": x_T})
            exact = replace(case, options={"x_T": x_T, "t_end": sde.eps} | TIGHT).run().x
            std = _std(exact)
            of_data = _std(oracle.sample(4096, seed=1))
            for nfe in CALLS_OF_THE_DEFAULT:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    x = sg.sample(case.score, sde, x_T=x_T, nfe=nfe).x
                error = float((x - exact).square().mean().sqrt() / std)
                said = [str(w.message) for w in caught if w.category is UnresolvedWarning]
                if not said:
                    found["without a word"].append(error)
                elif "at eps=" in said[0]:
                    found["said of the end, lost"].append(1 - float(_std(x) / of_data))
                else:
                    found["said to average the data"].append(error)

    return [
        "| the default on data of small scales | runs | least error | largest error |",
        "|---|--:|--:|--:|",
        *(f"| {name} | {len(each)} | {min(each):.2g} | {max(each):.2g} |" for name, each in found.items()),
        "",
    ]


def _std(x: Tensor) -> Tensor:
    """The standard deviation of all numbers of samples (n, d) together, each around its mean."""
    return x.std(0).square().mean().sqrt()


MEANS = (0.0, 1.0, 20.0, 100.0, 1e3, 1e4)
STDS = (1e-2, 1.0, 30.0, 1e3)


def beyond_the_noise(n: int = 64) -> list[str]:
    """Gaussian data of many places and scales: by whether they are said to be more than noise at T, how far the law of
    their samples is off; and right runs on data of the scales .001 and 1 that are told."""
    told, silent = [], []
    wide = {"Stable Diffusion": sg.DiscreteVPSDE(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), "CLD": sg.CLD()}
    for sde, mean, std in itertools.product((*PROCESSES.values(), *wide.values()), MEANS, STDS):
        on_cld = isinstance(sde, sg.CLD)
        shape = (n, 2, 2) if on_cld else (n, 2)
        options: dict[str, Any] = {"nfe": 30} if on_cld else {"solver": "dpm++2m", "grid": "log-snr", "nfe": 30}
        score = sg.oracles.Gaussian(torch.full((2,), mean), std**2).score(sde)
        signal, prior_std = scales_at_T(sde)
        shrunk = 1 / math.hypot(1, signal * std / prior_std)
        off = math.hypot(signal * mean / prior_std * shrunk, 1 - shrunk)
        (told if _is_told(Case("", score, sde, shape, options)) else silent).append(off)

    right = [case for case in itertools.chain(right_runs(SCALES[:2]), network_runs()) if not _is_slow(case)]
    lines = ["| data that are more than noise at T | runs | least error | largest error |", "|---|--:|--:|--:|"]
    named = (("told", told), ("without a word", silent))
    lines += [f"| {name} | {len(found)} | {min(found):.2g} | {max(found):.2g} |" for name, found in named]
    return [*lines, f"| of {len(right)} right runs, told | {sum(map(_is_told, right))} | | |", ""]


def _is_slow(case: Case) -> bool:
    """True for solvers that tell nothing more here."""
    return case.options.get("solver") not in (None, "dpm++2m", "ancestral", "dopri5")


def _is_told(case: Case) -> bool:
    """True if a run is said to start from less than its data are at T."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sg.sample(case.score, case.sde, case.shape, seed=0, **case.options)
    return any(w.category is PriorWarning for w in caught)


def too_few() -> list[str]:
    """By solver, the most calls of some budgets with which it misses Gaussian data on every process, and on any."""
    lines = ["| named as it misses Gaussian data | up to, on every process | up to, on any |", "|---|--:|--:|"]
    for name, solver in sg.solvers().fixed.items():
        on_every, on_any = 0, 0
        for nfe in () if solver.has_hooks or solver.lags else TOO_FEW:
            misses = [_misses(name, nfe, sde) for sde in PROCESSES.values()]
            on_every = nfe if all(misses) else on_every
            on_any = nfe if any(misses) else on_any
        if on_any:
            lines.append(f"| `{name}` | {on_every or '-'} | {on_any} |")
    return [*lines, ""]


def _misses(name: str, nfe: int, sde: sg.LinearSDE) -> bool:
    """True if the table of a solver misses Gaussian data; false if the budget is less than a step."""
    try:
        program = plan(sde, name, nfe=nfe)[2]
    except ValueError:
        return False
    assert program is not None
    return misses_gaussians(program, sde)


def main() -> None:
    """Run, print and write."""
    parser = command.parser(__doc__, out="out/alarms")
    args = command.begin(parser)
    right = itertools.chain(
        right_runs(), network_runs(), runs_from_given_states(), cld_runs(), token_runs(), log_prob_runs()
    )
    lines = report("runs as they should be, by solver", right, False)
    lines += report_guided(guided_runs())
    lines += report("faults", faults(), True)
    lines += partly(hard_faults())
    oracles = [bed for bed in beds.load("report") if bed.family != "network"]
    lines += few_calls(oracles)
    lines += too_few()
    lines += on_small_data()
    lines += beyond_the_noise()
    (args.out / "alarms.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
