"""Thin entry points that carry `indm_core` from a laptop to a Ray cluster."""
