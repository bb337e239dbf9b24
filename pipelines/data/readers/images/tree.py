"""The splits and classes of files in a tree, by the names of their folders: `by_folders`.

Folders are splits only if every sibling that holds data has a split's name (`splits`) and one of them is train's; else all are
classes. They are looked for down a chain of single folders (images/train), and in each of several (cat/train, dog/train), which
are the classes then. Where folders are only partly splits, one says by the option `split` which are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.data.splits import (
    SPLITS,
    as_given,
    canonical_split,
    example,
    parse,
    remedy,
    served,
    settled,
)
from pipelines.storage.messages import listed

__all__ = ["Folders", "by_folders"]


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Which files of a tree are in which split.

    Args:
        files: Of each split, as (class, index among the paths), the class '' where there is none.
        folders: Of each split, as people read it.
        left_out: Indices of the files that are in none.
        notes: What was decided on the way.
    """

    files: dict[str, list[tuple[str, int]]]
    folders: dict[str, str]
    left_out: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def by_folders(
    paths: Sequence[tuple[str, ...]], where: str, split: Sequence[str], splits: Sequence[str], labelled: bool
) -> Folders:
    """The splits and classes of files in a tree, by the names of their folders.

    Args:
        paths: Of the files, relative to the tree, in parts.
        where: The tree, for messages.
        split, splits: As in `Options`.
        labelled: Whether folders that are no splits must be classes.

    Raises:
        ValueError: folders of which some are splits and some are not, files beside folders, or no train.
    """
    return _given_folders(paths, where, split) if split else _found_folders(paths, where, splits, labelled)


def _found_folders(paths: Sequence[tuple[str, ...]], where: str, splits: Sequence[str], labelled: bool) -> Folders:
    depth, notes = 0, ()
    while True:  # down a chain of single folders
        level = "/".join((where, *paths[0][:depth]))
        heads, loose = _heads(paths, depth), sum(len(path) == depth + 1 for path in paths)
        if heads and loose:
            mixed = f"{level}: images both beside and inside folders such as {heads[0]!r}"
            if labelled or any(parse(head).split for head in heads):
                raise ValueError(
                    f"{mixed}; sort them all, or say which folders are splits: {example(heads)}; where they are no classes "
                    "either, --labels ignore takes all"
                )
            files, above = [("", index) for index in range(len(paths))], "/".join(paths[0][:depth])
            return Folders(files={"train": files}, folders={"train": above}, notes=(*notes, f"{mixed}: no classes"))
        if not heads or _are_splits(heads) or len(heads) > 1:
            break
        notes += _split_named(heads)
        depth += 1
    if not heads:
        label = paths[0][depth - 1] if depth else ""
        files = [(label, index) for index in range(len(paths))]
        return Folders(files={"train": files}, folders={"train": "/".join(paths[0][:depth])}, notes=notes)
    upper = False
    if not _are_splits(heads):
        _refuse_half(heads, paths, depth, level)
        upper = _classes_of_splits(heads, paths, depth, level)
        notes += () if upper else _split_named(heads)
    at = depth + upper  # the place of the split's name in a path
    if not upper and not _are_splits(heads):
        classes = _classes([path[depth:] for path in paths])
        files = [(label, index) for index, label in enumerate(classes)]
        return Folders(files={"train": files}, folders={"train": "/".join(paths[0][:depth])}, notes=notes)
    folders = list(dict.fromkeys(path[at] for path in paths))
    of = settled({name: parse(name).split for name in folders})
    _refuse_twice(of, paths, at, level)
    parts = served(of, level, splits)
    classes = [path[depth] for path in paths] if upper else _classes([path[at + 1 :] for path in paths])
    files = {
        name: [(classes[index], index) for index, path in enumerate(paths) if path[at] in members]
        for name, members in parts.of.items()
    }
    above = "/".join((*paths[0][:depth], *["*"] * upper))
    shown = {name: "/".join(filter(None, (above, members[0]))) for name, members in parts.of.items()}
    return Folders(files=files, folders=shown, notes=notes + parts.notes)


def _refuse_twice(of: Mapping[str, tuple[str, ...]], paths: Sequence[tuple[str, ...]], at: int, where: str) -> None:
    """Refuses siblings at a depth that mean the same split."""
    siblings: dict[tuple[str, ...], dict[str, None]] = {}
    for path in paths:
        siblings.setdefault(path[:at], {})[path[at]] = None
    for split, members in of.items():
        for names in siblings.values():
            same = [name for name in members if name in names]
            if len(same) > 1:
                raise ValueError(f"{where}: {listed(same)} all mean {split}; {remedy(same)}")


def _given_folders(paths: Sequence[tuple[str, ...]], where: str, split: Sequence[str]) -> Folders:
    """The files below the folders that the option names; the innermost decides."""
    folders = sorted({"/".join(path[:depth]) or "." for path in paths for depth in range(len(path))})
    parts = as_given(folders, where, split)
    of = {folder: name for name, members in parts.of.items() for folder in members}
    rests: dict[str, list[tuple[str, ...]]] = {name: [] for name in parts.of}
    indices: dict[str, list[int]] = {name: [] for name in parts.of}
    left_out = []
    for index, path in enumerate(paths):
        depth = next((d for d in reversed(range(len(path))) if ("/".join(path[:d]) or ".") in of), None)
        if depth is None:
            left_out.append(index)
            continue
        name = of["/".join(path[:depth]) or "."]
        rests[name].append(path[depth:])
        indices[name].append(index)
    classes = _classes([path for part in rests.values() for path in part])
    files, first = {}, 0
    for name, part in indices.items():
        files[name] = list(zip(classes[first : first + len(part)], part, strict=True))
        first += len(part)
    shown = {name: ", ".join(members) for name, members in parts.of.items()}
    return Folders(files=files, folders=shown, left_out=tuple(left_out))


def _are_splits(folders: Sequence[str]) -> bool:
    """Whether all siblings have a split's name and one is train's; what else is in their names is the same."""
    parsed = [parse(folder) for folder in folders]
    return (
        all(name.split for name in parsed)
        and any(name.split == "train" for name in parsed)
        and len({name.rest for name in parsed}) == 1
    )


def _refuse_half(heads: Sequence[str], paths: Sequence[tuple[str, ...]], depth: int, where: str) -> None:
    """Refuses siblings of which some look like splits: a train beside another split, or one that has folders of its own."""
    parsed = {head: parse(head) for head in heads}
    train = [head for head, name in parsed.items() if name.split == "train"]
    others = [head for head, name in parsed.items() if name.split not in ("", "train")]
    nested = {path[depth] for path in paths if len(path) > depth + 2}
    if train and (others or any(head in nested and not parsed[head].rest for head in train)):
        unknown = [head for head in heads if not parsed[head].split] or heads
        known = [head for head in heads if head not in unknown]
        beside = f" beside {listed(known)}" if known else ""
        raise ValueError(
            f"{where}: {listed(unknown)}{beside} may be splits or classes; {remedy(heads)}; --split train=. takes "
            "all folders as classes"
        )


def _classes_of_splits(heads: Sequence[str], paths: Sequence[tuple[str, ...]], depth: int, where: str) -> bool:
    """Whether each of several folders holds the same splits (cat/train, cat/test, dog/train, ...), so that they are classes."""
    below: dict[str, dict[str, None]] = {head: {} for head in heads}
    for path in paths:
        below[path[depth]][path[depth + 1] if len(path) > depth + 2 else ""] = None
    holding = [head for head, names in below.items() if "" not in names and _are_splits(list(names))]
    if holding and len(holding) < len(heads):
        others = [head for head in heads if head not in holding]
        raise ValueError(
            f"{where}: {listed(holding)} {'holds' if len(holding) == 1 else 'hold'} splits and {listed(others)} "
            f"{'does' if len(others) == 1 else 'do'} not; {remedy([f'{holding[0]}/{name}' for name in below[holding[0]]])}"
        )
    return bool(holding)


def _split_named(heads: Sequence[str]) -> tuple[str, ...]:
    """A note on classes that have a split's name."""
    named = [head for head in heads if canonical_split(head) in SPLITS]
    if not named:
        return ()
    others = [head for head in heads if head not in named]
    why = (
        f"{listed(others)} beside {'it' if len(named) == 1 else 'them'} is no split"
        if others
        else "none of them is train"
    )
    return (f"{listed(named)} is read as a class: {why}; {example(named)} makes it a split",)


def _classes(rests: Sequence[tuple[str, ...]]) -> list[str]:
    """The class of each file by its path below its split: the first folder, past one that is alone and holds only folders."""
    depth = 0
    while rests and min(map(len, rests)) > depth + 2 and len({rest[depth] for rest in rests}) == 1:
        depth += 1
    return ["" if len(rest) == depth + 1 else rest[depth] for rest in rests]


def _heads(paths: Sequence[tuple[str, ...]], depth: int) -> list[str]:
    """The folders at a depth, in order."""
    return sorted({path[depth] for path in paths if len(path) > depth + 1})
