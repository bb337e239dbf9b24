"""What is seen of a training besides its records: the line at its end, and the workers' logs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.config.run import Train
from pipelines.runs.job import METRICS, Training
from pipelines.runs.record import HeldOut, Record
from pipelines.runs.worker_log import WorkerLog
from pipelines.training.watch.summary import summary


def training(directory: Path, *records: Record, **train: int) -> Training:
    (directory / METRICS).write_text("".join(record.to_json() + "\n" for record in records))
    return Training(recipe="digits", directory=directory, train=Train(**{"batch_size": 10, **train}))


def test_the_line_at_the_end(tmp_path):
    """20 steps of 10 images in 2 s, then 10 in 4 s, of which a half was held-out rows: 30 steps in 6 s."""
    begin = Record(step=0, phase="joint", unit="bits/dim", held_out=HeldOut(nelbo=4.0, se=0.1))
    terms = {"terms": {"nelbo": 3.0}, "unit": "bits/dim", "phase": "joint"}
    quick = Record(step=20, images_per_s=100.0, data_wait=0.1, step_s=0.09, **terms)
    slow = Record(step=30, images_per_s=25.0, data_wait=0.0, step_s=0.2, skipped=3, **terms)
    line = summary(training(tmp_path, begin, quick, slow), restarts=2)
    assert line == (
        f"{tmp_path.name}: 30 steps in 0:06, 50 images/s; 63% of the time in steps, 3% waiting for data, 33% for held-out "
        "rows, pictures and checkpoints; 3 steps skipped; workers began again 2 times"
    )


def test_each_of_several_workers_has_its_share(tmp_path):
    (tmp_path / "hardware.json").write_text(
        '[{"processes": 4, "threads": 1, "processor": "p", "cores": 4, "system": "s", "python": "3", "torch": "2"}]'
    )
    line = summary(training(tmp_path, Record(step=8, images_per_s=80.0, unit="nats/dim", terms={"nelbo": 1.0})))
    assert line == f"{tmp_path.name}: 8 steps in 0:01, 80 rows/s, 20 by each of 4 workers", (
        "earlier records have no step_s"
    )
    assert "no step" in summary(training(tmp_path))


def test_a_worker_s_log_has_what_is_printed_and_the_error_that_ends_it(tmp_path, capsys):
    (tmp_path / "mlflow.json").write_text('{"run_id": "0123abcd"}')

    def work() -> None:
        with WorkerLog(tmp_path, 1, 2, KeyError):
            print("step 1 of", end=" ")
            print("9")
            print("careful", file=sys.stderr)
            raise ValueError("row 7 is none")

    with pytest.raises(ValueError, match="row 7"):
        work()

    def leave() -> None:
        with WorkerLog(tmp_path, 1, 2, KeyError):  # began again
            sys.stdout.writelines(["leaves\n", "in order"])
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    lines = (tmp_path / "logs" / "worker-1.log").read_text().splitlines()
    said = [line.split("  ")[-1].strip() for line in lines]
    assert said[:3] == ["begins", "step 1 of 9", "careful"]
    assert "ValueError: row 7 is none" in said
    assert said[-4:] == ["begins", "leaves", "in order", "ends"]
    assert all(f"  {tmp_path.name} 0123abcd  worker 1 of 2  " in line for line in lines)
    assert capsys.readouterr() == ("step 1 of 9\nleaves\nin order", "careful\n")


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "logs").write_text("a file in the way")
    with WorkerLog(tmp_path, 0, 1, KeyError):
        print("goes on")
