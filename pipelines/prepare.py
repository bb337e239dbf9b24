"""Any known format -> Parquet shards and a card: `python pipelines/prepare.py SOURCE --out DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])


import argparse
from dataclasses import fields

from pipelines.data.card import one_line
from pipelines.data.ingest import prepare
from pipelines.data.readers import FORMATS
from pipelines.data.readers.density import TABLES
from pipelines.data.source import Options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python pipelines/prepare.py",
        description="Turn a data set into Parquet shards with a card, which training and evaluation read.",
        epilog=f"Known sources: {FORMATS}. Example: python pipelines/prepare.py img_align_celeba --out data/celeba "
        "--crop 140 --size 64",
    )
    default = Options()
    parser.add_argument("source", metavar="SOURCE", help="file, directory, or the name of an embedded set (see below)")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the prepared data set")
    parser.add_argument("--name", default="", metavar="N", help="name of the data set (default: the source's)")
    parser.add_argument("--size", type=int, default=0, metavar="64", help="resize image files to this side")
    parser.add_argument("--crop", type=int, default=0, metavar="140", help="cut the centre square of this side first")
    parser.add_argument(
        "--levels", type=int, default=0, metavar="L", help="pixels are 0 ... L-1 (default: 256 in 8 bits)"
    )
    parser.add_argument("--low", type=float, default=default.low, help="the model sees [low, high] (default: -1)")
    parser.add_argument("--high", type=float, default=default.high, help="(default: 1)")
    parser.add_argument(
        "--max-skip", type=float, default=default.max_skip, metavar="0.01", help="share of corrupt rows to tolerate"
    )
    parser.add_argument(
        "--test-fraction",
        type=float,
        default=default.test_fraction,
        metavar="0.2",
        help="share to hold out as `test` if the source has one split; 0: none",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the hold-out and of generated sets (default: 0)")
    parser.add_argument("--splits", nargs="+", default=(), metavar="SPLIT", help="keep only these, e.g. train test")
    parser.add_argument(
        "--rows", type=int, default=default.rows, metavar="50000", help="training rows of a generated set"
    )
    parser.add_argument("--table", default="", choices=("", *TABLES), help="the source is this published table")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status, 2 after an error."""
    given = _parser().parse_args(argv)
    try:
        values = {entry.name: getattr(given, entry.name) for entry in fields(Options)}
        card = prepare(given.source, given.out, Options(**values | {"splits": tuple(given.splits)}))
    except (ValueError, OSError) as error:
        if given.traceback:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    for name, split in card.splits.items():
        print(f"{name}: {split.count:,} rows in {len(split.shards)} shards, {split.skipped} skipped")
    print(f"{card.name}: {card.kind} {card.shape}, levels {card.levels}, {card.num_classes} classes -> {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
