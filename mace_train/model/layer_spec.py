"""What a layer of MACE needs to know of the architecture."""

from dataclasses import dataclass

from mace_train.irreps import FeatureIrreps


@dataclass(frozen=True)
class LayerSpec:
    """Sizes of one layer, by mace-torch's names where it has one."""

    n_elements: int
    node_feats_irreps: FeatureIrreps  # that enter the layer
    edge_attrs_irreps: FeatureIrreps  # spherical harmonics
    target_irreps: FeatureIrreps  # message
    hidden_irreps: FeatureIrreps  # that leave the layer
    correlation: int
    n_basis: int
    radial_widths: list[int]
    avg_num_neighbors: float
