"""Runs with labels: trained, resumed, measured and sampled with them; runs without are what they were."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from ray_session import TINY, main_of, one_line, train

from indm_core.likelihood import nelbo
from indm_core.model import INDM, Objective
from indm_core.training import step_seed
from pipelines.config import load
from pipelines.config.codec import from_json, to_json
from pipelines.config.flows import IdentityConfig
from pipelines.config.models import BridgeConfig, DiffFlowConfig, DiNofConfig, FFJORDConfig, INDMConfig, ModelConfig
from pipelines.config.networks import DDPMUNetConfig, MLPConfig
from pipelines.config.run import RunConfig
from pipelines.config.sized import SizedINDMConfig
from pipelines.config.store import identity, read_run
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.shards import read_all
from pipelines.data.spec import DataSpec
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.features.networks import raw
from pipelines.evaluation.measurements.distances import Samples
from pipelines.evaluation.measurements.per_image import Bound, Likelihoods
from pipelines.evaluation.plan import Plan, Span
from pipelines.evaluation.settings import SampleOptions, Settings
from pipelines.recipes import RECIPES
from pipelines.recipes.overview import Overview
from pipelines.runs.job import Job
from pipelines.runs.overview import run_lines, runs_below
from pipelines.training.dataset import _batches
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.session import Session
from pipelines.training.stream import local_rows
from pipelines.training.watch import validation

OLD = Path(__file__).parent / "old_runs"
IDENTITIES = {"indm": "ef6e170f8074aae8", "linear": "ff0c74b94160c8a0", "dinof": "0a43bbf1f7d8e4bc"}
"""Of old runs, from before there were labels."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels and one without."""
    root = tmp_path_factory.mktemp("runs")
    train("digits_conditional", *TINY, "--name", "with", out=root)
    train("digits_vp_nll", *TINY, "--name", "without", out=root)
    return root


@pytest.fixture
def sample(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Draws five samples in four steps; gives the exit status and what was said."""
    monkeypatch.setenv("INDM_RUNS", str(root))

    def run(name: str, *words: str) -> tuple[int, str]:
        given = ["--num-samples", "5", "--sampler", "em", "--steps", "4", *words]
        status = main_of("sample")([str(root / name), *given])
        shown = capsys.readouterr()
        return status, shown.err if status else shown.out

    return run


def job_of(root: Path, name: str) -> Job:
    config, spec = read_run(root / name / "config.json")
    data = ensure(config.data.source, root / "data", config.data.options)
    return Job(run=config, spec=spec, directory=root / name, data=data)


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_has_no_labels_is_called_what_it_was(name):
    assert identity(OLD / name) == IDENTITIES[name]


def test_what_has_no_labels_is_written_as_it_was():
    text = json.dumps(to_json(RECIPES["digits_vp_nll"]()))
    assert "conditional" not in text
    assert "label_dropout" not in text


@pytest.mark.parametrize("dropout", [0.1, 0.25])
def test_what_has_labels_survives_a_round_trip(dropout):
    run = RECIPES["digits_conditional"]()
    run = replace(run, model=replace(run.model, objective=Objective(label_dropout=dropout)))
    document = json.loads(json.dumps(to_json(run)))
    assert from_json(RunConfig, document) == run
    assert document["model"]["conditional"] is True
    assert document["model"]["objective"].get("label_dropout", 0.1) == dropout


SPEC = DataSpec(name="numbers", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=10)
VECTORS = replace(SPEC, shape=(4,), levels=0)


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (RECIPES["digits_conditional"]().model, SPEC),
        (replace(RECIPES["digits_dinof"]().model, conditional=True), SPEC),
        (SizedINDMConfig(conditional=True), SPEC),
        (SizedINDMConfig(conditional=True, flow=False), VECTORS),
        (INDMConfig(flow=IdentityConfig(), backbone=MLPConfig(), conditional=True), VECTORS),
    ],
    ids=["INDM", "DiNof", "sized", "sized linear", "MLP"],
)
def test_a_network_is_built_for_the_classes_of_the_data(model: ModelConfig, spec: DataSpec):
    built, without = model.build(spec), replace(model, conditional=False).build(spec)
    assert (built.num_classes, without.num_classes) == (10, 0)
    assert built.state_dict()["score_model.backbone.embed.labels.weight"].shape[0] == 11
    assert "score_model.backbone.embed.labels.weight" not in without.state_dict()


REFUSED = {
    "a bridge": (lambda: BridgeConfig(conditional=True), "conditional=True: a bridge .* --conditional false"),
    "DiffFlow": (lambda: DiffFlowConfig(conditional=True), "conditional=True: DiffFlow has no conditional form"),
    "FFJORD": (lambda: FFJORDConfig(conditional=True), "conditional=True: FFJORD has no score"),
    "data without": (
        lambda: RECIPES["digits_conditional"]().model.build(replace(SPEC, num_classes=0)),
        "conditional=True: numbers has no labels; .* --conditional false",
    ),
    "a published architecture": (
        lambda: DiNofConfig(backbone=DDPMUNetConfig(), conditional=True).build(SPEC),
        "conditional=True: DDPMUNetConfig .* --conditional false",
    ),
    "guidance alone": (lambda: SampleOptions(guidance=2.0), "guidance=2: .* give --label"),
    "a translation": (lambda: SampleOptions(label=(1,), translate="both"), r"label=\(1,\): a translation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_are_refused_where_there_can_be_none(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_reach_the_network_with_their_images(root):
    """In the order of the run, whatever the share of a batch."""
    here = Session(
        rank=0,
        world=1,
        device=torch.device("cpu"),
        average=lambda vector: vector,
        agree=lambda value: value,
        stopping=lambda training, step: False,
        wrap=lambda model: model,
        begins=lambda training, model: None,
        publish=lambda training, record: None,
        checkpointed=lambda training, place, record: None,
    )
    job = job_of(root, "with")
    job = replace(job, run=replace(job.run, train=replace(job.run.train, accumulate=2)))
    stored = read_all(job.data, load_card(job.data), "train")
    rows = list(islice(local_rows(job, 0), 3))
    batches = list(islice(_batches(job, local_rows, here, 0), 3))
    for part, batch in zip(rows, batches, strict=True):
        micro = batch(torch.Generator().manual_seed(0))
        x, y = (torch.cat([each[i] for each in micro if each[i] is not None]) for i in (0, 1))
        assert [len(each[0]) for each in micro] == [8, 8]
        assert torch.equal(y, torch.from_numpy(stored["label"][part["row"]]))
        assert torch.equal(job.spec.from_model(x), torch.from_numpy(stored["x"][part["row"]]).long())
    plain = job_of(root, "without")
    micro = next(_batches(plain, local_rows, here, 0))(torch.Generator().manual_seed(0))
    assert [y for _, y in micro] == [None]


def test_a_run_with_labels_is_trained_with_them(root):
    """The vectors of the classes have moved from their first values, that of none has not; the same command does no more."""
    job, model = job_of(root, "with"), load(root / "with")
    torch.manual_seed(job.run.train.seed)
    begun = job.run.model.build(job.spec).state_dict()["score_model.backbone.embed.labels.weight"]
    table = model.state_dict()["score_model.backbone.embed.labels.weight"]
    assert torch.equal(table[0], begun[0])
    assert (table[1:] != begun[1:]).any(1).all()


def test_held_out_rows_are_measured_with_their_labels(root, monkeypatch):
    monkeypatch.setattr(validation, "ROWS", {3: 32})
    job, model = job_of(root, "with"), load(root / "with")
    found = validation.held_out_rows(job, torch.device("cpu"))
    _, x, y = found.args[:3]
    generator = torch.Generator().manual_seed(step_seed(validation.SEED, 0, 0))
    values = nelbo(model, x, num_draws=validation.DRAWS, generator=generator, y=y)
    assert found(model).nelbo == pytest.approx(float(job.spec.in_unit(values.double()).mean()))
    rows = read_all(job.data, load_card(job.data), "test")
    where = [int(np.flatnonzero((rows["x"] == k.numpy()).all((1, 2, 3)))[0]) for k in job.spec.from_model(x)]
    assert y.tolist() == rows["label"][where].tolist()


def bench_of(job: Job, model: INDM) -> Evaluator:
    bench = Evaluator([], partial(raw, job.spec.num_dims), 1, "cpu")
    bench.models = {0: (model, job.spec)}
    return bench


def test_likelihoods_are_measured_with_the_rows_labels(root):
    job, model = job_of(root, "with"), load(root / "with")
    plan = Plan.of([root / "with"], Settings(images=6, samples=0), root)
    images = Span(of="test", first=2, stop=6)
    labels = replace(images, of="test labels")
    task = Likelihoods(
        estimator=Bound(residual=True, num_draws=2),
        model=0,
        images=images,
        seed=1,
        labels=labels if plan.labelled(0) else None,
    )
    k, y = plan.rows(images), plan.rows(labels)
    assert torch.equal(y, torch.from_numpy(read_all(job.data, load_card(job.data), "test", 6)["label"][2:]))
    found = bench_of(job, model).run(task, *(plan.rows(span).numpy() for span in task.needs()))
    x = job.spec.to_model(k, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(step_seed(1, 1, 0))
    assert torch.equal(found, job.spec.in_unit(nelbo(model, x, num_draws=2, generator=generator, y=y)))


def test_distances_are_of_samples_with_the_labels_of_the_data(root):
    job, model = job_of(root, "with"), load(root / "with")
    plan, more = (Plan.of([root / "with"], Settings(images=6, samples=n), root) for n in (100, 2000))
    train_labels = read_all(job.data, load_card(job.data), "train")["label"]
    n = len(train_labels)
    assert torch.equal(more.drawn_labels[:100], plan.drawn_labels)
    assert np.array_equal(np.bincount(more.drawn_labels[:n]), np.bincount(train_labels))
    sampling = SampleOptions().sampling
    task = Samples(model=0, seeds=range(3, 5), sampling=replace(sampling, sampler="em", steps=3), labelled=True)
    made = bench_of(job, model).run(task, *(plan.rows(span).numpy() for span in task.needs()))
    drawn = model.sample(2, sampler=task.sampling, seed=3, label=plan.drawn_labels[3:5])
    assert torch.equal(made.shown.long(), job.spec.from_model(drawn))


def test_classes_are_drawn_in_turn_into_a_folder_of_their_own(root, sample):
    status, said = sample("with", "--label", "3,7", "--guidance", "2")
    assert status == 0
    out = root / "with" / "samples-em-steps4-label3-7-guidance2"
    assert f"{out}: 5 samples of label 3,7 with guidance 2 by em" in said
    assert "10.0 evaluations" in said
    assert len(list(out.glob("sample-*.png"))) == 5
    plain = sample("with")[1]
    assert f"{root / 'with' / 'samples-em-steps4'}: 5 samples by em" in plain
    same = ("--out", str(root / "with" / "samples-em-steps4"))
    one_line(sample("with", "--label", "3", *same)[1], "drawn with label=, not 3", "--overwrite true")


def test_a_record_from_before_labels_is_of_samples_without(root, sample):
    out = root / "earlier"
    assert sample("with", "--out", str(out))[0] == 0
    record = json.loads((out / "drawn.json").read_text())
    for name in ("label", "guidance"):
        del record[name]
    (out / "drawn.json").write_text(json.dumps(record))
    assert sample("with", "--out", str(out))[0] == 0


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("without", ("--label", "3"), ("label=3", "trained without labels", "--conditional true")),
        ("with", ("--label", "12"), ("label=12", "the classes 0 to 9")),
        ("with", ("--guidance", "2"), ("guidance=2", "give --label")),
    ],
)
def test_what_a_run_cannot_draw_is_refused(sample, name, words, said):
    status, message = sample(name, *words)
    assert status == 2
    one_line(message, *said)


def test_a_baseline_without_labels_begins_by_itself(tmp_path):
    """The score network of the pre-training takes labels; a baseline that takes them too goes on from there."""
    run = RECIPES["digits_conditional"]()
    _, plain = jobs_for(run, Launch(baseline="digits_linear_nll"), tmp_path)
    assert not plain.run.model.conditional
    assert plain.start_from is None
    given = replace(RECIPES["digits_vp_nll"](), model=run.model)
    main, twin = jobs_for(given, Launch(name="given", baseline="digits_linear_nll"), tmp_path)
    assert main.run.model.conditional
    assert twin.run.model.conditional
    assert twin.start_from == tmp_path / "given" / "pretrained"


def test_it_is_said_that_a_run_has_labels(root):
    lines = run_lines(list(runs_below(root)))
    assert [line.endswith("digits_conditional (with labels)") for line in lines[1:]] == [True, False]
    with_labels, without = (
        Overview.of(name, RECIPES[name]).parameters for name in ("digits_conditional", "digits_vp_nll")
    )
    assert with_labels == without + 11 * 96
