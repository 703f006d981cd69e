"""Solvers fitted to a network: `calibrate` and what it finds.

table.py has the solver, flow.py the network's own flow, closed.py the fit in closed form, refine.py that of all numbers
together, rough.py levels by trial, search.py what compares them, result.py what is told and kept.
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
