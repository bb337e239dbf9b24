"""A folder of samples: named by what they are drawn by (`named`), and holding the samples of one drawing alone (`folder_of`).

A drawing is all that its samples depend on: the model, the sampler with its settings, the seed, where sampling starts. The
folder keeps it in drawn.json. The same drawing again writes the same files, and a longer one adds to them; samples of another
drawing would be mixed with those that are there, and are refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.config.store import identity
from pipelines.config.weights import Weights
from pipelines.evaluation.settings import SampleOptions
from pipelines.storage.files import write_text
from pipelines.storage.outputs import output_root
from pipelines.storage.reading import read_json

__all__ = ["CANVASES", "SAMPLES", "TRANSLATIONS", "Folder", "folder_of", "named"]

RECORD = "drawn.json"
LATER = {"times": "", "label": "", "guidance": 0.0, "strength": 1.0, "layout": "", "conditions": ""}
"""What the record of an earlier version does not say."""
MOST_SHOWN = 12
"""Classes in a folder's name."""
MOST_OF_CONDITIONS = 60
"""Characters of the conditions of canvases in a folder's name."""
SAMPLES = re.compile(r"sample-\d{6,}\.png|samples\.npy|grid\.png")
CANVASES = re.compile(r"(canvas|rolled|cross|sphere)-\d{6,}\.(png|npy)|grid\.png")
TRANSLATIONS = re.compile(r"(forward|backward)\.(png|npy)")
"""Names of the files that a drawing makes in its folder."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What samples depend on; of the same drawing, the first are the same however many there are.

    Args:
        model: Identity of the run's weights.
        sampling: The sampler and its settings.
        times: Of a fitted grid; '' of others.
        start: Where sampling starts.
        path: On which images are carried forward.
        seed: Of the first sample.
        num_samples: How many.
        label: Classes of the samples in turn, with commas between; '' for none.
        guidance: Towards them.
        strength: The share of the time up to which data that sampling starts from are noised.
        layout: Of canvases; '' where none are drawn.
        conditions: Of canvases, with hashes of the pictures.
    """

    model: str
    sampling: str
    start: str
    path: str
    seed: int
    num_samples: int
    times: str = ""
    label: str = ""
    guidance: float = 0.0
    strength: float = 1.0
    layout: str = ""
    conditions: str = ""


def named(wanted: SampleOptions) -> str:
    """What samples are drawn by, as the end of a folder's name: deis-nfe10-method-iPNDM, em-steps100-seed7, and of canvases
    chain64-collage-steps50-between-test-0-test-17."""
    parts = [wanted.layout.name] * bool(wanted.layout.name)
    parts += [_part(*word.partition("=")) for word in re.split("[:,]", str(wanted.sampling))]
    parts += [f"seed{wanted.seed}"] * (wanted.seed > 0)
    parts += [f"from-{wanted.start}"] * (wanted.start != "prior")
    parts += [f"strength{wanted.strength:g}"] * (wanted.strength != 1) + [f"path-{wanted.path}"] * (
        wanted.path != "sde"
    )
    shown = "-".join(map(str, wanted.label[:MOST_SHOWN])) + "..." * (len(wanted.label) > MOST_SHOWN)
    parts += [f"label{shown}"] * bool(wanted.label) + [f"guidance{wanted.guidance:g}"] * (wanted.guidance > 0)
    if conditions := re.sub(r"[^\w.+-]+", "-", wanted.conditions.name()):
        parts.append(conditions[:MOST_OF_CONDITIONS] + "..." * (len(conditions) > MOST_OF_CONDITIONS))
    return "-".join(parts)


def _part(name: str, equals: str, value: str) -> str:
    """An option in a name that every file system takes: steps100, grid-edm."""
    return re.sub(r"[^\w.+-]", "-", f"{name}{'' if value[:1].isdigit() or not equals else '-'}{value}")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder for a drawing of a run, which may be drawn into; made by `folder_of`.

    Args:
        out: Where it lies.
        drawing: What will be drawn.
        files: Names of the files that the drawing makes.
        overwrite: Whether those that are there are removed.
    """

    out: Path
    drawing: Drawing
    files: re.Pattern[str]
    overwrite: bool

    def claim(self) -> Path:
        """Removes what is to be overwritten, and says what the folder holds; where it lies."""
        for file in self.out.iterdir() if self.overwrite else ():
            if self.files.fullmatch(file.name):
                file.unlink()
        write_text(self.out / RECORD, json.dumps(asdict(self.drawing), indent=1) + "\n")
        return self.out


def folder_of(run: Weights, wanted: SampleOptions, head: str, files: re.Pattern[str], conditions: str = "") -> Folder:
    """The folder for a drawing of a run: --out, else HEAD-NAME where its results lie; made where it is absent.

    Args:
        files: Names of the files that the drawing makes.
        conditions: Of canvases, with hashes of the pictures.

    Raises:
        ValueError: such files of another drawing are there, and the options do not say that they may be removed.
    """
    out = output_root(wanted.out or str(run / f"{head}-{named(wanted)}"))
    drawing = Drawing(
        model=identity(run),
        sampling=str(wanted.sampling),
        times=",".join(f"{t:.9g}" for t in wanted.sampling.times),
        start=wanted.start,
        path=wanted.path,
        seed=wanted.seed,
        num_samples=wanted.num_samples,
        label=",".join(map(str, wanted.label)),
        guidance=wanted.guidance,
        strength=wanted.strength,
        layout=wanted.layout.name,
        conditions=conditions,
    )
    there = [file for file in out.iterdir() if files.fullmatch(file.name)]
    if there and not wanted.overwrite and (differs := _difference(out, drawing, wanted.sampling.unfitted)):
        raise ValueError(
            f"{out}: holds {there[0].name} and others, {differs}; give another --out, or --overwrite true, which removes them"
        )
    return Folder(out=out, drawing=drawing, files=files, overwrite=wanted.overwrite)


def _difference(out: Path, drawing: Drawing, unfitted: bool) -> str:
    """What tells the drawing that is in a folder from another, whose grid may have yet to be fitted; '' where the other holds
    all of it."""
    try:
        earlier = read_json(out / RECORD)
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict):
        return "of which nothing says how they were drawn"
    for name, value in asdict(drawing).items():
        before = earlier.get(name, LATER.get(name))
        if name == "num_samples" and isinstance(before, int) and before <= value:
            continue
        if before != value and not (name == "times" and unfitted):
            words = {"model": "drawn of other weights", "times": "drawn on another fitted grid"}
            return words.get(name, f"drawn with {name}={before}, not {value}")
    return ""
