"""The dense part of an export as machine code for this host, by AOTInductor; used where it measures faster.

It is compiled here and lies in a temporary folder: of an export nothing is executed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asymdiffrec.serving.bundle import Compiled, Scorer, load_bundle
from asymdiffrec.serving.check import TOLERANCE, difference, made_up
from asymdiffrec.serving.engine import Engine

JOIN, SCORE = "join.pt2", "score.pt2"
TIMED = (1, 128)
"""Samples of a call, when it is measured what is faster"""
CALLS = 200
"""For each measurement"""


class CompileError(Exception):
    """Why there is no machine code, in a line."""


def use_compiled(engine: Engine, threads: int, tell: Callable[[str], None], *, own_classes: bool = False) -> None:
    """Compile the dense part of an engine's model for this host, in another process that gives way to all others, and
    score by it where it gives the same scores in less time, `threads` threads calling. What came of it is told;
    where nothing did, the engine is as it was."""
    model = engine.bundle.model
    tell(f"Compiling version {engine.version} for this host")
    start = time.perf_counter()
    try:
        compiled = compiled_for(engine.bundle.folder, threads, own_classes=own_classes)
        took = time.perf_counter() - start
        before = _milliseconds(engine, threads)
        model.compiled = compiled
        off = difference(model, engine.schema, engine.bundle.card["check"])
        if not off <= TOLERANCE:
            raise CompileError(f"its scores differ by {off:.2g}")
        after = _milliseconds(engine, threads)
    except CompileError as error:
        model.compiled = None
        tell(f"Not compiled: {error}")
        return
    is_faster = sum(new / old for new, old in zip(after, before, strict=True)) < len(TIMED)
    if not is_faster:
        model.compiled = None
    told = ", ".join(
        f"{count} {'sample' if count == 1 else 'samples'} in {new:.2f} ms for {old:.2f}"
        for count, new, old in zip(TIMED, after, before, strict=True)
    )
    tell(f"Compiled in {took:.0f} s: {told}{'' if is_faster else '; not used, for it is no faster'}")


def compiled_for(folder: Path, threads: int, *, own_classes: bool = False) -> Compiled:
    """The dense part of an export, compiled for this host, for so many threads that call at once. CompileError where
    it cannot be."""
    from torch._inductor.package import load_package

    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as out:
        command = [sys.executable, "-m", __name__, str(folder), out, *(["--own-classes"] if own_classes else [])]
        outcome = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if outcome.returncode:
            lines = outcome.stderr.strip().splitlines() or [f"it ended with status {outcome.returncode}"]
            raise CompileError(lines[-1])
        join, score = (load_package(str(Path(out) / name), num_runners=threads) for name in (JOIN, SCORE))
    return Compiled(join, score)


def _milliseconds(engine: Engine, threads: int) -> list[float]:
    """Of a call with as many samples as TIMED says, while `threads` threads make such calls."""
    samples = made_up(engine.schema)
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for count in TIMED:
            table = engine.form.table([samples[place % len(samples)] for place in range(count)])
            for calls in (CALLS // 4, CALLS):  # the first ones warm up
                start = time.perf_counter()
                list(pool.map(engine.score, [table] * calls * threads))
            found.append(1e3 * (time.perf_counter() - start) / CALLS)
    return found


class _Score(nn.Module):
    """`AsymmetricDiffusion.score`"""

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.diffusion = model.diffusion

    def forward(self, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        return self.diffusion.score(x, missing)


@torch.no_grad()
def programs(model: Scorer, batch: Any) -> dict[str, torch.export.ExportedProgram]:
    """`ServedTables.join` and `AsymmetricDiffusion.score` of a model, for any number of samples, by the names of
    their files; `batch` is a `Batch` of some."""
    parts = model.tables.looked_up(batch)
    x = model.tables.join(*parts)
    size = torch.export.Dim("samples", min=2)
    by_row = {0: size}
    return {
        JOIN: torch.export.export(model.tables.join, parts, dynamic_shapes=(by_row, {1: size}, by_row, by_row)),
        SCORE: torch.export.export(_Score(model), (x, batch.missing), dynamic_shapes=(by_row, by_row)),
    }


def main(folder: str, out: str, *options: str) -> None:
    """Compile the dense part of an export into two files of a folder."""
    os.nice(19)
    engine = Engine(load_bundle(Path(folder), own_classes="--own-classes" in options))
    batch = engine.batch(engine.form.table(made_up(engine.schema)), "")
    for name, program in programs(engine.bundle.model, batch).items():
        torch._inductor.aoti_compile_and_package(program, package_path=str(Path(out) / name))


if __name__ == "__main__":
    main(*sys.argv[1:])
