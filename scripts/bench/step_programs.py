"""A training step of ours and of mace-torch's, with the same weights, structures and loss."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import stages
import torch
from machine import cpu_seconds
from torch import nn

from mace_train.data.graph import Graph
from mace_train.data.loading.packed import PackedGraph
from mace_train.data.loading.padding import Shape, padded
from mace_train.distributed.world import World
from mace_train.interop.header import header_of
from mace_train.interop.state_dict import from_mace_torch
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE
from mace_train.settings import LossSettings, OptimizerSettings
from mace_train.settings.inputs import input_specs, known_keys
from mace_train.train.cuda_graphs import Capture, GraphedGradient, GraphedUpdate, item_later
from mace_train.train.gradients import Gradients
from mace_train.train.loss import label_counts, loss_sums
from mace_train.train.optim import make_optimizer, parameter_groups
from tests.model.mace_torch import import_mace, mace_torch_batch, mace_torch_model

Step = Callable[[], float]
SETTINGS = OptimizerSettings(lr=1e-12)
CLIP = 10.0


def peer_model(
    channels: int,
    max_degree: int,
    numbers: tuple[int, ...],
    r_max: float,
    like: torch.Tensor,
    **changes: Any,
) -> nn.Module:
    """mace-torch's model with random weights, with the type and on the device of a tensor."""
    sizes = {"channels": channels, "max_L": max_degree, "radial_MLP": [64, 64, 64]}
    return mace_torch_model(numbers, r_max=r_max, scripted=True, **sizes, **changes).to(like)


def with_cuequivariance(peer: nn.Module, device: torch.device) -> nn.Module:
    """The same model on cuEquivariance's kernels, by mace-torch's own conversion."""
    from mace.cli.convert_e3nn_cueq import run

    return _converted(run, peer, device)


def with_openequivariance(peer: nn.Module, device: torch.device) -> nn.Module:
    """The same model with OpenEquivariance's convolutions, by mace-torch's own conversion."""
    from mace.cli.convert_e3nn_oeq import run

    return _converted(run, peer, device)


def _converted(run: Callable[..., nn.Module], peer: nn.Module, device: torch.device) -> nn.Module:
    default = torch.get_default_dtype()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = run(copy.deepcopy(peer), device=device.type, return_model=True)
    finally:
        torch.set_default_dtype(default)
    return converted.to(device)


def seconds_of(name: str, steps: Mapping[str, Step], repeats: int) -> dict[str, list[float]]:
    """CPU times of each program's step, in turns, after one that is not timed.

    SystemExit if their losses differ: then they are not the same step.
    """
    losses = {program: step() for program, step in steps.items()}
    for program, loss in losses.items():
        if not np.isclose(losses["ours"], loss, rtol=1e-3):
            raise SystemExit(f"{name}: {program} has another loss, {losses}: not the same step")
    seconds: dict[str, list[float]] = {program: [] for program in steps}
    for _ in range(repeats):
        for program, step in steps.items():
            seconds[program].append(cpu_seconds(step))
    return seconds


def peer_step(graph: Graph, peer: nn.Module) -> Step:
    """mace-torch's step with its loss, on its batch."""
    loss_function = import_mace().WeightedEnergyForcesLoss(1.0, 100.0)
    like = graph.positions
    specs = input_specs(known_keys(getattr(peer, "embedding_specs", None)))
    batch = mace_torch_batch(graph.to(torch.device("cpu")), len(peer.atomic_numbers), specs)
    batch = {
        k: v.to(like) if v.is_floating_point() else v.to(like.device) for k, v in batch.items()
    }
    ones = like.new_ones(graph.n_graphs)
    labels = _Labels(batch, graph, ones)
    groups = parameter_groups(peer, SETTINGS)
    optimizer = torch.optim.Adam(groups, lr=SETTINGS.lr, amsgrad=True)  # as mace_run_train has it

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        predicted = peer(dict(batch), training=True, compute_force=True)
        loss = loss_function(ref=labels, pred=predicted)
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), CLIP)
        optimizer.step()
        return float(loss)

    return step


class _Labels(dict[str, torch.Tensor]):
    """Labels as mace-torch's losses read them: by key, by attribute, with num_graphs."""

    def __init__(self, batch: dict[str, torch.Tensor], graph: Graph, ones: torch.Tensor) -> None:
        super().__init__(batch)
        self.num_graphs = graph.n_graphs
        self |= {"energy": graph.energy.to(ones), "forces": graph.forces}
        self |= {"weight": ones, "energy_weight": ones, "forces_weight": ones}

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def our_model(peer: nn.Module, graph: Graph) -> MACE:
    """Our model with mace-torch's weights."""
    weights = {name: tensor.cpu() for name, tensor in peer.state_dict().items()}
    return from_mace_torch(weights, header_of(peer)).to(graph.positions)


def our_step(graph: Graph, peer: nn.Module, *, marked: bool = False) -> Step:
    """Our step on a model with mace-torch's weights; marked for ``stages`` if asked."""
    model = our_model(peer, graph)
    settings = LossSettings()
    optimizer = make_optimizer(model, SETTINGS)
    weights = [p for p in model.parameters() if p.requires_grad]
    scope = stages.scope if marked else stages.no_scope
    if marked:
        stages.mark(model)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with scope("forward"), scope("forces and loss"):
            prediction = predict(model, graph, stress=False, create_graph=True)
            loss = loss_sums(prediction, graph).loss(settings)
        with scope("backward"):
            torch.autograd.backward(loss, inputs=weights)  # as training does
        with scope("clip and optimizer"):
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        return float(loss)

    return step


def our_gradient(graph: Graph, peer: nn.Module) -> Callable[[], torch.Tensor]:
    """The gradient of our loss in all weights, one after the other."""
    model = our_model(peer, graph)
    weights = [p for p in model.parameters() if p.requires_grad]

    def gradient() -> torch.Tensor:
        prediction = predict(model, graph, stress=False, create_graph=True)
        loss = loss_sums(prediction, graph).loss(LossSettings())
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        return torch.cat([value.flatten() for value in found])

    return gradient


def captured_step(graph: Graph, peer: nn.Module, capture: Capture) -> Step:
    """Our step as two recordings, as ``cluster.cuda_graphs`` trains; ``graph`` is on the host.

    The bin is padded by a structure with one atom, as bins of one shape are. From the second step
    on, the loss of the step before is waited for, while the next one is in flight.
    """
    like = next(peer.parameters())
    model = our_model(peer, graph).to(like.device)
    model.static_shapes = True
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = Gradients(weights, World(device=like.device))
    captured = GraphedGradient(model, weights, gradients, capture)
    update = GraphedUpdate(model, gradients, None, CLIP, capture)
    optimizer = make_optimizer(model, SETTINGS, on_device=True)
    shape = Shape(graph.n_graphs + 1, graph.n_atoms + 1, graph.n_edges, float(peer.r_max))
    bin_ = padded(graph, shape)
    if like.device.type == "cuda":
        bin_ = PackedGraph.of(bin_).pin_memory().graph()
    in_flight: list[Callable[[], float]] = []
    counts, settings = label_counts(bin_), LossSettings()
    structure_weight = torch.ones(bin_.n_graphs, dtype=torch.float64)

    def step() -> float:
        gradients.begin()
        sums = captured.add(bin_, structure_weight, counts, settings)
        update.step(optimizer)
        in_flight.append(item_later(sums.loss(settings)))
        return in_flight.pop(0)() if len(in_flight) > 1 else in_flight[0]()

    return step
