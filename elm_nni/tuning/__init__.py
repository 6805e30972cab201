"""Optuna around a run and around NNI."""
