"""Errors, plots and predictions of a trained model."""
