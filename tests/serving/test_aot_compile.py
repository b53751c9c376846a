"""Machine code for the dense part, against the model that it was compiled from."""

from __future__ import annotations

import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.model import AsymmetricDiffusion
from asymdiffrec.serving import aot_compile
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import LARGEST, Compiled, Scorer, load_export
from asymdiffrec.serving.self_test import synthetic_samples

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")


@pytest.fixture
def engine(exported: Path) -> Engine:
    return Engine(load_export(exported))


def samples(engine: Engine, count: int) -> Any:
    made = synthetic_samples(engine.schema)
    return engine.request_schema.table([made[place % len(made)] for place in range(count)])


@pytest.mark.parametrize(
    ("extractor", "settings"),
    [
        *(("mlp", one) for one in ({"method": "base"}, {"space": "fields"}, {"noise": "gaussian"}, {"fill": "mean"})),
        *((name, {}) for name in ("mlp", "dcn", "deepfm", "dlrm")),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_program_is_for_any_number_of_samples(engine: Engine, extractor: str, settings: dict[str, Any]) -> None:
    tables = engine.export.model.tables
    config = ModelConfig.model_validate({"extractor": {"name": extractor}})
    model = Scorer(tables, AsymmetricDiffusion(tables.layout, config, DiffusionConfig(**settings), seed=0)).eval()
    programs = aot_compile.programs(model, engine.batch(samples(engine, 5), ""))
    join, score = (programs[name].module() for name in (aot_compile.JOIN, aot_compile.SCORE))
    for count in (2, 9):
        batch = engine.batch(samples(engine, count), "")
        x = join(*tables.look_up(batch))
        torch.testing.assert_close(x, model.vectors(batch))
        torch.testing.assert_close(score(x, batch.missing), model.score(batch))


@needs_compiler
def test_machine_code_scores_as_the_model_does(engine: Engine) -> None:
    query = engine.request_schema.query({"user_id": 5, "history": [3, 8]}, [{"item_id": place} for place in range(20)])
    tables = [samples(engine, count) for count in (1, 2, 32, LARGEST)]
    expected = [engine.score(table, before=True) for table in tables]
    ranked = engine.rank([query])[0].scores

    model = engine.export.model
    model.compiled = aot_compile.compile_export(engine.export)
    eager = model.tables.join.forward, model.diffusion.score
    model.tables.join.forward = model.diffusion.score = None  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda table: engine.score(table, before=True), tables * 10))
    for answer, right in zip(found, expected * 10, strict=True):
        np.testing.assert_allclose(answer.scores, right.scores, atol=1e-6)
        assert answer.before is not None
        assert right.before is not None
        np.testing.assert_allclose(answer.before, right.before, atol=1e-6)
    np.testing.assert_allclose(engine.rank([query])[0].scores, ranked, atol=1e-6)
    with pytest.raises(TypeError):
        engine.score(samples(engine, LARGEST + 1))  # the model's own
    model.tables.join.forward, model.diffusion.score = eager  # type: ignore[method-assign]
    assert len(engine.score(samples(engine, LARGEST + 1)).scores) == LARGEST + 1


def test_without_a_compiler_the_model_scores(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    told: list[str] = []
    aot_compile.compile_if_faster(engine, told.append)
    assert told[0] == f"Compiling version {engine.version} for this host"
    assert told[1].startswith("Not compiled: ")
    assert "No working C++ compiler" in told[1]
    assert engine.export.model.compiled is None


@pytest.mark.parametrize(
    ("seconds", "more", "line"),
    [
        (0.0, 0.0, "Compiled in 0 s: 1 sample in"),
        (0.01, 0.0, "; not used, for it is no faster"),
        (0.0, 0.1, "Not compiled: its scores differ by 0.02"),
        (0.0, math.nan, "Not compiled: its scores differ by nan"),
    ],
    ids=["faster", "slower", "wrong", "nan"],
)
def test_only_what_is_faster_and_right_is_used(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seconds: float, more: float, line: str
) -> None:
    model, score = engine.export.model, AsymmetricDiffusion.score

    def slow(self: AsymmetricDiffusion, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)
        return score(self, x, missing)

    def code(x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return score(model.diffusion, x, missing) + more

    monkeypatch.setattr(AsymmetricDiffusion, "score", slow)
    monkeypatch.setattr(aot_compile, "compile_export", lambda *given, **named: Compiled(model.tables.join, code))
    told: list[str] = []
    aot_compile.compile_if_faster(engine, told.append)
    assert line in told[1]
    assert (model.compiled is not None) == (seconds == more == 0)


def test_whatever_fails_the_model_scores(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("cannot be\n  mapped")

    told: list[str] = []
    for broken in (fails, lambda *given, **named: Compiled(fails, fails)):
        monkeypatch.setattr(aot_compile, "compile_export", broken)
        aot_compile.compile_if_faster(engine, told.append)
        assert told.pop() == "Not compiled: cannot be mapped"
        assert engine.export.model.compiled is None


def test_another_version_in_its_place_is_not_compiled(exported: Path) -> None:
    export = load_export(exported)
    older = export.manifest.model_copy(update={"version": "older"})
    with pytest.raises(aot_compile.CompileError, match=f"has become version {export.manifest.version}"):
        aot_compile.compile_export(replace(export, manifest=older))
