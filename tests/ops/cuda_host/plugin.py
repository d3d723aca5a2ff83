"""A pytest plugin (``-p tests.ops.cuda_host.plugin``) that runs CUDA kernels on the host.

All of the Python path runs, from the operators down to the driver calls of cuda-bindings, which
finds libcuda.cpp instead of the driver. What is replaced: where tensors are (the CPU counts as
a GPU), NVRTC (the host's compiler, through shim.h), the architecture, and the current stream.
"""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from mace_train.ops import dispatch
from mace_train.ops.cpp import compiler as cpp_compiler
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda import driver as cuda_driver
from mace_train.ops.cuda import tuning as cuda_tuning
from tests.ops.cuda_host.host import compile_for_host

HERE = Path(__file__).parent
STREAM = 0x5EED


def pytest_configure() -> None:
    driver = _driver()
    cuda_compiler.compile_cubin = _compile
    cuda_compiler.version = lambda: "of the host"
    cuda_driver.architecture = lambda device: "host"
    cuda_driver.current_stream = lambda device: STREAM
    dispatch.runs_on_cuda = lambda device: True
    if table := os.environ.get("TUNING_OF_THE_HOST"):
        cuda_tuning.TABLE = Path(table)
    pytest_terminal_summary.driver = driver


def pytest_terminal_summary(terminalreporter) -> None:
    n_launches = pytest_terminal_summary.driver.host_launches()
    terminalreporter.write_line(f"launches of CUDA kernels on the host: {n_launches}")


def _driver() -> ctypes.CDLL:
    """libcuda.cpp, under the name that cuda-bindings looks for."""
    assert not torch.cuda.is_available(), "there is a GPU: use it"
    path = Path(tempfile.mkdtemp()) / "libcuda.so.1"
    command = [cpp_compiler.find_compiler(), "-std=c++17", "-O1", "-shared", "-fPIC"]
    command += ["-Wl,-soname,libcuda.so.1", "-Wl,--export-dynamic", "-o", path]
    subprocess.run([*command, HERE / "libcuda.cpp"], check=True)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _compile(source: str, architecture: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.so"
        compile_for_host(source, path)
        return path.read_bytes(), ""
