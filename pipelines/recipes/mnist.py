"""MNIST, or any set in its format: --source is the directory of the IDX files."""

from __future__ import annotations

from dataclasses import replace

from indm_core.model import Objective
from pipelines.config.flows import GlowConfig, ResFlowConfig
from pipelines.config.models import BridgeConfig, DiffFlowConfig, DiNofConfig, INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.recipes.common import adam, adamw, by_name, linear

__all__ = ["MNIST"]

UNET = UNetConfig(nf=64, ch_mult=(1, 2, 2), num_res_blocks=2, attention=(14,))
SMALL_UNET = replace(UNET, nf=24, num_res_blocks=1, attention=(), dropout=0.0, time="log-snr")
SMALL_MODEL = INDMConfig(
    flow=ResFlowConfig(blocks=(0, 4), width=32, constraint="spectral", actnorm="pixel"),
    backbone=SMALL_UNET,
    objective=Objective(pretrain_steps=500),
)
TRAIN = Train(steps=100_000, log_every=100, checkpoint_every=2000, sample_every=5000)
SMALL_TRAIN = Train(
    steps=2000,
    batch_size=64,
    optimisers=adamw(1e-3, "score", "flow"),
    ema_decay=0.995,
    log_every=25,
    checkpoint_every=200,
    sample_every=1000,
    validate_every=1000,
)


def mnist_vp_nll() -> RunConfig:
    """INDM on MNIST; give the directory of its IDX files as --source."""
    flow = ResFlowConfig(blocks=(8, 8), width=128, constraint="spectral")
    model = INDMConfig(flow=flow, backbone=UNET, objective=Objective(pretrain_steps=20_000))
    return RunConfig(recipe="mnist_vp_nll", data=Data(source=""), model=model, train=TRAIN)


def mnist_vp_tiny() -> RunConfig:
    """INDM on MNIST with small networks: an hour on two cores; --source is the directory of the IDX files."""
    return replace(mnist_vp_nll(), recipe="mnist_vp_tiny", model=SMALL_MODEL, train=SMALL_TRAIN)


def mnist_conditional() -> RunConfig:
    """mnist_vp_tiny with labels: a model of each class, for `sample.py --label` and guidance."""
    return replace(mnist_vp_tiny(), recipe="mnist_conditional", model=replace(SMALL_MODEL, conditional=True))


def mnist_linear_tiny() -> RunConfig:
    """The linear diffusion that mnist_vp_tiny generalises: the same score network, budget and data."""
    return replace(mnist_vp_tiny(), recipe="mnist_linear_tiny", model=linear(SMALL_MODEL))


def mnist_fashion_bridge() -> RunConfig:
    """A bridge between two sets of images of one shape: --source MNIST --partner FASHION, or any two; small networks."""
    flow = ResFlowConfig(blocks=(0, 8), width=64, constraint="spectral", actnorm="pixel")
    return replace(mnist_vp_tiny(), recipe="mnist_fashion_bridge", model=BridgeConfig(flow=flow, backbone=SMALL_UNET))


def mnist_dinof() -> RunConfig:
    """DiNof on MNIST (two levels: 28 = 4 x 7); --source is the directory of the IDX files."""
    model = DiNofConfig(prior=GlowConfig(levels=2, depth=16, hidden=256), backbone=UNET)
    train = replace(TRAIN, optimisers=adam(2e-4, "score", "prior", "flow", warmup=5000))
    return replace(mnist_vp_nll(), recipe="mnist_dinof", model=model, train=train)


def mnist_diffflow() -> RunConfig:
    """DiffFlow on MNIST with the thesis's g = 1, T = 0.05 and N = 5, 10, 20, 30; --source is the directory of the IDX files."""
    network, changes = replace(UNET, dropout=0.0), (10_000, 20_000, 30_000)
    model = DiffFlowConfig(drift=network, score=network, num_steps=(5, 10, 20, 30), change_at=changes)
    train = replace(TRAIN, steps=40_000, optimisers=adam(2e-4, "drift", "score"), checkpoint_every=1000)
    return replace(mnist_vp_nll(), recipe="mnist_diffflow", model=model, train=train)


MNIST = by_name(
    mnist_vp_nll,
    mnist_vp_tiny,
    mnist_conditional,
    mnist_linear_tiny,
    mnist_fashion_bridge,
    mnist_dinof,
    mnist_diffflow,
)
