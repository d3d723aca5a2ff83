"""The examples of scripts/examples run as their users would run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modules import module_of
from tests.train.ranks import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "scripts" / "examples"


def on_two_ranks(script: str, *arguments: str) -> str:
    """What a script prints under torchrun."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*launcher, *options, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_plain_ddp_learns():
    lines = on_two_ranks("plain_ddp.py").splitlines()
    errors = [float(line.split()[-1]) for line in lines if line.startswith("epoch")]
    assert len(errors) == 5
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.filterwarnings("ignore")  # of PyTorch Geometric
def test_graphs_of_pytorch_geometric_are_balanced():
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    before, after, seen = module_of(EXAMPLES / "pyg_data.py").main()
    assert seen == list(range(600))
    assert after < 1.01 < before


@pytest.mark.slow
def test_the_ranks_of_mace_torch_are_closer_together(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed (extra interop)")
    out = tmp_path / "spread.json"
    on_two_ranks("mace_torch_loader.py", "--structures", "60", "--json", str(out))
    spread = json.loads(out.read_text())
    assert spread["balanced"]["straggler_ratio"] < spread["fixed count"]["straggler_ratio"]
