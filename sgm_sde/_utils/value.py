"""The base of everything that is a value: processes, solvers, grids, scores, programs."""

from __future__ import annotations


class Value:
    """Something with an identity: two that differ have different specs."""

    def spec(self) -> dict[str, object]:
        """The value's identity as JSON values; see `sgm_sde.spec`."""
        from sgm_sde.identity import spec

        found: dict[str, object] = spec(self)
        return found

    def _held(self) -> dict[str, object]:
        """Parts of the value beside its fields and public attributes, by name."""
        return {}
