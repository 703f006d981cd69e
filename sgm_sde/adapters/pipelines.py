"""diffusers: the folder that a pipeline was saved to is read as a score on its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from sgm_sde._utils.files import parse_json, reading
from sgm_sde.adapters.diffusers import from_diffusers
from sgm_sde.processes import LinearSDE
from sgm_sde.scores.score import Score

EDGES = (-1 - 1 / 255, 1 + 1 / 255)  # level k stands at k / 127.5 - 1
NETWORKS = {"unet", "transformer"}


class Pipeline(NamedTuple):
    """A network of images from a saved pipeline, with what is known of its data.

    Attributes:
        score: the network as a score.
        sde: the process of its scheduler.
        shape: of an image.
        n_classes: number of class labels, or None.
        data_range: edges of the lowest and the highest level.
        n_levels: number of levels.
    """

    score: Score
    sde: LinearSDE
    shape: tuple[int, ...]
    n_classes: int | None
    data_range: tuple[float, float] = EDGES
    n_levels: int = 256


class _Labelled(nn.Module):
    """A network that takes its classes as `y`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor | None = None) -> object:
        return self.net(x, timestep, class_labels=y)


def from_pipeline(folder: Path | str) -> Pipeline:
    """The network and the process in the folder of a pipeline that diffusers saved.

    Images lie in [-1, 1], of 256 levels, as pipelines of diffusers have them; a network with `num_class_embeds` takes
    classes. Weights are read from safetensors, and nothing is downloaded.

    Args:
        folder: with `model_index.json`, the folder of the network and that of the scheduler.

    Raises:
        ValueError: for a pipeline with more than a network and a scheduler, such as a text encoder, or of a schedule
            that `from_diffusers` does not read.
        ImportError: without diffusers.
        OSError: for weights that are not there.
    """
    folder = Path(folder)
    part, class_name = _network_part(folder)
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("a saved pipeline is read with diffusers: pip install diffusers") from error

    kind: Any = getattr(diffusers, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise ValueError(f"{folder} has a {part} of the class {class_name!r}, which diffusers does not have")
    load = getattr(kind, "from_pretrained")  # noqa: B009, known to mypy where diffusers is installed only
    net: Any = load(folder / part, local_files_only=True, use_safetensors=True).eval()

    file = folder / "scheduler" / "scheduler_config.json"
    with reading(file, "configuration of a scheduler"):
        config = parse_json(file.read_bytes())
    n_classes = getattr(net.config, "num_class_embeds", None)
    score, sde = from_diffusers(net if n_classes is None else _Labelled(net), config)

    return Pipeline(score, sde, _image_shape(net.config), n_classes)


def _image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of a network's images; a size that is one number is that of a square."""
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(config.in_channels), int(height), int(width)


def _network_part(folder: Path) -> tuple[str, str]:
    """The network's part of a pipeline of a network and a scheduler, and its class.

    Raises:
        ValueError: for other pipelines.
    """
    file = folder / "model_index.json"
    with reading(file, "pipeline of diffusers"):
        index = parse_json(file.read_bytes())
        used = {name: value for name, value in index.items() if isinstance(value, list) and value[0] is not None}

    networks = sorted(used.keys() & NETWORKS)
    others = used.keys() - NETWORKS - {"scheduler"}
    if others or len(networks) != 1 or "scheduler" not in used:
        raise ValueError(
            f"{folder} is a pipeline of {', '.join(sorted(used))}; one of a unet or transformer and a scheduler is read"
        )
    part = networks[0]
    return part, str(used[part][1])
