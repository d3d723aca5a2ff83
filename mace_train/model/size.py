"""How large a model would be, from its settings alone, before anything is built."""

import os
from collections import Counter

from mace_train.errors import InputError
from mace_train.model.embeddings import count_embedding_weights
from mace_train.model.interactions import INTERACTIONS
from mace_train.model.layer_spec import layer_specs
from mace_train.model.readouts import readout_kinds
from mace_train.settings import ModelSettings

MOST_WEIGHTS = 10**10  # with gradient and moments 160 GB in float32, more than one GPU has
MOST_PATHS = 2000  # of the contraction to one degree; finding independent ones is cubic in it


def check_size(settings: ModelSettings, n_elements: int, n_heads: int) -> None:
    """InputError for a model that no machine, or not this one, could hold or set up."""
    n_paths = max(
        n_contraction_paths(settings.max_ell, order, degree)
        for order in range(1, max(settings.correlations()) + 1)
        for degree in range(settings.max_L + 1)
    )
    if n_paths > MOST_PATHS:
        raise InputError(
            f"model.correlation={settings.correlation} with max_ell={settings.max_ell} and max_L="
            f"{settings.max_L}: {n_paths:.3g} products of features to one degree, at most "
            f"{MOST_PATHS} can be set up (correlation=3, max_ell=3, max_L=1 has 51); lower one"
        )
    n_weights = count_weights(settings, n_elements, n_heads)
    memory = _memory_of_host()
    most = min(MOST_WEIGHTS, memory // 4)
    if n_weights > most:
        raise InputError(
            f"model.num_channels={settings.num_channels} with max_L={settings.max_L}, max_ell="
            f"{settings.max_ell}, radial_MLP={list(settings.radial_MLP)}, MLP_irreps="
            f"{settings.MLP_irreps} and num_interactions={settings.num_interactions}: "
            f"{n_weights:.3g} weights, {4e-9 * n_weights:.3g} GB in float32, at most {most:.3g} "
            f"are possible here ({4e-9 * most:.3g} GB); published models have some 1e6 to 1e7"
        )


def count_weights(settings: ModelSettings, n_elements: int, n_heads: int = 1) -> int:
    """The number of weights of the model, without building it."""
    n_channels, layers = settings.num_channels, layer_specs(settings, n_elements)
    total = n_elements * n_channels  # embedding
    for readout in readout_kinds(settings):
        total += readout.count_weights(n_channels, settings.mlp_width(), n_heads)
    for block, spec in zip(settings.blocks(), layers, strict=True):
        total += INTERACTIONS[block].count_weights(spec)
        n_products = sum(
            n_contraction_paths(spec.target_irreps.l_max, order, degree)
            for order in range(1, spec.correlation + 1)
            for degree in spec.hidden_irreps.degrees
        )
        total += n_products * spec.n_product_elements * n_channels
        total += len(spec.hidden_irreps.degrees) * n_channels**2  # linear of the products
    return total + count_embedding_weights(
        settings.inputs(), n_channels, n_heads, readout=settings.use_embedding_readout
    )


def n_contraction_paths(l_max: int, order: int, l_out: int) -> int:
    """``len(product_basis.paths(l_max, order, l_out))``, without listing them."""
    found = Counter({(degree, (-1) ** degree): 1 for degree in range(l_max + 1)})
    for step in range(2, order + 1):
        reachable = l_out + (order - step) * l_max
        reached: Counter[tuple[int, int]] = Counter()
        for (before, parity), count in found.items():
            for degree in range(l_max + 1):
                new_parity = parity * (-1) ** degree
                for k in range(abs(before - degree), min(before + degree, reachable) + 1):
                    if order < 4 or new_parity == (-1) ** k:
                        reached[k, new_parity] += count
        found = reached
    return found[l_out, (-1) ** l_out]


def _memory_of_host() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
