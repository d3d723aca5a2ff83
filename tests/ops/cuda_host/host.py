"""CUDA sources compiled for the host, through shim.h and the host's C++ compiler."""

import ctypes
import subprocess
from pathlib import Path

from mace_train.ops.cpp import compiler as cpp_compiler

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O0", "-shared", "-fPIC", "-w", "-I", str(HERE))


def compile_for_host(source: str, path: Path) -> None:
    """A shared library with ``host_launch``."""
    text = f'#include "shim.h"\n{source}\n#include "launch.h"\n'
    found = cpp_compiler.find_compiler()
    assert found is not None
    command = [found, *FLAGS, "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=text, text=True, check=True)


def launch(library: Path, grid: tuple[int, int, int], threads: int, arguments: list[int]) -> None:
    """Run a kernel on the host; arguments are 64-bit numbers and addresses."""
    values = [ctypes.c_int64(value) for value in arguments]
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    function = ctypes.CDLL(str(library)).host_launch
    function((ctypes.c_uint * 3)(*grid), ctypes.c_uint(threads), pointers)
