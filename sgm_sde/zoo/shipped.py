"""The networks that ship with the package, as scores."""

from __future__ import annotations

from sgm_sde.adapters import from_edm
from sgm_sde.nn.digits import load_digits_denoiser
from sgm_sde.nn.fashion import load_fashion_denoiser
from sgm_sde.processes import LinearSDE
from sgm_sde.scores import Score


def digits_score(sde: LinearSDE) -> Score:
    """The shipped digits network as a score on any linear process; pass labels as `model_kwargs={"y": labels}`.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> sg.sample(digits_score(sde), sde, (2, 1, 8, 8), nfe=5, seed=0, model_kwargs={"y": torch.tensor([3, 7])})
        SampleResult(x=(2, 1, 8, 8) torch.float32, nfe=5, completed)
    """
    return from_edm(load_digits_denoiser(), sde)[0]


def fashion_score(sde: LinearSDE) -> Score:
    """The shipped Fashion-MNIST network as a score on any linear process; labels as for `digits_score`.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> boot = fashion_score(sg.VPSDE()).denoised(torch.zeros(1, 1, 28, 28), 1.0, y=torch.tensor([9]))
        >>> boot.shape
        torch.Size([1, 1, 28, 28])
    """
    return from_edm(load_fashion_denoiser(), sde)[0]
