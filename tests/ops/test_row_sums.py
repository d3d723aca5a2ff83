"""Sums of rows by an index: equal to a loop, differentiable twice, the same bits every time."""

import pytest
import torch

from mace_train.ops.row_sums import add_rows, sum_rows, take_rows


def rows_of(n_rows: int, n: int, shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_rows, *shape, generator=generator, dtype=torch.float64)
    return rows, torch.randint(0, max(n, 1), (n_rows,), generator=generator)


@pytest.mark.parametrize("shape", [(), (3,), (3, 3)])
@pytest.mark.parametrize(("n_rows", "n"), [(700, 3), (20, 50), (0, 4), (0, 0), (5, 1)])
def test_sums_are_those_of_a_loop(n_rows, n, shape):
    rows, index = rows_of(n_rows, n, shape)
    expected = torch.zeros(n, *shape, dtype=torch.float64)
    for row, i in zip(rows, index.tolist(), strict=True):
        expected[i] += row
    for function in (sum_rows, add_rows):
        torch.testing.assert_close(function(rows, index, n), expected, rtol=0, atol=1e-12)
    assert torch.equal(take_rows(expected, index), expected[index])
    ordered, order = torch.sort(index, stable=True)
    found = sum_rows(rows[order], ordered, n, ascending=True)
    assert torch.equal(found, sum_rows(rows, index, n))


def test_derivatives_of_both():
    rows, index = rows_of(9, 4, (2,))
    values = rows_of(4, 1, (2,), seed=1)[0]
    rows.requires_grad_()
    values.requires_grad_()
    weight = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def of_rows(rows: torch.Tensor) -> torch.Tensor:
        return sum_rows(rows, index, 4).square()

    def of_values(values: torch.Tensor) -> torch.Tensor:
        return take_rows(values, index).square() * weight

    for function, x in ((of_rows, rows), (of_values, values)):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def test_repeated_sums_have_the_same_bits():
    rows, index = rows_of(5000, 7, (3,))
    first = sum_rows(rows.float(), index, 7)
    assert all(torch.equal(sum_rows(rows.float(), index, 7), first) for _ in range(5))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_gpu(dtype):
    rows, index = rows_of(200_000, 60, (9,))
    expected = add_rows(rows, index, 60)
    rows, index = rows.to("cuda", dtype), index.cuda()
    found = sum_rows(rows, index, 60)
    scale = float(expected.abs().max())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=tolerance * scale)
    assert all(torch.equal(sum_rows(rows, index, 60), found) for _ in range(20))
