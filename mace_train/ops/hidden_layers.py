"""Hidden layers of a network as an operator with first and second derivatives.

    h_i = silu(u_i),    u_i = gain_i n_i + shift_i,    n_i = (z_i - mean z_i) / std z_i
    z_(i+1) = W_i h_i + b_i

(layer norm over the columns of a row) from z_0 to the last h. Kept for the derivatives are z_0 and
the cotangent of h; PyTorch keeps some twenty tensors of their size for every layer of a step on
forces. The rest is computed again in each pass, for so many rows at a time as stay in the cache.

The second derivative is that of the tangent: with v the cotangent of the gradient of z_0 (and of
the parameters),

    <v, gradient(z_0; g)> = <g, tangent(z_0; v)>,

so that the gradient of g is the tangent, and the others come backwards through it. With J the
Jacobian of n(z), which is symmetric, w columns and s = 1 / std z, the one term that is not in
PyTorch is

    d<a, J v>/dz = -s/w [ <n, v> J a + <n, a> J v + <a, J v> n ].

What is done row by row is one function of C++ on a CPU, and operations of PyTorch on a GPU.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mace_train.ops.cpp.norm_silu import EPSILON, CompiledLayer
from mace_train.ops.dispatch import runs_on_cuda
from mace_train.ops.torch_library import (
    OperatorChain,
    in_common_precision,
    keep_wanted,
    refuse_forward_mode,
)

VALUES_ON_A_CPU, VALUES_ON_A_GPU = 2**17, 2**24  # of one tensor at a time; for each CPU thread
_layer_norm = torch.ops.aten.native_layer_norm.default
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_silu_backward = torch.ops.aten.silu_backward.default
_sigmoid_backward = torch.ops.aten.sigmoid_backward.default


def hidden_layers(
    z: Tensor, parameters: Sequence[Tensor], matmul_dtype: torch.dtype | None = None
) -> Tensor:
    """The last h [n_rows, width] from z_0 [n_rows, width].

    ``parameters`` are gain and shift [width] of the first layer, and W [width_out, width_in], b,
    gain and shift [width_out] of every further one. Products with W are taken in ``matmul_dtype``
    (None: that of z). The result has the widest dtype of all, at least float32.
    """
    refuse_forward_mode("hidden_layers", z, *parameters)
    key = "" if matmul_dtype is None else str(matmul_dtype).removeprefix("torch.")
    (result,) = _CHAIN.value(list(in_common_precision(z, *parameters)), key)
    found: Tensor = result
    return found


class Layer:
    """One layer for some of the rows."""

    def __init__(self, z: Tensor, gain: Tensor, shift: Tensor) -> None:
        self.z, self.gain, self.shift = z, gain, shift
        self.u, self.mean, self.rstd = _layer_norm(
            z, self.gain.shape, self.gain, self.shift, EPSILON
        )
        self.h = torch.nn.functional.silu(self.u)

    def tangent(self, dz: Tensor, d_gain: Tensor | None, d_shift: Tensor | None) -> Tensor:
        """The change of h for changes of z, gain and shift."""
        self.dz, self.d_gain = dz, d_gain
        self.dn, _, _ = self._backward(dz, None)
        self.du = self.dn * self.gain
        if d_gain is not None:
            self.du = self.du.addcmul_(self._n(), d_gain)
        if d_shift is not None:
            self.du = self.du.add_(d_shift)
        change: Tensor = _silu_backward(self.du, self.u)
        return change

    def gradient(
        self, g: Tensor, *, of_parameters: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of z and, if asked for, of gain and shift, for that of h."""
        gu = _silu_backward(g, self.u)
        return self._backward(gu, self.gain, of_parameters=of_parameters)

    def gradient_of_tangent(
        self, a: Tensor, g: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the change of z, and of z, gain and shift.

        For those of the change of h and, unless None, of h.
        """
        # silu'' = s (1 - s) (2 + u - 2 u s) with the sigmoid s, and u s = h
        gu = torch.add(self.u, self.h, alpha=-2).add_(2)
        gu = gu.mul_(_sigmoid_backward(a * self.du, torch.sigmoid(self.u)))
        if g is not None:
            gu = gu.add_(_silu_backward(g, self.u))
        gz, g_gain, g_shift = self._backward(gu, self.gain, of_parameters=True)
        g_du = _silu_backward(a, self.u)
        g_dz, _, _ = self._backward(g_du, self.gain)
        if self.d_gain is not None:
            gz = gz.add_(self._backward(g_du, self.d_gain)[0])
        n, scale = self._n(), self.rstd * (-1 / self.z.shape[1])
        products = g_du * self.dn
        gz = gz.addcmul_(g_dz, scale * (n * self.dz).sum(1, keepdim=True))
        gz = gz.addcmul_(self.dn, scale * ((n * g_du) @ self.gain).unsqueeze(1))
        gz = gz.addcmul_(n, scale * (products @ self.gain).unsqueeze(1))
        return g_dz, gz, g_gain.add_(products.sum(0)), g_shift

    def _n(self) -> Tensor:
        return (self.z - self.mean).mul_(self.rstd)

    def _backward(
        self, g: Tensor, gain: Tensor | None, *, of_parameters: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """J (gain g) and, if asked for, the sums over rows for gain and shift."""
        found: tuple[Tensor, Tensor, Tensor] = _layer_norm_backward(
            g,
            self.z,
            self.gain.shape,
            self.mean,
            self.rstd,
            gain,
            None if gain is None else self.shift,
            [True, of_parameters, of_parameters],
        )
        return found


class _Network:
    """All layers, from the parameters in the order of the operator."""

    def __init__(self, parameters: Sequence[Tensor], key: str) -> None:
        self.layers = _by_layer(parameters)
        self._dtype = getattr(torch, key) if key else None

    def values(self, z: Tensor) -> "list[Layer | CompiledLayer]":
        """Every layer for rows z of z_0."""
        of_rows = Layer if runs_on_cuda(z.device) else CompiledLayer
        found = [of_rows(z, *self.layers[0])]
        for weight, bias, gain, shift in self.layers[1:]:
            z = self.product(found[-1].h, weight.T) + bias
            found.append(of_rows(z, gain, shift))
        return found

    def tangents(
        self,
        layers: "Sequence[Layer | CompiledLayer]",
        dz: Tensor,
        changes: Sequence[Sequence[Tensor | None]],
    ) -> list[Tensor]:
        """The change of every h for those of z_0 and, unless None, of parameters."""
        found = [layers[0].tangent(dz, *changes[0])]
        for i in range(1, len(layers)):
            weight, (d_weight, d_bias, *d_norm) = self.layers[i][0], changes[i]
            dz = self.product(found[-1], weight.T)
            if d_weight is not None:
                dz = dz + self.product(layers[i - 1].h, d_weight.T)
            dz = dz if d_bias is None else dz + d_bias
            found.append(layers[i].tangent(dz, *d_norm))
        return found

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """A matrix product, in the narrow type if there is one."""
        if self._dtype is None:
            return a @ b
        return (a.to(self._dtype) @ b.to(self._dtype)).to(a.dtype)


def _by_layer(parameters: Sequence[Any]) -> list[Sequence[Any]]:
    """Gain and shift of the first layer; W, b, gain and shift of each further one."""
    return [parameters[:2], *(parameters[i : i + 4] for i in range(2, len(parameters), 4))]


def _value(tensors: Sequence[Tensor], key: str) -> list[Tensor]:
    z, *parameters = tensors
    network, h = _Network(parameters, key), z.new_empty(z.shape[0], len(parameters[-1]))
    for rows in _parts(z):
        h[rows] = network.values(z[rows])[-1].h
    return [h]


def _gradient(tensors: Sequence[Tensor], key: str, wanted: Sequence[bool]) -> list[Tensor]:
    """Gradients of z_0 and the parameters; the last tensor is that of h."""
    z, *parameters, of_h = tensors
    network, of_z = _Network(parameters, key), _like(z, wanted[0])
    found, of_parameters = [torch.zeros_like(t) for t in parameters], any(wanted[1:])
    totals = _by_layer(found)
    for rows in _parts(z):
        g, layers = of_h[rows], network.values(z[rows])
        for i in reversed(range(len(layers))):
            g, *of_norm = layers[i].gradient(g, of_parameters=of_parameters)
            _add(totals[i][-2:], of_norm)
            if i > 0:
                if of_parameters:
                    _add(totals[i][:2], [network.product(g.T, layers[i - 1].h), g.sum(0)])
                g = network.product(g, network.layers[i][0])
        if wanted[0]:
            of_z[rows] = g
    return list(keep_wanted([of_z, *found], wanted))


def _second_gradient(
    tensors: Sequence[Tensor], key: str, given: Sequence[bool], wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of z_0, the parameters and g; the last tensors are g and a v for each before it."""
    n = len(given)
    (z, *parameters), of_h = tensors[:n], tensors[n]
    v = [one if is_given else None for one, is_given in zip(tensors[n + 1 :], given, strict=True)]
    network, of_z, of_g = _Network(parameters, key), _like(z, wanted[0]), _like(of_h, wanted[n])
    found = [torch.zeros_like(t) for t in parameters]
    totals, d_parameters = _by_layer(found), _by_layer(v[1:])
    for rows in _parts(z):
        layers = network.values(z[rows])
        dz = torch.zeros_like(z[rows]) if v[0] is None else v[0][rows]
        changes = network.tangents(layers, dz, d_parameters)
        if wanted[n]:
            of_g[rows] = changes[-1]
        if not any(wanted[:n]):
            continue
        a, g = of_h[rows], None
        for i in reversed(range(len(layers))):
            a, gz, *of_norm = layers[i].gradient_of_tangent(a, g)
            _add(totals[i][-2:], of_norm)
            if i > 0:
                of_weight = network.product(a.T, changes[i - 1])
                of_weight = of_weight + network.product(gz.T, layers[i - 1].h)
                _add(totals[i][:2], [of_weight, gz.sum(0)])
                weight, d_weight = network.layers[i][0], d_parameters[i][0]
                g = network.product(gz, weight)
                g = g if d_weight is None else g + network.product(a, d_weight)
                a = network.product(a, weight)
        if wanted[0]:
            of_z[rows] = gz
    return list(keep_wanted([of_z, *found, of_g], wanted))


def _like(tensor: Tensor, is_wanted: bool) -> Tensor:
    return torch.empty_like(tensor) if is_wanted else tensor.new_empty(0)


def _parts(z: Tensor) -> Iterator[slice]:
    """Rows to compute at a time."""
    on_cpu = z.device.type == "cpu"
    n_values = VALUES_ON_A_CPU * torch.get_num_threads() if on_cpu else VALUES_ON_A_GPU
    n_rows = max(1, n_values // max(1, z.shape[1]))
    return (slice(i, i + n_rows) for i in range(0, z.shape[0], n_rows))


def _add(totals: Sequence[Tensor], parts: Sequence[Tensor | None]) -> None:
    for total, part in zip(totals, parts, strict=True):
        if part is not None:
            total.add_(part)


def _fake(tensors: Sequence[Tensor], key: str) -> list[Tensor]:
    return [tensors[0].new_empty(tensors[0].shape[0], tensors[-1].shape[0])]


_CHAIN = OperatorChain(
    "hidden_layers",
    None,
    (),
    value=_value,
    fake=_fake,
    gradient=_gradient,
    second_gradient=_second_gradient,
)
