"""Tensors in files of any version of mace-torch -> names and shapes of mace-torch 0.3.16.

    since         what differs before
    0.3.10        the ZBL repulsion has a cutoff and r_max that it does not use
    0.3.7         (heads) E0s have no axis of heads; scale and shift are single numbers
    0.3           (before, 2022) contractions are named by irreps (4x1o) and their weights by order;
                  the atomic numbers are no tensor

Nothing else that a prediction depends on has changed. The last layout is known from the public
sources of its time alone.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_E0S = "atomic_energies_fn.atomic_energies"
_UNUSED = re.compile(r"pair_repulsion_fn\.(r_max$|cutoff\.)")
_BY_IRREPS = re.compile(r"(.+\.contractions\.)\d+x(\d+)[eo]\.(.+)")


def in_current_layout(
    tensors: Mapping[str, Tensor], atomic_numbers: Sequence[int] | None
) -> dict[str, Tensor]:
    """The tensors as mace-torch 0.3.16 names and shapes them.

    ``atomic_numbers`` are those of the header, for files that have them in no tensor.
    """
    current = {
        _current_name(name, tensors): _current_shape(name, tensor)
        for name, tensor in tensors.items()
        if not _UNUSED.match(name)
    }
    if atomic_numbers is not None and _E0S in current:  # of a MACE
        current.setdefault("atomic_numbers", torch.tensor([int(z) for z in atomic_numbers]))
    return current


def _current_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    found = _BY_IRREPS.fullmatch(name)
    if found is None:
        return name
    contractions, degree, rest = found.groups()
    kind, _, order = rest.partition(".")
    if kind == "weights":
        prefix = name.removesuffix(rest)
        highest = sum(other.startswith(f"{prefix}weights.") for other in tensors)
        rest = "weights_max" if int(order) == highest else f"weights.{highest - 1 - int(order)}"
    return f"{contractions}{degree}.{rest}"


def _current_shape(name: str, tensor: Tensor) -> Tensor:
    if name == _E0S:
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor.reshape(-1) if name.startswith("scale_shift.") else tensor
