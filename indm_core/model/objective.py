r"""What the networks of a linear diffusion are trained on: choices that change the loss, not the model.

    nll    every network by the NELBO, the score's loss 1/2 d^T M_t d
    fid    the flow by the NELBO, the score by the variance-weighted loss 1/2 |d|^2

with d = eps_hat - eps (see `diffusion`). The first p steps may train the score alone, as a linear diffusion; the smallest time
may be drawn anew for each batch, tau ~ tau^-k; and the score may predict what the data add to a coordinate of variance v
(see `score`). Of samples with labels each label may be replaced by none, so that the score is also learned without (see
`labels`).

A collage (`indm_core.collage`) also asks for the scores of what pieces share. So that one network learns these too, the score's
loss of a window of the piece is added at each step, of random sides and place, times the ratio of the numbers of dimensions: a
dimension of a window and one of the piece count alike. The noised window of a piece is the noised piece's window, so that it
takes no other draws, and it keeps the piece's label where that was not dropped. The flow is not trained by it.

References:
    Kim, Na, Kwon, Lee, Kang, Moon 2022, "Maximum likelihood training of implicit nonlinear diffusion models", Algorithm 1 and
    section 7.2 (pre-training); Kim, Shin, Song, Kang, Moon 2022, "Soft truncation". Zhang 2023 (thesis), section 4.5.1 (one
    network for pieces and what they share).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from indm_core.ranges import check_count, check_not_negative

__all__ = ["Mode", "Objective"]

Mode = Literal["nll", "fid"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the networks are trained on.

    Args:
        mode: nll trains every network by the NELBO; fid weights the score's loss by the variance.
        pretrain_steps: p, steps at the start in which only the score is trained, as a linear diffusion: the flow of the latent
            rests at the identity.
        soft_truncation: k, the exponent of Soft Truncation, at least 1 (published: 1.2); 0 trains from t_min.
        data_var: v, the variance of a coordinate of the latent, for the score's preconditioning; 0 for none, as published.
        label_dropout: Probability of a label to be replaced by none in training; 0 never, and then there is no score without
            labels for guidance. Without labels it means nothing.
        smallest_window: Smallest sides of windows that the score is trained on too, one for each axis but the channels: (8, 4)
            of images of 8 x 16 gives windows of the whole height, 4 to 16 wide; () trains on whole pieces alone.
        window_step: Windows' sides and places are multiples of it, for data that are aligned in cells.

    Raises:
        ValueError: another mode, a window or step below 1, a negative number, no probability, or an exponent between 0 and 1.

    References:
        Kim et al. 2022 (INDM), Algorithm 1 and section 7.2; Kim et al. 2022 (Soft Truncation).
    """

    mode: Mode = "nll"
    pretrain_steps: int = 0
    soft_truncation: float = 0.0
    data_var: float = 0.0
    label_dropout: float = 0.1
    smallest_window: tuple[int, ...] = ()
    window_step: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("nll", "fid"):
            raise ValueError(f"mode={self.mode!r} is neither 'nll' nor 'fid'")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout={self.label_dropout} must lie in [0, 1]: it is a probability")
        check_count(
            window_step=self.window_step, **{f"smallest_window[{i}]": n for i, n in enumerate(self.smallest_window)}
        )
        check_not_negative(pretrain_steps=self.pretrain_steps, data_var=self.data_var)
        if self.soft_truncation and not 1 <= self.soft_truncation < math.inf:
            raise ValueError(f"soft_truncation={self.soft_truncation} must be at least 1 and finite, or 0 for none")
