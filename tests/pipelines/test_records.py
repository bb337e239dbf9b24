"""The records of a training: their file's format, reading what a file gains, and the terminal's progress."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from indm_core.training import StepReport
from pipelines.config.run import Train
from pipelines.runs.job import METRICS, Training, read_metrics
from pipelines.runs.record import Meter, Record, RecordReader, Unit
from pipelines.training.watch.progress import Ticker, line

LINE = (
    '{"step": 8, "phase": "joint", "nelbo": 9.5, "unit": "bits/dim", "denoising": 4.75, "prior": 2.0, "log_det": 0.25, '
    '"images_per_s": 185.5, "data_wait": 0.125, "step_s": 0.5, "eta_s": 61.0, "skipped": 1, "gradient_norm/score": 3.5, '
    '"gradient_norm/flow": 0.5}'
)
RECORD = Record(
    step=8,
    phase="joint",
    terms={"nelbo": 9.5, "denoising": 4.75, "prior": 2.0, "log_det": 0.25},
    unit="bits/dim",
    images_per_s=185.5,
    data_wait=0.125,
    step_s=0.5,
    eta_s=61.0,
    skipped=1,
    gradient_norms={"score": 3.5, "flow": 0.5},
)
"""What LINE says."""


def append(file: Path, *steps: int, end: str = "\n") -> None:
    with file.open("a") as stream:
        stream.write("".join(replace(RECORD, step=step).to_json() + end for step in steps))


def test_a_record_is_a_flat_line():
    assert Record.from_json(LINE) == RECORD
    assert json.loads(RECORD.to_json()) == json.loads(LINE)
    assert list(RECORD.terms) == list(
        Record.from_json(RECORD.to_json()).terms
    )  # the first is the one progress is read from
    assert "\n" not in RECORD.to_json()


def test_an_interval_without_a_finite_step_has_neither_terms_nor_unit():
    empty = replace(RECORD, terms={}, unit="", gradient_norms={})
    assert Record.from_json(empty.to_json()) == empty
    names = {"step", "phase", "images_per_s", "data_wait", "step_s", "eta_s", "skipped"}
    assert json.loads(empty.to_json()).keys() == names
    earlier = LINE.replace('"step_s": 0.5, ', "")  # of a version that did not measure it
    assert json.loads(Record.from_json(earlier).to_json()) == json.loads(earlier)


@pytest.mark.parametrize("text", ["3", '{"phase": "joint"}', '{"step": "8"}', '{"step": 2, "nel'])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ValueError, match=r"no record|Unterminated"):
        Record.from_json(text)


def test_metrics_cut_short_by_a_kill_are_read(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2, "nel\n' + LINE + '\n{"step": 9, "nel')
    assert read_metrics(tmp_path) == [Record(step=1), RECORD]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_reader_reads_each_record_once(tmp_path):
    reader = RecordReader(tmp_path / METRICS)
    assert (reader.read(), reader.last_step) == ([], 0)
    append(reader.file, 1, 2)
    assert ([record.step for record in reader.read()], reader.last_step) == ([1, 2], 2)
    assert (reader.read(), reader.last_step) == ([], 2)
    append(reader.file, 3, end="")  # is being written
    assert reader.read() == []
    append(reader.file, end="")
    with reader.file.open("a") as stream:
        stream.write("\n" + LINE[:20])
    assert [record.step for record in reader.read()] == [3]
    with reader.file.open("a") as stream:
        stream.write(LINE[20:] + "\n")
    assert (reader.read(), reader.last_step) == ([RECORD], 8)


@pytest.mark.parametrize("after", [(1, 2), (), (1, 2, 30), tuple(range(1, 3)) + tuple(range(100, 140))])
def test_a_reader_begins_anew_where_the_file_was_written_anew(after, tmp_path):
    """Shorter, empty, or longer than what was read; only where the line that was read last is in its place, it goes on."""
    reader = RecordReader(tmp_path / METRICS)
    append(reader.file, 1, 2, 3, 4)
    reader.read()
    reader.file.unlink()
    append(reader.file, *after)
    assert [record.step for record in reader.read()] == list(after)
    assert reader.last_step == (after[-1] if after else 0)
    append(reader.file, 200)
    assert [record.step for record in reader.read()] == [200]


def test_a_file_written_anew_with_the_same_records_goes_on(tmp_path):
    """A restart from the last checkpoint keeps every record."""
    reader = RecordReader(tmp_path / METRICS)
    append(reader.file, 1, 2)
    reader.read()
    reader.file.unlink()
    append(reader.file, 1, 2, 3)
    assert [record.step for record in reader.read()] == [3]


def test_a_file_that_goes_and_comes_back(tmp_path):
    reader = RecordReader(tmp_path / METRICS)
    append(reader.file, 1, 2)
    reader.read()
    text = reader.file.read_bytes()
    reader.file.unlink()
    assert (reader.read(), reader.last_step) == ([], 0)
    reader.file.write_bytes(text)
    assert [record.step for record in reader.read()] == [1, 2]


def test_the_work_of_a_call_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """After 30,000 records (9 MB) a call parses what was added, and reads little more than that from the disk."""
    parsed: list[str] = []
    parse = Record.from_json
    monkeypatch.setattr(Record, "from_json", staticmethod(lambda line: parsed.append(line) or parse(line)))
    reader = RecordReader(tmp_path / METRICS)
    append(reader.file, *range(30_000))
    assert len(reader.read()) == len(parsed) == 30_000
    parsed.clear()
    before = read_bytes()
    for step in range(30_000, 30_020):
        append(reader.file, step)
        assert [record.step for record in reader.read()] == [step]
        assert reader.read() == []
    assert len(parsed) == 20
    assert read_bytes() - before < reader.file.stat().st_size / 4  # of forty calls together


def read_bytes() -> int:
    """What this process has read so far, from the disk or its cache."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def training(directory: Path) -> Training:
    directory.mkdir(exist_ok=True)
    return Training(recipe="toy2d_spiral", directory=directory, train=Train(steps=40))


def test_a_line_of_progress(tmp_path):
    run = training(tmp_path / "r")
    assert line(run, RECORD) == (
        "r  joint            8/40  nelbo 9.500 bits/dim (denoising +4.750 prior +2.000 log_det +0.250)  "
        "186 images/s  wait 12%  left 1:01  skipped 1"
    )
    assert "no finite step" in line(run, replace(RECORD, terms={}))
    assert "  kl 0.500 nats  " in line(run, replace(RECORD, terms={"kl": 0.5}, unit="nats", eta_s=7200))
    assert "left 2:00:00" in line(run, replace(RECORD, eta_s=7200))


def test_the_ticker_prints_what_is_new_and_says_where_a_run_goes_on(tmp_path, capsys):
    runs = [training(tmp_path / name) for name in ("a", "b")]
    append(runs[0].directory / METRICS, 1, 2, 3)
    with Ticker(runs):
        append(runs[0].directory / METRICS, 4)
        append(runs[1].directory / METRICS, 1)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "a: goes on after step 3 or the checkpoint before it"
    assert sorted(text.split("  ")[0] for text in shown[1:]) == ["a", "b"]
    assert all(" 4/40 " in text or " 1/40 " in text for text in shown[1:])


@pytest.mark.parametrize(
    ("kept", "then", "printed"),
    [
        ((1, 2), (), ["restarted from a checkpoint at or after step 2"]),
        ((1, 2), (3,), ["restarted from a checkpoint at or after step 3"]),
        ((), (), ["restarted from a checkpoint at or after step 0"]),
        ((1, 2), (3, 4, 5), [" 5/40 "]),  # so quick that what it took again is not seen
    ],
)
def test_the_ticker_follows_a_restart(kept, then, printed, tmp_path, capsys):
    """A restart writes the file anew, with the steps up to its checkpoint, and takes the others again."""
    run = training(tmp_path)
    append(run.directory / METRICS, 1, 2, 3, 4)
    ticker = Ticker([run])
    (run.directory / METRICS).unlink()
    append(run.directory / METRICS, *kept, *then)
    ticker._print_new()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(printed)
    assert all(part in text for part, text in zip(printed, shown, strict=True))
    append(run.directory / METRICS, 6)
    ticker._print_new()
    assert " 6/40 " in capsys.readouterr().out


class Stub:
    """What a meter reads of a trainer."""

    def __init__(self, step_count: int, skipped: int, phase: str = "") -> None:
        self.step_count, self.skipped, self.model, self.named = step_count, skipped, self, phase

    def phase(self, step: int) -> str:
        return self.named or f"of step {step}"


def report(kl: float, norm: float, *, skipped: bool = False) -> StepReport:
    return StepReport({"kl": torch.tensor(kl, dtype=torch.float64)}, {"mean": norm}, skipped)


def test_the_time_left_is_that_of_the_mean_speed_of_the_phase(monkeypatch):
    clock = iter((100.0, 100.0, 110.0, 110.0, 140.0, 140.0, 150.0, 150.0))  # made, begun; then each record and its end
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    meter = Meter(batch_size=1, steps=40, unit=Unit("nats", lambda *_: 0.0), average=lambda v: v, begun=0)
    assert meter.record(Stub(10, 0, "joint")).eta_s == 30 * 1.0
    assert meter.record(Stub(20, 0, "joint")).eta_s == 20 * 2.0  # 20 steps in 40 s, the last ten in 30 s
    assert meter.record(Stub(30, 0, "other")).eta_s == 10 * 1.0  # another phase has its own speed


def test_a_step_s_time_is_without_waiting_and_without_what_is_between_steps(monkeypatch):
    clock = iter(
        (0.0, 0.0, 1.0, 3.0, 5.0, 9.0, 16.0, 16.0)
    )  # made, begun; waited 1 to 3; between steps 5 to 9; the record
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    meter = Meter(batch_size=1, steps=40, unit=Unit("nats", lambda *_: 0.0), average=lambda v: v, begun=0)
    with meter.waiting():
        pass
    with meter.between_steps():
        pass
    record = meter.record(Stub(5, 0, "joint"))
    assert (record.step_s, record.data_wait, record.images_per_s) == (2.0, 2 / 16, 5 / 16)


def test_a_meter_averages_the_steps_of_an_interval_that_were_not_skipped():
    average: list[Any] = []
    meter = Meter(
        batch_size=10,
        steps=100,
        unit=Unit("bits", lambda name, nats: float(nats) / 2),
        average=lambda vector: average.append(vector) or vector + 1,
        begun=20,
    )
    assert meter.latest == Record(step=20)
    for step in (report(1.0, 3.0), report(float("nan"), float("nan"), skipped=True), report(2.0, 5.0)):
        meter.add(step)
    with meter.waiting():
        pass
    record = meter.record(Stub(23, 1))
    assert (record.step, record.phase, record.skipped, record.unit) == (23, "of step 22", 1, "bits")
    assert (record.terms, record.gradient_norms) == ({"kl": (1.5 + 1) / 2}, {"mean": 4.0})
    assert record.eta_s == pytest.approx(77 * 10 / record.images_per_s, rel=1e-3)
    assert 0 < record.data_wait < 1
    meter.add(report(float("inf"), float("inf"), skipped=True))
    empty = meter.record(Stub(24, 2))
    assert (empty.terms, empty.unit, empty.gradient_norms, empty.skipped) == ({}, "", {}, 2)
    assert len(average) == 1  # every rank skips alike
    assert meter.latest is empty
