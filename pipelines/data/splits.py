"""Which split of a data set a name means: `parse`, for one name; `assign`, for the parts of a source.

A name is cut into words at everything that is neither letter nor digit and before capitals: `MNIST_train`, `x_val`, `val2017`,
`train-00000-of-00002`. One word of it names the split, in any case; words with digits do not count otherwise, and what remains
(`mnist`, `x`) must be the same for all parts of a set. The words, of which the first is the split's name:

    train     train, training, trn
    test      test, testing, tst, t10k
    valid     valid, validation, val, vld, dev, development
    eval, evaluation, evaluating: test, or valid where another part is called test

What is not recognised beside what is (train and test beside extra) is refused: nothing is mixed into train, and nothing is
dropped, unless the option `split` says which part is which. What is not named there is left out, and said.

A `valid` serves as `test` where there is no test, because a model is measured on `test`: sets such as ImageNet are published
with train and val. It stays `valid` where the options `split` or `splits` name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipelines.storage.messages import listed

__all__ = [
    "SPLITS",
    "Name",
    "Parts",
    "assign",
    "canonical_split",
    "given_parts",
    "parse",
    "served",
]

SPLITS = ("train", "test", "valid")
WORDS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "t10k"),
    "valid": ("valid", "validation", "val", "vld", "dev", "development"),
    "eval": ("eval", "evaluation", "evaluating"),
}
NUMBERED = re.compile(r"(.*[-_.])(\d+)-of-(\d+)(?![^-_.])")
"""A name that says how many there are, such as train-00000-of-00002.parquet; what follows may differ from file to file."""
MEANING = {word: split for split, words in WORDS.items() for word in words}


@dataclass(frozen=True, kw_only=True)
class Name:
    """A name taken apart.

    Args:
        split: '' where it names none or two; 'eval' is settled beside its siblings.
        rest: The other words.
    """

    split: str
    rest: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which parts of a source are which split.

    Args:
        of: The names of the parts of each split, in the order train, test, valid.
        left_out: Those of no split.
        notes: What was decided on the way.
    """

    of: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse(name: str) -> Name:
    """What a name says."""
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower())
    found = [(word, MEANING.get(word) or MEANING.get(word.rstrip("0123456789"))) for word in words]
    meant = {split for _, split in found if split}
    rest = tuple(word for word, split in found if not split and word and word != "of" and not re.search(r"\d", word))
    return Name(split=meant.pop() if len(meant) == 1 else "", rest=rest)


def canonical_split(word: str) -> str:
    """The split that a word alone names ('eval' is test), or the word itself."""
    meant = MEANING.get(word.lower(), word)
    return "test" if meant == "eval" else meant


def given_parts(options: Sequence[str]) -> list[tuple[str, str]]:
    """The option `split`: pairs of a split and the name of a part.

    Raises:
        ValueError: a word that is no NAME=PART, or names no split.
    """
    pairs = []
    for text in options:
        word, equals, part = text.partition("=")
        split = canonical_split(word.strip())
        if split not in SPLITS or not equals or not part.strip():
            raise ValueError(
                f"split={text!r}: say train=PART, test=PART or valid=PART, several divided by commas, where PART names "
                "a folder, a file or a key of the source"
            )
        pairs.append((split, part.strip()))
    return pairs


def assign(names: Iterable[str], where: str, split: Sequence[str] = (), splits: Sequence[str] = ()) -> Parts:
    """The splits of a source whose parts have names: Parquet files, IDX files, arrays of an archive.

    Args:
        names: Of the parts; where none says a split and they differ in numbers alone, all are train.
        where: What holds them, for messages.
        split, splits: As in `Options`.

    Raises:
        ValueError: names of which some say no split, splits of two sets, two words for one split, no train, or a name that
            counts its siblings (K-of-N) of which one is not there.
    """
    names = list(names)
    if split:
        return as_given(names, where, split)
    _check_numbered(names, where)
    found = {name: _of_path(name) for name in names}
    known = [name for name in names if found[name].split]
    unknown = [name for name in names if not found[name].split]
    rests = {found[name].rest for name in names}
    if not known and len(rests) == 1:
        return Parts(of={"train": tuple(names)})
    if unknown:
        beside = f" beside {listed(known)}" if known else ""
        raise ValueError(f"{where}: {listed(unknown)}{beside} {verb(unknown)} no split that is known; {remedy(names)}")
    if len(rests) > 1:
        raise ValueError(f"{where}: {listed(names)} are parts of different sets; {remedy(names)}")
    return served(settled({name: found[name].split for name in names}), where, splits)


def _check_numbered(names: Sequence[str], where: str) -> None:
    """Whether all N of the names are there that say K-of-N, K from 0 on, or from 1 where none is 0."""
    groups: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, map(NUMBERED.match, names)):
        groups.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (head, several), numbers in groups.items():
        first = 0 if 0 in numbers or int(several) not in numbers else 1
        absent = [number for number in range(first, first + int(several)) if number not in numbers]
        if absent:
            raise ValueError(
                f"{where}: {head}{absent[0]:0{len(several)}d}-of-{several} is missing, {len(numbers)} of {int(several)} are "
                f"there; download it again, or take what is there: --split {parse(head).split or 'train'}={head}*"
            )


def served(of: dict[str, tuple[str, ...]], where: str, splits: Sequence[str]) -> Parts:
    """The splits as they are used: a valid serves as test where there is no test and nobody asked for valid.

    Raises:
        ValueError: there is no train, and the option `splits` does not leave it out.
    """
    asked = {canonical_split(name) for name in splits}
    names = [name for part in of.values() for name in part]
    if "train" not in of and (not asked or "train" in asked):
        raise ValueError(
            f"{where}: {listed(names)} {verb(names)} no training data; {remedy(names)}, or prepare what is there: "
            f"--splits {','.join(of)}"
        )
    notes = ()
    if "valid" in of and "test" not in of and "valid" not in asked:
        notes = (f"{listed(of['valid'])} serves as test, as there is no other; --splits train,valid keeps it as valid",)
        of = {"test" if name == "valid" else name: part for name, part in of.items()}
    return Parts(of={name: of[name] for name in SPLITS if name in of}, notes=notes)


def as_given(names: Sequence[str], where: str, split: Sequence[str]) -> Parts:
    """The parts that the option `split` names, by their names or patterns of them; the others are left out."""
    of: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for name, part in given_parts(split):
        wanted = part.removeprefix(f"{where}/").removeprefix("./").rstrip("/") or "."
        matched = [found for found in names if found == wanted] or [
            found for found in names if fnmatchcase(found, wanted)
        ]
        if not matched:
            raise ValueError(f"split={name}={part}: {where} has no such part; it has {listed(names)}")
        for found in matched:
            if taken.setdefault(found, name) != name:
                raise ValueError(f"split={name}={part}: {found} is already {taken[found]}")
        of.setdefault(name, []).extend(found for found in matched if found not in of.get(name, ()))
    return Parts(
        of={name: tuple(of[name]) for name in SPLITS if name in of},
        left_out=tuple(name for name in names if name not in taken),
    )


def _of_path(name: str) -> Name:
    """What a name with folders says: the innermost of its components that names a split decides."""
    components = name.split("/")
    parsed = [parse(component) for component in components]
    deciding = next((index for index in reversed(range(len(parsed))) if parsed[index].split), None)
    rest = tuple(word for component in parsed for word in component.rest)
    return Name(split="" if deciding is None else parsed[deciding].split, rest=rest)


def settled(meant: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Names by split, where `eval` has become test or valid."""
    other = "valid" if "test" in meant.values() else "test"
    of: dict[str, list[str]] = {}
    for name, split in meant.items():
        of.setdefault(other if split == "eval" else split, []).append(name)
    return {name: tuple(of[name]) for name in SPLITS if name in of}


def verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def example(names: Sequence[str]) -> str:
    """An option that says splits of some names."""
    guess = [canonical_split(parse(name).split) or split for name, split in zip(names, SPLITS, strict=False)]
    pairs = dict(zip(guess, names, strict=False))
    return "--split " + ",".join(f"{split}={name}" for split, name in pairs.items())


def remedy(names: Sequence[str]) -> str:
    return f"say which each is, such as {example(names)} (train, test or valid; what is not named is left out)"
