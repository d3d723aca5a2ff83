"""Models of configs/model at their full width predict what mace-torch's predict, in float64."""

import pytest
import torch
from ase.build import molecule

from mace_train.interop.header import header_of
from mace_train.interop.probe_structures import with_probe_inputs
from mace_train.interop.state_dict import from_mace_torch
from mace_train.settings.model import ATTENTION, NONLINEAR
from tests.model.mace_torch import arguments_of, import_mace, mace_torch_model
from tests.model.parity import LARGEST_DIFFERENCE, differences
from tests.model.recipes import RECIPES, model_settings
from tests.model.systems import graph_of, rattled

try:
    import_mace()
except ImportError:  # mace-torch is an optional extra
    pytest.skip("mace-torch is not installed", allow_module_level=True)

NUMBERS = (1, 6, 8)
OTHERS = {  # kinds of published models that configs/model has no file of
    "mh_1_blocks": [
        "model.num_channels=512",
        f"model.interaction_first={NONLINEAR}",
        f"model.interaction={NONLINEAR}",
        "model.apply_cutoff=false",
        "model.use_agnostic_product=true",
        "model.edge_irreps=128x0e+128x1o",
        "model.readout_cls=NonLinearBiasReadoutBlock",
    ],
    "attention": [
        f"model.interaction_first={ATTENTION}",
        f"model.interaction={ATTENTION}",
        "model.apply_cutoff=false",
    ],
}


def crystal():
    """Formaldehyde with its images as neighbours, without any symmetry."""
    atoms = molecule("H2CO", cell=[4.6, 5.0, 5.4], pbc=True)
    return rattled(atoms, 6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot
@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_same_predictions_at_full_width(name):
    words = [f"model={name}"] if name in RECIPES else ["model=medium", *OTHERS[name]]
    settings = model_settings(words)
    E0s = [[-0.01 * z for z in NUMBERS]]  # small: they hide no difference
    arguments = {**arguments_of(settings), "atomic_energies": E0s}
    theirs = mace_torch_model(NUMBERS, **arguments)
    graph = graph_of([crystal()], arguments["r_max"], NUMBERS)
    graph = with_probe_inputs(graph, settings.inputs())
    ours = from_mace_torch(theirs.state_dict(), header_of(theirs))
    assert ours.dtype == torch.float64
    assert ours.settings.num_channels == settings.num_channels
    found = differences(ours, theirs, graph)
    assert len(found) == 4
    assert max(found.values()) <= LARGEST_DIFFERENCE, found
