"""Where weights come from: the configuration and the rows that made them, kept in every checkpoint and beside the weights.

    {"config": as config.json has it, "data": {split: {"rows": number, "sha256": of the rows}}, "partner": likewise}

A run is one thing: what goes on with it, or measures it, has the same configuration but for `MAY_CHANGE`, and the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config.codec import from_json, to_json
from pipelines.config.pis import is_pis_document
from pipelines.config.run import Configured, RunConfig, from_document, to_document
from pipelines.config.terminal.cli import dashed, options
from pipelines.data.card import Card
from pipelines.data.spec import DataSpec

__all__ = [
    "MADE_OF",
    "Provenance",
    "backbone_options",
    "config_document",
    "config_from",
    "difference",
    "say_unverified",
]

VERSION = 1
MAY_CHANGE = {"train.steps", "train.keep", "train.keep_by"} | {
    f"train.{what}_every" for what in ("log", "checkpoint", "measure", "sample", "validate")
}
"""Options that may differ when a run goes on: how long, and how often it logs, keeps (and which), draws and is measured."""
BACKBONE = "model.backbone"
MADE_OF = ("config", "data", "partner", "sampler")
"""The entries of the document; the last is that of a sampler of a density, which has no other (`pis`)."""
Rows = Mapping[str, Mapping[str, Any]]
"""By split: how many rows, and their SHA-256 ('' where the data were prepared before rows had one)."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a run's weights.

    Args:
        run: The configuration.
        spec: Of the data.
        data: Their rows.
        partner: The rows of the second data set of a bridge; none where there is none.
    """

    run: RunConfig
    spec: DataSpec
    data: Rows
    partner: Rows = field(default_factory=dict)

    @staticmethod
    def of(run: RunConfig, spec: DataSpec, card: Card, partner: Card | None = None) -> Provenance:
        return Provenance(run=run, spec=spec, data=_rows(card), partner=_rows(partner) if partner else {})

    def to_document(self) -> dict[str, Any]:
        config = config_document(self.run, self.spec)
        return {"config": config, "data": dict(self.data), "partner": dict(self.partner)}

    @staticmethod
    def read(document: Mapping[str, Any], where: str) -> Provenance | None:
        """The inverse of `to_document`; None of a training that has no data set.

        Raises:
            ValueError: a configuration that this code does not know, or rows that are described otherwise.
        """
        if "config" not in document:
            return None
        run, spec = config_from(document["config"], f"{where}: config")
        data, partner = (_read_rows(document.get(name), f"{where}: {name}") for name in ("data", "partner"))
        return Provenance(run=run, spec=spec, data=data, partner=partner)

    def config_changed(self, run: RunConfig, spec: DataSpec) -> str:
        """The first difference of the configuration, as `field=own, not other`; '' where there is none."""
        own, other = ({f"spec.{k}": v for k, v in to_json(s).items()} for s in (self.spec, spec))
        return difference(self.run, run) or _first(own, other)

    def data_changed(self, data: Rows) -> str:
        """The first difference of the rows; what has no SHA-256 on one side differs by its number alone."""
        return _rows_changed("data", self.data, data)

    def partner_changed(self, partner: Rows) -> str:
        """The first difference of the rows of the second data set."""
        return _rows_changed("partner", self.partner, partner)


def config_document(run: RunConfig, spec: DataSpec) -> dict[str, Any]:
    """What config.json holds."""
    return {"version": VERSION, **to_document(run), "spec": to_json(spec)}


def config_from(document: Any, where: str) -> tuple[RunConfig, DataSpec]:
    """The inverse of `config_document`.

    Raises:
        ValueError: another version, or a configuration that this code does not know.
    """
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError(f"{where}: no configuration of a run (it has no version); give the directory of a run")
    if document["version"] != VERSION or type(document["version"]) is not int:
        raise ValueError(f"{where}: written by another version of this project; this one reads version {VERSION}")
    if is_pis_document(document):
        raise ValueError(
            f"{where}: a path integral sampler, which is of a density and of no data set; python pipelines/pis.py with its "
            "target goes on with it and draws its samples"
        )
    return from_document(document, f"{where}: "), from_json(DataSpec, document.get("spec"), f"{where}: spec")


def difference(there: Configured, here: Configured) -> str:
    """The first option that differs and may not, as `path=there, not here`; '' where there is none."""
    fixed = {"train.steps"} if any(each.decay != "none" for each in there.train.optimisers.values()) else set[str]()
    may = MAY_CHANGE - fixed  # a rate that decays is one of the whole number of steps
    old, new = ({o.path: o.plain for o in options(run) if o.path not in may} for run in (there, here))
    return _first(old, new)


def backbone_options(there: RunConfig, here: RunConfig) -> str:
    """What is typed so that the score network of `here` is that of `there`; '' where it is, or where one of them has none."""
    old, new = ({o.path: o for o in options(run) if f"{o.path}.".startswith(f"{BACKBONE}.")} for run in (there, here))
    if BACKBONE not in old or BACKBONE not in new:
        return ""
    if old[BACKBONE].plain != new[BACKBONE].plain:  # the fields of another form begin at its defaults
        form = type(old[BACKBONE].value)()
        new = {o.path: o for o in options(form, f"{BACKBONE}.")}
    changed = [o for path, o in old.items() if path not in new or new[path].plain != o.plain]
    return " ".join(f"--{dashed(o.path)} {o.shown}" for o in changed)


@cache
def say_unverified(place: Path) -> None:
    """Says, once in a process, what cannot be verified of what an earlier version wrote."""
    print(
        f"{place}: written before there were checksums; its weights, configuration and data could not be verified",
        flush=True,
    )


def _rows(card: Card) -> Rows:
    return {name: {"rows": split.count, "sha256": split.sha256} for name, split in sorted(card.splits.items())}


def _read_rows(value: Any, where: str) -> Rows:
    splits = value.values() if isinstance(value, dict) else (None,)
    if not all(isinstance(split, dict) for split in splits):
        raise ValueError(f"{where}: no rows by split; restore the file, or begin another run")
    return value


def _rows_changed(name: str, there: Rows, here: Rows) -> str:
    old, new = (
        {f"{name}.{split}.{key}": value for split, entry in rows.items() for key, value in entry.items()}
        for rows in (there, here)
    )
    unknown = {path for path in old.keys() & new.keys() if "" in (old[path], new[path])}
    old, new = ({path: value for path, value in side.items() if path not in unknown} for side in (old, new))
    return _first(old, new)


def _first(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
    return f"{changed[0]}={_shown(old.get(changed[0]))}, not {_shown(new.get(changed[0]))}" if changed else ""


def _shown(value: Any) -> str:
    """A value in a message; of a checksum, its beginning."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
