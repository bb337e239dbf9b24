"""Exported models: a directory in the layout of the Hugging Face hub, or a repository there.

`pipelines/export.py` writes such a directory; it is what `load` reads, with a model card beside it. A repository is taken from
the hub, or from the local cache of what was taken before, by `huggingface_hub`, which is imported for that alone: it is an
optional dependency (`pip install 'indm[hub]'`).
"""

from __future__ import annotations

import re
from pathlib import Path

from indm_core.model import GenerativeModel
from pipelines.config.store import load
from pipelines.storage.messages import one_line

__all__ = ["from_pretrained", "snapshot"]

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Of a repository: OWNER/NAME."""


def from_pretrained(path: str | Path, module: str | Path = "") -> GenerativeModel:
    """The model of a directory, or of a repository on the hub, in evaluation mode.

    Args:
        path: A directory (of a run, or one that `pipelines/export.py` wrote), or OWNER/NAME on the hub. A directory goes first.
        module: As of `load`.

    Raises:
        ValueError: as `load` does; a repository that cannot be had, and what to do.
    """
    return load(snapshot(path, ["*.json", "*.safetensors"]), module)


def snapshot(path: str | Path, patterns: list[str]) -> Path:
    """The directory, or that in which the files of a repository are kept on this machine.

    Args:
        path: A directory, or OWNER/NAME on the hub.
        patterns: Names of the files that are wanted.

    Raises:
        ValueError: neither a directory nor a repository that can be had; what to do.
    """
    if Path(path).is_dir() or not NAME.fullmatch(str(path)):
        return Path(path)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: no directory here, and a repository of the hub needs huggingface_hub: pip install 'indm[hub]', or give "
            "a directory"
        ) from None
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise ValueError(f"{path}: no directory here, and no such repository on the hub; correct the name") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{path}: no directory here, the hub cannot be reached, and the repository is not in the local cache; "
            "give a directory, or try again with a network"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no directory here, and the hub does not give it ({one_line(error, 200)}); give a directory, or try "
            "again later"
        ) from None
