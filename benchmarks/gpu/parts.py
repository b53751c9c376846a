"""The parts of the GPU day. Each part runs in a subprocess: python -m benchmarks.gpu.parts NAME WORK

A part prints to its log and writes JSON documents to the folder WORK. It fails if it raises an exception or its exit
status is not 0.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.reference import set_options
from benchmarks.gpu.runs import compare_losses, compare_test_auc, stop_after
from benchmarks.gpu.unpack import ROOT, UnpackError, environment, is_for, load, unpack_site

EXACT = ("train.precision=fp32", "train.compile=false")
"""Overrides for trainings whose losses must be close to the losses on the CPU"""


class PartError(Exception):
    """A part found a wrong result. The message says where to look."""


@dataclass(frozen=True)
class Setup:
    """The folders and the device of a GPU day, for all parts. `day` saves it to the work folder as setup.json."""

    pack: str
    """Folder that `benchmarks.gpu.pack` wrote"""
    work: str
    site: str
    """Folder of the unpacked packages"""
    device: str
    """Device of the parts: cuda or cpu"""
    any_machine: bool
    quick: bool
    """Whether to use small sizes for a CPU, to check that the parts work. Their measurements mean nothing"""

    @property
    def folder(self) -> Path:
        """The work folder"""
        return Path(self.work)

    @property
    def on_gpu(self) -> bool:
        """Whether the parts run on a GPU"""
        return self.device == "cuda"

    @property
    def reference(self) -> Path:
        """The run directory of the training on the CPU"""
        return Path(self.pack) / "reference"

    def overrides(self) -> list[str]:
        """Return the overrides of the trainings on the CPU and the GPU."""
        values: list[str] = json.loads((Path(self.pack) / "overrides.json").read_text())
        return values

    def steps(self) -> int:
        """Return the number of steps of a training."""
        return next(int(value.partition("=")[2]) for value in self.overrides() if value.startswith("train.steps="))

    def run(self, name: str) -> Path:
        """Return the run directory of a training."""
        return self.folder / "runs" / name

    def write(self, name: str, document: Any) -> None:
        """Write a JSON document. summary.json will have it as documents.NAME."""
        (self.folder / f"{name}.json").write_text(json.dumps(document, indent=1))

    def save(self) -> None:
        """Write the setup to the work folder."""
        (self.folder / "setup.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(work: Path) -> Setup:
        """Read the setup from the work folder."""
        return Setup(**json.loads((work / "setup.json").read_text()))


def unpack(setup: Setup) -> None:
    """Unpack the libraries, import them, and write the environment variables for the other parts."""
    source, site = Path(setup.pack) / "site", Path(setup.site)
    variables: dict[str, str] = {}
    if is_for(source, setup.any_machine):
        unpack_site(source, site)
        variables = environment(site)
    else:
        print("the pack is for another machine; using the installed libraries")
    setup.write("machine", load(variables))
    setup.write("environment", variables)


def check(setup: Setup) -> None:
    """Compare FBGEMM's look-up and update with a reference in fp64."""
    _benchmark("tables", setup, "--kernels", "device", "--json", str(setup.folder / "tables.json"))


def kernels(setup: Setup) -> None:
    """Run the tests of diffusion/ on this device. Tests of Triton's interpreter are skipped: they need no GPU."""
    options = ["-q", "-p", "no:cacheprovider", "-n", "4", "-k", "not interpreter"]
    _python("-m", "pytest", *options, "tests/diffusion")


def plain(setup: Setup) -> None:
    """Train in fp32 and compare the losses with the CPU; then evaluate, export and predict."""
    train(setup, "plain", *EXACT)
    _compare(setup, "plain", 1e-3)
    run, export = str(setup.run("plain")), str(setup.folder / "export")
    setup.write("plain-evaluate", _command("evaluate", run, "--missing", "0,0.3", "--json"))
    setup.write("plain-export", _command("export", run, export, "--json"))
    _python("-m", "asymdiffrec", "predict", export, f"{setup.pack}/data/test", str(setup.folder / "scores.parquet"))


def bf16(setup: Setup) -> None:
    """Train a compiled model in bf16, with a trace, and compare the losses with the CPU."""
    train(setup, "bf16", "train.precision=bf16", options=("--profile",))
    traces = setup.folder / "traces"
    traces.mkdir(exist_ok=True)
    for trace in (setup.run("bf16") / "profile").glob("*.json"):
        with trace.open("rb") as source, gzip.open(traces / f"train-bf16-{trace.name}.gz", "wb") as target:
            shutil.copyfileobj(source, target)
    _compare(setup, "bf16", 2e-2)


def adam(setup: Setup) -> None:
    """Train tables with Adam."""
    train(setup, "adam", *EXACT, "tables.optimizer.name=adam", "tables.optimizer.learning_rate=0.001")


def rowwise(setup: Setup) -> None:
    """Train tables with row-wise Adagrad."""
    train(setup, "rowwise", *EXACT, "tables.optimizer.name=rowwise_adagrad")


def managed(setup: Setup) -> None:
    """Train with a table of managed ids."""
    city = ("fields.city.num_embeddings=9984", "tables.per_table.city.collision=managed")
    train(setup, "managed", *EXACT, *city)


def resume(setup: Setup) -> None:
    """Interrupt a training and resume it. Its losses must be close to the uninterrupted run on the CPU."""
    run = setup.run("resume")
    command = [sys.executable, "-m", "asymdiffrec", *_training(setup, "resume", *EXACT)]
    stopped = stop_after(run, setup.steps() // 20, command)
    setup.write("resume-stop", stopped)
    if not stopped["holds"]:
        raise PartError(f"the interrupted training ended with exit status {stopped['status']}; expected 130")
    _python("-m", "asymdiffrec", "train", f"{setup.pack}/data/job.yaml", "--run", str(run), "--resume")
    _compare(setup, "resume", 1e-3)


def calibrate(setup: Setup) -> None:
    """Measure the speed of this host for the planner, and make a plan with the result."""
    device = str(setup.folder / "this-machine.yaml")
    _python("-m", "asymdiffrec", "plan", "--calibrate", device)
    cluster = ("--gpu", device, "--nodes", "1", "--gpus-per-node", "1")
    setup.write("plan-calibrated", _command("plan", f"{setup.pack}/data/job.yaml", *cluster, "--json"))


def uvm_tables(setup: Setup) -> None:
    """Compare FBGEMM's kernels for managed memory with a reference in fp64."""
    _benchmark("tables", setup, "--kernels", "uvm", "--json", str(setup.folder / "tables-uvm.json"))


def uvm_plain(setup: Setup) -> None:
    """Train tables in managed memory."""
    train(setup, "uvm", *EXACT, "tables.kernels=[fused_uvm]")
    _compare(setup, "uvm", 1e-3)


def uvm_caching(setup: Setup) -> None:
    """Train tables in managed memory with a cache on the GPU."""
    train(setup, "uvm-caching", *EXACT, "tables.kernels=[fused_uvm_caching]")
    _compare(setup, "uvm-caching", 1e-3)


def uvm_tested(setup: Setup) -> None:
    """Check that loading the best step removes the rows of later steps from the cache on the GPU.

    Learning rates are so high that the best step is not the last step.
    """
    rates = ("tables.optimizer.learning_rate=0.3", "train.learning_rate=0.005")
    every = f"train.validation.every={setup.steps() // 8}"
    train(setup, "uvm-tested", *EXACT, "tables.kernels=[fused_uvm_caching]", *rates, every)
    run = setup.run("uvm-tested")
    document = compare_test_auc(run, _command("evaluate", str(run), "--json"))
    setup.write("uvm-tested", document)
    if not document["holds"]:
        raise PartError(f"test AUC {document['test/auc']} in the training, but {document['evaluated']} in `evaluate`")


def train(setup: Setup, name: str, *overrides: str, options: tuple[str, ...] = ()) -> None:
    """Train the job of the CPU reference run with further overrides. The run directory is runs/NAME."""
    _python("-m", "asymdiffrec", *_training(setup, name, *overrides), *options)


def _training(setup: Setup, name: str, *overrides: str) -> list[str]:
    values = [*setup.overrides(), *overrides]
    return ["train", f"{setup.pack}/data/job.yaml", "--run", str(setup.run(name)), *set_options(values)]


def _compare(setup: Setup, name: str, limit: float) -> None:
    document = compare_losses(setup.run(name), setup.reference, limit)
    setup.write(name, document)
    if not document["holds"]:
        raise PartError(
            f"losses differ from the CPU's by more than {limit:g}, or rows differ; see {name} in summary.json"
        )


def throughput(section: str) -> Callable[[Setup], None]:
    """Return the part that runs one section of `benchmarks.gpu.throughput`."""

    def part(setup: Setup) -> None:
        (setup.folder / "traces").mkdir(exist_ok=True)
        document, device = setup.folder / f"{section}.json", setup.folder / "this-machine.yaml"
        options = ["--json", str(document), "--traces", str(setup.folder / "traces")]
        options += ["--device-file", str(device)] if device.exists() else []
        options += ["--quick"] if setup.quick else []
        _python("-m", "benchmarks.gpu.throughput", section, *options)

    return part


def _benchmark(module: str, setup: Setup, *options: str) -> None:
    quick = ("--quick",) if setup.quick else ()
    _python("-m", f"benchmarks.gpu.{module}", "--device", setup.device, *quick, *options)


def _python(*arguments: str) -> None:
    """Run Python in the root of the project. Raises CalledProcessError if the exit status is not 0."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _command(*arguments: str) -> Any:
    """Return the JSON document that a command of asymdiffrec prints."""
    command = [sys.executable, "-m", "asymdiffrec", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


@dataclass(frozen=True)
class Part:
    """A part of the GPU day, or a group of parts that run in parallel."""

    seconds: int
    """Time limit"""
    action: Callable[[Setup], None] | None = None
    side_by_side: tuple[str, ...] = ()
    """Names of parts that run in parallel, if `action` is None"""
    needs_gpu: bool = False


PARTS = {
    "unpack": Part(120, unpack),
    "check": Part(60, check),
    "train": Part(180, side_by_side=("kernels", "plain", "bf16", "adam", "rowwise", "managed", "resume")),
    "calibrate": Part(45, calibrate),
    "turns": Part(150, throughput("turns")),
    "capacity": Part(60, throughput("capacity")),
    "parquet": Part(75, throughput("parquet")),
    # Late, because managed memory may make a GPU hang.
    "uvm": Part(70, side_by_side=("uvm-tables", "uvm-plain", "uvm-caching", "uvm-tested"), needs_gpu=True),
    "optimizers": Part(60, throughput("optimizers")),
}
"""The parts of a day, in their order"""
MEMBERS = {
    "kernels": Part(170, kernels),
    "plain": Part(170, plain),
    "bf16": Part(170, bf16),
    "adam": Part(170, adam, needs_gpu=True),
    "rowwise": Part(170, rowwise),
    "managed": Part(170, managed),
    "resume": Part(170, resume),
    "uvm-tables": Part(65, uvm_tables, needs_gpu=True),
    "uvm-plain": Part(65, uvm_plain, needs_gpu=True),
    "uvm-caching": Part(65, uvm_caching, needs_gpu=True),
    "uvm-tested": Part(65, uvm_tested, needs_gpu=True),
}
"""Parts that run in parallel inside another part. The command line can name them separately"""
ALL = PARTS | MEMBERS


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    name, work = sys.argv[1:]
    action = ALL[name].action
    assert action is not None
    try:
        action(Setup.load(Path(work)))
    except (PartError, UnpackError, subprocess.CalledProcessError) as error:
        sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
