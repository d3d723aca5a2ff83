"""Models of mace-torch; runs in a process of its own (``subprocess_worker``).

Elsewhere in the package mace-torch is imported only for its reader of ASE-LMDB
(``data.read.databases``) and its graphs for data sets (``data.adapters.mace_torch``).
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mace_train.data.graph import Graph
from mace_train.errors import InputError
from mace_train.interop.old_layouts import in_current_layout
from mace_train.irreps import FeatureIrreps, import_o3, importing_e3nn
from mace_train.settings.inputs import InputSpec, input_specs, known_keys
from mace_train.settings.model import READOUTS

MISSING_PACKAGE = "needs mace-torch; pip install 'mace-train[interop]'"


def import_mace() -> Any:
    """The package mace.modules, or ImportError; leaves warnings and environment as they were."""
    with importing_e3nn():
        from mace import modules
    return modules


def read_model(path: Path) -> nn.Module:
    """The model object in a file that torch.save wrote; runs the code that the file names."""
    import_mace()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything
        raise InputError(
            f"{path}: mace-torch cannot read it ({type(error).__name__}: {error}); give a .model "
            "file as mace_run_train writes it, not a compiled one"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{path}: holds a {type(model).__name__}, not a model of mace-torch")
    return model


def build(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A ScaleShiftMACE of mace-torch, float64, with these weights.

    Raises InputError for tensors that do not fit it.
    """
    modules = import_mace()
    tensors = in_current_layout(tensors, header.get("atomic_numbers"))
    model = _new(modules, header, tensors)
    _take_couplings(model, tensors)
    try:
        report = model.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise InputError(f"mace-torch does not take the tensors: {error}") from error
    trained = {name for name, parameter in model.named_parameters() if parameter.numel() > 0}
    lacking = sorted(trained & set(report.missing_keys))
    if lacking or report.unexpected_keys:
        raise InputError(
            f"mace-torch's model lacks {', '.join(report.unexpected_keys[:3]) or 'nothing'}, and "
            f"the tensors lack {', '.join(lacking[:3]) or 'nothing'}"
        )
    return model


def _take_couplings(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Couplings and their weights in the sizes of the tensors (use_reduced_cg has fewer)."""
    for name, tensor in tensors.items():
        block_name, _, key = name.rpartition(".")
        if not re.search(r"\.contractions\.\d+(\.weights)?$", block_name):
            continue
        block = model.get_submodule(block_name)
        if re.fullmatch(r"U_matrix_\d+", key) and hasattr(block, key):
            setattr(block, key, tensor.double())
        elif isinstance(getattr(block, key, None), nn.Parameter):
            setattr(block, key, nn.Parameter(tensor.double()))


def _new(modules: Any, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    o3 = import_o3()
    E0s = tensors["atomic_energies_fn.atomic_energies"].double()
    numbers = [int(z) for z in tensors["atomic_numbers"]]
    classes, first = modules.interaction_classes, header["interaction_cls_first"]
    hidden = FeatureIrreps(header["num_channels"], header["max_L"])
    edge_irreps = header.get("edge_irreps")
    scale, shift = (
        tensors.get(f"scale_shift.{name}", torch.tensor([value])).tolist()
        for name, value in (("scale", 1.0), ("shift", 0.0))
    )
    with double_precision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = modules.ScaleShiftMACE(
            r_max=float(header["r_max"]),
            num_bessel=header["num_radial_basis"],
            num_polynomial_cutoff=header["num_cutoff_basis"],
            max_ell=header["max_ell"],
            interaction_cls=classes[next(iter(header["interaction_cls"]), first)],
            interaction_cls_first=classes[first],
            num_interactions=header["num_interactions"],
            num_elements=len(numbers),
            hidden_irreps=o3.Irreps(str(hidden)),
            MLP_irreps=o3.Irreps(header["MLP_irreps"]),
            atomic_energies=np.array(E0s),
            avg_num_neighbors=float(header["avg_num_neighbors"]),
            atomic_numbers=numbers,
            correlation=header["correlation"],
            gate=modules.gate_dict[header.get("gate", "silu")],
            readout_cls=modules.readout_classes[header.get("readout_cls", READOUTS[0])],
            radial_type=header.get("radial_type", "bessel"),
            keep_last_layer_irreps=header.get("keep_last_layer_irreps", False),
            use_last_readout_only=header.get("use_last_readout_only", False),
            pair_repulsion=header.get("pair_repulsion", False),
            distance_transform=header.get("distance_transform", "None"),
            radial_MLP=list(header["radial_MLP"]),
            heads=list(header.get("heads", ["Default"])),
            use_reduced_cg=header.get("use_reduced_cg", False),
            use_agnostic_product=header.get("use_agnostic_product", False),
            apply_cutoff=header.get("apply_cutoff", True),
            edge_irreps=None if edge_irreps is None else o3.Irreps(edge_irreps),
            use_edge_irreps_first=header.get("use_edge_irreps_first", False),
            atomic_inter_scale=scale,
            atomic_inter_shift=shift,
            embedding_specs=header.get("embedding_specs"),
            use_embedding_readout=header.get("use_embedding_readout", False),
        )
    return model


def save_model(model: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a model as mace_run_train does; E0s stay in float64."""
    block = model.get_submodule("atomic_energies_fn")
    E0s = block.get_buffer("atomic_energies").double()
    model = model.to(dtype)
    block.register_buffer("atomic_energies", E0s)
    content = io.BytesIO()  # on a full disk PyTorch's own writer may abort the process
    torch.save(model, content)
    path.write_bytes(content.getbuffer())


def predictions_of(model: nn.Module, graph: Graph, head: int = 0) -> dict[str, Tensor]:
    """energy [n_graphs], forces [n_atoms, 3] and stress [n_graphs, 3, 3] of mace-torch's model.

    In float64, eV, eV/Å and eV/Å^3, for one head.

    mace-torch computes the ZBL repulsion in torch's default dtype, so that is set too.
    """
    n_elements = len(model.get_buffer("atomic_numbers"))
    specs = input_specs(known_keys(getattr(model, "embedding_specs", None)))
    graph = replace(graph, heads=torch.full_like(graph.heads, head))
    with double_precision():
        found = model.double()(batch_of(graph, n_elements, specs), compute_stress=True)
    return {name: found[name].detach() for name in ("energy", "forces", "stress")}


def batch_of(graph: Graph, n_elements: int, specs: Sequence[InputSpec] = ()) -> dict[str, Tensor]:
    """The dictionary that mace-torch's forward takes; shapes are those of its AtomicData."""
    ends = graph.n_atoms_of_graph.cumsum(0)
    large = 100.0 * torch.eye(3, dtype=torch.float64, device=graph.cell.device)
    cell = torch.where(graph.pbc.any(1)[:, None, None], graph.cell, large)
    return {
        "positions": graph.positions.clone(),
        "node_attrs": torch.nn.functional.one_hot(graph.elements, n_elements).double(),
        "edge_index": torch.stack([graph.senders, graph.receivers]),
        "unit_shifts": graph.shifts,
        "shifts": torch.einsum("es,esc->ec", graph.shifts, graph.cell[graph.graph_of_edge]),
        "cell": cell.reshape(-1, 3),
        "batch": graph.graph_of_atom,
        "ptr": torch.cat([ends.new_zeros(1), ends]),
        "head": graph.heads,
        **{spec.name: _values(graph, i, spec) for i, spec in enumerate(specs)},
    }


def _values(graph: Graph, column: int, spec: InputSpec) -> Tensor:
    """Values [n_graphs] or [n_atoms] of an input, which a Graph holds encoded for every atom."""
    of_atoms = graph.inputs[:, column] - spec.offset
    if spec.per == "atom":
        return of_atoms
    return of_atoms[graph.n_atoms_of_graph.cumsum(0) - 1]


@contextmanager
def double_precision() -> Iterator[None]:
    """float64 as torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
