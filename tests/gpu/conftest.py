"""Every test here runs on the CPU, where it shows that it asks for the right thing, and, marked `gpu`, on a GPU."""

import pytest
import torch

GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")],
)


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then a GPU where there is one."""
    return torch.device(request.param)
