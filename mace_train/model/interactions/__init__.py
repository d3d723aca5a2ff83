"""Interaction blocks, by mace-torch's names: messages from neighbours, one file per kind.

    m_n = normalise( linear( sum_{edges e to n} R_e Y_e (x) linear_up(x)[sender of e] ) )

(arXiv 2206.07697, eqs. 8, 9). Kinds differ in what they divide by and in what skips the product.
"""

from mace_train.model.interactions.agnostic import (
    RealAgnosticInteractionBlock,
    RealAgnosticResidualInteractionBlock,
)
from mace_train.model.interactions.attention import RealAgnosticAttResidualInteractionBlock
from mace_train.model.interactions.density import (
    RealAgnosticDensityInteractionBlock,
    RealAgnosticDensityResidualInteractionBlock,
)
from mace_train.model.interactions.interaction import InteractionBlock
from mace_train.model.interactions.nonlinear import (
    RealAgnosticResidualNonLinearInteractionBlock,
)

INTERACTIONS: dict[str, type[InteractionBlock]] = {
    block.__name__: block
    for block in (
        RealAgnosticInteractionBlock,
        RealAgnosticResidualInteractionBlock,
        RealAgnosticDensityInteractionBlock,
        RealAgnosticDensityResidualInteractionBlock,
        RealAgnosticResidualNonLinearInteractionBlock,
        RealAgnosticAttResidualInteractionBlock,
    )
}

__all__ = ["INTERACTIONS", "InteractionBlock"]
