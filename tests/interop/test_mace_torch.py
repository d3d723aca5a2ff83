"""Energies, forces, stress and weight gradients equal those of mace-torch, called live."""

from dataclasses import replace

import pytest
import torch
from ase import Atoms

from mace_train.errors import InputError
from mace_train.interop.header import header_of
from mace_train.interop.mace_torch import double_precision
from mace_train.interop.state_dict import from_mace_torch, to_mace_torch_state_dict
from mace_train.model.derivatives import predict
from tests.model.mace_torch import import_mace, mace_torch_batch, mace_torch_model
from tests.model.systems import graph_of, mixed, salt, single_atom, tiny_cell, water

try:
    import_mace()
except ImportError:  # mace-torch is an optional extra
    pytest.skip("mace-torch is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot

WATER, SALT, METAL = (1, 8), (11, 17), (13,)
ALL = tuple(range(1, 90))

REPULSION = {"pair_repulsion": True, "correlation": 2}


NONLINEAR = {
    "first": "RealAgnosticResidualNonLinear",
    "interaction": "RealAgnosticResidualNonLinear",
    "use_agnostic_product": True,
    "apply_cutoff": False,
    "max_ell": 2,
}
ATTENTION = {
    "first": "RealAgnosticAttResidual",
    "interaction": "RealAgnosticAttResidual",
    "apply_cutoff": False,
    "max_ell": 2,
}


def squeezed():
    """A pair well inside of the reach of the repulsion."""
    return Atoms("NaCl", positions=[[0, 0, 0], [0.6, 0.7, 0.8]])


CASES = {
    # name: (atomic numbers, structures, arguments of mace_torch_model)
    "default": (WATER, [water()], {}),
    "single_atom": (WATER, [single_atom(), water()], {}),
    "crystal": (SALT, [salt()], {}),
    "tiny_cell": (METAL, [tiny_cell()], {}),
    "scalars": (WATER, [water()], {"max_L": 0}),
    "scalars_metal": (METAL, [tiny_cell()], {"max_L": 0, "correlation": 2}),
    "vectors_ell_1": (WATER, [water()], {"max_ell": 1}),
    "tensors": (SALT, [salt()], {"max_L": 2, "max_ell": 2, "channels": 2}),
    "tensors_ell_3": (METAL, [tiny_cell()], {"max_L": 2, "channels": 3}),
    "linear": (SALT, [salt()], {"correlation": 1}),
    "quadratic": (SALT, [salt()], {"correlation": 2, "max_ell": 2}),
    "quartic": (WATER, [water()], {"correlation": 4, "max_ell": 2, "channels": 2}),
    "one_layer": (WATER, [water()], {"num_interactions": 1}),
    "one_layer_scalars": (SALT, [salt()], {"num_interactions": 1, "max_L": 0, "max_ell": 2}),
    "three_layers": (WATER, [single_atom()], {"num_interactions": 3, "max_ell": 2}),
    "three_layers_tensors": (
        METAL,
        [tiny_cell()],
        {"num_interactions": 3, "max_L": 2, "max_ell": 2, "correlation": 2, "channels": 2},
    ),
    "all_elements": (ALL, [mixed(ALL), mixed(ALL, 5, 6)], {"max_ell": 2, "channels": 2}),
    "all_elements_mace": (ALL, [mixed(ALL)], {"flavour": "MACE", "max_ell": 1}),
    "mace": (WATER, [water(), single_atom()], {"flavour": "MACE"}),
    "mace_crystal": (SALT, [salt()], {"flavour": "MACE", "max_L": 2, "max_ell": 2}),
    "mace_one_layer": (METAL, [tiny_cell()], {"flavour": "MACE", "num_interactions": 1}),
    "density": (
        WATER,
        [water(), single_atom()],
        {"first": "RealAgnosticDensity", "interaction": "RealAgnosticDensityResidual"},
    ),
    "density_tensors": (
        SALT,
        [salt()],
        {
            "first": "RealAgnosticDensityResidual",
            "interaction": "RealAgnosticDensity",
            "max_L": 2,
            "max_ell": 2,
            "num_interactions": 3,
        },
    ),
    "nonlinear": (WATER, [water(), single_atom()], NONLINEAR),
    "nonlinear_crystal": (
        SALT,
        [salt(), squeezed()],
        {
            **NONLINEAR,
            "num_interactions": 3,
            "max_L": 2,
            "max_ell": 2,
            "edge_irreps": "2x0e+2x1o",
            "use_edge_irreps_first": True,
        },
    ),
    "wide_edges": (WATER, [water()], {"edge_irreps": "9x0e+9x1o", "num_interactions": 2}),
    "nonlinear_wide_edges": (WATER, [water()], {**NONLINEAR, "edge_irreps": "9x0e+9x1o"}),
    "nonlinear_metal": (METAL, [tiny_cell()], {**NONLINEAR, "max_L": 0, "num_interactions": 1}),
    "nonlinear_elements": (
        ALL,
        [mixed(ALL)],
        {**NONLINEAR, "use_agnostic_product": False, "max_ell": 1, "apply_cutoff": True},
    ),
    "attention": (WATER, [water(), single_atom()], ATTENTION),
    "attention_after_density": (
        SALT,
        [salt()],
        {
            **ATTENTION,
            "first": "RealAgnosticDensity",
            "num_interactions": 3,
            "max_L": 2,
            "edge_irreps": "2x0e+2x1o",
        },
    ),
    "narrow_edges": (WATER, [water()], {"max_ell": 2, "edge_irreps": "2x0e"}),
    "narrow_edges_density": (
        SALT,
        [salt()],
        {
            "first": "RealAgnosticDensity",
            "interaction": "RealAgnosticDensityResidual",
            "edge_irreps": "2x0e+2x1o",
            "use_edge_irreps_first": True,
            "apply_cutoff": False,
            "max_ell": 2,
        },
    ),
    "last_readout_only": (
        WATER,
        [water()],
        {"num_interactions": 3, "max_ell": 1, "use_last_readout_only": True, "gate": torch.abs},
    ),
    "gaussian": (WATER, [water()], {"max_ell": 1, "radial_type": "gaussian", "gate": torch.tanh}),
    "gaussian_agnesi": (
        METAL,
        [tiny_cell()],
        {"max_ell": 1, "radial_type": "gaussian", "distance_transform": "Agnesi", "gate": None},
    ),
    "last_layer_irreps": (
        WATER,
        [water()],
        {"max_ell": 2, "max_L": 2, "keep_last_layer_irreps": True, "channels": 2},
    ),
    "correlation_of_layers": (SALT, [salt()], {"max_ell": 2, "correlation": [3, 2]}),
    "bias_readout": (
        WATER,
        [water()],
        {"max_ell": 1, "readout_cls": "NonLinearBiasReadoutBlock"},
    ),
    "agnostic_product": (SALT, [salt()], {"use_agnostic_product": True, "apply_cutoff": False}),
    "radial": (
        SALT,
        [salt()],
        {
            "num_bessel": 6,
            "num_polynomial_cutoff": 6,
            "r_max": 4.6,
            "radial_MLP": [6, 9, 7],
            "channels": 3,
            "max_ell": 2,
        },
    ),
    "repulsion": (SALT, [salt(), squeezed()], {"max_ell": 1, **REPULSION}),
    "agnesi": (METAL, [tiny_cell()], {"max_ell": 1, "distance_transform": "Agnesi"}),
    "soft": (WATER, [water()], {"max_ell": 1, **REPULSION, "distance_transform": "Soft"}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_predictions(name):
    numbers, structures, arguments = CASES[name]
    theirs = mace_torch_model(numbers, **arguments)
    ours = from_mace_torch(theirs.state_dict(), header_of(theirs))
    assert ours.dtype == torch.float64
    graph = graph_of(structures, float(theirs.r_max), numbers)
    with double_precision():  # the repulsion is computed in torch's default dtype
        expected = theirs(mace_torch_batch(graph, len(numbers)), training=True, compute_stress=True)
    periodic = graph.pbc.all(1)
    _loss(expected["energy"], expected["forces"], expected["stress"][periodic]).backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for kernels in ("auto", "reference"):
        ours.kernels = kernels
        ours.zero_grad()
        _compare(ours, graph, expected, gradients)


HEADS = {
    "heads": ["pbe", "scan", "hf"],
    "atomic_energies": [[-10.0, -80.0], [-11.0, -82.0], [1.0, 2.0]],
    "atomic_inter_scale": [0.8, 1.3, 0.5],
    "atomic_inter_shift": [0.1, -0.2, 0.0],
}


@pytest.mark.parametrize("changes", [{}, {"num_interactions": 1}])
def test_several_heads(changes):
    theirs = mace_torch_model(WATER, max_ell=2, **HEADS, **changes)
    header = header_of(theirs)
    ours = from_mace_torch(theirs.state_dict(), header)
    assert ours.data.head_names == ("pbe", "scan", "hf")
    graph = graph_of([water(), single_atom(), water(), water()], 4.0, WATER)
    graph = replace(graph, heads=torch.tensor([2, 0, 1, 0]))
    expected = theirs(mace_torch_batch(graph, 2), training=True, compute_stress=True)
    periodic = graph.pbc.all(1)
    _loss(expected["energy"], expected["forces"], expected["stress"][periodic]).backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    _compare(ours, graph, expected, gradients)
    assert len({round(float(e), 3) for e in expected["energy"][[0, 2, 3]]}) == 3  # of one molecule
    back = mace_torch_model(WATER, max_ell=2, seed=3, **HEADS, **changes)
    assert back.load_state_dict(to_mace_torch_state_dict(ours), strict=False).unexpected_keys == []
    found = back(mace_torch_batch(graph, 2))["energy"]
    torch.testing.assert_close(found, expected["energy"], rtol=0, atol=1e-10)


def _compare(ours, graph, expected, gradients):
    found = predict(ours, graph, stress=True, create_graph=True)
    periodic = graph.pbc.all(1)
    _assert_close(found.energy, expected["energy"])
    _assert_close(found.interaction_energy, expected["interaction_energy"])
    _assert_close(found.node_energy, expected["node_energy"])
    _assert_close(found.forces, expected["forces"])
    _assert_close(found.virials[periodic], expected["virials"][periodic])
    _assert_close(found.stress[periodic], expected["stress"][periodic])
    assert torch.equal(found.stress[~periodic], torch.zeros_like(found.stress[~periodic]))

    _loss(found.energy, found.forces, found.stress[periodic]).backward()
    for parameter_name, parameter in ours.named_parameters():
        expected_gradient = gradients[parameter_name]
        scale = max(float(expected_gradient.abs().max()), 1e-6)
        difference = (parameter.grad - expected_gradient).abs().max()
        assert difference <= 1e-9 * scale, parameter_name


def _assert_close(found, expected):
    scale = max(float(expected.abs().max()), 1e-3) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * scale)


def _loss(energy, forces, stress):
    return (energy / 10).square().sum() + forces.square().sum() + 100 * stress.square().sum()


def test_opposite_coupling_signs_are_followed():
    theirs = mace_torch_model((1, 8), seed=5)
    prefix = "products.0.symmetric_contractions.contractions.1."
    flipped = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    flipped[prefix + "U_matrix_3"][..., 7] *= -1
    flipped[prefix + "weights_max"][:, 7] *= -1
    header = header_of(theirs)
    expected = from_mace_torch(theirs.state_dict(), header).state_dict()
    found = from_mace_torch(flipped, header).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_foreign_couplings_are_an_error():
    theirs = mace_torch_model((1, 8))
    for name in (
        "products.0.symmetric_contractions.contractions.0.U_matrix_2",
        "interactions.1.conv_tp._compiled_main_left_right._w3j_1_2_1",
    ):
        tensors = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
        tensors[name] = tensors[name] + 0.3  # in the span of no couplings
        with pytest.raises(InputError, match="cannot be imported"):
            from_mace_torch(tensors, header_of(theirs))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"radial_type": "chebyshev"}, "radial_type='ChebychevBasis'"),
        ({"gate": torch.sin}, "gate='sin'"),
        ({"use_so3": True}, "use_so3=True"),
    ],
)
def test_unsupported_features_are_named(changes, words):
    theirs = mace_torch_model((1, 8), max_ell=1, **changes)
    with pytest.raises(InputError, match=words):
        from_mace_torch(theirs.state_dict(), header_of(theirs))


def test_another_class_is_an_error():
    with pytest.raises(InputError, match="a Linear cannot be imported"):
        header_of(torch.nn.Linear(2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_on_a_gpu_are_exchanged_too():
    theirs = mace_torch_model((1, 8))
    on_gpu = {name: tensor.cuda() for name, tensor in theirs.state_dict().items()}
    found = to_mace_torch_state_dict(from_mace_torch(on_gpu, header_of(theirs)).cuda())
    assert all(tensor.is_cuda for name, tensor in found.items() if name != "atomic_numbers")
    theirs.load_state_dict(found, strict=False)
    parameters = dict(theirs.named_parameters())
    for name, before in on_gpu.items():
        if name in parameters and "contraction" not in name:  # whose couplings may have signs
            assert torch.equal(theirs.state_dict()[name], before.cpu()), name
