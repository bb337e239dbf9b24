"""The direction of imports: tune -> pipelines -> indm_core, leaves stay leaves, and no Ray where there may be none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "indm_core").rglob("*.py"))
ALLOWED_IN_CORE = {"torch", "numpy", "jaxtyping", "indm_core"} | set(sys.stdlib_module_names)
NO_FILES_IN_CORE = {"argparse", "io", "logging", "os", "pathlib", "pickle", "shutil", "subprocess", "tempfile"}
LEVELS = [
    {"shapes", "noise", "errors"},
    {"sde", "flow", "nn", "metrics", "ode"},
    {"times"},
    {"model"},
    {"sample", "likelihood", "training"},
    {"draw", "exponential", "diagnostics"},
]
"""The folders and files of indm_core, from the bottom: one imports those of lower levels, and what is in its own folder."""


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


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_is_pure_torch(path):
    top = {dotted.split(".")[0] for dotted in imported(path)}
    assert top <= ALLOWED_IN_CORE
    assert not top & NO_FILES_IN_CORE


@pytest.mark.parametrize("path", [path for path in CORE if family(path) != "__init__"], ids=name)
def test_nothing_points_up(path):
    levels = {module: level for level, modules in enumerate(LEVELS) for module in modules}
    own = family(path)
    assert own in levels, f"say in LEVELS where {own} stands"
    others = {dotted.split(".")[1] for dotted in imported(path) if dotted.startswith("indm_core.")} - {own}
    assert all(levels[other] < levels[own] for other in others & levels.keys())


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda path: path.stem)
def test_pipelines_do_not_import_tune(path):
    assert not {dotted for dotted in imported(path) if dotted.split(".")[0] in ("tune", "tests", "benchmarks")}


def run_without(modules: list[str], statement: str) -> None:
    """Runs a statement in a fresh interpreter in which some modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))"  # None in sys.modules: ImportError
    done = subprocess.run(
        [sys.executable, "-c", f"{block}; {statement}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_recipes_config_and_prepare_need_no_ray():
    run_without(["ray", "mlflow"], "import pipelines.recipes, pipelines.config, pipelines.prepare")


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
    ]
    modules = (name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in CORE)
    run_without(absent, "import " + ", ".join(modules))
