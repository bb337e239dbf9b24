"""Sweeps: many trainings of a recipe that differ in what is searched, on one Ray cluster."""
