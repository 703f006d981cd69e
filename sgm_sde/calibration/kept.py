"""Finished parts of a calibration, kept in a folder from which an interrupted one is resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from sgm_sde._utils.files import JsonMapping
from sgm_sde.calibration.exact import Exact
from sgm_sde.calibration.flow import Flow, Trajectories
from sgm_sde.calibration.result import Calibration, from_json, to_json
from sgm_sde.calibration.rows import Rows
from sgm_sde.calibration.strata import Strata
from sgm_sde.runs.store import Store

METHOD = 3  # of which noises are which: what another has begun is not continued
EXACT = "exact-trajectories"
MEASURED = ("nfe", "doubt", "median", "network_evals")  # of them
STRATA = ("fit", "held")  # what noises are for


class Kept:
    """Results that are made once, and kept if there is a folder.

    Args:
        folder: where they are kept, if they are.
        settings: those of the call, which one that is resumed must share.

    Attributes:
        seconds: those of the fits that an earlier call had finished.
    """

    def __init__(self, folder: Path | str | None, settings: JsonMapping) -> None:
        self._store = None if folder is None else Store(folder, {**settings, "method": METHOD})
        self.seconds = 0.0

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()

    def calibration(self, n: int, make: Callable[[], Calibration]) -> Calibration:
        """The calibration for n calls."""
        name = f"budget-{n}"
        if self._store is not None and self._store.has(name):
            return from_json(self._store.info(name)["calibration"])
        found = make()
        if self._store is not None:
            self._store.save(name, {}, {"calibration": to_json(found)})
        return found

    def rows(self, name: str, make: Callable[[], Rows], flow: Flow, late: Callable[[], bool]) -> Rows:
        """A fit by its name; one that had no time to settle is not kept."""
        if self._store is not None and self._store.has(name):
            info = self._store.info(name)
            flow.network_evals += int(info["network_evals"])
            self.seconds += float(info["seconds"])
            return Rows(**self._store.load(name))

        before = flow.network_evals
        started = time.monotonic()
        rows = make()
        if self._store is not None and not late():
            spent = {"network_evals": flow.network_evals - before, "seconds": time.monotonic() - started}
            self._store.save(name, vars(rows), spent)
        return rows

    def exact(self, make: Callable[[], Exact], device: torch.device) -> Exact:
        """Data shared by all budgets."""
        if self._store is not None and self._store.has(EXACT):
            return self._loaded(self._store, device)
        exact = make()
        if self._store is not None:
            self._save(self._store, exact)
        return exact

    @staticmethod
    def _save(store: Store, exact: Exact) -> None:
        tensors = {"held": exact.held, **vars(exact.fit)}
        info: dict[str, object] = {key: getattr(exact, key) for key in MEASURED}
        for name, strata in zip(STRATA, (exact.of_fit, exact.of_held), strict=True):
            tensors |= {f"numbers_{name}": strata.numbers, f"hard_{name}": strata.hard}
            info[name] = [strata.at_random, strata.drawn]
        store.save(EXACT, tensors, info)

    @staticmethod
    def _loaded(store: Store, device: torch.device) -> Exact:
        tensors = store.load(EXACT)
        info = store.info(EXACT)
        held, *parts = (tensors[name].to(device) for name in ("held", "y", "D", "end"))
        of_fit, of_held = (
            Strata(tensors[f"numbers_{name}"], tensors[f"hard_{name}"], *info.pop(name)) for name in STRATA
        )
        return Exact(Trajectories(tensors["log_levels"], *parts), held, of_fit, of_held, **info)
