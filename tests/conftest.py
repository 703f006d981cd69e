"""Settings for the whole suite."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("sgm_sde", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("sgm_sde")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tensors here are small: threads only cost


torch.manual_seed(0)  # for networks made where a file is read


@pytest.fixture(autouse=True)
def _same_networks() -> None:
    """Networks that a test makes with random weights are the same in every run and order."""
    torch.manual_seed(0)
