"""The base of everything that is a value: processes, solvers, grids, scores, programs."""

from __future__ import annotations

from typing import Any


class Value:
    """Something with an identity: two that differ have different specs."""

    def spec(self) -> dict[str, Any]:
        """The value's identity as JSON values; see `sgm_sde.spec`."""
        from sgm_sde.identity import spec

        found: dict[str, Any] = spec(self)
        return found

    def _held(self) -> dict[str, Any]:
        """Parts of the value beside its fields and public attributes, by name."""
        return {}
