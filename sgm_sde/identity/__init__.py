"""The identity of values: what tells one process, solver or network from another, as JSON.

Whatever compares, stores or quotes settings does it by `spec`: stores of results, benchmarks, fitted solvers. `repr` is
for people and may leave things out. A spec rests on what a value is made of and not on its address: on its fields, on
the values of functions of time on a fixed grid, on the weights that a score reaches. Numbers that were measured are
compared with a tolerance, so that a run can be resumed on another machine.
"""

from sgm_sde.identity.measured import disagreement, measured
from sgm_sde.identity.reading import from_spec
from sgm_sde.identity.weights import ReachesNetwork, called_networks, checksum, fingerprint, networks, weights
from sgm_sde.identity.writing import Value, Writer, class_name, fields_of, is_function, portable, spec

__all__ = [
    "ReachesNetwork",
    "Value",
    "Writer",
    "called_networks",
    "checksum",
    "class_name",
    "disagreement",
    "fields_of",
    "fingerprint",
    "from_spec",
    "is_function",
    "measured",
    "networks",
    "portable",
    "spec",
    "weights",
]
