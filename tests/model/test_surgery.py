"""Other elements, more heads, one head: the energies of what stays are those before."""

from dataclasses import replace

import pytest
import torch

from mace_train.errors import InputError
from mace_train.model.derivatives import Prediction, predict
from mace_train.model.mace import MACE, Head
from mace_train.model.surgery import one_head, with_elements, with_heads
from tests.model.systems import NONLINEAR_SETTINGS, graph_of, model_of, single_atom, water

TWO = ("pbe", "scan")


def of(model: MACE, head: str | None = None, structures=None) -> Prediction:
    numbers = model.data.atomic_numbers
    graph = graph_of(structures or [water(), single_atom()], 4.0, numbers)
    index = 0 if head is None else model.data.head_names.index(head)
    graph = replace(graph, heads=torch.full_like(graph.heads, index))
    return predict(model, graph, stress=False, create_graph=False)


def with_biases(model: MACE) -> MACE:
    """The model with biases of its readouts that are not zero."""
    for name, parameter in model.readouts.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_()
    return model


def assert_same(found: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{}, {"model": "MACE", "num_interactions": 1}, {"max_L": 2}, NONLINEAR_SETTINGS],
)
def test_elements_that_stay_keep_their_energies(settings):
    settings = {"max_ell": 2, **settings}
    model = model_of((1, 6, 8, 26), **settings)
    expected = of(model)
    assert_same(of(with_elements(model, [8, 1])), expected)
    more = with_elements(model, [1, 8, 92])
    assert more.data.atomic_numbers == (1, 8, 92)
    assert more.data.heads[0].E0s == (-10.0, -80.0, 0.0)
    assert_same(of(more), expected)


def test_new_elements_begin_with_the_mean_of_the_known_ones():
    model = with_elements(model_of((1, 8), max_ell=1), [1, 3, 8])
    table = model.node_embedding.linear.weight.view(3, -1)
    torch.testing.assert_close(table[1], table[[0, 2]].mean(0))
    of_element = model.products[1].symmetric_contractions.contractions[0].weights_max
    torch.testing.assert_close(of_element[1], of_element[[0, 2]].mean(0))


def test_a_model_that_knows_none_of_the_elements():
    with pytest.raises(InputError, match=r"knows none of Fe, only H, O"):
        with_elements(model_of((1, 8), max_ell=1), [26])


@pytest.mark.parametrize(
    "settings",
    [
        *({"num_interactions": n} for n in (1, 2, 3)),
        {"readout_cls": "NonLinearBiasReadoutBlock", "use_last_readout_only": True},
    ],
)
def test_every_head_alone_is_that_head(settings):
    model = with_biases(model_of((1, 8), max_ell=1, heads=("pbe", "scan", "hf"), **settings))
    energies = []
    for name in model.data.head_names:
        alone = one_head(model, name)
        assert alone.data.head_names == (name,)
        assert_same(of(alone), of(model, name))
        energies.append(float(of(alone).energy[0]))
    assert len(set(energies)) == 3


@pytest.mark.parametrize("readout", ["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"])
def test_new_heads_begin_as_the_one_they_come_from(readout):
    model = with_biases(model_of((1, 8), max_ell=1, heads=TWO, readout_cls=readout))
    scan = model.data.heads[1]
    heads = [replace(scan, name="replay"), Head((-1.0, -2.0), scan.scale, scan.shift, "new")]
    both = with_heads(model, heads, "scan")
    expected = of(model, "scan")
    assert_same(of(both, "replay"), expected)
    found = of(both, "new")
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.interaction_energy, expected.interaction_energy)
    assert_same(of(one_head(both, "replay")), expected)


def test_heads_must_be_known():
    model = model_of((1, 8), max_ell=1, heads=TWO)
    with pytest.raises(InputError, match="has the heads pbe, scan; choose one with head=pbe"):
        one_head(model)
    with pytest.raises(InputError, match=r"^head: no head 'b3lyp'; .* model are: pbe, scan$"):
        one_head(model, "b3lyp")
    with pytest.raises(InputError, match=r"^foundation.head: no head 'PBE' \(did you mean pbe\?\)"):
        one_head(model, "PBE", "foundation.head")
    with pytest.raises(ValueError, match="which of pbe, scan"):
        model(torch.zeros(0, 3).double(), *torch.zeros(3, 0, dtype=torch.int64))
