"""Sampling and likelihoods over many batches, in one process or many, that may be interrupted and gone on with.

    torchrun --standalone --nproc-per-node 4 -m sgm_sde sample --model digits -n 50000 --out samples

The work is cut into batches by sample number; sample i of seed s is that of the pair (s, i), whoever draws it. Each
batch becomes one shard of a `Store`. So the shards do not depend, to the last bit, on the number of processes, nor on
interruptions: a run that was killed is started again with the same command, and does what is missing. Another batch
size gives the same noise and the same samples up to the rounding of the network's kernels, which differ with the batch.

Processes talk only at the start and at the end, over gloo on CPUs and NCCL on GPUs; all write to one folder.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import operator
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import torch.distributed as dist
from torch import Tensor

from sgm_sde import sampling
from sgm_sde.defaults import Setting
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.grids import Grid, GridRule
from sgm_sde.likelihood import bits_per_dim
from sgm_sde.models import Model, fingerprint, load_model
from sgm_sde.solvers import AdaptiveSolver, Solver
from sgm_sde.store import Store, read_manifest, read_shard

TIMEOUT = datetime.timedelta(minutes=30)  # for processes that wait for others: longer than any batch

Shard = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and what else is known of them


class RefusedError(ValueError):
    """The run was refused by the process that opened the folder, which says why."""


class Team:
    """The processes of one run: those that `torchrun` started, or this one alone.

    Args:
        device: "cpu", "cuda", or None for CUDA where there is one; each process takes its own GPU.
        threads: of each process on a CPU.

    Attributes:
        rank: this process' number; 0 opens the folder and shows the progress.
        size: number of processes.
        device: where this process computes.

    Raises:
        ValueError: for a device that is not there, or a number of threads that is not positive.
    """

    def __init__(self, device: str | None = None, threads: int = 1) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        if name not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}")
        if name == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda' was asked for, and there is no CUDA device")
        self.device, self.threads = torch.device(name), _whole("threads", threads)
        self._threads_before = torch.get_num_threads()
        self._wire, self._started = torch.device("cpu"), False

    def __enter__(self) -> Team:
        if self.device.type == "cuda":
            gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
            self.device = torch.device("cuda", local % gpus)
            if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= gpus:
                self._wire = self.device  # NCCL wants a GPU for each process
        torch.set_num_threads(self.threads)
        if self.size > 1 and not dist.is_initialized():
            if "TORCHELASTIC_RUN_ID" in os.environ:
                _end_with_parent()
            if self._wire.type == "cuda":
                dist.init_process_group("nccl", timeout=TIMEOUT, device_id=self._wire)
            else:
                dist.init_process_group("gloo", timeout=TIMEOUT)
            self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started and error is None:  # after an error the others may not answer any more
            dist.destroy_process_group()
        torch.set_num_threads(self._threads_before)

    def sum(self, values: Sequence[int]) -> list[int]:
        """Element by element over all processes, which have to call it together."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64, device=self._wire)
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise ConnectionError(
                "another process of this run has ended or does not answer; the same command goes on from here"
            ) from error
        summed: list[int] = total.tolist()
        return summed


def _end_with_parent() -> None:
    """End this process when the launcher is killed, which leaves it no time to end its children."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        folder: where the results are.
        n: number of samples or images in it.
        batches: number of batches.
        found: how many of them were there before.
        seconds: that this run took.
        result: what the manifest says of the whole; empty in all processes but the first.
    """

    folder: Path
    n: int
    batches: int
    found: int
    seconds: float
    result: Mapping[str, Any]

    def __str__(self) -> str:
        before = f", {self.found} of them there before" if self.found else ""
        return f"{self.folder}: {self.n} in {self.batches} batches{before}; {self.seconds:.1f} s"


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
    device: str | None = None,
    threads: int = 1,
    progress: bool = False,
) -> Report:
    """Draw n samples into a folder, one shard a batch; go on with a run that was interrupted.

    Under `torchrun` all processes call this together and share the work. Sample i is that of the seed (seed, i).

    Args:
        model: a `Model` or its name, as `load_model` takes it.
        n: number of samples, exactly.
        folder: for the shards and the manifest; made if absent.
        batch: samples in a batch and shard.
        solver: as `sgm_sde.sample` takes it.
        nfe: as `sgm_sde.sample` takes it.
        steps: as `sgm_sde.sample` takes it.
        grid: as `sgm_sde.sample` takes it.
        final: as `sgm_sde.sample` takes it.
        seed: of the whole set.
        labels: classes that the samples take in turn; "all" for all classes of a model that has any, None for none.
        device: "cpu" or "cuda"; CUDA where there is one if not given.
        threads: of each process on a CPU; kernels may round differently with another number.
        progress: show a progress bar with rate and time left.

    Returns:
        what was done; `result` has the network calls of a batch (`nfe`), the `rows` of the network in all, the
        numbers of the samples that `failed` (not finite, or short of the end), and the `program` as JSON. The samples
        are had by `load`.

    Raises:
        ValueError: for arguments out of range, and a folder that was made with other settings, with the difference.
        OSError: if the folder cannot be written, or another run is writing to it.

    Example:
        >>> import tempfile
        >>> report = sample("digits", 6, folder := tempfile.mkdtemp(), batch=4, nfe=5, device="cpu")
        >>> report.batches, load(folder)["x"].shape
        (2, torch.Size([6, 1, 8, 8]))
    """
    model = load_model(model) if isinstance(model, str) else model
    n, batch = _whole("n", n), _whole("batch", batch)
    resolve_seeds([(seed, n - 1)], None, 1)
    classes = _classes(model, labels)
    chosen, _, program = sampling.plan(model.sde, solver, nfe=nfe, steps=steps, grid=grid, final=final)
    arguments: dict[str, Any] = {"solver": solver, "nfe": nfe, "steps": steps, "grid": grid, "final": final}
    table = None if program is None else program.to_json()

    with Team(device, threads) as team:
        settings = {
            **_common(model, n, batch, seed, team),
            "command": "sample",
            "solver": repr(chosen),
            "steps": steps if program is None else program.steps,
            "nfe": nfe,
            "final": final,
            "labels": classes,
            "program": None if table is None else hashlib.sha256(table.encode()).hexdigest()[:16],
        }
        model.to(team.device)

        def work(first: int, last: int) -> Shard:
            tensors, kwargs = {}, {}
            if classes is not None:
                tensors["y"] = torch.tensor([classes[i % len(classes)] for i in range(first, last)])
                kwargs["y"] = tensors["y"].to(team.device)
            with warnings.catch_warnings():
                for category in (sampling.NonFiniteWarning, sampling.UnfinishedWarning):
                    warnings.simplefilter("ignore", category)  # the report tells of them
                result = sampling.sample(
                    model.score, model.sde, (last - first, *model.shape), seed=[(seed, i) for i in range(first, last)],
                    model_kwargs=kwargs, device=team.device, **arguments,
                )  # fmt: skip
            tensors["x"] = result.x
            failed = [first + i for i in result.status.samples]
            return tensors, {"nfe": result.nfe, "rows": result.rows, "failed": failed}

        def summary(shards: Iterator[Shard]) -> dict[str, Any]:
            infos = [info for _, info in shards]
            return {
                "nfe": max(info["nfe"] for info in infos),
                "rows": sum(info["rows"] for info in infos),
                "failed": [i for info in infos for i in info["failed"]],
                "program": table,
            }

        return _run(team, Path(folder), settings, n, batch, work, summary, "sample" if progress else None)


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
    dequantize: str = "uniform",
    seed: int = 0,
    device: str | None = None,
    threads: int = 1,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Bits/dim of a data set into a folder, one shard a batch; go on with a run that was interrupted.

    Under `torchrun` all processes call this together and share the work. Image i has the seed (seed, i).

    Args:
        model: a `Model` or its name, as `load_model` takes it.
        images: whole numbers in [0, n_levels), (n, *shape of the model).
        folder: for the shards and the manifest; made if absent.
        labels: classes of the images (n,), for a model that takes them; without, it runs without classes.
        batch: images in a batch and shard.
        n_levels: as `bits_per_dim` takes it; the model's if not given.
        data_range: as `bits_per_dim` takes it; the model's if not given.
        repeats: as `bits_per_dim` takes it.
        importance: as `bits_per_dim` takes it.
        dequantize: as `bits_per_dim` takes it, by name.
        seed: of dequantisation and probes.
        device: "cpu" or "cuda"; CUDA where there is one if not given.
        threads: of each process on a CPU; kernels may round differently with another number.
        progress: show a progress bar with rate and time left.
        options: of `log_prob`, such as `eps`, `steps`, `trace`, `n_probes`.

    Returns:
        what was done; `result` has `bits_per_dim`, its `stderr` over images, and the `protocol`. The values of each
        image are had by `load`.

    Raises:
        ValueError: for arguments out of range, images that do not fit the model, and a folder that was made with other
            settings, with the difference.
        TypeError: for images that are no whole numbers.
        OSError: if the folder cannot be written, or another run is writing to it.

    Example:
        >>> import tempfile
        >>> images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> report = likelihood("digits", images, tempfile.mkdtemp(), dequantize="diffusion", eps=0.1, steps=8)
        >>> sorted(report.result)
        ['bits_per_dim', 'nfe', 'protocol', 'stderr']
    """
    model = load_model(model) if isinstance(model, str) else model
    n_levels = model.n_levels if n_levels is None else n_levels
    data_range = model.data_range if data_range is None else data_range
    if n_levels is None or data_range is None:
        missing = "n_levels" if n_levels is None else "data_range"
        raise ValueError(f"give {missing}: the model {model.name!r} does not tell it")
    _check_images(model, images, labels, n_levels)
    sde: Any = model.sde  # bits_per_dim refuses those that are not linear
    n, batch = len(images), _whole("batch", batch)
    resolve_seeds([(seed, n - 1)], None, 1)

    with Team(device, threads) as team:
        settings = {
            **_common(model, n, batch, seed, team),
            "command": "likelihood",
            "data": fingerprint({"x": images}),
            "labels": None if labels is None else fingerprint({"y": labels}),
            "n_levels": n_levels,
            "data_range": list(data_range),
            "repeats": repeats,
            "importance": importance,
            "dequantize": dequantize,
            **options,
        }
        model.to(team.device)

        def work(first: int, last: int) -> Shard:
            kwargs = {} if labels is None else {"y": labels[first:last].to(team.device, torch.int64)}
            result = bits_per_dim(
                model.score, sde, images[first:last].to(team.device), n_levels=n_levels, data_range=data_range,
                repeats=repeats, importance=importance, dequantize=dequantize, model_kwargs=kwargs,
                seed=[(seed, i) for i in range(first, last)], **options,
            )  # fmt: skip
            values = {"bits_per_dim": result.per_image, "draws": result.repeats.T}
            return values, {"nfe": result.nfe, "protocol": result.protocol}

        def summary(shards: Iterator[Shard]) -> dict[str, Any]:
            read = list(shards)
            values = torch.cat([tensors["bits_per_dim"] for tensors, _ in read]).double()
            stderr = float(values.std()) / math.sqrt(n) if n > 1 else None
            first = read[0][1]
            return {"bits_per_dim": float(values.mean()), "stderr": stderr, **first}

        return _run(team, Path(folder), settings, n, batch, work, summary, "image" if progress else None)


def load(folder: Path | str) -> dict[str, Tensor]:
    """The results of a complete run, in the order of the samples: `x` and `y`, or `bits_per_dim` and `draws`.

    Raises:
        ValueError: if the run is not complete, or a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    if "shards" not in manifest:
        raise ValueError(f"the run of {folder} is not complete: start it again with the same command")
    shards = [read_shard(Path(folder) / name)[0] for name in sorted(manifest["shards"])]
    return {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}


def read_data(path: Path | str) -> tuple[Tensor, Tensor | None]:
    """Images, and their labels where the file has any, from a .npy, .npz or .safetensors file.

    A file of several arrays has the images as "x" and the labels as "y"; an .npy file, and one of a single array, has
    images only.

    Raises:
        ValueError: for a file of another kind, or without images.
        OSError: if it cannot be read.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            arrays = {"x": np.load(path, allow_pickle=False)}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        elif path.suffix == ".safetensors":
            arrays = safetensors.numpy.load(path.read_bytes())
        else:
            raise ValueError("its name must end in .npy, .npz or .safetensors")
    except OSError as error:
        raise OSError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, EOFError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} holds no images: {error}") from error
    if len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    if "x" not in arrays:
        raise ValueError(f"{path} has no array 'x' for the images, but {', '.join(map(repr, sorted(arrays)))}")
    images, labels = (
        None if array is None else _tensor(array, f"{name!r} of {path}")
        for name, array in (("x", arrays["x"]), ("y", arrays.get("y")))
    )
    assert images is not None
    return images, labels


def _tensor(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)  # torch does little with other unsigned numbers
    return torch.from_numpy(np.ascontiguousarray(array))


def _run(
    team: Team,
    folder: Path,
    settings: Mapping[str, Any],
    n: int,
    batch: int,
    work: Callable[[int, int], Shard],
    summary: Callable[[Iterator[Shard]], dict[str, Any]],
    unit: str | None,
) -> Report:
    """Do the batches that are missing, each process its share, and write the manifest when all are there.

    `work(first, last)` makes one batch, `summary` what to say of all of them, and `unit` is what the bar counts.
    """
    started = time.perf_counter()
    cuts = range(0, n, batch)
    names = [f"{k:0{max(5, len(str(len(cuts) - 1)))}d}" for k in range(len(cuts))]
    with _open(team, folder, settings) as store:
        mine = {k for k in range(team.rank, len(cuts), team.size) if not store.has(names[k])}
        for k in mine:
            store.remove(names[k])
        missing = [k for k, n_missing in enumerate(team.sum([k in mine for k in range(len(cuts))])) if n_missing]
        sizes = {names[k]: min(batch, n - cuts[k]) for k in missing}
        with _progress(n, sizes, store, unit if team.rank == 0 else None) as update:
            for k in missing[team.rank :: team.size]:
                store.save(names[k], *work(cuts[k], cuts[k] + sizes[names[k]]))
                update()
            team.sum([0])  # all are done
            update()
        result: Mapping[str, Any] = {}
        if team.rank == 0:
            result = summary(read_shard(store.path(name)) for name in names)
            store.finish(names, result)
    return Report(folder, n, len(cuts), len(cuts) - len(missing), time.perf_counter() - started, result)


@contextmanager
def _open(team: Team, folder: Path, settings: Mapping[str, Any]) -> Iterator[Store]:
    """The store of a run, opened by the first process and joined by the others."""
    store, refusal = None, None
    if team.rank == 0:
        try:
            store = Store(folder, settings, shared=team.size > 1)
        except (ValueError, OSError) as error:
            refusal = error
    (refused,) = team.sum([refusal is not None])
    if refusal is not None:
        raise refusal
    if refused:
        raise RefusedError("the run was refused by its first process")
    with store or Store.join(folder, settings) as opened:
        yield opened


@contextmanager
def _progress(n: int, sizes: Mapping[str, int], store: Store, unit: str | None) -> Iterator[Callable[[], None]]:
    """A bar over what all processes have written; without a unit, none."""
    from tqdm.auto import tqdm

    pending = dict(sizes)
    with tqdm(total=n, initial=n - sum(pending.values()), unit=unit or "", disable=unit is None) as bar:

        def update() -> None:
            if unit is not None:
                bar.update(sum(pending.pop(name, 0) for name in store.names()))

        yield update


def _common(model: Model, n: int, batch: int, seed: int, team: Team) -> dict[str, Any]:
    return {
        "model": model.name,
        "weights": model.weights,
        "sde": repr(model.sde),
        "shape": model.shape,
        "n": n,
        "batch": batch,
        "seed": operator.index(seed),
        "dtype": str(torch.get_default_dtype()),
        "device": team.device.type,
        "threads": team.threads if team.device.type == "cpu" else None,
    }


def _whole(option: str, value: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{option} must be a whole number, got {value!r}") from None
    if whole < 1:
        raise ValueError(f"{option} must be at least 1, got {whole}")
    return whole


def _classes(model: Model, labels: Sequence[int] | str | None) -> list[int] | None:
    """The classes that samples take in turn."""
    if isinstance(labels, str):
        if labels != "all":
            raise ValueError(f"labels must be 'all', a list of classes or None, got {labels!r}")
        return None if model.n_classes is None else list(range(model.n_classes))
    if labels is None:
        return None
    if model.n_classes is None:
        raise ValueError(f"labels={list(labels)} were given, and the model {model.name!r} has no classes")
    for label in labels:
        if not 0 <= operator.index(label) < model.n_classes:
            raise ValueError(f"the model {model.name!r} has the classes 0 to {model.n_classes - 1}, got label {label}")
    if not labels:
        raise ValueError("labels must hold at least one class")
    return [operator.index(label) for label in labels]


def _check_images(model: Model, images: Tensor, labels: Tensor | None, n_levels: int) -> None:
    if not isinstance(images, Tensor) or images.is_floating_point() or images.dtype == torch.bool:
        given = f"dtype {images.dtype}" if isinstance(images, Tensor) else repr(images)
        raise TypeError(f"images must be whole numbers of an integer dtype, got {given}")
    if tuple(images.shape[1:]) != model.shape or not len(images):
        raise ValueError(
            f"images must have the shape (n, {', '.join(map(str, model.shape))}), got {tuple(images.shape)}"
        )
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= n_levels:
        raise ValueError(f"images must lie in [0, {n_levels}) for n_levels={n_levels}, got {low} to {high}")
    if labels is not None:
        if model.n_classes is None:
            raise ValueError(f"labels were given, and the model {model.name!r} has no classes")
        if labels.is_floating_point() or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be {len(images)} whole numbers, got {labels.dtype} {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= model.n_classes:
            raise ValueError(f"labels must lie in [0, {model.n_classes}), got {low} to {high}")
