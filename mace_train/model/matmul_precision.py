"""Products of features with weights, in a narrower type where that is asked for.

    bfloat16:  x @ w  =  float( bf16(x) @ bf16(w) )      8 bits of mantissa, range of float32

Both derivatives multiply in that type too. What is narrow is this product alone: distances,
harmonics, the radial basis, the tensor products over edges and atoms, readouts and all sums of
energies stay in the type of the model, and so do the weights that the optimizer sees.
"""

import torch
from torch import Tensor, nn


def matmul(x: Tensor, w: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Products x @ w [..., n_out], taken in ``dtype`` (None: that of x), in the type of x."""
    if dtype is None:
        return x @ w
    return (x.to(dtype) @ w.to(dtype)).to(x.dtype)


class MatmulModule(nn.Module):
    """A layer whose products can be taken in a narrower type than its features and weights."""

    matmul_dtype: torch.dtype | None = None  # None: that of the features

    def matmul(self, x: Tensor, w: Tensor) -> Tensor:
        """Products x @ w [..., n_out] in the type of x."""
        return matmul(x, w, self.matmul_dtype)
