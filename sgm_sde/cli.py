"""The command line: `sgm-sde`, also `python -m sgm_sde`."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sgm_sde import __version__
from sgm_sde._utils.checks import check_integer, described, usable_device
from sgm_sde._utils.elsewhere import CONDITIONS, GUIDANCE, SAMPLES, SOLVERS, STEPS, instead_of
from sgm_sde._utils.files import JsonMapping, JsonObject, folder_to_write
from sgm_sde.data.images import read_data
from sgm_sde.likelihood.dequantisation import DEQUANTISATIONS
from sgm_sde.likelihood.methods import METHODS
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.schemes import solvers
from sgm_sde.zoo.models import Model

if TYPE_CHECKING:
    from sgm_sde.processes.linear import LinearSDE
    from sgm_sde.sampling.defaults import Setting
    from sgm_sde.scores.score import Score


# Options by their names in other programs.
ELSEWHERE = {
    **instead_of(STEPS, "nfe"),
    **instead_of(SOLVERS, "solver"),
    **instead_of(GUIDANCE, "guidance"),
    **instead_of(CONDITIONS, "labels"),
    **instead_of((*SAMPLES, "num", "count"), "n"),
    **instead_of(("output", "output_dir", "outdir", "save", "save_dir", "path"), "out"),
    **instead_of(("batch_size", "max_batch_size"), "batch"),
    **instead_of(("network", "net", "checkpoint", "ckpt"), "model"),
}


@dataclass(frozen=True)
class Command:
    """A command: help text, options, and a function that returns the exit status."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Examples:
        >>> main(["solvers"])  # doctest: +ELLIPSIS
        name ...
        0
    """
    parser = argparse.ArgumentParser(prog="sgm-sde", description="Samplers for score-based generative models.")
    parser.add_argument("--version", action="version", version=f"sgm_sde {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.options(commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False))
    args = argparse.Namespace()
    try:
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            near = _near(unknown[0], vars(args))
            commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        with _warnings_as_lines():
            return COMMANDS[args.command].run(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.exit(2, f"sgm-sde: {_as_typed(str(error), args)}{_with_conditions(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, "sgm-sde: interrupted\n")


def _as_typed(message: str, args: argparse.Namespace) -> str:
    """An error of a function with its arguments as options of the command, where it names them.

    Examples:
        >>> _as_typed("nfe=5 and final='none' are too small", argparse.Namespace(nfe=5, final="none"))
        "--nfe=5 and --final='none' are too small"
        >>> _as_typed("time_limit must be positive, got time_limit", argparse.Namespace(time_limit=0.0))
        '--time-limit must be positive, got time_limit'
        >>> _as_typed("nfe[1] must be positive, and labels=None is not", argparse.Namespace(nfe=[5, 0], labels="none"))
        '--nfe must be positive, and --labels=none is not'
    """
    names = "|".join(vars(args)) or "(?!)"  # of none nothing

    def typed(found: re.Match[str]) -> str:
        name = (found[1] or found[2]).replace("_", "-")
        return f"--{name}" + ("=none" if found[3] else "")

    message = re.sub(rf"^({names})\b(?:\[\d+\])?|(?<![\w.-])({names})(?:(=None\b)|(?==))", typed, message)
    return message.replace("solvers() has", "`sgm-sde solvers` has")


def _near(option: str, known: Collection[str]) -> str:
    """The options that may be meant by one that a command does not have, as the end of an error message.

    Examples:
        >>> _near("--num_steps=10", ["nfe", "steps", "n"]), _near("--step", ["nfe", "steps"])
        ('; did you mean --nfe?', '; did you mean --steps?')
    """
    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    meant = ELSEWHERE.get(name)
    near = [meant] if meant in known else difflib.get_close_matches(name, known, n=2)
    shown = [f"{'-' if len(each) == 1 else '--'}{each.replace('_', '-')}" for each in near if each]
    return f"; did you mean {', '.join(shown)}?" if shown else ""


def _with_conditions(error: Exception) -> str:
    """The way to give a network the argument it lacks, as the end of its error message; empty for other errors."""
    of_network = any("called the network" in note for note in getattr(error, "__notes__", ()))
    if not of_network or not re.search(r"missing \d+ required", str(error)):
        return ""
    return (
        ": classes go to a network as y where the factory returns a models.Model(..., n_classes=...), and other "
        "conditions are fixed in it, by from_noise(lambda x, t: net(x, t, condition), sde)"
    )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings for people: each text once, on a line of its own, without the place in the code."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            sys.stderr.write(f"sgm-sde: warning: {message}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _solvers(args: argparse.Namespace) -> int:
    sys.stdout.write(f"{solvers()}\n")
    return 0


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", choices=("digits", "fashion"), default="digits", help="shipped network (%(default)s)"
    )
    parser.add_argument(
        "--out", type=folder_to_write, default=Path("sgm_sde_demo"), help="folder for the results (%(default)s)"
    )
    parser.add_argument("--n", type=int, help="samples for each entry (1000), or images of clothes (64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _demo(args: argparse.Namespace) -> int:
    import torch

    from sgm_sde.evaluation import demo

    if args.model == "fashion":
        text = demo.run_fashion(args.out, n=64 if args.n is None else args.n, seed=args.seed)
    else:
        torch.set_num_threads(1)  # the networks are tiny: more threads would spend their time waiting
        text = demo.run(args.out, n=1000 if args.n is None else args.n, seed=args.seed, progress=not args.quiet)
    sys.stdout.write(text + "\n")
    return 0


def _run_options(parser: argparse.ArgumentParser, seed: bool = True) -> None:
    """Options shared by `sample`, `likelihood` and `bench`."""
    parser.add_argument("--model", required=True, help="a shipped model, MODULE:FACTORY, or a diffusers folder")
    parser.add_argument(
        "--out", type=folder_to_write, required=True, help="folder for the results; a run there is resumed"
    )
    parser.add_argument("--batch", type=int, default=64, help="size of a batch (%(default)s)")
    if seed:
        parser.add_argument("--seed", type=int, default=0, help="seed (%(default)s)")
        parser.add_argument(
            "--part", type=_part, metavar="K/N", help="part K of N alone, from 0: 0/4 to 3/4; see merge"
        )
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="where to compute (cuda where there is one)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process on a CPU (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _part(text: str) -> tuple[int, int]:
    k, _, parts = text.partition("/")
    try:
        part = int(k), int(parts)
    except ValueError:
        part = 0, 0
    if not 0 <= part[0] < part[1]:
        raise argparse.ArgumentTypeError(f"a part is K/N with K from 0 to N - 1, such as 0/4, got {described(text)}")
    return part


def _merge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="folders with parts of one run")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder for the whole")


def _merge(args: argparse.Namespace) -> int:
    from sgm_sde.runs import distributed

    report = distributed.merge(args.folders, args.out)
    if report.result:
        sys.stdout.write(f"{report}\n")
        return 0
    sys.stdout.write(f"{report}; the run is not complete, and continues with its command and --out {args.out}\n")
    return 1


def _sample_options(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    parser.add_argument("-n", "--n", type=int, required=True, help="number of samples; -n under torchrun")
    parser.add_argument(
        "--solver",
        "--solvers",
        help="name of a solver, see `sgm-sde solvers`, or a file that calibrate made (by process and budget)",
    )

    parser.add_argument("--nfe", type=int, help="network calls per sample, never exceeded (50)")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --nfe")
    parser.add_argument("--grid", help="rule that places the steps (that of the solver or the process)")
    parser.add_argument("--final", choices=("denoise", "mean", "none"), help="what to return at the end (denoise)")

    parser.add_argument(
        "--labels", default="all", help="classes to take in turn, as 3 or 0,1,2; all; none (%(default)s)"
    )
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="scale of classifier-free guidance")

    parser.add_argument("--format", choices=("png", "npz"), help="write the samples as 8-bit images, too")
    parser.add_argument("--png", dest="format", action="store_const", const="png", help="the same as --format png")


def _sample(args: argparse.Namespace) -> int:
    from sgm_sde.calibration.result import at_budget, load_settings
    from sgm_sde.runs import distributed
    from sgm_sde.runs.pictures import are_images
    from sgm_sde.zoo.models import load_model

    model = load_model(args.model)
    if args.format and (model.data_range is None or not are_images(model.shape)):
        raise ValueError(
            f"--format {args.format} is for images of one or three channels in a known range: the model {model.name!r} "
            f"has samples of shape {model.shape} and data_range={model.data_range}"
        )
    solver: Setting | str | None = args.solver
    if isinstance(solver, str) and solver.endswith(".json"):
        solver = at_budget(load_settings(solver), args.nfe)

    report = distributed.sample(
        model, args.n, args.out, batch=args.batch, solver=solver, nfe=args.nfe, steps=args.steps,
        grid=args.grid, final=args.final, seed=args.seed, labels=_labels(args.labels), guidance=args.guidance,
        part=args.part, device=args.device, threads=args.threads, progress=not args.quiet,
    )  # fmt: skip
    if not report.result:  # another process of the run speaks, or it is a part
        return 0

    failed = report.result["failed"]
    sys.stdout.write(f"{report}, at most {report.result['nfe']} network calls each\n")
    if failed:
        numbers = ", ".join(map(str, failed[:8])) + (", ..." if len(failed) > 8 else "")
        sys.stdout.write(f"{len(failed)} of them are not finite, did not reach the end or cannot be right: {numbers}\n")
    _pictures(args, model)
    sys.stdout.write(f'Load them: sgm_sde.runs.distributed.load({str(args.out)!r})["x"]\n')
    return 1 if failed else 0


def _pictures(args: argparse.Namespace, model: Model) -> None:
    """Pictures for people, and files for other programs."""
    from sgm_sde.evaluation.bench import black_white
    from sgm_sde.runs.pictures import are_images, export, write_grid

    if model.data_range is None or not are_images(model.shape):
        return
    try:
        sys.stdout.write(f"The first ones: {write_grid(args.out, black_white(model))}\n")
    except ImportError as error:
        sys.stdout.write(f"No picture of them: {error}\n")
    if args.format:
        sys.stdout.write(f"As images: {export(args.out, args.format, black_white(model))}\n")


def _labels(text: str) -> list[int] | str | None:
    """The classes that --labels names: all, none, or numbers with commas between."""
    if text == "all":
        return text
    if text == "none":
        return None
    labels = []
    for number in text.split(","):
        try:
            labels.append(int(number))
        except ValueError:
            raise ValueError(f"--labels must be all, none, or classes such as 0,1,2, got {described(text)}") from None
    return labels


def _likelihood_options(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    parser.add_argument("--data", type=Path, required=True, help="images as integers: .npy, .npz or .safetensors")
    parser.add_argument("--with-labels", action="store_true", help="condition on the labels in the file, its array y")

    parser.add_argument("--n-levels", type=int, help="levels of the images, 256 for 8 bits (the model's)")
    parser.add_argument(
        "--data-range",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="edges of the levels to the network (the model's)",
    )

    parser.add_argument("--repeats", type=int, default=1, help="dequantisation draws for each image (%(default)s)")
    parser.add_argument("--importance", action="store_true", help="importance-weighted bound over the draws")
    parser.add_argument("--dequantize", choices=DEQUANTISATIONS, help="of the levels (the model's)")

    parser.add_argument("--eps", type=float, help="time at which the density is taken")
    parser.add_argument("--steps", type=int, help="of the fixed grid")
    parser.add_argument("--method", help=f"of the flow: {', '.join(METHODS)}")
    parser.add_argument("--trace", help="hutchinson, or exact")
    parser.add_argument("--n-probes", type=int, help="probes per node and image")


def _likelihood(args: argparse.Namespace) -> int:
    from sgm_sde.runs import distributed

    images, labels = read_data(args.data)
    if args.with_labels and labels is None:
        raise ValueError(f"--with-labels was given, and {args.data} has no array y")

    report = distributed.likelihood(
        args.model, images, args.out, labels=labels if args.with_labels else None, batch=args.batch,
        n_levels=args.n_levels, data_range=args.data_range, repeats=args.repeats, importance=args.importance,
        dequantize=args.dequantize, seed=args.seed, part=args.part, device=args.device, threads=args.threads,
        progress=not args.quiet, **_density_options(args),
    )  # fmt: skip
    if report.result:
        result = report.result
        error = "" if result["stderr"] is None else f" +- {result['stderr']:.4f}"
        sys.stdout.write(f"{report}\n{result['bits_per_dim']:.4f}{error} bits/dim ({result['protocol']})\n")
    return 0


def _density_options(args: argparse.Namespace) -> JsonObject:
    """The options of `log_prob` that were given."""
    from sgm_sde.likelihood import FixedGrid, Hutchinson

    options: JsonObject = {"eps": args.eps, "method": args.method, "trace": args.trace}
    if args.steps is not None:
        if args.method not in (None, "exponential"):
            raise ValueError(f"--steps={args.steps} is for --method exponential, got --method {args.method}")
        options["method"] = FixedGrid(args.steps)
    if args.n_probes is not None:
        if args.trace not in (None, "hutchinson"):
            raise ValueError(f"--n-probes={args.n_probes} is for --trace hutchinson, got --trace {args.trace}")
        options["trace"] = Hutchinson(args.n_probes)
    return _given(options)


def _given(options: JsonMapping) -> JsonObject:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"names with commas between, got {described(text)}")
    return names


def _numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"integers such as 5,10,20, got {described(text)}") from None


def _bench_options(parser: argparse.ArgumentParser) -> None:
    _run_options(parser, seed=False)
    parser.set_defaults(batch=500)
    add = parser.add_argument
    add("--solvers", type=_names, help='names, NAME@GRID, "default" or files of calibrate, with commas between')
    add("--grids", type=_names, default=[], help="run each solver on each of these grids, not on its default one")

    add("--nfe", type=_numbers, help="budgets of network calls (5,6,8,10,15,20,35,50)")
    add("-n", "--n", type=int, default=10000, help="samples of each solver, budget and seed (%(default)s)")
    add("--seeds", type=_numbers, default=[0], help="seeds, one a repetition (0)")

    add(
        "--features",
        help="of a shipped model, efficientnet-lite0, inception, pixels, raw (of no images) or MODULE:FUNCTION",
    )
    add("--features-weights", type=Path, metavar="FILE", help="weights of inception; nothing is downloaded")
    add("--features-sha256", metavar="HEX", help="of that file, if it is not the FID's")

    add("--reference", help="real data: of a shipped model, or a file .npy, .npz or .safetensors (statistics)")
    add("--baseline", help="other real data to measure in the same way")
    add("--metrics", type=_names, help="of fid (frechet), kid (kernel), prdc, sw (sliced) (all that the data allow)")

    add("--beside", type=Path, nargs="+", default=[], metavar="FILE", help="results.json of others to show beside")
    add("--keep-samples", action="store_true", help="keep the samples in OUT/samples")


def _bench(args: argparse.Namespace) -> int:
    from sgm_sde.evaluation.bench import SOLVERS, RunOptions, bench, on_grids
    from sgm_sde.evaluation.metrics.features import load_extractor
    from sgm_sde.zoo.models import load_model

    model = load_model(args.model)
    features = args.features
    if args.features_weights is not None or args.features_sha256 is not None:
        if features is None:
            raise ValueError("--features-weights and --features-sha256 are of --features inception: give it besides")
        file = {"weights": args.features_weights, "sha256": args.features_sha256}
        features = load_extractor(features, model.shape, device=_device(args), **file)

    solvers = on_grids(args.solvers or SOLVERS, args.grids)
    options = RunOptions(args.batch, args.device, args.threads, args.keep_samples, not args.quiet)
    result = bench(
        model, args.out, solvers=solvers, n=args.n, seeds=args.seeds, features=features, reference=args.reference,
        baseline=args.baseline, beside=args.beside, run=options, **_given({"nfe": args.nfe, "metrics": args.metrics}),
    )  # fmt: skip
    sys.stdout.write(f"{result}\n\nWritten to {args.out}: results.json, table.md, curves.png\n")
    return 0


def _device(args: argparse.Namespace) -> str:
    """The device that was asked for, or CUDA where there is one."""
    import torch

    default = "cuda" if torch.cuda.is_available() else "cpu"
    return str(usable_device("device", args.device or default))


@dataclass(frozen=True)
class _Trial:
    """A network with what a trial of it takes."""

    score: Score
    sde: LinearSDE
    shape: tuple[int, ...]
    conditions: JsonObject
    device: str


def _trial_of(args: argparse.Namespace, model: Model, n: int) -> _Trial:
    """A trial of a model from n noises, with classes in turn."""
    import torch

    from sgm_sde.runs.distributed import classes_of, guided, labels_in_turn
    from sgm_sde.scores.conditions import PerSample

    classes = classes_of(model, _labels(args.labels))
    device = _device(args)
    torch.set_num_threads(check_integer("threads", args.threads))
    model.to(device)
    sde = model.sde
    if not has_scalar_marginal(sde):
        raise TypeError(f"{args.command} needs a LinearSDE, got {described(sde)}")

    score = model.score if args.guidance is None else guided(model, args.guidance, classes)
    conditions = {}
    if classes is not None:
        conditions["y"] = PerSample(labels_in_turn(classes, 0, n).to(device))
    return _Trial(score, sde, (n, *model.shape), conditions, device)


def _require_new_table(out: Path) -> None:
    """Raise for a path that a file of solvers cannot be written to."""
    if out.suffix != ".json":
        raise ValueError(f"--out must end in .json, by which sample and bench know a file of solvers, got {out}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file")
    if out.exists():
        raise ValueError(f"--out {out} is there already: name another file, or delete that one")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")


def _written_to(args: argparse.Namespace) -> str:
    """Words on a file of solvers, with a command that samples with it."""
    as_here = "" if args.guidance is None else f" --guidance {args.guidance:g}"
    use = f"sgm-sde sample --model {args.model}{as_here} --solver {args.out} --nfe {args.nfe[0]} -n 64 --out run"
    return f"Written to {args.out}. Sample with it: {use}"


def _trial_options(parser: argparse.ArgumentParser) -> None:
    """Options shared by `pilot` and `calibrate`."""
    add = parser.add_argument
    add("--model", required=True, help="a shipped model, MODULE:FACTORY, or a diffusers folder")
    add("--nfe", type=_numbers, required=True, help="budgets of network calls, such as 4,6,8,12")

    add("--labels", default="all", help="classes to take in turn, as 3 or 0,1,2; all; none (%(default)s)")
    add("--guidance", type=float, metavar="SCALE", help="scale of classifier-free guidance, the largest in use")

    add("--seed", type=int, default=0, help="seed (%(default)s)")
    add("--device", choices=("cpu", "cuda", "mps"), help="where to compute (cuda where there is one)")
    add("--threads", type=int, default=1, help="threads on a CPU (%(default)s)")


def _pilot_options(parser: argparse.ArgumentParser) -> None:
    _trial_options(parser)
    add = parser.add_argument
    add("--out", type=Path, help="new file for the best settings, .json")
    add("-n", "--n", type=int, default=32, help="noises (%(default)s)")
    add("--reference-nfe", type=int, metavar="CALLS", help="calls of an exact sample (256, or more)")


def _calibrate_options(parser: argparse.ArgumentParser) -> None:
    _trial_options(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="new file for tables, .json; an interrupted run goes on from OUT.parts")

    add("-n", "--n", type=int, help="noises to fit to (128; more below 8 dimensions, 512 in two)")
    add("--held-out", type=int, default=128, help="further noises to measure on (%(default)s)")

    add("--batch", type=int, default=512, help="samples in a network call, at most (%(default)s)")
    add("--reference-nfe", type=int, metavar="CALLS", help="calls of an exact sample (64 to 1024, as many as needed)")
    add("--time-limit", type=float, metavar="SECONDS", help="end where the fit is by then")
    add(
        "--checkpoint",
        type=folder_to_write,
        help="folder that keeps the parts of a run, instead of OUT.parts, which goes",
    )
    add("--quiet", action="store_true", help="no progress bar")


def _pilot(args: argparse.Namespace) -> int:
    from sgm_sde.calibration.result import save_settings
    from sgm_sde.sampling.trials import pilot
    from sgm_sde.zoo.models import load_model

    if args.out is not None:
        _require_new_table(args.out)
    trial = _trial_of(args, load_model(args.model), check_integer("n", args.n))
    found = pilot(
        trial.score, trial.sde, trial.shape, nfe=args.nfe, seed=args.seed, model_kwargs=trial.conditions,
        reference_nfe=args.reference_nfe, device=trial.device,
    )  # fmt: skip
    sys.stdout.write(f"{found}\n")
    if args.out is not None:
        save_settings(found, args.out)
        sys.stdout.write(f"\n{_written_to(args)}\n")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from sgm_sde.calibration import calibrate
    from sgm_sde.zoo.models import load_model

    _require_new_table(args.out)
    parts = args.out.with_suffix(".parts") if args.checkpoint is None else args.checkpoint
    batch = check_integer("batch", args.batch)
    model = load_model(args.model)
    n = max(128, 1024 // math.prod(model.shape)) if args.n is None else check_integer("n", args.n, 2)
    trial = _trial_of(args, model, n)
    try:
        found = calibrate(
            trial.score, trial.sde, trial.shape, nfe=args.nfe, held_out=args.held_out, seed=args.seed,
            model_kwargs=trial.conditions, batch_size=batch, time_limit=args.time_limit, checkpoint=parts,
            reference_nfe=args.reference_nfe, progress=not args.quiet, device=trial.device,
        )  # fmt: skip
    except KeyboardInterrupt:
        sys.stderr.write(f"sgm-sde: what is finished is kept in {parts}: the same command goes on from there\n")
        raise
    found.save(args.out)
    if args.checkpoint is None:
        shutil.rmtree(parts)
    sys.stdout.write(f"{found}\n\n{_written_to(args)}\n")
    return 0


COMMANDS = {
    "solvers": Command("list the solvers with their orders and sources", lambda parser: None, _solvers),
    "demo": Command("sample 8x8 digits with several solvers, or a grid of clothes", _demo_options, _demo),
    "sample": Command("draw samples into a folder; resumable", _sample_options, _sample),
    "likelihood": Command("bits/dim of a file of images; resumable", _likelihood_options, _likelihood),
    "merge": Command("put the parts of a run, made with --part, into one folder", _merge_options, _merge),
    "pilot": Command("find the best solvers off the shelf for a network", _pilot_options, _pilot),
    "calibrate": Command("fit solvers to a network, for budgets of calls", _calibrate_options, _calibrate),
    "bench": Command("quality of samples against network calls; resumable", _bench_options, _bench),
}
