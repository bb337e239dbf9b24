"""Canvases of small trained runs: what is drawn, where it lies, what is known of it, and what is refused before any work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_session import later_wins, main_of, one_line, train

from indm_core.draw import canvas
from pipelines.config.terminal.cli import override, split_arguments
from pipelines.data.ingest import prepare
from pipelines.data.source import Options
from pipelines.evaluation.collages import canvases
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.sampling.folder import named
from pipelines.evaluation.settings import SampleOptions

SCHEDULE = (
    "--steps",
    "6",
    "--log-every",
    "1",
    "--checkpoint-every",
    "6",
    "--sample-every",
    "0",
    "--validate-every",
    "0",
)
SMALL = (
    "--nf",
    "8",
    "--ch-mult",
    "1",
    "--num-res-blocks",
    "1",
    "--batch-size",
    "16",
    "--pretrain-steps",
    "0",
    *SCHEDULE,
)
FAST = ("--num-samples", "2", "--steps", "3", "--langevin-steps", "1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear diffusions of digits, with labels and without."""
    root = tmp_path_factory.mktemp("runs")
    train("digits_conditional", "--flow", "Identity", *SMALL, "--name", "with", out=root)
    train("digits_linear_nll", *SMALL, "--name", "without", out=root)
    return root


@pytest.fixture
def draw(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Draws canvases; gives the exit status and what was said."""
    monkeypatch.setenv("INDM_RUNS", str(root))

    def run(name: str, *words: str) -> tuple[int, str]:
        status = main_of("sample")(later_wins([str(root / name), *FAST, *words]))
        shown = capsys.readouterr()
        return status, shown.err if status else shown.out

    return run


def levels(file: Path) -> np.ndarray:
    """A picture of digits as levels 0 .. 16."""
    with Image.open(file) as image:
        return (np.asarray(image) / 255 * 16).round().astype(int)


def test_a_chain_goes_to_a_folder_of_its_own_and_depends_on_its_seeds_alone(root, draw):
    chain = ("--collage", "chain", "--num-factors", "5", "--overlap", "2")
    status, said = draw("without", *chain)
    assert status == 0, said
    out = root / "without" / "canvases-chain5-overlap2-collage-steps3-langevin_steps1"
    assert f"{out}: 2 canvases of 1x8x32 by collage:steps=3,langevin_steps=1" in said
    assert "2/2 canvases" in said
    assert "factors/s" in said
    assert {file.name for file in out.iterdir()} == {"canvas-000000.png", "canvas-000001.png", "grid.png", "drawn.json"}
    first = levels(out / "canvas-000000.png")
    assert first.shape == (8, 32)
    assert draw("without", *chain, "--num-samples", "3", "--batch", "1", "--out", str(root / "again"))[0] == 0
    assert (levels(root / "again" / "canvas-000000.png") == first).all()
    one_line(
        draw("without", *later_wins(["", *chain, "--overlap", "4"])[1:], "--out", str(out))[1], "layout=chain5-overlap2"
    )


@pytest.mark.parametrize(
    ("words", "files", "size"),
    [
        (("loop", "--num-factors", "6"), ("canvas", "rolled"), (24, 8)),
        (("grid", "--rows", "2", "--cols", "3"), ("canvas",), (16, 12)),
        (("corners", "--rows", "2", "--cols", "2"), ("canvas",), (16, 16)),
        (("chain", "--num-factors", "3", "--join", "tiles", "--sampler", "em"), ("canvas",), (16, 8)),
        (
            ("chain", "--num-factors", "3", "--join", "shifted", "--sampler", "deis", "--order", "0"),
            ("canvas",),
            (16, 8),
        ),
        (("chain", "--num-factors", "3", "--join", "replacement"), ("canvas",), (16, 8)),
    ],
    ids=lambda value: value[0] if value and isinstance(value[0], str) else None,
)
def test_every_layout_and_join_is_written(words, files, size, draw, tmp_path):
    given = ["--collage", *words, "--num-samples", "1", "--out", str(tmp_path)]
    given += ["--langevin-steps", "4"] if "--sampler" in words else []  # its default: others do not read it
    status, said = draw("without", *given)
    assert status == 0, said
    assert {file.stem for file in tmp_path.glob("*-000000.png")} == {f"{name}-000000" for name in files}
    with Image.open(tmp_path / "canvas-000000.png") as image:
        assert image.size == size
    if "rolled" in files:
        assert (levels(tmp_path / "rolled-000000.png") == np.roll(levels(tmp_path / "canvas-000000.png"), 12, 1)).all()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"collage": "chain", "num_factors": "64"}, "chain64-ode-rtol0.0001-atol0.0001"),
        (
            {"collage": "grid", "rows": "2", "overlap": "3", "join": "tiles"},
            "grid2x3-overlap3-join-tiles-ode-rtol0.0001-atol0.0001",
        ),
        (
            {"collage": "chain", "between": "test:0,test:17", "sampler": "em", "steps": "9", "seed": "2"},
            "chain8-em-steps9-seed2-between-test-0-test-17",
        ),
        (
            {"collage": "cube", "sampler": "deis", "nfe": "9", "known": "a/b.png", "colourise": "true"},
            "cube-deis-nfe9-known-b.png-grey",
        ),
        (
            {"collage": "chain", "num_factors": "3", "factor_labels": "0,-1,4", "guidance": "2", "sampler": "em"},
            "chain3-em-steps1000-guidance2-labels0-n-4",
        ),
        ({"start": "data", "strength": "0.5", "sampler": "em"}, "em-steps1000-from-data-strength0.5"),
    ],
)
def test_a_folder_is_named_by_layout_sampler_and_conditions(given, name):
    assert named(override(SampleOptions(), given)) == name


@pytest.mark.parametrize(
    ("words", "sampling"),
    [
        ((), "collage:steps=50"),
        (("--steps", "9"), "collage:steps=9"),
        (("--sampler", "ode", "--rtol", "1e-2", "--atol", "1e-2"), "ode:rtol=0.01,atol=0.01"),
        (("--sampling.sampler", "em", "--steps", "1000"), "em:steps=1000"),
    ],
)
def test_the_corrected_sampler_is_taken_where_none_is_given(words, sampling):
    _, given = split_arguments(["--collage", "chain", *words])
    wanted = main_of("sample").__globals__["_wanted"](given)
    assert (str(wanted.sampling), wanted.num_samples) == (sampling, 4)


def test_pieces_have_labels_of_their_own(draw, tmp_path, monkeypatch):
    made = []

    def seen(*given, **options):
        made.append(
            (
                options["condition"] if options["condition"] is None else options["condition"].tolist(),
                options["guidance"],
            )
        )
        return canvas(*given, **options)

    monkeypatch.setattr(canvases, "canvas", seen)
    words = (
        "--collage",
        "chain",
        "--num-factors",
        "3",
        "--factor-labels",
        "0,-1,5",
        "--guidance",
        "3",
        "--out",
        str(tmp_path),
    )
    status, said = draw("with", *words)
    assert status == 0, said
    assert made[-1] == ([0, -1, 5], 3.0)
    record = json.loads((tmp_path / "drawn.json").read_text())
    assert (record["layout"], record["conditions"], record["guidance"]) == ("chain3", "labels0-n-5", 3.0)


def test_a_map_of_classes_reaches_every_region(draw, tmp_path, monkeypatch):
    made = []

    def seen(*given, **options):
        made.append(options["condition"])
        return canvas(*given, **options)

    monkeypatch.setattr(canvases, "canvas", seen)
    words = ("--collage", "chain", "--num-factors", "3", "--guidance", "1", "--class-map", str(tmp_path / "map.npy"))
    recorded = []
    for i, classes in enumerate(([[0, 0, -1, 5]], [[0, 0, 5, 5]])):
        np.save(tmp_path / "map.npy", np.array(classes))
        status, said = draw("with", *words, "--out", str(tmp_path / str(i)))
        assert status == 0, said
        recorded.append(json.loads((tmp_path / str(i) / "drawn.json").read_text())["conditions"])
    assert made[-1].shape == (5, 11)  # three pieces of 8, overlap 4: each is half of a cell of 4 and half of the next
    assert made[-1][:, [1, 6]].tolist() == [[1, 0], [0.5, 0.5], [0, 1], [1, 0], [0, 1]]
    assert recorded[0].startswith("map-map.npy ")
    assert recorded[0] != recorded[1]


def test_an_evaluation_that_is_led_counts_as_two(draw, tmp_path):
    words = ("--collage", "chain", "--num-factors", "3", "--factor-labels", "0,-1,5", "--num-samples", "1")
    counted = []
    for i, guidance in enumerate(("0", "2")):
        status, said = draw("with", *words, "--guidance", guidance, "--out", str(tmp_path / str(i)))
        assert status == 0, said
        counted.append(float(re.search(r"([\d.]+) evaluations of the score", said)[1]))  # pyright: ignore
    assert counted[1] == 2 * counted[0] > 0


def test_pictures_stay_where_a_drawing_is_refused_late(draw, tmp_path, monkeypatch):
    words = ("--collage", "chain", "--num-factors", "2", "--num-samples", "1", "--out", str(tmp_path))
    assert draw("without", *words)[0] == 0
    there = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def no_actors(*given):
        raise ValueError("actors=1 need 1 CPUs, the cluster has 0: take fewer")

    monkeypatch.setattr("pipelines.evaluation.collages.run._spread", no_actors)
    status, said = draw("without", *words, "--seed", "5", "--overwrite", "true")
    assert status == 2
    one_line(said, "take fewer")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == there


def test_tiles_that_training_has_not_seen_are_said(draw, tmp_path):
    words = ("--collage", "chain", "--num-factors", "2", "--overlap", "3", "--join", "tiles", "--out", str(tmp_path))
    status, said = draw("without", *words, "--num-samples", "1")
    assert status == 0, said
    assert "remark: the score was not trained on tiles of 8 x 5;" in said


def test_two_images_are_joined(root, draw, tmp_path):
    """They stay as they are, to the level."""
    words = (
        "--collage",
        "chain",
        "--num-factors",
        "4",
        "--overlap",
        "2",
        "--between",
        "test:3,test:5",
        "--steps",
        "20",
    )
    status, said = draw("without", *words, "--out", str(tmp_path))
    assert status == 0, said
    from pipelines.data.cache import ensure
    from pipelines.data.card import load_card
    from pipelines.evaluation.features.reference import split_rows

    place = ensure("digits", root / "data", Options())
    test = split_rows(place, load_card(place), "test").numpy()
    for i in range(2):
        shown = levels(tmp_path / f"canvas-00000{i}.png")
        assert (shown[:, :8] == test[3, 0]).mean() > 0.98
        assert (shown[:, -8:] == test[5, 0]).mean() > 0.98
    assert (levels(tmp_path / "canvas-000000.png") != levels(tmp_path / "canvas-000001.png")).any()


def known_files(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A canvas of 8 x 16, and a mask of its upper half, as pictures."""
    k = np.random.default_rng(0).integers(0, 17, (8, 16))
    mask = np.zeros((8, 16), np.uint8)
    mask[:4] = 255
    Image.fromarray((k * (255 / 16)).round().astype(np.uint8)).save(folder / "known.png")
    np.save(folder / "known.npy", k[None])
    Image.fromarray(mask).save(folder / "mask.png")
    return k, mask > 0


@pytest.mark.parametrize("guide", ["replacement", "reconstruction"])
def test_what_is_known_stays(guide, draw, tmp_path):
    k, mask = known_files(tmp_path)
    words = ("--collage", "chain", "--num-factors", "3", "--known", str(tmp_path / "known.png"), "--steps", "20")
    words += ("--mask", str(tmp_path / "mask.png"), "--guide", guide, "--out", str(tmp_path / "out"))
    status, said = draw("without", *words)
    assert status == 0, said
    far = np.abs(levels(tmp_path / "out" / "canvas-000000.png") - k)
    assert far[mask].mean() < (0.05 if guide == "replacement" else 0.6 * far[~mask].mean())
    assert far[~mask].mean() > 1


def test_means_of_blocks_stay(draw, tmp_path):
    """Given as a picture of the canvas, or of one pixel for each block."""
    k, _ = known_files(tmp_path)
    np.save(tmp_path / "small.npy", np.array([[[1, 15, 8, 3], [9, 2, 4, 12]]]))
    for name in ("small", "known"):
        words = (
            "--collage",
            "chain",
            "--num-factors",
            "3",
            "--known",
            str(tmp_path / f"{name}.npy"),
            "--super-resolve",
            "4",
        )
        status, said = draw("without", *words, "--steps", "20", "--out", str(tmp_path / "out"), "--overwrite", "true")
        assert status == 0, said
    got = levels(tmp_path / "out" / "canvas-000000.png").reshape(2, 4, 4, 4).mean((1, 3))
    off = np.abs(got - k.reshape(2, 4, 4, 4).mean((1, 3)))
    assert (
        np.median(off) < 1
    )  # levels are rounded down; where pixels of this hardly trained model leave the range they end there


def test_less_noise_leaves_more_of_the_picture(root, draw, tmp_path):
    """With a canvas and without one."""
    k, _ = known_files(tmp_path)
    canvas = ("--collage", "chain", "--num-factors", "3", "--known", str(tmp_path / "known.npy"))
    far = {}
    for strength in ("0.05", "0.3", "1"):
        for name, words in {"canvas": canvas, "sample": ("--sampler", "em", "--langevin-steps", "4")}.items():
            out = tmp_path / f"{name}{strength}"
            status, said = draw(
                "without", *words, "--steps", "20", "--start", "data", "--strength", strength, "--out", str(out)
            )
            assert status == 0, said
            if name == "canvas":
                far[strength] = np.abs(levels(out / "canvas-000000.png") - k).mean()
    assert far["0.05"] < far["0.3"] < far["1"]


CHAIN = ("--collage", "chain", "--num-factors", "3")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("with", (*CHAIN, "--factor-labels", "0,1"), ("factor_labels=0,1: 2 labels for 3 pieces", "-1 for none")),
        ("with", (*CHAIN, "--factor-labels", "0,1,12"), ("factor_labels=0,1,12: 12 is no class", "0 to 9")),
        (
            "without",
            (*CHAIN, "--factor-labels", "0,1,2"),
            ("factor_labels=0,1,2", "without labels", "--conditional true"),
        ),
        ("without", (*CHAIN, "--label", "3"), ("label=3", "without labels")),
        ("with", (*CHAIN, "--label", "12"), ("label=12", "0 to 9")),
        ("with", (*CHAIN, "--guidance", "2"), ("guidance=2", "give --label")),
        (
            "without",
            ("--collage", "cube"),
            ("collage=cube of without: a piece is two or four faces side by side", "(1, 8, 8)"),
        ),
        ("without", (*CHAIN, "--overlap", "8"), ("overlap=8 must lie in 1 .. piece - 1 = 7",)),
        (
            "without",
            ("--sampler", "collage", "--num-factors", "3"),
            ("num_factors=3: it is of canvases", "--collage chain"),
        ),
        (
            "without",
            ("--sampler", "collage", "--between", "test:0,test:1"),
            ("between=test:0,test:1: it is of canvases", "--collage chain"),
        ),
        (
            "without",
            ("--collage", "chain", "--num-factors", "2", "--between", "test:0,test:1"),
            ("the two ends of 2 pieces share pixels", "--num-factors"),
        ),
        ("without", ("--collage", "chain", "--between", "test:0,test:9999"), ("between=test:9999", "test images")),
        ("without", ("--collage", "chain", "--between", "test:0"), ("between=test:0: give two pictures",)),
        ("without", (*CHAIN, "--known", "{tmp}/known.png"), ("what is known of it?", "--mask FILE")),
        ("without", (*CHAIN, "--mask", "{tmp}/mask.png"), ("nothing is known of the canvas", "--known FILE")),
        (
            "without",
            ("--collage", "chain", "--known", "{tmp}/known.png", "--mask", "{tmp}/mask.png"),
            ("known=", "its shape is 1x8x16, and the canvas is 1x8x36"),
        ),
        (
            "without",
            (*CHAIN, "--known", "{tmp}/absent.png", "--super-resolve", "2"),
            ("known=", "no picture that can be read"),
        ),
        ("without", (*CHAIN, "--known", "{tmp}/known.png", "--super-resolve", "3"), ("super_resolve=3", "1x8x16")),
        ("without", (*CHAIN, "--known", "{tmp}/known.png", "--colourise", "true"), ("colourise=true", "no colours")),
        ("without", (*CHAIN, "--start", "data"), ("start=data", "--known FILE")),
        ("without", (*CHAIN, "--strength", "0.5"), ("strength=0.5", "--start data")),
        ("without", (*CHAIN, "--translate", "both"), ("collage=chain: a translation",)),
        (
            "with",
            (*CHAIN, "--factor-labels", "-1,-1,-1", "--guidance", "2"),
            ("guidance=2", "leads nowhere", "give a class"),
        ),
        ("with", (*CHAIN, "--label", "-1", "--guidance", "2"), ("guidance=2", "leads nowhere")),
        (
            "with",
            (*CHAIN, "--factor-labels", "0,1,2", "--join", "tiles"),
            ("factor_labels=0,1,2: join=tiles", "--label"),
        ),
        (
            "with",
            (*CHAIN, "--factor-labels", ","),
            ("--factor-labels: ',' does not fit", "no value between its commas"),
        ),
        ("with", (*CHAIN, "--factor-labels", "a"), ("--factor-labels: 'a' does not fit",)),
        ("without", (*CHAIN, "--between", ","), ("--between: ',' does not fit",)),
        ("without", ("--collage", "chain", "--num-factors", "many"), ("--num-factors: 'many' does not fit",)),
        (
            "without",
            (*CHAIN, "--between", "test:-1,test:0", "--overlap", "2"),
            ("between=test:-1", "give test:0 to test:"),
        ),
        ("without", ("--collage", "grid", "--num-factors", "3"), ("num_factors=3: collage=grid does not read it",)),
        (
            "without",
            ("--collage", "chain", "--num-factors", "100000"),
            ("100,000 pieces of 64 values", "--num-factors"),
        ),
        ("without", (*CHAIN, "--guide", "reconstruction"), ("guide=reconstruction: nothing is known",)),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else value,
)
def test_what_a_run_has_no_canvas_of_is_refused_before_any_work(name, words, said, root, draw, tmp_path):
    known_files(tmp_path)
    before = {path.name for path in (root / name).iterdir()}
    status, message = draw(name, *(word.format(tmp=tmp_path) for word in words))
    assert status == 2
    one_line(message, *said)
    assert {path.name for path in (root / name).iterdir()} == before


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("digits_bdm_linear", SMALL, "BDM: its noise is not independent per position"),
        (
            "toy2d_dinof",
            (
                "--rows",
                "200",
                "--batch-size",
                "16",
                "--backbone.width",
                "16",
                "--prior.hidden",
                "8",
                "--prior.depth",
                "2",
                *SCHEDULE,
            ),
            "starts at T_m from a flow's law of one piece",
        ),
        (
            "toy2d_rings_diffflow",
            (
                "--batch-size",
                "16",
                "--rows",
                "200",
                "--drift.width",
                "8",
                "--score.width",
                "8",
                "--num-steps",
                "2,4",
                "--change-at",
                "3",
                *SCHEDULE,
            ),
            "DiffFlow: its drift is learned",
        ),
    ],
)
def test_models_without_canvases_are_refused(recipe, words, said, draw, root):
    train(recipe, *words, out=root)
    status, message = draw(recipe, *CHAIN, "--overlap", "1")
    assert status == 2
    one_line(message, f"collage=chain of {recipe}: ", said, "; t")  # take, or train, another


def test_a_layout_has_options_of_its_own():
    assert Layout().name == ""
    with pytest.raises(ValueError, match="overlap=2: it is of canvases"):
        Layout(overlap=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"collage": "grid", "num_factors": 3}, "num_factors=3: collage=grid .* --num-factors"),
        ({"collage": "corners", "num_factors": 3}, "num_factors=3"),
        ({"collage": "chain", "rows": 2}, "rows=2: collage=chain"),
        ({"collage": "loop", "cols": 2}, "cols=2: collage=loop"),
        ({"collage": "cube", "overlap": 2}, "overlap=2: collage=cube"),
        ({"collage": "cube", "num_factors": 2}, "num_factors=2: collage=cube"),
    ],
)
def test_options_that_a_layout_does_not_read_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Layout(**given)


@pytest.mark.parametrize(
    ("layout", "shape", "said"),
    [
        (Layout(collage="chain", num_factors=2**16 + 1), (2,), "65,537 pieces of 2 values .* --num-factors"),
        (Layout(collage="loop", num_factors=2**13), (3, 64, 64), "8,192 pieces of 12,288 values"),
        (Layout(collage="grid", rows=10**5, cols=10**5), (1, 4, 4), "--rows or --cols"),
        (Layout(collage="corners", rows=200, cols=200), (1, 4, 4), "79,601 pieces"),
    ],
    ids=str,
)
def test_canvases_that_are_too_large_are_refused_at_once(layout, shape, said):
    with pytest.raises(ValueError, match=said):
        layout.graph(shape)


@pytest.mark.parametrize("layout", [Layout(collage="grid", rows=2), Layout(collage="corners", rows=3, cols=2)], ids=str)
def test_pieces_are_counted_without_making_them(layout):
    assert layout.num_pieces == len(layout.graph((1, 4, 4)).factors)


def test_a_record_from_before_canvases_is_of_samples(root, draw, tmp_path):
    words = ("--sampler", "em", "--langevin-steps", "4", "--out", str(tmp_path))
    assert draw("without", *words)[0] == 0
    record = json.loads((tmp_path / "drawn.json").read_text())
    for name in ("strength", "layout", "conditions"):
        del record[name]
    (tmp_path / "drawn.json").write_text(json.dumps(record))
    assert draw("without", *words)[0] == 0
    one_line(draw("without", *CHAIN, "--out", str(tmp_path))[1], "drawn with sampling=em", "--overwrite true")


def test_a_cube_is_shown_unfolded_and_as_a_whole(draw, root, tmp_path):
    """The models of its loops are of four faces side by side."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "loops.npz", x_train=rng.integers(0, 256, (60, 4, 16)).astype(np.uint8))
    prepare(tmp_path / "loops.npz", tmp_path / "loops", Options())
    train("digits_linear_nll", "--source", str(tmp_path / "loops"), *SMALL, "--name", "loops", out=root)
    status, said = draw("loops", "--collage", "cube", "--num-samples", "1", "--out", str(tmp_path / "out"))
    assert status == 0, said
    shown = {}
    for name, size in {"canvas": (24, 4), "cross": (16, 12), "sphere": (16, 8)}.items():
        with Image.open(tmp_path / "out" / f"{name}-000000.png") as image:
            assert image.size == size
            shown[name] = np.asarray(image)
    assert (shown["cross"][4:8] == shown["canvas"][:, :16]).all()
    assert (shown["sphere"][3:5, 7:9] == shown["canvas"][1:3, 5:7]).all()  # straight ahead: the middle of F
