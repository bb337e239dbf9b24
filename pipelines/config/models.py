"""Models as configurations: frozen dataclasses that build what they describe.

A class below `ModelConfig` is a form that a file or the command line may name; adding one is writing it, here or in a file of
one's own (see `modules`), and nothing else has to be changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

from torch import nn

from indm_core.model import FFJORD, INDM, Bridge, DiffFlow, DiNof, GenerativeModel, Objective
from indm_core.sde import VP, LinearSDE
from pipelines.config.flows import FlowConfig, GlowConfig, IdentityConfig, ResFlowConfig
from pipelines.config.networks import BackboneConfig, UNetConfig, network_shape
from pipelines.data.spec import DataSpec

__all__ = [
    "BridgeConfig",
    "DiNofConfig",
    "DiffFlowConfig",
    "DiffusionConfig",
    "FFJORDConfig",
    "INDMConfig",
    "ModelConfig",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """A generative model.

    Args:
        conditional: Whether the score is given the labels of the data: the model is one of p(x | label).
    """

    conditional: bool = False

    def num_classes(self, spec: DataSpec) -> int:
        """The classes that the score is given; 0 for none.

        Raises:
            ValueError: data without labels.
        """
        if self.conditional and not spec.num_classes:
            raise ValueError(
                f"conditional=True: {spec.name} has no labels; prepare data that have, or give --conditional false"
            )
        return spec.num_classes if self.conditional else 0

    @abstractmethod
    def build(self, spec: DataSpec) -> GenerativeModel:
        """The model with fresh weights, drawn from torch's default generator."""

    @property
    @abstractmethod
    def shared_steps(self) -> int:
        """Steps at the start that a baseline shares: RUN/pretrained is what they lead to. 0: none."""

    @property
    @abstractmethod
    def needs_partner(self) -> bool:
        """Whether it is trained on pairs with a second data set, `data.partner`."""

    @abstractmethod
    def check_steps(self, steps: int) -> None:
        """Refuses a number of training steps that the model's schedule does not fit into."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(ModelConfig):
    """A flow, and a score of a linear diffusion in its latent.

    Args:
        sde: The diffusion in the latent.
        flow: From data to latent.
        backbone: The score network.
        objective: What the networks are trained on.
    """

    sde: LinearSDE = field(default_factory=VP)
    flow: FlowConfig
    backbone: BackboneConfig = field(default_factory=UNetConfig)
    objective: Objective

    def check_steps(self, steps: int) -> None:
        pass  # pre-training alone is a linear diffusion

    def build_backbone(self, spec: DataSpec) -> nn.Module:
        """The score network, which is drawn before the flows.

        Raises:
            ValueError: pre-training with a flow that does not begin at the identity.
        """
        if self.objective.pretrain_steps and not self.flow.starts_at_identity:
            raise ValueError(
                f"pretrain_steps={self.objective.pretrain_steps}: the score is trained as a linear diffusion first, and "
                f"{type(self.flow).__name__} does not begin at the identity; set its start (or actnorm_init) to identity, "
                "or pretrain_steps=0"
            )
        shape, num_classes = network_shape(spec, self.sde), self.num_classes(spec)
        if not num_classes:  # a backbone of the user's own may know none
            return self.backbone.build(shape, self.sde)
        return self.backbone.build(shape, self.sde, num_classes)


@dataclass(frozen=True, kw_only=True)
class JointConfig(DiffusionConfig):
    """A flow and a score that are trained jointly, after steps in which the score alone is trained."""

    flow: FlowConfig = field(default_factory=ResFlowConfig)
    objective: Objective = field(default_factory=Objective)

    @property
    def shared_steps(self) -> int:
        return self.objective.pretrain_steps


@final
@dataclass(frozen=True, kw_only=True)
class INDMConfig(JointConfig):
    """INDM, or with the identity for a flow the linear diffusion (see indm_core/model/indm.py)."""

    @property
    def needs_partner(self) -> bool:
        return False

    def build(self, spec: DataSpec) -> GenerativeModel:
        backbone, num_classes = self.build_backbone(spec), self.num_classes(spec)
        options = {"shape": spec.shape, "objective": self.objective, "num_classes": num_classes}
        return INDM(self.flow.build(spec.shape), backbone, self.sde, **options)


@final
@dataclass(frozen=True, kw_only=True)
class BridgeConfig(JointConfig):
    """An INDM whose flow carries the data set `data.partner` to the prior (see indm_core/model/indm.py)."""

    def __post_init__(self) -> None:
        _refuse_labels(self, "a bridge is trained on pairs of two data sets and takes no labels")

    @property
    def needs_partner(self) -> bool:
        return True

    def build(self, spec: DataSpec) -> GenerativeModel:
        backbone = self.build_backbone(spec)
        return Bridge(self.flow.build(spec.shape), backbone, self.sde, shape=spec.shape, objective=self.objective)


@final
@dataclass(frozen=True, kw_only=True)
class DiNofConfig(DiffusionConfig):
    """DiNof (see indm_core/model/dinof.py).

    Args:
        flow: A flow of the latent as well; the identity as published.
        objective: What the networks are trained on; mode fid as published.
        t_m: Where the diffusion starts from the flow prior, as a share of t_max, in (0, 1].
        prior: The flow at t_m.
    """

    flow: FlowConfig = field(default_factory=IdentityConfig)
    objective: Objective = field(default_factory=lambda: Objective(mode="fid"))
    t_m: float = 0.6
    prior: FlowConfig = field(default_factory=GlowConfig)

    def __post_init__(self) -> None:
        if not 0 < self.t_m <= 1:
            raise ValueError(f"t_m={self.t_m} must lie in (0, 1]: the share of t_max at which the flow prior sits")

    @property
    def shared_steps(self) -> int:
        return 0

    @property
    def needs_partner(self) -> bool:
        return False

    def build(self, spec: DataSpec) -> GenerativeModel:
        backbone = self.build_backbone(spec)
        prior = self.prior.build(network_shape(spec, self.sde))
        flow = self.flow.build(spec.shape)
        options = {"shape": spec.shape, "objective": self.objective, "num_classes": self.num_classes(spec)}
        return DiNof(prior, flow, backbone, self.sde, t_m=self.t_m, **options)


@final
@dataclass(frozen=True, kw_only=True)
class DiffFlowConfig(ModelConfig):
    """DiffFlow (see indm_core/model/diffflow.py).

    Args:
        drift: The drift network; its time is "scaled", its dropout 0.
        score: The score network; the same.
        g: Volatility at 0.
        g_end: Volatility at T, towards which it moves geometrically; 0 keeps it at g, as published.
        t_max: T.
        beta: Of the grid t_i = (i/N)^(1/beta) T.
        num_steps: N of each stage of progressive training.
        change_at: Optimiser steps at which the next stage begins, one fewer than stages.
        flexible: Whether times are drawn anew for each batch.
    """

    drift: BackboneConfig = field(default_factory=lambda: UNetConfig(dropout=0.0))
    score: BackboneConfig = field(default_factory=lambda: UNetConfig(dropout=0.0))
    g: float = 1.0
    g_end: float = 0.0
    t_max: float = 0.05
    beta: float = 0.9
    num_steps: tuple[int, ...] = (30,)
    change_at: tuple[int, ...] = ()
    flexible: bool = True

    def __post_init__(self) -> None:
        _refuse_labels(self, "DiffFlow has no conditional form")
        if len(self.num_steps) != len(self.change_at) + 1:
            raise ValueError(
                f"num_steps={self.num_steps} has {len(self.num_steps)} stages and change_at={self.change_at} "
                f"{len(self.change_at)} changes between them; give one change fewer than stages"
            )
        if self.num_steps and min(self.num_steps) < 2:
            raise ValueError(f"num_steps={self.num_steps}: N={min(self.num_steps)} must be at least 2")
        if any(later <= first for first, later in pairwise((0, *self.change_at))):
            raise ValueError(f"change_at={self.change_at} must be positive and increase")

    @property
    def shared_steps(self) -> int:
        return 0

    @property
    def needs_partner(self) -> bool:
        return False

    def check_steps(self, steps: int) -> None:
        if self.change_at and self.change_at[-1] >= steps:
            raise ValueError(
                f"change_at={self.change_at}: with steps={steps} the last stage, N={self.num_steps[-1]}, is never trained; "
                "give more --steps, or fewer stages in --num-steps and --change-at"
            )

    def build(self, spec: DataSpec) -> GenerativeModel:
        return DiffFlow(
            self.drift.build(spec.shape, None),
            self.score.build(spec.shape, None),
            shape=spec.shape,
            g=self.g,
            g_end=self.g_end or None,
            t_max=self.t_max,
            beta=self.beta,
            schedule=tuple(zip((0, *self.change_at), self.num_steps, strict=True)),
            flexible=self.flexible,
        )


@final
@dataclass(frozen=True, kw_only=True)
class FFJORDConfig(ModelConfig):
    """FFJORD, DiffFlow's limit without noise (see indm_core/model/ffjord.py).

    Args:
        drift: The drift network; its time is "slow", its dropout 0.
        t_max: T.
        num_steps: Runge-Kutta steps of training.
    """

    drift: BackboneConfig = field(default_factory=lambda: UNetConfig(dropout=0.0, time="slow"))
    t_max: float = 1.0
    num_steps: int = 10

    def __post_init__(self) -> None:
        _refuse_labels(self, "FFJORD has no score that labels could be given to")

    @property
    def shared_steps(self) -> int:
        return 0

    @property
    def needs_partner(self) -> bool:
        return False

    def check_steps(self, steps: int) -> None:
        pass

    def build(self, spec: DataSpec) -> GenerativeModel:
        drift = self.drift.build(spec.shape, None)
        return FFJORD(drift, shape=spec.shape, t_max=self.t_max, num_steps=self.num_steps)


def _refuse_labels(model: ModelConfig, reason: str) -> None:
    if model.conditional:
        raise ValueError(f"conditional=True: {reason}; give --conditional false, or take an INDM or a DiNof")
