"""Run directories: finding new and existing runs, and a log that survives crashes and full disks."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asymdiffrec.base import InputError
from asymdiffrec.datasets.statistics.statistics import MissingPattern, NumericStatistics, Statistics
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import Run, RunLog, latest_run, new_run, open_run

JOB = Job.model_validate(
    {"name": "demo", "data": {"path": "/data"}, "fields": {"item": {"type": "id", "num_embeddings": 9}}}
)
STATISTICS = Statistics(
    rows={"train": 8, "valid": 1},
    label_rate=0.25,
    numeric={"price": NumericStatistics(mean=1 / 3, std=1e-7)},
    missing_patterns=[MissingPattern(missing=["item"], rows=2)],
)


def lines(run: Run) -> list[dict[str, object]]:
    """Return the records of the metrics file; every line must be complete."""
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def log(run: Run, after: int, *steps: int) -> None:
    """Log steps in a session that continues from step `after`."""
    run.drop_records_after(after)
    with RunLog(run, after, steps_per_epoch=10, is_writer=True) as writer:
        for step in steps:
            writer.write({"step": step, "loss": step / 2})


def test_inputs_and_result_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = Run(tmp_path / "deep" / "run")
    run.write_inputs(JOB, STATISTICS)
    assert run.job() == JOB
    assert run.job(("train.seed=7",)).train.seed == 7
    assert run.statistics() == STATISTICS
    assert run.result() is None
    run.write_result({"outcome": "finished", "step": 3})
    assert run.result() == {"outcome": "finished", "step": 3}


def test_a_new_run_needs_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_run(JOB, tmp_path / "absent").path == tmp_path / "absent"
    (tmp_path / "empty").mkdir()
    assert new_run(JOB, tmp_path / "empty").path == tmp_path / "empty"
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"empty: exists and is not empty.*--resume"):
        new_run(JOB, tmp_path / "empty")
    with pytest.raises(InputError, match=r"notes\.txt: "):
        new_run(JOB, tmp_path / "empty" / "notes.txt")

    monkeypatch.chdir(tmp_path)
    first, second = new_run(JOB, None).path, new_run(JOB, None).path
    assert first.parent == Path("runs") / "demo"
    assert first.name < second.name


def test_the_latest_run_is_the_newest_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="runs/demo: no run to resume"):
        latest_run(JOB, None)
    runs = [new_run(JOB, None) for _ in range(3)]
    for run in runs[::-1]:
        run.write_inputs(JOB, STATISTICS)
    (new_run(JOB, None).path).mkdir()  # left by a command that ended before it wrote a job
    assert latest_run(JOB, None) == runs[-1]
    assert latest_run(JOB, runs[0].path) == open_run(runs[0].path) == runs[0]
    with pytest.raises(InputError, match="elsewhere: not a run directory"):
        latest_run(JOB, tmp_path / "elsewhere")


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    steps=st.lists(st.integers(1, 30)).map(sorted),
    after=st.integers(0, 30),
    half=st.integers(0, 20),
)
def test_a_log_drops_later_steps_and_an_incomplete_line(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], after: int, half: int
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    kept = [{"step": step, "loss": step / 2} for step in steps]
    run.metrics_file.write_text(
        "".join(json.dumps(record) + "\n" for record in kept) + '{"step": 1, "loss": 0.5}'[:half]
    )
    log(run, after, after + 1, after + 2)
    expected = [record for record in kept if record["step"] <= after]
    assert lines(run) == expected + [{"step": step, "loss": step / 2} for step in (after + 1, after + 2)]


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with RunLog(Run(tmp_path), 0, steps_per_epoch=10, is_writer=True) as writer:
        writer.write({"step": 1, "loss": 0.5})
        assert lines(Run(tmp_path)) == [{"step": 1, "loss": 0.5}]
        writer.note(11, note="a note")
        assert lines(Run(tmp_path))[-1] == {"step": 11, "epoch": 1, "note": "a note"}


def test_on_a_full_disk_records_wait_until_there_is_space(tmp_path: Path) -> None:
    run, limits = Run(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(run, 0, steps_per_epoch=10, is_writer=True) as writer:
        writer.write({"step": 1, "note": "x" * 5000})
        room = (
            run.metrics_file.stat().st_size + 5
        )  # enough for part of a line of metrics.jsonl, and for all events of TensorBoard
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            for step in (2, 3):
                writer.write({"step": step})
                assert [line["step"] for line in lines(run)] == [1]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.write({"step": 4})
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


def test_only_one_worker_writes(tmp_path: Path) -> None:
    with RunLog(Run(tmp_path), 0, steps_per_epoch=10, is_writer=False) as log:
        log.note(1, note="not written")
    assert not list(tmp_path.iterdir())


def test_tensorboard_drops_later_steps_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log(run, 0, 1, 2, 3, 4)
    log(run, 2, 3)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 1.5)]
