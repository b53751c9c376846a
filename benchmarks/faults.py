"""Inject faults into one training on three Ray nodes of this host, and measure the recovery from each fault.

Kinds of faults: a worker, all workers or a node is killed; a worker hangs; the training command gets SIGKILL or SIGTERM
and is resumed; the newest checkpoint is cut or altered before a worker is killed; the disk is full during checkpoints.
At the end the rows and the loss of each step are compared with a run without faults on the same number of workers.

In a second training of one or two workers, nodes are lost, drained and added. It is compared with a run on one worker
without faults.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from rich.console import Console

from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from benchmarks._fault_kinds import FAULTS, RESIZES, fill_disk, hang_worker
from benchmarks._ray_training import (
    BATCH,
    CHECKPOINT_STEPS,
    TIMEOUT_SECONDS,
    Training,
    common_overrides,
    steps_of,
    train_undisturbed,
)
from benchmarks._report import arguments, show
from benchmarks._result import Result

NUM_FAULTS = 52
ROWS = 50_000
WORKERS, NODES = 2, 3
"""Number of workers and number of nodes. A node has one CPU, for one worker"""
MAX_MEDIAN_SECONDS = 20.0
"""Goal for the median time from a fault to the next step"""
UNLIMITED_STEPS = 100_000
"""Steps of a run that is stopped long before its end"""
Steps = dict[int, list[tuple[str, float]]]
"""Row checksum and loss of each step, see `steps_of`"""


def resize_results(folder: Path, data: Path) -> Iterator[Result]:
    """Yield the recovery times of a training of one or two workers, whose nodes are removed and added.

    The training is then compared with an undisturbed run on one worker.
    """
    training = Training(folder, data, UNLIMITED_STEPS, 2, "{min: 1, max: 2}", **{"cluster.resize_seconds": 5})
    try:
        for change, workers in RESIZES:
            training.reach(training.step() + CHECKPOINT_STEPS)
            start = time.monotonic()
            change(training)
            training.resize(workers)
            name = f"{change.__name__.replace('_', ' ')}, {workers} worker{'s' if workers > 1 else ''} train"
            yield Result(name, time.monotonic() - start, "s", "limit", MAX_MEDIAN_SECONDS)
        training.process.send_signal(signal.SIGINT)
        training.process.wait()
    finally:
        training.close()
    steps = steps_of(training.run)
    undisturbed = folder / "undisturbed"
    train_undisturbed(data, undisturbed, {**common_overrides(UNLIMITED_STEPS), "train.steps": max(steps)})
    yield from compare(steps, steps_of(undisturbed))


def fault_results(folder: Path, data: Path, number: int, undisturbed_workers: int) -> Iterator[Result]:
    """Yield the recovery times of a training of two workers with faults, and compare it with an undisturbed run."""
    faults = list(islice(cycle(FAULTS), number))
    steps = CHECKPOINT_STEPS * (2 + len(faults) + 3 * faults.count(fill_disk))
    recovered, seconds = 0, []
    # Unless a fault makes a worker hang, no collective operation must time out, even on a busy host.
    timeout = {} if hang_worker in faults else {"cluster.timeout_seconds": TIMEOUT_SECONDS}
    training = Training(folder, data, steps, NODES, str(WORKERS), **timeout)
    try:
        for index, inject in enumerate(faults, start=1):
            training.reach(training.step() + CHECKPOINT_STEPS)
            log_file, start = training.log_file(), time.monotonic()
            try:
                inject(training)
                if inject is not fill_disk:
                    training.recover(log_file)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                print(f"{inject.__name__}: {error}", file=sys.stderr)
                break
            recovered += 1
            if inject is fill_disk:
                continue
            seconds.append(time.monotonic() - start)
            name = f"{index}, {inject.__name__.replace('_', ' ')}"
            yield Result(name, seconds[-1], "s", "limit", MAX_MEDIAN_SECONDS)
        training.reach(steps)
        training.process.wait()
    finally:
        training.close()
    undisturbed = folder / "undisturbed"
    train_undisturbed(data, undisturbed, {**common_overrides(steps), "cluster.workers": undisturbed_workers})
    yield from compare(steps_of(training.run), steps_of(undisturbed))
    yield Result("faults recovered from", recovered, "", "injected", len(faults), "all", recovered == len(faults))
    median, holds = statistics.median(seconds), statistics.median(seconds) < MAX_MEDIAN_SECONDS
    yield Result("median seconds to the next step", median, "s", "limit", MAX_MEDIAN_SECONDS, "under 20 s", holds)


def compare(disturbed: Steps, undisturbed: Steps) -> Iterator[Result]:
    """Compare the rows and the losses of two runs.

    A sample counts if both runs trained on it exactly once, in the same step.
    """
    once = [
        step
        for step, ((checksum, _),) in undisturbed.items()
        if [other for other, _ in disturbed.get(step, ())] == [checksum]
    ]
    counted, whole = BATCH * len(once), BATCH * len(undisturbed)
    yield Result("samples counted once, as in", counted, "", "the undisturbed run", whole, "all", counted == whole)
    equal = [step for step in once if abs(disturbed[step][0][1] / undisturbed[step][0][1] - 1) < 1e-3]
    yield Result("steps with the loss of", len(equal), "", "the undisturbed run", len(undisturbed), "", None)
    end = [
        statistics.mean(steps[step][0][1] for step in sorted(steps)[-CHECKPOINT_STEPS:])
        for steps in (disturbed, undisturbed)
    ]
    holds = abs(end[0] / end[1] - 1) < 5e-3
    yield Result("loss at the end", end[0], "", "the undisturbed run's", end[1], "within 0.5 %", holds)


def results(faults: int, quick: bool) -> Iterator[Result]:
    """Yield all results. A quick run has no changes of nodes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_synthetic(folder / "data", rows=ROWS)
        # The number of workers changes the order of sums, and so the loss after thousands of steps.
        yield from fault_results(folder / "disturbed", folder / "data", faults, 1 if quick else WORKERS)
        if not quick:
            yield from resize_results(folder / "resized", folder / "data")


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    options = arguments(__doc__ or "", faults={"type": int, "default": NUM_FAULTS, "help": "faults to inject"})
    collected = []
    with Console(stderr=True).status("injecting faults") as status:
        for result in results(1 if options.quick else options.faults, options.quick):
            collected.append(result)
            status.update(f"injecting faults; last: {result.name}")
    show(collected, options)


if __name__ == "__main__":
    main()
