"""README.md and docs/: what they link to is there, what they tell to type is understood, and their Python runs."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from ray_session import ROOT, main_of

from pipelines.config.terminal.cli import split_arguments

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
EVERYWHERE = {"help", "traceback", "recipe", "import"}
"""Options that every command takes before it reads its own, and that some leave out of their lists."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", TEXTS[page])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the pages' builder make them."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    """The command lines of a page, continued ones in one piece, without comments."""
    blocks = [body for language, body in FENCE.findall(TEXTS[page]) if language in ("sh", "bash", "shell")]
    spans = re.findall(r"`((?:python|make) [^`\n]+)`", prose(page))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in map(str.strip, [*lines, *spans]) if line and not line.startswith("#")]


def read(line: str) -> tuple[str, list[str]]:
    """The script of pipelines/ or tune/ that a command line starts, '' for none, and its words."""
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    scripts = [word for word in words if re.fullmatch(r"(pipelines|tune)/\w+\.py", word)]
    if not scripts:
        return "", words
    return Path(scripts[0]).stem, [word for word in words[words.index(scripts[0]) + 1 :] if word != "--"]


CALLS = list(dict.fromkeys((page, line) for page in PAGES for line in commands(page)))


@cache
def told(script: str, *words: str) -> tuple[int, frozenset[str]]:
    """The exit status of a command's help, and the options that it names."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **kwargs: said.append(" ".join(map(str, parts))))
        status = main_of(script)([word for word in words if word != "--help"] + ["--help"])
    return status, frozenset(re.findall(r"^ +--([\w.-]+)", "\n".join(said).replace("_", "-"), flags=re.MULTILINE))


def meant(option: str, options: frozenset[str]) -> int:
    """How many options a name means: by its path, or by an ending of it."""
    option = option.replace("_", "-")
    if option in options | EVERYWHERE or any(option.endswith(f".{o}") for o in options):
        return 1
    return sum(o.endswith(f".{option}") for o in options)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_in_the_navigation():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", TEXTS[ROOT / "docs" / "index.md"], flags=re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    assert listed == {page.stem for page in PAGES if page.parent.name == "docs"} - {"index"}


@pytest.mark.parametrize(("page", "line"), CALLS, ids=lambda value: name(value) if isinstance(value, Path) else value)
def test_commands_are_understood(page, line):
    script, words = read(line)
    if not script:
        files = [word for word in words if word.endswith(".py") and "/" in word]
        assert all((ROOT / file).is_file() for file in files)
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert words[0] != "make" or words[1] in targets
        return
    assert (ROOT / ("tune" if script == "sweep" else "pipelines") / f"{script}.py").is_file()
    names, given = split_arguments(words, ("local", "help"), ("space",))
    own = any(
        part in word for word in (*names, *given.values()) for part in (".py", ".json")
    )  # of a file that is not there
    status, options = told(
        script, *(words if script in ("train", "sweep", "pis") and not own else ())
    )  # its help depends on the options
    assert status == 0
    assert [option for option in given if meant(option, options) != 1] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_are_named_exist(page):
    """In the prose: `--steps`, `--splits train,valid`."""
    scripts = ["sweep", *(path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__")]
    kinds = ("toy2d_dinof", "digits_diffflow", "images")  # whose models have options that the default recipe's has not
    every = frozenset().union(*(told(script)[1] for script in scripts), *(told("train", kind)[1] for kind in kinds))
    every |= told("sweep", "sampler")[1] | told("pis", "lgcp")[1]
    spans = re.findall(r"`--([\w.-]+)[^`]*`", prose(page))
    assert [option for option in spans if not meant(option, every)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_without_a_file_name_runs(page):
    """Blocks that begin with a comment of a file's name belong to a file, which other tests run."""
    blocks = [body for language, body in FENCE.findall(TEXTS[page]) if language == "python"]
    for block in blocks:
        if not re.match(r"# \w+\.py\n|# of a trained run\n", block):
            exec(compile(block, name(page), "exec"), {"__name__": "__main__"})
