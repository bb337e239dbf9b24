"""Canvases of a run: how they are laid out (`layout`) and what is known of them (`conditions`, `known`), made of the model
(`canvases`), drawn (`run`, with what `watch` tells meanwhile) by one process or several (`chunks`, `spread`), and measured
(`tasks`).
"""
