"""A prepared data set that lies in an object store: its card is here, its shards come when they are first read.

    DIR/card.json               a copy of the card
    DIR/store.json              where the set lies
    DIR/train-00000.parquet     copied once, by whoever reads it first, and compared with the SHA-256 that the card has

To everything else the directory is a prepared data set as any other. In a directory that several machines share, a shard is
copied once for all of them.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.data.card import CARD, STORE, Card, Shard, load_card
from pipelines.storage.files import new_directory, replaced, sha256_of, write_text
from pipelines.storage.locks import held
from pipelines.storage.reading import read_json
from pipelines.storage.remote import RemotePath, is_remote

__all__ = ["adopt", "publish", "shard_file"]

COPY_SECONDS = 3600.0
"""That another process is given to copy a shard."""


def adopt(place: RemotePath, directory: Path) -> Card:
    """Makes a directory a copy of a set in a store, whose shards are still there; one that is the same already stays.

    Raises:
        ValueError: the store cannot be read, or what is there is no card.
    """
    text, there = (place / CARD).read_bytes(), directory / CARD
    if not there.is_file() or there.read_bytes() != text:
        with new_directory(directory) as building:
            write_text(building / STORE, json.dumps({"url": str(place)}) + "\n")
            (building / CARD).write_bytes(text)
    return load_card(directory)


def shard_file(directory: Path, shard: Shard) -> Path:
    """The file of a shard, which is copied from the store where it is not here yet.

    Raises:
        ValueError: the store cannot be read, or has other bytes than the card says.
    """
    file, store = directory / shard.file, directory / STORE
    if file.is_file() or not store.is_file():
        return file
    document = read_json(store)
    url = document.get("url") if isinstance(document, dict) else None
    if not is_remote(url):
        raise ValueError(f"{store}: does not say where the data lie; remove {directory}, which is made again")
    with held(directory / f".{shard.file}.lock", COPY_SECONDS):
        if not file.is_file():
            _copy(RemotePath(str(url)) / shard.file, file, shard)
    return file


def _copy(place: RemotePath, file: Path, shard: Shard) -> None:
    with replaced(file) as partial:
        place.get(partial)
        found = sha256_of(partial)
        if found != shard.sha256:
            raise ValueError(
                f"{place}: sha256 {found[:12]}... where the card says {shard.sha256[:12]}...; prepare the data set again"
            )


def publish(directory: Path, place: RemotePath) -> None:
    """Copies a prepared data set to a store: the card of an earlier one goes first, that of this one comes last.

    Raises:
        ValueError: the store cannot be written.
    """
    card = load_card(directory)
    (place / CARD).remove()
    for split in card.splits.values():
        for shard in split.shards:
            (place / shard.file).put(directory / shard.file)
    (place / CARD).put(directory / CARD)
