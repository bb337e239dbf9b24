"""Figures of the papers that a report sets beside its own. They are of other data and hardware than most reports': every row
says which. References: Kim et al. 2022 (INDM), Tables 4 and 6; Zand et al. 2024 (DiNof), Tables 3 and 4; Zhang 2023 (DiffFlow,
thesis), Tables 3.1 to 3.3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.data.spec import DataSpec
from pipelines.reporting.page.parts import Folded, Note, Row, Section, Table

__all__ = ["PUBLISHED", "Published", "published_section"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a paper's table; None where it has no figure. NLL and NELBO after correction; FID with Inception.

    Args:
        model, data, source: What, on what, and where it stands.
        params: As printed.
        kind: image or vector: which reports show it.
        unit: Of NLL and NELBO.
        fid_ode, fid_pc: By the sampler.
    """

    model: str
    data: str
    source: str
    params: str = ""
    kind: str = "image"
    unit: str = "bits/dim"
    nll: float | None = None
    nelbo: float | None = None
    gap: float | None = None
    fid_ode: float | None = None
    fid_pc: float | None = None


def _table_4(model: str, params: str, *figures: float | None) -> Published:
    names = ("nll", "nelbo", "gap", "fid_ode", "fid_pc")
    given = dict(zip(names, figures, strict=True))
    return Published(model=model, data="CIFAR-10", source="Kim et al. 2022, Table 4", params=params, **given)


def _table_6(model: str, *figures: float | None) -> Published:
    given = dict(zip(("nll", "nelbo", "gap", "fid_pc"), figures, strict=True))
    return Published(model=model, data="CelebA 64", source="Kim et al. 2022, Table 6", params="", **given)


def _dinof(model: str, fid: float, data: str = "CIFAR-10", table: int = 4) -> Published:
    return Published(model=model, data=data, source=f"Zand et al. 2024, Table {table}", fid_pc=fid)


def _diffflow(model: str, data: str, table: str, nll: float, fid: float | None = None) -> Published:
    return Published(model=model, data=data, source=f"Zhang 2023, Table {table}", nll=nll, fid_ode=fid)


def _tabular(model: str, *nlls: float) -> list[Published]:
    sets = ("POWER", "GAS", "HEPMASS", "MINIBOONE", "BSDS300")
    rows = [_diffflow(model, data, "3.1", nll) for data, nll in zip(sets, nlls, strict=True)]
    return [replace(row, kind="vector", unit="nats") for row in rows]


PUBLISHED = (
    _table_4("NCSN++ (VE, FID)", "63M", 4.86, 4.89, 0.03, None, 2.38),
    _table_4("INDM (VE, FID)", "76M", 3.22, 3.28, 0.06, None, 2.29),
    _table_4("DDPM++ (VP, FID)", "62M", 3.21, 3.34, 0.13, 3.90, 2.89),
    _table_4("INDM (VP, FID)", "75M", 3.17, 3.23, 0.06, 3.61, 2.90),
    _table_4("DDPM++ (VP, NLL)", "62M", 3.03, 3.13, 0.10, 6.70, 5.17),
    _table_4("INDM (VP, NLL)", "75M", 2.98, 2.98, 0.00, 6.01, 5.30),
    _table_6("NCSN++ (VE, FID)", 3.41, 3.42, 0.01, 3.95),
    _table_6("INDM (VE, FID)", 2.31, 2.33, 0.02, 2.54),
    _table_6("DDPM++ (VP, FID)", 2.14, 2.21, 0.07, 2.32),
    _table_6("INDM (VP, FID)", 2.27, 2.31, 0.04, 1.75),
    _table_6("DDPM++ (VP, NLL)", 2.00, 2.09, 0.09, 3.95),
    _table_6("INDM (VP, NLL)", 2.05, 2.05, 0.00, 3.06),
    _dinof("DDPM++ cont. (VP), 1000 steps", 2.55),
    _dinof("DiNof (DDPM++ cont., VP), 600 steps", 2.40),
    _dinof("DDPM++ cont. (sub-VP), 1000 steps", 2.61),
    _dinof("DiNof (DDPM++ cont., sub-VP), 600 steps", 2.43),
    _dinof("NCSN++ cont. (VE), 1000 steps", 2.38),
    _dinof("DiNof (NCSN++ cont., VE), 600 steps", 2.12),
    _dinof("DiNof (NCSN++ cont., deep, VE), 600 steps", 2.01),
    _dinof("DiNof", 7.11, "CelebA-HQ 256", 3),
    _diffflow("DiffFlow (ODE)", "CIFAR-10", "3.3", 3.04, 14.14),
    Published(model="DiffFlow (SDE)", data="CIFAR-10", source="Zhang 2023, Table 3.3", nelbo=3.67, fid_pc=13.43),
    _diffflow("DiffFlow", "MNIST", "3.2", 0.93),
    _diffflow("ResFlow", "MNIST", "3.2", 0.97),
    _diffflow("FFJORD", "MNIST", "3.2", 0.99),
    _diffflow("Glow", "MNIST", "3.2", 1.05),
    *_tabular("DiffFlow (ODE)", -1.04, -10.45, 15.04, 8.06, -157.80),
    *_tabular("FFJORD", -0.46, -8.59, 14.92, 10.43, -157.40),
    *_tabular("NAF", -0.62, -11.96, 15.09, 8.86, -157.73),
)


KNOWN = {
    "CIFAR-10": ((3, 32, 32), ("cifar10", "cifar10batchespy", "cifar10batchesbin", "cifar10python", "cifar10binary")),
    "CelebA 64": ((3, 64, 64), ("celeba64", "celeba", "imgalignceleba")),
    "CelebA-HQ 256": ((3, 256, 256), ("celebahq256", "celebahq")),
    "MNIST": ((1, 28, 28), ("mnist",)),
}
"""By data set of the images above: their shape, and the names that its folders have, letters and digits alone."""


def published_section(spec: DataSpec, table: str) -> Section:
    """The rows of papers on the data set of a specification; those on other images are folded.

    Args:
        table: Which published table the data are; '' where they are none.
    """
    if len(spec.shape) == 3:
        rows = [row for row in PUBLISHED if row.kind == "image"]
        near = [row for row in rows if _on(row, spec)]
    else:
        near = rows = [row for row in PUBLISHED if row.kind == "vector" and row.data.lower() == table]
    far = [row for row in rows if row not in near]
    parts: list[Table | Folded | Note] = []
    if near:
        said = "Of longer trainings of larger networks; FID: a Frechet distance in Inception's features, of 50,000 samples."
        parts.append(Table(head=HEAD, rows=[_cells(row) for row in near], note=said))
    if far:
        parts += [] if near else [Note(text=f"No paper that is known here has figures on {spec.name}.")]
        parts.append(Folded(title=f"{len(far)} rows of papers on other data", parts=[_far(far)]))
    return Section(title="In papers, on the same data" if near else "In papers", parts=parts)


HEAD = ("model", "data", "source", "parameters", "NLL", "NELBO", "gap", "FID")


def _far(rows: Sequence[Published]) -> Table:
    return Table(
        head=HEAD, rows=[_cells(row) for row in rows], note="Figures on other data can be looked up, not compared."
    )


def _cells(row: Published) -> Row:
    figures = ["" if value is None else f"{value:.2f} {row.unit}" for value in (row.nll, row.nelbo, row.gap)]
    fids = [f"{value:.2f} ({name})" for name, value in (("ODE", row.fid_ode), ("PC", row.fid_pc)) if value]
    return (row.model, row.data, row.source, row.params, *figures, ", ".join(fids))


def _on(row: Published, spec: DataSpec) -> bool:
    """Whether a paper's row is on a data set, by its name and its shape."""
    shape, names = KNOWN[row.data]
    return spec.shape == shape and "".join(filter(str.isalnum, spec.name)).lower() in names
