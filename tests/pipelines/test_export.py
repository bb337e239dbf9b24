"""A run as a model repository, read by `load`, by the hub's own tools, and from a hub."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from ray_session import TINY_2D, environment, main_of, one_line, train
from safetensors import safe_open

import pipelines
from indm_core.training import network_tensors
from pipelines.config import hub
from pipelines.config.store import digest, read_run
from pipelines.recipes import RECIPES
from pipelines.reporting.hub.card import trained_by
from pipelines.reporting.hub.export import without_paths

OLD = Path(__file__).parent / "old_runs"
FILES = ["README.md", "config.json", "model.json", "model.safetensors", "samples.png"]
WORDS = ("--sampler", "deis", "--nfe", "4", "--num-samples", "9")


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with figures, of data at a place of this machine."""
    run = tmp_path / "mine"
    shutil.copytree(OLD / "indm", run)
    document = json.loads((run / "config.json").read_text())
    document["run"]["data"]["source"] = "/home/somebody/secret/faces.npz"
    (run / "config.json").write_text(json.dumps(document))
    figures = {"mean": 1.5, "se": 0.25, "se_images": 0.5}
    measured = {"parameters": 5, "nll": figures, "nelbo": figures | {"mean": 1.75}, "gap": figures | {"mean": 0.25}}
    unit = read_run(run / "config.json")[1].unit
    measures = {"unit": unit, "features": "raw", "differences": {}, "runs": {"mine": measured}}
    (run / "evaluation.json").write_text(json.dumps(measures | {"weights": {"mine": digest(run)}}))
    return run


@pytest.fixture
def exported(run, tmp_path, capsys) -> Path:
    out = tmp_path / "repository"
    assert main_of("export")([str(run), "--to", str(out), *WORDS]) == 0
    assert f"{out}: {', '.join(FILES)}" in capsys.readouterr().out
    return out


def test_an_export_is_read_as_the_run(run, exported, capsys):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    mine, theirs = (network_tensors(pipelines.load(place)) for place in (run, exported))
    capsys.readouterr()
    pipelines.from_pretrained(exported)
    assert capsys.readouterr().out == ""  # its weights are vouched for
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert set(file.keys()) == mine.keys()
    with Image.open(exported / "samples.png") as picture:
        assert picture.size[0] > 100


def test_nothing_of_this_machine_goes_along(exported):
    for name in FILES:
        held = (exported / name).read_bytes()
        assert b"secret" not in held
        assert str(exported.parent).encode() not in held
    assert read_run(exported / "config.json")[0].data.source == "faces.npz"


def test_the_card_is_read_by_the_hubs_tools_and_says_what_was_measured(run, exported):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import ModelCard

        card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "indm"
    unit = read_run(run / "config.json")[1].unit
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {f"NLL ({unit})": 1.5, f"NELBO ({unit})": 1.75}
    for said in (
        f"| NLL | 1.5000 ± 0.2500 {unit} |",
        "`deis:nfe=4`, seeds 0 to 8",
        "--data.source faces.npz",
        "## Limits",
    ):
        assert said in card.text, said
    (run / "evaluation.json").unlink()
    assert main_of("export")([str(run), "--to", str(exported), *WORDS, "--licence", "cc-by-4.0"]) == 0
    card = ModelCard.load(exported / "README.md")
    assert "Not measured on these weights." in card.text
    assert card.data.license == "cc-by-4.0"
    assert card.data.eval_results is None


@pytest.mark.parametrize("name", ["dinof", "diffflow", "linear", "bridge"])
def test_every_model_is_exported(name, tmp_path):
    sampler = ("--sampler", "em", "--steps", "4") if name == "diffflow" else WORDS[:4]
    assert main_of("export")([str(OLD / name), "--to", str(tmp_path / "out"), *sampler, "--num-samples", "2"]) == 0
    assert pipelines.load(tmp_path / "out").sample(1, sampler="em", nfe=5).isfinite().all()


def test_a_directory_of_something_else_stays_as_it_was(run, tmp_path, capsys):
    full, file, half = tmp_path / "full", tmp_path / "file", tmp_path / "half"
    full.mkdir()
    (full / "thesis.tex").write_text("years")
    file.write_text("")
    shutil.copytree(OLD / "dinof", half)  # config.json and model.safetensors of somebody
    cases = [
        (full, "holds other things (thesis.tex)"),
        (file, "a file"),
        (run, "the run itself"),
        (half, "holds other things"),
    ]
    for place, said in cases:
        before = sorted(path.name for path in place.iterdir()) if place.is_dir() else None
        assert main_of("export")([str(run), "--to", str(place), *WORDS]) == 2
        one_line(capsys.readouterr().err, "--to", said)
        assert before is None or sorted(path.name for path in place.iterdir()) == before
    assert main_of("export")([str(run), *WORDS]) == 2
    one_line(capsys.readouterr().err, "where to? give --to DIR")
    assert main_of("export")([str(run), "--to", str(tmp_path / "new"), "--sampler", "dies"]) == 2
    one_line(capsys.readouterr().err, "dies")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new" / ".git").mkdir(parents=True)
    assert main_of("export")([str(run), "--to", str(tmp_path / "new"), *WORDS]) == 0


def test_the_command_of_a_run_is_its_recipe_and_what_differs():
    config = RECIPES["digits_linear_nll"]()
    assert trained_by(config) == "train.py digits_linear_nll"
    assert without_paths(config) == config
    assert trained_by(read_run(OLD / "indm" / "config.json")[0]).startswith(
        "train.py digits_vp_nll --model.flow.blocks 2 "
    )


def test_a_name_of_the_hub_is_a_snapshot_of_it(exported, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pipelines.from_pretrained("somebody/model").sample(1, nfe=3).isfinite().all()
    assert asked == [("somebody/model", {"allow_patterns": ["*.json", "*.safetensors"]})]


def test_what_the_hub_does_not_give_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(name, **options):
        raise LocalEntryNotFoundError("no network\nat all")

    def broken(name, **options):
        raise OSError("disk\nfull")

    for download, said in ((unreachable, "the hub cannot be reached"), (broken, "disk full")):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            pipelines.from_pretrained("somebody/model")
        one_line(str(refused.value), "somebody/model: no directory here", said)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"needs huggingface_hub: pip install 'indm\[hub\]', or give a directory"):
        hub.from_pretrained("somebody/model")
    with pytest.raises(ValueError, match="no readable run here"):
        pipelines.from_pretrained(tmp_path / "gone")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot of one repository takes."""

    place: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *words: object) -> None:
        pass

    def answer(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/somebody/model/tree"):
            listed = [
                {"type": "file", "path": f, "size": (self.place / f).stat().st_size, "oid": "0" * 40} for f in FILES
            ]
            held, tag = json.dumps(listed).encode(), "tree"
        elif path.startswith("/api/models/somebody/model"):
            siblings = [{"rfilename": name} for name in FILES]
            held, tag = json.dumps({"id": "somebody/model", "sha": self.commit, "siblings": siblings}).encode(), "info"
        elif path.startswith("/somebody/model/resolve/"):
            name = path.rsplit("/", 1)[1]
            held, tag = (self.place / name).read_bytes(), name
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit, "Content-Length": str(len(held))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(held)

    do_GET = do_HEAD = answer


def test_a_hub_and_then_its_cache_without_a_network(exported, tmp_path):
    """A local server in the hub's place; when it has gone, what was taken before is taken from the cache."""
    handler = type("Handler", (Hub,), {"place": exported})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
    where |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    text = "import sys, pipelines; print(pipelines.from_pretrained(sys.argv[1]).sample(1, nfe=3).shape)"

    def loaded(name: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", text, name]
        return subprocess.run(
            words, env=environment(**where), cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    try:
        done = loaded("somebody/model")
        assert "torch.Size([1, 1, 8, 8])" in done.stdout, done.stderr[-3000:]
        missing = loaded("somebody/else")
        assert "ValueError: somebody/else: no directory here, and no such repository on the hub" in missing.stderr
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert "torch.Size([1, 1, 8, 8])" in loaded("somebody/model").stdout


def test_a_checkpoint_is_exported_as_it_is(tmp_path, capsys):
    """Its card says the step, and by which command the whole run is trained."""
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    word, out = f"{tmp_path / 'toy2d_spiral'}@3:raw", tmp_path / "exported"
    assert main_of("export")([word, "--to", str(out), *WORDS]) == 0
    mine, theirs = (network_tensors(pipelines.load(place)) for place in (word, out))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    card = (out / "README.md").read_text()
    assert "not averaged, step 3" in card
    assert "--train.steps 6" in card
    assert read_run(out / "config.json")[0].train.steps == 3
