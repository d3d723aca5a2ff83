"""What our operators share towards torch: registration, which gradients are wanted, refusals.

Operators come in chains (value, gradient, gradient of the gradient), each registered as the
derivative of the one before. After the last, and in forward mode, there is an error.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

# private; without it gradients that nobody uses are computed and dropped
_WILL_EXECUTE = getattr(torch._C, "_will_engine_execute_node", None)


class Operator:
    """An operator ``mace_train::name``, made of the decorated function.

    Does what ``torch.library.custom_op`` does, but for that one's import of torch._dynamo at the
    first call, which takes seconds.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = f"mace_train::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(self._name, schema)
        torch.library.impl(self._name, "default")(function)
        self.overload: Callable[..., Any] = getattr(torch.ops.mace_train, name).default

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        return self.overload(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Results without values, for tracing."""
        torch.library.register_fake(self._name, function)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """The derivative."""
        torch.library.register_autograd(self._name, backward, setup_context=setup_context)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that makes an ``Operator`` of a function of tensors without side effects."""
    return lambda function: Operator(name, function)


def wanted(ctx: Any, position: int) -> bool:
    """Whether the running backward pass uses the gradient of an input.

    ``needs_input_grad`` says only that some pass might: it is true for weights also while forces
    are computed. ``position`` counts the operator's tensor arguments, which come first, alone or
    in a list.
    """
    needs = ctx.needs_input_grad
    if not (needs[0] if isinstance(needs[0], (list, tuple)) else needs)[position]:
        return False
    return will_run(ctx.next_functions[position][0])


def will_run(node: Any) -> bool:
    """Whether the running backward pass goes on to a node of the graph (None: there is none)."""
    if node is None:
        return False
    is_leaf = not node.next_functions  # for which torch cannot tell
    return is_leaf or _WILL_EXECUTE is None or bool(_WILL_EXECUTE(node))


def refuse_forward_mode(name: str, *tensors: Tensor) -> None:
    """NotImplementedError if a tensor carries a tangent, which our operators would drop."""
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
                raise NotImplementedError(
                    f"{name}: compiled kernels have no forward-mode derivative (jvp); "
                    "use the model with kernels=reference"
                )


def refuse_third_derivative(ctx: Any, *cotangents: Any) -> NoReturn:
    """The backward formula of a second derivative."""
    raise NotImplementedError(
        "compiled kernels have first and second derivatives only; for a third one use the model "
        "with kernels=reference"
    )


def in_common_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their widest dtype, at least float32: autocast may hand over less."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return tuple(t.to(dtype) for t in tensors)


def no_context(ctx: Any, inputs: Any, output: Any) -> None:
    """Saves nothing, for ``refuse_third_derivative``."""
