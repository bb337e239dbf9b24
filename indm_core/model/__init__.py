"""Generative models: what trainers, samplers and likelihoods see of one (`base`), and the models.

INDM, Bridge   a flow and a linear diffusion in its latent (`indm`), with what they share with DiNof (`diffusion`)
DiNof          a diffusion that starts from a flow at T_m (`dinof`)
Objective      what the networks of these are trained on (`objective`), and the labels of their scores (`labels`)
DiffFlow       a learned drift and its score (`diffflow`, `retraced`)
FFJORD         a learned drift without noise (`ffjord`)
VAE            a variational autoencoder of binary pictures (`vae`)
"""

from __future__ import annotations

from indm_core.model.base import GenerativeModel, LinearModel, Losses, Node, Trainable
from indm_core.model.diffflow import DiffFlow
from indm_core.model.dinof import DiNof
from indm_core.model.ffjord import FFJORD
from indm_core.model.indm import INDM, Bridge
from indm_core.model.objective import Objective
from indm_core.model.score import ScoreModel
from indm_core.model.vae import VAE, dense_vae

__all__ = [
    "FFJORD",
    "INDM",
    "VAE",
    "Bridge",
    "DiNof",
    "DiffFlow",
    "GenerativeModel",
    "LinearModel",
    "Losses",
    "Node",
    "Objective",
    "ScoreModel",
    "Trainable",
    "dense_vae",
]
