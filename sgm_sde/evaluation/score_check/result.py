"""Errors of a network's data estimates beside those of a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgm_sde._utils.checks import reals, settle

TINY = 1e-12  # errors below count as this


class ScoreCheckWarning(UserWarning):
    """A network that errs more than a Gaussian at some noise level, and less at most."""


@dataclass(frozen=True)
class ScoreCheck:
    """Errors of a network's data estimates, beside those of a Gaussian fitted to the data.

    Attributes:
        levels: noise levels, sigma / alpha.
        errors: of the network, root mean square over the standard deviation of the data.
        gaussian: of the Gaussian, the same.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for none, another number of errors than of levels, and negative ones.

    Examples:
        >>> ScoreCheck(levels=(0.5, 2.0), errors=(0.1, 0.4), gaussian=(0.2, 0.8)).ratio
        0.5
    """

    levels: tuple[float, ...]
    errors: tuple[float, ...]
    gaussian: tuple[float, ...]

    def __post_init__(self) -> None:
        given = {name: reals(name, value) for name, value in vars(self).items()}
        settle(self, **given)
        if not self.levels or len(set(map(len, given.values()))) > 1:
            lengths = ", ".join(f"{len(values)} in {name}" for name, values in given.items())
            raise ValueError(f"a ScoreCheck has as many errors as levels, at least one, got {lengths}")
        for name, values in given.items():
            negative = next((value for value in values if not value >= 0), None)
            if negative is not None:
                raise ValueError(f"{name} of a ScoreCheck are not negative, got {negative}")

    @property
    def ratio(self) -> float:
        """rho: the network's error over the Gaussian's, in the geometric mean over the levels."""
        return math.exp(math.fsum(map(math.log, self.ratios)) / len(self.levels))

    @property
    def ratios(self) -> list[float]:
        """The network's error over the Gaussian's at each level."""
        pairs = zip(self.errors, self.gaussian, strict=True)
        return [max(error, TINY) / max(fitted, TINY) for error, fitted in pairs]

    def __str__(self) -> str:
        rows = zip(self.levels, self.errors, self.gaussian, strict=True)
        lines = ["sigma/alpha   network   a Gaussian   (error of the estimated data / their standard deviation)"]
        lines += [f"{level:11.3g}   {error:7.3g}   {fitted:10.3g}" for level, error, fitted in rows]
        return "\n".join([*lines, f"network / Gaussian {self.ratio:.2f} in the geometric mean"])
