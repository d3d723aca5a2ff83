"""Compiling, the cache on disk, and the choice of a backend."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mace_train.errors import InputError
from mace_train.ops.backends import backend_of, describe_choice
from mace_train.ops.codegen import kernel_cache
from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role
from mace_train.ops.codegen.program import ExpressionGraph, Program, Segment, Term
from mace_train.ops.cpp import compiler as cpp_compiler
from mace_train.ops.cpp.kernel import CppKernel
from mace_train.ops.cuda import compiler as cuda_compiler

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    cpp_compiler.find_compiler() is None, reason="needs a C++ compiler"
)


def doubling() -> Kernel:
    graph = ExpressionGraph()
    twice = graph.sum([Term(2.0, graph.input("x", 0))])
    program = Program(graph, {Segment("y", 0): twice})
    return Kernel(Loop.ROWS, program, (Operand("x", Role.ROW, 1),), (Operand("y", Role.ROW, 2),))


def run_doubling(kernel: CppKernel) -> torch.Tensor:
    x = torch.arange(48, dtype=torch.float64).view(3, 1, 16)
    y = torch.empty(3, 2, 16, dtype=torch.float64)
    index = [torch.tensor(values) for values in ([2, 0, 1], [0, 3], [0])]
    kernel.run(1, index, [x], [y], 16)
    assert torch.equal(y[:, :1], 2 * x)
    assert not y[:, 1].any()  # a segment that no input reaches
    return y


@needs_compiler
def test_cache_is_filled_once_and_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path)
    run_doubling(CppKernel("doubling", doubling))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {Path(name).suffix for name in files} == {".so", ".cpp", ".lock"}

    def never() -> Kernel:
        raise AssertionError("generated again")

    run_doubling(CppKernel("doubling", never))
    libraries = {name: time for name, time in files.items() if not name.endswith(".lock")}
    for name, time in libraries.items():
        assert (tmp_path / name).stat().st_mtime_ns == time


@needs_compiler
def test_other_sources_have_other_names(tmp_path):
    paths = set()
    for body in ("lo", "hi"):
        source = f'extern "C" long run(long lo, long hi) {{ return {body}; }}'
        assert cpp_compiler.library(source, tmp_path).run(3, 4) == {"lo": 3, "hi": 4}[body]
        paths = {path for path in tmp_path.iterdir() if path.suffix == ".so"}
    assert len(paths) == 2


@needs_compiler
def test_concurrent_compilation(tmp_path, monkeypatch):
    """Several threads and processes want the same library: it is compiled once."""
    compiled = []
    real = cpp_compiler._compile
    monkeypatch.setattr(cpp_compiler, "_compile", lambda *a: (compiled.append(a), real(*a)))
    source = 'extern "C" int run() { return 7; }'
    found = []
    work = [
        threading.Thread(target=lambda: found.append(cpp_compiler.library(source, tmp_path).run()))
        for _ in range(4)
    ]
    code = (
        "import sys; from pathlib import Path; from mace_train.ops.cpp.compiler import library;"
        "assert library(sys.argv[1], Path(sys.argv[2])).run() == 7"
    )
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", code, source, tmp_path], env=environment)
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert process.wait() == 0
    assert found == [7] * 4
    assert len(compiled) <= 1
    assert not list(tmp_path.glob("*.part"))


@needs_compiler
def test_failed_compilation_shows_the_message(tmp_path):
    with pytest.raises(RuntimeError, match="unknown_type"):
        cpp_compiler.library("unknown_type x;", tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_choice_of_a_backend(monkeypatch):
    assert backend_of("reference", CPU).name == "reference"
    assert backend_of("auto", torch.device("mps")).name == "reference"
    assert "no compiled kernels for mps" in describe_choice("auto", torch.device("mps"))
    assert describe_choice("reference", CPU) == "kernels: reference, as asked for"
    with pytest.raises(InputError, match="auto, reference, cpp, cuda"):
        backend_of("fast", CPU)
    with pytest.raises(InputError, match="runs on the CPU"):
        backend_of("cpp", torch.device("cuda"))
    monkeypatch.setattr("mace_train.ops.backends.find_compiler", lambda: None)
    assert backend_of("auto", CPU).name == "reference"
    assert "no working C++ compiler" in describe_choice("auto", CPU)
    with pytest.raises(InputError, match="install one"):
        backend_of("cpp", CPU)


def test_choice_of_cuda(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda_compiler, "why_missing", lambda: None)
    monkeypatch.setattr(cuda_compiler, "version", lambda: "13.0")
    monkeypatch.setattr(cuda_compiler, "architectures", lambda: frozenset({"sm_90"}))
    for capability, name in (((9, 0), "cuda"), ((7, 0), "reference")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert backend_of("auto", gpu).name == name
    assert "NVRTC 13.0 does not compile for sm_70" in describe_choice("auto", gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert backend_of("cuda", gpu).name == "cuda"
    assert describe_choice("auto", gpu) == "kernels: cuda, compiled by NVRTC 13.0"
    with pytest.raises(InputError, match=r"not on cpu; use kernels=auto"):
        backend_of("cuda", CPU)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in describe_choice("auto", gpu)
    monkeypatch.setattr(cuda_compiler, "why_missing", lambda: "No module named 'cuda'")
    assert backend_of("auto", gpu).name == "reference"
    assert "No module named 'cuda'; pip install" in describe_choice("auto", gpu)
    with pytest.raises(InputError, match=r"pip install 'mace-train\[cuda\]', or use"):
        backend_of("cuda", gpu)


@needs_compiler
def test_auto_compiles():
    assert backend_of("auto", CPU).name == "cpp"
    assert describe_choice("auto", CPU).startswith("kernels: cpp, compiled by /")


def test_a_compiler_that_does_not_work_is_passed_over(tmp_path, monkeypatch):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_compiler.find_compiler.cache_clear()
    try:
        assert cpp_compiler.find_compiler() is None
    finally:
        cpp_compiler.find_compiler.cache_clear()
