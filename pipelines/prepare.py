"""Turn a data set into Parquet shards with a card: `python pipelines/prepare.py SOURCE --out DIR [--option value ...]`.

SOURCE is a file, a directory, or the name of an embedded set (see below); training and evaluation read what lies in DIR then.
A table at the end says for each split what it was made from, its rows and classes and what was skipped, and what is in none.

    python pipelines/prepare.py img_align_celeba --out data/celeba --crop 140 --size 64
    python pipelines/prepare.py table.csv --out data/table --test-fraction 0.1 --max-skip 0 --splits train,test
    python pipelines/prepare.py pictures --out data/pictures --split train=good,test=held_out
    python pipelines/prepare.py s3://bucket/pictures --out s3://bucket/prepared --size 64
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()


from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

from pipelines.cluster.address import address_to_join, check_machine
from pipelines.config.terminal.cli import options, override
from pipelines.config.terminal.command import run_command
from pipelines.config.terminal.help import describe, page
from pipelines.data.card import Card
from pipelines.data.ingest import prepare
from pipelines.data.origin import canonical, path_of
from pipelines.data.readers import formats
from pipelines.data.source import Chunk, Options, Piece, Spread, one_by_one
from pipelines.data.stored import publish
from pipelines.data.summary import summary
from pipelines.storage.remote import RemotePath, is_remote, place_at


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Where a prepared data set goes.

    Args:
        out: Directory of the prepared data set, or its place in an object store (s3://BUCKET/NAME); it must be given.
        workers: Tasks of Ray that read and decode images at once, in a session of this command's own; 0 is none, and on a
            cluster that is joined (RAY_ADDRESS, or one begun by `ray start`) as many as it has CPUs.
        traceback: Show where an error came from.
    """

    out: str = ""
    workers: int = 0
    traceback: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 after an error."""
    return run_command(argv, _page, _prepare, "the data set is not prepared; the same command begins again")


def _page(words: list[str], given: dict[str, str]) -> str:
    groups = [("where to", describe(PrepareOptions())), ("how the source is read", describe(Options()))]
    return page(__doc__ or "", groups, [f"Known sources: {formats()}."])


def _prepare(words: list[str], given: dict[str, str]) -> None:
    ours = {option.path for option in options(PrepareOptions())}
    launch = override(PrepareOptions(), {k: v for k, v in given.items() if k in ours})
    wanted = override(Options(), {k: v for k, v in given.items() if k not in ours}, sorted(ours))
    if len(words) > 1:
        raise ValueError(
            f"one source at a time, got {' '.join(words)}; several splits are one word, --splits train,test"
        )
    if not launch.out:
        raise ValueError("--out DIR is missing: the directory of the prepared data set")
    spread = _spread(launch, words[0])
    card = (_to_store if is_remote(launch.out) else prepare)(words[0], launch.out, wanted, spread)
    print(f"{card.name}: {card.kind} {card.shape}, levels {card.levels}, {card.num_classes} classes -> {launch.out}")
    print("\n".join(summary(card)))


def _to_store(source: str, out: str, wanted: Options, spread: Spread) -> Card:
    """Prepares below $TMPDIR, and copies what is whole to an object store."""
    place = RemotePath(str(place_at(out)))
    if str(place) == canonical(source):
        raise ValueError(f"out={out!r}: is the source itself; choose another place")
    with TemporaryDirectory() as scratch:
        place.refuse_unwritable()
        card = prepare(source, Path(scratch) / "set", wanted, spread)
        publish(Path(scratch) / "set", place)
    return card


def _spread(launch: PrepareOptions, source: str) -> Spread:
    """What carries out the pieces of the source; a cluster is joined when the first of them is asked for."""
    if launch.workers < 0:
        raise ValueError(f"workers={launch.workers}: must not be negative")
    if not launch.workers and not address_to_join():
        return one_by_one
    check_machine(launch.workers, 1.0, "cpu")
    place = path_of(canonical(source))
    return partial(_on_cluster, launch.workers, [Path(str(place))] if place and not is_remote(place) else [])


def _on_cluster(workers: int, local: Sequence[Path], pieces: Iterator[Piece]) -> Iterator[Chunk]:
    from pipelines.cluster.nodes import check_nodes  # Ray from here on
    from pipelines.cluster.ordered import ordered_objects
    from pipelines.cluster.session import connect, logical_cpus

    where = connect(max(1, workers), 1.0)
    check_nodes(None, local)
    tasks = workers or logical_cpus()
    print(f"{tasks} tasks at a time in {where}", file=sys.stderr)
    return ordered_objects(pieces, lambda piece: piece(1), tasks=tasks, cpus=1.0)


if __name__ == "__main__":
    sys.exit(main())
