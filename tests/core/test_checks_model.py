"""Planted mistakes in flows and models: each is named by the identity that it breaks, in one line."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SmallBackbone, rng
from test_resflow import near_identity

from indm_core.checks import check_flow, check_model
from indm_core.flow import Flow, Glow, Roulette
from indm_core.model import INDM
from indm_core.sde import VP

pytestmark = pytest.mark.usefixtures("unchecked")  # a mistake may have any shape


def glow(**options) -> Glow:
    return Glow((2,), levels=1, steps=2, hidden=8, **options)


class Altered(Flow):
    """A flow whose directions are changed."""

    def __init__(self, flow: Flow, forward=None, inverse=None) -> None:
        super().__init__()
        self.flow, self.altered, self.back = flow, forward, inverse

    def forward(self, x, generator=None):
        return self.altered(self, x, generator) if self.altered else self.flow(x, generator)

    def inverse(self, z):
        return self.back(self, z) if self.back else self.flow.inverse(z)


def woken() -> Glow:
    flow = glow()
    for i, p in enumerate(flow.parameters()):
        p.data += 0.2 * torch.randn(p.shape, generator=rng(i))
    return flow


def log_det_changed(change, flow=None):
    """A flow whose log_det is change(log_det, x, generator)."""

    def forward(self, x, generator):
        z, log_det = self.flow(x, generator)
        return z, change(log_det, x, generator)

    return lambda: Altered(flow or woken(), forward)


def noisy(bias: float):
    def change(log_det, x, generator):
        noise = [torch.randn((), generator=g) for g in generator] if isinstance(generator, list) else None
        noise = torch.stack(noise) if noise else torch.randn(len(x), generator=generator)
        return log_det + bias + noise.to(log_det)

    return change


def batch_norm(self, x, generator):
    z = self.flow(x, generator)[0]
    mean, std = z.mean(0), z.std(0, correction=0) + 1e-6
    return (z - mean) / std, -std.log().flatten().sum().expand(len(x))


def only_in_training(self, x, generator):
    z, log_det = self.flow(x, generator)
    return z, 2 * log_det if self.training else log_det


EQUAL = r"log_det = log\|det dz/dx\|: "
FLOW_MUTANTS = {
    "log_det of the wrong sign": (log_det_changed(lambda log_det, x, g: -log_det), EQUAL + r".*should be "),
    "log_det off by 1e-5": (log_det_changed(lambda log_det, x, g: (1 + 1e-5) * log_det), EQUAL),
    "log_det zeroed": (log_det_changed(lambda log_det, x, g: 0 * log_det), EQUAL),
    "log_det (b, 1)": (
        log_det_changed(lambda log_det, x, g: log_det[:, None]),
        r"log_det: shape \(3, 1\), should be \(3,\)",
    ),
    "log_det of the batch": (
        log_det_changed(lambda log_det, x, g: log_det.sum()),
        r"z is like x and log_det \(b,\), finite: log_det: shape \(\), should be \(3,\)",
    ),
    "log_det in float32": (
        log_det_changed(lambda log_det, x, g: log_det.float()),
        "log_det: torch.float32, should be torch.float64",
    ),
    "log_det averaged": (
        log_det_changed(lambda log_det, x, g: log_det.mean().expand(len(x))),
        "a row is the same alone and in a batch: log_det of row 0 alone",
    ),
    "log_det detached": (
        log_det_changed(lambda log_det, x, g: log_det.detach()),
        r"the gradient of log_det is that of log\|det dz/dx\|: along a random direction: ",
    ),
    "log_det wrong in training": (
        lambda: Altered(woken(), only_in_training),
        r"log_det = log\|det dz/dx\| in training mode: ",
    ),
    "estimate with a bias": (log_det_changed(noisy(0.5)), EQUAL + "mean over passes: "),
    "estimate from nowhere": (
        log_det_changed(lambda log_det, x, g: log_det + torch.randn(len(x))),
        "log_det is a function of the generator, one or one for each row: log_det of the same seed",
    ),
    "inverse off by 1e-3": (
        lambda: Altered(woken(), inverse=lambda self, z: self.flow.inverse(z) + 1e-3),
        r"inverse\(forward\(x\)\) = x: largest error 1.0e-03 at index",
    ),
    "inverse of another flow": (lambda: Altered(woken(), inverse=lambda self, z: z), r"inverse\(forward\(x\)\) = x"),
    "batch norm": (lambda: Altered(woken(), batch_norm), "a row is the same alone and in a batch: z of row 0 alone"),
    "x is written to": (
        lambda: Altered(woken(), lambda self, x, g: self.flow(x.mul_(2), g)),
        "x, which forward writes to",
    ),
    "a folded z": (
        lambda: Altered(woken(), lambda self, x, g: (self.flow(x, g)[0].flip(1).abs(), self.flow(x, g)[1])),
        r"inverse\(forward\(x\)\) = x",
    ),
}


@pytest.mark.parametrize("name", FLOW_MUTANTS)
def test_a_wrong_flow_is_named(name):
    make, message = FLOW_MUTANTS[name]
    with pytest.raises(AssertionError, match=message) as failure:
        check_flow(make(), (2,))
    assert str(failure.value).startswith("Altered ")
    assert "\n" not in str(failure.value)


def test_an_unbiased_estimate_passes():
    """What the mutant with a bias differs from, by half a standard deviation."""
    check_flow(log_det_changed(noisy(0.0))(), (2,))


def test_a_series_without_the_roulettes_weights_is_named(monkeypatch):
    monkeypatch.setattr(Roulette, "weights", lambda self, num_extra: [1.0] * (self.exact + num_extra))
    flow = near_identity((2,), (1,), Roulette(law="geometric", parameter=0.6, exact=2))
    with pytest.raises(
        AssertionError, match=r"ResFlow as given: log_det = log\|det dz/dx\| in training mode: mean over passes"
    ):
        check_flow(flow, (2,))


def test_a_flow_is_seen_away_from_the_identity():
    """At the start a wrong log_det is 0 like the right one."""
    wrong = log_det_changed(lambda log_det, x, g: log_det + log_det.square(), glow(start="identity"))()
    with pytest.raises(AssertionError, match=r"Altered with its parameters moved: log_det = log\|det dz/dx\|"):
        check_flow(wrong, (2,))


def changed(**methods):
    """An INDM with a Glow, and methods of its own."""
    law = type("Wrong", (INDM,), methods)
    return lambda: law(glow(), SmallBackbone(2), VP(), shape=(2,))


def scalar_objective(self, x, y=None, generator=None):
    losses = INDM.forward(self, x, y, generator)
    return losses._replace(objective=losses.objective.mean())


def attached(self, x, y=None, generator=None):
    losses = INDM.forward(self, x, y, generator)
    return losses._replace(terms=losses.terms | {"nelbo": losses.objective})


def renamed(self, x, y=None, generator=None):
    losses = INDM.forward(self, x, y, generator)
    return losses._replace(terms={"bound": losses.terms["nelbo"]})


def frozen(self, x, y=None, generator=None):
    """A flow that nothing reaches: the encoding is detached."""
    losses = INDM.forward(self, x, y, generator)
    hold = 0 * sum(p.sum() for p in self.score_model.parameters())
    return losses._replace(objective=losses.objective.detach() + hold)


def one_flow_less(self):
    return {"score": self.score_model}


def wide_start(self, like, generator=None, temperature=1.0):
    return 1.1 * INDM.sample_start(self, like, generator, temperature)


def without_constant(self, u, generator=None):
    return INDM.log_prob_start(self, u, generator) + 0.5 * u[0].numel() * math.log(2 * math.pi)


def of_the_batch(self, u, t, y=None):
    return INDM.score(self, u - u.mean(0), t, y)


MODEL_MUTANTS = {
    "decode forgets the flow": (
        changed(decode=lambda self, u: self.sde.project(u)),
        r"x to project\(encode\(x\)\): inverse\(forward\(x\)\) = x",
    ),
    "log_det zeroed": (
        changed(encode=lambda self, x, generator=None: (INDM.encode(self, x, generator)[0], x.new_zeros(len(x)))),
        r"x to project\(encode\(x\)\): log_det = log\|det dz/dx\|",
    ),
    "density without its constant": (
        changed(log_prob_start=without_constant),
        r"log_prob_start is the log-density of sample_start: the mean of q\(u\) / p\(u\): .* should be 1",
    ),
    "draws wider than the density": (
        changed(sample_start=wide_start),
        r"log_prob_start is the log-density of sample_start: the mean of grad log p\(u\) \. \(u - m\): .* should be -2",
    ),
    "a network left out": (
        changed(networks=one_flow_less),
        "parameters belong to none of \\['score'\\], as flow.levels",
    ),
    "networks that share": (
        changed(networks=lambda self: {"score": self.score_model, "flow": self}),
        r"parameters belong to two of the networks \['flow', 'score'\]",
    ),
    "evaluations of another network": (
        changed(evaluations=lambda self: {"score": 1, "drift": 1}),
        r"evaluations of \['drift', 'score'\] in phase 'joint', of \['flow', 'score'\]",
    ),
    "a network that learns nothing": (changed(forward=frozen), r"no phase gives a gradient to \['flow', 'score'\]"),
    "the objective of a batch": (
        changed(forward=scalar_objective),
        r"objective in phase 'joint': shape \(\), should be \(4,\)",
    ),
    "a term that is not detached": (changed(forward=attached), "term nelbo in phase 'joint' carries a gradient"),
    "no nelbo": (changed(forward=renamed), "lack 'nelbo' in phase 'joint'"),
    "a score of the batch": (changed(score=of_the_batch), "its score: .*: a row is the same alone and in a batch"),
    "float32 times": (
        changed(times=lambda self, num_steps, low: INDM.times(self, num_steps, low).float()),
        "times are torch.float32",
    ),
    "increasing times": (
        changed(times=lambda self, num_steps, low: INDM.times(self, num_steps, low).flip(0)),
        r"the decrease of times: smallest value -0.5 at index \(0,\), should be positive",
    ),
    "noise from nowhere": (
        changed(sample_start=lambda self, like, generator=None, temperature=1.0: temperature * torch.randn_like(like)),
        "sample_start follows seed and temperature",
    ),
    "no temperature": (
        changed(
            sample_start=lambda self, like, generator=None, temperature=1.0: INDM.sample_start(self, like, generator)
        ),
        "sample_start follows seed and temperature: rows at temperature 0",
    ),
    "infinite bound": (
        changed(nelbo=lambda self, x, **options: INDM.nelbo(self, x, **options) / 0),
        r"nelbo and nll are finite, \(b,\): nelbo: -?inf",
    ),
}


@pytest.mark.parametrize("name", MODEL_MUTANTS)
def test_a_wrong_model_is_named(name):
    make, message = MODEL_MUTANTS[name]
    with pytest.raises(AssertionError, match=message) as failure:
        check_model(make())
    assert str(failure.value).startswith("Wrong ")
    assert "\n" not in str(failure.value)


def test_what_a_checkpoint_loses_is_named():
    """A buffer of the model that is in none of its networks."""

    def gained(self, u, t, y=None):
        return INDM.score(self, u, t, y) * self.gain.to(u)

    model = changed(score=gained)()
    model.register_buffer("gain", torch.tensor(2.0))
    with pytest.raises(
        AssertionError, match=r"a checkpoint of networks\(\) brings the model back: the score, to the last bit"
    ):
        check_model(model)


def test_what_raises_in_training_is_named():
    def refuses_training(self, x, generator):
        if self.training:
            raise RuntimeError("not in training")
        return self.flow(x, generator)

    with pytest.raises(AssertionError, match=r"in training mode: it raises RuntimeError: not in training"):
        check_flow(Altered(woken(), refuses_training), (2,))


def test_a_check_gives_the_same_message_every_time():
    wrong, messages = log_det_changed(noisy(0.5)), []
    for seed in (1, 2):
        torch.manual_seed(0)
        made = wrong()
        torch.manual_seed(seed)
        with pytest.raises(AssertionError) as failure:
            check_flow(made, (2,))
        messages.append(str(failure.value))
    assert messages[0] == messages[1]
