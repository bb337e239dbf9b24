"""Canvases of a run: how they are laid out (`layout`)."""
