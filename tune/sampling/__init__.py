"""Sweeps over samplers of trained models: nothing is trained again."""
