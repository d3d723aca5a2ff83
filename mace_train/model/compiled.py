"""The model as one graph of operations: for torch.compile (training too) and torch.export.

``torch.compile`` cannot differentiate a compiled function twice, which training on forces needs. So
energies and their gradient are traced first, and the graph of both, an ordinary function of the
weights, is compiled; its derivative is a first one. Fused kernels are single nodes of the graph.

    compiled = CompiledMACE(model)
    prediction = compiled(graph, stress=False)           # differentiable in model.parameters()

The graph serves batches of all sizes: it is traced on one whose sizes equal no other size.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from mace_train.data.graph import Graph
from mace_train.model.batch_index import (
    BatchIndex,
    EdgeBlocks,
    EdgeEnds,
    ElementGroups,
    ElementSlots,
)
from mace_train.model.derivatives import Prediction, prediction_from
from mace_train.model.embeddings import refuse_inputs
from mace_train.model.mace import MACE
from mace_train.ops.backends import Backend
from mace_train.ops.convolution import EdgeIndex
from mace_train.ops.symmetric_contraction import Chunks

INDICES = (BatchIndex, EdgeBlocks, EdgeIndex, ElementGroups, ElementSlots, Chunks, EdgeEnds)
for _class in INDICES:
    torch.export.register_dataclass(_class, serialized_type_name=f"mace_train.{_class.__name__}")
# no input of a graph, but part of what a graph is made for
torch.utils._pytree.register_pytree_node(
    Backend,
    lambda backend: ([], backend.name),
    lambda _, name: Backend(name),
    serialized_type_name="mace_train.Backend",
    flatten_with_keys_fn=lambda backend: ([], backend.name),
)
# torch.export.load reads example inputs
torch.serialization.add_safe_globals([*INDICES, Backend])

Parameters = Mapping[str, Tensor]
Energies = Callable[[Parameters, Tensor, Tensor, BatchIndex], tuple[Tensor, Tensor]]


class CompiledMACE:
    """Predictions of a model by a graph that is traced and compiled at the first call."""

    def __init__(self, model: MACE, backend: str = "inductor") -> None:
        self.model = model
        self.backend = backend  # any that torch.compile knows
        self._graphs: dict[tuple[torch.dtype, torch.device, str], tuple[Energies, Energies]] = {}

    def __call__(self, graph: Graph, *, stress: bool) -> Prediction:
        """As ``derivatives.predict`` with create_graph."""
        model, vectors = self.model, graph.vectors()
        index = model.batch_index(
            graph.elements,
            graph.senders,
            graph.receivers,
            graph.pairs,
            graph.first_of_pair,
            graph.heads_of_atoms(),
        )
        traced, compiled = self._graph(vectors.device)
        # torch takes sizes 0 and 1 for constants, which are not worth a compilation
        is_small = any(0 in t.shape[:1] or 1 in t.shape[:1] for t in _tensors((vectors, index)))
        parameters = dict(model.named_parameters())
        found = (traced if is_small else compiled)(parameters, vectors, graph.elements, index)
        return prediction_from(model.E0s, graph, vectors, *found, stress=stress)

    def _graph(self, device: torch.device) -> tuple[Energies, Energies]:
        """The trace for the model as it is now, and its compiled form."""
        key = (self.model.dtype, device, self.model.kernels)
        if key not in self._graphs:
            traced = trace(self.model)
            self._graphs[key] = traced, torch.compile(traced, backend=self.backend, dynamic=True)
        return self._graphs[key]


def trace(model: MACE) -> GraphModule:
    """The graph of interaction energies [n_atoms] and their gradient [n_edges, 3].

    A function of (parameters by name, vectors, elements, index): of all numbers of atoms and
    edges, of the model's present dtype, device and kernels. Later changes of the parameters count.
    """
    refuse_inputs(model.inputs, "a traced model")
    inputs = example(model)
    with torch.no_grad():
        model.energies(*inputs)  # tables are made and kernels compiled outside of the trace
    both = partial(energies_and_gradient, ModelEnergies(model), create_graph=True)
    make = make_fx(both, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    traced: GraphModule = make(dict(model.named_parameters()), *inputs)
    _without_detach(traced)
    return traced


def _without_detach(traced: GraphModule) -> None:
    """Let derivatives of the graph pass through what autograd has saved while it was traced.

    Operations whose derivative needs their result (tanh, sqrt) save it, and a trace of that
    derivative holds the result detached: a second derivative would miss the part through it.
    """
    graph = traced.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.detach.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    traced.recompile()


def energies_and_gradient(
    energies: "ModelEnergies",
    parameters: Parameters,
    vectors: Tensor,
    elements: Tensor,
    index: BatchIndex,
    *,
    create_graph: bool,
) -> tuple[Tensor, Tensor]:
    """Interaction energies [n_atoms] and their gradient [n_edges, 3], with these parameters."""
    named = {f"model.{name}": value for name, value in parameters.items()}
    with torch.enable_grad():
        vectors = vectors.detach().requires_grad_()
        result = functional_call(energies, named, (vectors, elements, index))
        (gradient,) = torch.autograd.grad(result.sum(), vectors, create_graph=create_graph)
    return result, gradient


def export(model: MACE, *, forces: bool = True) -> torch.export.ExportedProgram:
    """``trace`` with the weights inside; without ``forces`` energies alone.

    A function of (vectors, elements, index), with ``index`` from ``MACE.batch_index``. Where the
    graph is loaded again, a model of this architecture must have been made for fused kernels. One
    whose edges are directed is loaded by ``module(check_guards=False)``: the check that PyTorch
    writes of equal sizes takes ``first`` of an index for the beginning of ``first_of_pair``.
    """
    refuse_inputs(model.inputs, "an exported model")
    inputs = example(model)
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    groups = inputs[2].groups
    for tensor in _tensors(inputs):
        if not isinstance(groups, ElementGroups) or tensor is not groups.first:
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    module = _WithGradient(model) if forces else ModelEnergies(model)
    with torch.no_grad():
        dynamic = shapes.dynamic_shapes(module, inputs)  # type: ignore[no-untyped-call]
        return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)


class ModelEnergies(nn.Module):
    """``MACE.energies`` as the forward of a module."""

    def __init__(self, model: MACE) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, elements: Tensor, index: BatchIndex) -> Tensor:
        """Energies [n_atoms]."""
        return self.model.energies(vectors, elements, index)


class _WithGradient(nn.Module):
    """A trace and its weights as a module."""

    def __init__(self, model: MACE) -> None:
        super().__init__()
        self._graph = [trace(model)]  # no submodule: export loses the buffers of one
        self.names = [name for name, _ in model.named_parameters()]
        self.weights = nn.ParameterList(model.parameters())

    def forward(
        self, vectors: Tensor, elements: Tensor, index: BatchIndex
    ) -> tuple[Tensor, Tensor]:
        """Energies [n_atoms] and their gradient [n_edges, 3]."""
        parameters = dict(zip(self.names, self.weights, strict=True))
        result: tuple[Tensor, Tensor] = self._graph[0](parameters, vectors, elements, index)
        return result


def example(model: MACE) -> tuple[Tensor, Tensor, BatchIndex]:
    """Vectors, elements and index of a batch whose sizes equal no other size of the model."""
    parameter = next(model.parameters())
    device, n_elements = parameter.device, len(model.data.atomic_numbers)
    others = {size for p in model.parameters() for size in p.shape} | set(range(64))
    n_atoms = 2 * max(others) + 101
    atoms = torch.arange(n_atoms, device=device)
    # a chain of atoms, the first 20 of which all see each other
    chain = torch.stack((atoms[1:], atoms[:-1]), dim=1)
    pairs = torch.unique(torch.cat((chain, torch.combinations(atoms[:20]).flip(1))), dim=0)
    senders, receivers = torch.cat((pairs, pairs.flip(1))).unbind(1)
    order = torch.argsort(receivers * n_atoms + senders)
    senders, receivers = senders[order], receivers[order]
    first_of_pair = (senders > receivers).nonzero().squeeze(1)
    code = torch.minimum(senders, receivers) * n_atoms + torch.maximum(senders, receivers)
    pair_of_edge = torch.searchsorted(code[first_of_pair], code)
    vectors = torch.linspace(0.3, 0.9, 3 * len(receivers), dtype=parameter.dtype, device=device)
    elements = atoms % n_elements
    heads = atoms % len(model.data.heads)
    index = model.batch_index(elements, senders, receivers, pair_of_edge, first_of_pair, heads)
    return vectors.view(-1, 3), elements, index


def _tensors(value: Any) -> list[Tensor]:
    """All tensors inside."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
