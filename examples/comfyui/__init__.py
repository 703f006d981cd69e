"""sgm_sde's solvers as nodes of ComfyUI.

Link or copy this folder into ComfyUI's `custom_nodes`, and install sgm_sde into its environment. There are two nodes,
both for *SamplerCustom*: one makes a SAMPLER of any solver on a grid, the other SIGMAS of a grid rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.adapters.k_diffusion import sampler
from sgm_sde.schemes.base import REGISTRY, resolve

SOLVERS = sorted(REGISTRY)
RULES = ["karras", "log-snr"]


def is_flow(model: Any) -> bool:
    """True if the model of a sampling function is one of flow matching, by its `model_sampling`."""
    for name in ("inner_model", "inner_model", "model_sampling"):
        model = getattr(model, name, None)
    return any(kind.__name__ == "CONST" for kind in type(model).__mro__)


def function_of(solver: str) -> Callable[..., Tensor]:
    """A sampling function as ComfyUI calls it; stochastic solvers refuse flow matching, whose noise is another."""
    sample = sampler(solver)

    def checked(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if resolve(solver).stochastic and is_flow(model):
            raise ValueError(
                f"{solver} adds the noise of x = x0 + sigma * noise, and this is a model of flow matching: "
                f"take a deterministic solver"
            )
        return sample(model, x, sigmas, *args, **kwargs)

    return checked


class Node:
    """What ComfyUI asks of a node: `make` is called with values for `ASKED`, and returns one thing.

    Attributes:
        ASKED: kinds of the arguments by their names.
    """

    FUNCTION = "make"
    ASKED: ClassVar[dict[str, tuple[Any, ...]]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node asks for."""
        return {"required": cls.ASKED}


class SolverNode(Node):
    """SAMPLER: a solver by its name."""

    CATEGORY = "sampling/custom_sampling/samplers"
    ASKED: ClassVar = {"solver": (SOLVERS, {"default": "dpm++3m"})}
    RETURN_TYPES = ("SAMPLER",)

    def make(self, solver: str) -> tuple[Any]:
        """What ComfyUI's samplers are made of: a function and no options."""
        from comfy.samplers import KSAMPLER

        return (KSAMPLER(function_of(solver)),)


class GridNode(Node):
    """SIGMAS: a grid rule between the noise levels of a model."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    ASKED: ClassVar = {"model": ("MODEL",), "rule": (RULES,), "steps": ("INT", {"default": 20, "min": 2, "max": 10000})}
    RETURN_TYPES = ("SIGMAS",)

    def make(self, model: Any, rule: str, steps: int) -> tuple[Tensor]:
        """The noise levels of as many network calls, and 0."""
        levels = model.get_model_object("model_sampling")
        sde = sg.EDMSDE(float(levels.sigma_min), float(levels.sigma_max))
        times = sg.grids.rule(rule)(sde, steps - 1).times
        return (torch.tensor([*times, 0.0], dtype=torch.float32),)


NODE_CLASS_MAPPINGS = {"SgmSdeSolver": SolverNode, "SgmSdeSigmas": GridNode}
NODE_DISPLAY_NAME_MAPPINGS = {"SgmSdeSolver": "Solver (sgm_sde)", "SgmSdeSigmas": "Noise levels (sgm_sde)"}
