"""Networks of other libraries as (score, sde); our solvers as a scheduler of diffusers and as functions of k-diffusion.

    score, sde = sg.adapters.from_diffusers(unet, scheduler)
    x = sg.sample(score, sde, (4, 3, 64, 64), nfe=20, seed=0).x

None of these libraries is needed for the import: a module is called as its library calls it, a configuration is read as
the dictionary it is.
"""

from sgm_sde.adapters import k_diffusion
from sgm_sde.adapters.diffusers import from_diffusers
from sgm_sde.adapters.networks import from_azula, from_edm, from_flow_matching, from_score_sde
from sgm_sde.adapters.scheduler import SolverScheduler

__all__ = [
    "SolverScheduler",
    "from_azula",
    "from_diffusers",
    "from_edm",
    "from_flow_matching",
    "from_score_sde",
    "k_diffusion",
]
