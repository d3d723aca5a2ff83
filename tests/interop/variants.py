"""Kinds of models of mace-torch that are exchanged."""

import torch

from mace_train.model.product_basis import reduced_basis

NUMBERS = (1, 6, 8)
HEADS = {
    "heads": ["pbe", "scan"],
    "atomic_energies": [[-10.0, -60.0, -80.0], [-11.0, -62.0, -83.0]],
    "atomic_inter_scale": [0.8, 1.3],
    "atomic_inter_shift": [0.1, -0.2],
}
SMALL = {"channels": 8, "max_ell": 2, "correlation": 2, "max_L": 1}
TINY = {"num_interactions": 1, "max_L": 0, "max_ell": 1}
NONLINEAR = {
    "first": "RealAgnosticResidualNonLinear",
    "interaction": "RealAgnosticResidualNonLinear",
    "apply_cutoff": False,
}
ATTENTION = {
    "first": "RealAgnosticAttResidual",
    "interaction": "RealAgnosticAttResidual",
    "apply_cutoff": False,
}
VARIANTS = {  # name: (arguments of mace_torch_model, settings of import, change of the model)
    "default": ({"correlation": 3}, {}, None),
    "tensors": ({"max_L": 2}, {}, None),
    "mace": ({"flavour": "MACE", "max_ell": 1}, {}, None),
    "agnostic": ({"flavour": "MACE", "interaction": "RealAgnostic", "max_ell": 1}, {}, None),
    "density": (
        {"first": "RealAgnosticDensity", "interaction": "RealAgnosticDensityResidual"},
        {},
        None,
    ),
    "density_residual_first": (
        {
            "first": "RealAgnosticDensityResidual",
            "interaction": "RealAgnosticDensity",
            "max_ell": 1,
        },
        {"elements": ["O", "H"]},
        None,
    ),
    "density_heads": (
        {**HEADS, "first": "RealAgnosticDensity", "interaction": "RealAgnosticDensityResidual"},
        {"head": "scan"},
        None,
    ),
    "nonlinear": (NONLINEAR, {}, "forget"),
    "nonlinear_heads": (  # as MACE-MH-1
        {
            **HEADS,
            **NONLINEAR,
            "edge_irreps": "4x0e+4x1o",
            "use_agnostic_product": True,
            "readout_cls": "NonLinearBiasReadoutBlock",
        },
        {"head": "scan"},
        None,
    ),
    "nonlinear_elements": (
        {**NONLINEAR, "edge_irreps": "4x0e", "use_edge_irreps_first": True, "max_ell": 1},
        {"elements": ["O", "H"]},
        None,
    ),
    "attention": (ATTENTION, {}, None),
    "attention_elements": (
        {**ATTENTION, "first": "RealAgnosticDensity", "max_ell": 1},
        {"elements": ["O", "H"]},
        None,
    ),
    "narrow_edges": ({"edge_irreps": "4x0e+4x1o", "max_ell": 1, "apply_cutoff": False}, {}, None),
    "last_readout_only": (
        {**HEADS, "use_last_readout_only": True, "gate": torch.tanh, "max_ell": 1},
        {},
        None,
    ),
    "no_gate": ({"gate": None, "max_ell": 1, "max_L": 0}, {}, None),
    "gaussian": ({"radial_type": "gaussian", "max_ell": 1, "gate": torch.abs}, {}, None),
    "last_layer_irreps": ({"keep_last_layer_irreps": True, "max_ell": 1}, {}, None),
    "correlation_of_layers": ({"correlation": [1, 2], "max_ell": 1}, {}, None),
    "one_layer": (TINY, {}, None),
    "three_layers": ({"num_interactions": 3, "max_ell": 1, "max_L": 0}, {}, None),
    "repulsion": ({**TINY, "pair_repulsion": True}, {}, None),
    "agnesi": ({**TINY, "pair_repulsion": True, "distance_transform": "Agnesi"}, {}, None),
    "soft": ({**TINY, "distance_transform": "Soft"}, {}, None),
    "heads": ({**HEADS, "max_L": 0, "max_ell": 1}, {}, None),
    "one_of_the_heads": ({**HEADS, **TINY}, {"head": "scan"}, None),
    "elements": ({**TINY, "pair_repulsion": True}, {"elements": ["O", "H"]}, None),
    "reduced_couplings": ({**TINY, "correlation": 3, "max_ell": 2}, {}, "reduce"),
    "old_layout": (TINY, {}, "age"),
    "built_in_float32": ({**TINY, "pair_repulsion": True}, {}, "round"),
}


def reduce_couplings(model):
    """As use_reduced_cg: as many couplings as are independent, each a sum of e3nn's."""
    generator = torch.Generator().manual_seed(1)
    for product in model.products:
        for degree, contraction in enumerate(product.symmetric_contractions.contractions):
            for order, holder, name in (
                (3, contraction, "weights_max"),
                (2, contraction.weights, "0"),
            ):
                n_independent = len(reduced_basis(2, order, degree)[0])
                u = getattr(contraction, f"U_matrix_{order}")
                mixing = torch.randn(u.shape[-1], n_independent, generator=generator).double()
                setattr(contraction, f"U_matrix_{order}", u @ mixing)
                shape = (len(NUMBERS), n_independent, SMALL["channels"])
                weight = torch.randn(shape, generator=generator).double() / n_independent
                setattr(holder, name, torch.nn.Parameter(weight))


def make_old(model):
    """The layout of files before there were heads."""
    scale_shift, E0s = model.scale_shift, model.atomic_energies_fn
    scale_shift.scale, scale_shift.shift = scale_shift.scale[0], scale_shift.shift[0]
    E0s.atomic_energies = E0s.atomic_energies[0]
    del model.heads, model.apply_cutoff
    for product in model.products:
        for contraction in product.symmetric_contractions.contractions:
            for name in [n for n in contraction._buffers if n.endswith("zeroed")]:
                del contraction._buffers[name]


def forget_widths(model):
    """The first version with nonlinear blocks did not keep the widths of networks."""
    for block in model.interactions:
        del block.conv_tp_weights.hs, block.density_fn.hs


CHANGES = {
    "forget": forget_widths,
    "reduce": reduce_couplings,
    "age": make_old,
    "round": lambda model: model.float(),
}
