r"""Labels: how training drops them, how the score and the likelihood take them, and guided samples of a law that is known.

Of the law N(m_y, v) of a class y and the law N(0, v_0) of all, at a time at which x has become p x + r eps, the guided score

    s(u, y) + w (s(u, y) - s(u))        s(u, y) = -(u - p m_y)/(p^2 v + r^2),      s(u) = -u/(p^2 v_0 + r^2)

is linear in u. Where v_0 = v it is the score of N((1 + w) m_y, v), whose samples are known at every w.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import SmallBackbone, glow, randn, rng, scalar
from torch import Tensor, nn

from indm_core.draw import draw, draw_by, start_times, times_of
from indm_core.flow import Identity
from indm_core.likelihood import nelbo, nll
from indm_core.model import INDM, DiffFlow, DiNof, Objective
from indm_core.model.labels import dropped, labels_of, null_of
from indm_core.nn import MLP
from indm_core.sample import sample_ode
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import CLD, VP, apply, inverse

K = 3
MEANS = torch.tensor([[0.0], [-1.0], [2.0]]).double()
"""Of none and of two classes."""
V = 0.25


class TwoClasses(nn.Module):
    """eps_hat of N(m, v), m the mean of the class, or between those of several by weights."""

    def __init__(self, sde: VP) -> None:
        super().__init__()
        self.sde, self.seen = sde, []
        self.means = nn.Parameter(MEANS.clone())

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.append(y)
        t = t.reshape(-1, 1)
        p, cov = self.sde.psi0(t), self.sde.cov(t)
        y = torch.full((len(x),), -1) if y is None else y
        mean = y @ self.means if y.is_floating_point() else self.means[y + 1]
        score = -apply(inverse(V * p @ p.mT + cov), x.unsqueeze(-1) - apply(p, mean.unsqueeze(-1)))
        return self.sde.eps_from_score(score, t).squeeze(-1)


def two_classes() -> INDM:
    sde = VP()
    return INDM(Identity(), TwoClasses(sde), sde, shape=(1,), num_classes=2)


def conditional(kind: str = "INDM", seed: int = 0, num_classes: int = K, **objective: Any) -> Any:
    torch.manual_seed(seed)
    sde = CLD() if kind == "CLD" else VP()
    dims = 4 if kind == "CLD" else 2
    backbone = MLP(dims, time_feature=lambda t: 5 * t, width=16, depth=1, num_classes=num_classes)
    nn.init.normal_(backbone.dense_out.weight, std=0.3)
    options = {"shape": (2,), "objective": Objective(**objective), "num_classes": num_classes}
    if kind == "DiNof":
        return DiNof(glow(), Identity(), backbone, sde, t_m=0.5, **options).double()
    return INDM(Identity() if kind == "linear" else glow(), backbone, sde, **options).double()


EVERY = pytest.mark.parametrize("kind", ["INDM", "linear", "CLD", "DiNof"])


def test_labels_are_dropped_as_often_as_is_said():
    y = torch.arange(40_000) % K
    kept = dropped(y, 0.1, rng())
    share = (kept == -1).double().mean()
    assert abs(share - 0.1) < 5 * (0.09 / len(y)) ** 0.5
    assert torch.equal(kept[kept >= 0], y[kept >= 0])
    assert torch.equal(dropped(y, 1.0, rng()), torch.full_like(y, -1))
    assert torch.equal(dropped(y, 0.5, rng(1)), dropped(y, 0.5, rng(1)))


def test_without_dropout_nothing_is_drawn():
    generator, before = rng(3), rng(3).get_state()
    y = torch.arange(4)
    assert dropped(y, 0.0, generator) is y
    assert torch.equal(generator.get_state(), before)


def test_weights_are_dropped_row_by_row():
    weights = torch.eye(K + 1)[torch.arange(1000) % K + 1]
    as_labels = dropped(torch.arange(1000) % K, 0.3, rng())
    assert torch.equal(dropped(weights, 0.3, rng()), torch.eye(K + 1)[as_labels + 1])
    assert torch.equal(null_of(weights), torch.eye(K + 1)[0])


@EVERY
def test_with_all_labels_dropped_the_losses_are_those_of_a_model_without(kind):
    model, x, y = conditional(kind, label_dropout=1.0), randn(8, 2), torch.arange(8) % K
    without = conditional(kind, num_classes=0)
    tensors = {name: value for name, value in model.state_dict().items() if "embed.labels" not in name}
    without.load_state_dict(tensors)
    found, expected = model(x, y, rng(1)), without(x, None, rng(1))
    assert torch.equal(found.objective, expected.objective)
    assert all(torch.equal(found.terms[name], term) for name, term in expected.terms.items())


@EVERY
def test_the_losses_are_those_of_the_labels_that_are_left(kind):
    """And all other draws are those of a model that keeps its labels."""
    x, y = randn(64, 2), torch.arange(64) % K
    kept, half, none = (conditional(kind, label_dropout=p)(x, y, rng(1)).objective for p in (0.0, 0.5, 1.0))
    assert (kept != none).all()
    assert ((half == kept) | (half == none)).all()
    assert 16 < int((half == none).sum()) < 48


@EVERY
def test_likelihoods_take_each_rows_label(kind):
    """Row by row they are those of a batch of one class, and weights between classes are taken as well."""
    model, x, y = conditional(kind).eval(), randn(4, 2), torch.tensor([0, 1, 2, -1])
    noise = [torch.Generator().manual_seed(i) for i in range(4)]
    nodes = [(scalar(0.3), randn(4, *model.state_like(1, x).shape[1:], seed=5), 0.4)]
    bound = lambda y: nelbo(model, x, nodes=nodes, y=y)  # noqa: E731
    ode = lambda y: nll(model, x, residual=False, exact_divergence=True, rtol=1e-3, atol=1e-3, generator=noise, y=y)  # noqa: E731
    for estimate in (bound, ode):
        together = estimate(y)
        for i, label in enumerate(y.tolist()):
            each = estimate(torch.full((4,), label))
            torch.testing.assert_close(together[i], each[i], rtol=1e-6, atol=0)
        torch.testing.assert_close(estimate(torch.eye(K + 1).double()[y + 1]), together)
    assert len(set(bound(y).tolist())) == 4
    torch.testing.assert_close(bound(None), bound(torch.full((4,), -1)))


def test_weights_of_a_network_lie_between_its_classes():
    net = conditional().score_model.backbone
    x, t = randn(1, 2), scalar(0.4).reshape(1)
    table = net.embed.labels.weight
    weights = torch.tensor([[0.5, 0.0, 0.2, 0.3]]).double()
    mean = (weights @ table)[0]
    with torch.no_grad():
        found = net(x, t, weights)
        table[1] = mean
    torch.testing.assert_close(found, net(x, t, torch.tensor([0])))
    with pytest.raises(ValueError, match=r"y has the shape \(1, 3\): weights over none and 3 classes are \(b, 4\)"):
        net(x, t, weights[:, :3])


def test_no_gradient_reaches_the_vector_of_none():
    model = conditional(label_dropout=0.0)
    weights = torch.full((8, K + 1), 0.25).double()
    model(randn(8, 2), weights, rng()).objective.sum().backward()
    grad = model.score_model.backbone.embed.labels.weight.grad
    assert torch.equal(grad[0], torch.zeros_like(grad[0]))
    assert (grad[1:] != 0).all()


@pytest.mark.parametrize("t", [0.02, 0.5])
@pytest.mark.parametrize("w", [0.0, 0.7, 3.0])
def test_guided_samples_follow_the_law_that_their_score_belongs_to(w, t):
    """By the ODE, of which a Gaussian is carried along exactly: mean (1 + w) m_y, at any time."""
    model = two_classes()
    y, sde = torch.tensor([0, 1, 1, 0, 1]), model.sde
    ts = torch.tensor([1.0, t]).double()
    options = {"generator": rng(2), "denoise": False, "label": y, "guidance": w}
    like = torch.zeros((), dtype=torch.float64)
    sampler = lambda *given: sample_ode(*given[:4], rtol=1e-9, atol=1e-9, y=given[5])  # noqa: E731
    x = draw(model, sampler, ts, like, 5, **options)
    u = sde.sample_prior(model.state_like(5, like), rng(2))[..., 0]

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        p, r2 = sde.psi0(t)[0, 0], sde.cov(t)[0, 0]
        return (1 + w) * p * MEANS[y + 1], (p * p * V + r2).sqrt()

    (m_1, s_1), (m_0, s_0) = moments(ts[0]), moments(ts[1])
    torch.testing.assert_close(x, m_0 + s_0 / s_1 * (u - m_1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ode", "em", "pc", "deis"])
def test_a_sample_has_the_label_that_it_is_given(name):
    """In any batch, by every sampler; and guidance is counted as what it takes."""
    model, y = two_classes(), torch.tensor([0, 1, 0, 0, 1])
    options: dict[str, Any] = {"sampler": name, "nfe": 21}
    together = model.sample(5, label=y, guidance=0.5, **options)
    for label in (0, 1):
        alone = model.sample(5, label=label, guidance=0.5, batch_size=2, **options)
        torch.testing.assert_close(together[y == label], alone[y == label])
    sampling = Sampling.named(name, 21)
    plain, guided = (draw_by(model, range(5), sampling, label=y, guidance=w).evaluations for w in (0.0, 0.5))
    if name != "ode":  # whose number of steps depends on the score
        assert guided == 2 * plain
    rows = sum(len(seen) for seen in model.score_model.backbone.seen[-1:])
    assert rows == 10


def test_between_two_classes_lie_samples_between_them():
    model, weights = two_classes(), torch.tensor([[0.0, 0.25, 0.75]]).double().expand(3, 3)
    options: dict[str, Any] = {"sampler": Sampling(rtol=1e-8, atol=1e-8), "nfe": 10}
    found, first = (model.sample(3, label=label, **options) for label in (weights, 0))
    mean = 0.25 * MEANS[1] + 0.75 * MEANS[2]
    torch.testing.assert_close(found - first, (mean - MEANS[1]).expand(3, 1), rtol=1e-2, atol=1e-2)


def test_without_a_label_nothing_changes():
    """A sampler of five arguments is called with five, and no label is that of none."""
    model = two_classes()
    seen = []

    def sampler(sde, score, u, ts, generator):
        seen.append(score)
        return sample_ode(sde, score, u, ts)

    like = torch.zeros((), dtype=torch.float64)
    plain = draw(model, sampler, start_times(model), like, 2, generator=rng())
    none = draw(
        model, sampler_of(Sampling(rtol=1e-5, atol=1e-5)), start_times(model), like, 2, generator=rng(), label=-1
    )
    assert seen == [model.score]
    torch.testing.assert_close(plain, none)


REFUSED = {
    "a class that there is not": (lambda: two_classes().sample(2, label=2), "label=2: .* the classes 0 to 1"),
    "a label below none": (lambda: two_classes().sample(2, label=-2), "label=-2: .* the classes 0 to 1"),
    "of another number": (lambda: two_classes().sample(2, label=torch.tensor([0, 1, 1])), "one for each of 2 samples"),
    "weights of another width": (lambda: two_classes().sample(2, label=torch.ones(2, 2)), r"\(2, 3\)"),
    "a model without": (lambda: conditional(num_classes=0).sample(2, label=1), "label=1: .* trained without labels"),
    "guidance without": (lambda: two_classes().sample(2, guidance=2.0), "guidance=2: .* give a label"),
    "guidance away": (lambda: two_classes().sample(2, label=0, guidance=-1.0), "guidance=-1.0 must not be negative"),
    "a row's class, NELBO": (lambda: nelbo(two_classes(), randn(1, 1), y=torch.tensor([2])), "label=2"),
    "a row's class, NLL": (lambda: nll(two_classes(), randn(1, 1), y=torch.tensor([7])), "label=7"),
    "no probability": (lambda: Objective(label_dropout=1.5), r"label_dropout=1.5 must lie in \[0, 1\]"),
    "DiffFlow": (
        lambda: DiffFlow(SmallBackbone(3), SmallBackbone(3), shape=(3,)).sample(1, sampler="em", nfe=4, label=1),
        "label=1: .* trained without labels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_label_of_the_model_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_one_label_is_that_of_all():
    assert torch.equal(labels_of(2, 3, 5), torch.tensor([2, 2, 2]))
    assert torch.equal(labels_of(torch.tensor([0, -1]), 2, 5), torch.tensor([0, -1]))
    assert times_of(two_classes(), Sampling())[0] == 1
