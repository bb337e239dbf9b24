r"""The identities of a generative model: what trainers, samplers and likelihoods rely on.

encode and decode are checked as a flow from x to what `project` sees of the state. SDE and score have checks of their own,
which run first. The law at t_start is known twice, by its draws and by its density p, and the two must agree:

    E_p[q(u) / p(u)] = 1                               for any density q, here a Gaussian narrower than the draws,
    E_p[grad log p(u) . (u - m)] = -D                  (Stein), m any point and D the dimensions of u,

the first of which finds a missing constant. Training: every network learns in some phase, none is left out, and a checkpoint
brings back every number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.checks.claims import at_least, equal, finite, holds, like, positive, seeded, unbiased, verify
from indm_core.checks.flow import FLOW, GIVEN, Bijection, copies, limited, move
from indm_core.checks.score import check_score
from indm_core.checks.sde import check_sde
from indm_core.likelihood import nelbo, nll
from indm_core.model import GenerativeModel, Losses
from indm_core.noise import Noise
from indm_core.training import load_networks, network_tensors

__all__ = ["MODEL", "check_model"]

NUM_DRAWS = 4000


@dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    """A copy of a model, four events and what `forward` takes beside them."""

    model: GenerativeModel
    x: Tensor
    y: Tensor | None

    @property
    def precision(self) -> float:
        return 1e-9 if self.x.dtype == torch.float64 else 1e-3

    def forward(self) -> Losses:
        """The losses of one seed; networks with dropout draw from torch's own generator."""
        torch.manual_seed(0)
        return self.model(self.x, self.y, seeded(0))

    def start(self, num: int, generator: Noise) -> Tensor:
        with torch.no_grad():
            return self.model.sample_start(self.model.state_like(num, self.x), generator)

    def phases(self) -> Iterator[str]:
        """Enters every phase that the steps 0, 1, 2, 4, ..., 2^40 belong to."""
        seen: dict[str, None] = dict.fromkeys(self.model.phase(step) for step in (0, *(2**k for k in range(41))))
        for phase in seen:
            self.model.begin_phase(phase)
            yield phase


def _has_a_place_in_time(case: _Case) -> None:
    model, sde = case.model, case.model.sde
    inside = sde.t_min < model.t_start <= sde.t_max * (1 + 1e-9)
    holds(inside, f"t_start={model.t_start:g}, should lie in (t_min, t_max] = ({sde.t_min:g}, {sde.t_max:g}]")
    t = model.times(2, sde.t_min)
    holds(t.dtype == torch.float64 and t.ndim == 1 and len(t) >= 2, f"times are {t.dtype} of shape {tuple(t.shape)}")
    positive(-t.diff(), of="the decrease of times")
    equal(t[0], torch.tensor(model.t_start, dtype=torch.float64), 1e-9 * model.t_start, of="the first of times")
    at_least(t[-1], sde.t_min * (1 - 1e-9), of="the last of times")


def _has_states(case: _Case) -> None:
    model, state = case.model, case.model.state_like(len(case.x), case.x)
    u, log_det = model.encode(case.x, seeded(0))
    like(u, state, of="u of encode, against state_like")
    like(log_det, case.x.flatten(1)[:, 0], of="log_det of encode")
    like(model.sample_start(state, seeded(0)), state, of="sample_start")
    like(model.log_prob_start(u, seeded(0)), log_det, of="log_prob_start")
    like(model.decode(u), case.x, of="decode")


def _gives_losses(case: _Case) -> None:
    case.model.train()
    for phase in case.phases():
        losses = case.forward()
        _are_losses(case, losses, phase)
        single = case.model(case.x[:1], None if case.y is None else case.y[:1], seeded(0))
        like(single.objective, case.x[:1].flatten(1)[:, 0], of=f"objective of a batch of one in phase {phase!r}")
        again = case.forward().objective
        limit = case.precision * (1 + again.abs())
        equal(losses.objective, again, limit, of=f"objective of the same seed in phase {phase!r}")
    case.model.eval()


def _are_losses(case: _Case, losses: Losses, phase: str) -> None:
    holds("nelbo" in losses.terms, f"terms {sorted(losses.terms)} lack 'nelbo' in phase {phase!r}")
    holds(losses.objective.requires_grad, f"objective carries no gradient in phase {phase!r}")
    for name, value in ({"objective": losses.objective} | losses.terms).items():
        like(value, case.x.flatten(1)[:, 0], of=f"{name} in phase {phase!r}")
        finite(value, of=f"{name} in phase {phase!r}")
        holds(name == "objective" or not value.requires_grad, f"term {name} in phase {phase!r} carries a gradient")


def _trains_every_network(case: _Case) -> None:
    model, networks = case.model, case.model.networks()
    owners = {id(p): name for name, network in networks.items() for p in network.parameters()}
    shared = sum(len(list(network.parameters())) for network in networks.values()) - len(owners)
    holds(shared == 0, f"{shared} parameters belong to two of the networks {sorted(networks)}")
    orphans = [name for name, p in model.named_parameters() if id(p) not in owners]
    holds(not orphans, f"{len(orphans)} parameters belong to none of {sorted(networks)}, as {next(iter(orphans), '')}")
    learned, zero = set[str](), torch.zeros(1)
    model.train()
    for phase in case.phases():
        counted = sorted(model.evaluations())
        holds(counted == sorted(networks), f"evaluations of {counted} in phase {phase!r}, of {sorted(networks)}")
        model.zero_grad()
        case.forward().objective.mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name, gradient in gradients.items():
            finite(gradient, of=f"the gradient of {name} in phase {phase!r}")
        learned |= {owners[id(p)] for name, p in model.named_parameters() if bool(gradients.get(name, zero).any())}
    model.eval()
    still = sorted(networks.keys() - learned)
    holds(not still, f"no phase gives a gradient to {still}")


def _has_likelihoods(case: _Case) -> None:
    row = case.x.flatten(1)[:, 0]
    for num_draws in (1, 2):
        first, again = (nelbo(case.model, case.x, num_draws=num_draws, generator=seeded(1)) for _ in range(2))
        like(first, row, of="nelbo")
        finite(first, of="nelbo")
        equal(again, first, case.precision * (1 + first.abs()), of="nelbo of the same seed")
    value = nll(case.model, case.x[:2], rtol=0.1, atol=0.1, generator=seeded(2))
    like(value, row[:2], of="nll")
    finite(value, of="nll")


def _starts_from_its_seed(case: _Case) -> None:
    model, u = case.model, case.start(3, [seeded(seed) for seed in range(3)])
    limit = 1e-4 * (1 + u.abs())
    equal(u[1:2], case.start(1, [seeded(1)]), limit[1:2], of="a row by its own generator")
    like_u = model.state_like(3, case.x)
    with torch.no_grad():
        warm, default, cold = (model.sample_start(like_u, seeded(0), *t) for t in ((1.0,), (), (0.0,)))
    equal(warm, default, limit, of="temperature 1")
    equal(cold, cold[:1].expand_as(cold), 1e-4 * (1 + cold.abs()), of="rows at temperature 0")


def _has_the_density_of_its_start(case: _Case) -> None:
    """The constant is not claimed of an estimate, nor where less than a tenth of the draws bear the weights."""
    seen, u = case.start(NUM_DRAWS, seeded(1)).flatten(1), case.start(NUM_DRAWS, seeded(2)).requires_grad_()
    mean, cov = seen.mean(0), seen.T.cov().reshape(seen.shape[1], -1)
    log_p = case.model.log_prob_start(u, seeded(3))
    finite(log_p, of="log_prob_start")
    (score,) = torch.autograd.grad(log_p.sum(), u)
    away = u.detach().flatten(1) - mean
    stein = (score.flatten(1) * away).sum(1)
    D = torch.tensor(-float(away.shape[1]), dtype=stein.dtype)
    unbiased(stein, D, 1e-6 * away.shape[1], of="the mean of grad log p(u) . (u - m)")
    again = case.model.log_prob_start(u.detach()[:8], seeded(4)).detach()
    narrow = torch.distributions.MultivariateNormal(mean, 0.8 * cov)
    weights = (narrow.log_prob(u.detach().flatten(1)) - log_p.detach()).double()
    share = float(2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)) - math.log(NUM_DRAWS)
    if share > math.log(0.1) and torch.allclose(again, log_p.detach()[:8], rtol=1e-3, atol=1e-3):
        unbiased(weights.exp(), torch.ones((), dtype=torch.float64), 1e-6, of="the mean of q(u) / p(u)")


def _comes_back_from_its_tensors(case: _Case) -> None:
    model, u = case.model, case.start(4, seeded(1))
    t, limit = torch.tensor(0.5 * model.t_start, dtype=torch.float64), max(1e-6, case.precision)
    model.encode(case.x, seeded(0))  # what follows the weights by iterations has followed them
    twin = copy.deepcopy(model)
    move(value for value in twin.state_dict().values() if value.is_floating_point())
    load_networks(twin, {name: value.clone() for name, value in network_tensors(model).items()})
    with torch.no_grad():
        equal(twin.score(u, t), model.score(u, t), of="the score, to the last bit")
        for name, of in (("log_det of encode", _log_det), ("log_prob_start", _log_prob_start)):
            expected = of(model, case.x, u)
            equal(of(twin, case.x, u), expected, limit * (1 + expected.abs()), of=name)


def _log_det(model: GenerativeModel, x: Tensor, u: Tensor) -> Tensor:
    return model.encode(x, seeded(0))[1]


def _log_prob_start(model: GenerativeModel, x: Tensor, u: Tensor) -> Tensor:
    return model.log_prob_start(u, seeded(0))


MODEL = {
    "states, log-dets and densities have their shapes and the dtype of x": _has_states,
    "t_start lies in (t_min, t_max] and times decrease from it": _has_a_place_in_time,
    "forward gives finite losses (b,) of every phase, 'nelbo' among them": _gives_losses,
    "every parameter belongs to one network of networks(), and every network learns": _trains_every_network,
    "sample_start follows seed and temperature": _starts_from_its_seed,
    "log_prob_start is the log-density of sample_start": _has_the_density_of_its_start,
    "nelbo and nll are finite, (b,)": _has_likelihoods,
    "a checkpoint of networks() brings the model back": _comes_back_from_its_tensors,
}


def check_model(model: GenerativeModel, *, y: Tensor | None = None, tolerance: float = 1e-4) -> None:
    """The identities of a generative model: those of its SDE, its score and its encoding (`FLOW`), and its own (`MODEL`).

    The model itself is left as it is: its parameters, gradients, buffers, mode and phase.

    Args:
        model: An instance small enough for the Jacobian of its encoding.
        y: What `forward` takes beside x, (16, ...): labels, or a bridge's second batch.
        tolerance: Of decode(encode(x)) = x, relative to max(1, |x|).

    Raises:
        AssertionError: an identity does not hold. The message names it, its largest error, where and what should be there.
        ValueError: a model of more than 256 dimensions.
    """
    shape = limited(model.shape)

    def run(model: GenerativeModel, x: Tensor) -> Tensor:
        return model(x, _cast(y, x), seeded(0)).objective

    for setting, copied, dtype in copies(model, shape, run):
        x = torch.randn(4, *shape, generator=seeded(5), dtype=torch.float64).to(dtype)
        case = _Case(model=copied, x=x, y=None if y is None else _cast(y[:4], x))
        name = f"{type(model).__name__} {setting}"
        if setting == GIVEN:
            verify(name, {"its SDE": lambda case: check_sde(case.model.sde, shape=shape)}, case)
        score = {"its score": lambda case: check_score(case.model.score, case.model.sde, shape)}
        verify(name, score | MODEL, case)
        verify(f"{name}: x to project(encode(x))", FLOW, _bijection(case, tolerance))


def _cast(y: Tensor | None, x: Tensor) -> Tensor | None:
    """Data in the dtype of x, labels as they are."""
    return y.to(x) if y is not None and y.is_floating_point() else y


def _bijection(case: _Case, tolerance: float) -> Bijection:
    """The encoding as a flow: where a state is more than its data, the embedding adds constants that do not count."""
    model, sde = case.model, case.model.sde

    def forward(x: Tensor, generator: Noise) -> tuple[Tensor, Tensor]:
        u, log_det = model.encode(x, generator)
        return sde.project(u), log_det

    def inverse(z: Tensor) -> Tensor:
        return model.decode(sde.embed(z))

    z = torch.randn(3, *model.shape, generator=seeded(4), dtype=torch.float64).to(case.x)
    return Bijection(module=model, forward=forward, inverse=inverse, x=case.x[:3], z=z, tolerance=tolerance)
