"""Compile the dense part of an export to machine code for this host with AOTInductor, and use the code if it is faster.

The serving host compiles into a temporary folder. Thus no code is ever loaded from an export.
"""

from __future__ import annotations

import os
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
from asymdiffrec.serving.export import Export, load_export
from asymdiffrec.serving.scorer import MAX_COMPILED_SAMPLES, CompiledDense, Scorer
from asymdiffrec.serving.self_test import MAX_SCORE_DIFFERENCE, synthetic_samples
from asymdiffrec.torch_compat import load_compiled_package

JOIN, SCORE = "join.pt2", "score.pt2"
"""File names of the two compiled programs"""
TIMED_SAMPLES = (1, MAX_COMPILED_SAMPLES)
"""Batch sizes, in samples, at which compiled code must be faster than PyTorch"""
TIMING_ROUNDS = 15
CALLS_PER_ROUND = 8
MIN_TIME_SAVED = 0.02
"""Minimum fraction of the time that compiled code must save: a smaller difference may be measurement noise"""


class CompileError(Exception):
    """Failure to compile the dense part. The message is one line."""


def compile_if_faster(engine: Engine, report: Callable[[str], None], *, allow_user_classes: bool = False) -> None:
    """Compile the dense part of an engine's model, and use the code if it gives the same scores in less time.

    The compiler runs in a subprocess with the lowest priority. `report` is called with one line before compiling and
    one line after it. After any error the engine continues to score in PyTorch.
    """
    report(f"Compiling version {engine.version} for this host")
    start = time.perf_counter()
    model = engine.export.model
    try:
        compiled = compile_export(engine.export, allow_user_classes=allow_user_classes)
        compile_seconds = time.perf_counter() - start
        times = [_time_calls(engine, compiled, count) for count in TIMED_SAMPLES]
    except Exception as error:  # compilation is optional: the model scores without it
        model.compiled = None
        report(f"warning: the dense part is not compiled: {' '.join(str(error).split())[:300]}")
        return
    is_faster = all(after < (1 - MIN_TIME_SAVED) * before for after, before in times)
    model.compiled = compiled if is_faster else None
    comparison = ", ".join(
        f"{count} {'sample' if count == 1 else 'samples'} in {after:.2f} ms instead of {before:.2f} ms"
        for count, (after, before) in zip(TIMED_SAMPLES, times, strict=True)
    )
    use = "" if is_faster else "; not used, because it is not faster"
    report(f"Compiled in {compile_seconds:.0f} s: {comparison}{use}")


def compile_export(export: Export, *, allow_user_classes: bool = False) -> CompiledDense:
    """Compile the dense part of an export for this host in a subprocess; raise CompileError if compiling fails."""
    options = ["--allow-user-classes"] if allow_user_classes else []
    arguments = [str(export.folder), export.manifest.version, *options]
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as out:
        command = ["nice", "-n19", sys.executable, "-P", "-m", __name__, out, *arguments]
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_CACHE_DIR": out}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        ) as child:
            assert child.stderr is not None
            lines = child.stderr.read().decode(errors="replace").strip().splitlines()
        if child.returncode:
            has_message = child.returncode > 0 and lines
            raise CompileError(lines[-1] if has_message else f"the compiler ended with exit status {child.returncode}")
        return CompiledDense(*(load_compiled_package(Path(out) / name) for name in (JOIN, SCORE)))


def _time_calls(engine: Engine, compiled: CompiledDense, count: int) -> tuple[float, float]:
    """Return two times of a call with `count` samples, medians in milliseconds: with compiled code, and in PyTorch.

    Rounds with compiled code and rounds in PyTorch alternate. Raises CompileError if the scores differ.
    """
    samples, model = synthetic_samples(engine.schema), engine.export.model
    table = engine.request_schema.table([samples[index % len(samples)] for index in range(count)])
    seconds: dict[CompiledDense | None, list[float]] = {compiled: [], None: []}
    scores = {}
    for _ in range(TIMING_ROUNDS):
        for code, times in seconds.items():
            model.compiled = code
            start = time.perf_counter()
            for _ in range(CALLS_PER_ROUND):
                scores[code] = engine.score(table).scores
            times.append((time.perf_counter() - start) / CALLS_PER_ROUND)
    difference = float(np.abs(scores[compiled] - scores[None]).max())
    if not difference <= MAX_SCORE_DIFFERENCE:
        raise CompileError(
            f"the scores differ by {difference:.2g} from the scores in PyTorch; at most {MAX_SCORE_DIFFERENCE:g} is "
            "allowed"
        )
    return 1e3 * statistics.median(seconds[compiled]), 1e3 * statistics.median(seconds[None])


class _Score(nn.Module):
    """A module whose forward is `AsymmetricDiffusion.score`: torch.export accepts only modules."""

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.diffusion = model.diffusion

    def forward(self, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        return self.diffusion.score(x, missing)


@torch.no_grad()
def export_programs(model: Scorer, batch: Any) -> dict[str, torch.export.ExportedProgram]:
    """Return the programs of `ServedTables.join` and `AsymmetricDiffusion.score`, by file name.

    `batch` is an example `Batch` of at least 2 samples. The programs accept any number of samples.
    """
    looked_up = model.tables.look_up(batch)
    x = model.tables.join(*looked_up)
    # The programs also accept 1 sample, but min=1 is not possible: torch.export treats a size of 1 as a constant.
    samples = torch.export.Dim("samples", min=2)
    by_row = {0: samples}
    return {
        JOIN: torch.export.export(model.tables.join, looked_up, dynamic_shapes=(by_row, {1: samples}, by_row, by_row)),
        SCORE: torch.export.export(_Score(model), (x, batch.missing), dynamic_shapes=(by_row, by_row)),
    }


def main(out: str, folder: str, version: str, *options: str) -> None:
    """Compile the dense part of the export in `folder` into two files in `out`.

    `compile_export` runs this function in a subprocess.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # as in the server, because the number of threads is compiled into the code
    export = load_export(Path(folder), allow_user_classes="--allow-user-classes" in options)
    if export.manifest.version != version:
        raise CompileError(f"{folder} now has version {export.manifest.version}, not {version}")
    engine = Engine(export)
    batch = engine.batch(engine.request_schema.table(synthetic_samples(engine.schema)), "")
    for name, program in export_programs(export.model, batch).items():
        torch._inductor.aoti_compile_and_package(program, package_path=str(Path(out) / name))


def _exit_with_parent() -> None:
    """End this process when its parent ends. The pipe to stdin is then closed, even if the parent was killed."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
