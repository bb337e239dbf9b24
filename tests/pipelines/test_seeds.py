"""Trainings that differ by their seed: their names and what they share, and the spread of their figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from ray_session import TINY_2D, main_of, one_line, train

from pipelines.config.run import RunConfig
from pipelines.config.store import read_run
from pipelines.config.terminal.cli import override, split_arguments
from pipelines.evaluation.measurements.likelihood import DifferenceResult, Differences, NelboResult, NllResult
from pipelines.evaluation.plan import Plan, subjects_of
from pipelines.evaluation.results.document import Evaluation, Figures
from pipelines.evaluation.results.estimates import Estimate
from pipelines.evaluation.results.seeds import LEFT_OUT, seed_lines, spreads
from pipelines.evaluation.results.table import table
from pipelines.evaluation.settings import Settings
from pipelines.recipes import RECIPES
from pipelines.reporting.tables import Run, seed_tables
from pipelines.runs.job import Job, read_metrics
from pipelines.storage.checkpoint import read
from pipelines.training.jobs import all_jobs
from pipelines.training.launch import Launch


def jobs_of(root: Path, launch: Launch, *words: str) -> list[Job]:
    _, given = split_arguments([*TINY_2D, *words])
    return all_jobs(override(RECIPES["toy2d_spiral"](), given), launch, root)


def test_seeds_are_those_from_the_run_s_own_on(tmp_path):
    jobs = jobs_of(tmp_path, Launch(seeds=3, baseline="toy2d_linear"), "--train.seed", "5")
    names = [(job.directory.name, job.run.train.seed) for job in jobs]
    of = [(f"{name}-seed{seed}", seed) for seed in (5, 6, 7) for name in ("toy2d_spiral", "toy2d_linear")]
    assert names == of
    assert [job.start_from for job in jobs[1::2]] == [job.directory / "pretrained" for job in jobs[::2]]
    assert len({job.data for job in jobs}) == 1


def test_names_of_a_named_run(tmp_path):
    jobs = jobs_of(tmp_path, Launch(name="mine", seeds=2, baseline="toy2d_linear"))
    assert [job.directory.name for job in jobs] == [
        "mine-seed0",
        "mine-toy2d_linear-seed0",
        "mine-seed1",
        "mine-toy2d_linear-seed1",
    ]


def test_one_seed_changes_no_name(tmp_path):
    jobs = jobs_of(tmp_path, Launch(seeds=1, baseline="toy2d_linear"))
    assert [job.directory.name for job in jobs] == ["toy2d_spiral", "toy2d_linear"]


def test_no_seed_is_refused(tmp_path, capsys):
    train("toy2d_spiral", "--seeds", "0", out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: seeds=0 must be at least 1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a recipe and its baseline, the second added by a second command."""
    root = tmp_path_factory.mktemp("runs")
    words = ("toy2d_spiral", *TINY_2D, "--baseline", "toy2d_linear")
    for seeds in ("1", "2"):
        train(*words, "--seeds", seeds, out=root)
    return root


def test_trainings_of_a_seed_share_its_pre_training_and_are_gone_on_with(root, capsys):
    names = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("toy2d_spiral", "toy2d_linear")]
    for name in names:
        assert read_metrics(root / name)[-1].step == 6
        assert (root / name / "model.safetensors").is_file()
    assert read_metrics(root / "toy2d_linear-seed1")[0].step == 4
    first, second = (read(root / f"toy2d_spiral-seed{seed}" / "pretrained")[0] for seed in (0, 1))
    assert any((first[key] != second[key]).any() for key in first)
    plain, seeded = (read_metrics(root / name) for name in ("toy2d_spiral", "toy2d_spiral-seed0"))
    assert [record.terms for record in plain] == [record.terms for record in seeded]
    assert (
        main_of("train")(
            ["toy2d_spiral", *TINY_2D, "--baseline", "toy2d_linear", "--seeds", "2", "--local", "--out", str(root)]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert shown.count(": complete, 6 steps") == 4
    assert f"evaluate.py {root / names[0]} {root / names[1]}" in shown


def test_differences_are_those_of_one_seed(root):
    names = ("toy2d_spiral-seed0", "toy2d_linear-seed0", "toy2d_spiral-seed1", "toy2d_linear-seed1")
    subjects = tuple(subjects_of([root / name for name in names]))
    plan = Plan(names=names, subjects=subjects, settings=Settings(samples=0), root=root)
    assert [each.names for each in Differences.asked(plan)] == [names[:2], names[2:]]
    apart = Plan(names=names[:2], subjects=subjects[:2], settings=Settings(samples=0), root=root)
    assert [each.names for each in Differences.asked(apart)] == [names[:2]]


def config(recipe: str, seed: int) -> RunConfig:
    run = RECIPES[recipe]()
    return replace(run, train=replace(run.train, seed=seed))


def figures(nll: float, se: float) -> Figures:
    both = (NllResult(after=Estimate(mean=nll, se=se)), NelboResult(after=Estimate(mean=nll + 1, se=se, se_images=9.0)))
    return Figures(parameters=1, evaluations={}, results=both)


def evaluation() -> tuple[Evaluation, dict[str, RunConfig]]:
    """a: 1, 2, 6; b: one training."""
    names = {f"a-seed{seed}": (nll, se) for seed, nll, se in ((0, 1.0, 0.3), (1, 2.0, 0.4), (2, 6.0, 0.0))}
    configs = {name: config("toy2d_spiral", seed) for seed, name in enumerate(names)}
    pairs = [
        DifferenceResult(
            first=f"a-seed{seed}",
            second=f"b-seed{seed}",
            nll=NllResult(after=Estimate(mean=mean, se=0.1, se_images=0.5)),
            nelbo=NelboResult(after=Estimate(mean=mean, se=0.1, se_images=0.5)),
        )
        for seed, mean in ((0, 1.0), (1, 3.0))
    ]
    others = {f"b-seed{seed}": config("toy2d_linear", seed) for seed in (0, 1)}
    runs = {name: figures(*each) for name, each in names.items()} | {name: figures(0.0, 0.1) for name in others}
    found = Evaluation(
        unit="nats/dim",
        data="d",
        images=3,
        settings=Settings(),
        weights={},
        runs=runs,
        results=tuple(pairs),
        seconds=1.0,
    )
    return found, configs | others


def test_the_spread_is_the_standard_deviation_over_trainings():
    document, configs = evaluation()
    nll = spreads(document, configs)[0]
    assert (nll.model, nll.seeds, nll.figure, nll.mean) == ("a", (0, 1, 2), "NLL nats/dim", 3.0)
    assert nll.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert nll.error == pytest.approx(math.sqrt((0.09 + 0.16) / 3))
    assert nll.cells()[3:] == ("+3.0000 +- 1.5275", "2.6458", "0.2887")


def test_differences_are_spread_too():
    document, configs = evaluation()
    difference = next(each for each in spreads(document, configs) if each.model == "a - b")
    assert (difference.seeds, difference.mean) == ((0, 1), 2.0)
    assert difference.spread == pytest.approx(math.sqrt(2))
    assert difference.error == pytest.approx(0.5)  # over images, as it is printed of one training


def test_one_training_has_no_spread_and_the_table_says_so():
    document, configs = evaluation()
    alone = replace(document, runs={"a-seed0": document.runs["a-seed0"]}, results=())
    assert seed_lines(alone, configs) == ""
    assert LEFT_OUT in table(alone)
    assert "none of the errors" in LEFT_OUT
    lines = seed_lines(document, configs).splitlines()
    assert len(lines) == 1 + 1 + 2 * 2 + 2 + 1
    assert lines[1].split("  ")[0] == "model"


def test_a_report_has_the_same_table(tmp_path):
    document, configs = evaluation()
    _, spec = read_run(root_of(tmp_path) / "config.json")
    runs = [Run(tmp_path / name, configs[name], spec, [document], None) for name in document.runs]
    (table,) = seed_tables(runs)
    rows = table.rows
    assert "standard deviation over trainings" in table.note
    assert len(table.head) == len(rows[0])
    assert [row[0] for row in rows] == ["a", "a", "b", "b", "a - b", "a - b"]
    assert rows[0][3] == "+3.0000 ± 1.5275"
    assert seed_tables(runs[:1]) == []


def root_of(tmp_path: Path) -> Path:
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    return tmp_path / "toy2d_spiral"
