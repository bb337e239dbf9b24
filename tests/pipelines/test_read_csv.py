"""Tables of text come back to the bit, or are refused with line and column."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sources import WHOLE, refused, stored

from pipelines.data.ingest import prepare
from pipelines.data.readers import csv_table
from pipelines.data.readers.csv_table import read_rows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a line or two, each of which pyarrow sees first."""
    monkeypatch.setattr(csv_table, "BLOCK", 8)
    monkeypatch.setattr(csv_table, "COLUMN_BYTES", 0)


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint64)


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


REFUSED = pytest.mark.parametrize(
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


@REFUSED
def test_bad_tables_are_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode("latin1"))
    refused(file, tmp_path / "out", str(file), *parts)


@REFUSED
@pytest.mark.usefixtures("small_blocks")
def test_bad_tables_are_refused_alike_in_small_blocks(tmp_path: Path, text: str, parts: list[str]) -> None:
    test_bad_tables_are_refused(tmp_path, text, parts)


def written(number: float, form: int) -> str:
    """A number in one of the forms that programs write: shortest, too many digits, exact, padded, signed, without a zero."""
    forms = [repr(number), f"{number:.17g}", f"{number:.25g}", f"{number:+.17e}", f" {number!r} ", f"{number:E}"]
    forms += [f"\t{number:.60f}" if abs(number) < 1e30 else repr(number), f'"{number!r}"']
    forms += [str(int(number)), repr(number).replace("0.", ".", 1) if abs(number) < 1 else f"{int(number)}."]
    return forms[form]


@pytest.mark.parametrize("plain", [False, True])
def test_every_number_is_the_nearest_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Random bits (of all sizes), denormals, normal draws and integers in ten forms; pyarrow and the plain code agree."""
    generator = np.random.default_rng(0)
    any_bits = generator.integers(0, 2**64, 4000, dtype=np.uint64).view(np.float64)
    denormal = generator.integers(1, 2**52, 1000, dtype=np.uint64).view(np.float64)
    integers = generator.integers(-(10**12), 10**12, 1000).astype(float)
    x = np.concatenate([any_bits[np.isfinite(any_bits)], denormal, generator.standard_normal(4000), integers])
    x = generator.permutation(x)[: len(x) // 4 * 4]
    cells = [
        written(float(number), int(form)) for number, form in zip(x, generator.integers(0, 10, len(x)), strict=True)
    ]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(",".join(cells[start : start + 4]) for start in range(0, len(cells), 4)))
    monkeypatch.setattr(csv_table, "BLOCK", 1 << 14)
    if plain:
        monkeypatch.setattr(csv_table, "_parsed", lambda block, num, dtype: np.empty((0, num)))
    else:
        monkeypatch.setattr(csv_table, "COLUMN_BYTES", 0)
        monkeypatch.delattr(csv_table, "_plain")
    expected = np.array([float(cell.strip('"')) for cell in cells])
    names, found = read_rows(file)
    assert names == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(bits(found), bits(expected).reshape(-1, 4))


def test_numbers_of_float32_are_rounded_twice_as_before(tmp_path: Path) -> None:
    """First to float64, then to float32: 1 + 2^-24 + 2^-60 is nearest to 1 + 2^-23, but goes to 1."""
    text = "1.00000005960464477626"
    assert np.float32(float(text)) == 1.0
    file = tmp_path / "table.csv"
    file.write_text("\n".join(f"{text},{index}" for index in range(1000)))
    (*_, (_, _, block)) = csv_table._blocks(file, np.float32)
    assert (block[:, 0] == 1).all()


TEXTS = [
    ("a,b\n1,2\n3,4\n5,6\n7,8\n", [1, 2, 3, 4, 5, 6, 7, 8]),
    ("\ufeff1,2\r\n\r\n3,4\r\n5,6\r\n7,8", [1, 2, 3, 4, 5, 6, 7, 8]),
    ("\r\r a , b \r1,2\r3,4\r\r5,6\r7,8\r\r", [1, 2, 3, 4, 5, 6, 7, 8]),
    ('1,2\n"3\n",4\n5,"\r\n\n 6"\n7,8\n', [1, 2, 3, 4, 5, 6, 7, 8]),
    ('"a\nb","c"\n"1","2"\n3,""4\n5,"6"\n"7"\n,8\n', None),
    ('1,2\n3,""4\n5,6\n7,"8', [1, 2, 3, 4, 5, 6, 7, 8]),
    ("1,2\n\x0b3,4\n5,\u0666\n7,8\xa0\n", [1, 2, 3, 4, 5, 6, 7, 8]),
    ("1,2\n+3,4.\n\t5,6\n7e0,8", [1, 2, 3, 4, 5, 6, 7, 8]),
]


@pytest.mark.parametrize(("text", "numbers"), TEXTS)
@pytest.mark.parametrize("column_bytes", [0, 500])
def test_it_does_not_matter_where_the_blocks_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, numbers: list[float] | None, column_bytes: int
) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode())
    monkeypatch.setattr(csv_table, "COLUMN_BYTES", column_bytes)
    for size in range(1, len(text.encode()) + 2):
        monkeypatch.setattr(csv_table, "BLOCK", size)
        if numbers is None:
            with pytest.raises(ValueError, match=r"table.csv line 6: 1 columns where the first line has 2"):
                read_rows(file)
        else:
            np.testing.assert_array_equal(read_rows(file)[1].ravel(), numbers)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_are_counted_in_blocks_that_pyarrow_reads(tmp_path: Path, end: str) -> None:
    """The line behind some MiB is named as in an editor; rows are numbered without header and empty lines."""
    rows = [f"{index},{index / 7!r}" for index in range(200_000)]
    rows[3] = f"{end}3,0.5"
    file = tmp_path / "table.csv"
    file.write_text(end.join(["a,b", *rows]), newline="")
    assert file.stat().st_size > 3 * csv_table.BLOCK
    first = [(start, len(block)) for _, start, block in csv_table._blocks(file, np.float64)]
    assert all(start + num == following for (start, num), (following, _) in pairwise(first))
    assert sum(num for _, num in first) == 200_000
    rows[150_000] = "150000,x"
    file.write_text(end.join(["a,b", *rows]), newline="")
    with pytest.raises(ValueError, match=r"table.csv line 150003 column b: 'x' is not a number"):
        read_rows(file)


def test_only_a_block_with_an_odd_number_is_read_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{index},{index / 7!r}" for index in range(100_000)]
    rows[50_000] = "\x0b" + rows[50_000]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(rows))
    plain: list[int] = []
    converted = csv_table._converted

    def counted(file: Path, names: list[str], records: list, dtype: type) -> np.ndarray:
        plain.append(len(records))
        return converted(file, names, records, dtype)

    monkeypatch.setattr(csv_table, "_converted", counted)
    _, x = read_rows(file)
    np.testing.assert_array_equal(x[:, 0], np.arange(100_000))
    assert sum(plain) < 1.2 * csv_table.BLOCK / len(rows[50_000])


def test_wide_tables_and_long_lines_are_read(tmp_path: Path) -> None:
    """With more columns than pyarrow is worth its cost for, and lines longer than a block."""
    x = np.random.default_rng(0).standard_normal((3, 60_000))
    file = tmp_path / "table.csv"
    file.write_text("\n".join(",".join(map(repr, row)) for row in x.tolist()))
    assert file.stat().st_size > 3 * csv_table.BLOCK
    np.testing.assert_array_equal(read_rows(file)[1], x)


def test_a_text_that_is_not_utf8_is_named_with_its_last_good_line(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(b"1,2\n" * 400_000 + b"3,\xff\n")
    with pytest.raises(ValueError, match=r"table.csv: not a readable text table after line 400000 \('utf-8' codec"):
        read_rows(file)
