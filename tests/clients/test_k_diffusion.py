"""k-diffusion's own samplers beside our functions of their form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.peers import _k_diffusion
from sgm_sde.adapters.k_diffusion import sampler

F64 = torch.float64
STEPS = 12
X = 14.6 * torch.randn(3, 2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))


def model(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
    """A denoiser that is not linear, with a condition."""
    level = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh(x / (1 + level) + cond) / (1 + 0.1 * level)


def sigmas(to_zero: bool = True) -> Tensor:
    levels = _k_diffusion().get_sigmas_karras(STEPS, 0.03, 14.6)
    return levels.to(F64) if to_zero else levels[:-1].to(F64)


def noises(like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise as a function of the call alone."""
    generator = torch.Generator().manual_seed(1)
    return lambda sigma, sigma_next: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def halves(like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same for `sample_dpmpp_sde`, which asks about the first half of a step and then about the whole of it."""
    draw, half = noises(like), []

    def ask(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        z = draw(sigma, sigma_next)
        if not half:
            half.append(z)
            return z
        q = sigma_next / sigma
        return (q.sqrt() * half.pop() + z) / (1 + q).sqrt()

    return ask


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("sample_euler", "euler", {}),
    ("sample_euler_ancestral", "euler_a", {}),
    ("sample_euler_ancestral", "euler_ancestral", {"eta": 0.4, "s_noise": 1.1}),
    ("sample_heun", "heun", {}),
    ("sample_dpm_2", "dpm_2", {}),
    ("sample_dpm_2_ancestral", "dpm_2_ancestral", {}),
    ("sample_dpm_2_ancestral", "dpm2_a", {"eta": 0.5}),
    ("sample_lms", sg.schemes.LMS(4, start="cold"), {}),
    ("sample_dpmpp_2s_ancestral", "dpmpp_2s_ancestral", {}),
    ("sample_dpmpp_2s_ancestral", "DPMPP_2S_ancestral", {"eta": 0}),
    ("sample_dpmpp_sde", "dpmpp_sde", {}),
    ("sample_dpmpp_2m", "dpmpp_2m", {}),
    ("sample_dpmpp_2m_sde", "dpmpp_2m_sde", {}),
    ("sample_dpmpp_2m_sde", "dpmpp_2m_sde", {"eta": 0.3, "s_noise": 0.9}),
    ("sample_dpmpp_2m_sde", "dpmpp_2m_sde_gpu", {"solver_type": "heun"}),
]


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize(("theirs", "ours", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_parity(theirs: str, ours: Any, options: dict[str, Any], to_zero: bool) -> None:
    """States at every call, levels, denoised data and result agree."""
    if theirs == "sample_lms":
        to_zero = False  # its last step, to 0, continues with the four slopes; ours is the denoised data there
    levels = sigmas(to_zero)
    function = sampler(ours)
    random = "ancestral" in theirs or "sde" in theirs
    seen: list[list[dict[str, Any]]] = [[], []]
    results = []
    for k, f in enumerate((getattr(_k_diffusion(), theirs), function)):
        noise = {}
        if random and options.get("eta") != 0:
            noise["noise_sampler"] = halves(X) if theirs == "sample_dpmpp_sde" and k == 0 else noises(X)
        callback = seen[k].append
        arguments = {"cond": torch.tensor(0.3, dtype=F64)}
        results.append(f(model, X, levels, arguments, callback, True, **options, **noise))

    # Theirs works to the precision of `quad` and of levels in float64.
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    assert float((results[0] - results[1]).abs().max()) < 1e-5
    assert len(seen[0]) == len(seen[1]) == STEPS - (not to_zero)
    for a, b in zip(*seen, strict=True):
        assert a.keys() == b.keys()
        assert a["i"] == b["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=1e-5)


CHURN = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}


@pytest.mark.parametrize("name", ["sample_euler", "sample_dpm_2"])
def test_only_heun_has_churn(name: str) -> None:
    with pytest.raises(ValueError, match="has no option 's_churn'"):
        sampler(name)(model, X, sigmas(), {"cond": torch.zeros((), dtype=F64)}, None, True, **CHURN)


@pytest.mark.parametrize("to_zero", [True, False])
def test_churn(to_zero: bool) -> None:
    """Heun with churn is theirs, whatever the number of steps that it is spread over."""
    # Their noise is global, one draw a step whether it is used or not: compared where nothing is random, at s_noise 0.
    options = {**CHURN, "s_noise": 0.0}
    arguments = {"cond": torch.zeros((), dtype=F64)}
    theirs, ours = (
        f(model, X, sigmas(to_zero), arguments, None, True, **options)
        for f in (_k_diffusion().sample_heun, sampler("sample_heun", seed=0))
    )
    assert float((theirs - ours).abs().max()) < 1e-5
