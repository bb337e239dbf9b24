"""What the tests of prepared data share: random pixels, data sets written directly, and how a refusal must look."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.card import Card, load_card
from pipelines.data.ingest import prepare
from pipelines.data.shards import ShardWriter, read_all
from pipelines.data.source import Options
from pipelines.storage.files import sha256_of

WHOLE = Options(test_fraction=0)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def verify(card: Card, directory: Path) -> None:
    """Every shard's bytes are those that its card names."""
    for split in card.splits.values():
        assert [sha256_of(directory / shard.file) for shard in split.shards] == [shard.sha256 for shard in split.shards]


def stored(out: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    card = load_card(out)
    verify(card, out)
    rows = read_all(out, card, split)
    return rows["x"], rows["label"]


def prepared(tmp_path: Path, source: str | Path, **options: object) -> dict[str, np.ndarray]:
    """The splits of a source of vectors, prepared and read back."""
    out = tmp_path / "out"
    card = prepare(source, out, Options(**options))  # pyright: ignore[reportArgumentType]
    assert card.kind == "vector"
    return {name: read_all(out, load_card(out), name)["x"] for name in card.splits}


def assert_normal(x: np.ndarray) -> None:
    """Mean 0 and variance 1, but for the rounding to float32."""
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-5)


def write_shards(
    directory: Path,
    card: Card,
    split: str,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    rows_per_shard: int = 16_384,
) -> Card:
    """Writes a split from chunks (x, label); returns the card with the split added. `write_card` comes last."""
    with ShardWriter(directory, card, split, rows_per_shard) as writer:
        for x, label in chunks:
            writer.add(x, label)
        return replace(card, splits={**card.splits, split: writer.close()})


def png(x: np.ndarray) -> bytes:
    """x (c, h, w) as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(x[0] if len(x) == 1 else np.moveaxis(x, 0, -1)).save(stream, "PNG")
    return stream.getvalue()


def refused(source: str | Path, out: Path, *parts: str, options: Options = WHOLE) -> None:
    """The source is refused in one line holding all parts; a data set is there afterwards if, and as, there was one before."""
    before = _card(out)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        prepare(source, out, options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert _card(out) == before


def _card(out: Path) -> bytes | None:
    return (out / "card.json").read_bytes() if (out / "card.json").is_file() else None
