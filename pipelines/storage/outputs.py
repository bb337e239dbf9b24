"""Where outputs go: --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipelines.storage.files import sweep
from pipelines.storage.locks import held
from pipelines.storage.messages import nearest
from pipelines.storage.paths import local_path
from pipelines.storage.remote import is_remote

__all__ = [
    "CONFIG",
    "RULE",
    "check_name",
    "check_writable",
    "find_run",
    "is_run",
    "only_one",
    "output_root",
    "place_of",
    "refuse_foreign_links",
    "writing",
]

CONFIG = "config.json"
"""What a run's directory has, and no other one."""
RULE = "Outputs go to --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from"
TAKEN = ("data", "features", "ray", "mlartifacts", "mlflow.db")
"""Names in the output directory that are not of runs."""
LONGEST = 200
"""Bytes of a name: file systems take 255, and files beside it have longer ones."""
PATIENCE = 60.0
"""Seconds that a writer whose command has ended is given to end."""


def output_root(out: str | None) -> Path:
    """The absolute output directory, made where it is absent.

    Raises:
        ValueError: none is given and the code runs from a temporary or installed copy, or the directory cannot be written.
    """
    given = out or os.environ.get("INDM_RUNS")
    if is_remote(given):
        raise ValueError(
            f"{'--out' if out else 'INDM_RUNS'} {given}: a URL is no place for files here; give a path (a run has locks "
            f"and renames), and --mirror {given}, which copies every checkpoint there"
        )
    if given:
        root = local_path(given, "--out" if out else "INDM_RUNS").resolve()
    else:
        clone = Path(__file__).resolve().parents[2]
        if not (clone / "pyproject.toml").is_file() or "working_dir_files" in clone.parts:
            raise ValueError(f"{RULE}; {clone} is a temporary or installed copy: give --out DIR or set INDM_RUNS")
        root = clone / "runs"
    check_writable(root, "give another --out DIR")
    for directory in (root, root / "data", root / "features"):
        sweep(directory)
    return root


def check_writable(directory: Path, remedy: str = "allow it, or copy the run to a place of your own") -> None:
    """Makes a directory where it is absent and tries to write there, before the work whose results it is for.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:  # it has no name that a kill could leave behind
            probe.write(bytes(4096))  # an empty file can be made on a full disk
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written ({error.strerror}); {remedy}") from None


def find_run(word: str, root: Path | None = None) -> Path:
    """A run by its directory or by its name under the output directory.

    Raises:
        ValueError: none of both, or a link of somebody else lies in it.
    """
    if not is_run(run := place_of(word, root)):
        whose, _, step = str(run).rpartition("/checkpoints/step-")
        if step.isdecimal() and is_run(Path(whose)):
            raise ValueError(f"{word}: a checkpoint's directory and no run; give {whose}@{int(step)}")
        root, name = root or output_root(None), local_path(word, "run").name
        raise ValueError(f"{word}: no run here, and none in {root}; {_runs_near(name, root)}")
    refuse_foreign_links(run)
    return run


def place_of(word: str, root: Path | None = None) -> Path:
    """Where a run of that directory, or of that name under the output directory, lies if there is one."""
    path = local_path(word, "run")
    return path.resolve() if is_run(path) else (root or output_root(None)) / path


def is_run(directory: Path) -> bool:
    """Whether a run lies there."""
    return (directory / CONFIG).is_file()


def _runs_near(name: str, root: Path) -> str:
    """The runs of an output directory that a name may have meant."""
    names = sorted(file.parent.name for file in root.glob(f"*/{CONFIG}"))
    return nearest(name, names, "which `python pipelines/show.py runs` lists") if names else "train one first"


def check_name(name: str) -> None:
    """Refuses what is no name of a run: a run lies in a directory of its own directly below the output directory.

    Raises:
        ValueError: more than one path component, a hidden one, characters that cannot be printed, or a name that is taken.
    """
    if name in TAKEN:
        raise ValueError(f"--name {name}: {', '.join(TAKEN)} hold what runs share; give another --name")
    if not name or name.startswith(".") or not name.isprintable() or {"/", "\\", os.sep} & set(name):
        raise ValueError(
            f"--name {name!r}: the name of a run is one directory below the output directory, without / and no dot in front; "
            "give another --name, and --out DIR for another place"
        )
    if len(os.fsencode(name)) > LONGEST:
        raise ValueError(f"--name {name[:20]}...: {len(os.fsencode(name))} bytes are more than {LONGEST}; shorten it")


def refuse_foreign_links(run: Path) -> None:
    """Refuses a run directory with links that neither this user nor the administrator made: they may lead anywhere.

    Raises:
        ValueError: there is one.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(run) as entries:
        for entry in entries:
            if entry.is_symlink() and entry.stat(follow_symlinks=False).st_uid not in (0, os.geteuid()):
                raise ValueError(f"{entry.path}: a link that another user made, which is not followed; remove it")


@contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Keeps a second command from training in the same directory; the lock goes with the process, however it ends.

    What processes that have ended had not finished there is removed.

    Raises:
        ValueError: another process holds it, or a link of somebody else lies there.
    """
    run.mkdir(parents=True, exist_ok=True)
    refuse_foreign_links(run)
    with _lock(run / ".lock", 0.0, f"{run}: another command is training there; wait for it, or give another --name"):
        for directory in (run, run / "checkpoints"):
            sweep(directory)
        yield


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Held by the process that writes a run, which may outlive the command that started it for some seconds.

    Raises:
        ValueError: such a process is still there after `PATIENCE` seconds.
    """
    run.mkdir(parents=True, exist_ok=True)
    said = f"{run}: a process of an earlier command still writes there; end it, then give the same command again"
    with _lock(run / ".writing", PATIENCE, said):
        yield


@contextmanager
def _lock(file: Path, wait: float, said: str) -> Iterator[None]:
    """A lock of a run; a refusal where it is held, or where a link is in its place."""
    if file.is_symlink():
        raise ValueError(f"{file}: a link where a run has its lock, which is not followed; remove it")
    with ExitStack() as stack:
        try:
            stack.enter_context(held(file, wait))
        except BlockingIOError:
            raise ValueError(said) from None
        yield
