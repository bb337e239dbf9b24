"""What all machines of a cluster must have in common: what each answers, and what is made of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
from ray.cloudpickle import dumps, loads

from pipelines.cluster import nodes
from pipelines.cluster.nodes import CLONE, Answer, _check, _description, _question


def test_a_machine_answers_with_what_it_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "SEEN_SECONDS", 0.3)
    file, data = tmp_path / "token", tmp_path / "data"
    data.mkdir()
    ask = loads(dumps(_question(str(file), "a1", [str(data), "/nowhere"], str(CLONE))))
    assert (ask("n")["token"], ask("n")["unseen"]) == ("", ("/nowhere",))
    file.write_text("a1")
    answer = ask("n")
    assert (answer["token"], answer["torch"]) == ("a1", metadata.version("torch"))
    assert (tmp_path / "token-n").read_text() == "a1"


def test_it_needs_no_package_to_answer(tmp_path):
    (tmp_path / "ask").write_bytes(dumps(_question(str(tmp_path / "token"), "a1", [], "/nowhere")))
    (tmp_path / "token").write_text("a1")
    without = "import sys; sys.modules |= dict.fromkeys(['pipelines', 'indm_core', 'tune'])"
    there = f"{without}; from ray.cloudpickle import loads; print(loads(open('ask', 'rb').read())('n'))"
    done = subprocess.run([sys.executable, "-c", there], cwd=tmp_path, capture_output=True, text=True)
    assert "'token': 'a1'" in done.stdout, done.stderr
    assert "'code': ''" in done.stdout


def test_the_digest_is_of_all_sources_and_their_places(tmp_path):
    describe = _description()
    assert describe(str(tmp_path))["code"] == ""
    for package in nodes.PACKAGES:
        (tmp_path / package).mkdir()
    digests = set()
    for place, content in (("tune/a.py", "x"), ("tune/a.py", "y"), ("pipelines/a.py", "y"), ("tune/b.txt", "y")):
        (tmp_path / place).write_text(content)
        digests.add(describe(str(tmp_path))["code"])
    assert len(digests) == 3  # a text is no source


@pytest.mark.parametrize(
    ("change", "reply", "words"),
    [
        ({"token": ""}, "t", ("out=", "does not see what is written there", "--out", "$INDM_RUNS")),
        ({}, "", ("out=", "does not see what is written there")),
        ({"unseen": ("/data/x",)}, "t", ("data=/data/x", "does not see it", "prepare it")),
        ({"torch": "1.0"}, "t", ("has torch 1.0", metadata.version("torch"), "the same on all")),
        ({"code": "other"}, "t", ("has other code", str(CLONE), "`ray up`")),
        ({"code": ""}, "t", ("has no code", str(CLONE))),
    ],
)
def test_what_differs_is_named(change, reply, words, tmp_path):
    here = _description()(str(CLONE))
    same = Answer(token="t", unseen=(), **here)
    _check("the machine 192.0.2.2 of the cluster", same, tmp_path, "t", "t", here)
    with pytest.raises(ValueError, match=r"192\.0\.2\.2") as refusal:
        _check("the machine 192.0.2.2 of the cluster", replace(same, **change), tmp_path, "t", reply, here)
    assert all(word in str(refusal.value) for word in words)
