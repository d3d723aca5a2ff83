"""How large a model would be, from its settings alone, before anything is built."""

import os
from collections import Counter
from itertools import pairwise

from mace_train.errors import InputError
from mace_train.model.coupling import convolution_paths
from mace_train.model.embeddings import count_embedding_weights
from mace_train.settings import ModelSettings
from mace_train.settings.learning import DENSITY_BLOCKS, RESIDUAL_BLOCKS

MOST_WEIGHTS = 10**10  # with gradient and moments 160 GB in float32, more than one GPU has
MOST_PATHS = 2000  # of the contraction to one degree; finding independent ones is cubic in it


def check_size(settings: ModelSettings, n_elements: int, n_heads: int) -> None:
    """InputError for a model that no machine, or not this one, could hold or set up."""
    n_paths = max(
        n_contraction_paths(settings.max_ell, order, degree)
        for order in range(1, settings.correlation + 1)
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
    n_channels, max_ell = settings.num_channels, settings.max_ell
    square, n_layers = n_channels**2, settings.num_interactions
    total = n_elements * n_channels  # embedding
    for layer, block in enumerate(settings.blocks()):
        is_first, is_last = layer == 0, layer == n_layers - 1
        l_in, l_out = 0 if is_first else settings.max_L, 0 if is_last else settings.max_L
        n_paths = len(convolution_paths(l_in, max_ell))
        widths = [settings.num_radial_basis, *settings.radial_MLP, n_paths * n_channels]
        total += (l_in + 1) * square  # linear_up
        total += sum(a * b for a, b in pairwise(widths))
        total += n_paths * square  # linear
        l_skip = min(l_in, l_out) if block in RESIDUAL_BLOCKS else max_ell
        total += (l_skip + 1) * n_elements * square  # skip_tp
        total += settings.num_radial_basis if block in DENSITY_BLOCKS else 0
        n_products = sum(
            n_contraction_paths(max_ell, order, degree)
            for order in range(1, settings.correlation + 1)
            for degree in range(l_out + 1)
        )
        total += n_products * n_elements * n_channels
        total += (l_out + 1) * square  # linear of the products
        is_linear = is_first or not is_last
        hidden = settings.mlp_width() * n_heads
        total += n_channels * n_heads if is_linear else n_channels * hidden + hidden * n_heads
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
