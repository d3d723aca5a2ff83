"""A training step as CUDA graphs: captured once on a GPU, replayed in every step.

Bins of one shape (``data/loading/padding.py``) launch the same kernels in the same order, so the
graph of them (forward pass, forces, loss, backward pass through both) is captured once, with its
inputs and outputs in static tensors:

    static inputs <- bin, weights of structures, denominators;   replay:   .grad += gradient

A GPU that replays does not wait for launches by the host. The sum over ranks follows outside, the
optimizer is a graph of its own (GraphedUpdate). Nothing within may look at a value or make a shape
from one: the model has ``static_shapes``. A change of shape or loss is a new capture, which costs
some four steps; shapes are those of the capacity, so one per epoch at most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mace_train.data.graph import Graph
from mace_train.data.loading.packed import PackedGraph
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE
from mace_train.ops.backends import backend_of
from mace_train.settings import LossSettings
from mace_train.train.ema import EMA
from mace_train.train.gradients import Gradients
from mace_train.train.loss import LossSums, loss_sums, needs_stress

Tensors = tuple[Tensor, ...]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensors], torch.device], tuple[Replay, Tensors]]
"""Takes a function of tensors whose memory does not move; gives its replay and its outputs."""

N_WARM_UP = 3


def check_cuda_graphs(kernels: str, device: torch.device) -> None:
    """InputError where steps cannot be captured."""
    if device.type != "cuda":
        raise InputError(
            "cluster.cuda_graphs=true needs an NVIDIA GPU, but the training runs on "
            f"{device.type}; leave it out, or use cluster.device=cuda"
        )
    if not backend_of(kernels, device).fused:
        raise InputError(
            "cluster.cuda_graphs=true needs the CUDA kernels, as the reference looks at numbers of "
            "edges; pip install 'mace-train[cuda]' and use cluster.kernels=auto"
        )


@dataclass
class _CapturedGraph:
    """A graph with its static inputs: the memory of a bin, and numbers [n_graphs + 4] of it."""

    key: tuple[object, ...]
    memory: Tensor
    numbers: Tensor
    replay: Replay
    outputs: Tensors


class GraphedGradient:
    """Gradients of bins; one captured graph is held at a time."""

    def __init__(
        self, model: MACE, weights: list[nn.Parameter], gradients: Gradients, capture: Capture
    ) -> None:
        self.model = model
        self.weights = weights
        self._gradients = gradients
        self._capture = capture
        self._captured: _CapturedGraph | None = None
        self._prefetch = Prefetch(weights[0].device)
        self.n_captures = 0

    @torch.no_grad()
    def add(self, graph: Graph, weight: Tensor, counts: Tensor, loss: LossSettings) -> LossSums:
        """Add the gradient of a bin to ``.grad`` of the weights; the bin's loss sums.

        Takes weights of structures [n_graphs] and denominators [4] over all ranks, all of them on
        the host or on the device.
        """
        bin_ = PackedGraph.of(graph)
        # masks and weights come in float64 and the like
        numbers = torch.cat((weight, counts)).to(self.weights[0].dtype)
        key = (loss, bin_.sizes)
        if self._captured is None or key != self._captured.key:
            self._capture_graph(key, bin_, numbers, loss)
        captured = self._captured
        assert captured is not None
        self._prefetch.copy((bin_.memory, numbers), (captured.memory, captured.numbers))
        captured.replay()
        numerators, own_counts = captured.outputs
        return LossSums(numerators.clone(), own_counts.clone())

    def forget(self) -> None:
        """Drop the captured graph and its memory."""
        self._captured = None

    def _capture_graph(
        self, key: tuple[object, ...], bin_: PackedGraph, numbers: Tensor, loss: LossSettings
    ) -> None:
        self.forget()  # before memory is taken for the next
        device = self.weights[0].device
        static = PackedGraph(bin_.memory.to(device, copy=True), *bin_.sizes)
        static_numbers = numbers.to(device, copy=True)
        before = self._gradients.flat.clone()  # to which the runs before the capture add, too

        def add_gradient() -> Tensors:
            weight, counts = static_numbers[: bin_.n_graphs], static_numbers[bin_.n_graphs :]
            sums, found = gradient_of_bin(
                self.model, self.weights, static.graph(), weight, counts, loss
            )
            torch._foreach_add_(self._gradients.views, found)
            return sums.numerators, sums.counts

        replay, outputs = self._capture(add_gradient, device)
        self._gradients.flat.copy_(before)
        self._captured = _CapturedGraph(key, static.memory, static_numbers, replay, outputs)
        self.n_captures += 1


def gradient_of_bin(
    model: MACE,
    weights: list[nn.Parameter],
    graph: Graph,
    structure_weight: Tensor,
    counts: Tensor,
    loss: LossSettings,
) -> tuple[LossSums, Tensors]:
    """The loss sums of a bin and the gradient of every weight, a function of tensors alone."""
    with torch.enable_grad():
        prediction = predict(model, graph, stress=needs_stress(loss), create_graph=True)
        sums = loss_sums(prediction, graph, loss, structure_weight=structure_weight)
        value = sums.loss(loss, counts)
        gradients = torch.autograd.grad(value, weights, materialize_grads=True)
    return sums.detached(), gradients


class GraphedUpdate:
    """The update of all weights by Adam or AdamW, made by ``make_optimizer(on_device=True)``.

    Without it the host reads the norm before the optimizer runs. Here the GPU decides: a step whose
    norm is not finite changes nothing, and the host reads the norm when the next step has been
    launched. If a rank ran out of memory (the health of ``Gradients`` is NaN), later steps change
    nothing either, until the host has planned the rest of the epoch again and calls
    ``resume_updates``.
    """

    def __init__(
        self,
        model: nn.Module,
        gradients: Gradients,
        ema: EMA | None,
        clip_grad: float | None,
        capture: Capture,
    ) -> None:
        flat = gradients.flat
        self._model = model
        self._flat = flat
        self._ema = ema
        self._clip_grad = clip_grad
        self._capture = capture
        self._halted = torch.zeros((), dtype=torch.bool, device=flat.device)
        n_updates = 0 if ema is None else ema.n_updates
        self._n_updates = torch.tensor(n_updates, dtype=torch.float64, device=flat.device)
        self._optimizer: torch.optim.Optimizer | None = None
        self._replay: Replay | None = None
        self._norm = flat.new_zeros(())

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step with the learning rates of the groups; its norm, not finite if it was void."""
        if optimizer is not self._optimizer:
            self._capture_graph(optimizer)
        assert self._replay is not None
        self._replay()
        return self._norm.clone()

    def resume_updates(self) -> None:
        """Let steps change the weights again."""
        self._halted.zero_()

    def _capture_graph(self, optimizer: torch.optim.Optimizer) -> None:
        halted, gradient = self._halted.clone(), self._flat.clone()
        self._halted.fill_(True)  # runs before the capture make the state, and change no weight
        self._replay, (self._norm,) = self._capture(
            lambda: (self._update(optimizer),), gradient.device
        )
        self._halted.copy_(halted)
        self._flat.copy_(gradient)
        self._optimizer = optimizer

    def _update(self, optimizer: torch.optim.Optimizer) -> Tensor:
        norm = torch.linalg.vector_norm(self._flat)
        self._halted.logical_or_(self._flat[-1].isnan())
        void = self._halted | ~norm.isfinite()
        if self._clip_grad is not None:  # as torch's clip_grad_norm_ does
            self._flat.mul_((self._clip_grad / (norm + 1e-6)).clamp(max=1.0))
        optimizer.found_inf = void.to(torch.float32)  # type: ignore[attr-defined]  # of GradScaler
        optimizer.step()
        if self._ema is not None:
            self._n_updates.add_(~void)
            decay = (1.0 + self._n_updates) / (10.0 + self._n_updates)
            share = torch.where(void, 0.0, 1.0 - decay.clamp(max=self._ema.decay))
            self._ema.move(self._model, share.to(norm.dtype))
        return norm


class Prefetch:
    """Copies from the host that overlap with the work of the GPU, if their source is pinned."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, sources: Tensors, targets: Tensors) -> None:
        """Copy after all work launched before; the transfer to the GPU begins at once."""
        if self._stream is None:
            arrived = sources
        else:
            current = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(self._stream):
                arrived = tuple(t.to(self._device, non_blocking=True) for t in sources)
            current.wait_stream(self._stream)
            for tensor in arrived:
                tensor.record_stream(current)
        for target, value in zip(targets, arrived, strict=True):
            target.copy_(value)


def item_later(number: Tensor) -> Callable[[], float]:
    """Begin to copy a number to the host; returns what waits for it and gives it."""
    if number.device.type != "cuda":
        return number.item
    arrived = torch.empty_like(number, device="cpu", pin_memory=True)
    arrived.copy_(number, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> float:
        event.synchronize()
        return arrived.item()

    return wait


def cuda_graph(function: Callable[[], Tensors], device: torch.device) -> tuple[Replay, Tensors]:
    """A ``Capture`` by ``torch.cuda.graph``, after some runs on a stream of its own."""
    current = torch.cuda.current_stream(device)
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(N_WARM_UP):
            function()
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # other threads read data into page-locked memory meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs
