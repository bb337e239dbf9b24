"""cluster.yaml against Ray's schema, what it names, and the Makefile."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.label_utils import validate_label_key
from ray_session import ROOT, environment, main_of, one_line

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TEXT = (ROOT / "cluster.yaml").read_text()
CLOUDS = ("aws", "gcp")


def validated(document: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a document; raises where Ray's schema refuses it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(document)
    validate_config(prepared)
    return prepared


def cloud(name: str) -> dict[str, Any]:
    """The document of a cloud."""
    return yaml.safe_load((ROOT / "docs/clusters" / f"{name}.yaml").read_text())


def test_cluster_yaml_is_what_ray_expects():
    prepared = validated(yaml.safe_load(TEXT))
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == 0


def test_workers_are_added_by_their_addresses():
    document = yaml.safe_load(TEXT) | {"min_workers": 2, "max_workers": 2}
    document["provider"]["worker_ips"] = ["192.0.2.2", "192.0.2.3"]
    assert validated(document)["max_workers"] == 2


@pytest.mark.parametrize("name", CLOUDS)
def test_the_clouds_are_what_ray_expects(name):
    prepared = validated(cloud(name))
    types = prepared["available_node_types"]
    assert prepared["provider"]["type"] == name
    assert prepared["head_node_type"] in types
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]
    assert types["gpu"]["min_workers"] < types["gpu"]["max_workers"]
    assert sum(kind["max_workers"] for kind in types.values()) == prepared["max_workers"]
    for kind, found in types.items():
        assert found["labels"] == {"indm/kind": kind}
        assert not any(map(validate_label_key, found["labels"]))


@pytest.mark.parametrize("name", CLOUDS)
def test_the_clouds_differ_from_cluster_yaml_in_what_they_need_besides(name):
    ours, theirs = yaml.safe_load(TEXT), cloud(name)
    for part in (
        "cluster_name",
        "file_mounts",
        "rsync_exclude",
        "rsync_filter",
        "setup_commands",
        "worker_start_ray_commands",
    ):
        assert theirs[part] == ours[part], part
    head = [command.replace("export RAY_enable_autoscaler_v2=0; ", "") for command in ours["head_start_ray_commands"]]
    assert theirs["head_start_ray_commands"] == head


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_machine_wants_the_token_that_is_copied_to_it(part):
    document = yaml.safe_load(TEXT)
    (start,) = [command for command in document[part] if "ray start" in command]
    assert document["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert start.index("RAY_AUTH_MODE=token") < start.index("ray start")
    assert "--object-spilling-directory=$HOME/indm-spill" in start
    assert "mkdir -p ~/indm-spill" in start


def test_a_wrong_document_would_be_noticed():
    with pytest.raises(Exception, match=r"nonsense|Additional properties"):
        validated(yaml.safe_load(TEXT) | {"nonsense": 1})


def test_everything_named_exists():
    document = yaml.safe_load(TEXT)
    for script in re.findall(r"pipelines/\w+\.py", TEXT):
        assert (ROOT / script).is_file(), script
    for recipe in re.findall(r"-- (\w+) ", TEXT):
        from pipelines.recipes import RECIPES

        assert recipe in RECIPES
    (mount,) = (there for there, here in document["file_mounts"].items() if here == ".")
    assert any(f"--editable {mount}" in command for command in document["setup_commands"])
    assert all((ROOT / place).is_file() for place in re.findall(r"docs/\S+?\.(?:md|yaml)|rayjob\.yaml", TEXT))
    assert (ROOT / document["rsync_filter"][0]).is_file()
    pinned = re.search(r"torch==[\d.]+", (ROOT / "pyproject.toml").read_text())
    assert pinned
    assert set(re.findall(r"torch==[\d.]+", TEXT)) == {pinned.group()}
    assert "RAY_enable_autoscaler_v2=0" in document["head_start_ray_commands"][1]  # ray#57153


def test_options_named_in_the_comments_exist():
    from pipelines.config.terminal.cli import options
    from pipelines.training.launch import Launch

    known = {option.path for option in options(Launch())}
    assert "network_interface" in known
    assert "--network-interface" in TEXT
    assert "--out" in TEXT


@pytest.mark.parametrize("path", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_commands_are_shell(path):
    for line in [command for document in (yaml.safe_load(TEXT), *map(cloud, CLOUDS)) for command in document[path]]:
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_the_environment_s_python_comes_first_in_every_shell(there, tmp_path):
    """A shell that is not interactive leaves .bashrc early; in one that is, pyenv and its like put theirs first."""
    if there:
        early, other = "case $- in *i*) ;; *) return;; esac", "export PATH=/other/python:$PATH"
        (tmp_path / ".bashrc").write_text(f"{early}\n{other}\n")
    (line,) = [command for command in yaml.safe_load(TEXT)["setup_commands"] if ".bashrc" in command]
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):
        subprocess.run(["bash", "-c", line], env=home, check=True)
    assert (tmp_path / ".bashrc").read_text().count("indm-venv") == 2
    for shell in ([], ["-i"]):
        words = ["bash", "--norc", *shell, "-c", "source ~/.bashrc; echo $PATH"]
        done = subprocess.run(words, env=home, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.stdout.startswith(f"{tmp_path}/indm-venv/bin:"), done


def make(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make with this interpreter's environment taken for the one that is set up."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    given = ["make", "--old-file", ".venv/.installed", f"BIN={Path(sys.executable).parent}", *words]
    return subprocess.run(given, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("target", ["train", "test", "test-all", "lint", "ui", "clean", "help"])
def test_make_targets(target):
    done = make("-n", target)
    assert done.returncode == 0, done.stderr
    assert "make " + target in make().stdout or target == "help"


def test_make_names_a_wrong_python_before_it_installs(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info=(3, 9); exec(sys.argv[2])" "$@"\n'
    )
    python.chmod(0o755)
    place = tmp_path / "venv"
    done = subprocess.run(
        ["make", "test", f"PYTHON={python}", f"VENV={place}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "Python 3.11 or 3.12 is needed" in done.stderr
    assert not place.exists()


def test_make_ui_on_an_occupied_port(tmp_path):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = make("ui", f"PORT={port}", f"OUT={tmp_path}")
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1
    one_line(ours[0], f"port {port} cannot be had (Address already in use)", f"make ui PORT={port + 1}")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--port", "http"], ["--port: 'http' does not fit (a whole number)"]),
        (["--port", "0"], ["port=0 must be 1 to 65535"]),
        (["--prot", "5001"], ["unknown option --prot", "did you mean --port"]),
        (["--out", "/no/such/place"], ["--out /no/such/place: no such directory"]),
        (["a_run"], ["a_run: no run is named here", "--out DIR"]),
        ([], ["no runs in MLflow yet", "make train", "make ui OUT=DIR"]),
    ],
)
def test_the_page_says_why_it_does_not_open(words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main_of("ui")(words) == 2
    one_line(capsys.readouterr().err, "error: ", *parts)


def test_the_page_of_a_server_is_named_and_not_served(tmp_path, monkeypatch, capsys):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert main_of("ui")(["--out", str(tmp_path)]) == 0
        server.shutdown()
    assert capsys.readouterr().out == f"experiments at {address}\n"
