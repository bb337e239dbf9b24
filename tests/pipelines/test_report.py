"""The report's page: what a reader finds in which order, samples beside data, papers on the same data, checkpoints."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import TINY, TINY_2D, main_of, one_line, train

from indm_core.sampling import Sampling
from pipelines.config.store import load, read_run
from pipelines.config.weights import Weights
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.reporting.options import ReportOptions
from pipelines.reporting.page.parts import Folded, Note, Table
from pipelines.reporting.pairs import MOST, ONLY, draw_pairs, shown_columns
from pipelines.reporting.published import KNOWN, PUBLISHED, published_section
from pipelines.reporting.summary import report
from pipelines.runs.hardware import Hardware, keep_hardware, read_hardware

QUICK = ("--steps", "6", "--batch-size", "8", "--log-every", "3", "--checkpoint-every", "3", "--sample-every", "0")


def people(file: Path, header: str = "age,height,weight\n") -> Path:
    draw = np.random.default_rng(0)
    rows = draw.normal((40, 170, 70), (12, 9, 11), (60, 3))
    file.write_text(header + "".join(",".join(f"{value:.1f}" for value in row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    train("digits_vp_nll", "--name", "digits", *TINY, out=root)
    return root / "digits"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("table")
    train("vectors", "--source", str(people(root / "people.csv")), *QUICK, out=root)
    return root / "vectors"


def headings(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def test_a_reader_finds_everything_in_its_order(digits, tmp_path):
    page = report([Weights(run=digits)], ReportOptions(images=0, samples=9, out=str(tmp_path)))
    text = page.read_text()
    assert headings(page) == ["Samples beside data", "Figures", "In papers", "Learning curves", "Hardware", "Settings"]
    assert "<h1>digits: digits</h1>" in text
    assert "images of 1 x 8 x 8, 17 levels; one model; not measured yet" in text
    assert "Trained on: " in text
    assert f"{Hardware.here(torch.device('cpu')).cores} cores of" in text
    top = text[: text.index("<h2>Figures")]
    assert top.count("data:image/png") == 2
    assert "Test images of digits" in top
    assert "9 drawn for this page: deis" in top
    assert "name='viewport'" in text
    assert not re.search(r"<script|https?://|src='(?!data:)|<link", text)
    with Image.open(tmp_path / "data.png") as data, Image.open(tmp_path / "samples-digits.png") as samples:
        assert data.size == samples.size


def test_a_page_without_pictures_needs_no_data(table, tmp_path, monkeypatch):
    (table.parent / "people.csv").rename(table.parent / "gone.csv")
    try:
        monkeypatch.setenv("INDM_RUNS", str(tmp_path / "elsewhere"))
        page = report([Weights(run=table)], ReportOptions(images=0, out=str(tmp_path)))
        assert "No test data are shown: " in page.read_text()
        assert "no such file" in page.read_text()
        with pytest.raises(ValueError, match="no such file"):
            report([Weights(run=table)], ReportOptions(images=2, out=str(tmp_path)))
    finally:
        (table.parent / "gone.csv").rename(table.parent / "people.csv")


def test_vectors_are_pair_plots_with_their_names_and_units(table, tmp_path, monkeypatch):
    monkeypatch.setenv("INDM_RUNS", str(table.parent))
    drawn = []

    def seen(data, samples, names, file):
        drawn.append((data, samples, names))
        return draw_pairs(data, samples, names, file)

    monkeypatch.setattr("pipelines.reporting.gallery.draw_pairs", seen)
    page = report([Weights(run=table)], ReportOptions(images=0, out=str(tmp_path)))
    ((data, samples, names),) = drawn
    assert names == ["age", "height", "weight"]
    assert data.shape == (12, 3)
    assert abs(data.mean(0) - (40, 170, 70)).max() < 15  # as in the file, whatever the model sees
    _, spec = read_run(table / "config.json")
    x = load(table).sample(12, sampler=Sampling(rtol=1e-3, atol=1e-3), batch_size=256).double().numpy()
    np.testing.assert_allclose(samples, x * spec.std + spec.mean, rtol=1e-4, atol=1e-2)
    assert "12 test rows, and over them as many samples" in page.read_text()
    with Image.open(tmp_path / "pairs-vectors.png") as image:
        assert min(image.size) > 300


def test_a_table_without_names_has_numbers(tmp_path):
    card = prepare(people(tmp_path / "a.csv"), tmp_path / "a", Options())
    assert load_card(tmp_path / "a").columns == card.columns == ("age", "height", "weight")
    assert prepare(people(tmp_path / "b.csv", ""), tmp_path / "b", Options()).columns == ("0", "1", "2")
    assert prepare("digits", tmp_path / "c", Options()).columns == ()
    assert prepare("sklearn:iris", tmp_path / "d", Options()).columns[0] == "sepal length (cm)"
    with pytest.raises(ValueError, match=r"2 columns have names"):
        replace(card, columns=("a", "b"))


@pytest.mark.parametrize("num", [1, 3, 13])
def test_a_pair_plot_of_any_number_of_columns(num, tmp_path):
    names = [f"column ${i}_x^ of a long name" for i in range(num)]
    assert len(shown_columns(names)) == (num if num <= MOST else ONLY)
    draw = np.random.default_rng(0)
    data, samples = draw.normal(size=(50, num)), draw.normal(size=(40, num))
    data[:, 0], samples[0, 0], samples[1, -1] = 3.0, 1e9, -1e9  # a column that has one value
    assert draw_pairs(data, samples, shown_columns(names), tmp_path / "p.png") >= 1
    with Image.open(tmp_path / "p.png") as image:
        assert 250 < image.size[0] < 1200


def spec(name: str, *shape: int) -> DataSpec:
    return DataSpec(name=name, shape=shape, levels=256 if len(shape) == 3 else 0, low=-1.0, high=1.0, num_classes=0)


@pytest.mark.parametrize(
    ("given", "data"),
    [
        (spec("cifar10", 3, 32, 32), "CIFAR-10"),
        (spec("cifar-10-batches-py", 3, 32, 32), "CIFAR-10"),
        (spec("mnist", 1, 28, 28), "MNIST"),
        (spec("fashion-mnist", 1, 28, 28), ""),
        (spec("mnist", 3, 28, 28), ""),
        (spec("cifar100", 3, 32, 32), ""),
        (spec("digits", 1, 8, 8), ""),
    ],
)
def test_only_papers_on_the_same_data_are_shown_the_others_are_folded(given, data):
    section = published_section(given, "")
    shown = [part for part in section.parts if isinstance(part, Table)]
    (folded,) = [part for part in section.parts if isinstance(part, Folded)]
    assert {row[1] for part in shown for row in part.rows} == ({data} if data else set())
    assert any(isinstance(part, Note) for part in section.parts) == (not data)
    (others,) = folded.parts
    assert isinstance(others, Table)
    near = sum(len(part.rows) for part in shown)
    assert near + len(others.rows) == sum(row.kind == "image" for row in PUBLISHED)
    assert {row.data for row in PUBLISHED if row.kind == "image"} == KNOWN.keys()


def test_tables_have_their_own_papers_alone():
    (part,) = published_section(spec("power", 6), "power").parts
    assert isinstance(part, Table)
    assert {row[1] for row in part.rows} == {"POWER"}
    assert published_section(spec("people", 3), "").parts == []


@pytest.mark.parametrize("script", ["report", "diagnose"])
def test_checkpoints_are_reported_and_diagnosed(script, tmp_path, monkeypatch, capsys):
    train("toy2d_spiral", *TINY_2D, "--name", "r", out=tmp_path)
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    for what in ("diagnose", "draw_integration"):  # which take a minute and more
        monkeypatch.setattr(f"pipelines.reporting.diagnostics.page.{what}", lambda *arguments: [])
    main, quick = main_of(script), ["--images", "0"] if script == "report" else ["--images", "2", "--errors.rows", "0"]
    capsys.readouterr()
    assert main(["r@4", "r@last:raw", "r", *quick]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    page = tmp_path / "r" / "@4" / script / f"{script}.html"
    assert first == f"{'report' if script == 'report' else 'diagnostics'} of r@4, r@6:raw, r"
    assert last == str(page)
    assert all(f"Configuration of {name}" in page.read_text() for name in ("r@4", "r@6:raw", "r"))
    assert all(":" not in file.name for file in page.parent.iterdir())
    assert main(["r@5", *quick]) == 2
    one_line(capsys.readouterr().err, "error: ", "no checkpoint of step 5", "r@4", "r@6")
    assert main(["r@best", *quick]) == 2
    one_line(capsys.readouterr().err, "error: ", "no checkpoint of it was measured on held-out rows", "r@last")


def test_a_run_that_has_no_weights_yet_is_reported_without_samples(tmp_path, monkeypatch, capsys):
    train("toy2d_spiral", *TINY_2D, "--name", "r", out=tmp_path)
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    for name in ("model.safetensors", "model.json"):
        (tmp_path / "r" / name).unlink()
    assert main_of("report")(["r", "--images", "0"]) == 0
    assert "its newest checkpoint is r@last" in (tmp_path / "r" / "report" / "report.html").read_text()
    capsys.readouterr()
    assert main_of("report")(["r"]) == 2
    one_line(capsys.readouterr().err, "error: ", "the run has no trained weights yet", "r@last")


def test_a_run_remembers_what_it_was_trained_on(table, tmp_path):
    (entry,) = read_hardware(table)
    assert (entry.step, entry.processes, entry.torch) == (0, 1, torch.__version__)
    later = replace(entry, step=4, device="another")
    keep_hardware(tmp_path, replace(entry, step=0))
    keep_hardware(tmp_path, replace(entry, step=3))  # goes on on the same machine
    assert read_hardware(tmp_path) == [entry]
    keep_hardware(tmp_path, later)
    assert read_hardware(tmp_path) == [entry, later]
    keep_hardware(tmp_path, replace(later, step=2))  # goes on from an earlier checkpoint
    assert read_hardware(tmp_path) == [entry, replace(later, step=2)]
    assert str(later).startswith("another, ")
    (tmp_path / "hardware.json").write_text('{"a": [1]}')
    assert read_hardware(tmp_path) == []
