"""What the benchmarks share: CPU seconds, the limits of one core, and the choice of allocator."""

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mace_train.ops.codegen.kernel_cache import cache_folder
from mace_train.ops.cpp import compiler as cpp_compiler

KEEP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Environment in which glibc keeps freed memory; what allocates much gains most."""

_PEAK = """
typedef {scalar} T;
typedef T V __attribute__((vector_size({width}), aligned(sizeof(T)), may_alias));
extern "C" void fma(long n, T* x) {{
  V a[12], b = *(V*)x, c = *(V*)(x + 64);
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) a[i] = b * (T)i;
  for (long j = 0; j < n; ++j) {{
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) a[i] = a[i] * b + c;
  }}
  V s = {{}};
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) s += a[i];
  *(V*)x = s;
}}
extern "C" void triad(long n, T* x) {{
  T *y = x + n, *z = y + n;
  for (long i = 0; i < n; i += {width} / sizeof(T)) *(V*)(x+i) = *(V*)(y+i) + (T)3 * *(V*)(z+i);
}}
"""


@dataclass(frozen=True)
class Machine:
    """What one core reaches in simple loops."""

    fma_per_s: float  # vector instructions
    bytes_per_s: float

    def __str__(self) -> str:
        return (
            f"fused multiply-adds {self.fma_per_s / 1e9:.2f} G vectors/s, "
            f"triad {self.bytes_per_s / 1e9:.1f} GB/s"
        )


def measure_machine(dtype: torch.dtype) -> Machine:
    """The best of several short loops."""
    width = cpp_compiler.register_width()
    scalar = {torch.float32: "float", torch.float64: "double"}[dtype]
    library = cpp_compiler.library(_PEAK.format(scalar=scalar, width=width), cache_folder())
    n_rounds, n_values = 2_000_000, 2**25 // dtype.itemsize
    memory = torch.full((3 * n_values,), 1e-3, dtype=dtype)
    pointer = ctypes.c_void_p(memory.data_ptr())
    fma = min(cpu_seconds(lambda: library.fma(n_rounds, pointer)) for _ in range(5))
    triad = min(cpu_seconds(lambda: library.triad(n_values, pointer)) for _ in range(5))
    return Machine(12 * n_rounds / fma, 3 * n_values * dtype.itemsize / triad)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of the process for one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def add_allocator(parser: argparse.ArgumentParser) -> None:
    """The option that ``use_allocator`` reads."""
    parser.add_argument(
        "--allocator",
        choices=("default", "keep"),
        default="default",
        help=f"keep: run again in an environment with {KEEP}",
    )


def use_allocator(name: str) -> None:
    """Start this program again where the environment does not fit yet; prints what it is."""
    if name == "keep" and any(os.environ.get(key) != value for key, value in KEEP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)
    is_kept = all(os.environ.get(key) == value for key, value in KEEP.items())
    print(f"allocator: {'keeps freed memory' if is_kept else 'as the environment has it'}")
