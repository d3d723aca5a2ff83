"""Use of trained models: ASE calculator, batches, Hessians, torch-sim, programs, dynamics."""

from mace_train.calculators.calculator import MACETrainCalculator
from mace_train.calculators.evaluate_structures import evaluate_structures

__all__ = ["MACETrainCalculator", "evaluate_structures"]
