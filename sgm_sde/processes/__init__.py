"""Forward processes: from data at t = 0 to noise at t = T."""

from sgm_sde.processes import presets
from sgm_sde.processes.base import SDE, CheckError
from sgm_sde.processes.cld import CLD, hybrid_score_matching
from sgm_sde.processes.discrete import DiscreteVESDE, DiscreteVPSDE
from sgm_sde.processes.edm import EDMSDE
from sgm_sde.processes.flow import RectifiedFlowSDE
from sgm_sde.processes.forward import simulate
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.processes.ve import VESDE
from sgm_sde.processes.vp import VPSDE, CosineVPSDE, SubVPSDE

__all__ = [
    "CLD",
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "CheckError",
    "CosineVPSDE",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "LinearSDE",
    "MatrixSDE",
    "RectifiedFlowSDE",
    "SubVPSDE",
    "hybrid_score_matching",
    "presets",
    "simulate",
]
