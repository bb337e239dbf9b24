"""The direction of imports: tune -> pipelines -> indm_core, leaves stay leaves, and no Ray where there may be none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted(path.stem for path in (ROOT / "indm_core").glob("*.py") if path.stem != "__init__")
ALLOWED_IN_CORE = {"torch", "numpy", "jaxtyping", "indm_core"} | set(sys.stdlib_module_names)
NO_FILES_IN_CORE = {"argparse", "io", "logging", "os", "pathlib", "pickle", "shutil", "subprocess", "tempfile"}
SHARED = {"shapes", "noise", "errors"}
"""Small leaves that every module may import."""

LEAVES = {
    "linear_sde": SHARED,
    "isotropic": SHARED | {"linear_sde"},
    "cld": SHARED | {"linear_sde"},
    "bdm": SHARED | {"linear_sde"},
    "flow": SHARED,
    "metrics": SHARED,
    "collage": SHARED,
    "ode": SHARED,
    "embedding": SHARED,
    "blocks": SHARED | {"embedding"},
    "unet": SHARED | {"embedding", "blocks"},
    "nn": SHARED | {"embedding", "blocks", "unet"},
}
LEVELS = [
    SHARED,
    {"linear_sde"},
    {"isotropic", "cld", "bdm"},
    {"sde", "flow", "metrics", "collage", "ode", "embedding", "anderson"},
    {"blocks", "resflow", "glow", "score", "model", "pis"},
    {"unet", "sample", "training", "elbo", "diffflow"},
    {"nn", "likelihood", "diagnostics", "exponential", "diffusion"},
    {"indm", "dinof"},
]
"""A module imports modules of lower levels, or `SHARED`."""


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


def core_imports(name: str) -> set[str]:
    """The modules of indm_core that one of them imports."""
    parts = (dotted.split(".") for dotted in imported(ROOT / "indm_core" / f"{name}.py"))
    return {part[1] for part in parts if part[0] == "indm_core" and len(part) > 1 and part[1] in CORE}


@pytest.mark.parametrize("name", CORE)
def test_the_core_is_pure_torch(name):
    top = {dotted.split(".")[0] for dotted in imported(ROOT / "indm_core" / f"{name}.py")}
    assert top <= ALLOWED_IN_CORE
    assert not top & NO_FILES_IN_CORE


@pytest.mark.parametrize("name", sorted(LEAVES.keys() & set(CORE)))
def test_leaves_are_leaves(name):
    assert core_imports(name) <= LEAVES[name]


@pytest.mark.parametrize("name", CORE)
def test_nothing_points_up(name):
    levels = {module: level for level, modules in enumerate(LEVELS) for module in modules}
    assert name in levels, f"say in LEVELS where indm_core/{name}.py stands"
    assert all(levels[other] < levels[name] for other in core_imports(name))


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
    run_without(absent, "import " + ", ".join(f"indm_core.{name}" for name in CORE))
