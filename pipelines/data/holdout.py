"""Which rows of a source's split are held out as test: `Routes`.

A source with a single split of n rows gets a hold-out: the first round(n * test_fraction) rows of a permutation that depends on
(seed, n) only become `test`; where the format comes with a test split that is missing, only if the user asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.data.order import permutation
from pipelines.data.source import Options, Source, SourceSplit
from pipelines.data.splits import canonical_split

__all__ = ["Routes"]

HELD_OUT = ("what is not held out", "held out by --test-fraction")


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Which split of the result each row of a source's split goes to.

    Args:
        names: The splits of the result.
        target: (n,), the index of a row's split in `names`.
    """

    names: tuple[str, ...]
    target: np.ndarray

    @staticmethod
    def of(name: str, part: SourceSplit, found: Source, options: Options) -> Routes:
        """The splits that a source's split called `name` becomes.

        Raises:
            ValueError: a share that holds out nothing or all, a test split that is missing, or `splits` that are not there.
        """
        target = np.zeros(part.count, np.uint8)
        names = (name,)
        if tuple(found.splits) == ("train",) and options.test_fraction > 0:
            _check_whole(found, options)
            held = round(part.count * options.test_fraction)
            if not 0 < held < part.count:
                raise ValueError(
                    f"test_fraction={options.test_fraction}: the source has {part.count} rows, of which {held} would be held "
                    f"out and {part.count - held} trained on; give more rows, or 0, which holds none out"
                )
            target[permutation(options.seed, 0, 0, part.count)[:held]] = 1
            names = ("train", "test")
        available = {*found.splits, *names}
        for wanted in options.splits:
            if canonical_split(wanted) not in map(canonical_split, available):
                raise ValueError(f"splits={','.join(options.splits)}: the source has {', '.join(sorted(available))}")
        return Routes(names=names, target=target)

    def source(self, part: SourceSplit, index: int) -> str:
        """What a split of the result is made from, as people read it."""
        return ", ".join(filter(None, (part.source, *([HELD_OUT[index]] if len(self.names) > 1 else []))))


def _check_whole(found: Source, options: Options) -> None:
    """Refuses to hold rows out of train in place of a test split that is missing, unless it is asked for."""
    asked = "test" in map(canonical_split, options.splits) or options.test_fraction != Options().test_fraction
    if found.missing and not asked:
        raise ValueError(
            f"{found.missing} is missing: the set comes with a test split; put it beside the training data, or say what to "
            f"test on: --splits train,test holds {options.test_fraction:.0%} of the training rows out, --test-fraction 0 none"
        )
