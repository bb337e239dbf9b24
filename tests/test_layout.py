"""The direction of imports: tune -> pipelines -> indm_core, leaves stay leaves, and no Ray where there may be none."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "indm_core").rglob("*.py"))
ALLOWED_IN_CORE = {"torch", "numpy", "jaxtyping", "indm_core"} | set(sys.stdlib_module_names)
OPTIONAL_IN_CORE = {"indm_core/pis/baselines/nuts.py": {"pyro"}}
"""Packages that a file imports when it is used; the core is imported without them."""
NO_FILES_IN_CORE = {"argparse", "io", "logging", "os", "pathlib", "pickle", "shutil", "subprocess", "tempfile"}
LEVELS = [
    {"shapes", "noise", "errors", "ranges", "precision", "compiled"},
    {"flow", "nn", "frechet", "ode", "adjoint", "optimiser", "average"},
    {"sde", "metrics"},
    {"times"},
    {"sample"},
    {"exponential"},
    {"collage", "fitting"},
    {"sampling"},
    {"automatic"},
    {"model"},
    {"likelihood", "training"},
    {"draw", "pis"},
    {"diagnostics"},
    {"checks"},
]
"""The folders and files of indm_core, from the bottom: one imports those of lower levels, and what is in its own folder."""
WHEN_CALLED = {"indm_core/model/base.py": {"draw", "likelihood"}}
"""A model's methods are thin over functions of a model, which stand above it."""


@cache
def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, the names of its TYPE_CHECKING branches included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def family(path: Path) -> str:
    """The folder or file directly below indm_core."""
    return path.relative_to(ROOT / "indm_core").parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(path: Path) -> str:
    """The module's name."""
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_is_pure_torch(path):
    top = {module.split(".")[0] for module in imported(path)}
    assert top <= ALLOWED_IN_CORE | OPTIONAL_IN_CORE.get(name(path), set())
    assert not top & NO_FILES_IN_CORE


@pytest.mark.parametrize("path", [path for path in CORE if family(path) != "__init__"], ids=name)
def test_nothing_points_up(path):
    levels = {module: level for level, modules in enumerate(LEVELS) for module in modules}
    own = family(path)
    assert own in levels, f"say in LEVELS where {own} stands"
    others = {module.split(".")[1] for module in imported(path) if module.startswith("indm_core.")} - {own}
    others -= WHEN_CALLED.get(name(path), set())
    assert all(levels[other] < levels[own] for other in others & levels.keys())


FOLDERS = [
    {"storage", "cluster"},
    {"data"},
    {"densities"},
    {"config"},
    {"runs", "recipes"},
    {"evaluation"},
    {"training", "reporting"},
]
"""The folders of pipelines, from the bottom; commands stand above all."""
PIPELINES = sorted((ROOT / "pipelines").rglob("*.py"))
TOP = ("indm_core", "pipelines", "tune", "tests", "benchmarks")
COMMANDS = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"}


def folder(path: Path) -> str:
    """The folder directly below pipelines; '' for a command."""
    parts = path.relative_to(ROOT / "pipelines").parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", PIPELINES, ids=name)
def test_folders_of_pipelines_import_downwards(path):
    levels = {other: level for level, names in enumerate(FOLDERS) for other in names}
    modules = imported(path)
    assert not {module for module in modules if module.split(".")[0] in ("tune", "tests", "benchmarks")}
    others = {module.split(".")[1] for module in modules if module.startswith("pipelines.")} - {folder(path)}
    if folder(path):
        assert all(levels[other] < levels[folder(path)] for other in others & levels.keys())


@pytest.mark.parametrize("path", sorted(path for top in TOP for path in (ROOT / top).rglob("*.py")), ids=name)
def test_nobody_imports_a_command(path):
    assert not imported(path) & ({f"pipelines.{command}" for command in COMMANDS} | {"tune.sweep"})


def run_without(modules: list[str], statement: str) -> None:
    """Runs a statement in a fresh interpreter in which some modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))"  # None in sys.modules: ImportError
    done = subprocess.run(
        [sys.executable, "-c", f"{block}; {statement}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_storage_data_config_and_recipes_need_no_ray():
    folders = ("storage", "data", "densities", "config", "recipes")
    modules = [dotted(path) for path in PIPELINES if folder(path) in folders]
    run_without(["ray", "mlflow"], f"import {', '.join(modules)}, pipelines.training.local")


def test_the_core_needs_neither_jaxtyping_nor_anything_but_torch():
    absent = [
        "jaxtyping",
        "beartype",
        "scipy",
        "sklearn",
        "PIL",
        "pyarrow",
        "ray",
        "mlflow",
        "matplotlib",
        "safetensors",
        "pyro",
    ]
    run_without(absent, f"import {', '.join(map(dotted, CORE))}")
