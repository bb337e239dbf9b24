"""Recipes: one function per run, by data set. The name of a recipe is the name of its function.

Adding a recipe is adding a function and its name to the list at the end of its file; a variant of one is
`dataclasses.replace(base(), ...)`. A recipe of the user's own is a function of a file outside the repository, path.py:function.
"""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType

from pipelines.config.modules import Extension, split_word, use, used
from pipelines.config.run import RunConfig
from pipelines.config.store import CONFIG, read_run
from pipelines.recipes.common import Recipe
from pipelines.recipes.digits import DIGITS
from pipelines.recipes.images import IMAGES
from pipelines.recipes.mnist import MNIST
from pipelines.recipes.mosaics import MOSAICS
from pipelines.recipes.own import OWN
from pipelines.recipes.tables import TABLES
from pipelines.recipes.toy2d import TOY2D
from pipelines.storage.messages import nearest
from pipelines.storage.paths import local_path

__all__ = ["BASELINES", "BY_DATA", "DEFAULT", "RECIPES", "Recipe", "chosen", "find", "own_recipes", "trained_before"]

BY_DATA: dict[str, dict[str, Recipe]] = {
    "digits": DIGITS,
    "your own data": OWN,
    "points on the plane": TOY2D,
    "MNIST": MNIST,
    "pieces of mosaics": MOSAICS,
    "images as published": IMAGES,
    "tables": TABLES,
}
RECIPES: dict[str, Recipe] = {name: recipe for recipes in BY_DATA.values() for name, recipe in recipes.items()}
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
        use(module)
    return read_run(place)[0]


def find(word: str, what: str = "recipe") -> Recipe:
    """A recipe by its name, by path.py:function, or by the name of a function of an imported extension (see `config.modules`).

    A file that is named here is imported, in this process and in its workers. The name of its recipe is the function's,
    whatever the function says.

    Args:
        word: What was typed.
        what: What is looked up, for messages.

    Raises:
        ValueError: no such recipe, file or function.
    """
    if word in RECIPES:
        return RECIPES[word]
    file, function = split_word(word)
    if file:
        return _own(use(file), function)
    for extension in used():
        if function in vars(extension.module):
            return _own(extension, function)
    known = [*RECIPES, *(name for recipes in own_recipes().values() for name in recipes)]
    near = nearest(word, known, "which `python pipelines/show.py recipes` lists")
    raise ValueError(f"unknown {what} {word!r}: {near}; a function of your own file is path.py:function")


def own_recipes() -> dict[str, dict[str, Recipe]]:
    """The recipes of the extensions that were imported, by the extensions' words: functions that say that they return a
    RunConfig and take no argument."""
    found = {}
    for extension in used():
        functions = [f for f in _functions(extension) if not f.__code__.co_argcount and _returns_run(f)]
        found[extension.word] = {
            f.__name__: _own(extension, f.__name__) for f in functions if f.__name__ not in RECIPES
        }
    return found


def _functions(extension: Extension) -> list[FunctionType]:
    """Those that the module itself defines, without private ones."""
    inside = vars(extension.module).items()
    own = [f for name, f in inside if isinstance(f, FunctionType) and f.__name__ == name and not name.startswith("_")]
    return [f for f in own if f.__module__ == extension.module.__name__]


def _returns_run(function: FunctionType) -> bool:
    said = function.__annotations__.get("return")
    return said is RunConfig or (isinstance(said, str) and said.rpartition(".")[2] == RunConfig.__name__)


def _own(extension: Extension, function: str) -> Recipe:
    """The function of an extension as a recipe."""
    file, word = extension.word, f"{extension.word}:{function}"
    make = vars(extension.module).get(function)
    if not isinstance(make, FunctionType):
        own = [f.__name__ for f in _functions(extension)]
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
