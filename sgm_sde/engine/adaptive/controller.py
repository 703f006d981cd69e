"""The size of the next step from the error of the last ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgm_sde.identity import Value

LEAST_LAST_ERROR = 1e-4  # the last error from which the next step is predicted is at least so large
FACTOR_AT_NAN = 0.1  # of the step after an attempt whose error is no number


@dataclass(frozen=True)
class Controller(Value):
    r"""PI step size controller: the next step from the errors of this one and the last.

    $$ h' = h \cdot \min(f_{\max}, \max(f_{\min}, \theta\,E^{-k_I/q}\,E_{\text{last}}^{\,k_P/q})) $$

    with q the order of the error estimate. After a rejection $k_P = 0$, and the next accepted step does not grow.

    Args:
        safety: theta.
        integral: k_I.
        proportional: k_P.
        smallest: f_min, of one change.
        largest: f_max.
        digits: binary digits that a step keeps, relative to the run's length; all if not given. Runs that differ by
            rounding then take the same steps, without which they would see a Brownian path at other places.

    Source: Gustafsson, 1991, doi:10.1145/210232.210242; Hairer & Wanner, 1996, section IV.2.

    Examples:
        >>> Controller().factor(np.array([1.0, 1e-9]), np.array([1.0, 1.0]), 5)
        array([ 0.9, 10. ])
    """

    safety: float = 0.9
    integral: float = 0.7
    proportional: float = 0.4
    smallest: float = 0.2
    largest: float = 10.0
    digits: int | None = None

    def rounded(self, h: np.ndarray, length: float) -> np.ndarray:
        """Steps with as many digits as they keep, not longer than given."""
        if self.digits is None:
            return h
        fraction, exponent = np.frexp(h / length)
        scale = 2.0**self.digits
        return np.ldexp(np.trunc(fraction * scale) / scale, exponent) * length

    def factor(self, error: np.ndarray, last_error: np.ndarray, order: float) -> np.ndarray:
        """The factor after an accepted step."""
        with np.errstate(divide="ignore", invalid="ignore"):
            before = np.maximum(last_error, LEAST_LAST_ERROR)
            raw = self.safety * error ** (-self.integral / order) * before ** (self.proportional / order)
        return np.clip(raw, self.smallest, self.largest)

    def after_rejection(self, error: np.ndarray, order: float) -> np.ndarray:
        """The factor after a rejected step; a tenth where the error is no number."""
        with np.errstate(divide="ignore", invalid="ignore"):
            raw = self.safety * error ** (-1 / order)
            return np.where(np.isfinite(error), np.clip(raw, self.smallest, self.safety), FACTOR_AT_NAN)
