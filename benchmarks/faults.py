"""Faults injected into one training on three Ray nodes of this machine, and what became of each.

Kinds: a worker is killed, a worker hangs, a node is killed, the command is killed or told to end (and resumed), the
newest checkpoint is cut or altered before workers are killed, the disk is full while checkpoints are written. At the
end the rows and the loss of each step are compared with those of an undisturbed run on as many workers. Then nodes are
lost, drained and come again under a run of one or two workers, which is compared with a run of one.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from asymdiffrec.cluster.launch import stay_on_loopback
from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.json_lines import read_json_lines
from benchmarks._report import arguments, show
from benchmarks._result import Result

FAULTS, ROWS, BATCH, APART = 52, 50_000, 512, 25
"""Faults in all; rows of the data; samples of a step; steps between a recovery and the next fault"""
WORKERS, NODES, HANG = 2, 3, 15
"""Workers; nodes with room for one each; seconds that a collective operation waits"""
LIMIT = 20.0
"""Seconds from a fault to the next step, as asked of the median"""
LONG = 100_000
"""Steps of a run that is to be stopped before"""
ROOM = 1_000_000
"""Bytes of the largest file on a full disk: less than a checkpoint's, more than Ray's own logs"""
PATIENCE = 300.0
"""Seconds after which a training counts as lost"""


INTERRUPTED = 130
"""Exit status of a command that was told to end, and left a checkpoint"""


class Training:
    """A run in a process of its own, on a cluster that is this process's."""

    def __init__(self, folder: Path, data: Path, steps: int, nodes: int, workers: str, **more: object) -> None:
        stay_on_loopback()
        from ray.cluster_utils import Cluster  # which reads at its import where to listen

        folder.mkdir()
        self.run = folder / "run"
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()
        settings: dict[str, Any] = {
            "cluster.workers": workers,
            "cluster.address": self.cluster.address,
            "cluster.max_failures": 1000,
            "cluster.timeout_seconds": HANG,
            **common(steps),
            **more,
        }
        self.command = command(data, self.run, settings)
        self.start()

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def remove_node(self, node: Any) -> None:
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def start(self, *more: str) -> None:
        log = (self.run.parent / "log").open("a")
        self.process = subprocess.Popen([*self.command, *more], stdout=log, stderr=log)

    def step(self) -> int:
        """The last one in the log"""
        return max((record["step"] for record in records(self.run)), default=0)

    def reach(self, step: int) -> None:
        """Wait for a step. TimeoutError where the training is lost."""
        start = time.monotonic()
        while self.step() < step:
            if self.process.poll() not in (None, 0) or time.monotonic() - start > PATIENCE:
                raise TimeoutError(f"step {step} is never reached; exit status {self.process.poll()}")
            if self.process.poll() == 0:
                break
            time.sleep(0.1)

    def file(self) -> int:
        """Which file the log is: another one each time that training goes on from a checkpoint"""
        return (self.run / "metrics.jsonl").stat().st_ino

    def recover(self, file: int) -> None:
        """Wait until training goes on in another file, and has made a step there. TimeoutError where it is lost."""
        start = time.monotonic()
        while self.file() == file or "loss" not in (records(self.run) or [{}])[-1]:
            if self.process.poll() not in (None, 0) or time.monotonic() - start > PATIENCE:
                raise TimeoutError(f"training does not go on; exit status {self.process.poll()}")
            time.sleep(0.1)

    def resize(self, workers: int) -> None:
        """Wait until so many workers have made a step. TimeoutError where training is lost."""
        start = time.monotonic()
        while True:
            told = records(self.run)
            begun = max((place for place, record in enumerate(told) if "workers" in record), default=None)
            if begun is not None and told[begun]["workers"] == workers and "loss" in told[-1]:
                return
            if self.process.poll() is not None or time.monotonic() - start > PATIENCE:
                raise TimeoutError(f"{workers} workers never train; exit status {self.process.poll()}")
            time.sleep(0.1)

    def workers(self) -> list[psutil.Process]:
        """Those that train, on nodes of this cluster"""
        found = [
            process
            for process in psutil.Process().children(recursive=True)
            if process.name().startswith("ray::RayTrainWo") and process.status() != psutil.STATUS_ZOMBIE
        ]
        return sorted(found, key=lambda process: process.pid)

    def newest(self) -> Path:
        """A file of the newest checkpoint"""
        folders = [path.parent for path in (self.run / "checkpoints").glob("step-*/manifest.json")]
        folder = max(folders, key=lambda path: int(path.name.removeprefix("step-")))
        return max(folder.glob("*.distcp"), key=lambda file: file.stat().st_size)

    def resume(self) -> None:
        self.process.wait()
        self.start("--resume")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.cluster.shutdown()


def kill_worker(training: Training) -> None:
    training.workers()[-1].kill()


def kill_all_workers(training: Training) -> None:
    for worker in training.workers():
        worker.kill()


def hang_worker(training: Training) -> None:
    training.workers()[0].suspend()


def kill_node(training: Training) -> None:
    """That of a worker; another one comes in its place."""
    raylet = training.workers()[-1].parent()
    assert raylet is not None
    node = next(node for node in training.nodes if node.all_processes["raylet"][0].process.pid == raylet.pid)
    training.remove_node(node)
    training.add_node()


def kill_command(training: Training) -> None:
    training.process.kill()
    training.resume()


def end_command(training: Training) -> None:
    """As a machine does that is about to go"""
    training.process.send_signal(signal.SIGTERM)
    if (status := training.process.wait(PATIENCE)) != INTERRUPTED:
        raise TimeoutError(f"the command ended with {status}, not with a checkpoint")
    training.resume()


def cut_checkpoint(training: Training) -> None:
    file = training.newest()
    os.truncate(file, file.stat().st_size // 2)
    kill_worker(training)


def alter_checkpoint(training: Training) -> None:
    with training.newest().open("r+b") as file:
        file.seek(4096)
        byte = file.read(1)
        file.seek(4096)
        file.write(bytes([byte[0] ^ 1]))
    kill_worker(training)


def fill_disk(training: Training) -> None:
    """For as long as it takes to fail at two checkpoints; training goes on meanwhile."""
    workers, step = training.workers(), training.step()
    for worker in workers:
        worker.rlimit(psutil.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    training.reach(step + 2 * APART)
    for worker in workers:
        worker.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


KINDS: tuple[Callable[[Training], None], ...] = (
    kill_worker,
    end_command,
    kill_all_workers,
    kill_node,
    cut_checkpoint,
    kill_command,
    hang_worker,
    alter_checkpoint,
    fill_disk,
)


def common(steps: int) -> dict[str, Any]:
    """What both runs have"""
    return {
        "train.batch_size": BATCH,
        "train.log_every": 1,
        "train.steps": steps,
        "train.epochs": 10_000,
        "train.validation.every": steps,
        "train.checkpoints.steps": APART,
        "train.checkpoints.keep": 3,
        "tables.embedding_dim": 64,
    }


def command(data: Path, run: Path, settings: Mapping[str, Any]) -> list[str]:
    """That trains under some settings"""
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    script = Path(sys.executable).with_name("asymdiffrec")
    return [str(script), "train", str(data / "job.yaml"), "--run", str(run), *options]


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log"""
    return read_json_lines(run / "metrics.jsonl")


def steps_of(run: Path) -> dict[int, list[tuple[str, float]]]:
    """The ledger of the rows and the loss of each step, as often as it is in the log"""
    found: dict[int, list[tuple[str, float]]] = {}
    for record in records(run):
        if "loss" in record:
            found.setdefault(record["step"], []).append((record["row_checksum"], record["loss"]))
    return found


def lose_node(training: Training) -> None:
    """That of a worker; none comes in its place."""
    training.remove_node(training.nodes[-1])


def drain_node(training: Training) -> None:
    """As a cloud does that takes a machine back"""
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back")
    options = ("--address", training.cluster.address, "--node-id", training.nodes[-1].node_id)
    ray = Path(sys.executable).with_name("ray")
    drain = [str(ray), "drain-node", *options, *reason, "--deadline-remaining-seconds", "120"]
    subprocess.run(drain, check=True, capture_output=True)


RESIZES: tuple[tuple[Callable[[Training], None], int], ...] = (
    (lose_node, 1),
    (Training.add_node, 2),
    (drain_node, 1),
    (Training.add_node, 2),
)
"""What happens to the nodes, and how many workers train afterwards"""


def resized(folder: Path, data: Path) -> Iterator[Result]:
    """Of a run of one or two workers, whose nodes go and come."""
    elastic = {"cluster.resize_seconds": 5}
    training = Training(folder, data, LONG, 2, "{min: 1, max: 2}", **elastic)
    try:
        for inject, workers in RESIZES:
            training.reach(training.step() + APART)
            start = time.monotonic()
            inject(training)
            training.resize(workers)
            name = f"{inject.__name__.replace('_', ' ')}, {workers} worker{'s' if workers > 1 else ''} train"
            yield Result(name, time.monotonic() - start, "s", "asked", LIMIT)
        training.process.send_signal(signal.SIGINT)
        training.process.wait()
    finally:
        training.close()
    ours = steps_of(training.run)
    alone = command(data, folder / "alone", {**common(LONG), "train.steps": max(ours)})
    subprocess.run(alone, check=True, stderr=subprocess.DEVNULL)
    yield from compared(ours, steps_of(folder / "alone"))


def disturbed(folder: Path, data: Path, number: int, undisturbed: int) -> Iterator[Result]:
    """Of a run of two workers, and of one beside it on so many that nothing disturbs."""
    faults = list(islice(cycle(KINDS), number))
    steps = APART * (2 + len(faults) + 3 * faults.count(fill_disk))
    recovered, seconds = 0, []
    training = Training(folder, data, steps, NODES, str(WORKERS))
    try:
        for place, inject in enumerate(faults, start=1):
            training.reach(training.step() + APART)
            file, start = training.file(), time.monotonic()
            try:
                inject(training)
                if inject is not fill_disk:
                    training.recover(file)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                print(f"{inject.__name__}: {error}", file=sys.stderr)
                break
            recovered += 1
            if inject is fill_disk:
                continue
            seconds.append(time.monotonic() - start)
            yield Result(f"{place}, {inject.__name__.replace('_', ' ')}", seconds[-1], "s", "asked", LIMIT)
        training.reach(steps)
        training.process.wait()
    finally:
        training.close()
    alone = command(data, folder / "alone", {**common(steps), "cluster.workers": undisturbed})
    subprocess.run(alone, check=True, stderr=subprocess.DEVNULL)
    yield from compared(steps_of(training.run), steps_of(folder / "alone"))
    yield Result("faults recovered from", recovered, "", "injected", len(faults), "all", recovered == len(faults))
    median = statistics.median(seconds)
    yield Result("median seconds to the next step", median, "s", "asked", LIMIT, "under 20 s", median < LIMIT)


def measure(faults: int, quick: bool) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_synthetic(folder / "data", rows=ROWS)
        # Another number of workers adds up in another order: over thousands of steps that shows in the loss.
        yield from disturbed(folder / "disturbed", folder / "data", faults, 1 if quick else WORKERS)
        if not quick:
            yield from resized(folder / "resized", folder / "data")


def compared(ours: dict[int, list[tuple[str, float]]], theirs: dict[int, list[tuple[str, float]]]) -> Iterator[Result]:
    """How many samples both runs have once, in the same steps, and with which losses."""
    once = [step for step, (told,) in theirs.items() if [rows for rows, _ in ours.get(step, ())] == [told[0]]]
    counted, whole = BATCH * len(once), BATCH * len(theirs)
    yield Result("samples counted once, as in", counted, "", "the undisturbed run", whole, "all", counted == whole)
    alike = [step for step in once if abs(ours[step][0][1] / theirs[step][0][1] - 1) < 1e-3]
    yield Result("steps with the loss of", len(alike), "", "the undisturbed run", len(theirs), "", None)
    end = [statistics.mean(found[step][0][1] for step in sorted(found)[-APART:]) for found in (ours, theirs)]
    yield Result(
        "loss at the end", end[0], "", "the undisturbed run's", end[1], "within 0.5 %", abs(end[0] / end[1] - 1) < 5e-3
    )


def main() -> None:
    count = {"type": int, "default": FAULTS, "help": "how many to inject"}
    options = arguments(__doc__ or "", faults=count)
    results = []
    with Console(stderr=True).status("injecting faults") as status:
        for result in measure(1 if options.quick else options.faults, options.quick):
            results.append(result)
            status.update(f"injecting faults; last: {result.name}")
    show(results, options)


if __name__ == "__main__":
    main()
