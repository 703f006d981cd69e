"""Numbers that another machine may round differently, and how far two measurements of them are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from sgm_sde._utils.files import JsonObject


def measured(rows: Sequence[Sequence[float]], within: float) -> dict[str, object]:
    """Numbers that another machine may round differently, as JSON values; rows are of numbers of one size."""
    return {
        "values": [[v + 0.0 if math.isfinite(v) else str(v) for v in map(float, row)] for row in rows],
        "within": within,
    }


def disagreement(there: object, now: object) -> float | None:
    """The largest difference of two measurements, as a share of the largest number of its row.

    None where they are no measurements of the same kind; 0 within the tolerance.

    Examples:
        >>> a, b = measured([[1.0, 2.0]], 1e-3), measured([[1.0, 2.001]], 1e-3)
        >>> disagreement(a, b), disagreement(a, measured([[1.0, 2.5]], 1e-3)), disagreement(a, 3)
        (0.0, 0.2, None)
    """
    if not (_is_measurement(there) and _is_measurement(now)):
        return None
    if there["within"] != now["within"] or [len(r) for r in there["values"]] != [len(r) for r in now["values"]]:
        return None

    rows = zip(there["values"], now["values"], strict=True)
    largest = max((_row_difference(a, b) for a, b in rows), default=0.0)
    return largest if not largest <= now["within"] else 0.0


def _row_difference(there: Sequence[float | str], now: Sequence[float | str]) -> float:
    """The largest difference of two rows as a share of their largest number; infinite where one alone is finite."""
    known = [(float(x), float(y)) for x, y in zip(there, now, strict=True)]
    if any((math.isfinite(x) or math.isfinite(y)) and not math.isfinite(x - y) for x, y in known):
        return math.inf
    pairs = [(x, y) for x, y in known if math.isfinite(x)]
    size = max((max(abs(x), abs(y)) for x, y in pairs), default=0.0)
    return max(abs(x - y) for x, y in pairs) / size if size else 0.0


def _is_measurement(value: object) -> TypeGuard[JsonObject]:
    """True for what `measured` makes."""
    if not isinstance(value, dict) or value.keys() != {"values", "within"}:
        return False
    rows = value["values"]
    plain = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    return plain and all(isinstance(v, float | int) or v in ("nan", "inf", "-inf") for row in rows for v in row)
