"""How operators are declared to PyTorch: schema, shapes for tracing, derivatives, refusals.

An ``OperatorChain`` is a function of tensors with its first and second derivatives, as three
operators, each registered as the derivative of the one before. After the last, and in forward
mode, there is an error.

A call goes from PyTorch's dispatcher straight to the function of the operator. Tensors are separate
arguments wherever their number is fixed: as lists they would add 6 us to a value with autograd and
35 us to a value and its gradient, to 34 and 52 us (nine tensors, PyTorch 2.13).
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd import forward_ad

Function = Callable[..., Any]
# private; without it gradients that are not used are computed and dropped
_WILL_EXECUTE = getattr(torch._C, "_will_engine_execute_node", None)


def define(name: str, function: Function, fake: Function, schema: str | None = None) -> OpOverload:
    """The operator ``mace_train::name``, for a function of tensors without side effects.

    ``fake`` takes the same arguments and gives empty tensors of the results' shapes, for tracing.
    Without a schema, the annotations of the function are one.
    Does what ``torch.library.custom_op`` does, but for that one's import of torch._dynamo at the
    first call, which takes seconds.
    """
    schema = schema or torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"mace_train::{name}", schema)
    torch.library.impl(f"mace_train::{name}", "default")(function)
    torch.library.register_fake(f"mace_train::{name}", fake)
    overload: OpOverload = getattr(torch.ops.mace_train, name).default
    return overload


def operator(name: str, fake: Function) -> Callable[[Function], OpOverload]:
    """Decorator of a function with annotations, see ``define``."""
    return lambda function: define(name, function, fake)


class OperatorChain:
    """A value with first and second derivatives, as three operators.

        name(*tensors, *index, key)                                        -> value
        name_backward(*tensors, g, *index, key, wanted)                    -> gradients
        name_double_backward(*tensors, g, *v, *index, key, given, wanted)  -> second gradients

    ``tensors`` are differentiable, ``index`` is not; ``key`` says which function of a family it is.
    The gradients are those of <g, value> with respect to all tensors. v are cotangents of the
    gradients; those not in ``given`` are zero, of any shape. The second gradients are those of
    sum_i <v_i, gradient_i> with respect to all tensors and g. ``wanted`` has an entry for each
    result; one that is not wanted is empty (``keep_wanted``).

    With ``tensors=None`` their number depends on the key: the first argument is one list of all
    tensors, g (there may be several) and v included, and all results are lists.
    """

    def __init__(
        self,
        name: str,
        tensors: Sequence[str] | None,
        index: Sequence[str],
        *,
        value: Function,
        fake: Function,
        gradient: Function,
        second_gradient: Function,
    ) -> None:
        """Define the operators from their functions; ``fake`` belongs to the value."""
        self._is_list = tensors is None
        self._index = tuple(index)
        self.n_tensors = len(tensors or ())
        self.functions = (value, gradient, second_gradient)
        x = tuple(tensors or ())
        xg = (*x, "g")
        xgv = (*xg, *[f"v{name}" for name in x])
        fakes = self._fake_gradients
        self.value = define(name, value, fake, self._schema(x, [], 1))
        self.gradient = define(
            f"{name}_backward", gradient, fakes, self._schema(xg, ["wanted"], len(x))
        )
        self.second_gradient = define(
            f"{name}_double_backward",
            second_gradient,
            fakes,
            self._schema(xgv, ["given", "wanted"], len(xg)),
        )
        self._register_derivative(self.value, self.gradient, len(x))
        self._register_derivative(self.gradient, self.second_gradient, len(xg))
        torch.library.register_autograd(
            self.second_gradient, refuse_third_derivative, setup_context=_save_nothing
        )

    def __call__(self, *arguments: Any) -> Tensor:
        """The value from the arguments of its operator.

        Where nothing looks at operators, they are not called: the dispatcher of PyTorch and the
        derivatives that it registers take longer than the kernels of a small model.
        """
        if self._is_list or not is_eager(arguments[0]):
            found: Tensor = self.value(*arguments)
            return found
        at_key = self.n_tensors + len(self._index)
        (result,) = _step_of(self, 0, arguments[:at_key], arguments[at_key:])
        return result

    def _schema(self, tensors: Sequence[str], masks: Sequence[str], n_results: int) -> str:
        arguments = ["Tensor[] tensors"] if self._is_list else [f"Tensor {t}" for t in tensors]
        arguments += [f"Tensor {name}" for name in self._index]
        arguments += ["str key", *[f"bool[] {mask}" for mask in masks]]
        results = "Tensor[]" if self._is_list else f"({', '.join(['Tensor'] * n_results)})"
        return f"({', '.join(arguments)}) -> {results}"

    def _fake_gradients(self, *arguments: Any) -> Sequence[Tensor]:
        """Results of a derivative: its first arguments are what has gradients, of equal shape."""
        tensors, wanted = arguments[0] if self._is_list else arguments, arguments[-1]
        shaped = [t.new_empty(t.shape) for t in tensors[: len(wanted)]]
        found = keep_wanted(shaped, wanted)
        return list(found) if self._is_list else found

    def _register_derivative(self, op: OpOverload, derivative: OpOverload, n_tensors: int) -> None:
        n_index = len(self._index)
        at_key = (1 if self._is_list else n_tensors) + n_index

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.key_and_masks = inputs[at_key:]
            tensors = (*inputs[0], *inputs[1:at_key]) if self._is_list else inputs[:at_key]
            ctx.save_for_backward(*tensors)

        def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
            saved = ctx.saved_tensors
            tensors, index = saved[: len(saved) - n_index], saved[len(saved) - n_index :]
            mask = [is_wanted(ctx, i) for i in range(len(tensors))]
            rest = (*index, *ctx.key_and_masks, mask)
            no_gradients = [None] * (len(rest) - 1)
            if self._is_list:
                found = derivative([*tensors, *cotangents[0]], *rest)
                return _none_for_others(found, mask), *no_gradients
            found = derivative(*tensors, *cotangents, *rest)
            return *_none_for_others(found, mask), *no_gradients

        torch.library.register_autograd(op, backward, setup_context=save)


def _step_of(
    chain: OperatorChain, step: int, tensors: Sequence[Tensor], rest: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The value (step 0), gradients or second gradients; all that are not tensors come last."""
    if torch.is_grad_enabled():
        found: tuple[Tensor, ...] = _Step.apply(chain, step, rest, *tensors)  # type: ignore[no-untyped-call]
        return found
    return _as_tuple(chain.functions[step](*tensors, *rest))


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


class _Step(torch.autograd.Function):
    """One of the functions of a chain; the next one is its derivative."""

    @staticmethod
    def forward(
        ctx: Any, chain: OperatorChain, step: int, rest: Sequence[Any], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.chain, ctx.step, ctx.rest = chain, step, rest
        ctx.save_for_backward(*tensors)
        return _as_tuple(chain.functions[step](*tensors, *rest))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        chain, saved = ctx.chain, ctx.saved_tensors
        if ctx.step == len(chain.functions) - 1:
            refuse_third_derivative(ctx)
        n_index = len(chain._index)
        tensors, index = saved[: len(saved) - n_index], saved[len(saved) - n_index :]
        mask = wanted_gradients(ctx)[: len(tensors)]
        found = _step_of(chain, ctx.step + 1, (*tensors, *cotangents, *index), (*ctx.rest, mask))
        return None, None, None, *_none_for_others(found, mask), *[None] * n_index


def _none_for_others(results: Sequence[Tensor], mask: Sequence[bool]) -> list[Tensor | None]:
    return [t if keep else None for t, keep in zip(results, mask, strict=True)]


def is_wanted(ctx: Any, position: int) -> bool:
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
    if _WILL_EXECUTE is None:
        return True
    try:
        return bool(_WILL_EXECUTE(node))
    except RuntimeError:  # of a leaf whose gradient is asked for by torch.autograd.grad
        return True


def wanted_gradients(ctx: Any) -> list[bool]:
    """Of every tensor of an autograd function, its last arguments: see ``is_wanted``."""
    nodes = ctx.next_functions
    needs = ctx.needs_input_grad[-len(nodes) :]
    return [need and will_run(node) for need, (node, _) in zip(needs, nodes, strict=True)]


def is_eager(tensor: Tensor) -> bool:
    """Whether operations on a tensor run now, as they are, and reverse mode alone differentiates.

    False while PyTorch traces or a mode sees its operations, under autocast, in forward mode and
    in transforms of torch.func.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.is_autocast_enabled(tensor.device.type)
    )


def keep_wanted(results: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """The results, those that are not wanted replaced by tensors [0]."""
    return tuple(t if keep else t.new_empty(0) for t, keep in zip(results, wanted, strict=True))


def refuse_forward_mode(name: str, *tensors: Tensor) -> None:
    """NotImplementedError if a tensor carries a tangent, which our operators would ignore."""
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
    """The tensors in their widest dtype, at least float32: autocast may give bfloat16."""
    if {t.dtype for t in tensors} in ({torch.float32}, {torch.float64}):
        return tensors
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return tuple(t.to(dtype) for t in tensors)


def _save_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """For ``refuse_third_derivative``."""
