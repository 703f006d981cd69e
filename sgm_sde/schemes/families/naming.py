"""Options that several methods have, and what of them stands in a solver's name."""

from __future__ import annotations

from sgm_sde._utils.checks import one_of
from sgm_sde.schemes.exponential import STARTS, Eta


def warm_if(order: int, start: str | None, eta: Eta, least: int = 3) -> str:
    """The start that the order needs, if none is given."""
    if start is not None:
        one_of("start", start, STARTS)
        return start
    return "warm" if order >= least and not callable(eta) and eta == 0 else "cold"


def lower(order: int, lower_final: bool | None) -> bool | None:
    """The option `lower_final`, False for a method of one evaluation, which has none to leave out."""
    if order == 1 and lower_final:
        raise ValueError(f"order 1 has no lower one to end with, got lower_final={lower_final!r}")
    return lower_final if order > 1 else False


def named(name: str, *parts: str | None) -> str:
    """A solver's name, with what differs from the solver that has it alone."""
    return "-".join([name, *(part for part in parts if part)])


def start_part(start: str, usual: str) -> str | None:
    """Part of a name for a start that is not the usual one."""
    return None if start == usual else start


def lowered_part(order: int, lower_final: bool | None) -> str | None:
    """Part of a name for the option `lower_final`, where it is given and does something."""
    return None if lower_final is None or order == 1 else "lowered" if lower_final else "unlowered"


def noise_part(eta: Eta, usual: tuple[float, ...]) -> str | None:
    """Part of a name for a stochasticity that is none of the usual ones; functions of time share one."""
    return "eta-of-t" if callable(eta) else None if eta in usual else f"eta{eta!r}"


def level_part(what: str, level: float | None, usual: float | None = None) -> str | None:
    """Part of a name for a level of noise or a scale that is not the usual one."""
    return None if level is None or level == usual else f"{what}{level:g}"
