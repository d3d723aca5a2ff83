"""The trained model as a program, made once."""

import contextlib
import io
import warnings
from pathlib import Path

import pytest

from tests.conftest import run_command


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> tuple[Path, str]:
    """The file that ``mace-train export`` wrote, and what it said."""
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")  # of PyTorch's own
        run_command("export", f"checkpoint={trained}", "format=export", f"output={path}")
    return path, said.getvalue()
