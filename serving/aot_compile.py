"""The dense part of an export as machine code for this host, by AOTInductor; used where it measures faster.

It is compiled here, into a temporary folder: of an export nothing is executed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import LARGEST, Compiled, Export, Scorer, load_export
from asymdiffrec.serving.self_test import TOLERANCE, synthetic_samples

JOIN, SCORE = "join.pt2", "score.pt2"
TIMED = (1, LARGEST)
"""Samples of a call, when it is measured what is faster"""
ROUNDS, CALLS, LEAST = 15, 8, 0.02
"""Of a measurement, calls of a round, and the share of the time that has to be spared"""


class CompileError(Exception):
    """Why there is no machine code, in a line."""


def compile_if_faster(engine: Engine, tell: Callable[[str], None], *, allow_user_classes: bool = False) -> None:
    """Compile the dense part of an engine's model for this host, in another process that gives way to all others, and
    score by it where it gives the same scores in less time. What came of it is told; where nothing did, for whatever
    reason, the engine is as it was."""
    tell(f"Compiling version {engine.version} for this host")
    start = time.perf_counter()
    model = engine.export.model
    try:
        compiled = compile_export(engine.export, allow_user_classes=allow_user_classes)
        took = time.perf_counter() - start
        times = [_milliseconds(engine, compiled, count) for count in TIMED]
    except Exception as error:  # the model scores without it
        model.compiled = None
        tell(f"Not compiled: {' '.join(str(error).split())[:300]}")
        return
    is_faster = all(new < (1 - LEAST) * old for new, old in times)
    model.compiled = compiled if is_faster else None
    told = ", ".join(
        f"{count} {'sample' if count == 1 else 'samples'} in {new:.2f} ms for {old:.2f}"
        for count, (new, old) in zip(TIMED, times, strict=True)
    )
    tell(f"Compiled in {took:.0f} s: {told}{'' if is_faster else '; not used, for it is no faster'}")


def compile_export(export: Export, *, allow_user_classes: bool = False) -> Compiled:
    """The dense part of an export, compiled for this host. CompileError where it cannot be."""
    arguments = [str(export.folder), export.manifest.version, *(["--allow-user-classes"] if allow_user_classes else [])]
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as out:
        command = ["nice", "-n19", sys.executable, "-P", "-m", __name__, out, *arguments]
        modules = {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_CACHE_DIR": out}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | modules
        ) as child:
            assert child.stderr is not None
            lines = child.stderr.read().decode(errors="replace").strip().splitlines()
        if child.returncode:
            raise CompileError(lines[-1] if child.returncode > 0 and lines else f"ended with {child.returncode}")
        return Compiled(*(_loaded(Path(out) / name) for name in (JOIN, SCORE)))


def _loaded(package: Path) -> Callable[..., torch.Tensor]:
    """What is in a package, unpacked beside it: torch would leave it in a folder of its own. Called with tensors alone,
    it is spared reading at each call how others would be laid out."""
    folder = package.with_suffix("")
    shutil.unpack_archive(package, folder, "zip")
    run = torch._C._aoti.AOTIModelPackageLoader(str(folder), "model", False, 1, -1).boxed_run

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        (result,) = run(list(tensors))
        return result

    return call


def _milliseconds(engine: Engine, compiled: Compiled, count: int) -> tuple[float, float]:
    """Of a call with so many samples, by machine code and without, in turn. CompileError where the scores differ."""
    samples, model = synthetic_samples(engine.schema), engine.export.model
    table = engine.request_schema.table([samples[place % len(samples)] for place in range(count)])
    taken: dict[Compiled | None, list[float]] = {compiled: [], None: []}
    scores = {}
    for _ in range(ROUNDS):
        for code, seconds in taken.items():
            model.compiled = code
            start = time.perf_counter()
            for _ in range(CALLS):
                scores[code] = engine.score(table).scores
            seconds.append((time.perf_counter() - start) / CALLS)
    off = float(np.abs(scores[compiled] - scores[None]).max())
    if not off <= TOLERANCE:
        raise CompileError(f"its scores differ by {off:.2g}")
    return 1e3 * statistics.median(taken[compiled]), 1e3 * statistics.median(taken[None])


class _Score(nn.Module):
    """`AsymmetricDiffusion.score`"""

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.diffusion = model.diffusion

    def forward(self, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        return self.diffusion.score(x, missing)


@torch.no_grad()
def programs(model: Scorer, batch: Any) -> dict[str, torch.export.ExportedProgram]:
    """`ServedTables.join` and `AsymmetricDiffusion.score` of a model, for any number of samples, by the names of their
    files; `batch` is a `Batch` of some."""
    parts = model.tables.look_up(batch)
    x = model.tables.join(*parts)
    size = torch.export.Dim("samples", min=2)  # one is taken, too; as a number of its own it would be all that is
    by_row = {0: size}
    return {
        JOIN: torch.export.export(model.tables.join, parts, dynamic_shapes=(by_row, {1: size}, by_row, by_row)),
        SCORE: torch.export.export(_Score(model), (x, batch.missing), dynamic_shapes=(by_row, by_row)),
    }


def main(out: str, folder: str, version: str, *options: str) -> None:
    """Compile the dense part of an export into two files of a folder."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # as in the server: how many there are is compiled in
    export = load_export(Path(folder), allow_user_classes="--allow-user-classes" in options)
    if export.manifest.version != version:
        raise CompileError(f"{folder} has become version {export.manifest.version}")
    engine = Engine(export)
    batch = engine.batch(engine.request_schema.table(synthetic_samples(engine.schema)), "")
    for name, program in programs(engine.export.model, batch).items():
        torch._inductor.aoti_compile_and_package(program, package_path=str(Path(out) / name))


def _end_with_parent() -> None:
    """However that ends, its end of the pipe is closed then."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
