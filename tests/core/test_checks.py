"""The checks pass on what is right and leave it as it is; planted mistakes are in `test_checks_sde` and `test_checks_model`."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import FIVE, FLOWS, MODELS, Coupled, Gaussian, SmallBackbone, glow, ids, randn
from torch import nn

from indm_core.checks import check_flow, check_model, check_score, check_sde
from indm_core.flow import Flow, Glow, Identity
from indm_core.model import INDM, Bridge, DiffFlow, Objective, ScoreModel
from indm_core.nn import MLP, UNet
from indm_core.sde import BDM, CLD, VE, VP, SubVP

OTHERS = [
    VP(t_min=1e-3, t_max=2.0, beta_min=0.5, beta_max=5.0),
    SubVP(beta_max=8.0),
    VE(sigma_min=1e-3, sigma_max=5.0, t_max=0.7),
    CLD(gamma=1.5, vv_gamma=1.0, t_max=2.0),
    CLD(gamma=0.4, beta=2.0),
    BDM(height=3, width=4, sigma_blur_max=3.0, min_scale=0.1, t_max=0.5),
]


@pytest.mark.parametrize("sde", [*FIVE, Coupled(), *OTHERS], ids=ids)
def test_sdes_pass(sde):
    check_sde(sde)


def test_a_learned_sde_passes():
    model = DiffFlow(SmallBackbone(2, seed=1), SmallBackbone(2, seed=2), shape=(2,))
    check_sde(model.sde)  # finds the shape
    check_sde(model.float().sde, shape=(2,))  # and the dtype


@pytest.mark.parametrize("name", FLOWS)
def test_flows_pass(name):
    make, shape, tolerance = FLOWS[name]
    check_flow(make(), shape, tolerance=tolerance)


def test_a_flow_that_computes_in_float32_is_checked_in_float32():
    class Single(Flow):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.tensor([0.3, -0.2]))

        def forward(self, x, generator=None):
            a = self.log_scale.float()
            return (a.exp() * x.float()), a.sum().expand(len(x))

        def inverse(self, z):
            return z * torch.exp(-self.log_scale)

    check_flow(Single(), (2,), tolerance=1e-3)


@pytest.mark.parametrize("sde", [VP(), CLD(), BDM(height=1, width=2)], ids=ids)
def test_scores_pass(sde):
    shape = (1, 1, 2) if isinstance(sde, BDM) else (2,)
    law = Gaussian(sde=sde, mean=randn(2), cov=torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double(), shape=shape)
    check_score(lambda u, t, y=None: law.score(u.double(), t).to(u), sde, shape, log_prob=law.log_prob)
    num_dims = 4 if isinstance(sde, CLD) else 2
    check_score(ScoreModel(SmallBackbone(num_dims), sde, data_var=0.5), sde, shape)


def test_a_score_of_a_float32_network_passes():
    backbone = UNet((1, 8, 8), time_feature=lambda t: t, nf=8, ch_mult=(1, 1))
    check_score(ScoreModel(backbone, VP()).eval(), VP(), (1, 8, 8))


@pytest.mark.parametrize("name", MODELS)
def test_models_pass(name):
    check_model(MODELS[name]())


def test_models_with_labels_or_a_partner_pass():
    backbone = MLP(2, time_feature=lambda t: t, num_classes=3)
    check_model(INDM(glow(), backbone, VP(), shape=(2,)), y=torch.arange(16) % 3)
    check_model(Bridge(glow(), SmallBackbone(2), VP(), shape=(2,)), y=randn(16, 2))


def test_nothing_is_touched():
    """Parameters, gradients, buffers, modes, the phase and torch's generator are what they were."""
    flow = Glow((2,), levels=1, steps=2, hidden=8).train()
    model = INDM(flow, SmallBackbone(2), VP(), shape=(2,), objective=Objective(pretrain_steps=10))
    model.begin_phase("pretraining")
    model.score_model.eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    with torch.no_grad():
        check_model(model)
        check_flow(flow, (2,))
        check_score(model.double().score, model.sde, (2,))
        check_sde(model.sde)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key].to(value)) for key, value in model.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert model.pretraining
    assert not any(p.requires_grad for p in flow.parameters())


def test_what_raises_is_named_with_the_identity():
    class Half(Flow):
        def forward(self, x, generator=None):
            return x, x.new_zeros(len(x))

        def inverse(self, z):
            raise NotImplementedError("later\nor never")

    with pytest.raises(AssertionError, match=r"^Half as given: z is like x .*: it raises NotImplementedError: later$"):
        check_flow(Half(), (2,))


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match=r"shape=\(3, 32, 32\): a Jacobian of 3,072 rows"):
        check_flow(Identity(), (3, 32, 32))
    with pytest.raises(ValueError, match=r"a Jacobian of 3,072 rows"):
        check_model(INDM(Identity(), SmallBackbone(3072), VP(), shape=(3, 32, 32)))
    model = DiffFlow(SmallBackbone(7), SmallBackbone(7), shape=(7,))
    with pytest.raises(ValueError, match=r"shape: none of .* is an event that LearnedSDE accepts"):
        check_sde(model.sde)
