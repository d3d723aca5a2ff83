"""The compiled convolution against an einsum over edges and against finite differences."""

import pytest
import torch

from mace_train.ops.convolution import EdgeIndex, convolution, kernels_of, register
from mace_train.ops.cpp.compiler import find_compiler
from tests.ops.tables import einsum_convolution, mace_product, wave

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
EDGES_OF = {"many": 120, "few": 3, "none": 0}


def case(l_nodes=1, n_edges=120, n_channels=16, dtype=torch.float64, n_atoms=9):
    """Product, inputs, senders and receivers; the last atom has no edges."""
    torch.manual_seed(0)
    product = mace_product(l_nodes, 3)
    x = torch.randn(n_atoms, product.n_x, n_channels, dtype=dtype)
    y = torch.randn(n_edges, product.n_y, dtype=dtype)
    r = torch.randn(n_edges, product.n_weights, n_channels, dtype=dtype)
    senders = torch.randint(0, max(n_atoms - 1, 1), (n_edges,))
    receivers = torch.randint(0, max(n_atoms - 1, 1), (n_edges,)).sort().values
    return product, [t.requires_grad_() for t in (x, y, r)], senders, receivers


def compiled(product, senders, receivers, n_atoms):
    key, index = register(product), EdgeIndex.of(senders, receivers, n_atoms)
    return lambda x, y, r: torch.cat(convolution(x, y, r, index, key), dim=1)


def einsum(product, senders, receivers):
    return lambda x, y, r: einsum_convolution(product, x, y, r, senders, receivers)


def everything(function, inputs, differentiated=(0, 1, 2)):
    """Output, first derivatives, and derivatives of a function of those of some inputs."""
    out = function(*inputs)
    probe = wave(out, torch.cos).requires_grad_()
    chosen = [inputs[i] for i in differentiated]
    first = torch.autograd.grad((out * probe).sum(), chosen, create_graph=True)
    loss = sum((gradient * wave(gradient, torch.sin)).sum() for gradient in first)
    second = torch.autograd.grad(loss + out.sum(), [*inputs, probe], allow_unused=True)
    return [out, *first, *[torch.zeros(()) if v is None else v for v in second]]


def assert_same(found, expected, tolerance):
    for mine, slow in zip(found, expected, strict=True):
        scale = float(slow.detach().abs().max()) if slow.numel() else 0.0
        torch.testing.assert_close(mine, slow.to(mine), rtol=0.0, atol=tolerance * (1.0 + scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("l_nodes", "n_channels", "differentiated"),
    [
        (1, 16, (0, 1, 2)),
        (1, 16, (1, 2)),
        (0, 5, (1, 2)),
        (0, 32, (0,)),
        (0, 32, (1,)),
        (0, 32, (2,)),
        (0, 5, (0, 2)),
        (2, 17, (0, 1, 2)),
    ],
)
def test_equal_to_einsum(l_nodes, n_channels, differentiated, dtype):
    product, inputs, senders, receivers = case(l_nodes, 120, n_channels, dtype)
    found = everything(compiled(product, senders, receivers, 9), inputs, differentiated)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = everything(einsum(product, senders, receivers), exact, differentiated)
    assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("n_atoms", [0, 1, 3])
@pytest.mark.parametrize("n_edges", [0, 1, 40])
def test_few_atoms_and_edges(n_atoms, n_edges):
    if n_atoms == 0 and n_edges > 0:
        n_edges = 0
    product, inputs, senders, receivers = case(1, n_edges, 3, n_atoms=n_atoms)
    found = everything(compiled(product, senders, receivers, n_atoms), inputs)
    assert_same(found, everything(einsum(product, senders, receivers), inputs), 1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own use
def test_first_and_second_derivatives():
    torch.manual_seed(0)
    product = mace_product(1, 1)
    receivers = torch.tensor([0, 0, 2])
    function = compiled(product, torch.tensor([1, 2, 0]), receivers, 3)
    shapes = [(3, product.n_x, 1), (3, product.n_y), (3, product.n_weights, 1)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    (first,) = torch.autograd.grad(function(*inputs).sum(), inputs[0], create_graph=True)
    (second,) = torch.autograd.grad((first * first).sum(), inputs[2], create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives only"):
        torch.autograd.grad(second.sum(), inputs[2])
    plain = tuple(t.detach() for t in inputs)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(function, plain, plain)


@pytest.mark.filterwarnings("ignore")
def test_operator_registrations():
    product, (x, y, r), senders, receivers = case(1, 6, 2)
    key, index = register(product), EdgeIndex.of(senders, receivers, 9)
    indices, operators = index.tensors, torch.ops.mace_train
    torch.library.opcheck(operators.convolution.default, (x, y, r, *indices, key))
    g = torch.randn(sum(product.n_rows) * 9, 2, dtype=torch.float64)
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    for wanted in ([True] * 3, [False, True, True], [False, False, True], [False] * 3):
        torch.library.opcheck(
            operators.convolution_backward.default, (x, y, r, g, *indices, key, wanted), **checks
        )
    v = (torch.randn_like(x), torch.randn_like(y), torch.randn_like(r))
    for given, wanted in (
        ([True] * 3, [True] * 4),
        ([False, True, True], [False, False, False, True]),
        ([True, False, False], [False, False, True, False]),
    ):
        arguments = (x, y, r, g, *v, *indices, key, given, wanted)
        torch.library.opcheck(operators.convolution_double_backward.default, arguments, **checks)


def test_non_contiguous_inputs():
    product, inputs, senders, receivers = case(1, 30, 16)
    function = compiled(product, senders, receivers, 9)
    turned = [
        t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in inputs
    ]
    assert not any(t.is_contiguous() for t in turned)
    assert_same(everything(function, turned), everything(function, inputs), 0.0)


def test_bitwise_equal_for_any_number_of_threads():
    product, inputs, senders, receivers = case(1, 200, 16, torch.float32)
    function = compiled(product, senders, receivers, 9)
    results = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 64, 1):
            torch.set_num_threads(n_threads)
            results.append(everything(function, inputs))
            torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_edges_must_be_sorted_and_name_atoms_that_exist():
    with pytest.raises(AssertionError, match="sorted by receiver"):
        EdgeIndex.of(torch.tensor([0, 1]), torch.tensor([1, 0]), 2)
    with pytest.raises(AssertionError):
        EdgeIndex.of(torch.tensor([0, 5]), torch.tensor([0, 1]), 2)


def paired(n_atoms=9, n_bonds=60, n_alone=7, n_channels=16, dtype=torch.float64):
    """Like ``case`` with edges in both directions that share rows of r, and some that do not."""
    torch.manual_seed(0)
    product = mace_product(1, 3)
    ends = torch.randint(0, n_atoms - 1, (2, n_bonds))
    alone = torch.randint(0, n_atoms - 1, (2, n_alone))
    senders, receivers = torch.cat([ends, ends.flip(0), alone], dim=1)
    rows = torch.cat([torch.arange(n_bonds).repeat(2), n_bonds + torch.arange(n_alone)])
    order = torch.argsort(receivers, stable=True)
    senders, receivers, rows = senders[order], receivers[order], rows[order]
    first = torch.full((n_bonds + n_alone,), len(rows)).scatter_reduce(
        0, rows, torch.arange(len(rows)), "amin"
    )
    x = torch.randn(n_atoms, product.n_x, n_channels, dtype=dtype)
    y = torch.randn(len(rows), product.n_y, dtype=dtype)
    r = torch.randn(len(first), product.n_weights, n_channels, dtype=dtype)
    return product, [t.requires_grad_() for t in (x, y, r)], (senders, receivers, rows, first)


def compiled_with_pairs(product, senders, receivers, rows, first, n_atoms=9):
    key, index = register(product), EdgeIndex.of(senders, receivers, n_atoms, rows, first)
    return lambda x, y, r: torch.cat(convolution(x, y, r, index, key), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("differentiated", [(0, 1, 2), (1, 2), (2,)])
def test_an_edge_and_its_reverse_share_a_row(differentiated, dtype):
    product, inputs, (senders, receivers, rows, first) = paired(dtype=dtype)
    function = compiled_with_pairs(product, senders, receivers, rows, first)
    found = everything(function, inputs, differentiated)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    slow = einsum(product, senders, receivers)
    expected = everything(lambda x, y, r: slow(x, y, r[rows]), exact, differentiated)
    assert_same(found, expected, TOLERANCE[dtype])


def test_shared_rows_are_bitwise_equal_for_any_number_of_threads():
    product, inputs, edges = paired(dtype=torch.float32)
    function = compiled_with_pairs(product, *edges)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3, 64, 1):
            torch.set_num_threads(n_threads)
            results.append(everything(function, inputs))
            torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("rows", "first", "words"),
    [
        ([0, 0, 1, 2], [0, 2, 3], "no reverse"),  # both from 1 to 0
        ([0, 1, 0, 0], [0, 1], "more than two"),
        ([0, 1, 0, 2], [0, 1, 2], "no reverse"),  # row 2 claims an edge of row 0
        ([1, 0, 1, 0], [1, 0, 2], "without edges"),
    ],
)
def test_wrong_pairs_are_refused(rows, first, words):
    senders, receivers = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1])
    with pytest.raises(AssertionError, match=words):
        EdgeIndex.of(senders, receivers, 2, torch.tensor(rows), torch.tensor(first))


def test_edge_index():
    index = EdgeIndex.of(torch.tensor([2, 0, 2, 1]), torch.tensor([0, 1, 1, 3]), 5)
    assert index.first.tolist() == [0, 1, 3, 3, 4, 4]
    assert index.by_sender.tolist() == [1, 3, 0, 2]
    assert index.first_by_sender.tolist() == [0, 1, 2, 4, 4, 4]


def test_kernels_say_what_they_are_for():
    kernels = kernels_of(register(mace_product(1, 1)))
    assert repr(kernels) == "ConvolutionKernels(x[4] y[4] r[4] -> out0[2] out1[6] | 4 paths)"
