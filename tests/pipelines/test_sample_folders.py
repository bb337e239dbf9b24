"""Samples of one sampler, model and seed lie in a folder of their own, which says how they were drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_session import TINY, TINY_2D, main_of, one_line, train

from indm_core.draw import FittedSampling
from indm_core.fitting import Fit
from indm_core.times import uniform_times
from pipelines.config.terminal.cli import override
from pipelines.evaluation.sampling.folder import named
from pipelines.evaluation.settings import SampleOptions


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of images, that differ by their seed, and one of points."""
    root = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        train("digits_vp_nll", *TINY, "--train.seed", seed, "--name", f"images{seed}", out=root)
    train("toy2d_spiral", *TINY_2D, "--name", "points", out=root)
    return root


@pytest.fixture
def sample(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Draws four samples in four steps; gives the exit status and what was said."""
    monkeypatch.setenv("INDM_RUNS", str(root))

    def run(name: str, *words: str) -> tuple[int, str]:
        defaults = {"--num-samples": "4", "--sampler": "em", "--steps": "4"}
        given = defaults | dict(zip(words[::2], words[1::2], strict=True))
        if "--nfe" in given:
            del given["--steps"]
        status = main_of("sample")([str(root / name), *(word for pair in given.items() for word in pair)])
        shown = capsys.readouterr()
        return status, shown.err if status else shown.out

    return run


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "ode-rtol0.0001-atol0.0001"),
        ({"sampler": "em", "steps": "10"}, "em-steps10"),
        ({"sampler": "deis", "nfe": "10", "order": "2"}, "deis-nfe10-order2"),
        (
            {"sampler": "deis", "nfe": "10", "method": "rho-RK", "grid": "edm", "corrector": "false"},
            "deis-nfe10-grid-edm-method-rho-RK",
        ),
        ({"sampler": "pc", "steps": "9", "snr": "0.2", "denoise": "false"}, "pc-steps9-snr0.2-denoise-False"),
        ({"sampler": "em", "steps": "9", "seed": "7", "start": "data"}, "em-steps9-seed7-from-data"),
        ({"translate": "forward", "path": "ode", "rtol": "1e-7"}, "ode-rtol1e-07-atol0.0001-path-ode"),
    ],
)
def test_a_folder_is_named_by_the_whole_sampler(given: dict[str, str], name: str) -> None:
    assert named(override(SampleOptions(), given)) == name


def test_different_samplers_go_to_different_folders(root: Path, sample) -> None:
    for words in ((), ("--sampler", "deis", "--nfe", "5"), ("--seed", "9")):
        assert sample("images0", *words)[0] == 0
    folders = {path.name for path in (root / "images0").glob("samples-*")}
    assert folders == {"samples-em-steps4", "samples-deis-nfe5", "samples-em-steps4-seed9"}


@pytest.mark.parametrize(
    ("run", "words", "said"),
    [
        ("images0", ("--steps", "5"), "drawn with sampling=em:steps=4, not em:steps=5"),
        ("images0", ("--seed", "3"), "drawn with seed=0, not 3"),
        ("images0", ("--start", "data"), "drawn with start=prior, not data"),
        ("images0", ("--num-samples", "2"), "drawn with num_samples=4, not 2"),
        ("images1", (), "drawn of other weights"),
        ("points", ("--steps", "5"), "drawn with sampling=em:steps=4, not em:steps=5"),
    ],
    ids=str,
)
def test_samples_are_not_mixed_with_others(run: str, words: tuple[str, ...], said: str, sample, tmp_path) -> None:
    out = tmp_path / "drawn"
    first = "points" if run == "points" else "images0"
    assert sample(first, "--out", str(out))[0] == 0
    before = files(out)
    status, shown = sample(run, "--out", str(out), *words)
    assert status == 2
    one_line(shown, "error: ", str(out), said, "--overwrite true", "another --out")
    assert files(out) == before


def test_overwriting_removes_samples_and_nothing_else(sample, tmp_path) -> None:
    out = tmp_path / "drawn"
    assert sample("images0", "--out", str(out), "--num-samples", "6")[0] == 0
    kept = {"sample-1.png": b"mine", "notes.txt": b"mine", "sample-000000.jpg": b"mine"}
    for name, content in kept.items():
        (out / name).write_bytes(content)
    assert sample("images0", "--out", str(out), "--steps", "5", "--num-samples", "2", "--overwrite", "true")[0] == 0
    after = files(out)
    assert kept.items() <= after.items()
    assert after.keys() - kept.keys() == {"drawn.json", "grid.png", "sample-000000.png", "sample-000001.png"}
    assert json.loads(after["drawn.json"])["sampling"] == "em:steps=5"


def test_the_same_drawing_again_goes_on(sample, tmp_path) -> None:
    """As after a kill, and with more samples: the first ones are as they were."""
    out = tmp_path / "drawn"
    assert sample("images0", "--out", str(out))[0] == 0
    before = files(out)
    (out / "sample-000002.png").unlink()
    assert sample("images0", "--out", str(out), "--num-samples", "6")[0] == 0
    after = files(out)
    for name in before.keys() - {"drawn.json", "grid.png"}:
        with Image.open(out / name) as image:
            assert np.asarray(image).shape == (8, 8)
        assert after[name] == before[name]
    assert {"sample-000004.png", "sample-000005.png"} <= after.keys()


def test_samples_of_an_earlier_version_are_refused(sample, tmp_path) -> None:
    out = tmp_path / "drawn"
    out.mkdir()
    (out / "sample-000100.png").write_bytes(b"an earlier sample")
    status, shown = sample("images0", "--out", str(out))
    assert status == 2
    one_line(shown, "sample-000100.png", "nothing says how they were drawn", "--overwrite true")
    assert files(out) == {"sample-000100.png": b"an earlier sample"}


def test_a_checkpoint_has_folders_of_its_own(root: Path, sample) -> None:
    words = ("--sampler", "em", "--seed", "5")
    for name in ("points", "points@last", "points@last:raw"):
        assert sample(name, *words)[0] == 0
    finished, averaged, raw = (
        np.load(root / "points" / place / "samples-em-steps4-seed5" / "samples.npy") for place in ("", "@6", "@6-raw")
    )
    assert np.array_equal(finished, averaged)
    assert not np.array_equal(averaged, raw)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In place of every fit a uniform grid; the numbers of steps that were asked for."""
    asked = []

    def fit_times(model, *, sampling, num, label, guidance):
        asked.append(sampling.num_steps)
        times = uniform_times(model.sde, sampling.num_steps)
        return FittedSampling(sampling=sampling, fit=Fit(times=times, error=0.1, before=0.3, evaluations=7))

    monkeypatch.setattr("pipelines.evaluation.sampling.settled.fit_times", fit_times)
    return asked


def test_a_grid_is_fitted_once_and_kept(root: Path, sample, fits, tmp_path) -> None:
    words = ("--sampler", "deis", "--order", "1", "--nfe", "3", "--grid", "fitted")
    outs = [tmp_path / name for name in ("first", "second", "third")]
    first, second = (sample("points", *words, "--out", str(out))[1] for out in outs[:2])
    (kept,) = (root / "points" / "grids").iterdir()
    assert fits == [2]
    assert "fitting the grid of deis:nfe=3,grid=fitted,order=1, once" in first
    assert f"fitted grid of 2 steps, error against the ODE 0.1, 0.3 on the best grid without a fit, {kept}" in second
    assert (outs[0] / "samples.npy").read_bytes() == (outs[1] / "samples.npy").read_bytes()
    sample("points", *words, "--prediction", "data", "--out", str(outs[2]))
    kept.write_text("{")
    sample("points", *words, "--out", str(outs[0]))
    assert fits == [2, 2, 2]  # of another sampler, and of a damaged file


@pytest.mark.parametrize(
    "times", [[1.0, 1e-5], [1.0, 0.5, 0.25, 1e-5], [1e-5, 0.5, 1.0], [1.0, 2.0, 1e-5], [0.9, 0.5, 1e-5]]
)
def test_a_kept_grid_that_cannot_be_taken_is_fitted_again(times, root: Path, sample, fits, tmp_path) -> None:
    words = ("--sampler", "deis", "--order", "0", "--nfe", "3", "--grid", "fitted", "--out", str(tmp_path))
    assert sample("points", *words)[0] == 0
    kept = max((root / "points" / "grids").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    text = kept.read_text()
    kept.write_text(json.dumps(json.loads(text) | {"times": times}))
    before = len(fits)
    assert sample("points", *words)[0] == 0
    assert len(fits) == before + 1
    assert json.loads(kept.read_text())["times"] == json.loads(text)["times"]


def test_a_grid_that_cannot_be_kept_is_taken_all_the_same(sample, fits, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipelines.evaluation.sampling.settled.write_text", refuse)
    words = ("--sampler", "auto", "--nfe", "4", "--grid", "fitted", "--out", str(tmp_path))
    status, said = sample("points", *words)
    assert status == 0
    assert fits == [3]
    assert "points: the grid is not kept, and will be fitted again: [Errno 13] Permission denied" in said
    assert (tmp_path / "samples.npy").is_file()


def test_samples_on_other_times_are_others(sample, tmp_path) -> None:
    words = ("--sampler", "deis", "--order", "0", "--nfe", "3", "--grid", "fitted", "--out", str(tmp_path))
    assert sample("points", *words, "--times", "1,0.5,1e-5")[0] == 0
    drawn = files(tmp_path)
    status, said = sample("points", *words, "--times", "1,0.4,1e-5")
    assert status == 2
    one_line(said, "holds", "drawn on another fitted grid", "--overwrite true")
    assert files(tmp_path) == drawn


def test_a_folder_of_others_is_refused_before_a_grid_is_fitted(sample, fits, tmp_path) -> None:
    assert sample("points", "--out", str(tmp_path))[0] == 0
    words = ("--sampler", "deis", "--order", "1", "--nfe", "5", "--grid", "fitted", "--out", str(tmp_path))
    status, said = sample("points", *words)
    assert status == 2
    one_line(said, "drawn with sampling=em", "--overwrite true")
    assert fits == []


@pytest.mark.slow
def test_a_fit_of_a_run_is_no_worse_than_the_usual_grids(root: Path, sample, tmp_path) -> None:
    assert sample("points", "--sampler", "auto", "--nfe", "3", "--grid", "fitted", "--out", str(tmp_path))[0] == 0
    kept = [json.loads(file.read_text()) for file in (root / "points" / "grids").iterdir()]
    assert any(grid["error"] <= grid["before"] and len(grid["times"]) == 3 for grid in kept if grid["seconds"] > 0.1)


def test_auto_says_what_it_took(root: Path, sample) -> None:
    status, said = sample("points", "--sampler", "auto", "--nfe", "4")
    assert status == 0
    assert "points: auto takes deis:nfe=4," in said
    drawn = json.loads(next((root / "points").glob("samples-deis-nfe4-*/drawn.json")).read_text())
    assert drawn["sampling"].startswith("deis:nfe=4,")
    status, said = sample("points", "--sampler", "auto", "--nfe", "4", "--order", "2")
    assert status == 2
    one_line(said, "order=2: sampler=auto does not read it")
