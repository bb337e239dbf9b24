"""What the tests of `prepare` and of its readers share: random pixels, and how a refusal must look."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.card import load_card, verify
from pipelines.data.ingest import prepare
from pipelines.data.shards import read_all
from pipelines.data.source import Options

WHOLE = Options(test_fraction=0)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def stored(out: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    card = load_card(out)
    verify(card, out)
    rows = read_all(out, card, split)
    return rows["x"], rows["label"]


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
