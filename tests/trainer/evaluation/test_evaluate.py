"""Evaluation over workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from rich.console import Console

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext
from asymdiffrec.cluster.launch import launch
from asymdiffrec.trainer.evaluation.scenarios import drop_at_random
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.inference.evaluate_run import evaluate_run
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run


@pytest.mark.usefixtures("ray_cluster")
def test_workers_merge_to_the_metrics_of_one_process(clicks: Path, tmp_path: Path) -> None:
    """Two workers with different numbers of rows load a run of one worker; rank 0 spills the gathered rows to disk."""
    job = read_job(clicks / "job.yaml", ["train.batch_size=256", "train.steps=5"])
    run = Run(tmp_path / "run")
    train_job(job, read_statistics(job), run, console=Console(quiet=True))
    alone, *_ = evaluate_run(
        run.path, "test", lambda schema: [drop_at_random(0.3, schema)], Console(quiet=True)
    ).results

    def work(arguments: Mapping[str, Any], context: ClusterContext) -> None:
        from asymdiffrec.datasets.reader import EvaluationReader, WorkerContext
        from asymdiffrec.datasets.shards import open_shards
        from asymdiffrec.trainer.checkpoints.store import Checkpoints
        from asymdiffrec.trainer.evaluation.evaluate import evaluate
        from asymdiffrec.trainer.evaluation.scenarios import drop_at_random
        from asymdiffrec.trainer.run import Run
        from asymdiffrec.trainer.train_state import build_train_state, worker_device

        run = Run(Path(arguments["run"]))
        job = run.job(("tables.per_table={item_id: {sharding: row_wise}, user_id: {sharding: column_wise}}",))
        schema = job.to_schema(run.statistics())
        train_state = build_train_state(job, schema, worker_device())
        Checkpoints(run.checkpoints(job)).load(5, train_state)
        reader = EvaluationReader(schema, open_shards(job.location("test")), 187, WorkerContext(dist.get_rank(), 2))
        (metrics,) = evaluate(
            train_state.recommender, reader, [drop_at_random(0.3, schema)], run.path / "spill", limit=100
        )
        (run.path / f"rank-{dist.get_rank()}.json").write_text(json.dumps(metrics))

    launch(work, {"run": str(run.path)}, ClusterConfig(workers=2), tmp_path / "storage")
    first, second = (json.loads((run.path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["rows"] == 601
    assert first.pop("scenario") == alone.pop("scenario") == "30%"
    assert first == pytest.approx(alone, rel=1e-5)
