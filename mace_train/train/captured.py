"""The gradient of a bin as a recording: captured once on a GPU, replayed for every bin.

Bins of one shape (``data.padding``) take the same kernels in the same order, so the graph of them
(forward pass, forces, loss, backward pass through both) is captured once, with its inputs and
outputs in tensors of their own:

    static inputs <- bin, weights of structures, denominators;   replay;   .grad += static outputs

A GPU that replays waits for no launch from the host. Outside of it stay the sum over ranks, the
look at the norm (what to do with a gradient that is not finite is the host's decision) and the
optimizer. Nothing within may look at a value or make a shape from one: the model has
``static_shapes``. A change of shape, loss or optimizer stage is a new capture, which costs some
four steps; shapes are those of the capacity, so one per epoch at most.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from mace_train.data.graph import Graph
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE
from mace_train.ops.methods import method_of
from mace_train.settings import LossSettings
from mace_train.train.loss import LossSums, loss_sums, needs_stress

Tensors = tuple[Tensor, ...]
Replay = Callable[[], None]
Capture = Callable[[Callable[..., Tensors], Tensors], tuple[Replay, Tensors]]
"""Takes a function and its inputs; what fills the outputs anew from the inputs, and the outputs."""

N_WARM_UP = 3


def check_cuda_graphs(kernels: str, device: torch.device) -> None:
    """InputError where steps cannot be captured."""
    if device.type != "cuda":
        raise InputError(
            "cluster.cuda_graphs=true needs an NVIDIA GPU, but the training runs on "
            f"{device.type}; leave it out, or use cluster.device=cuda"
        )
    if method_of(kernels, device) == "reference":
        raise InputError(
            "cluster.cuda_graphs=true needs the CUDA kernels, as the reference looks at numbers of "
            "edges; pip install 'mace-train[cuda]' and use cluster.kernels=auto"
        )


class CapturedGradient:
    """Gradients of bins; one recording is held at a time."""

    def __init__(self, model: MACE, weights: list[nn.Parameter], capture: Capture) -> None:
        self.model = model
        self.weights = weights
        self._capture = capture
        self._key: tuple[object, ...] = ()
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()
        self._replay: Replay | None = None
        self.n_captures = 0

    @torch.no_grad()
    def add(self, graph: Graph, weight: Tensor, counts: Tensor, loss: LossSettings) -> LossSums:
        """Add the gradient of a bin to ``.grad`` of the weights; the bin's loss sums.

        Takes weights of structures [n_graphs] and denominators [4] over all ranks; all of it may
        lie on the host.
        """
        inputs = (*(getattr(graph, item.name) for item in fields(graph)), weight, counts)
        key = (loss, *(tensor.shape for tensor in inputs))
        if self._replay is None or key != self._key:
            self._begin(key, inputs, loss)
        assert self._replay is not None
        for static, value in zip(self._inputs, inputs, strict=True):
            static.copy_(value, non_blocking=True)
        self._replay()
        numerators, own_counts, *gradients = self._outputs
        sums = [weight.grad for weight in self.weights if weight.grad is not None]
        torch._foreach_add_(sums, gradients)
        return LossSums(numerators.clone(), own_counts.clone())

    def forget(self) -> None:
        """Drop the recording and its memory."""
        self._key, self._inputs, self._outputs, self._replay = (), (), (), None

    def _begin(self, key: tuple[object, ...], inputs: Tensors, loss: LossSettings) -> None:
        self.forget()  # before memory is taken for the next
        device, dtype = self.weights[0].device, self.weights[0].dtype
        # masks and weights come in float64 and the like; the copy casts
        typed = (*inputs[:-2], *(tensor.to(dtype) for tensor in inputs[-2:]))
        self._inputs = tuple(tensor.to(device, copy=True) for tensor in typed)

        def gradient(*tensors: Tensor) -> Tensors:
            return gradient_of_bin(self.model, self.weights, tensors, loss)

        self._replay, self._outputs = self._capture(gradient, self._inputs)
        self._key = key
        self.n_captures += 1


def gradient_of_bin(
    model: MACE, weights: list[nn.Parameter], tensors: Tensors, loss: LossSettings
) -> Tensors:
    """(numerators, counts, gradient of every weight), a function of the tensors of a bin alone."""
    *of_graph, structure_weight, counts = tensors
    graph = Graph(*of_graph)
    with torch.enable_grad():
        prediction = predict(model, graph, stress=needs_stress(loss), create_graph=True)
        sums = loss_sums(prediction, graph, loss, structure_weight=structure_weight)
        value = sums.loss(loss, counts)
        gradients = torch.autograd.grad(value, weights, materialize_grads=True)
    found = sums.detached()
    return found.numerators, found.counts, *gradients


def cuda_graph(function: Callable[..., Tensors], inputs: Tensors) -> tuple[Replay, Tensors]:
    """A ``Capture`` by ``torch.cuda.graph``, after some runs on a stream beside the current one."""
    device = inputs[0].device
    current = torch.cuda.current_stream(device)
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(N_WARM_UP):
            function(*inputs)
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # other threads read data into page-locked memory meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function(*inputs)
    return graph.replay, outputs
