"""Tables of text come back to the bit, or are refused with line and column."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sources import WHOLE, refused, stored

from pipelines.data.ingest import prepare
from pipelines.data.readers import csv_table
from pipelines.data.readers.csv_table import read_rows
from pipelines.data.readers.text_form import SEPARATORS, Form


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
        monkeypatch.setattr(csv_table, "_parsed", lambda block, num, dtype, form: np.empty((0, num)))
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

    def counted(file: Path, names: list[str], records: list, dtype: type, form: Form) -> np.ndarray:
        plain.append(len(records))
        return converted(file, names, records, dtype, form)

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


NUMBERS = np.random.default_rng(3).normal(size=(20, 3)).round(4)


def table(file: Path, header: str = "", separator: str = ",", decimal: str = ".", x: np.ndarray = NUMBERS) -> Path:
    rows = [separator.join(f"{value:.4f}".replace(".", decimal) for value in row) for row in x]
    file.write_text("\n".join([header, *rows] if header else rows) + "\n")
    return file


@pytest.mark.parametrize("header", ["0,1,2", "1,2,3", "2019,2020,2021", "1990,2000,2015", "a,b,c"])
def test_a_header_of_numbers_is_no_row(tmp_path: Path, header: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "table.csv", header)
    prepare(file, tmp_path / "out", WHOLE)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], NUMBERS.astype(np.float32))
    said = capsys.readouterr().err
    assert said == (
        ""
        if "a" in header
        else f"{file} line 1: '{header}' are taken for the names of columns; else give --header no\n"
    )


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("0,1,2\n4,7,9\n8,1,3\n9,9,9\n", 3, 4),
        ("2019,2020\n14,70\n80,10\n3,4\n", 3, 4),
        ("0,1\n0.5,0.25\n0.75,1.5\n3,4\n", 3, 4),
        ("0\n0.5\n0.75\n0.8\n", 3, 4),
    ],
    ids=["counts", "years", "two columns", "one column"],
)
def test_numbers_that_may_be_a_header_or_a_row_are_asked_for(tmp_path: Path, text: str, yes: int, no: int) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    refused(
        file,
        tmp_path / "out",
        f"{file} line 1: ",
        "may be the names of columns or a row",
        "--header yes or --header no",
    )
    for header, rows in (("yes", yes), ("no", no)):
        assert prepare(file, tmp_path / header, replace(WHOLE, header=header)).split("train").count == rows


@pytest.mark.parametrize(
    "text", ["1,2\n3,4\n5,7\n", "3,7,9\n0.5,1.5,2.5\n1,1.25,2\n", "1,2,3\n4,5,6\n7,8,10\n", "0\n1\n2\n"]
)
def test_a_first_row_of_whole_numbers_is_a_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    assert prepare(tmp_path / "table.csv", tmp_path / "out", WHOLE).split("train").count == 3


@pytest.mark.parametrize("separator", ["semicolon", "tab"])
@pytest.mark.parametrize("decimal", ["point", "comma"])
@pytest.mark.parametrize("header", ["", "a{0}b{0}c", "0{0}1{0}2"])
@pytest.mark.parametrize("block", [1 << 20, 64])
def test_other_separators_and_decimals(
    tmp_path: Path, separator: str, decimal: str, header: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their options, by pyarrow as by the plain code; without them they are named."""
    monkeypatch.setattr(csv_table, "BLOCK", block)
    monkeypatch.setattr(csv_table, "COLUMN_BYTES", block // (1 << 10))
    sign = SEPARATORS[separator]
    file = table(tmp_path / "table.csv", header.format(sign), sign, "," if decimal == "comma" else ".")
    refused(file, tmp_path / "out", "line ", f"--separator {separator}")
    form = {"separator": separator, "decimal": decimal}
    prepare(file, tmp_path / "out", replace(WHOLE, **form))
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], NUMBERS.astype(np.float32))
    if decimal == "comma":
        refused(file, tmp_path / "new", "line ", "--decimal comma", options=replace(WHOLE, separator=separator))


def test_tabs_are_what_divides_a_tsv_file(tmp_path: Path) -> None:
    prepare(table(tmp_path / "table.tsv", "a\tb\tc", "\t"), tmp_path / "out", WHOLE)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], NUMBERS.astype(np.float32))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2 3\n4 5 6\n", "divided by spaces"),
        ('"1,5","2,5"\n"3,5","4,5"\n', "--decimal comma"),
        ("1.000,5;2\n3;4\n", "--separator semicolon"),
    ],
)
def test_other_forms_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    refused(tmp_path / "table.csv", tmp_path / "out", "line ", told)


def test_a_thousands_point_is_no_decimal_comma(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1.000,5;2\n3;4\n")
    form = replace(WHOLE, separator="semicolon", decimal="comma")
    refused(tmp_path / "table.csv", tmp_path / "out", "line 1 column 0: '1.000,5' is not a number", options=form)


def test_a_header_of_many_columns_takes_no_square_of_their_number(tmp_path: Path) -> None:
    """Comparing 40,000 names pairwise takes a minute."""
    file = tmp_path / "table.csv"
    file.write_text("\n".join(",".join(f"{name}{index}" for index in range(40_000)) for name in ("column", "", "")))
    begun = time.process_time()
    assert len(read_rows(file)[0]) == 40_000
    assert time.process_time() - begun < 10


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "LONGEST", 1 << 22)
    with (tmp_path / "table.csv").open("wb") as stream:
        stream.write(b"1,2\n")
        stream.truncate(1 << 40)
    refused(tmp_path / "table.csv", tmp_path / "out", "a line of more than 4 MiB")
