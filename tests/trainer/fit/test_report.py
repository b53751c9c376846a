"""The lines and the progress bar of a running training."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asymdiffrec.trainer.fit.report import describe_record, show_progress


def loss_record(step: int, **changes: Any) -> dict[str, Any]:
    record = {"step": step, "epoch": 1, "samples": 64 * step, "loss": 0.69314, "loss_main": 0.5, "loss_recon": 0.00004}
    return {**record, "samples_per_second": 12345.6, "seconds_left": 64.6, "data_wait": 0.01, **changes}


def evaluation(split: str, missing: float, **changes: Any) -> dict[str, Any]:
    metrics = {"rows": 9, "auc": 0.75, "gauc": 0.66666, "log_loss": 0.5, "normalized_entropy": 0.9, "calibration": 1.01}
    return {"step": 20, "epoch": 0, "missing": missing} | {
        f"{split}/{name}": value for name, value in {**metrics, **changes}.items()
    }


def line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            loss_record(20),
            "step 20/100  epoch 2  loss 0.6931 (main 0.5000, recon 0.0000)  12,346 samples/s  1:05 left",
        ),
        (
            loss_record(100, loss_aux=1, loss_distil=2, seconds_left=0),
            "step 100/100  epoch 2  loss 0.6931 (main 0.5000, recon 0.0000, aux 1.0000, distil 2.0000)  "
            "12,346 samples/s  0:00 left",
        ),
        (
            loss_record(20, loss_contrast=0.25, loss_aux=1, loss_alignment=2),
            "step 20/100  epoch 2  loss 0.6931 (main 0.5000, recon 0.0000, aux 1.0000, contrast 0.2500, "
            "alignment 2.0000)  12,346 samples/s  1:05 left",
        ),
        (
            evaluation("valid", 0.3),
            "step 20/100  epoch 1  valid with 30% missing: "
            "auc 0.7500  gauc 0.6667  log_loss 0.5000  normalized_entropy 0.9000  calibration 1.0100",
        ),
        (
            evaluation("test", 0.0, auc=None, gauc=None, normalized_entropy=None),
            "step 20/100  epoch 1  test: log_loss 0.5000  calibration 1.0100",
        ),
        (
            evaluation("valid", 0.0, auc=None, gauc=None),
            "step 20/100  epoch 1  valid: log_loss 0.5000  normalized_entropy 0.9000  calibration 1.0100",
        ),
    ],
)
def test_a_record_is_one_line(record: dict[str, Any], expected: str) -> None:
    assert describe_record(record, 100) == expected


@pytest.mark.parametrize(
    ("seconds", "clock"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723.2, "1:02:03"), (90_000, "25:00:00")]
)
def test_time_left(seconds: float, clock: str) -> None:
    assert describe_record(loss_record(1, seconds_left=seconds), 100).endswith(f"  {clock} left")


class Screen:
    """A console that is not a terminal, and its printed lines."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=80)

    def steps(self) -> list[int]:
        """Return the steps of the printed lines, and check that every line is complete."""
        printed = self.file.getvalue()
        assert not printed or printed.endswith("\n")
        for text in printed.splitlines():
            assert text.startswith("step ")
            assert text.endswith(" left")
        return [int(text.split()[1].partition("/")[0]) for text in printed.splitlines()]

    def wait_for(self, steps: list[int]) -> None:
        """Wait until lines of exactly these steps are printed."""
        deadline = time.monotonic() + 120
        while self.steps() != steps:
            assert time.monotonic() < deadline, self.file.getvalue()
            time.sleep(0.01)


def test_every_line_is_shown_as_soon_as_it_is_complete(tmp_path: Path) -> None:
    """The file does not exist at first; half a line is never shown."""
    metrics, screen = tmp_path / "metrics.jsonl", Screen()
    third = line(loss_record(3))
    with show_progress(metrics, 4, screen.console), metrics.open("a", buffering=1) as file:
        file.write(line(loss_record(1)))
        screen.wait_for([1])
        file.write(line(loss_record(2)) + third[:20])
        file.flush()
        screen.wait_for([1, 2])
        file.write(third[20:])
        screen.wait_for([1, 2, 3])
        file.write(line(loss_record(4)) + line(loss_record(5))[:-1])
    assert screen.steps() == [1, 2, 3, 4]


def test_lines_of_an_earlier_session_are_not_shown_again(tmp_path: Path) -> None:
    metrics, screen = tmp_path / "metrics.jsonl", Screen()
    metrics.write_text(line(loss_record(1)) + line(loss_record(2)))
    with show_progress(metrics, 4, screen.console), metrics.open("a") as file:
        file.write(line(loss_record(3)))
    assert screen.steps() == [3]


def test_the_last_lines_of_a_failing_run_are_shown(tmp_path: Path) -> None:
    metrics, screen = tmp_path / "metrics.jsonl", Screen()

    def fail() -> None:
        metrics.write_text(line(loss_record(1)))
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), show_progress(metrics, 4, screen.console):
        fail()
    assert screen.steps() == [1]


def test_without_records_nothing_is_shown(tmp_path: Path) -> None:
    screen = Screen()
    with show_progress(tmp_path / "metrics.jsonl", 4, screen.console):
        pass
    assert screen.steps() == []
