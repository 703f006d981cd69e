"""The base of processes: options, priors, and what is no process."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.processes.base import Missing, ProcessNode, require_sde
from tests.by_hand import EDM, LOG2, DoubleWell, column
from tests.conventions import case_id
from tests.helpers import F64


def test_limits_of_the_processes_options() -> None:
    """What lies just inside the limits is taken, what lies on the wrong side is named."""
    assert float(sg.VPSDE(beta_min=2.0, beta_max=2.0).integrated_beta(0.5)) == 1.0  # a constant rate
    assert sg.VPSDE(eps=0.0).eps == 0.0
    assert sg.RectifiedFlowSDE(T=1.0).T == 1.0
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: sg.VPSDE(eps=1.0), "eps=1.0 and T=1.0"),
        (lambda: sg.VPSDE(eps=-0.1), "eps=-0.1"),
        (lambda: sg.VPSDE(T=math.inf), "T=inf"),
        (lambda: sg.VPSDE(eps=math.nan), "eps=nan"),
        (lambda: sg.VPSDE(beta_min=0.0), "beta_min must be positive and finite, got 0.0"),
        (lambda: sg.VPSDE(beta_max=math.inf), "beta_max must be positive and finite, got inf"),
        (lambda: sg.VESDE(sigma_min=1.0, sigma_max=1.0), "1.0 and 1.0"),
        (lambda: sg.EDMSDE(1.0, 1.0), "1.0 and 1.0"),
        (lambda: sg.DiscreteVPSDE([0.0, 0.1]), r"betas\[0\] = 0.0"),
        (lambda: sg.DiscreteVPSDE([0.1, 1.0]), r"betas\[1\] = 1.0"),
        (lambda: sg.DiscreteVESDE([0.0, 1.0]), "0.0 beside 1.0"),
        (lambda: sg.DiscreteVESDE([1.0, math.inf]), "1.0 beside inf"),
        (lambda: sg.DiscreteVESDE([1.0, 3.0, 2.0, 1.0]), "3.0 beside 2.0"),
        (lambda: sg.DiscreteVESDE([2.0, 1.0, 3.0]), "2.0 beside 1.0"),
        (lambda: sg.DiscreteVESDE([2.0]), "sigmas needs at least two entries, got 1"),
    ]
    for make, text in refused:
        with pytest.raises(ValueError, match=text):
            make()
    assert sg.DiscreteVPSDE([0.1, 0.2]).betas == (0.1, 0.2)
    assert sg.DiscreteVESDE([2.0, 1.0]).sigmas == sg.DiscreteVESDE([1.0, 2.0]).sigmas == (1.0, 2.0)


def test_a_process_that_is_not_linear() -> None:
    """Its prior is N(0, prior_std^2) at T alone, and its nodes have t and g alone."""
    sde = DoubleWell()
    x = column(2.0, 4.0).reshape(1, 2)
    assert sde.prior_transform(x).tolist() == sde.prior_transform(x, 1.0).tolist() == [[4.0, 8.0]]
    with pytest.raises(ValueError, match=r"T=1.0 only, not at t=0.5"):
        sde.prior_transform(x, 0.5)
    # (1 + 4)/2 of the squares, and log(2 pi)/2 + log(2) for each of the two numbers
    assert sde.prior_log_prob(x).tolist() == [pytest.approx(-2.5 - math.log(2 * math.pi) - 2 * LOG2)]
    (node,) = sde.nodes([0.5])
    assert (node.t, node.g, sde.marginal_kind) == (0.5, 3.0, "unknown")
    with pytest.raises(TypeError, match=r"this needs alpha\(t\), which DoubleWell does not have"):
        _ = node.alpha
    assert not hasattr(node, "_anything")  # as copying and pickling ask
    assert type(node) is ProcessNode


@pytest.mark.parametrize(
    ("given", "text"),
    [(sg.VPSDE, "got the class VPSDE: call it"), ("vp", "such as VPSDE\\(\\), got 'vp'")],
    ids=case_id,
)
def test_what_is_no_process_is_named(given: Any, text: str) -> None:
    """A class that was not called, and anything else."""
    require_sde(EDM)
    with pytest.raises(TypeError, match=text):
        require_sde(given)


def test_prior_samples_have_a_dtype() -> None:
    """torch's default by default; standard normal noise of the prior's stream times the prior's scale."""
    assert EDM.prior_sample((2, 3), seed=0).dtype == torch.get_default_dtype()
    z = EDM.prior_sample((2, 3), seed=5, t=2.0, dtype=F64)
    assert z.dtype == F64
    assert z.tolist() == (2 * NoiseStream(((5, 0), (5, 1)), "prior").normal((2, 3), F64)).tolist()
    assert EDM.prior_sample((2, 3), seed=5).tolist() == (40 * z).float().tolist()


def test_where_likelihoods_end() -> None:
    """At 1e-5 or below, but never below what the network has seen."""
    assert sg.VPSDE().likelihood_eps == sg.VESDE(eps=1e-3).likelihood_eps == DoubleWell().likelihood_eps == 1e-5
    assert sg.VPSDE(eps=1e-6).likelihood_eps == 1e-6
    assert sg.EDMSDE(0.5, 2.0).likelihood_eps == 0.5
    assert sg.DiscreteVPSDE([0.1, 0.2]).likelihood_eps == sg.DiscreteVESDE([1.0, 2.0]).likelihood_eps == 0.5
    assert sg.LinearSDE.from_schedule(torch.ones_like, lambda t: t, T=1000.0, eps=2.0).likelihood_eps == 2.0


def test_what_is_missing_comes_back_from_other_processes() -> None:
    told = Missing("g(t), which Mine does not have", "score")
    assert str(pickle.loads(pickle.dumps(told))) == str(told) == "score needs g(t), which Mine does not have"
