"""Solvers fitted to a network: `calibrate` and what it finds.

table.py has the solver, flow.py the network's own flow, exact.py the trajectories that are fitted to, closed.py the fit
in closed form, refine.py that of all numbers together, rough.py levels by trial, fits.py all of these at a budget,
strata.py what each noise counts for, held.py runs from held-out noises, choice.py the choice by them, search.py the
whole, result.py and remarks.py what is told, kept.py what an interrupted call resumes from.
"""

from sgm_sde.calibration.network import CalibrationWarning
from sgm_sde.calibration.result import Calibration, Calibrations, HeldOut, load_calibration
from sgm_sde.calibration.search import calibrate
from sgm_sde.calibration.table import Calibrated, Table

__all__ = [
    "Calibrated",
    "Calibration",
    "CalibrationWarning",
    "Calibrations",
    "HeldOut",
    "Table",
    "calibrate",
    "load_calibration",
]
