"""Figures of the papers that a report sets beside its own. They are of other data and hardware than most reports': every row
says which. References: Kim et al. 2022 (INDM), Tables 3, 4 and 6."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a paper's table; None where it has no figure. NLL and NELBO in bits/dim after correction; FID with Inception.

    Args:
        model, data, source: What, on what, and where it stands.
        params: As printed.
        fid_ode, fid_pc: By the sampler.
    """

    model: str
    data: str
    source: str
    params: str
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
)
