"""The compiled dense part gives the same scores as the model in PyTorch, and compiling is optional."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.serving import aot_compile
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.scorer import MAX_COMPILED_SAMPLES, CompiledDense, Scorer
from asymdiffrec.serving.self_test import synthetic_samples

pytestmark = pytest.mark.timeout(1200)
"""The compiler runs with the lowest priority: while other programs run, it takes much longer than half a minute"""
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")


@pytest.fixture
def engine(exported: Path) -> Engine:
    return Engine(load_export(exported))


def make_table(engine: Engine, count: int) -> pa.Table:
    """Return a table of `count` synthetic samples."""
    samples = synthetic_samples(engine.schema)
    return engine.request_schema.table([samples[index % len(samples)] for index in range(count)])


@pytest.mark.parametrize(
    ("extractor", "settings"),
    [
        *(("mlp", one) for one in ({"method": "base"}, {"space": "fields"}, {"noise": "gaussian"}, {"fill": "mean"})),
        *((name, {}) for name in ("mlp", "dcn", "deepfm", "dlrm")),
    ],
    ids=str,
)
@torch.no_grad()
def test_exported_programs_take_any_number_of_samples(engine: Engine, extractor: str, settings: dict[str, Any]) -> None:
    tables = engine.export.model.tables
    config = ModelConfig.model_validate({"extractor": {"name": extractor}})
    model = Scorer(tables, AsymmetricDiffusion(tables.layout, config, DiffusionConfig(**settings), seed=0)).eval()
    programs = aot_compile.export_programs(model, engine.batch(make_table(engine, 5), ""))
    join, score = (programs[name].module() for name in (aot_compile.JOIN, aot_compile.SCORE))
    for count in (2, 9):
        batch = engine.batch(make_table(engine, count), "")
        x = join(*tables.look_up(batch))
        torch.testing.assert_close(x, model.vectors(batch))
        torch.testing.assert_close(score(x, batch.missing), model.score(batch))


class Clock:
    """A clock that advances only when a test advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@needs_compiler
def test_machine_code_scores_as_the_model_does(engine: Engine) -> None:
    candidates = [{"item_id": index} for index in range(20)]
    query = engine.request_schema.query({"user_id": 5, "history": [3, 8]}, candidates)
    tables = [make_table(engine, count) for count in (1, 2, 32, MAX_COMPILED_SAMPLES)]
    expected = [engine.score(table, without_denoiser=True) for table in tables]
    expected_ranking = engine.rank([query])[0].scores

    model = engine.export.model
    model.compiled = aot_compile.compile_export(engine.export)
    # Without the Python functions, only the machine code can score.
    functions = model.tables.join.forward, model.diffusion.score
    model.tables.join.forward = model.diffusion.score = None  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda table: engine.score(table, without_denoiser=True), tables * 10))
    for scored, right in zip(results, expected * 10, strict=True):
        np.testing.assert_allclose(scored.scores, right.scores, atol=1e-6)
        assert scored.without_denoiser is not None
        assert right.without_denoiser is not None
        np.testing.assert_allclose(scored.without_denoiser, right.without_denoiser, atol=1e-6)
    np.testing.assert_allclose(engine.rank([query])[0].scores, expected_ranking, atol=1e-6)
    with pytest.raises(TypeError):
        engine.score(make_table(engine, MAX_COMPILED_SAMPLES + 1))  # more samples than the machine code is used for
    model.tables.join.forward, model.diffusion.score = functions  # type: ignore[method-assign]
    assert len(engine.score(make_table(engine, MAX_COMPILED_SAMPLES + 1)).scores) == MAX_COMPILED_SAMPLES + 1


def test_model_scores_without_a_compiler(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    lines: list[str] = []
    aot_compile.compile_if_faster(engine, lines.append)
    assert lines[0] == f"Compiling version {engine.version} for this host"
    assert lines[1].startswith("warning: the dense part is not compiled: ")
    assert "No working C++ compiler" in lines[1]
    assert engine.export.model.compiled is None


@pytest.mark.parametrize(
    ("seconds", "error", "line"),
    [
        (0.0, 0.0, "Compiled in 0 s: 1 sample in"),
        (0.1, 0.0, "; not used, because it is not faster"),
        (0.0, 0.1, "warning: the dense part is not compiled: the scores differ by 0.02"),
        (0.0, math.nan, "warning: the dense part is not compiled: the scores differ by nan"),
    ],
    ids=["faster", "slower", "wrong", "nan"],
)
def test_only_faster_and_right_code_is_used(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seconds: float, error: float, line: str
) -> None:
    model, score, clock = engine.export.model, AsymmetricDiffusion.score, Clock()

    def slow_score(self: AsymmetricDiffusion, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        clock.now += 0.05
        return score(self, x, missing)

    def code(x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        clock.now += seconds
        return score(model.diffusion, x, missing) + error

    monkeypatch.setattr(AsymmetricDiffusion, "score", slow_score)
    monkeypatch.setattr(aot_compile, "compile_export", lambda export, **options: CompiledDense(model.tables.join, code))
    monkeypatch.setattr(aot_compile, "time", clock)
    lines: list[str] = []
    aot_compile.compile_if_faster(engine, lines.append)
    assert line in lines[1]
    assert (model.compiled is not None) == (seconds == error == 0)


def test_model_scores_whatever_fails_in_compilation(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("cannot be\n  mapped")

    lines: list[str] = []
    for broken in (fail, lambda *arguments, **options: CompiledDense(fail, fail)):
        monkeypatch.setattr(aot_compile, "compile_export", broken)
        aot_compile.compile_if_faster(engine, lines.append)
        assert lines.pop() == "warning: the dense part is not compiled: cannot be mapped"
        assert engine.export.model.compiled is None


def test_export_that_was_replaced_meanwhile_is_not_compiled(exported: Path) -> None:
    export = load_export(exported)
    older = export.manifest.model_copy(update={"version": "older"})
    with pytest.raises(aot_compile.CompileError, match=f"now has version {export.manifest.version}, not older"):
        aot_compile.compile_export(replace(export, manifest=older))
