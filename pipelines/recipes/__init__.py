"""Recipes: one function per run, by data set. The name of a recipe is the name of its function.

Adding a recipe is adding a function and its name to the list at the end of its file; a variant of one is
`dataclasses.replace(base(), ...)`. A recipe of the user's own is a function of a file outside the repository, path.py:function.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

from pipelines.config.codec import nearest
from pipelines.config.modules import import_file, import_trusted, split_word, trust
from pipelines.config.run import RunConfig
from pipelines.config.store import CONFIG, read_run
from pipelines.recipes.common import Recipe
from pipelines.recipes.digits import DIGITS
from pipelines.recipes.images import IMAGES
from pipelines.recipes.mnist import MNIST
from pipelines.recipes.tables import TABLES
from pipelines.recipes.toy2d import TOY2D
from pipelines.storage.paths import local_path

__all__ = ["BASELINES", "DEFAULT", "RECIPES", "Recipe", "chosen", "find", "trained_before"]

RECIPES: dict[str, Recipe] = DIGITS | TOY2D | MNIST | IMAGES | TABLES
DEFAULT = "digits_vp_nll"
BASELINES = {"digits_vp_nll": "digits_linear_nll"}
"""What the main job trains beside its recipe."""


def chosen(words: list[str], given: dict[str, str], default: str = DEFAULT) -> str:
    """The recipe that a command line names, as its word or by --recipe, which is taken out of `given`.

    Raises:
        ValueError: two different ones.
    """
    named = list(dict.fromkeys([*words, given.pop("recipe")] if "recipe" in given else words))
    if len(named) > 1:
        raise ValueError(f"one recipe at a time, got {' '.join(named)}; name one, and write options with --")
    return named[0] if named else default


def trained_before(file: str, words: list[str], given: dict[str, str]) -> RunConfig:
    """The configuration of an earlier run, which is trained again.

    Args:
        file: Its config.json, or the directory that holds it.
        words, given: What else was typed; a recipe's file of the user's own, whose classes the run needs, is taken out of it.

    Raises:
        ValueError: no such configuration, or a recipe beside it.
    """
    place = local_path(file, "--config")
    place = place / CONFIG if place.is_dir() else place
    own = given.pop("recipe", "")
    module, _ = split_word(own)
    if words or (own and not module):
        raise ValueError(
            f"--config {file}: it takes the place of the recipe {' '.join(words) or own}; give one of the two"
        )
    if module:
        trust(module)
    return read_run(place)[0]


def find(word: str, what: str = "recipe") -> Recipe:
    """A recipe by its name, by path.py:function, or by the name of a function of a file in INDM_MODULES.

    A file that is named here is trusted from here on, in this process and in its workers (see `config.modules`). The name of
    its recipe is the function's, whatever the function says.

    Args:
        word: What was typed.
        what: What is looked up, for messages.

    Raises:
        ValueError: no such recipe, file or function.
    """
    if word in RECIPES:
        return RECIPES[word]
    file, function = split_word(word)
    if not file:
        for module in import_trusted():
            if function in vars(module):
                return _own(module.__file__ or "", function)
        raise ValueError(
            f"unknown {what} {word!r}: {nearest(word, list(RECIPES))}; a function of your own file is path.py:function"
        )
    trust(file)
    return _own(file, function)


def _own(file: str, function: str) -> Recipe:
    """The function of a file outside the repository as a recipe."""
    module, word = import_file(file), f"{file}:{function}"
    make = vars(module).get(function)
    if not inspect.isfunction(make):
        own = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        fault = f"{word}: the file has no function {function!r}" if function else f"{file}: which function?"
        choice = nearest(function, own) if own else "there is none"
        raise ValueError(f"{fault}; {choice}; give {file}:FUNCTION")
    if function in RECIPES:
        raise ValueError(f"{word}: {function} is a recipe of this project; give your function another name")

    def recipe() -> RunConfig:
        try:
            run = make()
        except Exception as error:
            raise ValueError(f"{word}: {type(error).__name__}: {error}; correct the function") from error
        if not isinstance(run, RunConfig):
            raise ValueError(
                f"{word} returns {type(run).__name__}, not a RunConfig; see pipelines/recipes for examples"
            )
        return replace(run, recipe=function)

    recipe.__name__, recipe.__doc__ = function, make.__doc__
    return recipe
