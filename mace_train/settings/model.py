"""Settings of the architecture."""

from dataclasses import dataclass
from typing import Any

from mace_train.checks import check_at_least, check_choice
from mace_train.errors import InputError
from mace_train.irreps import MOST_CHANNELS, FeatureIrreps, count_scalars
from mace_train.settings.inputs import InputSpec, checked_specs, input_specs
from mace_train.settings.ranges import CUTOFF, Range, bounded, check_ranges

RADIAL_TYPES = ("bessel", "gaussian")
GATES = ("silu", "tanh", "abs", "None")
READOUTS = ("NonLinearReadoutBlock", "NonLinearBiasReadoutBlock")
DISTANCE_TRANSFORMS = ("None", "Agnesi", "Soft")
RESIDUAL = "RealAgnosticResidualInteractionBlock"
AGNOSTIC = "RealAgnosticInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
ATTENTION = "RealAgnosticAttResidualInteractionBlock"
INTERACTION_BLOCKS = (RESIDUAL, AGNOSTIC, DENSITY_RESIDUAL, DENSITY, NONLINEAR, ATTENTION)
DEFAULT_RADIAL_MLP = (64, 64, 64)
_WIDTH = Range(1, MOST_CHANNELS, reason="published models have up to 512")
_MOST_LAYERS = 100  # of the radial network
_DEGREE = "e3nn has coupling coefficients up to degree 11"


@dataclass(kw_only=True)
class ModelSettings:
    """Architecture of MACE (arXiv 2206.07697), with mace-torch's names."""

    model: str = "ScaleShiftMACE"
    """ScaleShiftMACE, or MACE: agnostic first block and no shift, as in mace-torch."""
    interaction: str = RESIDUAL
    """Interaction block of all layers but the first: RealAgnosticResidualInteractionBlock,
    RealAgnosticInteractionBlock; RealAgnosticDensityResidualInteractionBlock,
    RealAgnosticDensityInteractionBlock, which divide messages by a learned density;
    RealAgnosticResidualNonLinearInteractionBlock, whose weights know both elements, and
    RealAgnosticAttResidualInteractionBlock, whose weights know the features of both atoms (these
    two need apply_cutoff=false, or energies jump at the cutoff)."""
    interaction_first: str | None = None
    """That of the first layer; null: RealAgnosticInteractionBlock for model=MACE, else
    RealAgnosticResidualInteractionBlock."""
    r_max: float | None = bounded(None, CUTOFF)
    """Cutoff radius, Å; null takes the one of the shards, another value is an error."""
    num_channels: int = bounded(128, _WIDTH)
    """Channels of every irrep of the node features."""
    max_L: int = bounded(1, Range(0, 11, reason=_DEGREE))
    """Highest degree of the node features that are passed between layers."""
    hidden_irreps: str | None = None
    """Both in e3nn's notation, such as 128x0e+128x1o, in place of num_channels and max_L."""
    edge_irreps: str | None = None
    """Features that are sent along edges in all layers but the first, such as 128x0e+128x1o: fewer
    channels or degrees than hidden_irreps make edges cheap, more are taken with a warning; null:
    the same."""
    use_edge_irreps_first: bool = False
    """Send as many channels in the first layer as edge_irreps says, too."""
    use_agnostic_product: bool = False
    """The weights of the symmetric contraction do not depend on the element."""
    max_ell: int = bounded(3, Range(1, 11, reason=_DEGREE))
    """Highest degree of the spherical harmonics."""
    correlation: Any = bounded(
        3, Range(1, 10, reason="published models have 3; the cost grows exponentially")
    )
    """Order of the symmetric contraction (body order minus one); a list has one for each layer,
    such as [3, 2]."""
    num_interactions: int = bounded(2, Range(1, 100, reason="published models have 2"))
    """Message-passing layers."""
    keep_last_layer_irreps: bool = False
    """Keep features of all degrees in the last layer: descriptors have them, energies do not."""
    radial_type: str = "bessel"
    """Radial basis: bessel or gaussian (mace-torch's chebyshev gives no forces, there either)."""
    num_radial_basis: int = bounded(8, Range(1, 1024, reason="published models have 8 to 10"))
    """Functions of the radial basis."""
    num_cutoff_basis: int = bounded(
        5, Range(2, 100, reason="published models have 5; forces are continuous from 2 on")
    )
    """Exponent p of the polynomial cutoff."""
    apply_cutoff: bool = True
    """Multiply the radial basis by the cutoff; false: what the radial network makes of it."""
    radial_MLP: list[int] = bounded([*DEFAULT_RADIAL_MLP], _WIDTH)
    """Hidden widths of the radial network (RealAgnosticAttResidualInteractionBlock has its own)."""
    distance_transform: str = "None"
    """Transform of the lengths that the radial basis sees: None, Agnesi or Soft."""
    pair_repulsion: bool = False
    """Add the repulsion of Ziegler, Biersack and Littmark (ZBL), scaled as all the rest."""
    readout_cls: str = "NonLinearReadoutBlock"
    """Last readout, of models with more than one layer: NonLinearReadoutBlock (two maps), or
    NonLinearBiasReadoutBlock (three maps, the last two with biases)."""
    MLP_irreps: str = "16x0e"
    """Hidden scalars of the last readout."""
    gate: str = "silu"
    """Nonlinear function of the last readout: silu, tanh, abs or None."""
    use_last_readout_only: bool = False
    """Read energies from the last layer alone."""
    scaling: str = "rms_forces_scaling"
    """Scale of the interaction energy: rms_forces_scaling, std_scaling or no_scaling."""
    embedding_specs: Any = None
    """Inputs beside the geometry, as in mace-torch, such as '{total_charge: {type: categorical,
    per: graph, num_classes: 21, offset: 10, emb_dim: 64}, temperature: {type: continuous,
    per: graph, in_dim: 1, emb_dim: 32}}'; data.info_keys reads them."""
    use_embedding_readout: bool = False
    """Add an energy that depends on the element and these inputs alone."""

    def __post_init__(self) -> None:
        check_choice("model.model", self.model, ("ScaleShiftMACE", "MACE"))
        check_choice(
            "model.scaling", self.scaling, ("rms_forces_scaling", "std_scaling", "no_scaling")
        )
        check_choice("model.distance_transform", self.distance_transform, DISTANCE_TRANSFORMS)
        check_choice("model.radial_type", self.radial_type, RADIAL_TYPES)
        check_choice("model.gate", self.gate, GATES)
        check_choice("model.readout_cls", self.readout_cls, READOUTS)
        self._check_interactions()
        self._take_hidden_irreps()
        self._check_edge_irreps()
        self.embedding_specs = checked_specs(self.embedding_specs, self.use_embedding_readout)
        check_ranges(self, "model.")
        self._check_correlation()
        check_at_least("model.max_ell", self.max_ell, self.max_L)
        if not 1 <= len(self.radial_MLP) <= _MOST_LAYERS:
            raise InputError(
                f"model.radial_MLP has {len(self.radial_MLP)} widths; give 1 to {_MOST_LAYERS}"
            )
        if self.radial_type == "gaussian" and self.num_radial_basis < 2:
            raise InputError("model.num_radial_basis=1: radial_type=gaussian takes at least 2")
        if self.use_last_readout_only and self.num_interactions == 1:
            raise InputError(
                "model.use_last_readout_only=true: a model of one layer has no other readout (and "
                "mace-torch's would have none at all); set it to false, or num_interactions to 2"
            )
        self.MLP_irreps = f"{self.mlp_width()}x0e"  # however it was written

    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs beside the geometry."""
        return input_specs(self.embedding_specs)

    def correlations(self) -> list[int]:
        """The order of the contraction of every layer."""
        if isinstance(self.correlation, list):
            return list(self.correlation)
        return [self.correlation] * self.num_interactions

    def _check_correlation(self) -> None:
        """InputError unless it is a number, or one for each layer; equal ones become one."""
        by_layer = isinstance(self.correlation, list)
        given = self.correlation if by_layer else [self.correlation]
        right_number = len(given) == self.num_interactions or not by_layer
        if not right_number or not all(type(order) is int for order in given):
            raise InputError(
                f"model.correlation={self.correlation!r} must be a number without fraction, or a "
                f"list of one for each of the {self.num_interactions} layers, such as 3 or [3, 2]"
            )
        if len(set(given)) == 1:
            self.correlation = given[0]

    def blocks(self) -> list[str]:
        """The names of the interaction blocks of all layers."""
        first = self.interaction_first or (AGNOSTIC if self.model == "MACE" else RESIDUAL)
        return [first] + [self.interaction] * (self.num_interactions - 1)

    def _check_interactions(self) -> None:
        """InputError for unknown blocks; equal models get equal settings."""
        check_choice("model.interaction", self.interaction, INTERACTION_BLOCKS)
        if self.interaction_first is None:
            return
        check_choice("model.interaction_first", self.interaction_first, INTERACTION_BLOCKS)
        if self.model == "MACE" and self.interaction_first not in (AGNOSTIC, DENSITY):
            raise InputError(
                f"model.model=MACE and model.interaction_first={self.interaction_first}: a MACE "
                f"has no residual in its first layer; give {AGNOSTIC} or {DENSITY}, or "
                "model.model=ScaleShiftMACE"
            )
        if self.interaction_first == (AGNOSTIC if self.model == "MACE" else RESIDUAL):
            self.interaction_first = None

    def _check_edge_irreps(self) -> None:
        """InputError for those that no layer can send; equal models get equal settings."""
        if self.edge_irreps is None:
            if self.use_edge_irreps_first:
                raise InputError("model.use_edge_irreps_first=true: give model.edge_irreps too")
            return
        irreps = FeatureIrreps.parse(self.edge_irreps, "model.edge_irreps")
        if irreps.l_max > self.max_L and self.num_interactions > 1:
            raise InputError(
                f"model.edge_irreps={self.edge_irreps!r}: degree {irreps.l_max}, but features have "
                f"degrees up to max_L={self.max_L}; leave out the higher ones"
            )
        self.edge_irreps = str(irreps)
        if irreps == FeatureIrreps(self.num_channels, self.max_L):
            self.edge_irreps, self.use_edge_irreps_first = None, False

    def irreps_of_edges(self, layer: int) -> FeatureIrreps:
        """The features that layer number ``layer`` sends along edges."""
        nodes = FeatureIrreps(self.num_channels, self.max_L if layer > 0 else 0)
        if self.edge_irreps is None or (layer == 0 and not self.use_edge_irreps_first):
            return nodes
        edges = FeatureIrreps.parse(self.edge_irreps, "model.edge_irreps")
        return FeatureIrreps(edges.mul, min(edges.l_max, nodes.l_max))

    def mlp_width(self) -> int:
        """The number of hidden scalars that MLP_irreps names."""
        return count_scalars(self.MLP_irreps, "model.MLP_irreps")

    def _take_hidden_irreps(self) -> None:
        """Set num_channels and max_L by hidden_irreps; InputError if they say something else.

        After that hidden_irreps is None: equal models have equal settings, however they were
        written, and ``dataclasses.replace`` may change either number.
        """
        if self.hidden_irreps is None:
            return
        irreps = FeatureIrreps.parse(self.hidden_irreps, "model.hidden_irreps")
        for name, value in (("num_channels", irreps.mul), ("max_L", irreps.l_max)):
            given, default = getattr(self, name), ModelSettings.__dataclass_fields__[name].default
            if given not in (value, default):
                raise InputError(
                    f"model.hidden_irreps={self.hidden_irreps!r}, but model.{name}={given}; give "
                    "hidden_irreps, or num_channels and max_L (which model=tiny, small and large "
                    "set; model=medium leaves them to hidden_irreps)"
                )
            setattr(self, name, value)
        self.hidden_irreps = None
