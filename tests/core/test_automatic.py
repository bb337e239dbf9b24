"""What sampler=auto stands for, on every SDE."""

from __future__ import annotations

import pytest
from problems import FIVE, MODELS, ids

from indm_core.automatic import settled
from indm_core.draw import check_sampling, draw_by, times_of
from indm_core.sampling import Sampling, sampler_of

LEARNED = ("DiffFlow", "FFJORD")


@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("sde", FIVE, ids=ids)
def test_auto_is_an_integrator_with_the_evaluations_that_are_given(sde, nfe):
    taken = settled(sde, Sampling(sampler="auto", nfe=nfe, temperature=0.9, denoise=False, stop=0.01, grid="uniform"))
    assert (taken.sampler, taken.num_steps, taken.nfe) == ("deis", nfe, nfe)
    assert (taken.temperature, taken.denoise, taken.stop, taken.grid) == (0.9, False, 0.01, "uniform")
    assert settled(sde, taken) is taken
    assert settled(sde, Sampling(sampler="auto")).nfe == 20


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(LEARNED)])
def test_on_a_learned_diffusion_it_is_another(name):
    model = MODELS[name]()
    assert settled(model.sde, Sampling(sampler="auto", nfe=7)) == Sampling(sampler="em", nfe=7)
    assert settled(model.sde, Sampling(sampler="auto")) == Sampling(sampler="ode")
    check_sampling(model, Sampling(sampler="auto"))
    with pytest.raises(ValueError, match="grid=fitted needs a linear diffusion"):
        check_sampling(model, Sampling(sampler="auto", nfe=7, grid="fitted"))


def test_a_model_is_sampled_by_what_auto_takes():
    model = MODELS["INDM"]().double()
    auto, taken = Sampling(sampler="auto", nfe=5), settled(model.sde, Sampling(sampler="auto", nfe=5))
    assert times_of(model, auto).equal(times_of(model, taken))
    first, second = (draw_by(model, range(2), sampling) for sampling in (auto, taken))
    assert first.evaluations == 5
    assert first.x.equal(second.x)
    assert str(auto) == "auto:nfe=5"
    assert str(Sampling(sampler="auto")) == "auto"


def test_auto_alone_is_no_function():
    with pytest.raises(ValueError, match="sampler=auto: it depends on the diffusion"):
        sampler_of(Sampling(sampler="auto"))
    with pytest.raises(ValueError, match="order=1: sampler=auto does not read it"):
        Sampling(sampler="auto", order=1)
