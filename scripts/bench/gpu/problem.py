"""Tensors for one CUDA kernel alone, its launches, checks of what they write, and their time."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from candidates import Built
from torch import Tensor

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role
from mace_train.ops.cuda.driver import Function
from mace_train.ops.cuda.passes import is_sum
from mace_train.ops.symmetric_contraction import Chunks

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}  # of sums in another order
N_ELEMENTS = 4
L2_BYTES = 64 * 2**20  # where a device does not say


@dataclass(frozen=True)
class ProblemSizes:
    """How much work there is."""

    n_atoms: int
    n_edges: int
    n_channels: int
    rows_per_chunk: int


@dataclass(frozen=True)
class Operands:
    """Inputs and outputs of one launch."""

    inputs: list[Tensor]
    outputs: list[Tensor]

    @property
    def n_bytes(self) -> int:
        """Of all tensors, each once."""
        return sum(t.nbytes for t in (*self.inputs, *self.outputs))


class Problem:
    """A kernel with index tensors of its own; operands can be drawn again at random."""

    def __init__(
        self, kernel: Kernel, dtype: torch.dtype, sizes: ProblemSizes, device: torch.device
    ) -> None:
        self.kernel, self.dtype, self.sizes, self.device = kernel, dtype, sizes, device
        places, self.rows_read, self.rows_written = _index(kernel, sizes)
        self.index = [t.to(device) for t in places]
        by_receiver = kernel.loop in (Loop.RECEIVERS, Loop.EDGES)
        self.n_items = len(places[0 if by_receiver else 1]) - 1
        self.n_rounds = sizes.n_atoms if _has_chunks(kernel) else sizes.n_edges

    def operands(self, seed: int) -> Operands:
        """Random inputs; outputs are full of NaN."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def shape(rows: int, role: Role, n_segments: int) -> tuple[int, ...]:
            channels = () if role is Role.UNIFORM else (self.sizes.n_channels,)
            return (rows, n_segments, *channels)

        kind = {"dtype": self.dtype, "device": self.device}
        inputs = [
            torch.randn(
                shape(self.rows_read[o.role], o.role, o.n_segments), generator=generator, **kind
            )
            for o in self.kernel.inputs
        ]
        outputs = [
            torch.full(shape(self.rows_written[o.role], o.role, o.n_segments), torch.nan, **kind)
            for o in self.kernel.outputs
        ]
        return Operands(inputs, outputs)

    def launches(self, built: Built, sets: Sequence[Operands]) -> Iterator[Callable[[], None]]:
        """Calls that launch a candidate on one set of operands after the other, without end."""
        function = Function(built.cubin, self.device)
        grid, threads = built.launch.grid(self.n_items), built.launch.threads
        arguments = [
            [self.n_items, *[t.data_ptr() for t in (*self.index, *s.inputs, *s.outputs)]]
            for s in sets
        ]
        number = 0
        while True:
            chosen = arguments[number % len(arguments)]
            yield lambda chosen=chosen: function.launch(grid, threads, chosen)
            number += 1

    def difference(self, built: Built, expected: Operands) -> float:
        """The largest one from what the default wrote, in units of ROUNDING; inf for NaN."""
        mine = Operands(expected.inputs, [torch.full_like(t, torch.nan) for t in expected.outputs])
        self.run(built, mine)
        worst = 0.0
        for found, right in zip(mine.outputs, expected.outputs, strict=True):
            if right.numel() == 0:
                continue
            scale = ROUNDING[self.dtype] * (1.0 + float(right.abs().max()))
            distance = float((found - right).abs().max()) / scale
            worst = max(worst, distance if distance == distance else float("inf"))
        return worst

    def run(self, built: Built, operands: Operands) -> None:
        """One launch, waited for."""
        next(self.launches(built, [operands]))()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sets(self) -> list[Operands]:
        """Sets of operands to use in turn: together larger than the second-level cache."""
        first = self.operands(1)
        n_bytes = L2_BYTES
        if self.device.type == "cuda":
            n_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
        n_sets = min(16, -(-2 * n_bytes // first.n_bytes))
        return [first, *[self.operands(seed) for seed in range(2, n_sets + 1)]]


def _has_chunks(kernel: Kernel) -> bool:
    return kernel.loop is Loop.ROWS and not is_sum(kernel)


def _index(
    kernel: Kernel, sizes: ProblemSizes
) -> tuple[list[Tensor], dict[Role, int], dict[Role, int]]:
    """Index tensors, and the rows of inputs and of outputs of each role."""
    generator = torch.Generator().manual_seed(0)
    n_atoms, n_edges = sizes.n_atoms, sizes.n_edges
    if _has_chunks(kernel):
        elements = torch.randint(0, N_ELEMENTS, (n_atoms,), generator=generator)
        chunks = Chunks.of_size(elements, N_ELEMENTS, sizes.rows_per_chunk)
        rows = {Role.ROW: n_atoms, Role.INDEXED: N_ELEMENTS, Role.CHUNK: len(chunks.index)}
        return [chunks.order, chunks.first, chunks.index], rows, rows
    if is_sum(kernel):
        order = torch.randperm(n_edges, generator=generator)
        first = torch.arange(n_atoms + 1) * n_edges // n_atoms
        rows = {Role.ROW: n_edges, Role.CHUNK: n_atoms}
        return [order, first, torch.arange(n_atoms)], rows, rows
    # every edge with its reverse, which shares a row of the radial weights
    ends = torch.randint(0, n_atoms, (n_edges // 2,), generator=generator)
    others = (ends + torch.randint(1, min(n_atoms, 50), ends.shape, generator=generator)) % n_atoms
    receivers, order = torch.cat((ends, others)).sort(stable=True)
    senders = torch.cat((others, ends))[order]
    pairs = torch.arange(n_edges // 2).repeat(2)[order]
    first = torch.searchsorted(receivers, torch.arange(n_atoms + 1))
    n_pairs = n_edges // 2
    met = torch.full((n_pairs,), n_edges).scatter_reduce(0, pairs, torch.arange(len(pairs)), "amin")
    pairs = torch.argsort(torch.argsort(met))[pairs]  # numbered in the order of their first edges
    rows = dict.fromkeys((Role.ROW, Role.SENDER), n_atoms)
    rows |= dict.fromkeys((Role.EDGE, Role.UNIFORM), len(senders)) | {Role.PAIR: n_pairs}
    if kernel.loop is Loop.PAIRS:
        two = 2 * torch.arange(n_pairs + 1)
        return [torch.argsort(pairs, stable=True), two, senders, receivers], rows, rows
    return [first, senders, pairs], rows, rows | {Role.PAIR: n_edges}


def medians(
    work: dict[str, Iterator[Callable[[], None]]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of each, all in turn, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repeats + 2):
        for name, launches in work.items():
            taken = _seconds(next(launches), device)
            if round_ > 1:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Of one launch: by the device's clock, or by the host's where the host is the device."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
