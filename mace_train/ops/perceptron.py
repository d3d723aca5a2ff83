"""Perceptrons without biases, and what training on forces needs of them, as two nodes.

    z_0 = c_0 x W_0,     z_i = c_i silu(z_(i-1)) W_i,     the last z is the value

Their derivative in x, from which forces come, goes back from g, the one in the last z:

    a_i = c_(i+1) g_(i+1) W_(i+1)^T,     g_i = silu'(z_i) a_i,     gx = c_0 g_0 W_0^T

``_AllLayers`` gives all z, and ``_GradientOfInput`` takes them as inputs: what a loss asks of the
second in z is elementwise, meets in ``_AllLayers.backward`` what it asks of the first, and goes
back through the layers with it, once. PyTorch would see some 290 operations in place of these, for
two networks. Derivatives that training does not need are taken by PyTorch from the formulas.
"""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import silu

from mace_train.ops.torch_library import wanted_gradients
from mace_train.ops.trilinear import scaled_product

Scales = tuple[float, ...]
Tensors = Sequence[Tensor]
Gradients = tuple[Tensor | None, ...]


def perceptron(x: Tensor, weights: Tensors, scales: Scales) -> Tensor:
    """The value [n, n_out], differentiable any number of times.

    Takes x [n, n_in], matrices [n_in, width], ..., [width, n_out] and the number c of each. All are
    of one dtype and device, and ``torch_library.is_eager``.
    """
    if not torch.is_grad_enabled():
        return _values(scales, x, *weights)[-1]
    values: tuple[Tensor, ...] = _AllLayers.apply(scales, x, *weights)  # type: ignore[no-untyped-call]
    return values[-1]


def _values(scales: Scales, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """All z."""
    z: list[Tensor] = []
    for weight, scale in zip(weights, scales, strict=True):
        z.append(scaled_product(silu(z[-1]) if z else x, weight, scale))
    return tuple(z)


class _AllLayers(Function):
    """All z, from x and the weights."""

    @staticmethod
    def forward(ctx: Any, scales: Scales, *inputs: Tensor) -> tuple[Tensor, ...]:
        z = _values(scales, *inputs)
        ctx.scales = scales
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *z[:-1])
        return z

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> Gradients:
        scales, saved, wanted = ctx.scales, ctx.saved_tensors, wanted_gradients(ctx)
        n = len(scales)
        inputs, z = saved[: n + 1], saved[n + 1 :]
        if not torch.is_grad_enabled():
            return None, *_back(scales, inputs, z, g, wanted)
        in_last_alone = [one is not None for one in g] == [False] * (n - 1) + [True]
        if in_last_alone and wanted == [True] + [False] * n:
            weights = inputs[1:]
            gx = _GradientOfInput.apply(scales, g[-1], *weights, *z)  # type: ignore[no-untyped-call]
            return None, gx, *[None] * n
        return None, *_by_autograd(lambda *t: _values(scales, *t), inputs, g, wanted)


def _back(
    scales: Scales, inputs: Tensors, z: Tensors, g: Sequence[Tensor | None], wanted: list[bool]
) -> list[Tensor | None]:
    """Gradients of <g, z> in x and the weights, those that are wanted."""
    x, *weights = inputs
    found: list[Tensor | None] = [None] * len(inputs)
    of_z = g[-1]
    for i in reversed(range(len(scales))):
        if of_z is not None and wanted[i + 1]:
            found[i + 1] = scaled_product((silu(z[i - 1]) if i else x).T, of_z, scales[i])
        if not any(wanted[: i + 1]):
            break
        before = None if of_z is None else scaled_product(of_z, weights[i].T, scales[i])
        if i == 0:
            found[0] = before
            break
        of_z = None if before is None else _silu_first(z[i - 1], before)
        more = g[i - 1]
        if more is not None:
            of_z = more if of_z is None else of_z.add_(more)
    return found


class _GradientOfInput(Function):
    """The gradient in x, from that of the last z, the weights and the other z."""

    @staticmethod
    def forward(ctx: Any, scales: Scales, *inputs: Tensor) -> Tensor:
        gx, a, g = _gradient(scales, *inputs)
        ctx.scales = scales
        ctx.save_for_backward(*inputs, *a, *g)
        return gx

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        scales, saved, wanted = ctx.scales, ctx.saved_tensors, wanted_gradients(ctx)
        n = len(scales)
        inputs, a, g = saved[: 2 * n], saved[2 * n : 3 * n - 1], saved[3 * n - 1 :]
        if torch.is_grad_enabled():
            return None, *_by_autograd(lambda *t: _gradient(scales, *t)[:1], inputs, (v,), wanted)
        weights, z = inputs[1 : n + 1], inputs[n + 1 :]
        found: list[Tensor | None] = [None] * len(inputs)
        for i, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
            of_z = g[i] if i < n - 1 else inputs[0]
            if wanted[i + 1]:
                found[i + 1] = scaled_product(v.T, of_z, scale)
            v = scaled_product(v, weight, scale)
            if i < n - 1:
                v, found[n + 1 + i] = _silu_second(z[i], v, a[i])
        found[0] = v
        return None, *found


def _gradient(scales: Scales, *inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """gx, all a, and all g but the last; from the last g, the weights and all z but the last."""
    n = len(scales)
    g, weights, z = inputs[0], inputs[1 : n + 1], inputs[n + 1 :]
    of_values: list[Tensor] = []
    of_z: list[Tensor] = []
    for i in reversed(range(n)):
        before = scaled_product(g, weights[i].T, scales[i])
        if i == 0:
            return before, of_values[::-1], of_z[::-1]
        g = _silu_first(z[i - 1], before)
        of_values.append(before)
        of_z.append(g)
    raise AssertionError("no layers")


def _silu_second(z: Tensor, u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """silu'(z) u and silu''(z) u a, for tensors of one shape, without autograd."""
    s = torch.sigmoid(z)  # silu'' = s (1 - s) (2 + z (1 - 2 s))
    second = torch.ops.aten.sigmoid_backward(torch.mul(u, a), s)
    return _silu_first(z, u), second.mul_(torch.rsub(s, 1.0, alpha=2.0).mul_(z).add_(2.0))


def _silu_first(z: Tensor, u: Tensor) -> Tensor:
    """silu'(z) u."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(u, z)
    s = torch.sigmoid(z)  # PyTorch has no derivative of the operator above
    return u * s * (1.0 + z * (1.0 - s))


def _by_autograd(
    function: Callable[..., Tensors],
    inputs: Tensors,
    cotangents: Sequence[Tensor | None],
    wanted: list[bool],
) -> list[Tensor | None]:
    """Gradients in the inputs by PyTorch, to be differentiated again."""
    with torch.enable_grad():
        inputs = [tensor.view_as(tensor) for tensor in inputs]  # which may depend on one another
        pairs = zip(function(*inputs), cotangents, strict=True)
        given = [(value, one) for value, one in pairs if one is not None]
        gradients = torch.autograd.grad(
            [value for value, _ in given],
            list(compress(inputs, wanted)),
            [one for _, one in given],
            create_graph=True,
            allow_unused=True,
        )
    found = iter(gradients)
    return [next(found) if is_wanted else None for is_wanted in wanted]
