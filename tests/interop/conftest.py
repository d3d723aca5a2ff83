"""mace-torch for the tests of this folder: in this process, since a process for each is slow."""

import pytest
import torch

from mace_train.interop import subprocess_client, subprocess_worker
from tests.model.mace_torch import import_mace


@pytest.fixture
def mace_here(monkeypatch):
    """Tasks of the worker are done here; torch's settings are put back."""
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    monkeypatch.setattr(subprocess_client, "run_worker", subprocess_worker.run_request)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # for mace-torch's own tools
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
