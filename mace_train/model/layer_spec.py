"""What a layer of MACE needs to know of the architecture."""

from dataclasses import dataclass

from mace_train.irreps import FeatureIrreps
from mace_train.settings import ModelSettings


@dataclass(frozen=True)
class LayerSpec:
    """Sizes of one layer, by mace-torch's names where it has one."""

    n_elements: int
    node_feats_irreps: FeatureIrreps  # that enter the layer
    edge_irreps: FeatureIrreps  # that are sent along edges
    edge_attrs_irreps: FeatureIrreps  # spherical harmonics
    target_irreps: FeatureIrreps  # message
    hidden_irreps: FeatureIrreps  # that leave the layer
    correlation: int
    use_agnostic_product: bool
    n_basis: int
    radial_widths: list[int]
    avg_num_neighbors: float

    @property
    def n_product_elements(self) -> int:
        """Elements whose weights of the contraction differ."""
        return 1 if self.use_agnostic_product else self.n_elements


def layer_specs(
    settings: ModelSettings, n_elements: int, avg_num_neighbors: float = 1.0
) -> list[LayerSpec]:
    """The sizes of all layers."""
    n_channels, n_layers = settings.num_channels, settings.num_interactions

    def spec(layer: int) -> LayerSpec:
        l_in, l_out = settings.max_L, settings.max_L
        if layer == 0:
            l_in = 0
        if layer == n_layers - 1 and not (settings.keep_last_layer_irreps and layer > 0):
            l_out = 0
        return LayerSpec(
            n_elements=n_elements,
            node_feats_irreps=FeatureIrreps(n_channels, l_in),
            edge_irreps=settings.irreps_of_edges(layer),
            edge_attrs_irreps=FeatureIrreps(1, settings.max_ell),
            target_irreps=FeatureIrreps(n_channels, settings.max_ell),
            hidden_irreps=FeatureIrreps(n_channels, l_out),
            correlation=settings.correlations()[layer],
            use_agnostic_product=settings.use_agnostic_product,
            n_basis=settings.num_radial_basis,
            radial_widths=settings.radial_MLP,
            avg_num_neighbors=avg_num_neighbors,
        )

    return [spec(layer) for layer in range(n_layers)]
