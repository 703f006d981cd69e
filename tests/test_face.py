"""The names at the top of the package, and the modules that are attributes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from operator import attrgetter
from types import ModuleType

import pytest

import sgm_sde as sg
from tests.forks import ENV, ROOT
from tools import check_words

NAMESPACES = (
    "adapters", "bench", "calibration", "distributed", "grids", "guidance", "inverse", "latent", "likelihood",
    "metrics", "nn", "oracles", "presets", "processes", "sampling", "schemes", "scores", "tableaus", "testing",
    "time_labels", "training", "trials",
)  # fmt: skip


def test_sixty_names_and_nothing_else() -> None:
    """What is at the top is in `__all__`, beside modules."""
    assert len(set(sg.__all__) - {"__version__"}) <= 60
    found = {name for name in dir(sg) if not name.startswith("_") and not isinstance(getattr(sg, name), ModuleType)}
    assert found | {"__version__"} == set(sg.__all__)


@pytest.mark.parametrize("name", NAMESPACES)
def test_modules_are_attributes(name: str) -> None:
    """Imported with the package, or when they are asked for; `dir` shows them."""
    assert isinstance(getattr(sg, name), ModuleType)
    assert name in dir(sg)


def test_no_name_hides_a_module() -> None:
    """`import sgm_sde.NAME` gives the module of that name, wherever there is one."""
    for path in (ROOT / "sgm_sde").iterdir():
        name = path.stem
        if name.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
            continue
        importlib.import_module(f"sgm_sde.{name}")
        assert isinstance(getattr(sg, name), ModuleType), name
    with pytest.raises(AttributeError, match="no attribute 'LMS'"):
        _ = sg.LMS  # type: ignore[attr-defined]


def test_the_package_imports_little() -> None:
    """None of the heavy libraries, no plots, metrics, networks or runs."""
    heavy = ("scipy", "sklearn", "matplotlib", "torchdiffeq", "torchsde")
    ours = ("sgm_sde.evaluation.metrics", "sgm_sde.evaluation.bench")
    program = f"import sys, sgm_sde; print([m for m in {heavy + ours} if m in sys.modules])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_words() -> None:
    """Docstrings open with noun phrases; replaced words and names stay out."""
    assert check_words.main([]) == 0


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("from_epsilon", "from_noise"), ("from_eps", "from_noise"), ("from_x0", "from_denoiser"),
        ("from_data", "from_denoiser"), ("from_velocity", "from_flow"), ("from_v_prediction", "from_v"),
        ("FlowMatchingSDE", "RectifiedFlowSDE"), ("CFG", "guidance.ClassifierFree"),
        ("ClassifierFreeGuidance", "guidance.ClassifierFree"), ("bpd", "bits_per_dim"), ("nll", "log_prob"),
    ],
)  # fmt: skip
def test_names_of_others_lead_to_ours(name: str, known: str) -> None:
    """What a network predicts above all: by spelling alone one of x_0 would be taken for one of v."""
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; did you mean '{known}'"):
        getattr(sg, name)
    assert attrgetter(known)(sg)
