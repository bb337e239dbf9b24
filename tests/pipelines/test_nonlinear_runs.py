"""DiNof and DiffFlow through the pipeline of INDM: trained, gone on with, measured, sampled, on every kind of data."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ray_session import train
from safetensors.torch import load_file

from indm_core.draw import check_sampling, draw_by
from indm_core.model import Objective
from indm_core.sampling import Sampling
from indm_core.training import Trainer, network_tensors
from pipelines.config import load
from pipelines.config.networks import network_shape
from pipelines.config.store import digest, read_run
from pipelines.config.weights import Weights
from pipelines.data.spec import DataSpec
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.features.networks import raw
from pipelines.evaluation.measurements.per_image import Bound, Likelihoods, OdeNll
from pipelines.evaluation.plan import Span, subjects_of
from pipelines.recipes import RECIPES
from pipelines.reporting.options import ReportOptions
from pipelines.reporting.summary import report
from pipelines.runs.job import read_metrics
from pipelines.training.on_ray.worker import wrapped as with_mean_gradients

COMMON = (
    "--train.steps",
    "6",
    "--log-every",
    "1",
    "--checkpoint-every",
    "2",
    "--sample-every",
    "0",
    "--validate-every",
    "0",
    "--batch-size",
    "16",
)
UNETS = ("--nf", "8", "--ch-mult", "1")
DIFFFLOW = ("--num-steps", "2,4", "--change-at", "3")
RUNS = {
    "toy2d_dinof": ("--rows", "200", "--backbone.width", "16", "--prior.hidden", "8", "--prior.depth", "2"),
    "digits_dinof": (*UNETS, "--model.sde", "CLD", "--prior.hidden", "8", "--prior.depth", "1", "--t-m", "0.5"),
    "toy2d_rings_diffflow": ("--rows", "200", "--drift.width", "8", "--score.width", "8", *DIFFFLOW),
    "tabular_diffflow": ("--drift.width", "8", "--score.width", "8", *DIFFFLOW),
    "digits_diffflow": (
        *("--drift.nf", "8", "--drift.ch-mult", "1", "--score.nf", "8", "--score.ch-mult", "1"),
        *DIFFFLOW,
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def trained(request, tmp_path_factory):
    """A run, and the same one stopped after four steps and gone on with."""
    name, words = request.param, (request.param, *COMMON, *RUNS[request.param])
    whole, stopped = (tmp_path_factory.mktemp("runs") for _ in range(2))
    train(*words, out=whole)
    train(*[word if word != "6" else "4" for word in words], out=stopped)
    train(*words, out=stopped)
    return whole / name, stopped / name


def test_a_stopped_run_goes_on_to_the_same_end(trained):
    mine, theirs = (load_file(run / "model.safetensors") for run in trained)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    records = read_metrics(trained[0])
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(torch.isfinite(torch.tensor(record.terms["nelbo"])) for record in records)
    assert not (trained[0] / "pretrained").exists()


def test_it_is_measured_and_sampled(trained):
    run = trained[0]
    model, (config, spec) = load(run), read_run(run / "config.json")
    (subject,) = subjects_of([run])
    worker = Evaluator([], partial(raw, spec.num_dims), 1, "cpu")
    worker.models = {0: (subject.build(), spec)}
    levels, images = spec.levels or 2, Span(of="test", first=0, stop=4)
    k = torch.randint(levels, (4, *spec.shape), generator=torch.Generator().manual_seed(0)).float()
    ode = [OdeNll(residual=residual, exact=False, num_probes=1, rtol=1e-2, atol=1e-2) for residual in (True, False)]
    for estimator in (*ode, Bound(residual=True, num_draws=2)):
        values = worker.run(Likelihoods(estimator=estimator, model=0, images=images, seed=1), k.numpy())
        assert values.shape == (4,)
        assert values.isfinite().all()
    em, pc = Sampling(sampler="em", steps=4, grid="trained"), Sampling(sampler="pc", steps=3)
    family = [Sampling(sampler="deis", nfe=6, order=0, lam=0.5), Sampling(sampler="deis", nfe=6, order=2)]
    if "toy2d" in config.recipe:
        family.append(Sampling(sampler="deis", nfe=7, order=2, method="rho-RK"))
    family = [] if "diffflow" in config.recipe else family
    for sampling in (Sampling(rtol=1e-2, atol=1e-2), em, pc, *family):
        both = draw_by(model, [3, 4, 5], sampling)
        alone = draw_by(model, [4], sampling)
        assert both.x.shape == (3, *spec.shape)
        torch.testing.assert_close(both.x[1:2], alone.x, rtol=1e-4, atol=1e-4)
    deis = Sampling(sampler="deis", nfe=6, order=2, grid="power")
    if "diffflow" in config.recipe:
        assert draw_by(model, [1], em).evaluations == 4
        with pytest.raises(ValueError, match=r"num_steps=5: a DiffFlow trained on N=4 steps is sampled in 2 to 4"):
            check_sampling(model, Sampling(sampler="em", steps=5))
        for refused in (deis, Sampling(sampler="em", steps=4, grid="edm")):
            with pytest.raises(ValueError, match="needs a linear diffusion, and the drift of this model is learned"):
                draw_by(model, [1], refused)
    else:
        assert draw_by(model, [1], deis).evaluations == 6


def test_it_is_reported(trained, tmp_path):
    run, images = trained[0], "dinof" in trained[0].name
    page = report([Weights(run=run)], ReportOptions(images=3, out=str(tmp_path)))
    text = (tmp_path / "report.md").read_text()
    assert page.is_file()
    assert f"| {run.name} |" in text
    assert ("Kim et al. 2022, Table 4" in text) == run.name.startswith("digits")
    assert ("discretisation" in {file.stem for file in tmp_path.glob("*.png")}) == images


def test_a_report_shows_no_figures_of_earlier_weights(trained, tmp_path):
    run = trained[1]
    figures, unit = {"mean": 1.0, "se": 0.1}, read_run(run / "config.json")[1].unit
    document = {
        "unit": unit,
        "features": "raw",
        "differences": {},
        "runs": {run.name: {"parameters": 5, "nll": figures, "nelbo": figures, "gap": figures}},
        "weights": {run.name: digest(run)},
    }
    for weights, shown in ((digest(run), True), ("0" * 64, False)):
        document["weights"][run.name] = weights
        (run / "evaluation.json").write_text(json.dumps(document))
        report([Weights(run=run)], ReportOptions(images=0, out=str(tmp_path)))
        text = (tmp_path / "report.md").read_text()
        assert (("| 1.0000 ± 0.1000" in text) and (f"NLL, {unit}" in text)) is shown
        assert ("not measured on these weights" in text) is not shown
    (run / "evaluation.json").write_text('{"runs": {}}')
    with pytest.raises(ValueError, match=r"evaluation.json: no measurement of runs"):
        report([Weights(run=run)], ReportOptions(images=0, out=str(tmp_path)))
    (run / "evaluation.json").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("digits_vp_nll", "--model.flow", "GlowConfig", "--flow.levels", "2"),
            "GlowConfig does not begin at the identity",
        ),
        (("digits_dinof", "--prior.levels", "4"), "at most 3 fit"),
        (("digits_dinof", "--t-m", "1.5"), "t_m=1.5 must lie in (0, 1]"),
        (("digits_diffflow", "--num-steps", "1", "--change-at", ""), "N=1 must be at least 2"),
        (("digits_diffflow", "--num-steps", "5,10", "--change-at", "3,4"), "give one change fewer than stages"),
        (
            ("digits_diffflow", "--num-steps", "5,10,20", "--change-at", "4,3"),
            "change_at=(4, 3) must be positive and increase",
        ),
        (("digits_diffflow", "--train.steps", "300"), "with steps=300 the last stage, N=100, is never trained"),
        (("digits_diffflow", "--drift.time", "log-snr"), "take 'scaled'"),
        (("toy2d_dinof", "--prior.levels", "2"), "a vector (2,) takes one level"),
        (("tabular_diffflow", "--source", "sklearn:housing"), "the bundled tables are sklearn:wine"),
    ],
)
def test_bad_input_is_told_in_one_line(words, message, tmp_path, capsys):
    train(*words, out=tmp_path, status=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ")
    assert message in line


def test_cifar10_recipes_have_the_published_sizes():
    spec = DataSpec(name="cifar10", shape=(3, 32, 32), levels=256, low=-1.0, high=1.0, num_classes=10)
    for name in ("cifar10_dinof_ve", "cifar10_dinof_vp", "cifar10_dinof_subvp"):
        run = RECIPES[name]()
        model, adam = run.model, run.train.optimisers["score"]
        assert (adam.lr, adam.beta_1, adam.beta_2, adam.weight_decay, adam.warmup) == (2e-4, 0.9, 0.999, 0, 5000)
        assert run.data.options.low == (0 if name.endswith("ve") else -1)
        with torch.device("meta"):
            assert sum(p.numel() for p in model.prior.build(spec.shape).parameters()) == 7_920_684
        assert (model.t_m, model.prior.levels, model.prior.depth, model.prior.hidden) == (0.6, 3, 16, 256)
        with torch.device("meta"):
            backbone = model.backbone.build(network_shape(spec, model.sde), model.sde)
        assert 61e6 < sum(p.numel() for p in backbone.parameters()) < 63e6
    model = RECIPES["cifar10_diffflow"]().model
    assert (model.g, model.t_max, model.num_steps[-1]) == (1.0, 0.05, 100)
    for network in (model.drift, model.score):
        with torch.device("meta"):
            assert sum(p.numel() for p in network.build(spec.shape, None).parameters()) == pytest.approx(
                35.7e6 / 2, rel=0.05
            )


def test_glow_is_a_flow_of_indm_too(tmp_path):
    words = (
        "toy2d_spiral",
        "--model.flow",
        "GlowConfig",
        "--flow.levels",
        "1",
        "--flow.depth",
        "2",
        "--flow.start",
        "identity",
    )
    train(*words, *COMMON, "--rows", "200", "--backbone.width", "16", "--pretrain-steps", "2", out=tmp_path)
    model = load(tmp_path / "toy2d_spiral")
    x = draw_by(model, range(3), Sampling(rtol=1e-2, atol=1e-2)).x
    z, _ = model.flow(x)
    torch.testing.assert_close(model.flow.inverse(z), x, rtol=0, atol=1e-4)


PLANE = DataSpec(name="plane", shape=(2,), levels=0, low=-1.0, high=1.0, num_classes=0)


def _work_of_a_worker(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for name in ("toy2d_rings_diffflow", "toy2d_dinof"):
        _differentiate(rank, name)
    _train_a_flow_alone(rank)
    dist.destroy_process_group()


def _rows(rank: int, seed: int) -> torch.Tensor:
    return torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[rank]


def _differentiate(rank: int, name: str) -> None:
    """One rank's gradients, as two workers train, against the mean of the gradients without them."""
    x = _rows(rank, 1)
    torch.manual_seed(0)
    model = RECIPES[name]().model.build(PLANE).double().train()
    model(x, None, torch.Generator().manual_seed(rank))  # the first batch sets the actnorms
    gradients = []
    for wrapped in (model, with_mean_gradients(model, torch.device("cpu"), 2)):
        model.zero_grad()
        wrapped(x, None, torch.Generator().manual_seed(2 + rank)).objective.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    alone, together = gradients[0].clone(), gradients[1]
    dist.all_reduce(alone)
    torch.testing.assert_close(together, alone / 2, rtol=1e-12, atol=1e-14)
    assert alone.any()


def _train_a_flow_alone(rank: int) -> None:
    """A frozen network takes no part in what the workers exchange; the flow alone moves, and it is the same on both."""
    recipe = RECIPES["toy2d_spiral"]()
    torch.manual_seed(0)
    model = replace(recipe.model, objective=Objective()).build(PLANE).double()
    wrap = partial(with_mean_gradients, device=torch.device("cpu"), world=2)
    trainer = Trainer(model, recipe.train.optimisers, frozen=["score"], wrap=wrap)
    before = {key: value.clone() for key, value in network_tensors(model).items()}
    for step in range(3):
        halves = [(half, None) for half in _rows(rank, step).split(4)]
        trainer.step(halves, torch.Generator().manual_seed(rank))
    after = network_tensors(model)
    assert {key.split(".")[0] for key in after if not torch.equal(before[key], after[key])} == {"flow"}
    for key, value in after.items():
        everywhere = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(everywhere, value)
        assert torch.equal(*everywhere), key


def test_two_workers_train_on_the_mean_of_their_gradients_and_leave_a_fixed_score_alone(tmp_path: Path):
    torch.multiprocessing.spawn(_work_of_a_worker, args=(str(tmp_path / "rendezvous"),), nprocs=2)
