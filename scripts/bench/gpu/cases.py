"""The fused operations and their peers, on the same inputs, with what the passes must do at least.

The passes are those of a training step on forces: the value; the gradients of the value that forces
need (of the features of a contraction; of features, harmonics and radial weights of a convolution);
and the gradients of those in everything, the cotangent of the value included. Instructions are
those of the programs that the kernels are made of. Words are what must be read and written at
least: every input once, every output once. Peers run as mace-torch calls them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mace_train.irreps import FeatureIrreps, import_o3
from mace_train.model.contraction import coupling_of
from mace_train.model.convolution import product_of
from mace_train.model.coupling import convolution_paths
from mace_train.model.product_basis import product_basis
from mace_train.ops import convolution as convolutions
from mace_train.ops import symmetric_contraction as contractions

CHANNELS = 128
N_ELEMENTS = 4
EDGES_PER_ATOM = 50
PASSES = ("value", "gradients", "second derivatives")
PEERS = ("e3nn", "cuEquivariance", "OpenEquivariance")
Function = Callable[..., list[Tensor]]
Work = Callable[[], object]


@dataclass(frozen=True)
class Program:
    """A function of tensors, and of how many of them forces need the gradients."""

    function: Function
    inputs: list[Tensor]
    n_first: int


@dataclass(frozen=True)
class Case:
    """One operation: ours, how its peers are made, and what the passes must do at least."""

    name: str
    ours: Program
    peers: dict[str, Callable[[], Program]]
    instructions: tuple[float, float, float]
    words: tuple[float, float, float]
    missing: dict[str, str] = field(default_factory=dict)  # peers that do not run here, and why


def passes(program: Program) -> Iterator[tuple[str, Work]]:
    """The three passes; what they differentiate is recorded before, outside of them."""
    inputs = [tensor.detach().requires_grad_() for tensor in program.inputs]
    first = inputs[: program.n_first]

    def value() -> object:
        with torch.no_grad():
            return program.function(*inputs)

    yield "value", value
    out = program.function(*inputs)
    probes = [torch.randn_like(tensor).requires_grad_() for tensor in out]
    yield "gradients", lambda: torch.autograd.grad(out, first, probes, retain_graph=True)
    gradients = torch.autograd.grad(out, first, probes, create_graph=True)
    cotangents = [torch.randn_like(gradient) for gradient in gradients]
    yield (
        "second derivatives",
        lambda: torch.autograd.grad(
            gradients, [*inputs, *probes], cotangents, retain_graph=True, allow_unused=True
        ),
    )


def contraction_case(
    n_atoms: int, degree: int, device: torch.device, dtype: torch.dtype, peers: list[str]
) -> Case:
    """Degrees up to 3 to degrees up to ``degree``, correlation 3, four elements."""
    torch.manual_seed(0)
    key = contractions.register(coupling_of(product_basis(3, degree, 3)))
    kernels = contractions.kernels_of(key)
    elements = torch.randint(0, N_ELEMENTS, (n_atoms,), device=device)
    x = torch.randn(n_atoms, 16, CHANNELS, device=device, dtype=dtype)
    w = torch.randn(N_ELEMENTS, kernels.coupling.n_weights, CHANNELS, device=device, dtype=dtype)
    chunks = contractions.Chunks.of(elements, N_ELEMENTS)

    def ours(x: Tensor, w: Tensor) -> list[Tensor]:
        return [contractions.symmetric_contraction(x, w, chunks, key)]

    options, missing = backends(peers, device)
    if options.pop("OpenEquivariance", None) is not None:
        missing["OpenEquivariance"] = "mace-torch calls no symmetric contraction of it"
    programs = ("forward", "backward_x", "double")
    out = kernels.n_out
    return Case(
        f"contraction to {names(degree)}, {n_atoms} atoms, {_bits(dtype)}",
        Program(ours, [x, w], 1),
        {
            name: lambda name=name, o=o: _contraction_peer(name, o, degree, elements, x)
            for name, o in options.items()
        },
        _three([kernels.programs[name].cost() * n_atoms * CHANNELS for name in programs]),
        _three(
            [n * n_atoms * CHANNELS + w.numel() for n in (16 + out, 2 * 16 + out, 3 * 16 + 2 * out)]
        ),
        missing,
    )


def _contraction_peer(
    name: str, options: dict[str, Any], degree: int, elements: Tensor, x: Tensor
) -> Program:
    from mace.modules.wrapper_ops import SymmetricContractionWrapper

    peer = SymmetricContractionWrapper(
        irreps(3), irreps(degree), 3, N_ELEMENTS, use_reduced_cg=False, **options
    ).to(x.device)
    one_hot = torch.nn.functional.one_hot(elements, N_ELEMENTS).to(x.dtype)
    indices = one_hot if name == "e3nn" else elements.int()
    features = x.transpose(1, 2).contiguous() if name == "e3nn" else x.flatten(1)
    weights = dict(peer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> list[Tensor]:
        parameters = dict(zip(weights, values, strict=True))
        return [torch.func.functional_call(peer, parameters, (x, indices))]

    return Program(call, [features, *weights.values()], 1)


def convolution_case(
    n_edges: int, degree: int, device: torch.device, dtype: torch.dtype, peers: list[str]
) -> Case:
    """Features up to ``degree`` with harmonics up to 3; edges have radial weights of their own."""
    torch.manual_seed(0)
    n_atoms = max(2, n_edges // EDGES_PER_ATOM)
    paths = convolution_paths(degree, 3)
    key = convolutions.register(product_of(paths, degree, 3))
    n_x = (degree + 1) ** 2
    receivers = torch.arange(n_edges, device=device) * n_atoms // n_edges
    senders = (receivers + torch.randint(1, n_atoms, (n_edges,), device=device)) % n_atoms
    x = torch.randn(n_atoms, n_x, CHANNELS, device=device, dtype=dtype)
    y = torch.randn(n_edges, 16, device=device, dtype=dtype)
    r = torch.randn(n_edges, len(paths), CHANNELS, device=device, dtype=dtype)
    index = convolutions.EdgeIndex.of(senders, receivers, n_atoms)
    ends = torch.stack([senders, receivers])
    options, missing = backends(peers, device)
    kernels = convolutions.kernels_of(key)
    second = [kernels.double_program("xyr", wanted).cost() for wanted in ("g", "xyr")]
    costs = (kernels.program.cost(), kernels.backward_program("xyr").cost(), sum(second))
    inputs, out = x.numel() + y.numel() + r.numel(), kernels.n_out * n_atoms * CHANNELS
    return Case(
        f"convolution of {names(degree)}, {n_edges} edges, {_bits(dtype)}",
        Program(lambda x, y, r: convolutions.convolution(x, y, r, index, key), [x, y, r], 3),
        {
            name: lambda name=name, o=o: _convolution_peer(name, o, degree, ends, [x, y, r])
            for name, o in options.items()
        },
        _three([cost * n_edges * CHANNELS for cost in costs]),
        _three([inputs + out, 2 * inputs + out, 3 * inputs + 2 * out]),
        missing,
    )


def _convolution_peer(
    name: str, options: dict[str, Any], degree: int, ends: Tensor, inputs: list[Tensor]
) -> Program:
    from mace.modules.wrapper_ops import TensorProduct, with_scatter_sum

    o3 = import_o3()
    paths = convolution_paths(degree, 3)
    middle = o3.Irreps("+".join(f"{CHANNELS}x{l3}{'eo'[l3 % 2]}" for _, _, l3 in paths))
    instructions = [(l1, l2, i, "uvu", True) for i, (l1, l2, _) in enumerate(paths)]
    peer = TensorProduct(
        irreps(degree), o3.Irreps("0e+1o+2e+3o"), middle, instructions=instructions, **options
    ).to(ends.device)
    if name == "e3nn":
        peer = with_scatter_sum(peer)
    return Program(
        lambda x, y, r: [peer(x, y, r, ends)], [tensor.flatten(1).clone() for tensor in inputs], 3
    )


def backends(
    wanted: list[str], device: torch.device
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Options of mace-torch's wrappers for the peers that can run, and why others cannot."""
    if not wanted:
        return {}, {}
    from mace.modules import wrapper_ops

    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for name in wanted:
        available = {
            "e3nn": True,
            "cuEquivariance": wrapper_ops.CUET_AVAILABLE,
            "OpenEquivariance": wrapper_ops.OEQ_AVAILABLE,
        }[name]
        if not available:
            missing[name] = "its package does not import"
        elif name != "e3nn" and device.type != "cuda":
            missing[name] = f"its kernels do not run on {device.type}"
        elif name == "cuEquivariance" and (reason := why_without_kernels()):
            missing[name] = reason
        elif name == "cuEquivariance":
            options = {"layout": "ir_mul", "group": "O3", "optimize_all": True, "conv_fusion": True}
            found[name] = {"cueq_config": wrapper_ops.CuEquivarianceConfig(enabled=True, **options)}
        elif name == "OpenEquivariance":
            found[name] = {"oeq_config": wrapper_ops.OEQConfig(enabled=True, optimize_all=True)}
        else:
            found[name] = {}
    return found, missing


def why_without_kernels() -> str | None:
    """Why cuEquivariance would fall back to PyTorch instead of its kernels, or None."""
    try:
        import cuequivariance_ops_torch  # noqa: F401
    except Exception as error:  # loading its libraries may raise anything
        return f"cuequivariance_ops_torch: {type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def irreps(degree: int) -> Any:
    """e3nn's irreps with 128 channels of each degree."""
    return import_o3().Irreps(str(FeatureIrreps(CHANNELS, degree)))


def names(degree: int) -> str:
    """Such as 0e+1o."""
    return "+".join(f"{d}{'eo'[d % 2]}" for d in range(degree + 1))


def _bits(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _three(values: list[float]) -> tuple[float, float, float]:
    value, gradients, second = map(float, values)
    return value, gradients, second
