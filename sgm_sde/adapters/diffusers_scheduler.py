"""`SolverScheduler` as one of diffusers' own schedulers; imported only where diffusers is."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin

from sgm_sde._utils.files import JsonObject
from sgm_sde.adapters import scheduler as plain

FLOWS = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]


class SolverScheduler(plain.SolverScheduler, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver of this library as a scheduler that pipelines save and load; see `sgm_sde.adapters.SolverScheduler`."""

    config_name = "scheduler_config.json"  # type: ignore[assignment]
    _compatibles: ClassVar[list[str]] = [kind.name for kind in KarrasDiffusionSchedulers] + FLOWS  # type: ignore[misc]

    def _keep_config(self, config: JsonObject) -> None:
        known = {name: value for name, value in config.items() if name != "_use_default_values"}
        trained_with = known.pop("_class_name", None)
        own = plain.options_as_json(self) | {"trained_with": trained_with}
        self.register_to_config(**known, **{plain.OWN: own})  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The scheduler in a folder that `save_pretrained` wrote, its own or another scheduler's."""
        return super(plain.SolverScheduler, cls).from_pretrained(*args, **kwargs)

    @property
    def compatibles(self) -> list[type]:
        """The schedulers of diffusers that read the same configuration."""
        return [kind for kind in self._get_compatibles() if (kind.__name__ in FLOWS) == self._convention.is_flow]
