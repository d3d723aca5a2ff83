"""Where a training step spends its time: by stage of the model and by pass.

torch.profiler records one step at a time. In the forward pass an operation belongs to the stage
whose scope it runs in; in the others to the stage of the operation that it differentiates, which
autograd's sequence numbers tell, also for the gradients of gradients.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

STAGES = (
    "spherical harmonics",
    "radial basis",
    "radial MLP",
    "linears",
    "skip products",
    "convolution",
    "contraction",
    "readout",
    "forces and loss",
    "clip and optimizer",
    "other",
)
PASSES = ("forward", "forces", "backward")
_ENGINE = "autograd::engine::evaluate_function"
_SCOPE = "stage:"

Shares = dict[str, dict[str, float]]


def scope(stage: str) -> record_function:
    """Within it, operations belong to a stage."""
    assert stage in (*STAGES, *PASSES)
    return record_function(_SCOPE + stage)


def no_scope(stage: str) -> nullcontext[None]:
    """Nothing, at no cost."""
    return nullcontext()


def scoped(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in the scope of a stage."""

    def run(*arguments: Any, **options: Any) -> Any:
        with scope(stage):
            return function(*arguments, **options)

    return run


def mark(model: nn.Module) -> None:
    """Put the parts of a MACE model (of this project) in the scopes of their stages."""
    places: list[tuple[Any, str, str]] = [
        (model, "_harmonics", "spherical harmonics"),
        (model, "_radial", "radial basis"),
        (model.node_embedding, "forward", "linears"),
    ]
    for block in model.interactions:
        for name in ("up", "down", "1", "2", "res"):
            if hasattr(block, f"linear_{name}"):
                places += _linear(getattr(block, f"linear_{name}"))
        if hasattr(block, "linear"):
            places += _linear(block.linear)
        if hasattr(block, "density_fn"):
            places += [(block.density_fn, "forward", "radial MLP")]
        skip = "skip_linear" if hasattr(block, "skip_linear") else "skip_tp"
        places += [(getattr(block, skip), "forward", "skip products")]
        places += [(block._convolution, "_fused", "convolution")]
        places += [(block._convolution, "_reference", "convolution")]
        radial = ("hidden", "by_path", "stacked", "product")
        network = block.conv_tp_weights
        places += [(network, name, "radial MLP") for name in radial if hasattr(network, name)]
    for product in model.products:
        places += [(product.symmetric_contractions, "forward", "contraction")]
        places += _linear(product.linear)
    places += [(readout, "forward", "readout") for readout in model.readouts]
    for owner, name, stage in places:
        setattr(owner, name, scoped(stage, getattr(owner, name)))


def _linear(layer: nn.Module) -> list[tuple[Any, str, str]]:
    """Both ways in which a linear map is called."""
    return [(layer, name, "linears") for name in ("forward", "by_degree")]


def shares_of_time(step: Callable[[], object], repeats: int) -> Shares:
    """Medians of the share of every stage and pass in the time of a step."""
    samples = []
    for _ in range(repeats):
        with profile(activities=[ProfilerActivity.CPU]) as record:
            step()
        samples.append(_one(list(record.events() or [])))
    return {
        stage: {
            name: statistics.median(sample[stage][name] for sample in samples) for name in PASSES
        }
        for stage in STAGES
    }


def _one(events: list[FunctionEvent]) -> Shares:
    """Shares of one step."""
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    stage_of_node: dict[int, str] = {}

    def visit(event: FunctionEvent, stage: str, name: str) -> None:
        if event.name.startswith(_SCOPE):
            inner = event.name.removeprefix(_SCOPE)
            stage, name = (stage, inner) if inner in PASSES else (inner, name)
        elif event.name.startswith(_ENGINE):
            stage = stage_of_node.get(event.sequence_nr, "other")
            name = "forces" if name == "forward" else name
        elif event.sequence_nr >= 0:
            stage_of_node[event.sequence_nr] = stage  # the last one that says so makes the node
        seconds[stage][name] += event.self_cpu_time_total
        for child in sorted(event.cpu_children, key=_start):
            visit(child, stage, name)

    for event in sorted((e for e in events if e.cpu_parent is None), key=_start):
        visit(event, "other", "backward")
    total = sum(sum(of_stage.values()) for of_stage in seconds.values())
    return {s: {name: seconds[s][name] / total for name in PASSES} for s in STAGES}


def _start(event: FunctionEvent) -> float:
    return event.time_range.start


def table(shares: Shares) -> str:
    """The shares in percent, as a table."""
    lines = [f"{'share of time by stage, %':26}" + "".join(f"{p:>10}" for p in (*PASSES, "all"))]
    for stage in STAGES:
        values = [shares[stage][name] for name in PASSES]
        lines.append(f"{stage:26}" + "".join(f"{100 * v:10.1f}" for v in (*values, sum(values))))
    return "\n".join(lines)
