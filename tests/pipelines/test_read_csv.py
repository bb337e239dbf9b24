"""Tables of text come back value by value, or are refused with line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sources import WHOLE, refused, stored

from pipelines.data.ingest import prepare


@pytest.mark.parametrize("header", ["", "a,b,c\n"])
def test_csv_round_trip(tmp_path: Path, header: str) -> None:
    x = np.random.default_rng(0).standard_normal((2500, 3)).astype(np.float32)
    file = tmp_path / "table.csv"
    file.write_text(header + "\n".join(",".join(map(repr, row)) for row in x.tolist()) + "\n\n")
    card = prepare(file, tmp_path / "out", WHOLE)
    assert (card.kind, card.shape, card.levels) == ("vector", (3,), 0)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], x)
    split = prepare(file, tmp_path / "split")
    assert (split.split("train").count, split.split("test").count) == (2000, 500)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b\n1,2\n3,x\n", ["line 3 column b", "'x' is not a number"]),
        ("a,b\n1,2\n,4\n", ["line 3 column a", "missing value"]),
        ("a,b\n1,\n2,\n", ["line 2 column b", "missing value"]),
        ("1,2\n3,4\n5\n", ["line 3", "1 columns", "2"]),
        ("a,b\n1,2\n3,2\n", ["column b", "constant 2"]),
        ("1,2\n3,nan\n", ["line 2 column 1", "'nan' is not finite"]),
        ("1,2\n3,1e99\n", ["line 2 column 1", "'1e99' is not finite"]),
        ("a,b\n", ["0 rows"]),
        ("", ["0 rows"]),
        ("1,2\n3,\x00\n", ["line 2"]),
        ("1,2\n3,\xff\n", ["table.csv"]),
        (",,\n1,2,3\n4,5,6\n", ["line 1 column 0", "no name in the header, or a missing value"]),
        ("a,b,a\n1,2,3\n4,5,6\n", ["line 1 column 2", "a second column is called 'a'"]),
        ("1,2\n1_000,4\n", ["line 2 column 0", "'1_000' is not a number"]),
        ("1,2\n3,4\n5," + "x" * 5000 + "\n", ["line 3 column 1", f"'{'x' * 40}...' is not a number"]),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode("latin1"))
    refused(file, tmp_path / "out", str(file), *parts)
