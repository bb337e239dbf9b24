"""A source prepared once for all: `ensure`.

The directory's name follows from the source and the options. A preparation happens in a directory of its own that takes
its place when whole, so that of two processes at once the later one discards its copy. What is there is used again
while its card was made from the same source with the same options, and the source's files have not changed since.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from pipelines.data.card import CARD, Card, load_card
from pipelines.data.ingest import check_kind, prepare
from pipelines.data.origin import canonical, fingerprint, label, path_of
from pipelines.data.readers.embedded import embedded
from pipelines.data.source import Options
from pipelines.data.stored import adopt
from pipelines.data.summary import from_earlier_rules, summary
from pipelines.storage.files import new_directory
from pipelines.storage.remote import RemotePath, is_remote

__all__ = ["data_directory", "ensure"]


def data_directory(source: str | Path, root: str | Path, options: Options = Options()) -> Path:
    """Where `ensure` keeps a source: root/digits, root/toy2d-spiral, or root/<base name>-<hash of path and options>."""
    origin = canonical(source)
    if embedded(origin) and options == Options():
        return Path(root) / label(origin)
    key = hashlib.sha256(f"{origin}\n{options.to_json()}".encode()).hexdigest()[:8]
    return Path(root) / f"{label(origin)}-{key}"


def ensure(source: str | Path, root: str | Path, options: Options = Options()) -> Path:
    """The directory of a prepared source, preparing it when absent, incomplete or made from something else.

    A source that is a prepared data set already (it holds a card.json) is used where it lies; of one in an object store the
    directory gets the card, and the shards as they are read.

    Raises:
        ValueError: the source cannot be prepared, or was prepared otherwise than the options ask.
    """
    directory, origin = data_directory(source, root, options), canonical(source)
    if is_remote(origin) and (RemotePath(origin) / CARD).is_file():
        directory = data_directory(source, root)
        card = adopt(RemotePath(origin), directory)
        _check_prepared(card, origin, options)
        _say([from_earlier_rules(card)])
        return directory
    if not embedded(origin) and (Path(origin) / CARD).is_file():
        card = load_card(origin)
        _check_prepared(card, origin, options)
        _say([from_earlier_rules(card)])
        return Path(origin)
    if _current(directory, origin, options):
        _say([from_earlier_rules(load_card(directory))])
    else:
        with new_directory(directory, keep=lambda: _current(directory, origin, options)) as building:
            card = prepare(source, building, options)
            if not embedded(origin):
                _say([f"prepared {origin}:", *summary(card)])
    return directory


def _say(lines: list[str]) -> None:
    for line in filter(None, lines):
        print(line, file=sys.stderr)


def _check_prepared(card: Card, source: str | Path, options: Options) -> None:
    """Refuses a prepared data set that was made otherwise than the options ask."""
    try:
        made = json.loads(card.options)
        made = made if isinstance(made, dict) else {}
    except (ValueError, RecursionError):
        made = {}
    default = Options()
    check_kind(card.kind, card.levels, str(source), options)
    if options.standardise and not card.mean:
        raise ValueError(
            f"standardise=true: {source} was prepared as it is; prepare it again with --standardise true, or "
            "give --standardise false"
        )
    for name in ("table", "crop", "size", "levels", "low", "high", "channels", "background", "orient", "as_sequences"):
        wanted, there = getattr(options, name), made.get(name, getattr(default, name))
        if wanted not in (getattr(default, name), there):
            raise ValueError(
                f"{name}={wanted}: {source} was prepared with {name}={there}; prepare it again with --{name} {wanted}, or give "
                f"--{name} {there or repr('')}"
            )


def _current(directory: Path, origin: str, options: Options) -> bool:
    """Whether a directory holds what the source and the options give."""
    try:
        card = load_card(directory)
    except (OSError, ValueError):  # OSError: another process is putting a newer one in its place
        return False
    path = path_of(origin)
    gone = path is None or not path.exists()  # a source that was taken away cannot have changed
    return (card.source, card.options) == (origin, options.to_json()) and (
        gone or card.fingerprint == fingerprint(origin)
    )
