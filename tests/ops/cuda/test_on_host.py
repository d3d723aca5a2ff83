"""The whole Python path of the CUDA back end, on the host.

The tests of the operators run once more in a process where CPU tensors count as CUDA tensors, the
host's compiler stands in for NVRTC, and ``cuda_host/libcuda.cpp`` for the driver. So the sources,
the launches with their arguments as cuda-bindings passes them on, and first and second derivatives
are those that a GPU will see.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.ops.cpp.compiler import find_compiler

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (
            ["tests/ops/test_symmetric_contraction.py", "tests/ops/test_row_sums.py"],
            "few_atoms or derivatives or non_contiguous or bitwise or beyond or not_used"
            " or of_a_loop or same_bits or sizes2-17-dtype1 or sizes3-3-dtype0",
        ),
        (
            ["tests/ops/test_convolution.py"],
            "few_atoms or derivatives or non_contiguous or bitwise"
            " or (einsum and not 2-17 and not 1-16-differentiated0)",
        ),
        (["tests/model/test_mace.py"], "auto and (gradient_of_force or hessian or batch_equals)"),
        (
            ["tests/ops/test_convolution.py"],
            "few_atoms or derivatives or bitwise or pairs or reverse or (einsum and 1-16)",
        ),
        (["tests/model/test_mace.py"], "auto and batch_equals"),
        (
            ["tests/model/test_interactions.py", "tests/ops/test_hidden_layers.py"],
            "(change_nothing or PyTorch) and (nonlinear or PyTorch)",
        ),
    ],
    ids=["contraction", "convolution", "model", "convolution by pair", "model by pair", "kinds"],
)
def test_operators_as_cuda(files, chosen, tmp_path, tmp_path_factory, request):
    pytest.importorskip("cuda.bindings.driver", reason="needs the extra cuda")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", "tests.ops.cuda_host.plugin", "-k", chosen, *files]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    environment |= {"XDG_CACHE_HOME": str(shared / "kernels-as-cuda")}  # many are compiled alike
    if "by pair" in request.node.name:
        table = tmp_path / "tuning.json"
        by_pair = {"host": {"gradients_by_pair": True}}
        table.write_text(json.dumps({"format": 1, "architectures": by_pair}))
        environment["TUNING_OF_THE_HOST"] = str(table)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (launches,) = re.findall(r"launches of CUDA kernels on the host: (\d+)", done.stdout)
    assert int(launches) > 20
    assert "skipped" not in done.stdout
