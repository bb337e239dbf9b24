"""The rows of a table of samplers.

A row is a sampler with options, `em:100`, `pc:1000:snr=0.1`, `ode:rtol=1e-5,atol=1e-5`,
`deis:nfe=10,method=iPNDM,grid=edm`: its name, the number of its steps, any option of `Sampling`, and `start=data`, by
which sampling starts from the diffused latents of test data instead of the model's law. `table` stands for a set of
rows, `TABLE`, and `ablation` for `ABLATION`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from indm_core.draw import check_sampling
from indm_core.model import GenerativeModel
from indm_core.sampling import Sampling
from pipelines.config.terminal.cli import override
from pipelines.data.card import Card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features.reference import split_rows

__all__ = [
    "ABLATION",
    "TABLE",
    "Chosen",
    "Row",
    "Start",
    "check_row",
    "choose",
    "family",
    "parse_row",
    "parse_rows",
    "row_at",
    "starts",
]

Start = Literal["prior", "data"]
Words = tuple[str, ...]

_EVALUATIONS = (5, 10, 15, 20, 50)
_FAST = (
    "order=0",
    "order=3",
    "method=rho-AB,order=3,grid=edm",
    "method=rho-RK,order=2,grid=edm",
    "method=rho-RK,order=3,grid=edm",
    "method=iPNDM,order=3,grid=edm",
)
TABLE = (
    *(f"em:{nfe - 1}" for nfe in _EVALUATIONS),
    *(f"deis:nfe={nfe},{options}" for options in _FAST for nfe in _EVALUATIONS),
    "ode",
)
"""What `--rows table` stands for: at 5 to 50 evaluations of the score Euler-Maruyama (whose last evaluation is Tweedie's mean),
DDIM, t-AB DEIS of order 3, rho-AB, Kutta's third-order and the classical Runge-Kutta method in rho, and iPNDM, the last four on
the EDM grid of power 7; and the adaptive ODE solver, which all but Euler-Maruyama approach."""

_INGREDIENTS = (
    "em:{}:lam=0,grid=uniform",
    "deis:{}:order=0,basis=score,grid=uniform",
    "deis:{}:order=0,grid=uniform",
    "deis:{}:order=3,grid=uniform",
    "deis:{}:order=3,grid=power",
)
ABLATION = tuple(row.format(steps) for row in _INGREDIENTS for steps in (5, 10, 20, 50))
"""What `--rows ablation` stands for, the ingredients of DEIS one after the other: Euler's method, an exponential integrator
that holds the score constant, one that holds eps constant, polynomials of eps, and the quadratic grid (thesis, Figure 6.5)."""
SETS: dict[str, Words] = {"table": TABLE, "ablation": ABLATION}
"""Names that stand for rows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: what was written, the sampler that it names, and where sampling starts: at the model's law, or at data that are
    noised up to a share `strength` of its time."""

    text: str
    sampling: Sampling
    start: Start = "prior"
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The rows of a table that a model allows, and what is left out of a named set: (row, why)."""

    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]

    def remarks(self) -> list[str]:
        """What is left out, a line for each reason."""
        reasons: dict[str, list[str]] = {}
        for row, why in self.left_out:
            reasons.setdefault(why, []).append(row)
        return [f"left out: {' '.join(rows)} ({why})" for why, rows in reasons.items()]


def parse_row(text: str) -> Row:
    """The row that a word names.

    Raises:
        ValueError: an unknown sampler or option, with the row.
    """
    try:
        given = _options(text)
        start, strength = given.pop("start", "prior"), given.pop("strength", "1")
        if start not in ("prior", "data"):
            raise ValueError(f"start={start} is neither prior nor data")
        sampling = override(Sampling(), given)
        return Row(text=text, sampling=sampling, start=start, strength=_share(strength, start))
    except ValueError as error:
        raise ValueError(f"rows: {text!r}: {error}") from None


def row_at(text: str, given: Mapping[str, str]) -> Row:
    """A row with other options beside its own, or in their place: of steps and nfe the later one counts.

    Raises:
        ValueError: as `parse_row` does.
    """
    lengths = {"steps", "nfe"} if given.keys() & {"steps", "nfe"} else set[str]()
    options = {name: value for name, value in _options(text).items() if name not in lengths} | dict(given)
    name = options.pop("sampler")
    said = ",".join(f"{option}={value}" for option, value in options.items())
    return parse_row(f"{name}:{said}" if said else name)


def _options(text: str) -> dict[str, str]:
    """The options of a row as text, its sampler among them."""
    name, *rest = text.split(":")
    given = {"sampler": name}
    for part in (part for word in rest for part in word.split(",")):
        option, equals, value = part.partition("=")
        option, value = (option, value) if equals else ("steps", part)
        if option in given:
            raise ValueError(f"{option} is given twice")
        given[option] = value
    if "steps" in given and "nfe" in given:
        raise ValueError("steps and nfe both say how long; give one")
    return given


def _share(text: str, start: Start) -> float:
    """The share of the time up to which data are noised."""
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not 0 < strength <= 1:
        raise ValueError(f"strength={text} must lie in (0, 1], a share of the time")
    if strength != 1 and start != "data":
        raise ValueError(f"strength={text}: it says how far data are noised; give start=data")
    return strength


def parse_rows(text: str) -> tuple[Row, ...]:
    """The rows that words separated by blanks name, each once; a word of `SETS` stands for its rows."""
    words = (word for given in text.split() for word in SETS.get(given, (given,)))
    return tuple(parse_row(word) for word in dict.fromkeys(words))


def choose(text: str, model: GenerativeModel, name: str) -> Chosen:
    """The rows that words name and the model allows.

    Args:
        text: As of `parse_rows`.
        name: Of the model, for the message.

    Raises:
        ValueError: a row that was named itself, not by a set, and that the model does not allow.
    """
    asked, rows, left_out = set(text.split()), [], []
    for row in parse_rows(text):
        try:
            check_row(model, row)
            rows.append(row)
        except ValueError as error:
            if row.text in asked:
                raise ValueError(f"rows: {row.text!r} on {name}: {error}") from None
            left_out.append((row.text, str(error)))
    return Chosen(rows=tuple(rows), left_out=tuple(left_out))


def check_row(model: GenerativeModel, row: Row) -> None:
    """Refuses a row that a model does not allow; ValueError says why."""
    check_sampling(model, row.sampling, row.strength)


def family(row: str) -> str:
    """A row's name without what says how long it takes."""
    options = [part for word in row.split(":") for part in word.split(",")]
    lengths = ("steps", "nfe", "rtol", "atol")
    return " ".join(part for part in options if not part.isdigit() and part.partition("=")[0] not in lengths)


def starts(data: Path, card: Card, num: int, seed: int = 0) -> Tensor:
    """Test data to start from, dequantised by the seed (num, *shape); sample i has row i modulo their number, so that it starts
    from the same image whatever `num` is."""
    k = split_rows(data, card, "test", num)
    k = k[torch.arange(num) % len(k)]
    return DataSpec.of(card).to_model(k, torch.Generator().manual_seed(seed))
