"""Sentences on what to know about a calibration."""

from __future__ import annotations

import math

from sgm_sde._utils.warn import warn
from sgm_sde.calibration.choice import FEW_NOISES
from sgm_sde.calibration.exact import KNOWN
from sgm_sde.calibration.held import HeldOutRuns, Ranked
from sgm_sde.calibration.network import CalibrationWarning
from sgm_sde.calibration.result import PILOT, Calibration

DOUBT = "exact samples"  # what a remark on them begins with
IN_OWN_UNITS = "the numbers of a sample are of unlike scale: each is measured by its own standard deviation"
FEW = 2.0  # times the median error on the noises of the fit: beyond, there were too few of them
EQUATIONS = 1024  # noises times dimensions below which there are few


def remarks_on(ranked: Ranked, runs: HeldOutRuns, fitted_median: float, is_late: bool) -> list[str]:
    """Remarks on what was compared at a budget, given the median error on the noises of the fit."""
    exact = runs.exact
    flow = runs.flow
    n = exact.of_fit.at_random
    taken = ranked.settings[0]
    known = exact.doubt < taken.rmse / 3
    remarks = []
    if flow.units is not None:
        remarks.append(IN_OWN_UNITS)
    remarks += of_few_noises(n, math.prod(flow.event))
    if flow.given > n:
        remarks.append(f"{n} of {flow.given} noises were fitted to, and the hardest of the others")
    if ranked.outside:
        names = ", ".join(one.name for one in ranked.outside)
        remarks.append(f"some of the noises left the range of the exact samples with: {names}")
    if taken.name.startswith(PILOT):
        remarks.append("no fit is 10 % better than what is off the shelf, which is taken")
    elif known and taken.median > FEW * fitted_median:  # single noises make errors, and say nothing of the fit
        remarks.append(f"on the noises of the fit the median is {fitted_median:.1e}: more of them would help")
    if ranked.few <= FEW_NOISES:
        of = "one noise" if ranked.few == 1 else f"{ranked.few} noises"
        half = f"half of the mean square error is that of {of}"
        remarks.append(f"{half}: on others it may be far from what is stated")
    if not known:
        beside = f"{DOUBT} are known to {exact.doubt:.1e} only, beside an error of {taken.rmse:.1e}"
        remarks.append(f"{beside}: a larger reference_nfe= makes a better fit, and tells its error better")
    if is_late:
        remarks.append("the time limit ended the fit before it had settled")
    return remarks


def of_few_noises(n: int, d: int) -> list[str]:
    """Remark on n noises of d numbers where they are few, so that hardly any is one that ends in another mode.

    Examples:
        >>> of_few_noises(128, 1)[0]
        '128 noises of 1 number are few: errors on others may be several times what is stated, take 1024'
    """
    enough = EQUATIONS // d
    if n >= enough:
        return []

    numbers = "1 number" if d == 1 else f"{d} numbers"
    return [f"{n} noises of {numbers} are few: errors on others may be several times what is stated, take {enough}"]


def warn_of_doubt(found: Calibration) -> None:
    """Warn of exact samples that are not known as well as they should be; what is below that, a remark says."""
    for remark in found.remarks if found.reference_error >= KNOWN else ():
        if remark.startswith(DOUBT):
            warn(f"calibration at {found.nfe} calls: {remark}", CalibrationWarning)
