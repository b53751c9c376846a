"""Tests of the GPU day: its time limits, the files that it saves, and its parts on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu import day as day_module
from benchmarks.gpu.day import Day
from benchmarks.gpu.parts import ALL, PARTS, Part, Setup
from benchmarks.gpu.reference import write_reference

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Day:
    """A day on the CPU.

    Its parts are small scripts: `fine`, `wrong`, `endless`, and `group`, which runs the first two.
    """
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()

    def never(setup: Setup) -> None:
        raise AssertionError("a part must run in a subprocess")

    scripts = {
        "fine": "print('fine')",
        "wrong": "raise SystemExit('wrong: message of the part')",
        "endless": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(10000)'])",
    }
    parts = {name: Part(100 if name != "endless" else 6, never) for name in scripts}
    parts["group"] = Part(100, side_by_side=("fine", "wrong"))
    parts["on-gpu"] = Part(100, never, needs_gpu=True)
    monkeypatch.setattr(day_module, "ALL", parts)
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return popen([sys.executable, "-c", scripts[command[3]]], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(day_module.subprocess, "Popen", start)
    setup = Setup(str(tmp_path), str(work), str(tmp_path / "site"), "cpu", any_machine=True, quick=True)
    return Day(setup, out, limit=1000, slow=1)


def test_other_parts_run_after_a_part_failed(small_day: Day, capsys: pytest.CaptureFixture[str]) -> None:
    assert not small_day.run("group")
    assert small_day.statuses["fine"]["status"] == "done"
    assert small_day.failures() == ["wrong"]
    small_day.show_failures()
    assert "wrong: message of the part" in capsys.readouterr().out


def test_a_part_and_its_child_processes_end_at_its_time_limit(small_day: Day) -> None:
    assert not small_day.run("endless")
    assert small_day.statuses["endless"]["status"] == "out of time after 6 s"


def test_no_part_starts_without_time_left(small_day: Day) -> None:
    small_day.end = time.monotonic() + 1
    assert not small_day.run("fine")
    assert small_day.statuses["fine"]["status"] == "not started: no time left"


def test_parts_that_need_a_gpu_do_not_fail_without_a_gpu(small_day: Day) -> None:
    assert small_day.run("on-gpu")
    assert small_day.statuses["on-gpu"]["status"] == "needs a GPU"
    assert not small_day.failures()


def test_saved_files_leave_out_large_folders(small_day: Day) -> None:
    small_day.run("fine")
    for name in ("runs/plain/metrics.jsonl", "runs/plain/checkpoints/step-1/weights", "traces/a.json.gz"):
        file = small_day.setup.folder / name
        file.parent.mkdir(parents=True)
        file.write_text("")
    small_day.save()
    with tarfile.open(small_day.out / "work.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["work/fine.log", "work/runs/plain/metrics.jsonl"]
    with tarfile.open(small_day.out / "traces.tar") as archive:
        assert archive.getnames() == ["traces/a.json.gz"]
    assert json.loads((small_day.out / "summary.json").read_text())["parts"]["fine"]["status"] == "done"
    assert len(list(small_day.out.iterdir())) == 4


def test_every_part_has_an_action_or_members() -> None:
    for part in ALL.values():
        assert bool(part.action) != bool(part.side_by_side)
        assert all(ALL[name].action for name in part.side_by_side)
    assert sum(part.seconds for name, part in PARTS.items() if name not in ("optimizers", "unpack")) <= 700


def test_the_day_runs_on_a_cpu(tmp_path: Path) -> None:
    """Run parts that use most commands and modules of a GPU day, on a CPU."""
    write_reference(tmp_path / "pack", rows=2000, steps=20)
    parts = ["check", "plain", "turns", "parquet"]
    folders = ["--pack", tmp_path / "pack", "--work", tmp_path / "work", "--site", tmp_path / "site"]
    limits = ["--limit", "100000", "--slow", "1000"]  # no part reaches its time limit, even on a busy host
    command = [sys.executable, "-m", "benchmarks.gpu.day", *parts, *folders, *limits, "--any-machine"]
    environment = {**os.environ, "OUT": str(tmp_path / "out")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: part["status"] for name, part in summary["parts"].items()} == dict.fromkeys(
        ["unpack", *parts], "done"
    )
    assert summary["documents"]["plain"]["max_difference_all"] == 0
    assert summary["runs"]["plain"]["outcome"] == "finished"
    results = json.loads((tmp_path / "out" / "gpu-day.json").read_text())
    assert results.keys() == {"machine", "versions", "results"}
    names = {result["name"] for result in results["results"]}
    assert {"training of base", "step of asymdiff", "training of asymdiff from Parquet"} <= names


def test_an_unknown_part_and_a_machine_without_gpu_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.day", "--work", str(tmp_path / "work")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    unknown = subprocess.run([*command, "speed"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "no part is named speed; the parts are unpack, check" in unknown.stderr
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "torch finds no GPU; --any-machine runs small versions on the CPU" in refused.stderr
