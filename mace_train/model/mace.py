"""MACE: energies of atoms from the edges of a graph (arXiv 2206.07697).

    h_0 = embedding(element);   for t = 1..T:  m_t, skip_t = interaction_t(h_(t-1), edges)
                                               h_t = product_t(m_t) + skip_t
    E_n = scale * sum_t readout_t(h_t)_n + shift

A model may have several heads, one for each level of theory of its data: they share all layers but
the readouts, and have scale, shift and E0s of their own; the head of its structure says which
output an atom takes.

Readouts are those of ``readouts``; the last layer carries scalars only (or features that no readout
sees). The interactions are of the kinds that the settings name; "MACE" has
a non-residual first one (and is trained with shift 0).

Parameters have the names, shapes and initial distributions of mace-torch; the state dict holds
nothing else. Energies of isolated atoms stay in float64 whatever the model is cast to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor, nn

from mace_train.checks import is_number
from mace_train.errors import InputError
from mace_train.irreps import FeatureIrreps
from mace_train.model.batch_index import BatchIndex
from mace_train.model.blocks import NodeEmbedding, ProductBlock
from mace_train.model.constant import ConstantTensor
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.embeddings import JointEmbedding
from mace_train.model.interactions import INTERACTIONS, InteractionBlock
from mace_train.model.layer_spec import layer_specs
from mace_train.model.matmul_precision import MatmulModule
from mace_train.model.pair_repulsion import TRANSFORMS, PairRepulsion
from mace_train.model.radial import RadialBasis
from mace_train.model.readouts import LinearReadout, make_readouts
from mace_train.model.size import check_size
from mace_train.model.spherical_harmonics import SphericalHarmonics
from mace_train.ops.backends import backend_of
from mace_train.settings import ModelSettings


@dataclass(frozen=True)
class Head:
    """What a model takes from the training data of one level of theory."""

    E0s: tuple[float, ...]  # eV, of each of the model's atomic_numbers
    scale: float  # eV
    shift: float  # eV per atom; 0 when the "MACE" flavour is trained, as in mace-torch
    name: str = "Default"


@dataclass(frozen=True)
class ModelData:
    """What a model takes from the training data."""

    r_max: float  # Å
    atomic_numbers: tuple[int, ...]  # ascending
    avg_num_neighbors: float
    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        numbers = self.atomic_numbers
        if not numbers or list(numbers) != sorted(set(numbers)):
            raise InputError(f"atomic_numbers={numbers} must be ascending, without repeats")
        for head in self.heads:
            if len(head.E0s) != len(numbers):
                n_E0s = len(head.E0s)
                raise InputError(f"{n_E0s} E0s for {len(numbers)} elements: give one of each")
            for value in (*head.E0s, head.scale, head.shift):
                if not is_number(value):
                    raise InputError(
                        f"head {head.name}: E0s, scale or shift has {value!r}; they must be finite "
                        "numbers"
                    )
        names = self.head_names
        if not names or len(set(names)) < len(names):
            raise InputError(f"heads {list(names)}: at least one, each with a name of its own")
        if self.r_max <= 0 or self.avg_num_neighbors <= 0:
            raise InputError(
                f"r_max={self.r_max} and avg_num_neighbors={self.avg_num_neighbors} must be "
                "positive; is there any structure with neighbours?"
            )

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads, in their order."""
        return tuple(head.name for head in self.heads)

    def check_elements(self, numbers: NDArray[np.int64], source: str) -> None:
        """InputError that names ``source`` if it has an element that the model does not know."""
        unknown = sorted(set(numbers.tolist()) - set(self.atomic_numbers))
        if unknown:
            symbols = ", ".join(f"{chemical_symbols[z]} ({z})" for z in unknown)
            known = ", ".join(chemical_symbols[z] for z in self.atomic_numbers)
            raise InputError(
                f"{source}: the model does not know {symbols}, only {known}; remove the structure, "
                "or use a model that was trained on data with this element"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelData":
        """From JSON; files of models with one head had no list of heads once."""
        data = dict(data)
        if "heads" not in data:
            data["heads"] = [{name: data.pop(name) for name in ("E0s", "scale", "shift")}]
        heads = tuple(Head(**{**head, "E0s": tuple(head["E0s"])}) for head in data.pop("heads"))
        return cls(**{**data, "atomic_numbers": tuple(data["atomic_numbers"])}, heads=heads)


class MACE(nn.Module):
    """The model; see the module's docstring.

    >>> heads = (Head(E0s=(-13.6, -432.5), scale=1.0, shift=0.0),)
    >>> data = ModelData(r_max=4.0, atomic_numbers=(1, 8), avg_num_neighbors=2.0, heads=heads)
    >>> settings = ModelSettings(num_channels=4, max_L=1, max_ell=2, correlation=2, radial_MLP=[8])
    >>> model = MACE(settings, data, kernels="reference")
    >>> vectors = torch.tensor([[0.0, 0.0, 0.96], [0.0, 0.0, -0.96]])  # O -> H and back, Å
    >>> energies = model(
    ...     vectors,
    ...     elements=torch.tensor([1, 0]),  # index into atomic_numbers: O, H
    ...     senders=torch.tensor([1, 0]),
    ...     receivers=torch.tensor([0, 1]),
    ... )
    >>> energies.shape  # of both atoms, eV, above isolated atoms
    torch.Size([2])
    """

    def __init__(self, settings: ModelSettings, data: ModelData, kernels: str = "auto") -> None:
        super().__init__()
        if settings.r_max is not None and settings.r_max != data.r_max:
            raise InputError(
                f"model.r_max={settings.r_max}, but the data were preprocessed with r_max="
                f"{data.r_max}; preprocess again, or leave model.r_max null"
            )
        check_size(settings, len(data.atomic_numbers), len(data.heads))
        self.settings = settings
        self.data = data
        self.kernels = kernels  # auto, or the name of a backend
        self.static_shapes = False  # of all that is computed, given the sizes of a batch
        # float64 bits in an integer buffer: casting the model to float32 leaves them alone
        E0s = torch.tensor([head.E0s for head in data.heads], dtype=torch.float64)
        self.register_buffer("_E0_bits", E0s.view(torch.int64), persistent=False)
        self._scale = ConstantTensor(np.array([head.scale for head in data.heads]))
        self._shift = ConstantTensor(np.array([head.shift for head in data.heads]))
        n_elements, n_heads = len(data.atomic_numbers), len(data.heads)
        self._harmonics = SphericalHarmonics(settings.max_ell)
        degrees = np.arange(settings.max_ell + 1)
        self._parity = ConstantTensor(np.repeat((-1.0) ** degrees, 2 * degrees + 1))
        self._radial = RadialBasis(
            data.r_max,
            settings.num_radial_basis,
            settings.num_cutoff_basis,
            settings.radial_type,
            apply_cutoff=settings.apply_cutoff,
        )
        transform = TRANSFORMS[settings.distance_transform]
        self._transform = None if transform is None else transform(data.atomic_numbers)
        self._repulsion = (
            PairRepulsion(data.atomic_numbers, settings.num_cutoff_basis)
            if settings.pair_repulsion
            else None
        )
        self.node_embedding = NodeEmbedding(n_elements, settings.num_channels)
        self.inputs = settings.inputs()  # beside the geometry
        self.joint_embedding = self.embedding_readout = None
        if self.inputs:
            self.joint_embedding = JointEmbedding(self.inputs, settings.num_channels)
        if settings.use_embedding_readout:
            self.embedding_readout = LinearReadout(settings.num_channels, n_heads)
        layers = layer_specs(settings, n_elements, data.avg_num_neighbors)
        kinds = [INTERACTIONS[name] for name in settings.blocks()]
        self.interactions = nn.ModuleList(
            kind(spec) for kind, spec in zip(kinds, layers, strict=True)
        )
        self._needs_edge_ends = (
            self._transform is not None
            or self._repulsion is not None
            or any(kind.needs_edge_ends for kind in kinds)
        )
        self._shared_weights = max(kind.shared_weights for kind in kinds)
        self.products = nn.ModuleList(ProductBlock(spec) for spec in layers)
        self.readouts = make_readouts(settings, n_heads)

    @property
    def E0s(self) -> Tensor:
        """Energies [n_heads, n_elements] of isolated atoms, float64, eV."""
        bits = self._E0_bits
        assert isinstance(bits, Tensor)
        return bits.view(torch.float64)

    def extra_repr(self) -> str:
        """Irreps of the features, and what the data said."""
        settings, data = self.settings, self.data
        elements = ", ".join(chemical_symbols[z] for z in data.atomic_numbers)
        n_weights = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"hidden_irreps={FeatureIrreps(settings.num_channels, settings.max_L)}, "
            f"edge_attrs_irreps={FeatureIrreps(1, settings.max_ell)}, r_max={data.r_max} Å, "
            f"elements=[{elements}], heads={list(data.head_names)} | {n_weights} weights"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and features."""
        return self.node_embedding.linear.weight.dtype

    def set_matmul_dtype(self, dtype: torch.dtype | None) -> None:
        """Take the products of all layers but the readouts in a type (None: the model's)."""
        for layer in (self.interactions, self.products):
            for module in layer.modules():
                if isinstance(module, MatmulModule):
                    module.matmul_dtype = dtype

    def checkpoint_activations(self, on: bool) -> None:
        """Whether what is made per edge is computed again in every pass instead of kept."""
        for interaction in self.interactions:
            assert isinstance(interaction, InteractionBlock)
            interaction.checkpointing = on

    def forward(
        self,
        vectors: Tensor,
        elements: Tensor,
        senders: Tensor | None = None,
        receivers: Tensor | None = None,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
        heads: Tensor | None = None,
        index: BatchIndex | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Interaction energies [n_atoms], eV, without those of isolated atoms.

        Takes edge vectors [n_edges, 3] (Å, sender to receiver, in the model's dtype), elements
        [n_atoms], senders and receivers [n_edges], int64; receivers ascending. With pairs (see
        ``Graph``) only the vector of the first edge of each pair is used, unless the model tells
        that edge from its reverse; without them, all are.
        ``heads`` [n_atoms] int64 is needed if the model has several. In place of all of these but
        the first two there may be an ``index`` that ``batch_index`` has made of them. ``inputs``
        [n_atoms, n_inputs] (see ``Graph``) are needed if the model has any.
        """
        if index is None:
            if senders is None or receivers is None:
                raise ValueError("give senders and receivers of the edges, or an index")
            index = self.batch_index(elements, senders, receivers, pairs, first_of_pair, heads)
        return self.energies(vectors, elements, index, inputs)

    def batch_index(
        self,
        elements: Tensor,
        senders: Tensor,
        receivers: Tensor,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
        heads: Tensor | None = None,
    ) -> BatchIndex:
        """What ``energies`` needs to know of a batch, and the backend that computes it.

        Raises ValueError without the heads of a model that has several.
        """
        if len(self.data.heads) == 1:
            heads = None
        elif heads is None:
            raise ValueError(f"heads [n_atoms]: which of {', '.join(self.data.head_names)}?")
        return BatchIndex.of(
            backend_of(self.kernels, elements.device),
            elements,
            senders,
            receivers,
            pairs,
            first_of_pair,
            n_elements=len(self.data.atomic_numbers),
            heads=heads,
            edge_ends=self._needs_edge_ends,
            shared_weights=self._shared_weights,
            agnostic_product=self.settings.use_agnostic_product,
            static_shapes=self.static_shapes,
        )

    def energies(
        self, vectors: Tensor, elements: Tensor, index: BatchIndex, inputs: Tensor | None = None
    ) -> Tensor:
        """What ``forward`` gives, from a ready index: operations on tensors alone, to be traced.

        Hooks on the model do not run; ``predict``, and so training, calls the model itself.
        """
        assert vectors.dtype == self.dtype, f"vectors are {vectors.dtype}, model {self.dtype}"
        edges, repulsion = self._edges(vectors, elements, index)
        x = self.node_embedding(index)
        energies = torch.zeros_like(x[:, 0, 0]) if repulsion is None else repulsion
        head = self._head_one_hot(index.heads, x)
        of_inputs = None
        if self.joint_embedding is not None:
            if inputs is None or inputs.shape[1] != len(self.inputs):
                names = ", ".join(spec.name for spec in self.inputs)
                raise ValueError(f"inputs [n_atoms, {len(self.inputs)}]: give {names}")
            x = x + self.joint_embedding(inputs, index)
            if self.embedding_readout is not None:
                of_inputs = self.embedding_readout(x, head, index.backend)
        n_without = len(self.interactions) - len(self.readouts)  # layers without a readout
        for layer, (interaction, product) in enumerate(
            zip(self.interactions, self.products, strict=True)
        ):
            message, skip = interaction(x, edges, index)
            x = product(message, skip, index)
            if layer >= n_without:
                energies = energies + self.readouts[layer - n_without](x, head, index.backend)
        if head is None:
            energies = self.data.heads[0].scale * energies + self.data.heads[0].shift
        else:
            scale, shift = (table.like(x) for table in (self._scale, self._shift))
            energies = (head * scale).sum(1) * energies + (head * shift).sum(1)
        return energies if of_inputs is None else energies + of_inputs

    def _head_one_hot(self, heads: Tensor | None, like: Tensor) -> Tensor | None:
        """1 at the head of each atom [n_atoms, n_heads]: sums over it need no order of adding."""
        if heads is None:
            return None
        every = torch.arange(len(self.data.heads), device=heads.device)
        return (heads.unsqueeze(1) == every).to(like.dtype)

    def _edges(
        self, vectors: Tensor, elements: Tensor, index: BatchIndex
    ) -> tuple[EdgeFeatures, Tensor | None]:
        """What depends on the edges alone, per pair; and the repulsion [n_atoms], if there is one.

        Y_l(-v) = (-1)^l Y_l(v) for the reverse.
        """
        rows = index.edge_rows
        vectors = vectors.index_select(0, rows.first_of_pair)
        lengths = vectors.square().sum(1).sqrt()
        of_pairs = torch.cat(self._harmonics(vectors / lengths.unsqueeze(1)), dim=1)
        is_reverse = rows.is_reverse().unsqueeze(1)
        signs = torch.where(is_reverse, self._parity.like(of_pairs), 1.0)
        transformed = repulsion = None
        if self._transform is not None or self._repulsion is not None:
            assert index.ends is not None
            species = index.ends.species(elements, len(self.data.atomic_numbers))
            if self._transform is not None:
                transformed = self._transform(lengths, species)
            if self._repulsion is not None:
                repulsion = self._repulsion(
                    lengths, species, index.ends, elements.shape[0], index.backend.sum_rows
                )
        radial, cutoff = self._radial(lengths, transformed)
        if index.blocks is not None:  # one row more, of zeros, for the empty slots
            of_pairs = torch.nn.functional.pad(of_pairs, (0, 0, 0, 1))
        harmonics = of_pairs.index_select(0, rows.pairs) * signs
        return EdgeFeatures(harmonics, radial, cutoff), repulsion
