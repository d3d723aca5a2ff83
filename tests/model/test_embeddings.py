"""Inputs beside the geometry in the model: what they change, on every backend, and what not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mace_train.errors import InputError
from mace_train.interop.probe_structures import with_probe_inputs
from mace_train.model.compile_kernels import compile_kernels
from mace_train.model.compiled import CompiledMACE
from mace_train.model.derivatives import predict
from mace_train.model.lora import add_low_rank, merged
from mace_train.model.size import count_weights
from mace_train.model.surgery import one_head, with_elements, with_heads
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.train.checkpoint import described, model_header
from tests.charged import INPUTS, SPECS
from tests.model.systems import graph_of, model_of, salt, single_atom, water

ELEMENTS = (1, 8, 11, 17)
BACKENDS = [
    "reference",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
    ),
]


def model_and_graph(kernels="reference", **settings):
    model = model_of(ELEMENTS, embedding_specs=SPECS, use_embedding_readout=True, **settings)
    model.kernels = kernels
    graph = graph_of([water(), salt(), single_atom()], 4.0, ELEMENTS)
    return model, with_probe_inputs(graph, INPUTS)


def energies(model, graph):
    return predict(model, graph, stress=False, create_graph=False).energy


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kernels", BACKENDS)
def test_gradients_of_all_weights(kernels, static):
    """Backends agree, and every weight of the embeddings is trained, by forces too."""
    found = []
    for name in ("reference", kernels):
        model, graph = model_and_graph(name, correlation=2)
        model.static_shapes = static
        prediction = predict(model, graph, stress=True, create_graph=True)
        loss = prediction.energy.square().sum() + 10 * prediction.forces.square().sum()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)
    names = [name for name in found[0] if name.startswith(("joint_embedding", "embedding_re"))]
    assert len(names) == 10
    assert all(found[0][name].abs().max() > 0 for name in names)


def test_each_input_changes_its_structure_and_no_other():
    model, graph = model_and_graph()
    before = energies(model, graph)
    for column, spec in enumerate(INPUTS):
        inputs = graph.inputs.clone()
        of_salt = graph.graph_of_atom == 1
        inputs[of_salt, column] = (inputs[of_salt, column] + 1) % spec.num_classes + (
            0 if spec.is_class else 0.3
        )
        changed = energies(model, replace(graph, inputs=inputs)) - before
        assert changed.abs()[1] > 1e-4, spec.name
        assert not changed[[0, 2]].any(), spec.name


def test_forces_are_derivatives_of_the_energy():
    model, graph = model_and_graph()
    forces = predict(model, graph, stress=False, create_graph=False).forces
    step = torch.zeros_like(graph.positions)
    step[4, 1] = 1e-4
    ends = [energies(model, replace(graph, positions=graph.positions + s)) for s in (step, -step)]
    numerical = (ends[1] - ends[0]).sum() / 2e-4
    np.testing.assert_allclose(forces[4, 1], numerical, atol=1e-6)


def test_the_readout_is_not_scaled_and_moves_no_atom():
    model, graph = model_and_graph()
    before = predict(model, graph, stress=False, create_graph=False)
    with torch.no_grad():
        model.embedding_readout.linear.weight.zero_()
    after = predict(model, graph, stress=False, create_graph=False)
    assert (before.energy - after.energy).abs().min() > 1e-3
    torch.testing.assert_close(after.forces, before.forces, rtol=0, atol=0)


def test_a_model_without_inputs_is_what_it_was():
    model = model_of(ELEMENTS)
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert parts == {"node_embedding", "interactions", "products", "readouts"}
    header = model_header(model)
    assert not {"embedding_specs", "use_embedding_readout"} & header["model_settings"].keys()
    assert described(header) == (model.settings, model.data)
    other, _ = model_and_graph()
    assert described(model_header(other)) == (other.settings, other.data)


@pytest.mark.parametrize("heads", [("Default",), ("a", "b")])
@pytest.mark.parametrize("readout", [False, True])
def test_the_number_of_weights_is_known_beforehand(heads, readout):
    model = model_of(ELEMENTS, heads=heads, embedding_specs=SPECS, use_embedding_readout=readout)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    assert count_weights(model.settings, len(ELEMENTS), len(heads)) == n_weights


def test_surgery_keeps_energies():
    model, graph = model_and_graph()
    before = energies(model, graph)
    heads = [replace(model.data.heads[0], name=name) for name in ("a", "b", "c")]
    several = with_heads(model, heads)
    for i, name in enumerate(("a", "b", "c")):
        of_head = replace(graph, heads=torch.full_like(graph.heads, i))
        torch.testing.assert_close(energies(several, of_head), before, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            energies(one_head(several, name), graph), before, rtol=1e-12, atol=0
        )
    more = with_elements(model, [1, 6, 8, 11, 17])
    moved = torch.tensor([0, 2, 3, 4])[graph.elements]
    torch.testing.assert_close(
        energies(more, replace(graph, elements=moved)), before, rtol=1e-12, atol=0
    )


def test_lora_trains_the_linear_layers_of_embeddings():
    model, graph = model_and_graph()
    before, names = energies(model, graph), list(model.state_dict())
    add_low_rank(model, 2, 1.0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(name.startswith("joint_embedding.project.0") for name in trained)
    assert not any("total_charge" in name for name in trained)  # a table
    assert energies(model, graph).equal(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.ones_like(parameter) if name in trained else 0.0
    plain, _ = model_and_graph()
    plain.load_state_dict(merged(model.state_dict(), 0.5))
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(energies(plain, graph), energies(model, graph))


def test_inputs_must_be_given():
    model, graph = model_and_graph()
    with pytest.raises(ValueError, match="give total_charge, temperature, site, shielding"):
        model(graph.vectors(), graph.elements, graph.senders, graph.receivers)


def test_kernels_are_compiled_with_inputs():
    model, _ = model_and_graph("auto")
    assert compile_kernels(model) >= 0


def test_compiled_models_take_the_geometry_alone():
    model, graph = model_and_graph()
    with pytest.raises(InputError, match="has the inputs total_charge, temperature, site, shi"):
        CompiledMACE(model, "eager")(graph, stress=False)


def test_a_name_that_pytorch_has_taken():
    with pytest.raises(InputError, match="PyTorch has no module with the name keys"):
        model_of(ELEMENTS, embedding_specs={"keys": SPECS["site"]})
