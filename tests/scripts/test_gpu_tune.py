"""The search for choices: compiled without a GPU, and from end to end with the host as the GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.cuda import compiler as cuda_compiler

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "bench" / "gpu" / "tune.py"

ON_THE_HOST = """
import sys
from argparse import Namespace
from pathlib import Path

folder = Path(sys.argv[1])
from tests.ops.cuda_host import plugin
plugin.pytest_configure()
import torch
sys.path[:0] = ["scripts/bench/gpu", "scripts/bench"]
import candidates
import problem
import tune
from mace_train.ops.cuda import tuning as cuda_tuning
from mace_train.ops.cuda.passes import Tuning
from tests.ops.kernels import by_pair, contraction, convolution

near = [{"threads": 64}]
def neighbours(kernel, target, center):
    for change in near:
        yield Tuning(**vars(center) | change)
    if kernel.loop.value == "rows":
        yield Tuning(**vars(center) | {"reload": 1})  # made wrong below

real = candidates.emit_cuda
candidates.neighbours = neighbours
candidates.emit_cuda = lambda k, t, c: (
    real(k, t, c).replace(" += ", " -= ") if c.reload == 1 else real(k, t, c)
)
cuda_tuning.TABLE = folder / "tuning.json"
tune.CHUNK_LENGTHS = (8, 16)
problem.L2_BYTES = 1 << 12
subjects = [
    tune.Subject("a", contraction("backward_xw"), torch.float64, 4),
    tune.Subject("b", convolution("backward xyr"), torch.float32, 4),
    tune.Subject("b by pair", by_pair(convolution("backward xyr")), torch.float32, 4),
]
for minutes, expected in ((0.0, 1), (5.0, 0), (5.0, 0)):
    arguments = Namespace(json=folder / "out.json", minutes=minutes, write=True, atoms=12, edges=40,
                          repeats=3, margin=-9.0, rounds=1, jobs=2)
    assert tune.tune(subjects, arguments, torch.device("cpu")) == expected
"""


@pytest.mark.skipif(cuda_compiler.why_missing() is not None, reason="needs the extra cuda (NVRTC)")
def test_rehearsal(tmp_path):
    words = [
        "--rehearse",
        "--json",
        tmp_path / "out.json",
        "--only",
        "^sum 29 float32",
        "--jobs",
        2,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["kernels"]["sum 29 float32"][
        "candidates"
    ]
    assert rows[0]["choice"] == "the default"
    assert {"threads 256", "unroll 8"} <= {row["choice"] for row in rows}
    assert all(row["registers"] > 0 and row["warps"] > 0 and row["local"] == 0 for row in rows)
    assert "| threads 256 |" in done.stdout


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_search_on_the_host(tmp_path):
    pytest.importorskip("cuda.bindings.driver", reason="needs the extra cuda")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    command = [sys.executable, "-c", ON_THE_HOST, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same command goes on" in done.stderr
    assert done.stdout.count("| a |") == 2  # measured once, then read
    assert done.stderr.count("WRONG RESULT, not used: reload 1") == 1
    results = json.loads((tmp_path / "out.json").read_text())
    a, b, by_pair = (results["kernels"][name] for name in ("a", "b", "b by pair"))
    assert a["wrong"]
    assert not b["wrong"]
    assert not by_pair["wrong"]
    assert results["kernels"]["gradients by pair"]["of kernels"].keys() == {"b by pair"}
    assert a["timed"] == 2  # the default and another
    assert results["kernels"]["rows per chunk"]["relative"]["16"] == 1.0
    table = json.loads((tmp_path / "tuning.json").read_text())["architectures"]["host"]
    assert table["gradients_by_pair"] is True  # whatever the clock says, with this margin
    assert table["kernels"][a["name"]] == {"float64": {"4": a["entry"]}}
