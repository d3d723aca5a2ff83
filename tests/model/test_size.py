"""Sizes of models: counted without building them, and refused where nothing could hold them."""

import pytest

from mace_train.errors import InputError
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.model.product_basis import paths
from mace_train.model.size import check_size, count_weights, n_contraction_paths
from mace_train.settings import ModelSettings
from mace_train.settings.model import AGNOSTIC, ATTENTION, DENSITY, DENSITY_RESIDUAL, NONLINEAR

NONLINEAR_MODEL = {
    "interaction": NONLINEAR,
    "interaction_first": NONLINEAR,
    "use_agnostic_product": True,
    "apply_cutoff": False,
}
SMALL = {"num_channels": 6, "radial_MLP": [8, 5], "max_ell": 2, "correlation": 2}


@pytest.mark.parametrize(
    ("changes", "n_elements", "n_heads"),
    [
        ({}, 1, 1),
        ({"max_L": 0, "num_interactions": 1}, 3, 2),
        ({"max_L": 2, "num_interactions": 3, "model": "MACE"}, 2, 1),
        ({"interaction": DENSITY_RESIDUAL, "interaction_first": DENSITY}, 2, 1),
        (NONLINEAR_MODEL, 3, 2),
        ({**NONLINEAR_MODEL, "edge_irreps": "3x0e", "use_edge_irreps_first": True}, 2, 1),
        ({"interaction": ATTENTION, "interaction_first": ATTENTION, "max_L": 2}, 2, 1),
        ({"max_L": 2, "keep_last_layer_irreps": True}, 2, 1),
        ({"interaction": DENSITY, "edge_irreps": "3x0e+3x1o"}, 2, 1),
        ({"interaction": AGNOSTIC, "interaction_first": DENSITY_RESIDUAL}, 2, 1),
        ({"correlation": 4, "num_interactions": 2, "MLP_irreps": "5x0e"}, 2, 3),
    ],
)
def test_weights_are_counted_as_built(changes, n_elements, n_heads):
    settings = ModelSettings(**{**SMALL, **changes})
    heads = tuple(Head((0.0,) * n_elements, 1.0, 0.0, name=str(k)) for k in range(n_heads))
    numbers = tuple(range(1, n_elements + 1))
    data = ModelData(r_max=4.0, atomic_numbers=numbers, avg_num_neighbors=2.0, heads=heads)
    model = MACE(settings, data, kernels="reference")
    built = sum(parameter.numel() for parameter in model.parameters())
    assert count_weights(settings, n_elements, n_heads) == built


@pytest.mark.parametrize(("l_max", "order", "l_out"), [(3, 1, 1), (3, 3, 1), (3, 4, 2), (2, 5, 0)])
def test_paths_are_counted_as_listed(l_max, order, l_out):
    assert n_contraction_paths(l_max, order, l_out) == len(paths(l_max, order, l_out))


def test_models_that_nothing_could_hold():
    check_size(ModelSettings(num_channels=256, max_L=3, max_ell=4, correlation=3), 89, 1)
    with pytest.raises(InputError, match=r"num_channels=65536 .*e\+1\d weights, .* GB in float32"):
        check_size(ModelSettings(num_channels=65536), 1, 1)
    with pytest.raises(InputError, match=r"correlation=10 with max_ell=11 and max_L=11: 1.43e\+16"):
        check_size(ModelSettings(max_L=11, max_ell=11, correlation=10), 1, 1)


def test_models_larger_than_this_host(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10)
    with pytest.raises(InputError, match=r"at most 1.02e\+04 are possible here"):
        check_size(ModelSettings(), 1, 1)
