"""Recipes: one function per run. The name of a recipe is the name of its function.

Adding a recipe is adding a function here and its name to `INDM`; a variant of one is `dataclasses.replace(base(), ...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from indm_core.sde import BDM, CLD, VE, VP, LinearSDE
from indm_core.training import AdamW
from pipelines.config.models import (
    BridgeConfig,
    IdentityConfig,
    INDMConfig,
    MLPConfig,
    ResFlowConfig,
    UNetConfig,
)
from pipelines.config.run import Data, RunConfig, Train
from pipelines.data.source import Options

__all__ = ["INDM"]

Recipe = Callable[[], RunConfig]

_DIGITS_UNET = UNetConfig(nf=24, ch_mult=(1, 2), num_res_blocks=1, attention=(), dropout=0.0, time="log-snr")
_MNIST_UNET = UNetConfig(nf=24, ch_mult=(1, 2, 2), num_res_blocks=1, attention=(), dropout=0.0, time="log-snr")


def _both(lr: float) -> dict[str, AdamW]:
    """One learning rate for score and flow."""
    return {"score": AdamW(lr=lr), "flow": AdamW(lr=lr)}


def digits_vp_nll() -> RunConfig:
    """INDM (VP, likelihood weighting) on scikit-learn's 8x8 digits: minutes on two cores."""
    return RunConfig(
        recipe="digits_vp_nll",
        data=Data(source="digits"),
        model=INDMConfig(
            flow=ResFlowConfig(blocks=(4,), width=32, constraint="spectral", actnorm="pixel"),
            backbone=_DIGITS_UNET,
            pretrain_steps=300,
        ),
        train=Train(
            steps=1200,
            batch_size=128,
            optimisers=_both(1e-3),
            ema_decay=0.995,
            log_every=25,
            checkpoint_every=200,
            sample_every=400,
        ),
    )


def digits_linear_nll() -> RunConfig:
    """The linear diffusion that digits_vp_nll generalises: the same score network, budget and data."""
    return replace(
        digits_vp_nll(), recipe="digits_linear_nll", model=INDMConfig(flow=IdentityConfig(), backbone=_DIGITS_UNET)
    )


def toy2d_spiral() -> RunConfig:
    """INDM on a generated spiral."""
    return _toy2d("spiral")


def toy2d_linear() -> RunConfig:
    """The linear diffusion that the toy2d recipes generalise, with the same score network; --source toy2d:NAME."""
    base = _toy2d("spiral")
    return replace(
        base, recipe="toy2d_linear", model=INDMConfig(flow=IdentityConfig(), backbone=MLPConfig(width=128, depth=3))
    )


def toy2d_eight_gaussians() -> RunConfig:
    """INDM on eight Gaussians."""
    return _toy2d("eight_gaussians")


def toy2d_checkerboard() -> RunConfig:
    """INDM on a checkerboard."""
    return _toy2d("checkerboard")


def toy2d_rings() -> RunConfig:
    """INDM on concentric rings."""
    return _toy2d("rings")


def toy2d_moons() -> RunConfig:
    """INDM on two moons."""
    return _toy2d("moons")


def _toy2d(name: str) -> RunConfig:
    return RunConfig(
        recipe=f"toy2d_{name}",
        data=Data(source=f"toy2d:{name}"),
        model=INDMConfig(
            flow=ResFlowConfig(blocks=(8,), width=64, constraint="spectral"),
            backbone=MLPConfig(width=128, depth=3),
            pretrain_steps=500,
        ),
        train=Train(
            steps=3000,
            batch_size=500,
            optimisers=_both(1e-3),
            ema_decay=0.995,
            log_every=100,
            checkpoint_every=1000,
            sample_every=1000,
        ),
    )


def mnist_vp_nll() -> RunConfig:
    """INDM on MNIST; give the directory of its IDX files as --source."""
    return RunConfig(
        recipe="mnist_vp_nll",
        data=Data(source=""),
        model=INDMConfig(
            flow=ResFlowConfig(blocks=(8, 8), width=128, constraint="spectral"),
            backbone=UNetConfig(nf=64, ch_mult=(1, 2, 2), num_res_blocks=2, attention=(14,)),
            pretrain_steps=20_000,
        ),
        train=Train(steps=100_000, log_every=100, checkpoint_every=2000, sample_every=5000),
    )


def mnist_vp_tiny() -> RunConfig:
    """INDM on MNIST with small networks: an hour on two cores; --source is the directory of the IDX files."""
    return replace(
        mnist_vp_nll(),
        recipe="mnist_vp_tiny",
        model=INDMConfig(
            flow=ResFlowConfig(blocks=(0, 4), width=32, constraint="spectral", actnorm="pixel"),
            backbone=_MNIST_UNET,
            pretrain_steps=500,
        ),
        train=Train(
            steps=2000,
            batch_size=64,
            optimisers=_both(1e-3),
            ema_decay=0.995,
            log_every=25,
            checkpoint_every=200,
            sample_every=1000,
        ),
    )


def mnist_linear_tiny() -> RunConfig:
    """The linear diffusion that mnist_vp_tiny generalises: the same score network, budget and data."""
    base = mnist_vp_tiny()
    return replace(base, recipe="mnist_linear_tiny", model=INDMConfig(flow=IdentityConfig(), backbone=_MNIST_UNET))


def mnist_fashion_bridge() -> RunConfig:
    """A bridge between two sets of images of one shape: --source MNIST --partner FASHION, or any two; small networks."""
    base = mnist_vp_tiny()
    flow = ResFlowConfig(blocks=(0, 8), width=64, constraint="spectral", actnorm="pixel")
    model = BridgeConfig(flow=flow, backbone=_MNIST_UNET, pretrain_steps=0)
    return replace(base, recipe="mnist_fashion_bridge", model=model)


def digits_cld_nll() -> RunConfig:
    """INDM on digits with a critically-damped Langevin diffusion in the latent."""
    return _on_digits("digits_cld_nll", CLD(t_min=1e-3), flow=True)


def digits_cld_linear() -> RunConfig:
    """The linear diffusion of digits by critically-damped Langevin dynamics."""
    return _on_digits("digits_cld_linear", CLD(t_min=1e-3), flow=False)


def digits_bdm_nll() -> RunConfig:
    """INDM on digits with a blurring diffusion in the latent."""
    return _on_digits("digits_bdm_nll", BDM(height=8, width=8, sigma_blur_max=10.0), flow=True)


def digits_bdm_linear() -> RunConfig:
    """The linear blurring diffusion of digits."""
    return _on_digits("digits_bdm_linear", BDM(height=8, width=8, sigma_blur_max=10.0), flow=False)


def _on_digits(name: str, sde: LinearSDE, *, flow: bool) -> RunConfig:
    """digits_vp_nll or digits_linear_nll with another diffusion and a preconditioned score: the reverse of these diffusions
    blows up the errors of a plain one."""
    base = digits_vp_nll() if flow else digits_linear_nll()
    model = replace(base.model, sde=sde, data_var=0.5)  # pyright: ignore[reportCallIssue]
    return replace(base, recipe=name, model=model)


def digits_bridge() -> RunConfig:
    """A bridge between digits and a second set of 8x8 images with 17 levels, --partner PATH."""
    base = digits_vp_nll()
    model = BridgeConfig(flow=base.model.flow, backbone=_DIGITS_UNET)  # pyright: ignore[reportAttributeAccessIssue]
    return replace(base, recipe="digits_bridge", model=model)


def cifar10_vp_nll() -> RunConfig:
    """The paper's INDM (VP, NLL) on CIFAR-10 at the paper's sizes: days on a GPU; --source is its directory."""
    return _paper("cifar10_vp_nll", VP(), "nll")


def cifar10_vp_fid() -> RunConfig:
    """The paper's INDM (VP, FID) on CIFAR-10; --source is its directory."""
    return _paper("cifar10_vp_fid", VP(), "fid")


def cifar10_ve_fid() -> RunConfig:
    """The paper's INDM (VE, FID, NCSN++) on CIFAR-10; --source is its directory."""
    return _paper("cifar10_ve_fid", VE(sigma_max=50.0), "fid", backbone=_NCSN, ema_decay=0.999, low=0.0)


def celeba64_vp_nll() -> RunConfig:
    """The paper's INDM (VP, NLL) on CelebA at 64x64; --source is a folder of the aligned images."""
    return _celeba(_paper("celeba64_vp_nll", VP(), "nll"))


def celeba64_vp_fid() -> RunConfig:
    """The paper's INDM (VP, FID) on CelebA at 64x64; --source is a folder of the aligned images."""
    return _celeba(_paper("celeba64_vp_fid", VP(), "fid"))


def celeba64_ve_fid() -> RunConfig:
    """The paper's INDM (VE, FID, NCSN++) on CelebA at 64x64; --source is a folder of the aligned images."""
    return _celeba(_paper("celeba64_ve_fid", VE(sigma_max=90.0), "fid", backbone=_NCSN, ema_decay=0.999, low=0.0))


_NCSN = UNetConfig(family="ncsn++", time="log-sigma")


def _paper(
    name: str,
    sde: VP | VE,
    mode: Literal["nll", "fid"],
    *,
    backbone: UNetConfig = UNetConfig(),
    ema_decay: float = 0.9999,
    low: float = -1.0,
) -> RunConfig:
    """The published sizes: DDPM++ and EMA 0.9999 for VP, NCSN++ and 0.999 for VE; 500,000 steps of pre-training.

    VE sees images in [0, 1], to which its largest noise and the corrector's signal-to-noise ratio belong; VP in [-1, 1].
    """
    return RunConfig(
        recipe=name,
        data=Data(source="", options=Options(low=low), flip=True),
        model=INDMConfig(sde=sde, flow=ResFlowConfig(), backbone=backbone, mode=mode, pretrain_steps=500_000),
        train=Train(
            steps=1_000_000,
            ema_decay=ema_decay,
            ema_ramp=False,
            log_every=100,
            checkpoint_every=5000,
            sample_every=25_000,
        ),
    )


def _celeba(base: RunConfig) -> RunConfig:
    """CelebA is cut to its centre of 140 pixels and resized to 64."""
    return replace(base, data=replace(base.data, options=replace(base.data.options, crop=140, size=64)))


def _deep(base: Recipe) -> Recipe:
    """The deep variant of a recipe: eight residual blocks per level."""

    def recipe() -> RunConfig:
        run = base()
        backbone = replace(run.model.backbone, num_res_blocks=8)  # pyright: ignore[reportAttributeAccessIssue]
        return replace(run, recipe=recipe.__name__, model=replace(run.model, backbone=backbone))  # pyright: ignore

    recipe.__name__ = f"{base.__name__}_deep"
    recipe.__doc__ = f"{base.__name__} with eight residual blocks per level."
    return recipe


def cifar10_vp_tiny() -> RunConfig:
    """cifar10_vp_nll with small networks: a smoke test for a CPU."""
    base = cifar10_vp_nll()
    return replace(
        base,
        recipe="cifar10_vp_tiny",
        model=INDMConfig(
            flow=ResFlowConfig(blocks=(1, 1), width=16),
            backbone=UNetConfig(nf=16, ch_mult=(1, 2, 2), num_res_blocks=1, attention=(8,)),
            pretrain_steps=20,
        ),
        train=Train(steps=50, batch_size=32, log_every=10, checkpoint_every=25, sample_every=0),
    )


_PAPER = (cifar10_vp_nll, cifar10_vp_fid, cifar10_ve_fid, celeba64_vp_nll, celeba64_vp_fid, celeba64_ve_fid)
INDM: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        digits_vp_nll,
        digits_linear_nll,
        digits_cld_nll,
        digits_cld_linear,
        digits_bdm_nll,
        digits_bdm_linear,
        digits_bridge,
        toy2d_linear,
        toy2d_spiral,
        toy2d_eight_gaussians,
        toy2d_checkerboard,
        toy2d_rings,
        toy2d_moons,
        mnist_vp_nll,
        mnist_vp_tiny,
        mnist_linear_tiny,
        mnist_fashion_bridge,
        cifar10_vp_tiny,
        *_PAPER,
        *map(_deep, _PAPER),
    )
}
