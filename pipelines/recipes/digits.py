"""Scikit-learn's 8x8 digits: minutes on two cores."""

from __future__ import annotations

from dataclasses import replace

from indm_core.model import Objective
from indm_core.sde import BDM, CLD, LinearSDE
from pipelines.config.flows import GlowConfig, ResFlowConfig
from pipelines.config.models import BridgeConfig, DiffFlowConfig, DiNofConfig, INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.recipes.common import adamw, by_name, linear

__all__ = ["DIGITS"]

UNET = UNetConfig(nf=24, ch_mult=(1, 2), num_res_blocks=1, attention=(), dropout=0.0, time="log-snr")
HALF_UNET = replace(UNET, nf=16, time="scaled")
MODEL = INDMConfig(
    flow=ResFlowConfig(blocks=(8,), width=32, constraint="spectral", actnorm="pixel"),
    backbone=UNET,
    objective=Objective(pretrain_steps=300),
)
TRAIN = Train(
    steps=1200,
    batch_size=128,
    optimisers=adamw(1e-3, "score") | adamw(2e-3, "flow"),
    ema_decay=0.995,
    log_every=25,
    checkpoint_every=200,
    sample_every=400,
    validate_every=600,
)


def digits_vp_nll() -> RunConfig:
    """INDM (VP, likelihood weighting) on scikit-learn's 8x8 digits: minutes on two cores."""
    return RunConfig(recipe="digits_vp_nll", data=Data(source="digits"), model=MODEL, train=TRAIN)


def digits_conditional() -> RunConfig:
    """digits_vp_nll with labels: a model of each digit, for `sample.py --label` and guidance."""
    return replace(digits_vp_nll(), recipe="digits_conditional", model=replace(MODEL, conditional=True))


def digits_linear_nll() -> RunConfig:
    """The linear diffusion that digits_vp_nll generalises: the same score network, budget and data."""
    return replace(digits_vp_nll(), recipe="digits_linear_nll", model=linear(MODEL))


def digits_cld_nll() -> RunConfig:
    """INDM on digits with a critically-damped Langevin diffusion in the latent."""
    return _diffused("digits_cld_nll", MODEL, CLD(t_min=1e-3))


def digits_cld_linear() -> RunConfig:
    """The linear diffusion of digits by critically-damped Langevin dynamics."""
    return _diffused("digits_cld_linear", linear(MODEL), CLD(t_min=1e-3))


def digits_bdm_nll() -> RunConfig:
    """INDM on digits with a blurring diffusion in the latent."""
    return _diffused("digits_bdm_nll", MODEL, BDM(height=8, width=8, sigma_blur_max=10.0))


def digits_bdm_linear() -> RunConfig:
    """The linear blurring diffusion of digits."""
    return _diffused("digits_bdm_linear", linear(MODEL), BDM(height=8, width=8, sigma_blur_max=10.0))


def _diffused(name: str, model: INDMConfig, sde: LinearSDE) -> RunConfig:
    """Another diffusion and a preconditioned score: the reverse of these diffusions blows up the errors of a plain one."""
    objective = replace(model.objective, data_var=0.5)
    return replace(digits_vp_nll(), recipe=name, model=replace(model, sde=sde, objective=objective))


def digits_bridge() -> RunConfig:
    """A bridge between digits and a second set of 8x8 images with 17 levels, --partner PATH."""
    model = BridgeConfig(flow=MODEL.flow, backbone=MODEL.backbone)
    return replace(digits_vp_nll(), recipe="digits_bridge", model=model)


def digits_dinof() -> RunConfig:
    """DiNof (VP) on scikit-learn's digits: minutes on two cores."""
    model = DiNofConfig(prior=GlowConfig(levels=2, depth=4, hidden=48), backbone=UNET)
    train = replace(TRAIN, optimisers=adamw(1e-3, "score", "prior", "flow"))
    return replace(digits_vp_nll(), recipe="digits_dinof", model=model, train=train)


def digits_diffflow() -> RunConfig:
    """DiffFlow on scikit-learn's digits, N = 5 to 100: half an hour on one core."""
    num_steps, change_at = (5, 10, 20, 50, 100), (400, 550, 640, 690)
    model = DiffFlowConfig(drift=HALF_UNET, score=HALF_UNET, num_steps=num_steps, change_at=change_at)
    train = replace(
        TRAIN,
        steps=710,
        batch_size=64,
        optimisers=adamw(1e-3, "drift", "score"),
        ema_decay=0.99,
        checkpoint_every=100,
        sample_every=200,
    )
    return replace(digits_vp_nll(), recipe="digits_diffflow", model=model, train=train)


DIGITS = by_name(
    digits_vp_nll,
    digits_conditional,
    digits_linear_nll,
    digits_cld_nll,
    digits_cld_linear,
    digits_bdm_nll,
    digits_bdm_linear,
    digits_bridge,
    digits_dinof,
    digits_diffflow,
)
