"""Learning rates that decay: their law, and a resumed training that has the rates it would have had."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SmallBackbone, randn, rng

from indm_core.flow import Identity
from indm_core.model import INDM
from indm_core.sde import VP
from indm_core.training import AdamW, Trainer, step_seed

COSINE = AdamW(lr=1e-2, warmup=4, decay="cosine", decay_to=0.1)


def test_a_rate_rises_falls_by_half_a_cosine_and_ends_at_its_fraction():
    rates = [COSINE.rate(step, 24) for step in range(24)]
    assert rates[:4] == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2, 1e-2])
    assert rates[4] == 1e-2
    assert rates[14] == pytest.approx((1 + 0.1) / 2 * 1e-2)  # half-way
    assert rates[9] == pytest.approx(1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert COSINE.rate(24, 24) == pytest.approx(1e-3)


def test_a_cosine_of_torch_is_the_same():
    settings = AdamW(lr=3e-3, decay="cosine")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=50)
    for step in range(50):
        assert settings.rate(step, 50) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        theirs.step()


def test_an_exponential_rate_falls_by_the_same_factor_at_every_step():
    """0.95 every 50 of 1500 steps, as the path integral sampler was published with, once it has warmed up."""
    settings = AdamW(lr=5e-3, warmup=100, decay="exponential", decay_to=0.95**30)
    assert settings.rate(99, 1600) == settings.rate(100, 1600) == 5e-3
    for k in (0, 1, 25, 30):
        assert settings.rate(100 + 50 * k, 1600) == pytest.approx(5e-3 * 0.95**k, rel=1e-12)
    assert settings.rate(2000, 1600) == settings.rate(1600, 1600)


def test_without_decay_a_rate_is_what_it_was():
    for warmup in (0, 7):
        settings = AdamW(lr=2e-4, warmup=warmup)
        for step in range(20):
            then = 2e-4 * min(1.0, (step + 1) / warmup) if warmup else 2e-4
            assert settings.rate(step, 0) == then


def make() -> Trainer:
    torch.manual_seed(0)
    model = INDM(Identity(), SmallBackbone(2, 16), VP(), shape=(2,)).double()
    return Trainer(model, {"score": COSINE}, steps=12)


def go(trainer: Trainer, steps: range) -> None:
    for step in steps:
        trainer.step([(randn(16, 2, seed=100 + step), None)], rng(step_seed(0, step, 0)))


def test_a_resumed_training_decays_on_bit_for_bit():
    whole, begun, resumed = make(), make(), make()
    go(whole, range(12))
    go(begun, range(7))
    resumed.load(*begun.state())
    go(resumed, range(7, 12))
    (mine, _), (theirs, _) = whole.state(), resumed.state()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert whole.optimisers["score"].param_groups[0]["lr"] == COSINE.rate(11, 12) < 0.3e-2


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_a_fraction_outside_of_0_and_1_is_refused(wrong):
    with pytest.raises(ValueError, match="decay_to"):
        AdamW(decay_to=wrong)


def test_an_exponential_rate_does_not_come_to_0():
    with pytest.raises(ValueError, match=r"decay_to=0: .* decay cosine"):
        AdamW(decay="exponential")


def test_a_training_as_short_as_its_warm_up_is_refused():
    with pytest.raises(ValueError, match="steps=4"):
        COSINE.check_steps(4)
