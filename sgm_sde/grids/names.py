"""Grid rules by name, and the words of other libraries for them."""

from __future__ import annotations

from sgm_sde._utils.checks import described, instance_of, unknown
from sgm_sde.grids.base import GridRule
from sgm_sde.grids.spaced import Exponential, Karras, LogSNR, Quadratic, Uniform
from sgm_sde.grids.tables import Distilled, Table
from sgm_sde.grids.thinned import Thinned, Widening

RULES: dict[str, GridRule] = {
    "uniform": Uniform(),
    "quadratic": Quadratic(),
    "exponential": Exponential(),
    "log-snr": LogSNR(),
    "widening": Widening(),
    "thinned": Thinned(),
    "karras": Karras(),
    "table": Table(),
    "distilled": Distilled(),
}


# Grids that other libraries have, in words for what there is here.
_EVEN = (
    "steps of equal time are 'uniform', those of a table's indices 'table', both from T to eps unless t_start says less"
)


ELSEWHERE = {
    **dict.fromkeys(("linear", "linspace", "time-uniform", "trailing", "leading", "simple", "normal"), _EVEN),
    **dict.fromkeys(("sgm-uniform", "ddim-uniform"), _EVEN),
    **dict.fromkeys(("logsnr", "lu", "lambdas", "polyexponential"), "equal steps of log-SNR are 'log-snr'"),
    **dict.fromkeys(("quad", "time-quadratic"), "equal steps of the root of time are 'quadratic'"),
    **dict.fromkeys(("flow", "shift", "shifted"), "times shifted by resolution are grids.Shifted(shift)"),
    **dict.fromkeys(
        ("ays", "align-your-steps", "gits", "kl-optimal", "laplace", "linear-quadratic"),
        "noise levels of your own are grids.FromLevels(levels)",
    ),
    "beta": "quantiles of a Beta distribution are times of your own, (T * scipy.stats.beta.ppf(u, 0.6, 0.6)).tolist() "
    "for u from 1 down to above 0",
    "edm": "EDM's noise levels are 'karras'",
}


def rule(name: str) -> GridRule:
    """The rule of that name.

    Raises:
        ValueError: for an unknown name; the message lists the near ones.

    Examples:
        >>> rule("karras")
        Karras(rho=7.0)
    """
    if not isinstance(name, str):
        raise TypeError(f"a grid's rule has a name, got {described(name)}")
    if name in RULES:
        return RULES[name]
    if words := ELSEWHERE.get(name.lower().replace("_", "-")):
        raise ValueError(f"unknown grid {name!r}: {words}")
    raise unknown("grid", name, RULES)


def rule_name(rule: GridRule) -> str:
    """The name of a rule, or how it is made where it has none.

    Raises:
        TypeError: for anything but a rule.

    Examples:
        >>> rule_name(LogSNR()), rule_name(Karras(rho=5.0))
        ('log-snr', 'Karras(rho=5.0)')
    """
    instance_of("rule", rule, GridRule, "a grid rule, such as LogSNR()")
    return next((name for name, known in RULES.items() if known == rule), repr(rule))
