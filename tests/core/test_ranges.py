"""Numbers out of range are refused where they are given, by name and value, and not accepted in silence to become nan later."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from problems import SmallBackbone, randn, rng
from torch import Tensor

from indm_core.diagnostics import discretisation_error, induced_norm_ratio
from indm_core.draw import draw, fit_times, forward_path
from indm_core.exponential import sample_deis
from indm_core.flow import Identity
from indm_core.metrics import kernel_distance
from indm_core.model import FFJORD, INDM, DiffFlow, DiNof, Objective
from indm_core.model.diffflow import LinearDrift, fixed_times, flexible_times
from indm_core.model.score import ScoreModel
from indm_core.nn import UNet
from indm_core.ode import rk45
from indm_core.sample import sample_em, sample_ode, sample_pc
from indm_core.sampling import Sampling
from indm_core.sde import BDM, CLD, VE, VP, LearnedODE, LearnedSDE, SubVP, Volatility
from indm_core.times import edm_times, log_rho_times, power_times, uniform_times
from indm_core.training import AdamW, Trainer

SDE = VP(t_min=1e-3)
U, X, TS = randn(4, 2, 1), randn(4, 2), uniform_times(SDE, 3)
POSITIVE = (0.0, -1.0, math.nan, math.inf, -math.inf)
NOT_NEGATIVE = POSITIVE[1:]
WHOLE = (-1, True)
SHARE = (-0.1, 1.0, math.nan, math.inf)


def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return -u


def indm() -> INDM:
    return INDM(Identity(), SmallBackbone(2), SDE, shape=(2,)).double()


def diffflow(**options) -> DiffFlow:
    options = {"shape": (2,), "t_max": 0.4, "schedule": ((0, 4),)} | options
    return DiffFlow(SmallBackbone(2, seed=1), SmallBackbone(2, seed=2), **options)


def learned_sde(**options) -> LearnedSDE:
    options = {"t_min": 0.1, "t_max": 1.0} | options
    return LearnedSDE(f=lambda x, t: -x, g=Volatility(first=1.0, last=1.0, t_max=1.0), **options)


def drawn(ts: Tensor = TS, **options) -> Tensor:
    return draw(indm(), lambda sde, s, u, ts, g: sample_em(sde, s, u, ts, generator=g), ts, X, 3, **options)


def unet(**options) -> UNet:
    return UNet((1, 8, 8), **{"time_feature": lambda t: t, "nf": 8, "ch_mult": (1,), "num_res_blocks": 1} | options)


def trained(**options) -> Trainer:
    return Trainer(indm(), {"score": AdamW()}, **options)


def slope(t: Tensor, state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    return (-state[0],)


def solved(t_0: float = 0.0, t_1: float = 1.0, **options) -> Tensor:
    return rk45(slope, (U,), t_0, t_1, **{"rtol": 1e-5, "atol": 1e-5} | options)[0][0]


def moments_error(**options) -> object:
    mean, cov = torch.zeros(2, 1).double(), torch.ones(2, 1, 1).double()
    return discretisation_error(SDE, options.pop("a", 1.0), TS, mean, cov, **options)


MODEL_ARGUMENTS = [
    *(
        (f"DiffFlow {name}", lambda v, name=name: diffflow(**{name: v}), POSITIVE)
        for name in ("g", "g_end", "t_max", "beta")
    ),
    ("DiffFlow t_min", lambda v: diffflow(t_min=v), (*POSITIVE, 0.4)),
    ("DiffFlow beta that leaves no length", lambda v: diffflow(beta=v), (1e-3,)),
    ("FFJORD t_max", lambda v: FFJORD(SmallBackbone(2), shape=(2,), t_max=v), POSITIVE),
    ("LearnedSDE t_min", lambda v: learned_sde(t_min=v), (*POSITIVE, 1.0)),
    ("LearnedSDE t_max", lambda v: learned_sde(t_max=v), (*POSITIVE, 0.1)),
    ("LearnedODE t_max", lambda v: LearnedODE(f=lambda x, t: -x, t_max=v), POSITIVE),
    ("LinearDrift rate", LinearDrift, NOT_NEGATIVE),
    ("fixed_times t_max", lambda v: fixed_times(4, v), POSITIVE),
    ("fixed_times beta", lambda v: fixed_times(4, 1.0, v), (*POSITIVE, 1e-3)),
    ("fixed_times num_steps", lambda v: fixed_times(v, 1.0), (0, -1)),
    ("flexible_times num_steps", lambda v: flexible_times(v, 1.0), (1, 0, -1)),
    ("flexible_times beta", lambda v: flexible_times(4, 1.0, None, v), POSITIVE),
    ("DiNof t_m", lambda v: DiNof(Identity(), Identity(), SmallBackbone(2), SDE, shape=(2,), t_m=v), (*POSITIVE, 1e-3)),
    ("Objective data_var", lambda v: Objective(data_var=v), NOT_NEGATIVE),
    ("Objective soft_truncation", lambda v: Objective(soft_truncation=v), (*NOT_NEGATIVE, 0.5)),
    ("Objective pretrain_steps", lambda v: Objective(pretrain_steps=v), (-1,)),
    ("ScoreModel data_var", lambda v: ScoreModel(SmallBackbone(2), SDE, v), NOT_NEGATIVE),
    ("UNet dropout", lambda v: unet(dropout=v), SHARE),
    ("UNet fourier_scale", lambda v: unet(embedding="fourier", fourier_scale=v), (*POSITIVE, 1e6)),
]
TRAINING_ARGUMENTS = [
    ("AdamW lr", lambda v: AdamW(lr=v), POSITIVE),
    ("AdamW clip", lambda v: AdamW(clip=v), (0.0, -1.0, math.nan)),
    ("AdamW weight_decay", lambda v: AdamW(weight_decay=v), NOT_NEGATIVE),
    ("AdamW warmup", lambda v: AdamW(warmup=v), (-1,)),
    ("AdamW beta_1", lambda v: AdamW(beta_1=v), SHARE),
    ("AdamW beta_2", lambda v: AdamW(beta_2=v), SHARE),
    ("Trainer ema_decay", lambda v: trained(ema_decay=v), SHARE),
    ("Trainer max_skipped", lambda v: trained(max_skipped=v), (0, -1)),
    ("Trainer batches", lambda v: trained().step(v, rng()), ([],)),
]
SAMPLING_ARGUMENTS = [
    *(
        (f"Sampling {name}", lambda v, name=name: Sampling(**{name: v}), values)
        for names, values in (
            (("rtol", "atol", "snr", "langevin_step", "final_step", "temperature", "start_temperature"), POSITIVE),
            (("steps", "repeats"), (0, *WHOLE)),
            (("nfe", "corrector_steps", "langevin_steps"), WHOLE),
            (("power",), NOT_NEGATIVE),
            (("lam",), (-0.5, math.nan, math.inf, -math.inf)),
            (("stop",), SHARE),
        )
        for name in names
    ),
    ("deis order", lambda v: Sampling(sampler="deis", order=v), (4, *WHOLE)),
    ("fit_times nfe", lambda v: fit_times(indm(), v), WHOLE),
    ("fit_times num", lambda v: fit_times(indm(), 3, num=v), WHOLE),
    ("fit_times seed", lambda v: fit_times(indm(), 3, seed=v), WHOLE),
    ("fit_times tolerance", lambda v: fit_times(indm(), 3, tolerance=v), POSITIVE),
    ("fit_times iterations", lambda v: fit_times(indm(), 3, iterations=v), WHOLE),
    ("sample_em lam", lambda v: sample_em(SDE, score, U, TS, lam=v), NOT_NEGATIVE),
    ("sample_pc snr", lambda v: sample_pc(SDE, score, U, TS, snr=v), POSITIVE),
    ("sample_pc corrector_steps", lambda v: sample_pc(SDE, score, U, TS, corrector_steps=v), (-1,)),
    ("sample_ode rtol", lambda v: sample_ode(SDE, score, U, TS, rtol=v), POSITIVE),
    ("sample_ode atol", lambda v: sample_ode(SDE, score, U, TS, atol=v), POSITIVE),
    ("sample_deis lam", lambda v: sample_deis(SDE, score, U, TS, order=0, lam=v), (*NOT_NEGATIVE, 1.1)),
    ("rk45 t_0", lambda v: solved(t_0=v), (math.nan, math.inf)),
    ("rk45 t_1", lambda v: solved(t_1=v), (math.nan, -math.inf)),
    ("power_times power", lambda v: power_times(SDE, 5, v), (*POSITIVE, 1e18)),
    ("edm_times power", lambda v: edm_times(SDE, 5, v), (*POSITIVE, 1e18)),
    *(
        (f"{grid.__name__} {end}", lambda v, grid=grid, end=end: grid(SDE, 5, **{end: v}), (*POSITIVE, 2.0))
        for grid in (uniform_times, log_rho_times, edm_times)
        for end in ("low", "high")
    ),
    ("draw temperature", lambda v: drawn(temperature=v), POSITIVE),
    ("draw start_temperature", lambda v: drawn(start_temperature=v), POSITIVE),
    ("draw ts[0]", lambda v: drawn(uniform_times(SDE, 3, high=v)), (0.5,)),
    (
        "forward_path ts",
        lambda v: forward_path(indm(), X, torch.tensor(v).double()),
        ([], [0.5, 0.5], [0.5, 0.1], [math.nan], [0.0, math.nan], [-1.0, 0.5], [0.0, 2.0], [0.0, math.inf]),
    ),
    (
        "sampler ts",
        lambda v: sample_em(SDE, score, U, torch.tensor(v).double()),
        ([0.5, 0.5], [0.1, 0.5], [0.5, math.nan, 0.1], [math.inf, 0.5], [0.5], [1.0, 0.0], [2.0, 0.5]),
    ),
    ("induced_norm_ratio dt", lambda v: induced_norm_ratio(indm(), U, torch.tensor(0.5).double(), dt=v), POSITIVE),
    ("discretisation_error a", lambda v: moments_error(a=v), POSITIVE),
    ("discretisation_error lam", lambda v: moments_error(lam=v), NOT_NEGATIVE),
    ("kernel_distance gamma", lambda v: kernel_distance(X, X, gamma=v), POSITIVE),
    ("kernel_distance coef0", lambda v: kernel_distance(X, X, coef0=v), NOT_NEGATIVE),
    ("kernel_distance degree", lambda v: kernel_distance(X, X, degree=v), (0, -1)),
]


@pytest.mark.parametrize(
    ("build", "value"),
    [
        pytest.param(build, value, id=f"{name}={value}")
        for name, build, values in [*MODEL_ARGUMENTS, *TRAINING_ARGUMENTS, *SAMPLING_ARGUMENTS]
        for value in values
    ],
)
def test_a_number_out_of_range_is_refused(build, value):
    with pytest.raises(ValueError, match=r"must|takes|none|length|outside|below|lies|needs") as refused:
        build(value)
    assert "\n" not in str(refused.value)
    if isinstance(value, float):
        assert any(shown in str(refused.value) for shown in (str(value), f"{value:g}"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["steps", "nfe", "repeats", "corrector_steps", "langevin_steps", "order"])
@pytest.mark.parametrize("value", [2.5, math.nan])
def test_a_count_that_is_no_integer_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        Sampling(sampler="deis", **{name: value})


@pytest.mark.parametrize("sde", [VP, SubVP, VE, CLD, BDM])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_coefficient_that_is_not_finite_is_refused(sde, value):
    names = [own.name for own in fields(sde) if isinstance(own.default, float)]
    assert len(names) > 2
    for name in names:
        with pytest.raises(ValueError, match=f"{name}={value}"):
            sde(**{name: value})


def test_a_gradient_may_be_left_as_it_is():
    assert AdamW(clip=math.inf).clip == math.inf
