"""Resumable sampling and likelihoods over many batches, in one process or many.

    torchrun --standalone --nproc-per-node 4 -m sgm_sde sample --model digits -n 50000 --out samples

The samples are computed in batches, in the order of their numbers. Sample i of seed s draws its noise from the pair
(s, i), whichever process computes it. Consecutive batches are saved together as one shard of a `Store`; how many
follows from the size of a sample and the place in the run, not from n. So shards are the same to the last bit for any
number of processes and after any interruption: the same command resumes a run that was killed, and a larger n extends a
complete one. Another batch size gives the same noise, and the same samples up to the rounding of the network's kernels.

Each process takes the next shard when it has finished its last (`sgm_sde.runs.team`), and all write to one folder.
Without a shared disk each writes a part to a folder of its own, and `merge` combines them.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, check_integer, described, instance_of, listed, number, range_of, require_integers
from sgm_sde._utils.elsewhere import OF_MODELS, OF_RUNS, named_elsewhere
from sgm_sde._utils.files import JsonMapping, JsonObject, readable
from sgm_sde._utils.warn import warn
from sgm_sde.engine.noise import SampleSeeds, one_seed, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.grids import Grid, GridRule
from sgm_sde.identity import fingerprint, portable, spec
from sgm_sde.likelihood import bits_per_dim
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.runs.store import Entry, Store, read_manifest, read_run, read_shard
from sgm_sde.runs.team import Team
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.diagnosis import ImplausibleWarning, UnsuitedWarning, words_of_misses
from sgm_sde.sampling.on_gaussians import is_unsuited
from sgm_sde.sampling.options import Execution
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.sampler import sample as draw
from sgm_sde.sampling.start import PriorWarning
from sgm_sde.sampling.statuses import NonFiniteWarning, UnfinishedWarning
from sgm_sde.schemes import AdaptiveSolver, Solver
from sgm_sde.schemes.base import called
from sgm_sde.scores import PerSample
from sgm_sde.scores.guidance import ClassifierFree
from sgm_sde.scores.outputs import outputs
from sgm_sde.zoo.models import Model, load_model

__all__ = ["RefusedError", "Report", "likelihood", "load", "merge", "sample"]

SHARD_BYTES = 4 * 2**20  # in a shard, about, where a batch is less
SHARD_BATCHES = 256  # in a shard, at most
SHARD_SHARE = 64  # a shard holds at most this part of what is before it

Shard = tuple[dict[str, Tensor], JsonObject]  # tensors, and what else is known of them


class RefusedError(ValueError):
    """The run was refused by the process that opened the folder, which says why."""


@dataclass(frozen=True)
class Report:
    """Summary of a run.

    Attributes:
        folder: where the results are.
        n: number of samples or images in it.
        batches: number of batches.
        found: how many of them an earlier run had finished.
        seconds: wall-clock time of this run.
        result: summary of the whole run, as in the manifest; empty in all processes but the first.

    Examples:
        >>> print(Report(Path("out"), n=6, batches=2, found=1, seconds=1.25, result={}))
        out: 6 in 2 batches, 1 of them there before; 1.2 s
    """

    folder: Path
    n: int
    batches: int
    found: int
    seconds: float
    result: JsonMapping

    def __str__(self) -> str:
        before = f", {self.found} of them there before" if self.found else ""
        return f"{self.folder}: {self.n} in {self.batches} batches{before}; {self.seconds:.1f} s"


@named_elsewhere(OF_RUNS | OF_MODELS)
def sample(
    model: Model | str,
    n: int,
    folder: Path | str,
    *,
    batch: int = 64,
    solver: Solver | AdaptiveSolver | Setting | str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    grid: Grid | GridRule | str | Sequence[float] | None = None,
    final: str | None = None,
    seed: int = 0,
    labels: Sequence[int] | str | None = "all",
    guidance: float | None = None,
    part: tuple[int, int] | None = None,
    device: str | None = None,
    threads: int = 1,
    progress: bool = False,
) -> Report:
    """Draw n samples into a folder; resume a run that was interrupted, or extend one of fewer samples.

    Under `torchrun` or Slurm all processes call this together and share the work. Sample i has the seed (seed, i).

    Args:
        model: a `Model` or its name, as `load_model` takes it.
        n: number of samples, exactly. A run that is complete can be given more later.
        folder: for the shards and the manifest; made if absent.
        batch: samples in a batch, one after the other.
        solver: as `sgm_sde.sample` takes it.
        nfe: as `sgm_sde.sample` takes it.
        steps: as `sgm_sde.sample` takes it.
        grid: as `sgm_sde.sample` takes it.
        final: as `sgm_sde.sample` takes it.
        seed: of the whole set.
        labels: classes that the samples take in turn; "all" for all classes of a model that has any, None for none.
        guidance: scale of classifier-free guidance, for a model whose network declares its null label.
        part: (k, K): of K parts, do part k alone, and leave the manifest to a call without `part` when all are there,
            or to `merge` where each part has a folder of its own. Parts may run at the same time in one folder.
        device: "cpu", "cuda" or "mps"; CUDA where there is one if not given.
        threads: of each process on a CPU; kernels may round differently with another number.
        progress: show a progress bar with rate and time left.

    Returns:
        what was done; `result` has the network calls of a batch (`nfe`), the `rows` of the network in all, the
        numbers of the samples that `failed` (not finite, short of the end, or implausible, as the status of
        `sgm_sde.sample` has them), and the `program` as JSON. `load` reads the samples.

    Raises:
        ValueError: for arguments out of range, and a folder that was made with other settings, with the difference.
        OSError: if the folder cannot be written, or another run is writing to it.

    Examples:
        >>> import tempfile
        >>> report = sample("digits", 6, folder := tempfile.mkdtemp(), batch=4, nfe=5, device="cpu")
        >>> report.batches, load(folder)["x"].shape
        (2, torch.Size([6, 1, 8, 8]))
    """
    model = _loaded(model)
    n = check_integer("n", n, kind=Integral)
    batch = check_integer("batch", batch, kind=Integral)
    resolve_seeds([(one_seed(seed), n - 1)], None, 1)
    classes = classes_of(model, labels)
    if guidance is not None:
        model = replace(model, score=guided(model, guidance, classes), weights="")

    chosen, _, program = plan(model.sde, solver, nfe=nfe, steps=steps, grid=grid, final=final, **model.score.traits)
    arguments: JsonObject = {"solver": solver, "nfe": nfe, "steps": steps, "grid": grid, "final": final}
    table = None if program is None else program.to_json()
    digest = None if table is None else hashlib.sha256(table.encode()).hexdigest()[:16]

    with Team(device, threads) as team:
        model.to(team.device)
        size = math.prod(model.shape) * torch.get_default_dtype().itemsize
        settings = {
            **_common(model, n, batch, size, seed, team, classes),
            "command": "sample",
            "solver": portable(spec(chosen)),
            "steps": steps if program is None else program.steps,
            "nfe": nfe,
            "final": final,
            "labels": classes,
            "program": digest,
        }

        if team.rank == 0:
            _warn_if_unsuited(chosen, program, model, n)

        def work(first: int, last: int) -> Shard:
            tensors = {}
            conditions = {}
            if classes is not None:
                tensors["y"] = labels_in_turn(classes, first, last)
                conditions["y"] = PerSample(tensors["y"].to(team.device))

            shape = (last - first, *model.shape)
            seeds = SampleSeeds(seed, range(first, last))
            execution = Execution(device=team.device)
            with _reported_failures():
                result = draw(
                    model.score, model.sde, shape, seed=seeds, model_kwargs=conditions, execution=execution, **arguments
                )

            tensors["x"] = result.x
            failed = [first + i for i in result.status.samples]
            return tensors, {"nfe": result.nfe, "rows": result.network_evals, "failed": failed}

        job = _Job(settings, work, growing=("n",), notes={"program": table})
        return _run(team, readable(folder), job, part, progress)


def _warn_if_unsuited(solver: Solver | AdaptiveSolver, program: Program | None, model: Model, n: int) -> None:
    """Warn where all n samples will be named, since the table misses Gaussian data."""
    if program is not None and is_unsuited(solver, program, model.sde):
        warn(words_of_misses(called(solver), n, model.sde), UnsuitedWarning)


def guided(model: Model, scale: float, classes: Sequence[int] | None) -> ClassifierFree:
    """The score of a model, guided towards classes.

    Raises:
        ValueError: for a scale that is not finite, no classes, and a network that declares no null label.
    """
    scale = number("guidance", scale, least=-FAR, most=FAR)
    if classes is None:
        raise ValueError(
            f"guidance={scale:g} is towards classes, and labels=None names none of the model {model.name!r}"
        )
    if model.score.null_label is None:
        raise ValueError(
            f"guidance={scale:g} needs a network that was trained without classes as well: that of the model "
            f"{model.name!r} declares no null label (NULL_LABEL)"
        )
    return ClassifierFree(model.score, scale)


def labels_in_turn(classes: Sequence[int], first: int, last: int) -> Tensor:
    """The classes of the samples from a first number up to a last: sample i has the class i modulo their number."""
    return torch.tensor([classes[i % len(classes)] for i in range(first, last)])


@contextmanager
def _reported_failures() -> Iterator[None]:
    """No warnings of samples that fail: the report has their numbers, and what it is of all was said at the start."""
    with warnings.catch_warnings():
        for category in (NonFiniteWarning, ImplausibleWarning, UnfinishedWarning):
            warnings.simplefilter("ignore", category)
        warnings.simplefilter("default", PriorWarning)  # of all samples, and in no status
        yield


def likelihood(
    model: Model | str,
    images: Tensor,
    folder: Path | str,
    *,
    labels: Tensor | None = None,
    batch: int = 64,
    n_levels: int | None = None,
    data_range: tuple[float, float] | None = None,
    repeats: int = 1,
    importance: bool = False,
    dequantize: str | None = None,
    seed: int = 0,
    part: tuple[int, int] | None = None,
    device: str | None = None,
    threads: int = 1,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Bits/dim of a data set into a folder, resumed and shared among processes as `sample` is.

    Args:
        model: a `Model` or its name, as `load_model` takes it.
        images: integers in [0, n_levels), (n, *shape of the model).
        folder: for the shards and the manifest; made if absent.
        labels: classes of the images (n,), for a model that takes them; without, it runs without classes.
        batch: images in a batch.
        n_levels: as `bits_per_dim` takes it; the model's if not given.
        data_range: as `bits_per_dim` takes it; the model's if not given.
        repeats: as `bits_per_dim` takes it.
        importance: as `bits_per_dim` takes it.
        dequantize: as `bits_per_dim` takes it, by name.
        seed: of dequantisation and probes; image i has (seed, i).
        part: as `sample` takes it.
        device: "cpu", "cuda" or "mps"; CUDA where there is one if not given.
        threads: of each process on a CPU; kernels may round differently with another number.
        progress: show a progress bar with rate and time left.
        options: of `log_prob`, such as `eps`, `method` and `trace`.

    Returns:
        what was done; `result` has `bits_per_dim`, its `stderr` over images, and the `protocol`. The values of each
        image are read by `load`.

    Raises:
        ValueError: for arguments out of range, images that do not fit the model, and a folder that was made with other
            settings, with the difference.
        TypeError: for images or labels that are not tensors of integers.
        OSError: if the folder cannot be written, or another run is writing to it.

    Examples:
        >>> import tempfile
        >>> from sgm_sde.likelihood import FixedGrid
        >>> from sgm_sde.nn.digits import digits_data
        >>> images = ((digits_data("held_out")[0][:3] + 1) * 8).round().to(torch.uint8)
        >>> grid = FixedGrid(8)
        >>> report = likelihood("digits", images, tempfile.mkdtemp(), dequantize="diffusion", eps=0.1, method=grid)
        >>> sorted(report.result)
        ['bits_per_dim', 'nfe', 'protocol', 'stderr']
    """
    model = _loaded(model)
    given = {"n_levels": n_levels, "data_range": data_range, "dequantize": dequantize, **options}
    given = {name: value for name, value in given.items() if value is not None}
    resolved: JsonObject = model.likelihood_options(None, given)
    n_levels, data_range, dequantize = (resolved.pop(name) for name in ("n_levels", "data_range", "dequantize"))
    assert n_levels is not None and data_range is not None and dequantize is not None
    data_range = range_of("data_range", data_range)
    n_levels = check_integer("n_levels", n_levels, 2, kind=Integral)
    repeats = check_integer("repeats", repeats, kind=Integral)

    _check_images(model, images, n_levels)
    if labels is not None:
        _check_labels(model, images, labels)
    sde = model.sde
    if not (has_scalar_marginal(sde) or has_matrix_marginal(sde)):
        raise TypeError(f"likelihoods need a LinearSDE, got {described(sde)}")

    n = len(images)
    batch = check_integer("batch", batch, kind=Integral)
    resolve_seeds([(one_seed(seed), n - 1)], None, 1)

    with Team(device, threads) as team:
        model.to(team.device)
        size = 4 * (1 + repeats)  # bytes of an image's value, and of one per draw
        classes = None if labels is None or model.n_classes is None else list(range(model.n_classes))
        settings = {
            **_common(model, n, batch, size, seed, team, classes),
            "command": "likelihood",
            "data": fingerprint({"x": images}),
            "labels": None if labels is None else fingerprint({"y": labels}),
            "n_levels": n_levels,
            "data_range": list(data_range),
            "repeats": repeats,
            "importance": importance,
            "dequantize": portable(spec(dequantize)),
            **{name: portable(spec(value)) for name, value in resolved.items()},
        }

        def work(first: int, last: int) -> Shard:
            x = images[first:last].to(team.device)
            conditions = {}
            if labels is not None:
                conditions["y"] = PerSample(labels[first:last].to(team.device, torch.int64))

            seeds = SampleSeeds(seed, range(first, last))
            result = bits_per_dim(
                model.score, sde, x, n_levels=n_levels, data_range=data_range, repeats=repeats, importance=importance,
                dequantize=dequantize, model_kwargs=conditions, seed=seeds, **resolved,
            )  # fmt: skip
            values = {"bits_per_dim": result.per_image, "draws": result.repeats.T}
            return values, {"nfe": result.nfe, "protocol": result.protocol}

        job = _Job(settings, work)
        return _run(team, readable(folder), job, part, progress)


def load(folder: Path | str) -> dict[str, Tensor]:
    """The results of a complete run, in the order of the samples: `x` and `y`, or `bits_per_dim` and `draws`.

    Every shard is checked against its own checksum, its name, its run, and what the manifest says of it.

    Raises:
        ValueError: if the run is not complete, or a shard is missing, damaged, or not the one that the manifest names.

    Examples:
        >>> import tempfile
        >>> report = sample("digits", 3, tempfile.mkdtemp(), batch=2, nfe=3, device="cpu")
        >>> load(report.folder)["x"].shape
        torch.Size([3, 1, 8, 8])
    """
    _, shards = read_run(folder)
    tensors = [shard for shard, _ in shards]
    return {key: torch.cat([shard[key] for shard in tensors]) for key in tensors[0]}


def merge(folders: Sequence[Path | str], out: Path | str) -> Report:
    """Put the parts of a run that were made in folders of their own into one, and complete it if nothing is missing.

    Args:
        folders: of the same run, as `sample` and `likelihood` make them with `part=`.
        out: the folder for the whole; made if absent, and it may be one of them.

    Returns:
        what is there now; `result` is empty while some is missing.

    Raises:
        ValueError: for folders of different runs, with the difference.
        OSError: if `out` cannot be written.

    Examples:
        >>> import tempfile
        >>> parts = [tempfile.mkdtemp() for _ in range(2)]
        >>> for k, folder in enumerate(parts):
        ...     report = sample("digits", 6, folder, batch=2, nfe=3, device="cpu", part=(k, 2))
        >>> merge(parts, tempfile.mkdtemp()).result["nfe"]
        3
    """
    started = time.perf_counter()
    if isinstance(folders, str | Path) or not folders:
        raise ValueError(f"give a list of at least one folder to merge, got {described(folders)}")
    manifests = {readable(folder): read_manifest(folder) for folder in folders}
    first = next(iter(manifests.values()))

    # Where the parts differ in what may grow, the whole is as large as the largest.
    growing = tuple(first.get("growing", ()))
    settings = dict(first["settings"])
    for name in growing:
        settings[name] = max(manifest["settings"].get(name, 0) for manifest in manifests.values())

    with Store(out, settings, growing=growing, notes=first.get("notes")) as store:
        for folder, manifest in manifests.items():
            store.require_same(folder, manifest)

        cuts = _cuts(settings)
        entries: dict[str, Entry] = {}
        found = 0
        for k, cut in enumerate(cuts):
            name = _name(k)
            entry = store.find(name)
            if _holds(entry, cut):
                found += _n_batches(cut, settings["batch"])
            else:
                entry = _from_parts(store, name, cut, manifests)
            if entry is not None:
                entries[name] = entry

        complete = len(entries) == len(cuts)
        result = _complete(store, settings["command"], entries) if complete else {}

    n = 0
    n_batches = 0
    for entry in entries.values():
        begin, end = entry.info["samples"]
        n += end - begin
        n_batches += _n_batches((begin, end), settings["batch"])
    return Report(Path(out), n, n_batches, found, time.perf_counter() - started, result)


def _from_parts(store: Store, name: str, cut: tuple[int, int], manifests: Mapping[Path, JsonMapping]) -> Entry | None:
    """A shard with the samples of a cut, copied from the first part that has it; None where none has."""
    for folder, manifest in manifests.items():
        entry = store.take_over(folder, manifest, name)
        if _holds(entry, cut):
            return entry
    return None


def _n_batches(cut: Sequence[int], batch: int) -> int:
    """The number of batches from a first sample up to a last."""
    begin, end = cut
    return math.ceil((end - begin) / batch)


def _holds(entry: Entry | None, cut: tuple[int, int]) -> bool:
    """True if a shard holds the samples from the first number up to the last."""
    return entry is not None and entry.info.get("samples") == list(cut)


@dataclass(frozen=True)
class _Job:
    """A run's computation: its settings, and the function of one batch.

    Attributes:
        settings: what it depends on, the cuts of the samples into batches and shards among it, and the command.
        work: computes the batch of the samples from the first number up to the last.
        growing: names of settings that may be larger in a later call.
        notes: entries of the manifest from the start.
    """

    settings: JsonMapping
    work: Callable[[int, int], Shard]
    growing: tuple[str, ...] = ()
    notes: JsonMapping | None = None

    def shard(self, begin: int, end: int, after_batch: Callable[[int], None]) -> Shard:
        """All batches of a shard, one after the other."""
        results: list[Shard] = []
        batch = self.settings["batch"]
        for first in range(begin, end, batch):
            last = min(first + batch, end)
            results.append(self.work(first, last))
            after_batch(last - first)

        names = results[0][0]
        tensors = {name: torch.cat([computed[name] for computed, _ in results]) for name in names}
        summarize, _ = _SUMMARIES[self.settings["command"]]
        return tensors, {"samples": [begin, end], **summarize([info for _, info in results])}


def _together(infos: Sequence[JsonMapping]) -> JsonObject:
    return {
        "nfe": max(info["nfe"] for info in infos),
        "rows": sum(info["rows"] for info in infos),
        "failed": [i for info in infos for i in info["failed"]],
    }


def _of_samples(notes: JsonMapping, infos: Sequence[JsonMapping], read: Iterator[Shard]) -> JsonObject:
    return {**_together(infos), "program": notes["program"]}


def _first(infos: Sequence[JsonMapping]) -> JsonObject:
    return {key: infos[0][key] for key in ("nfe", "protocol")}


def _of_likelihoods(notes: JsonMapping, infos: Sequence[JsonMapping], read: Iterator[Shard]) -> JsonObject:
    values = torch.cat([tensors["bits_per_dim"] for tensors, _ in read]).double()
    stderr = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"bits_per_dim": float(values.mean()), "stderr": stderr, **_first(infos)}


# What is said of several batches, and of a whole run, by its kind.
_SUMMARIES: dict[str, tuple[Callable[..., JsonObject], Callable[..., JsonObject]]] = {
    "sample": (_together, _of_samples),
    "likelihood": (_first, _of_likelihoods),
}


def _cuts(settings: JsonMapping) -> list[tuple[int, int]]:
    """The first sample of each shard, and the one after its last.

    Shards grow with what is before them, up to `SHARD_BYTES` or `SHARD_BATCHES`, so that a short run has enough of them
    to share, and a long one not too many. Where they begin does not depend on n.

    Examples:
        >>> _cuts({"n": 10, "batch": 4, "sample_bytes": 12})
        [(0, 4), (4, 8), (8, 10)]
        >>> [len(_cuts({"n": n, "batch": 64, "sample_bytes": 256})) for n in (10**6, 10**7)]
        [455, 1005]
    """
    n, batch, sample_bytes = (settings[name] for name in ("n", "batch", "sample_bytes"))
    largest = max(1, min(SHARD_BATCHES, SHARD_BYTES // (batch * sample_bytes)))
    cuts = []
    begin = 0
    while begin < n:
        batches = max(1, min(largest, begin // batch // SHARD_SHARE))
        end = begin + batches * batch
        cuts.append((begin, min(n, end)))
        begin = end
    return cuts


def _name(k: int) -> str:
    return f"{k:05d}"


def _part(part: tuple[int, int] | None) -> tuple[int, int]:
    if part is None:
        return 0, 1
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise ValueError(f"part must be (k, K), part k of K from 0, got {described(part)}")
    k, parts = (check_integer("part", value, 0, kind=Integral) for value in part)
    if not k < parts:
        raise ValueError(f"part must be (k, K) with k from 0 to K - 1, got {(k, parts)}")
    return k, parts


def _run(team: Team, folder: Path, job: _Job, part: tuple[int, int] | None, progress: bool) -> Report:
    """Compute the shards that are missing, each process one after the other, and complete the manifest."""
    started = time.perf_counter()
    cuts = _cuts(job.settings)
    k, n_parts = _part(part)
    shards = range(k, len(cuts), n_parts)
    own = [cuts[k] for k in shards]
    total = sum(end - start for start, end in own)

    with _open(team, folder, job, apart=part is not None) as store, _progress(team, total, job, progress) as update:

        def do(piece: int) -> None:
            name = _name(shards[piece])
            entry = _shard(team, store, job, name, own[piece], update)
            written = [entry.sha256, entry.bytes, entry.info]
            team.report(piece, json.dumps(written))

        for piece in team.take(len(shards)):
            do(piece)
        for piece in team.left_over(len(shards), update):
            do(piece)
        update()

        result: JsonObject = {}
        if team.rank == 0 and part is None:
            entries = _reported(team, shards)
            result = _complete(store, job.settings["command"], entries)
        found = team.count("found")

        # The others wait here: none leaves before the manifest is written.
        if team.rank == 0:
            team.tell("complete", "")
        else:
            team.hear("complete")

    n_batches = sum(_n_batches(cut, job.settings["batch"]) for cut in own)
    seconds = time.perf_counter() - started
    return Report(folder, total, n_batches, found, seconds, result)


def _shard(team: Team, store: Store, job: _Job, name: str, cut: tuple[int, int], update: Callable[..., None]) -> Entry:
    """The entry of a shard, which is computed unless an earlier run has left it."""
    entry = store.find(name)
    if entry is None or not _holds(entry, cut):
        tensors, info = job.shard(*cut, update)
        return store.save(name, tensors, info)

    team.count("found", _n_batches(cut, job.settings["batch"]))
    update(cut[1] - cut[0], True)
    return entry


def _reported(team: Team, shards: Sequence[int]) -> dict[str, Entry]:
    """Entries of shards by name, as the processes that wrote them report."""
    entries = {}
    for k, text in zip(shards, team.reports(len(shards)), strict=True):
        sha256, n_bytes, info = json.loads(text)
        entries[_name(k)] = Entry(sha256, n_bytes, info)
    return entries


def _complete(store: Store, command: str, entries: Mapping[str, Entry]) -> JsonObject:
    """Write the manifest of a run whose shards are complete; returns its summary."""
    infos = [entry.info for entry in entries.values()]
    shards = (read_shard(store.path(name)) for name in entries)
    _, summarize = _SUMMARIES[command]
    result = summarize(store.notes, infos, shards)
    store.finish(entries, result)
    return result


@contextmanager
def _open(team: Team, folder: Path, job: _Job, *, apart: bool) -> Iterator[Store]:
    """The store of a run, opened by the first process and joined by the others."""
    if team.rank:
        if team.hear("opened") != "yes":
            raise RefusedError("the run was refused by its first process")
        store = Store.join(folder, job.settings, growing=job.growing)
    else:
        try:
            shared = team.size > 1 and not apart
            store = Store(folder, job.settings, growing=job.growing, notes=job.notes, shared=shared, apart=apart)
        except (ValueError, OSError):
            team.tell("opened", "no")
            raise
        team.tell("opened", "yes")
    with store:
        yield store


@contextmanager
def _progress(team: Team, total: int, job: _Job, progress: bool) -> Iterator[Callable[..., None]]:
    """A progress bar over the samples of all processes, in the first process and with `progress` only."""
    from tqdm.auto import tqdm

    shown = progress and team.rank == 0
    unit = {"sample": "sample", "likelihood": "image"}[job.settings["command"]]
    with tqdm(total=total, unit=unit, disable=not shown) as bar:

        def update(more: int = 0, found: bool = False) -> None:
            if team.size == 1 and not shown:
                return
            done = team.count("samples", more)
            before = team.count("before", more if found else 0)
            if not shown:
                return

            if before > bar.initial:  # these took no time: the rate is that of the others
                bar.initial = before
                bar.n = before
                bar.last_print_n = before
                bar.refresh()
            bar.update(min(done, total) - bar.n)

        yield update


def _common(
    model: Model, n: int, batch: int, sample_bytes: int, seed: int, team: Team, classes: Sequence[int] | None
) -> JsonObject:
    return {
        **identity(model, team, classes),
        "shape": model.shape,
        "n": n,
        "batch": batch,
        "sample_bytes": sample_bytes,
        "seed": operator.index(seed),
        "dtype": str(torch.get_default_dtype()),
        "device": team.device.type,
        "threads": team.threads if team.device.type == "cpu" else None,
    }


def identity(model: Model, team: Team, classes: Sequence[int] | None) -> JsonObject:
    """Identity of a network and its process: weights, specs, and outputs at fixed states."""
    score = portable(model.score.spec())
    return {
        "model": model.name,
        "weights": model.weights,
        "sde": score.pop("sde"),
        "score": score,
        "outputs": outputs(model.score, model.shape, labels=classes, device=team.device),
    }


def classes_of(model: Model, labels: Sequence[int] | str | None) -> list[int] | None:
    """The classes that samples take in turn."""
    if isinstance(labels, str):
        if labels != "all":
            raise ValueError(f"labels must be 'all', a list of classes or None, got {described(labels)}")
        return None if model.n_classes is None else list(range(model.n_classes))
    if labels is None:
        return None
    known = listed(labels)
    if not isinstance(known, Sequence):
        raise TypeError(f"labels must be 'all', a list of classes or None, got {described(labels)}")
    if model.n_classes is None:
        raise ValueError(f"labels={list(known)} were given, and the model {model.name!r} has no classes")
    for label in known:
        if not isinstance(label, Integral) or not 0 <= int(label) < model.n_classes:
            raise ValueError(
                f"the model {model.name!r} has the classes 0 to {model.n_classes - 1}, got label {label!r}"
            )
    if not known:
        raise ValueError("labels must hold at least one class")
    return [int(label) for label in known]


def _check_images(model: Model, images: Tensor, n_levels: int) -> None:
    require_integers("images", images)
    if tuple(images.shape[1:]) != model.shape or not len(images):
        shape = ", ".join(map(str, model.shape))
        raise ValueError(f"images must have the shape (n, {shape}), got {tuple(images.shape)}")

    low, high = map(int, images.aminmax())
    if low < 0 or high >= n_levels:
        raise ValueError(f"images must lie in [0, {n_levels}) for n_levels={n_levels}, got {low} to {high}")


def _loaded(model: Model | str) -> Model:
    """A model, or the one of a name."""
    instance_of("model", model, Model | str | Path, "a Model or its name")
    return model if isinstance(model, Model) else load_model(model)


def _check_labels(model: Model, images: Tensor, labels: Tensor) -> None:
    if model.n_classes is None:
        raise ValueError(f"labels were given, and the model {model.name!r} has no classes")
    require_integers("labels", labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have the shape ({len(images)},), one for each image, got {tuple(labels.shape)}")

    low, high = map(int, labels.aminmax())
    if low < 0 or high >= model.n_classes:
        raise ValueError(f"labels must lie in [0, {model.n_classes}), got {low} to {high}")
