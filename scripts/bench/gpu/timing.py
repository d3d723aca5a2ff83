"""Time on a GPU of work alone, without the launches before it, and what simple loops reach.

Many of the operations take less time than starting them from Python does. So the GPU is first told
to wait for as long as the host needs to queue the work; then two events around the work are as far
apart as the GPU needs for it. On a CPU the host's clock is read, for rehearsals.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda import driver as cuda_driver

_LONGEST_WAIT_S = 0.2
_CYCLES_PER_S = 2e9  # more than the clock of any GPU there is: waits are rather too long

_PEAK = """
typedef {scalar} T;
extern "C" __global__ void run(long long n, T* x) {{
  T a[8], b = x[threadIdx.x], c = x[threadIdx.x + 1];
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] = b * i;
  for (long long j = 0; j < n; ++j) {{
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] = a[i] * b + c;
  }}
  T s = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) s += a[i];
  x[blockIdx.x * 256LL + threadIdx.x] = s;
}}
"""


@dataclass(frozen=True)
class Machine:
    """What simple loops reach."""

    fma_per_s: float
    bytes_per_s: float

    def bound(self, instructions: float, n_bytes: float) -> float:
        """Seconds that both take at least, one beside the other."""
        return max(instructions / self.fma_per_s, n_bytes / self.bytes_per_s)

    def __str__(self) -> str:
        return (
            f"{self.fma_per_s / 1e12:.2f} T multiply-adds/s, {self.bytes_per_s / 1e9:.0f} GB/s "
            "(triad)"
        )


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    wait = 1e-4
    while True:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        torch.cuda._sleep(int(wait * _CYCLES_PER_S))
        first.record()
        start = time.perf_counter()
        run()
        last.record()
        is_late = first.query()  # the GPU came to the work before all of it was there
        queued = time.perf_counter() - start
        last.synchronize()
        if not is_late or wait >= _LONGEST_WAIT_S:  # what waits for the GPU itself is always late
            return first.elapsed_time(last) / 1e3
        wait = min(_LONGEST_WAIT_S, max(2 * wait, 1.5 * queued))


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median of some calls, after two to warm up."""
    for _ in range(2):
        run()
    return statistics.median(seconds(run, device) for _ in range(repeats))


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """The best of a few runs of a triad of 3/4 GiB and of a loop of multiply-adds."""
    n = 2**30 // (4 if device.type == "cuda" else 64) // dtype.itemsize
    a, b, c = (torch.ones(n, device=device, dtype=dtype) for _ in range(3))
    triad = min(seconds(lambda: torch.add(b, c, alpha=3.0, out=a), device) for _ in range(5))
    bandwidth = 3 * n * dtype.itemsize / triad
    if device.type == "cpu":
        return Machine(float("inf"), bandwidth)
    scalar = "float" if dtype == torch.float32 else "double"
    code, _ = cuda_compiler.compile_cubin(
        _PEAK.format(scalar=scalar), cuda_driver.architecture(device)
    )
    function = cuda_driver.Function(code, torch.device("cuda", torch.cuda.current_device()))
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    n_blocks, n_steps = n_processors * 64, 20000
    x = torch.ones(n_blocks * 256 + 1, device=device, dtype=dtype)
    arguments = [n_steps, x.data_ptr()]
    loop = min(
        seconds(lambda: function.launch((n_blocks, 1, 1), 256, arguments), device) for _ in range(3)
    )
    return Machine(n_blocks * 256 * n_steps * 8 / loop, bandwidth)
