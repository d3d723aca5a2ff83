"""What from_mace_torch refuses, and the way back; on files, without mace-torch."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from mace_train.errors import InputError
from mace_train.interop.header import SUPPORTED
from mace_train.interop.state_dict import from_mace_torch, header_for, to_mace_torch_state_dict
from mace_train.model.coupling import clebsch_gordan, degree_slice
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE
from mace_train.model.product_basis import paths
from tests.model.reference_file import read_reference
from tests.model.systems import graph_of, model_of


@pytest.fixture
def reference():
    return read_reference("default")


def test_shapes_and_names_are_mace_torchs(reference):
    """A fresh model has exactly the trained tensors of the file, in their shapes."""
    imported = from_mace_torch(reference.tensors, reference.header)
    fresh = MACE(imported.settings, imported.data)
    for name, tensor in fresh.state_dict().items():
        assert tensor.shape == reference.tensors[name].shape
    assert imported.settings.num_channels == 4
    assert imported.settings.mlp_width() == 5
    assert imported.data.avg_num_neighbors == 7.3
    assert imported.data.heads[0].E0s == (-10.0, -80.0, -130.0)
    assert imported.data.heads[0].scale == 0.8
    assert imported.data.heads[0].shift == 0.1


@pytest.mark.parametrize("options", [{}, {"model": "MACE"}, {"num_interactions": 1, "max_L": 0}])
def test_round_trip(options):
    model = model_of((1, 8), **options)
    tensors = to_mace_torch_state_dict(model)
    settings = {
        name: getattr(model.settings, name)
        for name in ("model", "max_ell", "num_cutoff_basis", "MLP_irreps")
    }
    header = {
        **settings,
        **{"num_channels": 4, "max_L": options.get("max_L", 1), "correlation": 3},
        "num_interactions": model.settings.num_interactions,
        "radial_MLP": [8, 8],
        "r_max": 4.0,
        "avg_num_neighbors": 7.3,
    }
    again = from_mace_torch(tensors, json.loads(json.dumps(header)))
    assert again.data == model.data
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_precise_isolated_energies_replace_rounded_ones(reference):
    precise = [-13.587222780835477, -2041.8396277138414, -1.0]
    single = {name: tensor.float() for name, tensor in reference.tensors.items()}
    header = reference.header | {"E0s": precise}
    model = from_mace_torch(single | {"atomic_numbers": torch.tensor([1, 8, 13])}, header)
    assert model.dtype == torch.float32
    assert model.E0s.tolist() == [precise]
    graph = graph_of(reference.structures, 4.0, (1, 8, 13), torch.float32)
    found = predict(model, graph, stress=False, create_graph=False).interaction_energy
    expected = reference.results["interaction_energy"].float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_L": 2}, "max_L: the header says 2, the tensors say 1"),
        ({"num_channels": 8}, "num_channels: the header says 8, the tensors say 4"),
        ({"max_ell": 2}, "max_ell: the header says 2, the tensors say 3"),
        ({"correlation": 2}, "correlation: the header says 2, the tensors say 3"),
        ({"num_interactions": 3}, "num_interactions: the header says 3, the tensors say 2"),
        ({"radial_MLP": [64]}, r"radial_MLP: the header says \[64\], the tensors say \[8, 8\]"),
        ({"num_radial_basis": 6}, "num_radial_basis: the header says 6, the tensors say 8"),
        ({"atomic_numbers": [1, 8]}, r"atomic_numbers: the header says \[1, 8\]"),
        ({"MLP_irreps": "16x0e"}, r"linear_1.weight: expected \(64,\), found \(20,\)"),
        ({"r_max": 5.0}, r"r_max is 4\.0, the header implies 5\.0"),
        ({"num_cutoff_basis": 6}, r"cutoff_fn.p is 5\.0, the header implies 6\.0"),
        ({"model": "MACE"}, "a MACE has no residual in its first layer"),
        ({"pair_repulsion": True}, "pair_repulsion: the header says True, the tensors say False"),
        ({"distance_transform": "Soft"}, "the header says 'Soft', the tensors say 'None'"),
        ({"distance_transform": "Log"}, "distance_transform='Log' cannot be imported"),
        ({"heads": ["a", "b"]}, "differ in heads: the header names a, b"),
        ({"class": "AtomicDipolesMACE"}, "class='AtomicDipolesMACE' cannot be imported"),
    ],
)
def test_header_that_does_not_fit(reference, change, words):
    with pytest.raises(InputError, match=words):
        from_mace_torch(reference.tensors, reference.header | change)


def test_header_without_neighbours(reference):
    del reference.header["avg_num_neighbors"]
    with pytest.raises(InputError, match="lacks avg_num_neighbors"):
        from_mace_torch(reference.tensors, reference.header)


def test_state_dict_of_something_else(reference):
    with pytest.raises(InputError, match=r"lacks 'atomic_numbers'"):
        from_mace_torch({"weight": torch.zeros(3)}, reference.header)
    extra = reference.tensors | {"joint_embedding.weight": torch.zeros(4)}
    with pytest.raises(InputError, match=r"not supported: joint_embedding\.weight"):
        from_mace_torch(extra, reference.header)
    del reference.tensors["products.1.linear.weight"]
    with pytest.raises(InputError, match=r"products\.1\.linear\.weight: expected.*no such tensor"):
        from_mace_torch(reference.tensors, reference.header)


def u_matrix(max_ell, order, degree):
    """mace-torch's tensor of all paths [2 L + 1, n, ..., n, n_paths], coupled one by one."""
    unit = np.eye((max_ell + 1) ** 2)
    tensors = []
    for path in paths(max_ell, order, degree):
        tensor = unit[degree_slice(path[0][0])]
        for (_, before), (factor, reached) in pairwise(path):
            table = clebsch_gordan(reached, before, factor)
            tensor = np.einsum("mij,i...,jn->m...n", table, tensor, unit[degree_slice(factor)])
        tensors.append(tensor)
    return torch.as_tensor(np.stack(tensors, axis=-1))


def test_reduced_couplings_are_projected(reference):
    """Fewer paths, each a sum of several, are the same function in ours."""
    name = "products.0.symmetric_contractions.contractions.1."
    expected = from_mace_torch(reference.tensors, reference.header)
    u, weight = u_matrix(max_ell=3, order=3, degree=1), reference.tensors[name + "weights_max"]
    mixing = torch.randn(u.shape[-1], 20, generator=torch.Generator().manual_seed(3)).double()
    reduced = torch.randn(len(weight), 20, weight.shape[2]).double()
    reference.tensors[name + "U_matrix_3"] = u @ mixing
    reference.tensors[name + "weights_max"] = reduced
    with torch.no_grad():  # the same in the paths that the file had
        full = torch.einsum("pr,zrk->zpk", mixing, reduced)
        expected.products[0].symmetric_contractions.contractions[1].weights_max.copy_(full)
    found = from_mace_torch(reference.tensors, reference.header)
    graph = graph_of(reference.structures, 4.0, (1, 8, 13))
    forces = [
        predict(model, graph, stress=False, create_graph=False).forces
        for model in (found, expected)
    ]
    torch.testing.assert_close(*forces, rtol=0, atol=1e-12)
    reference.tensors[name + "weights_max"] = reduced[:, :12]
    with pytest.raises(InputError, match="20 couplings and 12 weights"):
        from_mace_torch(reference.tensors, reference.header)
    del reference.tensors[name + "U_matrix_3"]
    with pytest.raises(InputError, match="use_reduced_cg"):
        from_mace_torch(reference.tensors, reference.header)


def test_other_constants_are_an_error():
    model = model_of((1, 8), pair_repulsion=True, distance_transform="Agnesi")
    tensors = to_mace_torch_state_dict(model)
    again = from_mace_torch(tensors, header_for(model))
    assert again.settings == model.settings
    shallow = model_of((1, 8), num_interactions=1)  # whose features are scalars, whatever max_L
    assert from_mace_torch(to_mace_torch_state_dict(shallow), header_for(shallow)).data
    for name in ("pair_repulsion_fn.a_exp", "radial_embedding.distance_transform.covalent_radii"):
        changed = tensors | {name: tensors[name] * 1.01}
        with pytest.raises(InputError, match=f"{name} is"):
            from_mace_torch(changed, header_for(model))


def test_trained_frequencies_are_an_error(reference):
    reference.tensors["radial_embedding.bessel_fn.bessel_weights"] *= 1.01
    with pytest.raises(InputError, match="bessel_weights"):
        from_mace_torch(reference.tensors, reference.header)


def test_headers_may_leave_out_features(reference):
    for name in SUPPORTED:
        reference.header.pop(name, None)
    assert from_mace_torch(reference.tensors, reference.header).data.heads[0].scale == 0.8


def test_initial_distributions():
    """Normal weights of unit variance everywhere but in the contraction, as in mace-torch."""
    model = model_of((1, 8), num_channels=32, radial_MLP=[64], MLP_irreps="64x0e")
    for name, parameter in model.named_parameters():
        if parameter.numel() >= 500 and "contraction" not in name:
            assert float(parameter.detach().std()) == pytest.approx(1.0, rel=0.15), name
            assert abs(float(parameter.detach().mean())) < 0.15, name
