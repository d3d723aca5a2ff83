"""Trained models in use: ASE, torch-sim, exported programs, short dynamics and relaxation.

A checkpoint -> ``models`` (load) -> ``calculator`` or ``evaluate_structures`` -> ``md``, ``relax``.
"""

from mace_train.calculators.calculator import MACETrainCalculator
from mace_train.calculators.evaluate_structures import evaluate_structures

__all__ = ["MACETrainCalculator", "evaluate_structures"]
