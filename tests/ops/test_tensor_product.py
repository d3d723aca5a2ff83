"""Tensor products of e3nn, and of other groups, by the operator for any polynomial."""

import numpy as np
import pytest
import torch

from mace_train.irreps import import_o3
from mace_train.model.coupling import wigner_3j
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.segmented_kernels import Operation
from mace_train.ops.segmented_polynomial import register, segmented_polynomial
from mace_train.ops.tensor_product import Block, Instruction, TensorProduct, o3_blocks

BACKENDS = [
    "reference",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
    ),
]
# in1, in2, out as (mul, l, parity), and instructions; every one with other multiplicities
CASES = {
    "uvw": (
        [(3, 1, -1), (3, 0, 1)],
        [(2, 1, -1), (1, 2, 1)],
        [(4, 0, 1), (2, 1, 1), (3, 1, -1)],
        [
            Instruction(0, 0, 0, "uvw", True),
            Instruction(0, 0, 1, "uvw", True, 0.7),
            Instruction(0, 1, 2, "uvw", True),
            Instruction(1, 0, 2, "uvw", True, 2.0),
        ],
    ),
    "uvu": (
        [(5, 0, 1), (5, 1, -1)],
        [(2, 1, -1), (1, 2, 1)],
        [(5, 1, -1), (5, 2, 1), (5, 1, 1)],
        [
            Instruction(0, 0, 0, "uvu", True),
            Instruction(1, 1, 0, "uvu", True),
            Instruction(1, 0, 1, "uvu", False),
            Instruction(1, 0, 2, "uvu", True),
        ],
    ),
    "uvv": (
        [(3, 1, -1), (2, 1, 1)],
        [(4, 1, -1)],
        [(4, 2, 1), (4, 1, -1)],
        [Instruction(0, 0, 0, "uvv", True), Instruction(1, 0, 1, "uvv", False)],
    ),
    "uuw": (
        [(4, 1, -1), (4, 2, 1)],
        [(4, 1, -1)],
        [(3, 0, 1), (2, 1, -1)],
        [Instruction(0, 0, 0, "uuw", True), Instruction(1, 0, 1, "uuw", True)],
    ),
    "uuu": (
        [(6, 1, -1)],
        [(6, 1, -1), (6, 2, 1)],
        [(6, 1, 1), (6, 3, -1)],
        [Instruction(0, 0, 0, "uuu", True), Instruction(0, 1, 1, "uuu", False)],
    ),
    "uvuv": (
        [(3, 1, -1)],
        [(2, 1, -1), (2, 2, 1)],
        [(6, 0, 1), (6, 1, -1)],
        [Instruction(0, 0, 0, "uvuv", True), Instruction(0, 1, 1, "uvuv", False)],
    ),
    "mixed": (
        [(2, 0, 1), (2, 1, -1)],
        [(2, 1, -1), (2, 0, 1)],
        [(2, 1, -1), (4, 0, 1), (2, 1, 1)],
        [
            Instruction(0, 0, 0, "uuu", True),
            Instruction(1, 0, 1, "uvuv", True),
            Instruction(1, 0, 2, "uvv", True),
        ],
    ),
}


def o3_table(in1, in2, out):
    (l1, p1), (l2, p2), (l3, p3) = in1.name, in2.name, out.name
    assert p1 * p2 == p3
    return wigner_3j(l1, l2, l3)


class AsE3nn:
    """A ``TensorProduct`` that takes and gives e3nn's flat tensors, for equal mul of in1."""

    def __init__(self, in1, in2, out, instructions, table=o3_table):
        blocks = [o3_blocks(i) if isinstance(i[0], tuple) else i for i in (in1, in2, out)]
        self.in1, self.in2, self.out = blocks
        self.product = TensorProduct(*blocks, instructions, table)
        summed = frozenset({"sum"})
        operation = Operation(self.product.polynomial, self.product.n_segments, summed)
        self.n_segments = operation.n_segments
        self.key = register(operation)
        self.n_channels = max(block.mul for block in self.in1)

    def n_weights(self):
        muls = [self._weight_shape(ins) for ins in self.product.instructions]
        return sum(int(np.prod(shape)) for shape in muls if shape)

    def _weight_shape(self, ins):
        u, v, w = self.in1[ins.i1].mul, self.in2[ins.i2].mul, self.out[ins.i_out].mul
        shapes = {"uvw": (u, v, w), "uuw": (u, w), "uuu": (u,)}
        return shapes.get(ins.mode, (u, v)) if ins.has_weight else None

    def _padded(self, t):
        """[n, segments, u] with u zero up to the number of channels."""
        return torch.nn.functional.pad(t, (0, self.n_channels - t.shape[2]))

    def inputs(self, x1, x2, w):
        n, parts = len(x1), torch.split(x1, [b.mul * b.dim for b in self.in1], 1)
        blocks = [p.view(n, b.mul, b.dim) for p, b in zip(parts, self.in1, strict=True)]
        named = {"x1": torch.cat([self._padded(p.transpose(1, 2)) for p in blocks], 1)}
        if self.n_segments["x2"]:
            named["x2"] = x2
        if self.n_segments["x2u"]:
            parts = torch.split(x2, [b.mul * b.dim for b in self.in2], 1)
            blocks = [p.view(n, b.mul, b.dim) for p, b in zip(parts, self.in2, strict=True)]
            named["x2u"] = torch.cat([self._padded(p.transpose(1, 2)) for p in blocks], 1)
        weights, start = [], 0
        for ins in self.product.instructions:
            shape = self._weight_shape(ins)
            if shape:
                size = int(np.prod(shape))
                part = w[:, start : start + size].view(n, shape[0], size // shape[0])
                weights.append(self._padded(part.transpose(1, 2)))
                start += size
        if weights:
            named["w"] = torch.cat(weights, 1)
        return named

    def __call__(self, x1, x2, w, backend):
        n = len(x1)
        found = segmented_polynomial(self.key, self.inputs(x1, x2, w), backend=backend)
        parts = []
        for i, block in enumerate(self.out):
            name, first = self.product.first_out[i]
            modes = {ins.mode for ins in self.product.instructions if ins.i_out == i}
            if name == "sum":
                parts.append(found[name][:, first : first + block.mul * block.dim])
                continue
            u = next(self.in1[s.i1].mul for s in self.product.instructions if s.i_out == i)
            n_v = block.mul // u if modes == {"uvuv"} else 1
            rows = found[name][:, first : first + n_v * block.dim, :u]
            parts.append(rows.view(n, n_v, block.dim, u).permute(0, 3, 1, 2).flatten(1))
        return torch.cat(parts, 1)


@pytest.fixture
def o3():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # or e3nn rounds its coefficients to float32
    yield import_o3()
    torch.set_default_dtype(default)


def e3nn_product(o3, in1, in2, out, instructions):
    irreps = [o3.Irreps([(mul, (degree, p)) for mul, degree, p in i]) for i in (in1, in2, out)]
    rows = [(i.i1, i.i2, i.i_out, i.mode, i.has_weight, i.path_weight) for i in instructions]
    return o3.TensorProduct(*irreps, rows, shared_weights=False, internal_weights=False).double()


def random_inputs(ours, n_rows, dtype=torch.float64):
    torch.manual_seed(0)
    sizes = [sum(b.mul * b.dim for b in blocks) for blocks in (ours.in1, ours.in2)]
    return [
        torch.randn(n_rows, size, dtype=dtype, requires_grad=True)
        for size in (*sizes, ours.n_weights())
    ]


def derivatives(function, inputs):
    """Value, gradients, and gradients of a function of those."""
    inputs = [t for t in inputs if t.numel() or not len(t)]
    out = function()
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True, allow_unused=True)
    loss = sum(t.sin().sum() for t in first if t is not None)
    second = torch.autograd.grad(loss, inputs, allow_unused=True)
    every = zip((out, *first, *second), (out, *inputs, *inputs), strict=True)
    return [torch.zeros_like(like) if found is None else found for found, like in every]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_equal_to_e3nn(name, backend, o3):
    ours, theirs = AsE3nn(*CASES[name]), e3nn_product(o3, *CASES[name])
    assert theirs.weight_numel == ours.n_weights()
    for n_rows in (7, 1, 0):
        inputs = random_inputs(ours, n_rows)
        found = derivatives(lambda inputs=inputs: ours(*inputs, backend), inputs)
        expected = derivatives(lambda inputs=inputs: theirs(*inputs), inputs)
        for mine, slow in zip(found, expected, strict=True):
            scale = 1.0 + float(slow.abs().max()) if slow.numel() else 1.0
            torch.testing.assert_close(mine, slow, rtol=0.0, atol=1e-12 * scale)
    low = [t.detach().float() for t in random_inputs(ours, 7)]
    exact = theirs(*[t.double() for t in low])
    assert ours(*low, backend).dtype == torch.float32
    torch.testing.assert_close(ours(*low, backend).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_derivatives_by_finite_differences(name, backend):
    ours = AsE3nn(*CASES[name])
    inputs = random_inputs(ours, 1)
    directions = [torch.randn_like(t) for t in inputs]

    def along(*steps):
        moved = [t.detach() + s * d for t, s, d in zip(inputs, steps, directions, strict=True)]
        return ours(*moved, backend)

    steps = [torch.tensor(0.1 * i, requires_grad=True, dtype=torch.float64) for i in range(3)]
    assert torch.autograd.gradcheck(along, steps)
    assert torch.autograd.gradgradcheck(along, steps)


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def invariant_couplings(act1, act2, act3):
    """Coefficients [n, d1, d2, d3] that all matrices of a group leave alone, by averaging."""
    size = (act1[0].shape[0], act2[0].shape[0], act3[0].shape[0])
    mean = np.mean(
        [np.kron(np.kron(a, b), c) for a, b, c in zip(act1, act2, act3, strict=True)], axis=0
    )
    values, vectors = np.linalg.eigh((mean + mean.T) / 2)
    return vectors[:, values > 0.999].T.reshape(-1, *size)


GROUPS = {
    "C3": {m: [rotation(2 * np.pi * m * k / 3) for k in range(3)] for m in (1,)},
    "SO(2)": {m: [rotation(2 * np.pi * m * k / 24) for k in range(24)] for m in (1, 2, 3)},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["uvw", "uvu", "uvuv", "uuu"])
@pytest.mark.parametrize(("group", "degrees"), [("C3", (1, 1, 1)), ("SO(2)", (1, 2, 3))])
def test_other_groups(group, degrees, mode, backend):
    """Couplings of a point group, and of rotations about an axis, found by averaging over it."""
    acts = [GROUPS[group][m] for m in degrees]
    tables = invariant_couplings(*acts)
    assert len(tables) == 2  # the real and imaginary part of one complex coupling
    muls = {"uvw": (3, 2, 4), "uvu": (3, 2, 3), "uvuv": (3, 2, 6), "uuu": (3, 3, 3)}[mode]
    blocks = [[Block(mul, 2, degree)] for mul, degree in zip(muls, degrees, strict=True)]
    instructions = [Instruction(0, 0, 0, mode, True)]
    ours = AsE3nn(*blocks, instructions, lambda *_: tables[0])
    x1, x2, w = (t.detach() for t in random_inputs(ours, 5))
    out = ours(x1, x2, w, backend)
    for k in range(len(acts[0])):
        turn = [torch.as_tensor(act[k]) for act in acts]
        moved = [
            (t.view(5, -1, 2) @ r.T).reshape(5, -1) for t, r in zip((x1, x2), turn[:2], strict=True)
        ]
        expected = (out.view(5, -1, 2) @ turn[2].T).reshape(5, -1)
        torch.testing.assert_close(ours(*moved, w, backend), expected, rtol=0.0, atol=1e-12)
    assert float(out.abs().max()) > 0.1


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (Instruction(0, 0, 0, "uvx", True), "none of uvw"),
        (Instruction(0, 0, 0, "uvu", True), "do not fit the mode"),
        (Instruction(0, 0, 0, "uuw", True), "do not fit the mode"),
        (Instruction(0, 0, 0, "uvw", False), "needs a weight"),
    ],
)
def test_what_cannot_be_stated(instruction, words):
    with pytest.raises(ValueError, match=words):
        TensorProduct(*[o3_blocks([(m, 0, 1)]) for m in (2, 3, 4)], [instruction], o3_table)


def test_blocks_and_paths_are_printed():
    in1, in2, out, instructions = CASES["uvu"]
    product = TensorProduct(*map(o3_blocks, (in1, in2, out)), instructions, o3_table)
    heading = "5x0e+5x1o x 2x1o+1x2e -> 5x1o+5x2e+5x1e | 4 paths | 5 weights per channel"
    assert repr(product) == f"TensorProduct({heading})"
    assert str(product).splitlines()[1:] == [
        "  uvu: 5x0e x 2x1o -> 5x1o, weighted",
        "  uvu: 5x1o x 1x2e -> 5x1o, weighted",
        "  uvu: 5x1o x 2x1o -> 5x2e",
        "  uvu: 5x1o x 2x1o -> 5x1e, weighted",
    ]
