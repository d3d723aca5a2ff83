"""CUDA of a kernel: straight-line code per channel inside one of the skeletons under ``kernels/``.

The statements are those of the C++ backend with one channel per thread instead of a vector. The
number of channels is a constant of the code; channels beyond the last are masked, nothing is
padded. The first line of a source says how it is launched (``LaunchConfig``), so that a cached
one can be run without making its program again.
"""

from collections.abc import Iterable
from string import Template

from mace_train._paths import KERNELS
from mace_train.ops.codegen.instruction_order import schedule
from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role
from mace_train.ops.codegen.program import Program, Segment
from mace_train.ops.codegen.statements import Body, uniform_lines, uniform_slots
from mace_train.ops.cuda.launch import LANES, CudaTarget, LaunchConfig, block_of
from mace_train.ops.cuda.passes import Pass, Tuning, is_sum, passes_of, tuning_of

SHARED_BYTES = 16384  # of shared coefficients per block, about; a few blocks fit a multiprocessor
WIDE_BYTES = 16  # that a thread reads at once from shared memory

_ROW_READ = {
    Role.ROW: "row",
    Role.INDEXED: "index_of_chunk[chunk]",
    Role.CHUNK: "chunk",
    Role.SENDER: "senders[edge]",
    Role.EDGE: "edge",
    Role.PAIR: "pairs[edge]",
    Role.UNIFORM: "edge",
}
"""The row of its tensor that an input is, by the names of the skeletons."""
_ROW_WRITTEN = _ROW_READ | {Role.PAIR: "edge"}
"""... and that an output is; rows of both edges of a pair are summed after the kernel."""


class _Skeleton(Template):
    delimiter = "@"
    pattern = r"@(?:(?P<escaped>@)|(?P<named>[A-Z_]+)@|(?P<braced>(?!))|(?P<invalid>))"  # type: ignore[assignment]


def emit_cuda(kernel: Kernel, target: CudaTarget, tuning: Tuning | None = None) -> str:
    """The source of one kernel; ``run`` takes n_items, the index tensors, inputs and outputs."""
    tuning = tuning or tuning_of(kernel, target.n_bytes)
    if is_sum(kernel):
        return _sums(kernel, target, tuning)
    return _Emission(kernel, target, tuning).source()


def _sums(kernel: Kernel, target: CudaTarget, tuning: Tuning) -> str:
    """Rows of the one input, summed over chunks."""
    (rows,), (sums,) = kernel.inputs, kernel.outputs
    assert (rows.role, sums.role) == (Role.ROW, Role.CHUNK)
    assert rows.n_segments == sums.n_segments == len(kernel.program.outputs)
    nodes = kernel.program.graph.nodes
    assert all(nodes[n] == (rows.name, s.number) for s, n in kernel.program.outputs.items())
    launch = LaunchConfig(tuning.threads, rows.n_segments * target.n_channels, 1)
    body = _fill("sums.cu", SEGMENTS=rows.n_segments, UNROLL=_unroll(tuning))
    return launch.header() + _common(target, tuning.threads) + body


class _Emission:
    """The state of generating one source."""

    def __init__(self, kernel: Kernel, target: CudaTarget, tuning: Tuning) -> None:
        self.kernel = kernel
        self.target = target
        self.tuning = tuning
        self.passes = passes_of(kernel, tuning)
        self.roles = {o.name: o.role for o in (*kernel.inputs, *kernel.outputs)}
        self.segments = {o.name: o.n_segments for o in (*kernel.inputs, *kernel.outputs)}
        in_order = _slots_in_order_of_use if tuning.wide else uniform_slots
        self.slots = [in_order(part.program) for part in self.passes]
        # an odd number of the units that are read: no two lanes in one bank
        unit = WIDE_BYTES // target.n_bytes if tuning.wide else 1
        self.n_slots = (-(-max(1, *map(len, self.slots)) // unit) | 1) * unit
        # a thread has the sums of one channel over both edges of a pair, so no channel may be left
        at_most = target.n_channels if kernel.loop is Loop.PAIRS else tuning.threads
        self.threads, self.channel_blocks = block_of(target.n_channels, at_most)

    def source(self) -> str:
        """Header, common part and the skeleton of the loop with its values."""
        fill = {Loop.ROWS: self._rows, Loop.RECEIVERS: self._receivers, Loop.EDGES: self._edges}
        fill[Loop.PAIRS] = self._pairs
        threads_per_item = {
            Loop.ROWS: self.target.n_channels,
            Loop.RECEIVERS: self.channel_blocks * self.threads,
            Loop.EDGES: self.threads,
            Loop.PAIRS: 2 * self.threads // self._edges_at_a_time(self._n_totals()),
        }[self.kernel.loop]
        n_indices = 4 if self.kernel.loop is Loop.PAIRS else 3
        launch = LaunchConfig(self.threads, threads_per_item, len(self.passes), n_indices)
        body = fill[self.kernel.loop]()
        return launch.header() + _common(self.target, self.threads) + body

    def _rows(self) -> str:
        row_operands = self._having(Role.ROW)
        passes = []
        for number, part in enumerate(self.passes):
            sums = self._sums(part, Role.CHUNK)
            body = self._body(part, {}, sums)
            passes.append(
                _fill(
                    "rows_pass.cuh",
                    NUMBER=number,
                    SUMS=self._start(sums),
                    ROW_POINTERS=self._pointers(row_operands, part),
                    BODY=[*body, *self._zeros(part, Role.ROW)],
                    STORES=[*self._finish(sums), *self._zeros(part, Role.CHUNK)],
                )
            )
        return _fill(
            "rows.cu",
            BLOCKS=self.tuning.blocks,
            PARAMETERS=self._parameters(),
            POINTERS=self._pointers(self._having(Role.INDEXED, Role.CHUNK)),
            PASSES=passes,
        )

    def _receivers(self) -> str:
        of_edge = self._having(Role.SENDER, Role.PAIR, Role.EDGE)
        passes = []
        for number, part in enumerate(self.passes):
            sums = self._sums(part, Role.ROW)
            passes.append(
                _fill(
                    "receivers_pass.cuh",
                    NUMBER=number,
                    SUMS=self._start(sums),
                    UNIFORM_POINTERS=self._uniform_pointers(part),
                    UNIFORM=self._uniform(number, part),
                    UNROLL=_unroll(self.tuning),
                    EDGE_POINTERS=self._pointers(of_edge, part),
                    BODY=self._body(part, self.slots[number], sums),
                    STORES=[*self._finish(sums), *self._zeros(part, Role.ROW)],
                )
            )
        return _fill(
            "receivers.cu",
            BLOCKS=self.tuning.blocks,
            EDGES=self._edges_at_a_time(0),
            SLOTS=self.n_slots,
            STAGE=self._stage(),
            CHANNEL_BLOCKS=self.channel_blocks,
            PARAMETERS=self._parameters(),
            POINTERS=self._pointers(self._having(Role.ROW)),
            PASSES=passes,
        )

    def _edges(self) -> str:
        reduced = self._reduced()
        per_channel = self._having(Role.ROW, Role.SENDER, Role.PAIR, Role.EDGE)
        passes = []
        for number, part in enumerate(self.passes):
            sums = self._sums(part, Role.UNIFORM)
            body = self._body(part, self.slots[number], sums)
            passes.append(
                _fill(
                    "edges_pass.cuh",
                    NUMBER=number,
                    UNIFORM_POINTERS=self._uniform_pointers(part),
                    UNIFORM=self._uniform(number, part),
                    UNROLL=_unroll(self.tuning),
                    SUMS=self._start(sums),
                    POINTERS=self._pointers(per_channel, part),
                    BODY=[*body, *self._zeros(part, Role.EDGE, Role.PAIR)],
                    WARP_SUMS=self._warp_sums(part, reduced, sums),
                    TOTALS=self._totals(part, reduced),
                )
            )
        return self._with_totals("edges.cu", passes)

    def _pairs(self) -> str:
        reduced = self._reduced()
        of_edge = self._having(Role.ROW, Role.SENDER, Role.EDGE)
        of_pair = self._having(Role.PAIR)
        passes = []
        for number, part in enumerate(self.passes):
            sums, pair_sums = self._sums(part, Role.UNIFORM), self._sums(part, Role.PAIR)
            body = self._body(part, self.slots[number], sums | pair_sums)
            passes.append(
                _fill(
                    "pairs_pass.cuh",
                    NUMBER=number,
                    UNIFORM_POINTERS=self._uniform_pointers(part),
                    UNIFORM=self._uniform(number, part),
                    PAIR_POINTERS=self._pointers(of_pair, part),
                    PAIR_SUMS=self._start(pair_sums),
                    SUMS=self._start(sums),
                    POINTERS=self._pointers(of_edge, part),
                    BODY=[*body, *self._zeros(part, Role.EDGE)],
                    WARP_SUMS=self._warp_sums(part, reduced, sums),
                    STORES=[*self._finish(pair_sums), *self._zeros(part, Role.PAIR)],
                    TOTALS=self._totals(part, reduced),
                )
            )
        return self._with_totals("pairs.cu", passes)

    def _with_totals(self, name: str, passes: list[str]) -> str:
        return _fill(
            name,
            BLOCKS=self.tuning.blocks,
            EDGES=self._edges_at_a_time(self._n_totals()),
            SLOTS=self.n_slots,
            STAGE=self._stage(),
            TOTALS=max(sum(o.n_segments for o in self._reduced()), 1),
            PARAMETERS=self._parameters(),
            PASSES=passes,
        )

    def _reduced(self) -> list[Operand]:
        """Outputs that are sums over channels."""
        return [o for o in self.kernel.outputs if o.role is Role.UNIFORM]

    def _n_totals(self) -> int:
        """Numbers in shared memory for these sums, of one edge."""
        return sum(o.n_segments for o in self._reduced()) * self.threads // LANES

    def _edges_at_a_time(self, n_totals: int) -> int:
        """A power of two that keeps within SHARED_BYTES."""
        n_edges = self.tuning.edges
        while n_edges > 4 and n_edges * (self.n_slots + n_totals) > (
            SHARED_BYTES // self.target.n_bytes
        ):
            n_edges //= 2
        return n_edges

    def _uniform(self, number: int, part: Pass) -> list[str]:
        """Statements of one thread for one edge: what all channels share of it."""
        staged = [f"{name}_of[j] = {name}s[edge];" for name in self._staged()]
        return [*staged, *uniform_lines(part.program, self.slots[number])]

    def _stage(self) -> list[str]:
        return [f"__shared__ long long {name}_of[EDGES];" for name in self._staged()]

    def _staged(self) -> list[str]:
        """Indices that a block reads for all its current edges, before it reads what they index."""
        roles = set(self.roles.values())
        names = {"sender": Role.SENDER, "pair": Role.PAIR} if self.tuning.staged else {}
        if self.kernel.loop is Loop.PAIRS:
            names.pop("pair", None)
        return [name for name, role in names.items() if role in roles]

    def _row_read(self, operand: Operand) -> str:
        if operand.role is Role.PAIR and self.kernel.loop is Loop.PAIRS:
            return "pair"
        row = _ROW_READ[operand.role]
        name = row.removesuffix("s[edge]")
        return f"{name}_of[j]" if name in self._staged() else row

    def _parameters(self) -> str:
        inputs = [f"const T* __restrict__ in_{o.name}" for o in self.kernel.inputs]
        return ",\n".join(inputs + [f"T* __restrict__ out_{o.name}" for o in self.kernel.outputs])

    def _having(self, *roles: Role) -> list[Operand]:
        return [o for o in (*self.kernel.inputs, *self.kernel.outputs) if o.role in roles]

    def _pointers(self, operands: Iterable[Operand], part: Pass | None = None) -> list[str]:
        """Pointers to channel k of the rows of operands that a pass, or any, touches."""
        read = {s.operand for s in (part or self.kernel).program.inputs()}
        written = {s.operand for s in part.owned} if part else {o.name for o in self.kernel.outputs}
        lines = []
        for o in operands:
            columns = f"({o.n_segments} * K) + k"
            if o in self.kernel.inputs and o.name in read:
                lines.append(f"const T* {o.name} = in_{o.name} + {self._row_read(o)} * {columns};")
            elif o in self.kernel.outputs and o.name in written:
                row = _ROW_WRITTEN[o.role]
                if o.role is Role.PAIR and self.kernel.loop is Loop.PAIRS:
                    row = "pair"
                lines.append(f"T* {o.name} = out_{o.name} + {row} * {columns};")
        return lines

    def _uniform_pointers(self, part: Pass) -> list[str]:
        read = {s.operand for s in part.program.inputs()}
        return [
            f"const T* {o.name} = in_{o.name} + {_ROW_READ[o.role]} * {o.n_segments};"
            for o in self.kernel.inputs
            if o.role is Role.UNIFORM and o.name in read
        ]

    def _body(self, part: Pass, slots: dict[int, int], sums: dict[Segment, str]) -> list[str]:
        def put(output: tuple[Segment, str]) -> str:
            segment, value = output
            if segment in sums:
                return f"{sums[segment]} += {value};"
            return f"{self._store(segment)}, {value});"

        once = [o.name for o in self.kernel.inputs if self._is_streamed(o)]
        lines = Body(part.program, put, slots, sums, load_once=once).lines()
        return self._forgetting(lines, part) if self.tuning.reload else lines

    def _forgetting(self, lines: list[str], part: Pass) -> list[str]:
        """The lines with pauses after which inputs are loaded again."""
        read = sorted({s.operand for s in part.program.inputs()})
        pause = [f"forget({name});" for name in read if self.roles[name] is not Role.UNIFORM]
        every = self.tuning.reload
        parts = [lines[start : start + every] for start in range(0, len(lines), every)]
        return [line for part in parts for line in (*pause, *part)]

    def _sums(self, part: Pass, role: Role) -> dict[Segment, str]:
        """Variables for the outputs that are sums over what the loop visits, or over channels."""
        return {
            s: f"s_{s.operand}_{s.number}"
            for s in sorted(part.program.outputs)
            if self.roles[s.operand] is role
        }

    def _start(self, sums: dict[Segment, str]) -> list[str]:
        return [f"T {name} = 0;" for name in sums.values()]

    def _finish(self, sums: dict[Segment, str]) -> list[str]:
        return [f"{self._store(s)}, {name});" for s, name in sums.items()]

    def _store(self, segment: Segment) -> str:
        """The beginning of a statement that stores an output."""
        outputs = {o.name: o for o in self.kernel.outputs}
        store = "store_once" if self._is_streamed(outputs[segment.operand]) else "store"
        return f"{store}({segment.operand} + {segment.number} * K"

    def _is_streamed(self, operand: Operand) -> bool:
        return self.tuning.stream and operand.role in (Role.EDGE, Role.PAIR)

    def _zeros(self, part: Pass, *roles: Role) -> list[str]:
        """Zero in the segments that no input reaches."""
        absent = sorted(part.owned - part.program.outputs.keys())
        return [f"{self._store(s)}, T(0));" for s in absent if self.roles[s.operand] in roles]

    def _warp_sums(self, part: Pass, reduced: list[Operand], sums: dict[Segment, str]) -> list[str]:
        """Sums over the lanes of every warp, at most 32 at a time."""
        lines, first = [], 0
        for o in reduced:
            names = [sums.get(Segment(o.name, i), "0") for i in range(o.n_segments)]
            for start in range(0, len(names) if _owns(part, o) else 0, LANES):
                group = names[start : start + LANES]
                size = 1 << (len(group) - 1).bit_length()
                values = ", ".join(group + ["0"] * (size - len(group)))
                index = f"(j * WARPS + warp) * TOTALS + {first + start}"
                lines += [
                    f"{{ T v[{size}] = {{{values}}};",
                    f"const T t = sum_over_warp<{size}>(v);",
                    f"if (lane % {LANES // size} == 0 && lane / {LANES // size} < {len(group)})",
                    f"totals[{index} + lane / {LANES // size}] = t; }}",
                ]
            first += o.n_segments
        return lines

    def _totals(self, part: Pass, reduced: list[Operand]) -> list[str]:
        """Sums over the warps, written for all current edges."""
        lines, first = [], 0
        edge = "order[e0 + j]" if self.kernel.loop is Loop.PAIRS else "(e0 + j)"
        for o in reduced:
            if _owns(part, o):
                lines += [
                    f"for (int i = threadIdx.x; i < n * {o.n_segments}; i += THREADS) {{",
                    f"const int j = i / {o.n_segments}, s = i % {o.n_segments};",
                    "T sum = 0;",
                    "for (int w = 0; w < WARPS; ++w)",
                    f"sum += totals[(j * WARPS + w) * TOTALS + {first} + s];",
                    f"out_{o.name}[{edge} * {o.n_segments} + s] = sum;",
                    "}",
                ]
            first += o.n_segments
        return lines


def _slots_in_order_of_use(program: Program) -> dict[int, int]:
    """Slots of shared values, so that those that are read together lie together."""
    known = uniform_slots(program)
    instructions = schedule(program, uniform=False)
    read = [i for instruction in instructions for i in instruction.term.factors if i in known]
    return {number: slot for slot, number in enumerate(dict.fromkeys([*read, *known]))}


def _unroll(tuning: Tuning) -> str:
    return f"#pragma unroll {tuning.unroll}" if tuning.unroll else ""


def _owns(part: Pass, operand: Operand) -> bool:
    return any(s.operand == operand.name for s in part.owned)


def _common(target: CudaTarget, threads: int) -> str:
    return _fill("common.cuh", SCALAR=target.scalar, CHANNELS=target.n_channels, THREADS=threads)


def _fill(name: str, **values: object) -> str:
    """A skeleton with values for its names; a list is lines."""
    texts = {
        key: "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in values.items()
    }
    return _Skeleton((KERNELS / name).read_text()).substitute(texts)
