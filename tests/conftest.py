"""Settings for the whole suite."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("sgm_sde", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("sgm_sde")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tensors here are small: threads only cost
