"""Shapes and types of every call into indm_core are checked under pytest; one thread, so that runs can be compared."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from jaxtyping import config, install_import_hook

if any(name.split(".")[0] == "indm_core" for name in sys.modules):
    raise RuntimeError("indm_core was imported before tests/conftest.py, so that its shapes would go unchecked")
os.environ.setdefault("RAY_worker_niceness", "0")  # of clusters that tests start themselves, too
install_import_hook("indm_core", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray takes longest: where several processes share the files of tests, it begins first."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # initial weights are drawn from the global generator
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def unchecked():
    """No shape checks, for tests of very many small calls (a check takes 0.1 ms) or of what is said about bad input."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
