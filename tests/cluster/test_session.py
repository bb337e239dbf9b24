"""Which Ray cluster is joined: the one that is named or the user's own, and none that does not answer."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from ray_session import one_line

from pipelines.cluster import session

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SETTINGS = bytes(3) + b"\x04" + bytes(5)


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    """Where `ray start` would leave its cluster's address."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def server() -> Iterator[tuple[str, list[bytes]]]:
    """An address where something listens, and what it says to everyone who comes."""
    said: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with ExitStack() as kept, suppress(OSError):
                while True:
                    come = kept.enter_context(listening.accept()[0])
                    for part in said:
                        come.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", said
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def refusing() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_the_user_s_own_record_is_read(record):
    assert session._started() == ""
    record.write_text("127.0.0.1:6379\n")
    record.chmod(0o644)
    assert session._started() == "127.0.0.1:6379"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_record_that_others_can_write_to_is_not_used(mode, record, capsys):
    record.write_text("127.0.0.1:6379")
    record.chmod(mode)
    assert session._started() == ""
    one_line(capsys.readouterr().out, str(record), "not used", "RAY_ADDRESS")


def test_another_user_s_record_is_not_used(record, monkeypatch, capsys):
    record.write_text("127.0.0.1:6379")
    record.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(record, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert session._started() == ""
    one_line(capsys.readouterr().out, str(record), "not used", "RAY_ADDRESS")


def test_a_linked_record_and_one_that_is_no_file_are_not_used(record):
    target = record.with_name("target")
    target.write_text("127.0.0.1:6379")
    record.symlink_to(target)
    assert session._started() == ""
    record.unlink()
    os.mkfifo(record)
    assert session._started() == ""


def test_what_answers_like_ray_answers(server):
    address, said = server
    said.append(SETTINGS)
    assert session._answers(address)
    assert session._answers(f"ray://{address}")


@pytest.mark.parametrize("said", [[], [b"HTTP/1.1 400 Bad Request\r\n"]], ids=["silence", "something else"])
def test_what_does_not_answer_like_ray_is_known_soon(said, server, monkeypatch):
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.3)
    server[1].extend(said)
    began = time.monotonic()
    assert not session._answers(server[0])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "127.0.0.1:99999999", "nowhere.invalid:6379"])
def test_what_is_no_address_does_not_answer(address):
    assert not session._answers(address)


@pytest.mark.parametrize("made", ["dead", "auto", "nonsense"])
def test_a_named_cluster_that_does_not_answer_is_refused_at_once(made, record, monkeypatch):
    given = refusing() if made == "dead" else made
    monkeypatch.setenv("RAY_ADDRESS", given)
    began = time.monotonic()
    with pytest.raises(ValueError, match="no cluster answers there") as caught:
        session.connect(1, 1.0)
    one_line(str(caught.value), f"RAY_ADDRESS={given}", "mend or unset it")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("address", "remedy"), [("", "give the same command again"), ("here", "RAY_ADDRESS=local")])
def test_ray_that_does_not_start_or_is_not_joined_is_one_line(address, remedy, record, monkeypatch):
    def begin(*arguments: object, **given: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(session, "_begin", begin)
    monkeypatch.setattr(session, "_answers", bool)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match="timed out during startup") as caught:
        session.connect(1, 1.0)
    one_line(str(caught.value), remedy)
