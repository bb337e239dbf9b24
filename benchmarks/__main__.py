"""Every figure as a ratio, in one table: `python -m benchmarks [FIGURE ...] [--list] [--quick] [--out FILE]`.

Without a name all figures are measured. A figure is a script of this folder that has a function `figure` (`figure.py`); the
script's own command, where it has one, prints more. One thread; two things that are compared take turns in one process. A ratio
is the median over pairs, its spread their least and largest. The same rows are written to FILE (benchmarks.json in the output
directory) after each of them, with the machine and its load.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figure import Absent, Row
from pipelines.storage.files import write_text
from pipelines.storage.outputs import output_root

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A script that has a figure; it is imported when it is measured.

    Args:
        name: The script's, with hyphens.
        says: The first line of the figure's docstring.
    """

    name: str
    says: str

    def rows(self, quick: bool) -> Iterator[Row | Absent]:
        """Measures."""
        return importlib.import_module(f"benchmarks.{self.name.replace('-', '_')}").figure(quick)


def figures(folder: Path = HERE) -> dict[str, Figure]:
    """The figures of a folder by their names, found without importing its scripts."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == "figure":
                name = path.stem.replace("_", "-")
                found[name] = Figure(name, (ast.get_docstring(node) or "").partition("\n")[0])
    return found


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row, or why there is none, with the figure that it is of."""

    figure: str
    row: Row | Absent
    load: float

    def line(self) -> str:
        """Of the table."""
        if isinstance(self.row, Absent):
            return f"{self.figure:<18} {self.row.what:<44} not measured: {self.row.reason}"
        row = self.row
        verdict = "" if row.target is None else f"{row.target}{'' if row.target.met(row.ratio) else ' missed'}"
        numbers = f"{_short(row.ours):>9} {_short(row.theirs):>9} {row.unit:<9} {row.ratio:>7.3g}  {verdict:<14}"
        return f"{self.figure:<18} {row.what:<44} {row.reference:<28} {numbers} {_short(row.low)} to {_short(row.high)}"


HEAD = (
    f"{'figure':<18} {'what':<44} {'reference':<28} {'ours':>9} {'reference':>9} {'unit':<9} {'ratio':>7}  "
    f"{'target':<14} spread"
)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def document(measured: list[Measured]) -> str:
    """All rows as JSON, with the machine that they were measured on."""
    import torch

    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return json.dumps({"machine": machine, "rows": [asdict(each) for each in measured]}, indent=1) + "\n"


def main() -> int:
    """Prints the table; the exit status is 1 where a figure failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FIGURE")
    parser.add_argument("--list", action="store_true", help="what figures there are")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether the figures work")
    parser.add_argument("--out", metavar="FILE")
    given, there = parser.parse_args(), figures()
    if given.list:
        print("\n".join(f"{name:<18} {figure.says}" for name, figure in there.items()))
        return 0
    if unknown := [name for name in given.names if name not in there]:
        parser.error(f"no figure {unknown[0]}; there are {', '.join(there)}")
    file = Path(given.out) if given.out else output_root(None) / "benchmarks.json"
    return measure([there[name] for name in given.names or there], given.quick, file)


def measure(chosen: list[Figure], quick: bool, file: Path) -> int:
    """Measures figures one after the other; one that fails is told, and the others go on."""
    import torch

    torch.set_num_threads(1)
    print(HEAD, flush=True)
    measured: list[Measured] = []
    failed: list[str] = []
    for figure in chosen:
        began = time.monotonic()
        try:
            for row in figure.rows(quick):
                measured.append(Measured(figure=figure.name, row=row, load=os.getloadavg()[0]))
                print(measured[-1].line(), flush=True)
                write_text(file, document(measured))
        except Exception:
            traceback.print_exc()
            failed.append(figure.name)
        print(f"{figure.name:<18} {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"{len(measured)} rows in {file}{f'; failed: {chr(44).join(failed)}' if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
