"""A network with everything that a command needs to know of it, found by name."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sgm_sde._utils.checks import check_integer, did_you_mean, instance_of, range_of, sizes, unknown
from sgm_sde.adapters.pipelines import from_pipeline
from sgm_sde.identity import networks, weights
from sgm_sde.likelihood import bits_per_dim
from sgm_sde.likelihood.results import BitsPerDimResult
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.scores.conditions import PerSample
from sgm_sde.scores.score import Score, as_score

if TYPE_CHECKING:
    from sgm_sde.calibration.result import Calibration

__all__ = ["Model", "find_function", "load_model"]


@dataclass(frozen=True)
class Model:
    """A trained network with its process and what is known of its data.

    Args:
        name: what commands and results call it.
        score: the network as a score.
        sde: the process to run.
        shape: of one sample, without the batch.
        n_classes: number of class labels, which the network takes as `y` (B,), int64; None for a network without.
        data_range: (lo, hi), the lower edge of the lowest level and the upper edge of the highest one, as the network
            knows them; None if not known.
        n_levels: number of levels of the data, 256 for 8-bit images; None if not known.
        dequantize: how likelihoods of its levels are taken, as `bits_per_dim` takes it: `"uniform"` for a network
            trained on dequantised data, `"diffusion"` for one trained on the levels themselves.
        eps: where they are taken, for a network that is not good down to the process' `likelihood_eps`.
        weights: the SHA-256 of all parameters, buffers and tensors that the score reaches: of its network, of the parts
            of a guided score, and of what functions close over; "" for a score without any.

    Raises:
        ValueError: for a shape or a number of classes or levels that is not positive, an empty range, or a score made
            for another process or from a network in DistributedDataParallel.
        TypeError: for a score that is not callable or a process that is none.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> Model("normal", sg.from_score(lambda x, t: -x, sde), sde, (3, 8, 8)).shape
        (3, 8, 8)
    """

    name: str
    score: Score = field(repr=False)
    sde: SDE
    shape: tuple[int, ...]
    n_classes: int | None = None
    data_range: tuple[float, float] | None = None
    n_levels: int | None = None
    dequantize: str = "uniform"
    eps: float | None = None
    weights: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        require_sde(self.sde)
        object.__setattr__(self, "score", as_score(self.score, self.sde))
        object.__setattr__(self, "shape", sizes("shape", self.shape))
        for option, count, least in (("n_classes", self.n_classes, 1), ("n_levels", self.n_levels, 2)):
            if count is not None:
                check_integer(option, count, least, kind=int)
        if self.data_range is not None:
            object.__setattr__(self, "data_range", range_of("data_range", self.data_range))
        if any(isinstance(net, nn.parallel.DistributedDataParallel) for net in networks(self.score)):
            raise ValueError("the network waits for other processes at each call: pass net.module, without the wrapper")
        if not self.weights:
            object.__setattr__(self, "weights", weights(self.score))

    def bits_per_dim(self, images: Tensor, y: Tensor | None = None, **options: Any) -> BitsPerDimResult:
        """Bits per dimension of discrete images, by the model's own levels, range and dequantisation.

        Args:
            images: integers in [0, n_levels), (B, *).
            y: their class labels (B,), int64, for a class-conditional number.
            options: of `sgm_sde.bits_per_dim`, which go before the model's.

        Raises:
            ValueError: for a model that does not tell its levels and range, and as `sgm_sde.bits_per_dim`.

        Examples:
            >>> from sgm_sde.likelihood import FixedGrid
            >>> from sgm_sde.nn.digits import digits_data
            >>> images = ((digits_data("held_out")[0][:2] + 1) * 8).round().to(torch.uint8)
            >>> load_model("digits").bits_per_dim(images, method=FixedGrid(8), seed=0).estimator
            'Jensen bound'
        """
        return bits_per_dim(self.score, self.sde, images, **self.likelihood_options(y, options))  # type: ignore[arg-type]

    def likelihood_options(self, y: Tensor | None, given: Mapping[str, object]) -> dict[str, object]:
        """Arguments of `bits_per_dim`: those given, and the model's own for the rest.

        Raises:
            ValueError: for levels or a range that neither the caller nor the model tells.
        """
        own: dict[str, object] = {
            "n_levels": self.n_levels,
            "data_range": self.data_range,
            "dequantize": self.dequantize,
        }
        if "dequantize" not in given and self.eps is not None:
            own["eps"] = self.eps
        if y is not None:
            own["model_kwargs"] = {"y": PerSample(y)}
        options = {**own, **given}
        for name in ("n_levels", "data_range"):
            if options[name] is None:
                raise ValueError(f"give {name}: the model {self.name!r} does not tell it")
        return options

    def solver(self, nfe: int) -> Calibration:
        """The calibrated solver that ships with a shipped network, for a budget of network calls.

        Its process is that of the shipped model, its labels are all classes in turn, without guidance.

        Raises:
            ValueError: for a model or a budget without one, with those that there are.

        Examples:
            >>> import sgm_sde as sg
            >>> model = load_model("digits")
            >>> labels = {"y": torch.tensor([3, 7])}
            >>> sg.sample(model.score, model.sde, (2, 1, 8, 8), solver=model.solver(5), seed=0, model_kwargs=labels)
            SampleResult(x=(2, 1, 8, 8) torch.float32, nfe=5, completed)
        """
        from sgm_sde.calibration.result import as_calibrations, at_budget, load_calibration

        file = Path(str(resources.files("sgm_sde"))) / "zoo" / "assets" / f"{self.name}_solvers.json"
        if self.name not in SHIPPED or not file.exists():
            raise ValueError(f"no solver ships with the model {self.name!r}: find one with calibrate")
        return at_budget(as_calibrations(load_calibration(file)), check_integer("nfe", nfe))

    def to(self, device: torch.device | str) -> Model:
        """The same model; the networks that its score reaches are moved to the device."""
        for net in networks(self.score):
            net.to(device)
        return self


def _shipped(name: str, shape: tuple[int, ...], n_levels: int, eps: float) -> Model:
    from sgm_sde.processes import EDMSDE
    from sgm_sde.zoo import shipped

    sde = EDMSDE()
    score = {"digits": shipped.digits_score, "fashion": shipped.fashion_score}[name](sde)
    half = 1 / (n_levels - 1)  # of the distance between two levels: the first stands at -1, the last at 1
    return Model(
        name,
        score,
        sde,
        shape,
        n_classes=10,
        data_range=(-1 - half, 1 + half),
        n_levels=n_levels,
        dequantize="diffusion",
        eps=eps,
    )


SHIPPED: dict[str, Callable[[], Model]] = {
    "digits": partial(_shipped, "digits", (1, 8, 8), n_levels=17, eps=0.1),
    "fashion": partial(_shipped, "fashion", (1, 28, 28), n_levels=256, eps=0.01),
}


def load_model(name: str) -> Model:
    """A model by name: one that is shipped, "MODULE:FACTORY", or the folder of a saved pipeline of diffusers.

    FACTORY is a function without arguments in the module MODULE, which may lie in the current directory. It returns a
    `Model`, or a tuple (score, sde, shape) with the shape of one sample.

    Raises:
        ValueError: for an unknown name, with the near ones, or a factory that returns something else.
        ImportError: for a module that does not exist or cannot be imported.

    Examples:
        >>> load_model("digits").shape
        (1, 8, 8)
    """
    instance_of("name", name, str | Path, "a text")
    name = str(name)
    if os.path.isfile(os.path.join(name, "model_index.json")):  # noqa: PTH113, PTH118 - False for any text
        return Model(Path(name).resolve().name, **from_pipeline(name)._asdict())
    if ":" not in name:
        if name not in SHIPPED:
            more = " A model of your own is named MODULE:FACTORY, a saved pipeline by its folder"
            raise unknown("model", name, SHIPPED, more)
        return SHIPPED[name]()
    with _here_first():
        _, factory = find_function(name)
        made: Any = factory()
    if isinstance(made, tuple) and len(made) == 3:
        made = Model(name, *made)
    if not isinstance(made, Model):
        raise ValueError(f"{name} must return a Model or (score, sde, shape), got {type(made).__name__}")
    return replace(made, name=name)


def find_function(name: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the function of "MODULE:FUNCTION"; the module may lie in the current directory.

    Raises:
        ValueError: for a module without such a function, with the near ones.
        ImportError: for a module that does not exist or cannot be imported.

    Examples:
        >>> find_function("math:hypot")[1](3, 4)
        5.0
    """
    module_name, _, attribute = name.partition(":")
    module = _module(module_name)
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(attribute, functions)
        raise ValueError(f"the module {module_name!r} has no function {attribute!r}{hint}")
    return module, function


def source_hash(module: ModuleType) -> str:
    """SHA-256 of a module's source file; "" for what has none."""
    try:
        file = inspect.getsourcefile(module)
    except TypeError:  # a built-in module
        return ""
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


@contextmanager
def _here_first() -> Iterator[None]:
    """The current folder is the first to look for modules in, as it is for a script there; from then on, the last."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    importlib.invalidate_caches()
    try:
        with _here_first():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        hint = did_you_mean(name, [path.stem for path in Path(here).glob("*.py")])
        raise ModuleNotFoundError(f"no module {name!r}, neither installed nor in {here}{hint}", name=name) from None
    except ValueError:
        raise ValueError(f"{name!r} is no name of a module: a model of your own is MODULE:FACTORY") from None
