"""The optimisation step against AdamW, clipping and averaging written out; state, skipped steps, starting points."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import Affine, SmallBackbone, randn, rng
from torch import Tensor, nn

from indm_core.flow import ActNorm, Glow, Identity, ResFlow
from indm_core.flow.lipschitz import LipschitzLayer
from indm_core.flow.spectral_norm import Maps
from indm_core.likelihood import nelbo
from indm_core.model import INDM, DiffFlow, Objective
from indm_core.sde import VP
from indm_core.training import AdamW, NonFiniteLossError, Trainer, load_networks, network_tensors, step_seed

D = 2
OPTIMISERS = {"score": AdamW(lr=1e-2, clip=0.5), "flow": AdamW(lr=3e-3, clip=0.2, weight_decay=0.1)}


def make(*, flow: bool = True, width: int = 16, **objective) -> INDM:
    """A small INDM in float64, or the linear diffusion; the same weights each time."""
    torch.manual_seed(0)
    h = ResFlow((D,), blocks=(2,), width=8) if flow else Identity()
    return INDM(h, SmallBackbone(D, width), VP(), shape=(D,), objective=Objective(**objective)).double()


def train(trainer: Trainer, steps: range) -> list[float]:
    """Losses of steps whose data and noise are functions of the step."""
    losses = []
    for step in steps:
        report = trainer.step([(randn(16, D, seed=100 + step), None)], rng(step_seed(0, step, 0)))
        losses.append(float(report.terms["nelbo"]))
    return losses


def snapshot(trainer: Trainer) -> tuple[dict[str, Tensor], dict]:
    tensors, numbers = trainer.state()
    return {key: value.clone() for key, value in tensors.items()}, numbers


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


class ByHand:
    """AdamW (Loshchilov and Hutter, Algorithm 2) of one network, with its clip and its average."""

    def __init__(self, network: nn.Module, settings: AdamW) -> None:
        self.theta = [p.detach().clone() for p in network.parameters()]
        self.average = [p.clone() for p in self.theta]
        self.m, self.v = ([torch.zeros_like(p) for p in self.theta] for _ in range(2))
        self.settings, self.n = settings, 0

    def step(self, gradients: list[Tensor], ema_decay: float) -> float:
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, self.settings.clip / (norm + 1e-6))
        s, n = self.settings, self.n + 1
        decay = min(ema_decay, (1 + self.n) / (10 + self.n)) if self.n else 0.0  # it begins after the first step
        for i, g in enumerate(gradients):
            g = g * scale
            self.m[i] = s.beta_1 * self.m[i] + (1 - s.beta_1) * g
            self.v[i] = s.beta_2 * self.v[i] + (1 - s.beta_2) * g * g
            m_hat, v_hat = self.m[i] / (1 - s.beta_1**n), self.v[i] / (1 - s.beta_2**n)
            self.theta[i] = self.theta[i] * (1 - s.lr * s.weight_decay) - s.lr * m_hat / (v_hat.sqrt() + 1e-8)
            self.average[i] = decay * self.average[i] + (1 - decay) * self.theta[i]
        self.n = n
        return norm


@pytest.mark.parametrize("mode", ["nll", "fid"])
def test_a_step_is_clip_per_network_adamw_and_average(mode):
    model = make(mode=mode)
    trainer, twin = Trainer(model, OPTIMISERS, ema_decay=0.999), copy.deepcopy(model)
    by_hand = {name: ByHand(network, OPTIMISERS[name]) for name, network in model.networks().items()}
    twin.train()
    for step in range(4):
        x, y = randn(16, D, seed=step), None
        report = trainer.step([(x, y)], rng(step))
        for name, hand in by_hand.items():
            for p, value in zip(twin.networks()[name].parameters(), hand.theta, strict=True):
                with torch.no_grad():
                    p.copy_(value)
        loss = twin(x, generator=rng(step)).objective.mean()
        names = list(by_hand)
        parameters = {name: list(twin.networks()[name].parameters()) for name in names}
        gradients = iter(torch.autograd.grad(loss, [p for name in names for p in parameters[name]]))
        for name in names:
            norm = by_hand[name].step([next(gradients) for _ in parameters[name]], 0.999)
            assert report.gradient_norms[name] == pytest.approx(norm, rel=1e-5)
            for ours, theirs in (
                (model.networks()[name].parameters(), by_hand[name].theta),
                (trainer.averaged.networks()[name].parameters(), by_hand[name].average),
            ):
                for p, value in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(p.detach(), value, rtol=1e-9, atol=1e-12)
    assert trainer.step_count == 4


def test_the_published_average_has_no_ramp():
    model = make(flow=False)
    trainer = Trainer(model, OPTIMISERS, ema_decay=0.9, ema_ramp=False)
    train(trainer, range(1))
    start = copy.deepcopy(model)
    train(trainer, range(1, 2))
    averaged = trainer.averaged.networks()["score"].parameters()
    for p, q, first in zip(averaged, model.score_model.parameters(), start.score_model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), (0.9 * first + 0.1 * q).detach(), rtol=1e-12, atol=1e-12)


def test_two_micro_batches_are_one_batch():
    """The gradient is the average of the micro-batches': here both get the noise of one generator, in turn."""
    model = make(flow=False)
    one, two = (Trainer(copy.deepcopy(model), OPTIMISERS) for _ in range(2))
    halves = [randn(8, D, seed=1), randn(8, D, seed=2)]
    report = two.step([(half, None) for half in halves], rng(3))
    generator = rng(3)
    losses = [one.model(half, generator=generator) for half in halves]
    mean = (losses[0].objective.mean() + losses[1].objective.mean()) / 2
    gradients = torch.autograd.grad(mean, list(one.model.score_model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert report.gradient_norms["score"] == pytest.approx(float(norm), rel=1e-5)
    nelbo = torch.cat([part.terms["nelbo"] for part in losses]).mean()
    torch.testing.assert_close(report.terms["nelbo"], nelbo, rtol=1e-12, atol=1e-12)
    hand = ByHand(model.score_model, OPTIMISERS["score"])
    hand.step(list(gradients), 0.9999)
    for p, value in zip(two.model.score_model.parameters(), hand.theta, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("at", [2, 5], ids=["in pre-training", "in the joint phase"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(at):
    straight = Trainer(make(pretrain_steps=4), OPTIMISERS)
    losses = train(straight, range(9))
    first = Trainer(make(pretrain_steps=4), OPTIMISERS)
    assert train(first, range(at)) == losses[:at]
    tensors, numbers = snapshot(first)
    train(first, range(at, at + 2))  # what was saved does not follow what goes on
    torch.manual_seed(99)
    resumed = Trainer(make(pretrain_steps=4), OPTIMISERS)
    with torch.no_grad():
        for p in (*resumed.model.parameters(), *resumed.averaged.parameters()):
            p += 1.0
    resumed.load(tensors, numbers)
    assert resumed.step_count == at
    assert train(resumed, range(at, 9)) == losses[at:]
    assert_same(snapshot(resumed)[0], snapshot(straight)[0])
    assert resumed.state()[1] == straight.state()[1]


def test_two_trainers_may_start_from_one_state():
    """What is loaded is copied: neither goes on in the other's optimiser."""
    first = Trainer(make(), OPTIMISERS)
    train(first, range(3))
    tensors, numbers = snapshot(first)
    kept = {key: value.clone() for key, value in tensors.items()}
    one, two = (Trainer(make(), OPTIMISERS) for _ in range(2))
    for trainer in (one, two):
        trainer.load(tensors, numbers)
    losses = train(one, range(3, 6))
    assert_same(tensors, kept)
    assert train(two, range(3, 6)) == losses


def test_pretraining_leaves_the_flow_alone_and_then_begins():
    trainer = Trainer(make(pretrain_steps=3), OPTIMISERS)
    before = copy.deepcopy(trainer.model.flow.state_dict())
    train(trainer, range(3))
    parameters = dict(trainer.model.flow.named_parameters())
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)
    train(trainer, range(3, 4))
    assert any(not torch.equal(parameters[name], before[name]) for name in parameters)


def test_a_wrapper_is_made_anew_where_a_phase_begins():
    wrapped = []

    def wrap(model):
        wrapped.append(model.pretraining)
        return model

    train(Trainer(make(pretrain_steps=2), OPTIMISERS, wrap=wrap), range(5))
    assert wrapped == [True, False]


def test_a_linear_models_state_starts_an_indm():
    """networks=('score',): its score, optimiser and average go on; the flow begins as it was built."""
    linear = Trainer(make(flow=False), OPTIMISERS)
    losses = train(linear, range(4))
    tensors, numbers = snapshot(linear)
    joint = Trainer(make(pretrain_steps=4), OPTIMISERS)
    flow = copy.deepcopy(joint.model.flow.state_dict())
    joint.load(tensors, numbers, networks=("score",))
    assert joint.step_count == 4
    assert_same(dict(joint.model.flow.state_dict()), dict(flow))
    continued = train(joint, range(4, 5))
    assert continued == pytest.approx(train(linear, range(4, 5)), rel=1e-12)  # the flow begins at the identity
    assert math.isfinite(losses[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(value):
    trainer = Trainer(make(), OPTIMISERS, max_skipped=3)
    train(trainer, range(2))
    before, numbers = snapshot(trainer)
    bad = [(torch.full((4, D), value, dtype=torch.float64), None)]
    assert trainer.step(bad, rng(0)).skipped
    after, _ = snapshot(trainer)
    parameters = {key for key in before if not key.endswith("vectors")}  # the search for norms goes on
    assert all(torch.equal(before[key], after[key]) for key in parameters)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert (trainer.step_count, trainer.skipped, trainer.skipped_in_a_row) == (numbers["step"] + 1, 1, 1)
    assert not trainer.step([(randn(4, D), None)], rng(1)).skipped
    assert (trainer.skipped, trainer.skipped_in_a_row) == (1, 0)
    for _ in range(2):
        trainer.step(bad, rng(0))
    with pytest.raises(NonFiniteLossError, match=r"3 steps in a row \(steps 4 to 6\)"):
        trainer.step(bad, rng(0))


def test_one_bad_micro_batch_spoils_the_step():
    trainer = Trainer(make(), OPTIMISERS)
    before, _ = snapshot(trainer)
    report = trainer.step([(randn(4, D), None), (torch.full((4, D), math.nan).double(), None)], rng(0))
    assert report.skipped
    after, _ = snapshot(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("model.score"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(width=8), r"'score.backbone.w_in' has shape \(16, 2\) in the checkpoint, \(8, 2\) in the model"),
        (lambda: make(flow=False), "the model has no tensor 'flow"),
    ],
    ids=["another width", "no flow"],
)
def test_a_state_of_another_architecture_is_refused(build, message):
    tensors, numbers = Trainer(make(), OPTIMISERS).state()
    other = Trainer(build(), OPTIMISERS)
    with pytest.raises(ValueError, match=message):
        other.load(tensors, numbers)


def test_a_state_that_lacks_a_network_is_refused():
    tensors, numbers = Trainer(make(flow=False), OPTIMISERS).state()
    with pytest.raises(ValueError, match="the checkpoint has no tensor 'flow"):
        Trainer(make(), OPTIMISERS).load(tensors, numbers)


def test_networks_round_trip():
    model, other = make(), make()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    load_networks(other, network_tensors(model))
    assert_same(network_tensors(other), network_tensors(model))


def test_the_averaged_model_is_a_model():
    trainer = Trainer(make(), OPTIMISERS, ema_decay=0.5)
    train(trainer, range(3))
    averaged = trainer.averaged.eval()
    x = randn(4, D)
    with torch.no_grad():
        first, _ = averaged.encode(x)
    train(trainer, range(3, 6))
    with torch.no_grad():
        second, _ = averaged.encode(x)
    assert float((first - second).abs().max()) > 0  # no weight that was kept for evaluation is stale


def test_seeds_are_distinct_and_fixed():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(200) for rank in range(4)}
    assert len(seeds) == 3 * 200 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(0, 1, 2) == 1535930435702422785  # a resumed run needs the numbers of the first
    assert step_seed(0, 1, 0) != step_seed(1, 0, 0)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"no settings for \['flow'\]"):
        Trainer(make(), {"score": AdamW()})
    with pytest.raises(ValueError, match=r"ema_decay=1.0"):
        Trainer(make(), OPTIMISERS, ema_decay=1.0)
    for options in ({"lr": 0.0}, {"clip": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=r"must (be positive|not be negative)"):
            AdamW(**options)


def test_training_lowers_the_bound_towards_the_entropy():
    """200 steps on N(0, diag(1, 1/4)) take most of the excess, and none goes below: the NELBO is a bound."""
    torch.manual_seed(0)
    model = INDM(Identity(), SmallBackbone(D, 64), VP(), shape=(D,)).double()
    trainer, scale = Trainer(model, {"score": AdamW(lr=1e-2)}), torch.tensor([1.0, 0.5]).double()
    reports = [trainer.step([(scale * randn(256, D, seed=s), None)], rng(s)).terms["nelbo"] for s in range(200)]
    entropy = math.log(2 * math.pi * math.e) + math.log(0.5)
    first, last = (float(torch.stack(part).mean()) - entropy for part in (reports[:5], reports[-50:]))
    assert 0 < last < 0.5 * first


def test_a_start_from_the_data_is_no_part_of_the_average():
    model = INDM(Glow((D,), levels=1, steps=1, hidden=4), SmallBackbone(D, 8), VP(), shape=(D,)).double()
    trainer = Trainer(model, OPTIMISERS, ema_decay=0.9999, ema_ramp=False)
    trainer.step([(7 + 3 * randn(64, D), None)], rng(0))
    (started,) = [m for m in trainer.averaged.modules() if isinstance(m, ActNorm) and m.initialised is not None]
    assert bool(started.initialised)
    assert (started.log_scale.exp() < 0.5).all()


def test_warm_up_raises_the_rate_linearly():
    trainer = Trainer(make(), {"score": AdamW(lr=0.1, warmup=4), "flow": AdamW(lr=0.3)})
    rates = []
    for step in range(6):
        trainer.step([(randn(4, D), None)], rng(step))
        rates.append([optimiser.param_groups[0]["lr"] for optimiser in trainer.optimisers.values()])
    assert [score for score, _ in rates] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert {flow for _, flow in rates} == {0.3}


def of(tensors: dict[str, Tensor], network: str) -> dict[str, Tensor]:
    """The model's tensors of a network, and those of its average."""
    return {key: value for key, value in tensors.items() if key.startswith((f"model.{network}.", f"ema.{network}."))}


@pytest.mark.parametrize("frozen", ["score", "flow"])
def test_a_frozen_network_keeps_its_bits_while_the_other_trains(frozen):
    other = {"score": "flow", "flow": "score"}[frozen]
    trainer = Trainer(make(), {other: AdamW(lr=3e-2)}, frozen=[frozen], ema_decay=0.9)
    before, _ = snapshot(trainer)
    losses = train(trainer, range(60))
    after, _ = snapshot(trainer)
    assert_same(of(before, frozen), of(after, frozen))
    for key in (key for key in after if key.startswith(f"model.{frozen}.")):
        assert torch.equal(after[key], after[key.replace("model.", "ema.", 1)])
    assert any(not torch.equal(before[key], after[key]) for key in of(before, other))
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not any(key.startswith(f"optimiser.{frozen}.") for key in after)
    assert trainer.step([(randn(4, D), None)], rng(0)).gradient_norms.keys() == {other}


@pytest.mark.parametrize("mode", ["nll", "fid"])
def test_the_gradient_passes_through_a_frozen_score(mode):
    """The flow takes the step that it takes beside a score that trains."""
    both, alone = (Trainer(make(mode=mode), OPTIMISERS, frozen=names) for names in ((), ("score",)))
    norms = [trainer.step([(randn(16, D), None)], rng(0)).gradient_norms for trainer in (both, alone)]
    assert norms[0]["flow"] == norms[1]["flow"] > 0
    flows = [trainer.model.flow.state_dict() for trainer in (both, alone)]
    parameters = dict(both.model.flow.named_parameters())
    assert all(torch.allclose(flows[0][name], flows[1][name], rtol=1e-9, atol=1e-12) for name in parameters)


@pytest.mark.parametrize("frozen", ["score", "flow"])
def test_a_run_with_a_frozen_network_is_resumed_bit_for_bit(frozen):
    def started(shift: float) -> Trainer[INDM]:
        """From weights at which the power iterations of the flow's layers have a way to go."""
        model = make()
        with torch.no_grad():
            for seed, p in enumerate(model.parameters()):
                p += shift * randn(*p.shape, seed=seed)
        return Trainer(model, OPTIMISERS, frozen=[frozen])

    straight, first, resumed = started(0.5), started(0.5), started(2.0)
    losses = train(straight, range(7))
    train(first, range(3))
    resumed.load(*snapshot(first))
    assert train(resumed, range(3, 7)) == losses[3:]
    assert_same(snapshot(resumed)[0], snapshot(straight)[0])


def test_a_frozen_score_is_the_average_of_the_run_that_it_comes_from():
    linear = Trainer(make(flow=False), OPTIMISERS, ema_decay=0.9)
    train(linear, range(5))
    tensors, numbers = snapshot(linear)
    joint = Trainer(make(), OPTIMISERS, frozen=["score"])
    joint.load(tensors, numbers, networks=["score"])
    train(joint, range(5, 8))
    after, _ = snapshot(joint)
    for key in (key for key in tensors if key.startswith("ema.score.")):
        assert torch.equal(after[key], tensors[key])
        assert torch.equal(after[key.replace("ema.", "model.", 1)], tensors[key])


@pytest.mark.parametrize("frozen", ["drift", "score"])
def test_one_network_of_a_diffflow_trains_by_the_adjoint(frozen):
    model = DiffFlow(SmallBackbone(D, seed=1), SmallBackbone(D, seed=5), shape=(D,), schedule=((0, 4),)).double()
    trainer = Trainer(model, {"drift": AdamW(), "score": AdamW()}, frozen=[frozen])
    before, _ = snapshot(trainer)
    train(trainer, range(2))
    after, _ = snapshot(trainer)
    assert {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])} == {"drift", "score"} - {
        frozen
    }


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match=r"no network 'scor'; it has score, flow"):
        Trainer(make(), OPTIMISERS, frozen=["scor"])
    with pytest.raises(ValueError, match="score, flow are all the networks of the model; leave one to train"):
        Trainer(make(), OPTIMISERS, frozen=["flow", "score"])
    pretraining = Trainer(make(pretrain_steps=2), OPTIMISERS, frozen=["score"])
    with pytest.raises(ValueError, match="the phase 'pretraining' trains no network but score"):
        train(pretraining, range(1))


class StationaryNoise(nn.Module):
    """eps_hat = gain R_t^T u: with gain = 1 the score is -u, that of N(0, I), which the VP diffusion leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.gain * VP().sigma(t.double()).unsqueeze(-1) * x


def test_a_flow_trained_against_a_fixed_score_in_s_sol_reaches_the_entropy():
    """Theorems 2 and 3 for x ~ N(m, L L^T), a linear flow and the score of N(0, I).

    NELBO = -log p(x) on average for every flow, the gap being 0; and the best flow makes the latents N(0, I), where that is
    the entropy of x.
    """
    m, L = torch.tensor([1.0, -2.0]).double(), torch.tensor([[1.0, 0.0], [0.6, 0.5]]).double()
    flow = Affine(torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64))
    model = INDM(flow, StationaryNoise(), VP(), shape=(D,)).double()
    entropy = 0.5 * D * math.log(2 * math.pi * math.e) + float(L.logdet())

    @torch.no_grad()
    def excess(model: INDM) -> float:
        """KL(N(A m + b, A C A^T) | N(0, I)) = E[-log p(x)] - entropy, nats."""
        (z,), root = model.flow(m[None])[0], model.flow.A @ L
        return float(0.5 * (root.square().sum() + z.square().sum() - D) - torch.linalg.slogdet(root).logabsdet)

    def bound(model: INDM) -> tuple[float, float]:
        """E[NELBO] and its standard error, nats."""
        x = m + randn(8000, D, seed=1) @ L.T
        values = nelbo(model.eval(), x, residual=False, num_draws=32, generator=rng(1))
        return float(values.mean()), float(values.std() / len(values) ** 0.5)

    value, error = bound(model)
    assert abs(value - entropy - excess(model)) < 5 * error < 0.1 * excess(model)
    for rows, lr in ((512, 0.1), (2048, 0.01)):
        settings = AdamW(lr=lr, beta_2=0.999, weight_decay=0.0, clip=100.0)
        trainer = Trainer(model, {"flow": settings}, frozen=["score"], ema_decay=0.97)
        for step in range(100):
            trainer.step([(m + randn(rows, D, seed=step) @ L.T, None)], rng(step))
    value, error = bound(trainer.averaged)
    assert abs(value - entropy) < 5 * error
    assert excess(trainer.averaged) < error
    assert float(trainer.averaged.score_model.backbone.gain) == 1


def tensor_by_tensor() -> Trainer:
    """A trainer whose optimisers are not fused."""
    trainer = Trainer(make(), OPTIMISERS)
    for optimiser in trainer.optimisers.values():
        optimiser.param_groups[0]["fused"] = False
    return trainer


def test_a_fused_step_is_the_step_tensor_by_tensor():
    """Also where one goes on from what the other has saved, the moments and the count of the steps."""
    fused, plain, resumed = Trainer(make(), OPTIMISERS), tensor_by_tensor(), Trainer(make(), OPTIMISERS)
    assert train(fused, range(3)) == pytest.approx(train(plain, range(3)), rel=1e-9)
    resumed.load(*snapshot(plain))
    assert all(optimiser.param_groups[0]["fused"] for optimiser in resumed.optimisers.values())
    assert train(resumed, range(3, 6)) == pytest.approx(train(plain, range(3, 6)), rel=1e-9)


def test_a_layer_looks_for_its_norm_after_each_fused_step(monkeypatch):
    """Else it would go on with the norm of the weight before, and the flow would stop being invertible."""
    counts, search = [], Maps.search
    monkeypatch.setattr(Maps, "search", lambda self, *given: counts.append(len(given[0])) or search(self, *given))
    trainer = Trainer(make(), OPTIMISERS)
    train(trainer, range(3))
    num_layers = sum(isinstance(module, LipschitzLayer) for module in trainer.model.modules())
    assert sum(counts) == 3 * num_layers
