"""Any known format -> Parquet shards and a card: `prepare`.

A source is an embedded set (`digits`, `toy2d:NAME`), a file or a directory; the first of the readers that recognises it
streams its splits. The labels are read first, and become classes (labels.py). Each row is checked on the way: an integer k
must satisfy 0 <= k < L, a vector must be finite. Rows that do not decode are skipped and counted, up to the share
`max_skip` of a split. A source with a single split gets a hold-out (holdout.py). The card is written last.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.data.card import CARD, Card, Split, load_card, write_card
from pipelines.data.holdout import Routes
from pipelines.data.labels import Classes
from pipelines.data.origin import canonical, fingerprint, label, path_of
from pipelines.data.readers import formats, recognised
from pipelines.data.sequences import as_sequences
from pipelines.data.shards import ShardWriter
from pipelines.data.source import Chunk, Options, Source, SourceSplit, Spread, chunk_rows, group_rows, one_by_one
from pipelines.data.splits import canonical_split
from pipelines.data.tally import Bad, Columns, Seen
from pipelines.storage.files import flush
from pipelines.storage.paths import local_path
from pipelines.storage.remote import is_remote, place_at

__all__ = ["check_kind", "prepare"]

IMAGE_OPTIONS = ("size", "crop", "channels", "background", "orient")
"""Options that hold for encoded images only."""
REMOTE = "of an object store, folders of images and Parquet files of images are read; copy others to this machine first"


def prepare(source: str | Path, out: str | Path, options: Options = Options(), spread: Spread = one_by_one) -> Card:
    """Write the shards and the card of a source.

    Args:
        source: "digits", "toy2d:NAME", "mosaic:BASE:RxC", or a path.
        out: directory, made when absent; what an earlier preparation left there is replaced when this one is whole.
        options: see `Options`.
        spread: carries out the pieces that images are decoded in; the shards are the same, to the byte, whatever it is.

    Raises:
        ValueError: an unknown format, or bad content; the message names file, row and remedy.
    """
    directory, origin = local_path(out, "--out"), canonical(source)
    found = _open_source(origin, options, spread)
    if directory.resolve() == path_of(origin):
        raise ValueError(f"out={str(out)!r}: is the source itself; choose another directory")
    building, made = directory / f".{uuid.uuid4().hex}.preparing", not directory.exists()
    try:
        card = _build(building, origin, found, options)
        _clear(directory, building)
        for file in sorted(building.iterdir(), key=lambda file: file.name == CARD):  # the card last
            if file.name == CARD:
                flush(directory)  # no loss of power leaves a card without the shards that it names
            file.rename(directory / file.name)
        flush(directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if made and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()  # after a refusal, as it was
    return card


def _build(directory: Path, origin: str, found: Source, options: Options) -> Card:
    """Writes shards and card of an opened source into a new directory."""
    directory.mkdir(parents=True)
    card = Card(
        name=options.name or label(origin),
        source=origin,
        kind=found.kind,
        shape=found.shape,
        levels=options.levels or found.levels,
        low=options.low,
        high=options.high,
        options=options.to_json(),
        fingerprint=fingerprint(origin),
    )
    card = replace(card, group_rows=group_rows(card.row_bytes))
    splits: dict[str, Split] = {}
    (classes, why_none), seen, trained = _classes(found, options), Seen(), Columns(found.shape)
    for name, part in found.splits.items():
        routes = Routes.of(name, part, found, options)
        splits |= _write(directory, card, found, routes, part, partial(classes.of, name), options, seen, trained)
    notes = (*found.notes, *why_none, *seen.notes(found))
    if options.standardise and "train" not in splits:
        raise ValueError(
            f"standardise=true: the mean is that of train, which is not kept: splits={','.join(options.splits)}"
        )
    mean, std = trained.standard() if options.standardise else ((), ())
    card = replace(
        card,
        splits=splits,
        num_classes=classes.num,
        classes=classes.names,
        columns=found.columns if found.kind == "vector" else (),
        mean=mean,
        std=std,
        left_out=found.left_out,
        notes=notes,
    )
    write_card(directory, card)
    return card


def _classes(found: Source, options: Options) -> tuple[Classes, tuple[str, ...]]:
    """What the labels of the splits stand for, and, where that may be nothing, a note on why."""
    if options.labels == "ignore":
        return Classes(), ()
    try:
        return found.classes(), ()
    except ValueError as error:
        if options.labels == "classes":
            raise
        return Classes(), (f"prepared without labels: {str(error).rpartition('; ')[0]}",)  # less the remedy


def _open_source(origin: str, options: Options, spread: Spread) -> Source:
    """The answer of the first reader that recognises the source."""
    path, there = place_at(origin), path_of(origin)
    if there is not None and not there.exists():
        raise ValueError(
            f"source={origin!r}: no such file, folder or bucket; mend the name"
            if is_remote(origin)
            else f"source={origin!r}: no such file or directory; known: {formats()}"
        )
    if (path / CARD).is_file():
        raise ValueError(f"source={origin!r}: is already prepared; use this directory as it is")
    found = recognised(origin, options)
    if found is None:
        names = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else [path.name]
        raise ValueError(
            f"source={origin!r}: format not recognised ({', '.join(names) or 'empty'}); "
            + (REMOTE if is_remote(origin) else f"known: {formats()}")
        )
    given = {name: value for name in IMAGE_OPTIONS if (value := getattr(options, name)) != getattr(Options(), name)}
    if given and not found.images:
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{said}: only image files are prepared so, not {origin}; leave that out")
    found = replace(found, splits={name: part.spread_by(spread) for name, part in found.splits.items()})
    found = as_sequences(found, origin) if options.as_sequences else found
    check_kind(found.kind, options.levels or found.levels, origin, options)
    if options.split and not found.parts:
        raise ValueError(f"split={','.join(options.split)}: {origin} has no parts with names; it is one set")
    return found


def check_kind(kind: str, levels: int, origin: str, options: Options) -> None:
    """Refuses vectors and sequences where images are brought to one size, and levels where values are standardised.

    Args:
        kind: Of the rows, image, sequence or vector.
        levels: Of their values; 0 for continuous ones.
        origin: The source, for messages.
    """
    if options.standardise and kind == "image":
        raise ValueError(f"{origin} has images, and standardise=true is for tables; the recipe images takes images")
    if options.standardise and levels:
        raise ValueError(
            f"{origin} has {levels} levels, which low and high scale, and standardise=true is for floats; give "
            "--standardise false"
        )
    if options.fit == "common" and kind != "image":
        raise ValueError(f"{origin} has {kind}s, and fit=common is for images; the recipe {kind}s takes {kind}s")


def _clear(directory: Path, building: Path) -> None:
    """Take away the card first, then the shards that it names and what killed preparations left."""
    shards: list[str] = []
    if (directory / CARD).is_file():
        try:
            shards = [shard.file for split in load_card(directory).splits.values() for shard in split.shards]
        except ValueError:
            shards = []
        (directory / CARD).unlink()
        flush(directory)  # before its shards go
    for name in shards:
        (directory / name).unlink(missing_ok=True)
    for left in directory.glob(".*.preparing"):
        if left != building:
            shutil.rmtree(left, ignore_errors=True)


def _write(
    directory: Path,
    card: Card,
    found: Source,
    routes: Routes,
    part: SourceSplit,
    classes: Callable[[np.ndarray], np.ndarray],
    options: Options,
    seen: Seen,
    trained: Columns,
) -> dict[str, Split]:
    """Write a source's split, whose rows are of some classes; returns the result's splits."""
    asked = {canonical_split(name) for name in options.splits}
    keep = {name: index for index, name in enumerate(routes.names) if not asked or canonical_split(name) in asked}
    if not keep:
        return {}
    bad = Bad(part, routes, options.max_skip)
    labels: dict[str, set[int]] = {name: set() for name in keep}
    with ExitStack() as opened:
        writers = {
            name: opened.enter_context(ShardWriter(directory, card, name, 16 * chunk_rows(card.row_bytes)))
            for name in keep
        }
        for chunk in _progress(part, " + ".join(keep)):
            bad.add(chunk)
            _check(chunk, card, found, part)
            seen.add(chunk)
            label = classes(chunk.row)
            for name, index in keep.items():
                rows = routes.target[chunk.row] == index
                writers[name].add(chunk.x[rows], label[rows])
                labels[name] |= set(np.unique(label[rows]).tolist()) - {-1}
                if not card.levels and name == "train":
                    trained.add(chunk.x[rows])
        splits = {
            name: replace(
                writer.close(int(bad.counts[index])),
                source=routes.source(part, index),
                classes=len(labels[name]),
                reasons=bad.reasons(index),
            )
            for (name, index), writer in zip(keep.items(), writers.values(), strict=True)
        }
    for name, split in splits.items():
        if split.count == 0:
            raise ValueError(
                f"split {name!r} of {card.source} has no readable rows; repair it or leave it out: --splits"
            )
    if not card.levels and "train" in keep:
        trained.check(card.source, found)
    return splits


def _check(chunk: Chunk, card: Card, found: Source, part: SourceSplit) -> None:
    """Every value within the levels, or finite."""
    if card.levels:
        wrong = (chunk.x < 0) | (chunk.x >= card.levels) if chunk.x.size else np.zeros(chunk.x.shape, bool)
        remedy = f"is not one of the {card.levels} levels 0 to {card.levels - 1}; give --levels or repair the row"
    else:
        wrong = ~np.isfinite(chunk.x)
        remedy = "is not a finite float32; remove the row"
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0])
        where = part.locate(int(chunk.row[index[0]])) + found.place(index[1:])
        raise ValueError(f"{where}: the value {chunk.x[index]} {remedy}")


def _progress(part: SourceSplit, name: str) -> Iterator[Chunk]:
    """The chunks of a split, with a line to stderr every five seconds."""
    begun = shown = time.monotonic()
    rows = 0
    for chunk in part.chunks():
        yield chunk
        rows += len(chunk.x) + len(chunk.bad)
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            print(f"{name}: {rows:,}/{part.count:,} rows, {rows / (now - begun):,.0f} rows/s", file=sys.stderr)
