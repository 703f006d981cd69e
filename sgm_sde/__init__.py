from sgm_sde.processes import *
