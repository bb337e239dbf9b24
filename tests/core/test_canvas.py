r"""Canvases of a model of pieces whose law is known: an AR(1) of coefficient rho along the last axis, with its class's mean.

Its piece of n positions at u_t = p x + r eps has the score -(p^2 C_n + r^2 I)^{-1} (u - p m), and a separator likewise.
"""

from __future__ import annotations

import pytest
import torch
from problems import Affine, randn, rng, scalar
from torch import Tensor, nn

from indm_core.collage import Pixels, chain, collage, grid, loop, reconstruction, replacement
from indm_core.draw import Join, canvas, draw_by, draw_canvases
from indm_core.flow import Identity, ResFlow
from indm_core.model import INDM, DiffFlow, Objective
from indm_core.model.elbo import entropy_production
from indm_core.model.score import likelihood_error
from indm_core.nn import MLP
from indm_core.sampling import Sampling
from indm_core.sde import BDM, CLD, VP, apply, inverse

RHO, MEANS = 0.8, (0.0, -1.0, 2.0)
"""Means of none and of two classes."""
DDIM = Sampling(sampler="deis", steps=8, order=0)
LANGEVIN = Sampling(sampler="collage", steps=15)


class Chain(nn.Module):
    """eps_hat of the AR(1) on events of any length, all rows alike."""

    def __init__(self, sde: VP, narrow: float = 1.0) -> None:
        super().__init__()
        self.sde, self.scale = sde, nn.Parameter(torch.ones((), dtype=torch.float64))
        self.variances = torch.tensor([1.0, narrow, narrow], dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        at = torch.arange(x.shape[-1], dtype=torch.float64)
        t = t.reshape(-1, 1)
        p, r_square = self.sde.psi(t, t * 0)[..., 0, 0], self.sde.cov(t)[..., 0, 0]
        y = torch.full((len(x),), -1) if y is None else y
        law = self.variances[y + 1].reshape(-1, 1, 1) * RHO ** (at[:, None] - at).abs()
        noised = p.unsqueeze(-1) ** 2 * law + r_square.unsqueeze(-1) * torch.eye(len(at))
        mean = p * torch.tensor(MEANS, dtype=torch.float64)[y + 1].unsqueeze(-1)
        rows = x.reshape(len(x), -1, x.shape[-1]) - mean.unsqueeze(-1)
        eps = r_square.sqrt().unsqueeze(-1) * torch.linalg.solve(noised, rows.mT).mT
        return self.scale * eps.reshape(x.shape)


def model(shape: tuple[int, ...] = (1, 2, 6), num_classes: int = 2, narrow: float = 1.0) -> INDM:
    """narrow: the variance of a class, where that of none is 1."""
    return INDM(Identity(), Chain(VP(), narrow), VP(), shape=shape, num_classes=num_classes).eval()


def test_its_score_is_the_collage_of_the_models():
    graph, made = chain(4, 6, 2), model()
    on = canvas(made, graph)
    assert on.shape == (1, 2, 18)
    assert on.state_like(3, torch.zeros(())).shape == (3, 1, 2, 18, 1)
    u = randn(3, 1, 2, 18, 1)
    assert torch.equal(on.score(u, scalar(0.3)), collage(made.score, graph)(u, scalar(0.3)))


@pytest.mark.parametrize("join", ["collage", "tiles", "naive", "shifted", "replacement", "reconstruction"])
def test_a_canvas_depends_on_its_seed_alone(join: Join):
    on = canvas(model(), chain(3, 6, 2), join=join)
    drawn = draw_canvases(on, range(5), DDIM)
    one = draw_canvases(on, [3], DDIM)
    assert drawn.x.shape == (5, 1, 2, 14)
    assert torch.allclose(drawn.x[3], one.x[0], atol=1e-10)
    assert drawn.evaluations == one.evaluations


def test_evaluations_of_a_collage_are_of_canvases_and_others_of_pieces():
    graph = chain(3, 6, 2)
    nfe = {
        join: draw_canvases(canvas(model(), graph, join=join), [0], DDIM).evaluations
        for join in ("collage", "replacement")
    }
    assert nfe == {"collage": 9, "replacement": 3 * 8}


def test_the_corrected_sampler_ends_in_the_chain_and_tiles_do_not_hang_together():
    """One row of 20 positions, pieces of 8 with overlap 4: the chain's lags, within the bias of the Langevin step."""
    graph, num = chain(4, 8, 4), 1500
    made = model((1, 1, 8))
    corrected = Sampling(sampler="collage", steps=30, denoise=False)
    x = draw_canvases(canvas(made, graph), range(num), corrected).x.reshape(num, 20)
    empirical = x.mT @ x / num
    for lag in (0, 1, 2, 10):
        assert empirical.diagonal(lag).mean() == pytest.approx(RHO**lag, abs=0.06)
    apart = draw_canvases(canvas(made, graph, join="tiles"), range(num), DDIM).x.reshape(num, 20)
    across = (apart[:, 7] * apart[:, 8]).mean()
    assert abs(float(across)) < 5 / num**0.5
    inside = (apart[:, 6] * apart[:, 7]).mean() / (apart[:, 6].std() * apart[:, 7].std())
    assert float(inside) == pytest.approx(RHO, abs=0.1)


def test_naive_is_the_network_on_the_whole_canvas():
    made = model()
    u = randn(2, 1, 2, 14, 1)
    assert torch.equal(canvas(made, chain(3, 6, 2), join="naive").score(u, scalar(0.2)), made.score(u, scalar(0.2)))


def test_each_factor_has_its_class_and_separators_have_none():
    made, graph = model(), chain(3, 6, 2)
    u, t = randn(2, 1, 2, 14, 1), scalar(0.3)
    y = torch.tensor([0, 1, -1])
    by_hand = collage(made.score, graph, y)(u, t)
    assert torch.allclose(canvas(made, graph, condition=y).score(u, t), by_hand)
    weights = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    with pytest.raises(IndexError):  # this backbone reads labels alone, the weights have come through
        canvas(made, graph, condition=weights).score(u, t)


def test_guidance_leads_the_regions_that_have_a_class():
    """s(u, y) + w (s(u, y) - s(u)) of each factor, s(u) of each separator."""
    made, graph, w = model(), chain(3, 6, 2), 1.5
    u, t, y = randn(2, 1, 2, 14, 1), scalar(0.3), torch.tensor([0, 1, -1])
    plain, led = (collage(made.score, graph, c)(u, t) for c in (torch.full((3,), -1), y))
    assert torch.allclose(canvas(made, graph, condition=y, guidance=w).score(u, t), led + w * (led - plain))


def test_a_label_of_the_whole_canvas_reaches_every_region():
    made, graph = model(), chain(3, 6, 2)
    drawn = draw_canvases(canvas(made, graph), range(200), DDIM, label=1).x
    assert float(drawn.mean()) == pytest.approx(2.0, abs=0.3)
    shifted = draw_canvases(canvas(made, graph, join="shifted"), range(100), DDIM, label=1).x
    assert float(shifted.mean()) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("guide", [replacement, reconstruction])
def test_what_is_known_of_a_canvas_stays(guide):
    on = canvas(model(), chain(3, 6, 2))
    known = torch.zeros(2, 14, dtype=torch.bool)
    known[:, :3] = True
    x = 2 * randn(1, 1, 2, 14)
    given = draw_canvases(on.given(guide, Pixels(known), x), range(3), Sampling(sampler="deis", steps=60, order=0)).x
    assert (given[..., :3] - x[..., :3]).abs().max() < (0.02 if guide is replacement else 0.3)
    assert (given[0, ..., 6:] - given[1, ..., 6:]).abs().max() > 0.1


def test_a_graph_of_two_axes_takes_images_of_any_number_of_channels():
    made = INDM(Identity(), _Zero(), VP(), shape=(3, 4, 4)).eval()
    on = canvas(made, grid(2, 3, 4, 2))
    assert draw_canvases(on, [0], DDIM).x.shape == (1, 3, 6, 8)


class _Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.scale * x


BAD = {
    "pieces": (lambda: canvas(model(), chain(3, 5, 2)), "factor 0.*trained on pieces of"),
    "learned drift": (lambda: canvas(_diffflow(), chain(3, 2, 1)), "its drift is learned"),
    "blurring": (
        lambda: canvas(INDM(Identity(), _Zero(), BDM(height=4, width=4), shape=(1, 4, 4)), chain(2, 4, 2)),
        "not independent per position",
    ),
    "mlp": (
        lambda: canvas(
            INDM(Identity(), MLP(6, time_feature=lambda t: t, width=8, depth=1), VP(), shape=(6,)), chain(3, 6, 2)
        ),
        "variable 0: the network cannot score a region of shape \\(2,\\)",
    ),
    "labels": (
        lambda: canvas(model(num_classes=0), chain(3, 6, 2), condition=torch.tensor([0, 1, 1])),
        "without labels",
    ),
    "class": (lambda: canvas(model(), chain(3, 6, 2), condition=torch.tensor([0, 1, 2])), "classes 0 to 1"),
    "length": (
        lambda: canvas(model(), chain(3, 6, 2), condition=torch.tensor([0, 1])),
        "condition: has 2 entries for 3",
    ),
    "guidance": (lambda: canvas(model(), chain(3, 6, 2), guidance=1.0), "leads towards a class"),
    "tiles of a grid": (lambda: canvas(model((1, 6, 6)), grid(2, 2, 6, 2), join="tiles"), "it is of chains"),
    "known of pieces": (
        lambda: canvas(model(), chain(3, 6, 2), join="replacement").given(
            replacement, Pixels(torch.ones(14).bool()), randn(1, 1, 2, 14)
        ),
        "join=replacement: it has no score of the whole canvas",
    ),
    "ode of pieces": (
        lambda: draw_canvases(canvas(model(), chain(3, 6, 2), join="replacement"), range(3), Sampling()),
        "sampler=ode: it takes canvases out of their batch",
    ),
    "ode of what is known of each": (
        lambda: draw_canvases(
            canvas(model(), chain(3, 6, 2)).given(replacement, Pixels(torch.ones(14).bool()), randn(3, 1, 2, 14)),
            range(3),
            Sampling(),
        ),
        "sampler=ode: it takes canvases out of their batch",
    ),
    "shifted by another sampler": (
        lambda: draw_canvases(canvas(model(), chain(3, 6, 2), join="shifted"), [0], Sampling(sampler="em", steps=2)),
        "join=shifted takes steps of DDIM",
    ),
    "a label beside those of regions": (
        lambda: draw_canvases(canvas(model(), chain(3, 6, 2), condition=torch.tensor([0, 1, 1])), [0], DDIM, label=1),
        "label: this canvas has a condition for each region",
    ),
    "no seeds": (lambda: draw_canvases(canvas(model(), chain(3, 6, 2)), [], DDIM), "seeds: there are none"),
    "squeezed": (
        lambda: canvas(
            INDM(
                ResFlow((1, 8, 8), blocks=(0, 1), width=4, kernels=(3, 3), constraint="torus"),
                _Zero(),
                VP(),
                shape=(1, 8, 8),
            ),
            chain(2, 8, 3),
        ),
        "its flow takes no canvas of shape \\(1, 8, 13\\)",
    ),
    "known": (
        lambda: canvas(model(), loop(4, 6, 2)).given(replacement, Pixels(torch.ones(2, 16).bool()), randn(1, 2, 16)),
        "x: has shape",
    ),
}


def _diffflow() -> DiffFlow:
    networks = [MLP(2, time_feature=lambda t: t, width=4, depth=1) for _ in range(2)]
    return DiffFlow(*networks, shape=(2,))


@pytest.mark.parametrize("case", BAD)
def test_what_no_canvas_can_be_made_of_is_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


class _Windows:
    """Losses of a small linear model, with and without windows, on the same draws."""

    def __init__(self, sde, mode: str, seed: int = 3) -> None:
        shape = (1, 2, 6)
        self.sde, self.x = sde, randn(4, *shape, seed=seed)
        flow = Affine(torch.eye(6, dtype=torch.float64) + 0.1, torch.zeros(6, dtype=torch.float64))
        self.models = [
            INDM(flow, Chainlike(), sde, shape=shape, objective=Objective(mode=mode, **windows))  # type: ignore[arg-type]
            for windows in ({}, {"smallest_window": (2, 2), "window_step": 2})
        ]

    def losses(self):
        return [m(self.x, None, rng(5)) for m in self.models]


class Chainlike(nn.Module):
    """A convolution along the last axis: a network of events of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(3, seed=1) / 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, 1, x.shape[-1])
        return nn.functional.conv1d(rows, self.weight.reshape(1, 1, 3), padding=1).reshape(x.shape)


@pytest.mark.parametrize("mode", ["nll", "fid"])
def test_windows_add_the_scores_loss_and_nothing_else(mode):
    """The added loss has the score's own gradient alone, and everything else is as it was, draw for draw."""
    case = _Windows(VP(), mode)
    (without, with_windows), (plain, windowed) = case.losses(), case.models
    for name, value in without.terms.items():
        assert torch.equal(value, with_windows.terms[name])
    added = (with_windows.objective - without.objective).mean()
    of_flow = torch.autograd.grad(added, list(windowed.flow.parameters()), retain_graph=True, allow_unused=True)
    same = torch.autograd.grad(without.objective.mean(), list(plain.flow.parameters()))
    assert all(g is None or g.abs().max() < 1e-12 * s.abs().max() for g, s in zip(of_flow, same, strict=True))
    assert torch.autograd.grad(added, list(windowed.score_model.parameters()))[0].abs().max() > 0


@pytest.mark.parametrize("sde", [VP(), CLD()], ids=["VP", "CLD"])
def test_the_loss_of_a_window_is_that_of_the_noised_window_alone(sde):
    """By hand: d/d_w times the likelihood-weighted error of the score at a window of u_t, with the noise of that window."""
    case = _Windows(sde, "nll")
    plain, windowed = case.models
    seen: list[tuple[Tensor, Tensor]] = []
    eps_of = windowed.score_model.eps
    windowed.score_model.eps = lambda u, t, y=None: seen.append((u.detach(), t)) or eps_of(u, t, y)  # type: ignore[method-assign]
    sides = set()
    for seed in range(30):
        seen.clear()
        without, found = plain(case.x, None, rng(seed)), windowed(case.x, None, rng(seed))
        (u_t, t), (u_w, _) = seen
        height, width = u_w.shape[2:4]
        first = next(a for a in range(0, 7 - width, 2) if torch.equal(u_t[:, :, :height, a : a + width], u_w))
        u_0, _ = windowed.encode(case.x)
        eps = apply(inverse(sde.R(t)), u_t - apply(sde.psi0(t), u_0))
        full, part = (
            eps_of(u, t).detach() - e for u, e in ((u_t, eps), (u_w, eps[:, :, :height, first : first + width]))
        )
        constant = entropy_production(sde, u_0, sde.t_min, sde.t_max)
        weight = (without.terms["denoising"] + constant) / likelihood_error(sde, full, t)
        wanted = u_t.numel() / u_w.numel() * weight * likelihood_error(sde, part, t) - constant
        assert torch.allclose(found.terms["windows"], wanted.detach(), rtol=1e-9)
        sides.add((height, width))
    assert sides == {(2, 2), (2, 4), (2, 6)}


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"smallest_window": (2,)}, "has 2 sides"),
        ({"smallest_window": (2, 7)}, "at most"),
        ({"smallest_window": (2, 3), "window_step": 2}, "window_step=2: it must divide"),
        ({"smallest_window": (0, 3)}, "smallest_window"),
        ({"smallest_window": (2, 3), "window_step": 0}, "window_step=0"),
    ],
)
def test_windows_that_do_not_fit_are_refused(windows, message):
    with pytest.raises(ValueError, match=message):
        INDM(Identity(), Chainlike(), VP(), shape=(1, 2, 6), objective=Objective(**windows))


def test_windows_need_noise_that_is_independent_per_position():
    with pytest.raises(ValueError, match="not independent per position"):
        INDM(Identity(), _Zero(), BDM(height=4, width=4), shape=(1, 4, 4), objective=Objective(smallest_window=(2, 2)))
    INDM(Identity(), _Zero(), CLD(), shape=(1, 4, 4), objective=Objective(smallest_window=(2, 2)))


def test_labels_of_shifted_tiles_go_with_their_canvases_through_chunks_of_pieces():
    on = canvas(model(), chain(3, 6, 2), join="shifted", max_pieces=3)
    y, few = torch.arange(4) % 2, Sampling(sampler="deis", steps=4, order=0)
    drawn = draw_canvases(on, range(4), few, label=y).x
    for i in range(4):
        assert torch.allclose(drawn[i], draw_canvases(on, [i], few, label=int(y[i])).x[0], atol=1e-10)


@pytest.mark.parametrize("sampler", ["deis", "em"])
def test_guided_canvases_are_drawn_by_every_sampler_and_cost_the_network_twice(sampler):
    sampling = Sampling(sampler=sampler, steps=4)
    led = canvas(model(), chain(3, 6, 2), condition=torch.tensor([0, 1, -1]), guidance=1.0)
    whole = canvas(model(), chain(3, 6, 2))
    costs = [draw_canvases(whole, [0], sampling).evaluations, draw_canvases(led, [0], sampling).evaluations]
    assert costs[1] == 2 * costs[0] == draw_canvases(whole, [0], sampling, label=1, guidance=1.0).evaluations


def test_a_guided_model_does_not_blow_up():
    """Classes far narrower than all: their precision becomes 1 + w = 10 in units of the noise's, and 0.5 x 10 > 2."""
    drawn = draw_by(model((1, 1, 4), narrow=0.01), range(4), LANGEVIN, label=0, guidance=9.0).x
    assert drawn.abs().max() < 20


@pytest.mark.parametrize(("overlap", "w"), [(1, 9.0), (3, 3.0)])
def test_guided_canvases_do_not_blow_up(overlap, w):
    """Of pieces that are led by their own labels, or by one of the whole canvas."""
    graph, narrow, y = chain(5, 4, overlap), model((1, 1, 4), narrow=0.01), torch.zeros(5).long()
    assert draw_canvases(canvas(narrow, graph, condition=y, guidance=w), range(4), LANGEVIN).x.abs().max() < 20
    assert draw_canvases(canvas(narrow, graph), range(4), LANGEVIN, label=0, guidance=w).x.abs().max() < 20


def test_a_canvas_without_a_graphs_samplers_is_drawn_like_a_model():
    on = canvas(model(), chain(3, 6, 2))
    assert torch.equal(draw_by(on, [0, 1], DDIM).x, draw_canvases(on, [0, 1], DDIM).x)
