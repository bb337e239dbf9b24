"""Backbones: the networks inside a score model, a drift or a control.

A backbone is an `nn.Module` called as

    out = backbone(x, t, y=None)          out like x

    x   images (b, c, h, w), sequences (b, c, l) or vectors (b, d): the state as a network sees it, `sde.to_network(u)`
    t   times (b,), of any float type; float64 is best, since only the time embedding reads it, in float64
    y   labels (b,), integers in 0 .. num_classes - 1, or -1 for a sample without a label; or weights (b, num_classes + 1) over
        none and the classes; None: no sample has one

It is made for one shape of x. It treats the rows of a batch independently (no statistics over a batch), begins at out
~ 0, and knows no SDE: what it needs of one, the time feature s = time_feature(t), is a function given to its
constructor. It has no notion of score or noise either; `ScoreModel` reads its output as eps.

`UNet` is for images and sequences (see `unet`), `MLP` for vectors (see `mlp`), `DDPMUNet` for weights that others have trained
(see `ddpm`).
"""

from __future__ import annotations

from indm_core.nn.ddpm import DDPMUNet
from indm_core.nn.mlp import MLP
from indm_core.nn.unet import UNet

__all__ = ["MLP", "DDPMUNet", "UNet"]
