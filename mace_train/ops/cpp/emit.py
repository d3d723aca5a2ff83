"""C++ of a kernel: straight-line vector code over channels inside one of three loops.

GCC's vector extensions make ``V``, as wide as the machine's registers; the number of channels is a
constant of the code (a multiple of the width), so that every address is a base and a displacement.
Offsets are 64-bit throughout. A kernel is a function of a range [lo, hi) of chunks or receivers
that writes what belongs to them and nothing else, so ranges may run in any order on any thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role
from mace_train.ops.codegen.program import Program, Segment
from mace_train.ops.codegen.statements import Body, uniform_lines, uniform_slots

EDGES_AT_A_TIME = 16  # whose shared coefficients are kept in the first-level cache
ACCUMULATORS = {16: 12, 32: 12, 64: 20}  # sums over edges in registers in one pass, by width

_HEADER = """\
#include <stdint.h>
typedef {scalar} T;
typedef T V __attribute__((vector_size({width}), aligned(sizeof(T)), may_alias));
enum : int64_t {{ K = {channels}, LANES = {width} / sizeof(T), LINE = {line} }};
static inline V load(const T* p) {{ return *(const V*)p; }}
static inline void store(T* p, V v) {{ *(V*)p = v; }}
static inline void add(T* p, V v) {{ *(V*)p += v; }}
#if defined(__x86_64__)
#define ROUNDED(v) asm("" : "+v"(v))
#elif defined(__aarch64__)
#define ROUNDED(v) asm("" : "+w"(v))
#else
#define ROUNDED(v) asm("" : "+m"(v))
#endif
// v is rounded first, so that the sum is the same wherever it is taken
static inline void put(T* p, V v, bool again) {{ ROUNDED(v); *(V*)p = again ? *(V*)p + v : v; }}
// sums of neighbouring lanes: those of a, then those of b
static inline V pairs(V a, V b) {{
  return __builtin_shufflevector(a, b, {even}) + __builtin_shufflevector(a, b, {odd});
}}
// one cache line of channels of n segments, close together
static inline void gather(T* near, const T* far, int64_t n) {{
  for (int64_t s = 0; s < n; ++s)
    for (int64_t k = 0; k < LINE; k += LANES) store(near + s * LINE + k, load(far + s * K + k));
}}
static inline void scatter(T* far, const T* near, int64_t n) {{
  for (int64_t s = 0; s < n; ++s)
    for (int64_t k = 0; k < LINE; k += LANES) store(far + s * K + k, load(near + s * LINE + k));
}}
"""

_SIGNATURE = """\
extern "C" void run(int64_t lo, int64_t hi, const int64_t* const* index, const T* const* in,
                    T* const* out) {
"""

_EDGE_INDEX = """\
const int64_t *first = index[0], *senders = index[1], *pairs_of = index[2], *first_of = index[3];
const int64_t last = first[hi] - 1;"""


@dataclass(frozen=True)
class Target:
    """Precision, register width in bytes, and channels of the tensors."""

    scalar: str  # float or double
    width: int
    n_channels: int

    @property
    def lanes(self) -> int:
        """Channels in one register."""
        return self.width // (4 if self.scalar == "float" else 8)

    @property
    def line(self) -> int:
        """Channels in a cache line of 64 bytes, or in one register."""
        in_line = self.lanes * 64 // self.width
        return self.lanes if self.n_channels % in_line else in_line


def emit_cpp(kernel: Kernel, target: Target) -> str:
    """The source of one kernel."""
    assert target.n_channels % target.lanes == 0
    header = _HEADER.format(
        scalar=target.scalar,
        width=target.width,
        channels=target.n_channels,
        line=target.line,
        even=", ".join(str(lane) for lane in range(0, 2 * target.lanes, 2)),
        odd=", ".join(str(lane) for lane in range(1, 2 * target.lanes, 2)),
    )
    if kernel.loop is Loop.EDGES:
        lines = _edges(kernel, target.lanes)
    else:
        lines = _rows(kernel) if kernel.loop is Loop.ROWS else _receivers(kernel, target)
    return "\n".join([header + _SIGNATURE, *lines, "}", ""])


def _rows(kernel: Kernel) -> list[str]:
    """Rows in the order of index[0]; chunk c holds the rows index[1][c]..index[1][c + 1].

    One cache line of channels at a time: what the rows of a chunk share is copied close together
    then. Otherwise its segments are a power of two apart and compete for a few cache sets.
    """
    near = [o for o in (*kernel.inputs, *kernel.outputs) if o.role in (Role.INDEXED, Role.CHUNK)]
    strides = {o.name: "LINE" for o in near}
    body = Body(kernel.program, lambda o: _store(kernel, o, strides), strides=strides)
    return [
        "const int64_t *order = index[0], *first = index[1], *index_of_chunk = index[2];",
        "for (int64_t chunk = lo; chunk < hi; ++chunk) {",
        *_pointers(kernel, (Role.INDEXED, Role.CHUNK), "indexed_", "index_of_chunk[chunk]"),
        "for (int64_t line = 0; line < K; line += LINE) {",
        *[f"alignas(64) T near_{o.name}[{o.n_segments} * LINE];" for o in near],
        *[
            f"gather(near_{o.name}, indexed_{o.name} + line, {o.n_segments});"
            if o.role is Role.INDEXED
            else f"for (T& sum : near_{o.name}) sum = 0;"
            for o in near
        ],
        "for (int64_t i = first[chunk]; i < first[chunk + 1]; ++i) {",
        "const int64_t row = order[i], later = order[i + 1 < first[chunk + 1] ? i + 1 : i];",
        *_pointers(kernel, (Role.ROW,), "row_", "row"),
        *_prefetched_rows(kernel),
        "for (int64_t k = line; k < line + LINE; k += LANES) {",
        *_shifted(kernel),
        *body.lines(),
        *_zeros(kernel),
        "} }",
        *[
            f"scatter(chunk_{o.name} + line, near_{o.name}, {o.n_segments});"
            for o in near
            if o.role is Role.CHUNK
        ],
        "} }",
    ]


def _prefetched_rows(kernel: Kernel) -> list[str]:
    return [
        f"for (int64_t s = 0; s < {o.n_segments}; ++s) "
        f"__builtin_prefetch(in[{number}] + (later * {o.n_segments} + s) * K + line, 0, 2);"
        for number, o in enumerate(kernel.inputs)
        if o.role is Role.ROW
    ]


def _receivers(kernel: Kernel, target: Target) -> list[str]:
    """Sums over the edges of each receiver, a few edges and a few outputs at a time."""
    shared = uniform_slots(kernel.program)
    lines = [
        _EDGE_INDEX,
        f"alignas(64) T shared[{EDGES_AT_A_TIME} * {max(len(shared), 1)}];",
        "for (int64_t row = lo; row < hi; ++row) {",
        *_pointers(kernel, (Role.ROW,), "row_", "row"),
        *[
            f"if (first[row] == first[row + 1]) "
            f"for (int64_t i = 0; i < {o.n_segments} * K; ++i) row_{o.name}[i] = 0;"
            for o in kernel.outputs
        ],
        f"for (int64_t e0 = first[row]; e0 < first[row + 1]; e0 += {EDGES_AT_A_TIME}) {{",
        "const int64_t left = first[row + 1] - e0;",
        f"const int64_t n = left < {EDGES_AT_A_TIME} ? left : {EDGES_AT_A_TIME};",
        "for (int64_t j = 0; j < n; ++j) {",
        "const int64_t edge = e0 + j;",
        *_uniform_pointers(kernel),
        f"T* u = shared + j * {len(shared)};",
        *uniform_lines(kernel.program, shared),
        "}",
        "for (int64_t k = 0; k < K; k += LANES) {",
    ]
    for group in _groups(kernel, ACCUMULATORS[target.width]):
        lines += _receiver_pass(kernel, group, shared)
    return [*lines, *_zeros(kernel), "} } }"]


def _receiver_pass(kernel: Kernel, program: Program, shared: dict[int, int]) -> list[str]:
    """Sums of some outputs over the current edges, in registers."""
    names = {segment: f"s_{segment.operand}_{segment.number}" for segment in program.outputs}
    where = {segment: f"row_{segment.operand} + {segment.number} * K + k" for segment in names}
    body = Body(program, lambda output: f"{names[output[0]]} += {output[1]};", shared, names)
    return [
        "{",
        *[f"V {v} = e0 == first[row] ? V{{}} : load({where[s]});" for s, v in names.items()],
        "for (int64_t j = 0; j < n; ++j) {",
        "const int64_t edge = e0 + j;",
        f"const T* u = shared + j * {len(shared)};",
        *_edge_pointers(kernel),
        *_later(kernel, 2),
        *_shifted(kernel, program),
        *_prefetches(kernel, program, outputs=False),
        *body.lines(),
        "}",
        *[f"store({where[s]}, {v});" for s, v in names.items()],
        "}",
    ]


def _edges(kernel: Kernel, n_lanes: int) -> list[str]:
    """Edges of receivers lo..hi; what is summed over channels is kept in registers meanwhile."""
    shared = uniform_slots(kernel.program)
    sums = {
        segment: f"s_{segment.operand}_{segment.number}"
        for segment in kernel.program.outputs
        if _output(kernel, segment).role is Role.UNIFORM
    }

    def put(output: tuple[Segment, str]) -> str:
        segment, value = output
        return f"{sums[segment]} += {value};" if segment in sums else _store(kernel, output)

    body = Body(kernel.program, put, shared, sums)
    return [
        _EDGE_INDEX,
        f"alignas(64) T u[{max(len(shared), 1)}];",
        "for (int64_t row = lo; row < hi; ++row) {",
        *_pointers(kernel, (Role.ROW,), "row_", "row"),
        "for (int64_t edge = first[row]; edge < first[row + 1]; ++edge) {",
        *_uniform_pointers(kernel),
        *uniform_lines(kernel.program, shared),
        *_edge_pointers(kernel),
        *_pair_pointers(kernel),
        *_later(kernel, 1),
        *[f"V {name} = {{}};" for name in sums.values()],
        "for (int64_t k = 0; k < K; k += LANES) {",
        *_shifted(kernel),
        *_prefetches(kernel, kernel.program, outputs=True),
        *body.lines(),
        *_zeros(kernel),
        "}",
        *_channel_sums(kernel, sums, n_lanes),
        "} }",
    ]


def _later(kernel: Kernel, distance: int) -> list[str]:
    """Pointers to what a later edge reads and writes of the operands PAIR and EDGE."""
    lines = [
        f"const int64_t later = edge + {distance} < last ? edge + {distance} : last;",
        "const int64_t later_pair = pairs_of[later];",
    ]
    for kind, operands in (("in", kernel.inputs), ("out", kernel.outputs)):
        for number, o in enumerate(operands):
            if o.role in (Role.PAIR, Role.EDGE):
                row = "later_pair" if o.role is Role.PAIR else "later"
                address = f"{kind}[{number}] + {row} * {o.n_segments} * K"
                lines.append(f"const T* later_{o.name} = {address};")
    return lines


def _prefetches(kernel: Kernel, program: Program, *, outputs: bool) -> list[str]:
    """Hints to fetch the current channels of a later edge: too many streams for the hardware."""
    of_edges = {o.name: o for o in kernel.inputs if o.role is Role.PAIR}
    segments = [(segment, 0) for segment in program.inputs() if segment.operand in of_edges]
    if outputs:
        written = [o for o in kernel.outputs if o.role in (Role.PAIR, Role.EDGE)]
        segments += [(Segment(o.name, i), 1) for o in written for i in range(o.n_segments)]
    return [
        f"__builtin_prefetch(later_{name} + {number} * K + k, {writes});"
        for (name, number), writes in segments
    ]


def _channel_sums(kernel: Kernel, sums: dict[Segment, str], n_lanes: int) -> list[str]:
    """Totals of the lanes: a tree over as many sums as lanes leaves one vector of totals."""
    lines = []
    for number, operand in enumerate(kernel.outputs):
        if operand.role is not Role.UNIFORM:
            continue
        names = [sums.get(Segment(operand.name, i), "V{}") for i in range(operand.n_segments)]
        for start in range(0, len(names), n_lanes):
            tree = names[start : start + n_lanes]
            n_values = len(tree)
            tree += ["V{}"] * (n_lanes - n_values)
            while len(tree) > 1:
                tree = [f"pairs({a}, {b})" for a, b in zip(tree[::2], tree[1::2], strict=True)]
            address = f"out[{number}] + edge * {operand.n_segments} + {start}"
            if n_values == n_lanes:
                lines.append(f"store({address}, {tree[0]});")
            else:
                lines.append(f"{{ const V t = {tree[0]}; T* p = {address};")
                lines.append(f"for (int l = 0; l < {n_values}; ++l) p[l] = t[l]; }}")
    return lines


def _groups(kernel: Kernel, n_outputs: int) -> list[Program]:
    """Parts of the program, each with as many outputs as registers hold."""
    groups: list[list[Segment]] = []
    for segment in kernel.program.outputs_by_factor():
        if not groups or len(groups[-1]) >= n_outputs:
            groups.append([])
        groups[-1].append(segment)
    return [kernel.program.restricted(frozenset(group).__contains__) for group in groups]


def _output(kernel: Kernel, segment: Segment) -> Operand:
    return next(o for o in kernel.outputs if o.name == segment.operand)


def _store(
    kernel: Kernel, output: tuple[Segment, str], strides: Mapping[str, str] | None = None
) -> str:
    segment, value = output
    role = _output(kernel, segment).role
    address = f"{segment.operand} + {segment.number} * {(strides or {}).get(segment.operand, 'K')}"
    if role is Role.PAIR:
        return f"put({address}, {value}, again);"
    return f"{'add' if role is Role.CHUNK else 'store'}({address}, {value});"


def _zeros(kernel: Kernel) -> list[str]:
    """Zero in the segments that no input reaches."""
    lines = []
    for o in kernel.outputs:
        if o.role in (Role.ROW, Role.EDGE, Role.PAIR):
            base = f"row_{o.name} + k" if kernel.loop is Loop.RECEIVERS else o.name
            absent = [
                i for i in range(o.n_segments) if Segment(o.name, i) not in kernel.program.outputs
            ]
            lines += [f"store({base} + {i} * K, V{{}});" for i in absent]
    return lines


def _pointers(kernel: Kernel, roles: tuple[Role, ...], prefix: str, row: str) -> list[str]:
    """Pointers to the rows of all operands with one of the roles."""
    lines = []
    for number, o in enumerate(kernel.inputs):
        if o.role in roles:
            lines.append(f"const T* {prefix}{o.name} = in[{number}] + {row} * {o.n_segments} * K;")
    for number, o in enumerate(kernel.outputs):
        if o.role in roles:
            at = ("chunk_", "chunk") if o.role is Role.CHUNK else (prefix, row)
            lines.append(f"T* {at[0]}{o.name} = out[{number}] + {at[1]} * {o.n_segments} * K;")
    return lines


def _edge_pointers(kernel: Kernel) -> list[str]:
    lines = [
        "const int64_t sender = senders[edge], pair = pairs_of[edge];",
        *_pointers(kernel, (Role.EDGE,), "edge_", "edge"),
        *_pointers(kernel, (Role.SENDER,), "sender_", "sender"),
    ]
    for number, o in enumerate(kernel.inputs):
        if o.role is Role.PAIR:
            lines.append(f"const T* pair_{o.name} = in[{number}] + pair * {o.n_segments} * K;")
    return lines


def _pair_pointers(kernel: Kernel) -> list[str]:
    """Where an edge adds to what its reverse has written, or writes first."""
    numbers = [i for i, o in enumerate(kernel.outputs) if o.role is Role.PAIR]
    if not numbers:
        return []
    lines = [
        "const bool is_second = first_of[pair] != edge, is_near = lo <= sender && sender < hi;",
        "const bool again = is_second && is_near;",
        "const int64_t place = is_second && !is_near ? pair + index[4][0] : pair;",
    ]
    for i in numbers:
        o = kernel.outputs[i]
        lines.append(f"T* pair_{o.name} = out[{i}] + place * {o.n_segments} * K;")
    return lines


def _uniform_pointers(kernel: Kernel) -> list[str]:
    return [
        f"const T* {o.name} = in[{number}] + edge * {o.n_segments};"
        for number, o in enumerate(kernel.inputs)
        if o.role is Role.UNIFORM
    ]


def _shifted(kernel: Kernel, program: Program | None = None) -> list[str]:
    """Pointers at the channels of the innermost loop."""
    read = {segment.operand for segment in (program or kernel.program).inputs()}
    operands = [("const ", o) for o in kernel.inputs if o.name in read]
    if kernel.loop is not Loop.RECEIVERS:
        operands += [("", o) for o in kernel.outputs]
    return [
        f"{const}T* {o.name} = near_{o.name} + k - line;"
        if o.role in (Role.INDEXED, Role.CHUNK)
        else f"{const}T* {o.name} = {o.role.value}_{o.name} + k;"
        for const, o in operands
        if o.role is not Role.UNIFORM
    ]
