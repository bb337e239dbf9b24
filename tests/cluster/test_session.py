"""Which Ray cluster is joined: the one that is named or the user's own, and none that does not answer."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import ray
import torch
from ray_session import one_line

from pipelines.cluster import entry, session
from pipelines.cluster.address import _started, check_machine

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
    assert _started() == ""
    record.write_text("127.0.0.1:6379\n")
    record.chmod(0o644)
    assert _started() == "127.0.0.1:6379"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_record_that_others_can_write_to_is_not_used(mode, record, capsys):
    record.write_text("127.0.0.1:6379")
    record.chmod(mode)
    assert _started() == ""
    one_line(capsys.readouterr().out, str(record), "not used", "RAY_ADDRESS")


def test_another_user_s_record_is_not_used(record, monkeypatch, capsys):
    record.write_text("127.0.0.1:6379")
    record.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(record, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert _started() == ""
    one_line(capsys.readouterr().out, str(record), "not used", "RAY_ADDRESS")


def test_a_linked_record_and_one_that_is_no_file_are_not_used(record):
    target = record.with_name("target")
    target.write_text("127.0.0.1:6379")
    record.symlink_to(target)
    assert _started() == ""
    record.unlink()
    os.mkfifo(record)
    assert _started() == ""


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


@pytest.fixture
def guarded(monkeypatch, tmp_path) -> Iterator[Callable[[str], str]]:
    """Makes a server that answers as the head of a cluster does to whoever shows a token, to everybody where it is ''."""
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ExitStack() as stack:

        def make(token: str, question: str = entry.QUESTION) -> str:
            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if token and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            _, service, method = question.split("/")
            server = grpc.server(ThreadPoolExecutor(1))
            handler = grpc.unary_unary_rpc_method_handler(answer, bytes, bytes)
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(server.stop, None)
            return f"127.0.0.1:{port}"

        yield make


class Tokens:
    """In the place of Ray's own reader of tokens."""

    def __init__(self, token: str) -> None:
        self.token = token

    def has_token(self, ignore_auth_mode: bool = False) -> bool:
        return bool(self.token)

    def get_token_for_http_header(self, ignore_auth_mode: bool = False) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.mark.parametrize(
    ("wanted", "own", "mode", "parts"),
    [
        ("", "", "DISABLED", []),
        ("", "a" * 32, "TOKEN", []),
        ("b" * 32, "b" * 32, "TOKEN", []),
        (
            "b" * 32,
            "",
            "DISABLED",
            ["wants a token, and none is here", "RAY_AUTH_MODE=disabled in front of `ray start`"],
        ),
        ("b" * 32, "b" * 32, "DISABLED", ["is not shown", "put RAY_AUTH_MODE=token in front of the command"]),
        ("b" * 32, "a" * 32, "TOKEN", ["wants another token", "copy the ~/.ray/auth_token"]),
    ],
)
def test_a_cluster_that_does_not_let_us_in_is_told_with_what_was_found(wanted, own, mode, parts, guarded, monkeypatch):
    monkeypatch.setattr(entry, "AuthenticationTokenLoader", SimpleNamespace(instance=lambda: Tokens(own)))
    monkeypatch.setattr(entry, "get_authentication_mode", lambda: getattr(entry.AuthenticationMode, mode))
    address = guarded(wanted)
    assert session._answers(address)
    said = entry.refusal(address, 5.0)
    assert bool(said) == bool(parts)
    if parts:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match="cannot be joined") as caught:
            session.connect(1, 1.0)
        one_line(str(caught.value), address, f"Ray {ray.__version__}", "RAY_ADDRESS=local", *parts)


def test_a_cluster_on_the_loopback_that_ray_looks_for_elsewhere_is_refused_at_once(guarded, monkeypatch):
    address = guarded("")
    elsewhere = address.replace("127.0.0.1", "nowhere.invalid")
    monkeypatch.setattr(
        session.services, "resolve_ip_for_localhost", lambda host: host.replace("127.0.0.1", "nowhere.invalid")
    )
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ValueError, match="cannot be joined") as caught:
        session.connect(1, 1.0)
    one_line(str(caught.value), address, f"looks for it at {elsewhere}", "on the loopback alone", "RAY_ADDRESS=local")
    assert time.monotonic() - began < 10
    session._check_way("ray://head:10001")  # Ray's client takes it as it is


def test_a_server_of_something_else_is_no_cluster(guarded):
    one_line(entry.refusal(guarded("", "/of.Something/Else"), 5.0), "no Ray cluster", "`ray start`", "6379")


def test_workers_that_would_share_cores_are_refused_with_the_number_that_fits(record, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    check_machine(2, 1.0, "cpu")
    check_machine(8, 0.25, "auto")
    with pytest.raises(ValueError, match="workers=8 on 2 cores: take --workers 2") as caught:
        check_machine(8, 1.0, "auto")
    one_line(str(caught.value), "--cpus-per-worker", "RAY_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_machine(8, 1.0, "cuda")  # the cluster says what it has


@pytest.mark.parametrize(("num", "remedy"), [(0, "no GPU on this machine; give --device cpu"), (1, "take --workers 1")])
def test_gpus_that_this_machine_has_not_are_refused(num, remedy, record, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num)
    check_machine(2, 1.0, "auto")
    check_machine(num, 1.0, "cpu")
    with pytest.raises(ValueError, match="cuda") as caught:
        check_machine(2, 1.0, "cuda")
    one_line(str(caught.value), remedy)


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
