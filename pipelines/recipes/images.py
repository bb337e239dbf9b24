"""CIFAR-10, CelebA and CelebA-HQ as published: days on GPUs; --source is the directory of the images.

Two pairs of score and diffusion are published. DDPM++ with VP or sub-VP sees images in [-1, 1], and its average decays by
0.9999. NCSN++ with VE sees images in [0, 1], to which its largest noise and the corrector's signal-to-noise ratio belong, and
its average decays by 0.999. The deep variants have eight residual blocks per level.

References:
    Song et al. 2021, "Score-based generative modeling through stochastic differential equations", appendix H; Kim et al. 2022
    (INDM), appendix F; Zand, Etemad, Greenspan 2024 (DiNof), section 4; Zhang, Chen 2021 (DiffFlow), and the thesis, chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from indm_core.model import Objective
from indm_core.model.objective import Mode
from indm_core.sde import VE, VP, LinearSDE, SubVP
from pipelines.config.flows import GlowConfig, IdentityConfig, ResFlowConfig
from pipelines.config.models import DiffFlowConfig, DiNofConfig, INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.data.source import Options
from pipelines.recipes.common import adam, by_name

__all__ = ["IMAGES"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A diffusion with what was published with it.

    Args:
        sde: The diffusion.
        backbone: The score network.
        ema_decay: Of the average of the weights.
        low: Images are scaled to [low, 1].
    """

    sde: LinearSDE
    backbone: UNetConfig = field(default_factory=UNetConfig)
    ema_decay: float = 0.9999
    low: float = -1.0

    def deep(self) -> Published:
        """The same with eight residual blocks per level."""
        return replace(self, backbone=replace(self.backbone, num_res_blocks=8))


def _ve(sigma_max: float, backbone: UNetConfig) -> Published:
    return Published(sde=VE(sigma_max=sigma_max), backbone=backbone, ema_decay=0.999, low=0.0)


_VP, _SUBVP = Published(sde=VP()), Published(sde=SubVP())
_NCSN = UNetConfig(family="ncsn++", time="log-sigma")
_CIFAR10_VE, _CELEBA_VE = _ve(50.0, _NCSN), _ve(90.0, _NCSN)


def _indm(name: str, of: Published, mode: Mode, *, crop: int = 0, size: int = 0) -> RunConfig:
    """INDM's published sizes; 500,000 of the steps are pre-training."""
    return RunConfig(
        recipe=name,
        data=Data(source="", options=Options(low=of.low, crop=crop, size=size), flip=True),
        model=INDMConfig(
            sde=of.sde,
            backbone=of.backbone,
            objective=Objective(mode=mode, pretrain_steps=500_000),
            flow=ResFlowConfig(),
        ),
        train=Train(
            steps=1_000_000,
            ema_decay=of.ema_decay,
            ema_ramp=False,
            log_every=100,
            checkpoint_every=5000,
            sample_every=25_000,
        ),
    )


def cifar10_vp_nll() -> RunConfig:
    """The paper's INDM (VP, NLL) on CIFAR-10 at the paper's sizes: days on a GPU; --source is its directory."""
    return _indm("cifar10_vp_nll", _VP, "nll")


def cifar10_vp_fid() -> RunConfig:
    """The paper's INDM (VP, FID) on CIFAR-10; --source is its directory."""
    return _indm("cifar10_vp_fid", _VP, "fid")


def cifar10_ve_fid() -> RunConfig:
    """The paper's INDM (VE, FID, NCSN++) on CIFAR-10; --source is its directory."""
    return _indm("cifar10_ve_fid", _CIFAR10_VE, "fid")


def cifar10_vp_nll_deep() -> RunConfig:
    """cifar10_vp_nll with eight residual blocks per level."""
    return _indm("cifar10_vp_nll_deep", _VP.deep(), "nll")


def cifar10_vp_fid_deep() -> RunConfig:
    """cifar10_vp_fid with eight residual blocks per level."""
    return _indm("cifar10_vp_fid_deep", _VP.deep(), "fid")


def cifar10_ve_fid_deep() -> RunConfig:
    """cifar10_ve_fid with eight residual blocks per level."""
    return _indm("cifar10_ve_fid_deep", _CIFAR10_VE.deep(), "fid")


def cifar10_vp_tiny() -> RunConfig:
    """cifar10_vp_nll with small networks: a smoke test for a CPU."""
    model = INDMConfig(
        flow=ResFlowConfig(blocks=(1, 1), width=16),
        backbone=UNetConfig(nf=16, ch_mult=(1, 2, 2), num_res_blocks=1, attention=(8,)),
        objective=Objective(pretrain_steps=20),
    )
    train = Train(steps=50, batch_size=32, log_every=10, checkpoint_every=25, sample_every=0)
    return replace(cifar10_vp_nll(), recipe="cifar10_vp_tiny", model=model, train=train)


def _celeba64(name: str, of: Published, mode: Mode) -> RunConfig:
    """CelebA is cut to its centre of 140 pixels and resized to 64."""
    return _indm(name, of, mode, crop=140, size=64)


def celeba64_vp_nll() -> RunConfig:
    """The paper's INDM (VP, NLL) on CelebA at 64x64; --source is a folder of the aligned images."""
    return _celeba64("celeba64_vp_nll", _VP, "nll")


def celeba64_vp_fid() -> RunConfig:
    """The paper's INDM (VP, FID) on CelebA at 64x64; --source is a folder of the aligned images."""
    return _celeba64("celeba64_vp_fid", _VP, "fid")


def celeba64_ve_fid() -> RunConfig:
    """The paper's INDM (VE, FID, NCSN++) on CelebA at 64x64; --source is a folder of the aligned images."""
    return _celeba64("celeba64_ve_fid", _CELEBA_VE, "fid")


def celeba64_vp_nll_deep() -> RunConfig:
    """celeba64_vp_nll with eight residual blocks per level."""
    return _celeba64("celeba64_vp_nll_deep", _VP.deep(), "nll")


def celeba64_vp_fid_deep() -> RunConfig:
    """celeba64_vp_fid with eight residual blocks per level."""
    return _celeba64("celeba64_vp_fid_deep", _VP.deep(), "fid")


def celeba64_ve_fid_deep() -> RunConfig:
    """celeba64_ve_fid with eight residual blocks per level."""
    return _celeba64("celeba64_ve_fid_deep", _CELEBA_VE.deep(), "fid")


def _dinof(name: str, of: Published) -> RunConfig:
    """L = 3, K = 16, 256 hidden channels, T_m = 0.6; a million steps of 128 images, 5,000 of them warm-up; the EMA of the
    score's paper. A departure: the gradients of score and prior are clipped apart."""
    prior = GlowConfig(levels=3, depth=16, hidden=256)
    base = _indm(name, of, "fid")
    return replace(
        base,
        model=DiNofConfig(sde=of.sde, t_m=0.6, prior=prior, backbone=of.backbone),
        train=replace(base.train, optimisers=adam(2e-4, "score", "prior", "flow", warmup=5000), sample_every=50_000),
    )


def cifar10_dinof_ve() -> RunConfig:
    """DiNof (VE, NCSN++) on CIFAR-10 at the paper's sizes; --source is its directory."""
    return _dinof("cifar10_dinof_ve", _CIFAR10_VE)


def cifar10_dinof_ve_deep() -> RunConfig:
    """cifar10_dinof_ve with eight residual blocks per level."""
    return _dinof("cifar10_dinof_ve_deep", _CIFAR10_VE.deep())


def cifar10_dinof_vp() -> RunConfig:
    """DiNof (VP, DDPM++) on CIFAR-10 at the paper's sizes; --source is its directory."""
    return _dinof("cifar10_dinof_vp", _VP)


def cifar10_dinof_subvp() -> RunConfig:
    """DiNof (sub-VP, DDPM++) on CIFAR-10 at the paper's sizes; --source is its directory."""
    return _dinof("cifar10_dinof_subvp", _SUBVP)


def _linear(name: str, dinof: RunConfig, of: Published, steps: int) -> RunConfig:
    """What a DiNof is compared with: its score on all of [0, T], alone, in the same training but for the number of steps."""
    train = replace(dinof.train, steps=steps, optimisers=adam(2e-4, "score", "flow", warmup=5000))
    model = INDMConfig(sde=of.sde, flow=IdentityConfig(), backbone=of.backbone, objective=Objective(mode="fid"))
    return replace(dinof, recipe=name, model=model, train=train)


def cifar10_linear_ve() -> RunConfig:
    """The linear diffusion (VE, NCSN++) that DiNof's Table 4 compares, 1.3 million steps; --source is its directory."""
    return _linear("cifar10_linear_ve", cifar10_dinof_ve(), _CIFAR10_VE, 1_300_000)


def cifar10_linear_vp() -> RunConfig:
    """The linear diffusion (VP, DDPM++) that DiNof's Table 4 compares, 1.3 million steps; --source is its directory."""
    return _linear("cifar10_linear_vp", cifar10_dinof_vp(), _VP, 1_300_000)


def cifar10_linear_subvp() -> RunConfig:
    """The linear diffusion (sub-VP, DDPM++) that DiNof's Table 4 compares, 1.3 million steps; --source is its directory."""
    return _linear("cifar10_linear_subvp", cifar10_dinof_subvp(), _SUBVP, 1_300_000)


_CELEBAHQ_NCSN = replace(_NCSN, ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, dropout=0.0)
_CELEBAHQ_VE = _ve(348.0, _CELEBAHQ_NCSN)


def celebahq256_dinof_ve() -> RunConfig:
    """DiNof (VE, NCSN++) on CelebA-HQ at 256x256; --source is a folder of its images.

    Half a million steps of 8 images, T_m = 0.6; sampled by `--sampler pc --steps 600 --snr 0.17`. A departure: in the
    published network of this size the image goes in, and the score out, by skip paths at every level; here the image goes in
    by a residual path, as on CIFAR-10, and the score comes out of the finest level.
    """
    base = _dinof("celebahq256_dinof_ve", _CELEBAHQ_VE)
    return replace(
        base,
        data=replace(base.data, options=replace(base.data.options, size=256)),
        train=replace(base.train, steps=500_000, batch_size=8),
    )


def celebahq256_ve() -> RunConfig:
    """The linear diffusion (VE, NCSN++) that celebahq256_dinof_ve is compared with: the same network, budget and data."""
    return _linear("celebahq256_ve", celebahq256_dinof_ve(), _CELEBAHQ_VE, 500_000)


def cifar10_diffflow() -> RunConfig:
    """DiffFlow on CIFAR-10 with the thesis's settings: N up to 100, half-size DDPM U-Nets; --source is its directory."""
    network = UNetConfig(nf=88, num_res_blocks=2, dropout=0.0)
    stages = (5, 10, 20, 30, 50, 75, 100)
    changes = (20_000, 40_000, 60_000, 80_000, 100_000, 120_000)
    return RunConfig(
        recipe="cifar10_diffflow",
        data=Data(source="", flip=True),
        model=DiffFlowConfig(drift=network, score=network, num_steps=stages, change_at=changes),
        train=Train(
            steps=150_000,
            optimisers=adam(2e-4, "drift", "score"),
            log_every=100,
            checkpoint_every=1000,
            sample_every=10_000,
        ),
    )


IMAGES = by_name(
    cifar10_vp_nll,
    cifar10_vp_fid,
    cifar10_ve_fid,
    cifar10_vp_nll_deep,
    cifar10_vp_fid_deep,
    cifar10_ve_fid_deep,
    cifar10_vp_tiny,
    cifar10_dinof_ve,
    cifar10_dinof_ve_deep,
    cifar10_dinof_vp,
    cifar10_dinof_subvp,
    cifar10_linear_ve,
    cifar10_linear_vp,
    cifar10_linear_subvp,
    cifar10_diffflow,
    celeba64_vp_nll,
    celeba64_vp_fid,
    celeba64_ve_fid,
    celeba64_vp_nll_deep,
    celeba64_vp_fid_deep,
    celeba64_ve_fid_deep,
    celebahq256_dinof_ve,
    celebahq256_ve,
)
