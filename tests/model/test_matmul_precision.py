"""Products in bfloat16: where they are taken, how far the results move, and what stays exact."""

import pytest
import torch

from mace_train.irreps import FeatureIrreps
from mace_train.model.batch_index import ElementGroups, ElementSlots
from mace_train.model.derivatives import predict
from mace_train.model.linear import ElementLinear
from mace_train.model.matmul_precision import MatmulModule
from tests.model.systems import NONLINEAR_SETTINGS, graph_of, mixed, model_of, salt, water

ELEMENTS = (1, 8, 11, 13, 17)


@pytest.mark.parametrize("settings", [{}, {**NONLINEAR_SETTINGS, "edge_irreps": "8x0e+8x1o"}])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_bfloat16_moves_forces_by_its_rounding_and_learns_in_float32(kernels, settings):
    settings = {"max_ell": 2, "max_L": 1, "num_channels": 16, **settings}
    model = model_of(ELEMENTS, dtype=torch.float32, **settings)
    model.kernels = kernels
    graph = graph_of([water(), salt(), mixed(ELEMENTS)], 4.0, ELEMENTS, torch.float32)
    results = []
    for dtype in (None, torch.bfloat16):
        model.set_matmul_dtype(dtype)
        prediction = predict(model, graph, stress=True, create_graph=True)
        loss = prediction.forces.square().sum()
        results.append((prediction, torch.autograd.grad(loss, list(model.parameters()))))
    (exact, gradients), (rounded, others) = results
    error = (rounded.forces - exact.forces).norm() / exact.forces.norm()
    assert 1e-4 < error < 3e-2  # eight bits: relative rounding of 2^-9
    assert rounded.forces.dtype == torch.float32
    assert rounded.energy.dtype == torch.float64
    for one, other in zip(gradients, others, strict=True):
        assert other.dtype == torch.float32
        assert (other - one).norm() < 0.1 * max(float(g.norm()) for g in gradients)
    # atoms of a structure still feel no net force: the sum over edges is exact
    forces = rounded.forces.detach()
    assert float(forces[:3].sum(0).abs().max()) < 1e-5 * float(forces.abs().max())


def test_readouts_and_the_embedding_keep_their_type():
    model = model_of(ELEMENTS)
    model.set_matmul_dtype(torch.bfloat16)
    narrow = {
        name
        for name, module in model.named_modules()
        if isinstance(module, MatmulModule) and module.matmul_dtype is not None
    }
    assert {name.split(".")[0] for name in narrow} == {"interactions", "products"}
    assert {name.split(".", 2)[2] for name in narrow if name.startswith("interactions.1")} == {
        "linear_up",
        "conv_tp_weights",
        "linear",
        "skip_tp",
    }
    model.set_matmul_dtype(None)
    assert all(m.matmul_dtype is None for m in model.modules() if isinstance(m, MatmulModule))


@pytest.mark.parametrize("n_atoms", [0, 1, 5, 70])
def test_slots_give_the_products_of_groups(n_atoms):
    torch.manual_seed(0)
    layer = ElementLinear(FeatureIrreps(4, 1), 3).double()
    x = torch.randn(n_atoms, 9, 4, dtype=torch.float64, requires_grad=True)
    elements = 2 * torch.randint(0, 2, (n_atoms,))  # none of the second element
    both = []
    for layout in (ElementGroups, ElementSlots):
        y = layer(x, layout.of(elements, 3))
        (gx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        both.append((y, gx, *torch.autograd.grad(gx.square().sum(), [x, layer.weight])))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13)


def test_slots_have_shapes_that_follow_from_the_number_of_atoms():
    shapes = set()
    for seed in range(4):
        torch.manual_seed(seed)
        slots = ElementSlots.of(torch.randint(0, 1 + seed, (50,)), 5)
        shapes.add(tuple(tuple(t.shape) for t in vars(slots).values()))
        filled = slots.atom_of_slot[slots.atom_of_slot < 50]
        assert sorted(filled.tolist()) == list(range(50))
        assert torch.equal(slots.atom_of_slot[slots.slot_of_atom], torch.arange(50))
    assert len(shapes) == 1
