"""The command line that is generated from the configurations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from ray_session import ROOT, environment, main_of, one_line, run_script

from indm_core.sampling import Sampling
from indm_core.sde import VE, SubVP
from pipelines.config.codec import subclasses
from pipelines.config.flows import IdentityConfig, ResFlowConfig
from pipelines.config.networks import MLPConfig
from pipelines.config.terminal.cli import dashed, options, override, short_name, split_arguments
from pipelines.config.terminal.help import describe
from pipelines.data.source import Options
from pipelines.evaluation.sampling.rows import family
from pipelines.evaluation.settings import EvaluateOptions, SampleOptions, Settings
from pipelines.recipes import RECIPES
from pipelines.storage.messages import nearest
from pipelines.training.launch import Launch

RUN = RECIPES["digits_vp_nll"]()
OURS = [option.path for option in options(Launch())]


def refused(config, given: dict[str, str], *parts: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        override(config, given)
    one_line(str(caught.value), *parts)


def test_words_and_options_are_told_apart():
    words, given = split_arguments(["digits", "--steps", "5", "--lr=1e-3", "--local", "--low", "-1", "--name="])
    assert words == ["digits"]
    assert given == {"steps": "5", "lr": "1e-3", "local": "true", "low": "-1", "name": ""}
    assert split_arguments(["--local", "--batch-size", "4"])[1] == {"local": "true", "batch_size": "4"}
    assert split_arguments(["--data.options.name", "a=b"])[1] == {"data.options.name": "a=b"}


@pytest.mark.parametrize("second", ["--steps=6", "--steps"])
def test_an_option_given_twice_is_refused(second):
    with pytest.raises(ValueError, match="--steps is given twice: '5' and"):
        split_arguments(["--steps", "5", second])


def test_an_option_given_twice_under_two_names_is_refused():
    refused(RUN, {"steps": "5", "train.steps": "6"}, "--train.steps is given twice")


@pytest.mark.parametrize("name", ["train.batch_size", "batch_size"])
def test_dotted_paths_and_their_endings(name):
    assert override(RUN, {name: "32"}) == replace(RUN, train=replace(RUN.train, batch_size=32))


def test_an_optimiser_is_reached_by_its_name():
    changed = override(RUN, {"flow.lr": "0.5"}).train.optimisers
    assert changed["flow"] == replace(RUN.train.optimisers["flow"], lr=0.5)
    assert changed["score"] == RUN.train.optimisers["score"]


def test_an_ambiguous_ending_names_its_candidates():
    refused(RUN, {"lr": "1e-3"}, "--lr is ambiguous: give --score.lr or --flow.lr")
    refused(RUN, {"seed": "1"}, "--seed is ambiguous: give --options.seed or --train.seed")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("step", "--steps"),
        ("batchsize", "--batch-size"),
        ("train.stepz", "--train.steps"),
        ("model.sde.beta_mx", "--model.sde.beta-max"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(name, near):
    refused(RUN, {name: "1"}, f"unknown option --{dashed(name)}", "did you mean", near)


def test_an_unknown_name_like_nothing_else_lists_a_few_and_says_where_many_are():
    refused(RUN, {"zzzzzz": "1"}, "unknown option --zzzzzz: there are ", ", --help shows them")
    assert nearest("zz", ["a", "b"]) == nearest("zz", ["a", "b"], "above") == "there are a, b"
    assert nearest("zz", list(map(str, range(13))), "which --help shows") == "there are 13, which --help shows"
    assert nearest("10", ["cifar10_linear_vp", "mnist"]) == "did you mean cifar10_linear_vp?"


@pytest.mark.parametrize("flag", ["no", "yes", "0", "off"])
def test_a_word_that_is_no_truth_is_refused_with_its_option(flag, capsys):
    assert main_of("train")(["--evaluate", flag]) == 2
    one_line(capsys.readouterr().err, f"error: --evaluate: '{flag}' does not fit (true or false)")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--resume"], ["unknown option --resume", "the same command goes on where it stopped"]),
        (["--epochs", "5"], ["unknown option --epochs", "--steps"]),
        (["--gpu", "false"], ["unknown option --gpu", "--device cpu"]),
    ],
)
def test_an_option_of_other_programs_is_answered(words, parts, capsys):
    assert main_of("train")(words) == 2
    one_line(capsys.readouterr().err, "error: ", *parts)


def test_a_form_is_chosen_before_its_fields_whatever_their_order():
    wanted = SubVP(beta_max=12.0)
    assert override(RUN, {"model.sde": "SubVP", "beta_max": "12"}).model.sde == wanted
    assert override(RUN, {"beta_max": "12", "sde": "SubVP"}).model.sde == wanted
    assert override(RUN, {"sde": "VE", "sigma_max": "9"}).model.sde == VE(sigma_max=9.0)


def test_naming_the_present_form_keeps_its_fields():
    assert override(RUN, {"model.sde": "VP"}) == RUN
    assert override(RUN, {"flow": "ResFlowConfig", "flow.width": "7"}).model.flow == replace(RUN.model.flow, width=7)


def test_a_form_goes_by_its_name_with_and_without_the_ending_and_by_earlier_ones():
    for name in ("Identity", "IdentityConfig", "NoFlow"):
        assert override(RUN, {"model.flow": name}).model.flow == IdentityConfig()
    for name in ("ResFlow", "ResidualFlow"):
        assert override(RUN, {"model.flow": name}) == RUN  # the present form keeps its fields
    assert override(RUN, {"backbone": "Dense", "backbone.width": "9"}).model.backbone == MLPConfig(width=9)
    dinof = override(RUN, {"model": "DiNof", "t_m": "0.5"}).model
    assert (type(dinof).__name__, dinof.t_m, dinof.objective.mode) == ("DiNofConfig", 0.5, "fid")
    refused(RUN, {"model.flow": "Glwo"}, "--model.flow: 'Glwo' does not fit (did you mean Glow?)")


def test_help_shows_forms_without_the_ending_and_their_fields_below(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = {line.split()[0]: line for line in describe(RUN).splitlines()}
    assert lines["--flow"].split()[1] == "ResFlow"
    assert "One of Bridge, DiNof, DiffFlow, FFJORD, INDM, SizedINDM." in lines["--model"]
    assert "Glow, Identity, ResFlow" in lines["--flow"]
    assert lines["--blocks"].startswith("      --blocks 8 ")


@pytest.mark.parametrize(
    ("name", "text"), [("mode", "fid"), ("pretrain_steps", "7"), ("soft_truncation", "1.2"), ("data_var", "0.5")]
)
def test_the_objective_is_reached_by_endings_and_by_its_paths_of_then(name, text):
    changed = override(RUN, {name: text})
    assert str(getattr(changed.model.objective, name)) == text
    for path in (f"objective.{name}", f"model.objective.{name}", f"model.{name}"):
        assert override(RUN, {path: text}) == changed
    refused(RUN, {name: text, f"model.{name}": text}, f"--model.objective.{name} is given twice")


def test_a_form_takes_only_its_own_fields():
    assert override(RUN, {"model.flow": "IdentityConfig"}).model.flow == IdentityConfig()
    refused(RUN, {"model.flow": "IdentityConfig", "blocks": "2"}, "unknown option --blocks")
    refused(RUN, {"sigma_max": "9"}, "unknown option --sigma-max", "did you mean")
    refused(RUN, {"model.sde": "VPP"}, "--model.sde: 'VPP' does not fit", "did you mean VP")


def test_tuples():
    assert override(RUN, {"blocks": "3"}).model.flow.blocks == (3,)
    assert override(RUN, {"blocks": "1,2,3"}).model.flow.blocks == (1, 2, 3)
    assert override(RUN, {"attention": "()"}).model.backbone.attention == ()
    assert override(RUN, {"attention": ""}).model.backbone.attention == ()
    assert override(RUN, {"splits": "train,test"}).data.options.splits == ("train", "test")
    refused(RUN, {"blocks": ","}, "--blocks: ',' does not fit", "() is none")
    refused(RUN, {"blocks": "1,x"}, "--blocks: '1,x' does not fit", "whole number")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_booleans(text, value):
    assert override(RUN, {"flip": text}).data.flip is value


def test_numbers():
    assert override(RUN, {"steps": "1e5"}).train.steps == 100_000
    assert override(RUN, {"train.seed": "9007199254740993"}).train.seed == 9007199254740993  # not a float
    assert override(RUN, {"score.clip": "inf"}).train.optimisers["score"].clip == float("inf")
    assert override(RUN, {"low": "-2"}).data.options.low == -2.0


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("flip", "yes", ["--flip: 'yes' does not fit", "true or false"]),
        ("flip", "1", ["true or false"]),
        ("steps", "many", ["--steps: 'many' does not fit", "whole number"]),
        ("steps", "1.5", ["--steps: '1.5'", "whole number"]),
        ("steps", "inf", ["--steps: 'inf'", "whole number"]),
        ("steps", "nan", ["whole number"]),
        ("steps", "true", ["--steps: 'true'", "whole number"]),
        ("ema_decay", "nan", ["--ema-decay: 'nan' does not fit", "number"]),
        ("ema_decay", "high", ["number"]),
        ("precision", "fp16", ["--precision: 'fp16' does not fit", "fp32, bf16"]),
        ("batch_size", "0", ["batch_size=0", "at least 1"]),
        ("flow.lr", "0", ["lr=0"]),
    ],
)
def test_bad_values_are_refused_with_the_option(name, text, parts):
    refused(RUN, {name: text}, *parts)


def test_options_that_depend_on_each_other_may_come_in_any_order():
    both = {"workers": "4", "min_workers": "2"}
    for given in (both, dict(reversed(both.items()))):
        launch = override(Launch(), given)
        assert (launch.workers, launch.min_workers) == (4, 2)
    refused(Launch(), {"min_workers": "2"}, "workers=1", "min_workers=2")


def test_every_option_can_be_given_back_as_it_is_shown():
    for config in (RUN, Launch(), SampleOptions(), Settings(), Options()):
        for option in options(config):
            shown = ",".join(map(str, option.value)) if isinstance(option.value, tuple) else str(option.value)
            shown = (
                type(option.value).__name__ if isinstance(option.annotation, type) and shown.endswith(")") else shown
            )
            assert override(config, {option.path: shown}) == config, option.path


def test_forms_are_concrete_dataclasses_and_a_new_one_needs_no_entry():
    @dataclass(frozen=True, kw_only=True)
    class ThirdFlow(ResFlowConfig):
        """One more.

        Args:
            depth: Of something.
        """

        depth: int = 3

    changed = override(RUN, {"model.flow": "ThirdFlow", "depth": "5"})
    assert changed.model.flow == ThirdFlow(depth=5)
    assert "LinearSDE" not in subclasses(type(RUN.model.sde).__mro__[1])
    assert "Of something." in describe(changed)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inside.

    Args:
        low, high: Bounds that
            take two lines.
    """

    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outside.

    Args:
        kind: A choice.
    """

    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)


def test_help_comes_from_the_docstrings():
    lines = describe(Outer()).splitlines()
    assert [line.split()[0] for line in lines] == ["--kind", "--low", "--high"]
    assert "A choice. One of a, b." in lines[0]
    assert "Bounds that take two lines." in lines[1]
    assert "Bounds that take two lines." in lines[2]


@pytest.mark.parametrize("config", [RUN, Launch(), Settings(), SampleOptions()], ids=lambda c: type(c))
def test_every_option_has_a_line_of_help(config):
    assert not [option.path for option in options(config) if not option.help]


def names(config, taken=()) -> list[str]:
    """The options of a configuration as help shows them."""
    paths, whole = ([o.path for o in options(config) if o.whole or each] for each in (True, False))
    return [f"--{dashed(short_name(path, [*paths, *taken], whole))} " for path in paths if path != "recipe"]


def test_a_second_configuration_of_a_class_takes_no_name_from_the_first():
    """`--sampler` is that of samples, as before there were canvases; that of canvases has its whole path."""
    settings = override(Settings(), {"sampler": "em", "collage": "chain", "canvas_sampling.steps": "7"})
    assert (settings.sampling.sampler, settings.canvas_sampling.sampler) == ("em", "collage")
    assert (settings.sampling.steps, settings.canvas_sampling.steps) == (1000, 7)
    assert {"--sampler ", "--canvas-sampling.sampler "} < set(names(Settings()))


@pytest.mark.parametrize("config", [RUN, Settings(), SampleOptions()], ids=lambda c: type(c).__name__)
def test_the_short_names_of_help_mean_their_options(config):
    for option, name in zip([o for o in options(config) if o.path != "recipe"], names(config), strict=True):
        typed = name.strip(" -").replace("-", "_")
        if option.annotation in (int, float):
            assert {o.path: o.value for o in options(override(config, {typed: str(option.value)}))}[
                option.path
            ] == option.value
        assert not [n for n in names(config) if n == name][1:]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_train_help_names_every_recipe_and_option(flag, capsys):
    assert main_of("train")([flag]) == 0
    shown = capsys.readouterr().out
    for part in [*RECIPES, *names(Launch()), *names(RUN, OURS), "INDM_RUNS", "show.py recipes"]:
        assert part in shown, part
    assert main_of("train")(["toy2d_spiral", flag]) == 0
    shown = capsys.readouterr().out
    for part in names(RECIPES["toy2d_spiral"](), OURS):
        assert part in shown, part
    assert max(map(len, shown.splitlines())) <= 80
    assert main_of("train")(["--sde", "CLD", flag]) == 0
    assert "--m-inv 4.0" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(
    ("script", "configs"),
    [("evaluate", [Settings(), EvaluateOptions()]), ("sample", [SampleOptions()])],
    ids=["evaluate", "sample"],
)
def test_evaluate_and_sample_help_name_every_option(script, configs, flag, capsys):
    assert main_of(script)([flag]) == 0
    shown = capsys.readouterr().out
    for config in configs:
        for part in names(config):
            assert part in shown, part
    assert main_of(script)([]) == 2  # help, but nothing was done


def test_prepare_help_names_every_option():
    done = run_script("prepare", "--help")
    assert done.returncode == 0
    for part in names(Options()):
        assert part in done.stdout, part


HEAVY = ("ray", "mlflow", "matplotlib", "sklearn", "scipy", "pandas")
WITH_TORCH = ("train", "evaluate", "sample", "compare")
"""Commands with options that are classes of models and samplers."""


@pytest.mark.parametrize("script", [*WITH_TORCH, "report", "diagnose", "prepare", "ui"])
@pytest.mark.parametrize("words", [["--help"], ["no_such_thing"]], ids=["help", "a wrong name"])
def test_help_and_a_wrong_name_import_nothing_that_takes_long(script, words, tmp_path):
    """Of what a command imports PyTorch alone takes a second."""
    _, modules = said_and_imported(script, words, tmp_path)
    assert not {*HEAVY, *(() if script in WITH_TORCH else ("torch",))} & modules


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--workers", "128"], ["workers=128 on", "take --workers"]),
        (["--device", "cuda"], ["no GPU on this machine", "--device cpu"]),
    ],
)
def test_what_this_machine_has_not_is_refused_before_ray_is_imported(words, parts, tmp_path):
    said, modules = said_and_imported(
        "train", ["toy2d_spiral", "--rows", "1000", "--batch-size", "128", *words], tmp_path
    )
    one_line(said, "error: ", *parts)
    assert not {"ray", "mlflow"} & modules


def said_and_imported(script: str, words: list[str], out: Path) -> tuple[str, set[str]]:
    """What a command says of an error, and the modules that it has imported by then."""
    code = (
        f"import sys, runpy; sys.argv = ['x', *{words!r}]\n"
        f"try: runpy.run_path({str(ROOT / 'pipelines' / f'{script}.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('modules:', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(INDM_RUNS=str(out), RAY_ADDRESS="local", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, set(done.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize("script", ["train", "sample"])
def test_help_of_a_script_started_as_the_user_does(script):
    done = run_script(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("Train a recipe", "Draw samples"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_on_the_command_line_are_described(recipe):
    assert (RECIPES[recipe].__doc__ or "").strip()


def test_an_unknown_recipe_suggests_the_nearest(capsys):
    assert main_of("train")(["digit_vp_nll", "--local"]) == 2
    one_line(capsys.readouterr().err, "error: unknown recipe 'digit_vp_nll'", "did you mean digits_vp_nll")
    assert main_of("train")(["qqqq"]) == 2
    one_line(capsys.readouterr().err, "unknown recipe 'qqqq'", f"there are {len(RECIPES)}", "show.py recipes")
    assert main_of("train")(["digits_vp_nll", "toy2d_spiral"]) == 2
    one_line(capsys.readouterr().err, "one recipe at a time", "options with --")


def test_rows_of_a_sampler_are_one_line_of_the_picture():
    rows = ("em:1000", "deis:nfe=10,order=0,grid=power", "ode:rtol=1e-3,atol=1e-3", "em:steps=9,lam=0.5")
    assert [family(row) for row in rows] == ["em", "deis order=0 grid=power", "ode", "em lam=0.5"]


@pytest.mark.parametrize(
    "given", [{"sampler": "em", "rtol": "1e-9"}, {"sampler": "ode", "steps": "7"}, {"sampler": "ode", "grid": "edm"}]
)
def test_an_option_that_a_sampler_does_not_read_is_refused(given):
    option = list(given)[1]
    refused(Sampling(), given, f"{option}=", f"sampler={given['sampler']} does not read it")
