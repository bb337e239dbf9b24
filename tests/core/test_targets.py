"""Targets: constants, samples and scores against quadrature, torch.distributions and Stein's identities."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems import randn, rng
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    LogNormal,
    MixtureSameFamily,
    Normal,
    Poisson,
    StudentT,
)

from indm_core.noise import seeded
from indm_core.pis import log_z
from indm_core.pis.targets import (
    LGCP,
    Brownian,
    Funnel,
    GaussianMixture,
    LogisticRegression,
    ManyWell,
    Posterior,
    Rings,
    StudentMixture,
    Target,
    brownian,
    mog40,
    nine_modes,
    score,
    students,
)
from indm_core.pis.targets.quadrature import Panels

F64 = torch.float64
MVN = torch.distributions.MultivariateNormal
POINTS = torch.rand(50, 2, dtype=F64, generator=rng())


def two_gaussians() -> GaussianMixture:
    roots = 0.3 * randn(2, 3, 3) + torch.eye(3, dtype=F64)
    weights = torch.tensor([1.0, 3.0], dtype=F64)
    return GaussianMixture(2 * randn(2, 3, seed=1), covs=roots @ roots.mT, weights=weights)


def regression() -> LogisticRegression:
    return LogisticRegression(randn(20, 2), torch.arange(20) % 3 == 0)


EXACT: dict[str, Callable[[], Target]] = {
    "two Gaussians": two_gaussians,
    "nine modes": nine_modes,
    "MoG40": lambda: mog40(50),
    "Student": lambda: students(3),
    "funnel": Funnel,
    "unit funnel": lambda: Funnel(1.0, 4),
    "rings": Rings,
    "wide rings": lambda: Rings((0.5, 2.0), 0.6),
    "many wells": lambda: ManyWell(6),
    "Brownian": brownian,
}
"""Targets whose log Z and samples are known."""
TARGETS = EXACT | {
    "logistic regression": regression,
    "LGCP": lambda: LGCP(POINTS, 4),
    "whitened LGCP": lambda: LGCP(POINTS, 4, whitened=True),
    "posterior": lambda: Posterior(2, lambda z: -z.square().sum(1), lambda z: z.tanh()[:, 0]),
}
exact = pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
every = pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)


@exact
def test_samples_fulfil_steins_identities(make):
    """E[score] = 0 and E[x_i score_i] = -1, whatever Z; a law of another place or scale fulfils neither."""
    target, num = make(), 2000
    x = target.sample(num, rng())
    found = score(target, x)
    for terms in (found, x * found + 1):
        assert (terms.mean(0).abs() < 5 * terms.std(0) / math.sqrt(num)).all()
    assert target.exact
    assert math.isfinite(target.log_z)


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_values_and_gradients_follow_the_dtype_of_x_and_are_finite(make, dtype):
    target = make()
    x = torch.cat([torch.zeros(1, target.dim), torch.randn(20, target.dim, generator=rng())]).to(dtype)
    for moved in (target, target.float(), target.double()):
        log_prob, gradient = moved.log_prob(x), score(moved, x)
        assert log_prob.dtype == gradient.dtype == dtype
        assert log_prob.shape == (21,)
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()
        assert not list(moved.parameters())
        assert not moved.state_dict()


@exact
def test_samples_have_the_dtype_of_the_constants_and_a_stream_each(make):
    target = make()
    together, alone = target.sample(3, seeded([4, 5, 6])), target.sample(1, seeded([5]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)
    assert together.dtype == F64
    single = target.float().sample(3, rng())
    assert single.dtype == torch.float32
    assert single.isfinite().all()


@pytest.mark.parametrize(
    ("target", "half"),
    [
        (nine_modes(), 10.0),
        (Rings(), 4.0),
        (Rings((0.5, 2.0), 0.6), 6.0),
        (Rings((0.1,), 0.3), 3.0),
        (ManyWell(2), 8.0),
        (Funnel(1.0, 2), 0.0),
    ],
    ids=["nine modes", "rings", "wide rings", "disc", "many wells", "funnel"],
)
def test_densities_of_the_plane_integrate_to_their_constant(target, half):
    """Sums over a grid; the funnel's is in (x_0, x_1 e^{-x_0/2}), the other densities' in x."""
    line = torch.linspace(-(half or 8), half or 8, 501, dtype=F64)
    x = torch.cartesian_prod(line, line)
    log_det = torch.zeros(len(x), dtype=F64) if half else x[:, 0] / 2
    x = torch.stack([x[:, 0], x[:, 1] * log_det.exp()], 1)
    total = (target.log_prob(x) + log_det).logsumexp(0) + 2 * math.log(line[1] - line[0])
    assert float(total) == pytest.approx(target.log_z, abs=1e-4)


def test_mixtures_are_those_of_torch():
    x = 3 * randn(50, 3)
    ours = two_gaussians()
    law = MixtureSameFamily(Categorical(ours.weights), MVN(ours.means, ours.covs))
    torch.testing.assert_close(ours.log_prob(x), law.log_prob(x))
    diagonal = GaussianMixture(ours.means, stds=randn(2, 3).exp(), weights=ours.weights)
    full = GaussianMixture(ours.means, covs=diagonal.covs, weights=ours.weights)
    torch.testing.assert_close(diagonal.log_prob(x), full.log_prob(x))
    student = StudentMixture(ours.means, freedom=3, weights=torch.tensor([0.2, 0.8], dtype=F64))
    three = torch.tensor(3.0, dtype=F64)
    law = MixtureSameFamily(Categorical(student.weights), Independent(StudentT(three, student.means), 1))
    torch.testing.assert_close(student.log_prob(x), law.log_prob(x))


def test_published_mixtures_are_as_described():
    nine, forty, student = nine_modes(), mog40(50, seed=3), students(4)
    torch.testing.assert_close(nine.covs, 0.3 * torch.eye(2, dtype=F64).expand(9, 2, 2))
    assert torch.cdist(nine.modes, nine.modes).add(99 * torch.eye(9)).min() == 5
    assert forty.means.shape == (40, 50)
    assert 39 < forty.means.abs().max() < 40
    assert float(forty.roots.max()) == float(forty.roots.min()) == pytest.approx(1.31326, abs=1e-5)
    assert student.means.shape == (10, 4)
    assert 8 < student.means.abs().max() < 10
    assert student.freedom == 2
    torch.testing.assert_close(mog40(2, 1).means, mog40(2, 1).means, rtol=0, atol=0)


@pytest.mark.parametrize("make", [nine_modes, lambda: mog40(2), two_gaussians], ids=["nine modes", "MoG40", "two"])
def test_samples_of_mixtures_have_their_moments(make):
    target, num = make(), 20_000
    x, w, means = target.sample(num, rng()), target.weights, target.means
    mean = w @ means
    cov = torch.einsum("k,kij->ij", w, target.covs) + torch.einsum("k,ki,kj->ij", w, means - mean, means - mean)
    centred = x - mean
    assert (centred.mean(0).abs() < 5 * centred.std(0) / math.sqrt(num)).all()
    products = centred[:, :, None] * centred[:, None]
    assert ((products.mean(0) - cov).abs() < 5 * products.std(0) / math.sqrt(num)).all()


def test_students_samples_have_its_quantiles():
    """P(|y| < sqrt 2) = 1/sqrt 2 for two degrees of freedom."""
    target = StudentMixture(torch.zeros(1, 2, dtype=F64))
    share = (target.sample(20_000, rng()).abs() < math.sqrt(2)).double().mean()
    assert float(share) == pytest.approx(math.sqrt(0.5), abs=5 * math.sqrt(0.25 / 40_000))


def test_the_funnel_is_that_of_torch():
    x = randn(30, 10)
    law = Normal(0.0, x[:, :1].mul(0.5).exp())
    expected = Normal(0.0, 3.0).log_prob(x[:, 0]) + law.log_prob(x[:, 1:]).sum(1)
    torch.testing.assert_close(Funnel().log_prob(x), expected)
    assert float(Funnel().sample(20_000, rng())[:, 0].std()) == pytest.approx(3, rel=5 / math.sqrt(40_000))


def test_rings_share_their_mass_as_their_lengths():
    """Of thin rings."""
    x = Rings((1.0, 3.0), 0.05).sample(20_000, rng())
    r = x.norm(dim=1)
    assert float((r > 2).double().mean()) == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 20_000))
    assert float(r[r < 2].std()) == pytest.approx(0.05, rel=0.05)
    assert (x.mean(0).abs() < 5 * x.std(0) / math.sqrt(20_000)).all()


def test_many_wells_have_the_published_constant():
    assert ManyWell().log_z == pytest.approx(16 * (math.log(11784.50927) + 0.5 * math.log(2 * math.pi)), abs=1e-7)
    assert ManyWell(2).log_z * 16 == pytest.approx(ManyWell(32).log_z)


def test_exact_samples_visit_as_many_wells_as_expected():
    target = ManyWell(6)
    wells = target.wells(target.sample(2400, rng())).reshape(200, 12)
    visits = torch.tensor([len(set(row)) for row in wells.tolist()], dtype=F64)
    assert float(visits.mean()) == pytest.approx(
        target.expected_wells(12), abs=5 * float(visits.std() / math.sqrt(200))
    )
    x = target.sample(20_000, rng())
    right = (x[:, ::2] > 0).double().mean()
    assert float(right) == pytest.approx(target.right, abs=5 * math.sqrt(target.right * (1 - target.right) / 60_000))
    assert target.wells(x).unique().tolist() == list(range(8))
    assert target.expected_wells(10**6) == pytest.approx(8, abs=1e-6)


def test_quantiles_are_those_of_the_density():
    """Of e^{-y}, and of two of them at once."""
    panels = Panels(low=0.0, high=40.0, num=8000)
    rate = torch.tensor([[1.0], [3.0]], dtype=F64)
    log_mass, cdf = panels.integrated(-rate * panels.nodes())
    torch.testing.assert_close(log_mass, -rate[:, 0].log())
    u = torch.tensor([[0.0, 0.3, 0.9], [0.0, 0.5, 0.999]], dtype=F64)
    torch.testing.assert_close(panels.quantile(cdf, u), -(1 - u).log() / rate, rtol=1e-5, atol=1e-5)


def test_brownian_is_that_of_torch_in_the_scales_and_their_logarithms():
    target = brownian()
    x = 0.5 * randn(20, 32)
    a, b, walk = x[:, 0], x[:, 1], x[:, 2:]
    prior = LogNormal(torch.zeros((), dtype=F64), 2.0)
    expected = prior.log_prob(a.exp()) + a + prior.log_prob(b.exp()) + b  # densities of the scales, and log-Jacobians
    before = torch.cat([torch.zeros(20, 1, dtype=F64), walk[:, :-1]], 1)
    expected = expected + Normal(before, a.exp()[:, None]).log_prob(walk).sum(1)
    seen = [*range(10), *range(20, 30)]
    assert target.seen.tolist() == seen
    expected = expected + Normal(walk[:, seen], b.exp()[:, None]).log_prob(target.y).sum(1)
    torch.testing.assert_close(target.log_prob(x), expected)


def test_the_constant_of_brownian_is_that_of_its_gaussians():
    """A sum over both scales of the Gaussian law of what is seen."""
    target = Brownian(torch.tensor([0.3, math.nan, -0.5, 0.8], dtype=F64))
    line = torch.linspace(-14, 14, 141, dtype=F64)
    a, b = torch.cartesian_prod(line, line).unbind(1)
    at = torch.tensor([1.0, 3.0, 4.0], dtype=F64)
    cov = (2 * a).exp()[:, None, None] * torch.minimum(at[:, None], at) + (2 * b).exp()[:, None, None] * torch.eye(3)
    log_p = MVN(torch.zeros(3, dtype=F64), cov).log_prob(target.y)
    prior = Normal(0.0, 2.0)
    total = (log_p + prior.log_prob(a) + prior.log_prob(b)).logsumexp(0) + 2 * math.log(0.2)
    assert float(total) == pytest.approx(target.log_z, abs=1e-6)


def test_samples_of_brownian_are_those_of_the_weighted_prior():
    target, num = Brownian(torch.tensor([0.3, -0.5], dtype=F64)), 100_000
    x, z = target.sample(2000, rng()), randn(num, 4, seed=1)
    scales = 2 * z[:, :2]
    walk = scales[:, :1].exp() * z[:, 2:].cumsum(1)
    log_w = Normal(walk, scales[:, 1:].exp()).log_prob(target.y).sum(1)
    value, se = log_z(log_w)
    assert abs(value - target.log_z) < 5 * se < 0.2
    y, w = torch.cat([scales, walk], 1), log_w.softmax(0)[:, None]
    for function in (
        lambda x: x.tanh(),
        lambda x: x.tanh() ** 2,
        lambda x: x[:, :2] ** 2,
        lambda x: x[:, :1] * x[:, 1:].tanh(),
    ):
        terms, ours = function(y), function(x)
        mean = (w * terms).sum(0)
        error = (w * (terms - mean)).square().sum(0) + ours.var(0) / len(ours)
        assert ((mean - ours.mean(0)).abs() < 5 * error.sqrt()).all()


def test_logistic_regression_is_that_of_torch():
    features, y, x = randn(20, 2), torch.arange(20) % 3 == 0, randn(7, 3, seed=1)
    log_odds = x[:, :2] @ features.mT + x[:, 2:]
    expected = Bernoulli(logits=log_odds).log_prob(y.double()).sum(1) + Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(LogisticRegression(features, y).log_prob(x), expected)


def lgcp_by_torch(x: Tensor, grid: int) -> Tensor:
    """log mu^ with K, the counts and the Poisson law written out."""
    cells = [(i, j) for i in range(grid) for j in range(grid)]
    K = torch.tensor([[1.91 * math.exp(-33 * math.dist(p, q) / grid) for q in cells] for p in cells], dtype=F64)
    counts = torch.tensor(
        [sum((int(p[0] * grid), int(p[1] * grid)) == cell for p in POINTS.tolist()) for cell in cells], dtype=F64
    )
    mean = torch.full((grid**2,), math.log(len(POINTS)) - 1.91 / 2, dtype=F64)
    constant = (counts * math.log(1 / grid**2) - torch.lgamma(counts + 1)).sum()
    return MVN(mean, K).log_prob(x) + Poisson(x.exp() / grid**2).log_prob(counts).sum(1) - constant


def test_lgcp_is_that_of_torch():
    x = 3 + randn(10, 16)
    target = LGCP(POINTS, 4)
    torch.testing.assert_close(target.log_prob(x), lgcp_by_torch(x, 4))
    torch.testing.assert_close(target.log_prob(x.float()).double(), lgcp_by_torch(x, 4), rtol=1e-4, atol=1e-4)


def test_whitened_lgcp_is_the_same_law():
    """Its log-density differs by log |L|, and both have the same constant."""
    plain, white = LGCP(POINTS, 4), LGCP(POINTS, 4, whitened=True)
    x = 3 + randn(10, 16)
    z = white.white(x)
    torch.testing.assert_close(white.field(z), x)
    difference = white.log_prob(z) - plain.log_prob(x)
    torch.testing.assert_close(difference, plain.root.logdet().expand(10))


@pytest.mark.parametrize("whitened", [False, True])
def test_the_constant_of_lgcp_is_that_of_its_cells(whitened):
    """By importance sampling; two by two cells are independent to 1e-7, so that Z is a product of integrals over one."""
    target, white = LGCP(POINTS, 2, whitened=whitened), LGCP(POINTS, 2, whitened=True)
    line = torch.linspace(-5, 10, 4001, dtype=F64)
    log_height = Normal(math.log(50) - 1.91 / 2, math.sqrt(1.91)).log_prob(line) - line.exp() / 4
    truth = float((log_height + target.counts[:, None] * line).logsumexp(1).sum()) + 4 * math.log(15 / 4000)
    z = white.white((4 * target.counts).log()[None]) + 0.3 * randn(10_000, 4)
    log_q = Normal(z.new_tensor(0.0), 0.3).log_prob(z - white.white((4 * target.counts).log()[None])).sum(1)
    log_w = target.log_prob(z if whitened else white.field(z)) - log_q
    value, se = log_z(log_w if whitened else log_w + white.root.logdet())
    assert abs(value - truth) < 5 * se < 0.1


def test_points_on_the_far_edges_are_counted():
    corners = torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert LGCP(corners, 3).counts.reshape(3, 3).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]


def test_a_posterior_has_the_probability_of_the_observation_as_its_constant():
    """z ~ N(0, I), y ~ N(z_0 + z_1, 0.5^2): p(y) = N(y; 0, 2.25)."""
    y = torch.tensor(0.7, dtype=F64)
    prior = Independent(Normal(torch.zeros(2, dtype=F64), 1.0), 1)
    target = Posterior(2, prior.log_prob, lambda z: Normal(z.sum(1), 0.5).log_prob(y))
    line = torch.linspace(-8, 8, 401, dtype=F64)
    total = target.log_prob(torch.cartesian_prod(line, line)).logsumexp(0) + 2 * math.log(0.04)
    assert float(total) == pytest.approx(-0.5 * 0.7**2 / 2.25 - 0.5 * math.log(2 * math.pi * 2.25), abs=1e-9)


class Decoded(torch.nn.Module):
    """The likelihood of 1 under N(A z, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.nn.Linear(2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return -0.5 * (1 - self.A(z)[:, 0]).square()


def test_a_decoder_moves_with_the_posterior_and_is_not_trained():
    target = Posterior(2, lambda z: -z.square().sum(1), Decoded().requires_grad_(False)).double()
    assert score(target, torch.zeros(3, 2, dtype=F64)).dtype == F64
    with pytest.raises(ValueError, match=r"log_likelihood\.A\.weight asks for a gradient"):
        Posterior(2, lambda z: -z.square().sum(1), Decoded())


ONE, TWO = torch.zeros(1, 2), torch.zeros(2, 2)
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: GaussianMixture(torch.zeros(2), stds=torch.ones(2, 1)), "means of the shape"),
    (lambda: GaussianMixture(TWO / 0, stds=torch.ones(2, 1)), "means of the shape"),
    (lambda: GaussianMixture(TWO), "give one of the two"),
    (lambda: GaussianMixture(ONE, stds=torch.ones(1, 1), covs=torch.eye(2)[None]), "give one of the two"),
    (lambda: GaussianMixture(TWO, stds=torch.ones(2)), r"stds of the shape \(2,\)"),
    (lambda: GaussianMixture(ONE, stds=torch.zeros(1, 1)), "positive numbers"),
    (lambda: GaussianMixture(ONE, covs=torch.eye(2)), "covs of the shape"),
    (lambda: GaussianMixture(TWO, covs=torch.stack([torch.eye(2), -torch.eye(2)])), r"covs\[1\]"),
    (lambda: GaussianMixture(ONE, covs=torch.tensor([[[1.0, 0.3], [0.0, 1.0]]])), "symmetric"),
    (lambda: GaussianMixture(TWO, stds=torch.ones(2, 1), weights=torch.tensor([1.0, 0.0])), "give 2 positive"),
    (lambda: StudentMixture(ONE, freedom=0), "freedom=0"),
    (lambda: mog40(0), "dim=0"),
    (lambda: Funnel(scale=0.0), "scale=0"),
    (lambda: Funnel(dim=1), "at least 2"),
    (lambda: Rings(()), "at least one"),
    (lambda: Rings((1.0, -1.0)), "radii="),
    (lambda: Rings(width=math.nan), "width=nan"),
    (lambda: ManyWell(5), "must be even"),
    (lambda: ManyWell(126).wells(torch.zeros(1, 126)), "at most 124"),
    (lambda: Brownian(torch.full((3,), math.nan)), "at least one"),
    (lambda: Brownian(torch.tensor([math.inf])), "finite"),
    (lambda: Brownian(torch.zeros(20)), "y between 0 and 0"),
    (lambda: Brownian(torch.tensor([1e8])), r"y between 1e\+08"),
    (lambda: LogisticRegression(TWO, torch.tensor([0, 2])), "y=2"),
    (lambda: LogisticRegression(TWO, torch.tensor([0])), "2 labels"),
    (lambda: LogisticRegression(TWO / 0, torch.tensor([0, 1])), "finite"),
    (lambda: LGCP(torch.tensor([[0.5, 1.5]]), 3), "outside the unit square"),
    (lambda: LGCP(torch.tensor([[0.5, math.nan]]), 3), "outside the unit square"),
    (lambda: LGCP(torch.zeros(0, 2), 3), "at least one"),
    (lambda: LGCP(TWO, 0), "grid=0"),
    (lambda: LGCP(TWO, 3, variance=-1.0), "variance=-1"),
    (lambda: Posterior(0, torch.ones_like, torch.ones_like), "dim=0"),
    (lambda: Posterior(2, torch.ones_like, torch.ones_like).log_prob(TWO), r"log_prior gave the shape \(2, 2\)"),
    (lambda: Funnel().sample(0), "num=0"),
    (lambda: regression().sample(3), "no exact samples"),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_arguments_are_refused(call, said, unchecked):
    with pytest.raises(ValueError, match=said):
        call()
