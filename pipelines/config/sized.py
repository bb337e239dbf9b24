"""A model whose networks follow from the data and one dial, for data that no recipe was made for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

from indm_core.model import GenerativeModel, Objective
from indm_core.sde import VP, LinearSDE
from pipelines.config.flows import FlowConfig, IdentityConfig, ResFlowConfig
from pipelines.config.models import INDMConfig, ModelConfig
from pipelines.config.networks import BackboneConfig, MLPConfig, UNetConfig
from pipelines.data.spec import DataSpec

__all__ = ["SizedINDMConfig"]

SMALLEST_SIDE = 4
"""Of the coarsest level of a U-Net."""


class _Size(NamedTuple):
    """Widths and depths: of the U-Net, of the MLP, and of the flow on images and on vectors."""

    nf: int
    num_res_blocks: int
    attention: bool
    width: int
    depth: int
    blocks: int
    channels: int
    units: int


SIZES = {
    "small": _Size(nf=32, num_res_blocks=1, attention=False, width=128, depth=3, blocks=4, channels=32, units=64),
    "medium": _Size(nf=64, num_res_blocks=2, attention=True, width=256, depth=4, blocks=8, channels=128, units=128),
    "large": _Size(nf=128, num_res_blocks=4, attention=True, width=512, depth=6, blocks=16, channels=512, units=256),
}
"""Large is the size of the published networks for CIFAR-10."""


@final
@dataclass(frozen=True, kw_only=True)
class SizedINDMConfig(ModelConfig):
    """INDM, or the linear diffusion that it generalises, with networks for the data's shape: a U-Net with as many levels as the
    sides can be halved, or an MLP; a residual flow at half the side, or of vectors.

    Args:
        size_of_model: small (two cores), medium (one GPU) or large (the published networks).
        flow: Whether there is one; without it this is the linear diffusion.
        sde: The diffusion in the latent.
        objective: What the networks are trained on.
    """

    size_of_model: Literal["small", "medium", "large"] = "small"
    flow: bool = True
    sde: LinearSDE = field(default_factory=VP)
    objective: Objective = field(default_factory=Objective)

    @property
    def shared_steps(self) -> int:
        return self.objective.pretrain_steps if self.flow else 0

    @property
    def needs_partner(self) -> bool:
        return False

    def check_steps(self, steps: int) -> None:
        pass  # pre-training alone is a linear diffusion

    def build(self, spec: DataSpec) -> GenerativeModel:
        return self.for_shape(spec.shape).build(spec)

    def for_shape(self, shape: tuple[int, ...]) -> INDMConfig:
        """The same with every size written out."""
        size = SIZES[self.size_of_model]
        backbone = _unet(shape, size) if len(shape) > 1 else MLPConfig(width=size.width, depth=size.depth)
        flow = _flow(shape, size) if self.flow else IdentityConfig()
        options = {"sde": self.sde, "objective": self.objective, "conditional": self.conditional}
        return INDMConfig(flow=flow, backbone=backbone, **options)


def _unet(shape: tuple[int, ...], size: _Size) -> BackboneConfig:
    shortest, levels = min(shape[1:]), 1
    while levels < 4 and not any(n % (1 << levels) for n in shape[1:]) and shortest >> levels >= SMALLEST_SIDE:
        levels += 1
    sides = [shape[1] >> level for level in range(levels)]
    attended = tuple(side for side in sides if side <= 16)[:1] if size.attention else ()
    ch_mult = (1, 2, 2, 2)[:levels]
    return UNetConfig(
        nf=size.nf,
        ch_mult=ch_mult,
        num_res_blocks=size.num_res_blocks,
        attention=attended,
        dropout=0.0,
        time="log-snr",
    )


def _flow(shape: tuple[int, ...], size: _Size) -> FlowConfig:
    if len(shape) == 1:
        return ResFlowConfig(blocks=(size.blocks,), width=size.units, constraint="spectral", actnorm="channel")
    halved = not any(n % 2 for n in shape[1:])
    blocks = (0, size.blocks) if halved else (size.blocks,)
    return ResFlowConfig(blocks=blocks, width=size.channels, constraint="spectral", actnorm="pixel")
