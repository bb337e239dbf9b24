"""Samplers by name: options, grids, the rows of a table, and where sampling starts."""

from __future__ import annotations

import math

import pytest
import torch
from problems import ExactModel, Gaussian, SmallBackbone, ids
from ray_session import one_line

from indm_core.draw import check_sampling
from indm_core.model import DiffFlow
from indm_core.sampling import Sampling
from indm_core.sde import BDM, CLD, VE, VP, SubVP
from indm_core.times import edm_times, power_times
from pipelines.config.terminal.cli import override
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.shards import read_all
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.evaluation.sampling import draw_by, shown, times_of
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.evaluation.sampling.pieces import Pieces
from pipelines.evaluation.sampling.rows import TABLE, choose, family, parse_row, parse_rows, starts

SPEC = DataSpec(name="plane", shape=(2,), levels=0, low=-1.0, high=1.0, num_classes=0)
MEAN, COV = torch.tensor([0.4, -0.7]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()


def exact(sde=VP()) -> ExactModel:
    """A Gaussian law with its exact score, started from the prior, in float64 whatever it is given."""
    model = ExactModel(Gaussian(sde=sde, mean=MEAN, cov=COV), exact_start=False)
    model.state_like = lambda num, like: sde.embed(torch.zeros(num, 2, dtype=torch.float64))
    return model


def refused(given: dict[str, str], *parts: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        override(Sampling(), given)
    one_line(str(caught.value), *parts)


# Options.


@pytest.mark.parametrize(
    ("given", "grid"),
    [
        ({"sampler": "em", "steps": "8", "grid": "power"}, power_times(VP(), 8, 2.0)),
        ({"sampler": "em", "steps": "8", "grid": "power", "power": "3"}, power_times(VP(), 8, 3.0)),
        ({"sampler": "deis", "steps": "8", "power": "1.5"}, power_times(VP(), 8, 1.5)),
        ({"sampler": "deis", "steps": "8", "grid": "edm"}, edm_times(VP(), 8, 7.0)),
        ({"sampler": "pc", "steps": "8", "grid": "edm", "power": "5"}, edm_times(VP(), 8, 5.0)),
    ],
)
def test_the_power_of_a_grid_is_an_option(given, grid):
    assert torch.equal(times_of(exact(), override(Sampling(), given)), grid)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            {"sampler": "deis", "grid": "log-rho", "power": "3"},
            ["power=3.0", "grid=log-rho has no power; do not give it"],
        ),
        ({"sampler": "em", "power": "3"}, ["power=3.0", "grid=trained has no power", "grid=power or grid=edm"]),
        ({"sampler": "ode", "power": "3"}, ["power=3.0: sampler=ode does not read it; do not give "]),
        ({"sampler": "deis", "power": "-1"}, ["power=-1.0 must not be negative"]),
        ({"sampler": "pc", "order": "1"}, ["order=1: sampler=pc does not read it; do not give "]),
    ],
)
def test_an_option_that_is_not_read_is_refused_in_plain_words(given, parts):
    refused(given, *parts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("sampler", "name"),
    [("ode", "rtol"), ("ode", "atol"), ("em", "lam"), ("em", "power"), ("pc", "snr"), ("collage", "langevin_step")]
    + [("deis", name) for name in ("lam", "churn", "power", "temperature", "start_temperature", "stop")],
)
def test_numbers_that_are_not_finite_are_refused(sampler, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Sampling(sampler=sampler, **{name: value})


@pytest.mark.parametrize("name", ["steps", "nfe", "corrector_steps", "langevin_steps", "repeats"])
def test_more_steps_than_the_memory_holds_are_refused_at_once(name):
    refused({"sampler": "deis", name: "1e9"}, f"{name}=1000000000 must be at most 1,000,000")
    with pytest.raises(ValueError, match="num_steps=1000000000 must be at most 1,000,000"):
        power_times(VP(), 10**9, 2.0)


def test_steps_of_many_evaluations_are_found_at_once():
    assert Sampling(sampler="deis", nfe=1_000_000, order=2, warmup="exact").num_steps == 1_000_000 - 1 - 3 * 2


def test_a_rho_that_does_not_grow_is_refused_before_any_work():
    model = exact(CLD(gamma=0.4))
    for options, said in (
        ({"method": "log-rho-AB"}, "method='log-rho-AB'"),
        ({"method": "t-RK", "churn": 1.0}, "churn=1.0"),
    ):
        with pytest.raises(ValueError, match=f"{said} needs a rho that grows with t"):
            check_sampling(model, Sampling(sampler="deis", nfe=12, order=1, **options))
    check_sampling(model, Sampling(sampler="deis", nfe=12, order=0, method="log-rho-AB"))  # no polynomial


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(sampler="em", steps=7, lam=0.5, grid="edm", power=3.0),
        Sampling(sampler="deis", nfe=15, method="rho-RK", order=2, grid="edm"),
        Sampling(sampler="pc", steps=3, snr=0.1, denoise=False, temperature=0.9),
    ],
)
def test_a_sampling_is_written_as_the_row_that_names_it(sampling):
    assert parse_row(str(sampling)).sampling == sampling


# Rows.


@pytest.mark.parametrize(
    ("row", "sampling"),
    [
        (
            "deis:nfe=10,method=iPNDM,order=3,grid=edm",
            Sampling(sampler="deis", nfe=10, method="iPNDM", order=3, grid="edm"),
        ),
        ("deis:nfe=15,method=rho-RK,order=2", Sampling(sampler="deis", nfe=15, method="rho-RK", order=2)),
        ("deis:nfe=15,method=rho-RK,order=3", Sampling(sampler="deis", nfe=15, method="rho-RK", order=3)),
        (
            "deis:nfe=15,method=rho-AB:grid=edm,power=7",
            Sampling(sampler="deis", nfe=15, method="rho-AB", grid="edm", power=7.0),
        ),
        ("em:100:start=data", Sampling(sampler="em", steps=100)),
    ],
)
def test_rows_name_their_samplers(row, sampling):
    found = parse_row(row)
    assert found.sampling == sampling
    assert found.start == ("data" if "start" in row else "prior")


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("em:10:start=noise", ["start=noise is neither prior nor data"]),
        ("em:10,steps=5", ["steps is given twice"]),
        ("deis:10:nfe=5", ["steps and nfe both say how long"]),
        ("rk:10", ["one of auto, ode, em, pc, deis"]),
        ("deis:nfe=5,order=4", ["order=4 must be 0, 1, 2 or 3"]),
    ],
)
def test_a_row_that_names_no_sampler_is_refused(row, parts):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        CompareOptions(rows=f"em:5 {row}")
    one_line(str(caught.value), f"rows: {row!r}", *parts)


def test_a_table_needs_rows_and_three_samples():
    with pytest.raises(ValueError, match=r"rows='': there is nothing to compare; .*--rows table"):
        CompareOptions(rows="")
    with pytest.raises(ValueError, match=r"num_samples=2: a Frechet distance needs 3; give --num-samples 3"):
        CompareOptions(num_samples=2)


def test_the_named_table_is_a_set_of_rows():
    assert [row.text for row in parse_rows("table")] == list(TABLE)
    assert [row.text for row in parse_rows("em:3 table em:4 em:3")] == ["em:3", *TABLE]
    assert len({family(row) for row in TABLE}) == 8
    wanted = {f"deis:nfe={n},method={m}" for n in (5, 10, 15, 20, 50) for m in ("iPNDM", "rho-RK", "rho-AB")}
    assert all(any(row.startswith(want) for row in TABLE) for want in wanted)


@pytest.mark.parametrize(
    ("sde", "methods"),
    [
        (VP(), ()),
        (SubVP(), ()),
        (VE(), ()),
        (CLD(t_min=1e-3), ("rho-AB", "rho-RK")),
        (BDM(height=1, width=2), ("rho-AB", "rho-RK")),
    ],
    ids=ids,
)
def test_what_a_diffusion_does_not_allow_is_left_out_and_told(sde, methods):
    model = exact(sde)
    model.sde, model.shape = sde, (1, 1, 2) if isinstance(sde, BDM) else (2,)
    chosen = choose("table", model, "run")
    left_out = [row for row in TABLE if any(f"method={method}" in row for method in methods)]
    assert [row for row, _ in chosen.left_out] == left_out
    assert [row.text for row in chosen.rows] == [row for row in TABLE if row not in left_out]
    assert len(chosen.remarks()) == len(methods)
    for remark, method in zip(chosen.remarks(), methods, strict=True):
        one_line(remark, "left out: deis:nfe=5", f"method={method!r}: rho is no scalar for {type(sde).__name__}")
    for method in methods:
        with pytest.raises(ValueError, match="rho is no scalar") as caught:
            choose(f"table deis:nfe=10,method={method},order=3,grid=edm", model, "run")
        one_line(str(caught.value), "on run")  # what was named itself is not left out in silence


def test_a_learned_drift_leaves_euler_maruyama_and_the_ode():
    model = DiffFlow(SmallBackbone(2), SmallBackbone(2), shape=(2,), schedule=((0, 20),))
    chosen = choose("table", model, "run")
    assert [row.text for row in chosen.rows] == ["em:4", "em:9", "em:14", "em:19", "ode"]
    assert {why for row, why in chosen.left_out if row.startswith("deis")} == {
        "sampler=deis needs a linear diffusion, and the drift of this model is learned; take em, pc or ode"
    }


@pytest.mark.parametrize("row", [row for row in TABLE if row != "ode"])
def test_rows_of_the_table_take_no_more_than_they_say(row):
    """And, deterministic ones, reach at 50 evaluations what the adaptive solver reaches."""
    model = exact()
    drawn = draw_by(model, range(200), parse_row(row).sampling)
    allowed = parse_row(row).sampling.nfe or parse_row(row).sampling.steps + 1
    most_left = 1 + parse_row(row).sampling.order  # a whole step more does not fit in
    assert allowed - most_left <= drawn.evaluations <= allowed
    if row.startswith("deis:nfe=50"):
        reference = draw_by(model, range(200), Sampling(rtol=1e-8, atol=1e-8)).x
        worst = 0.05 if "order=0" in row else 0.005
        assert float((drawn.x - reference).norm() / reference.norm()) < worst


# Where sampling starts, and what comes out.


def test_sampling_from_data_starts_from_the_same_image_whatever_their_number(tmp_path):
    data = ensure("toy2d:rings", tmp_path, Options(rows=20))
    card = load_card(data)
    k = torch.from_numpy(read_all(data, card, "test")["x"])
    first, more = starts(data, card, 3), starts(data, card, 10)
    assert torch.equal(first, more[:3])
    assert torch.equal(more, k[torch.arange(10) % 4])  # four rows, repeated
    digits = ensure("digits", tmp_path)
    first, more = (starts(digits, load_card(digits), num) for num in (5, 400))
    assert torch.equal(first, more[:5])
    assert not torch.equal(more[0], more[359])  # the same image, other noise
    assert (more[0] - more[359]).abs().max() < 2 / 17


def test_the_same_seed_gives_the_same_sample_from_data():
    model, x = exact(), torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(sampler="em", steps=5)
    together = draw_by(model, range(6), sampling, start=x)
    apart = [draw_by(model, [i], sampling, start=x[i : i + 1]).x for i in range(6)]
    torch.testing.assert_close(together.x, torch.cat(apart), rtol=1e-6, atol=1e-6)


def test_pieces_of_a_table_are_found_by_what_they_depend_on(tmp_path):
    def place(row: str, model: str = "m", features: str = "f") -> str:
        return Pieces.of(tmp_path, model, parse_row(row), features).directory.name

    assert place("deis:nfe=10") == place("deis:nfe=10,power=0") == "deis-" + place("deis:nfe=10").split("-")[1]
    rows = ("deis:nfe=10", "deis:nfe=10,power=3", "deis:nfe=10,start=data", "deis:nfe=11")
    others = {place("deis:nfe=10", model="n"), place("deis:nfe=10", features="g")}
    assert len({*map(place, rows), *others}) == 6
    assert place("em:5") == "em-5d54fe07e0b9e3bf"  # as it always was: what was drawn earlier is still found


def test_samples_that_left_the_range_are_counted_and_shown_at_its_ends():
    spec = DataSpec(name="images", shape=(1, 1, 2), levels=4, low=-1.0, high=1.0, num_classes=0)
    x = torch.tensor([[-1.0, 0.99], [0.1, 50.0], [float("nan"), 0.0], [float("inf"), -float("inf")]]).reshape(
        4, 1, 1, 2
    )
    values, diverged = shown(x, spec)
    assert diverged == 3
    assert values.flatten(1).tolist() == [[0, 3], [2, 3], [0, 2], [3, 0]]
    values, diverged = shown(torch.tensor([[5.0, 900.0], [float("nan"), 0.0]]), SPEC)
    assert diverged == 1
    assert values.isfinite().all()
