"""The entry point of a training worker: from the arguments of the command to the result of the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from asymdiffrec.cluster.context import ClusterContext
from asymdiffrec.cluster.errors import HostLeavingError
from asymdiffrec.datasets.reader import TrainingReader, WorkerContext
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.planner.plan_document import world_size_mismatch
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.checkpoints.init_from import load_init
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.fit.loop import TrainingLoop
from asymdiffrec.trainer.fit.plan_check import ResourceUsage
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import Run, RunLog, RunOutcome
from asymdiffrec.trainer.train_state import build_train_state, worker_device


def train_worker(arguments: Mapping[str, Any], cluster: ClusterContext) -> None:
    """Train one job in its run directory. Runs on every worker; the default process group contains all workers.

    Training continues from the run's newest undamaged checkpoint, even if another number of workers wrote it. So after
    a failure the workers simply call this function again. Keys of `arguments`: `job` and `statistics` (documents),
    `plan` (document of the sharding plan, or None), `init` (InitPlan or None), `run` (path of the run directory).

    Raises HostLeavingError on all workers if a host is about to be removed, after a checkpoint was written.
    """
    silence_torchrec_warnings()
    job, statistics = Job.model_validate(arguments["job"]), Statistics.model_validate(arguments["statistics"])
    run = Run(Path(arguments["run"]))
    schema = job.to_schema(statistics)
    context = WorkerContext(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
    shards = open_shards(job.location("train"), run.training_files())
    reader = TrainingReader(schema, shards, job.train.seed, job.train.batch_size, context)
    checkpoints, notes = Checkpoints(run.checkpoints(job)), list[str]()
    step = checkpoints.newest_good(notes.append)
    usage = ResourceUsage(device := worker_device())
    plan = _plan_for(context.world_size, arguments["plan"], notes)
    train_state = build_train_state(job, schema, device, plan)
    if step is None and arguments["init"]:
        load_init(arguments["init"], train_state)
    progress = Progress() if step is None else checkpoints.load(step, train_state)
    if context.rank == 0:
        run.drop_records_after(progress.step)
        run.write_plan(train_state.plan)
    with RunLog(run, progress.step, reader.steps_per_epoch, is_writer=context.rank == 0) as log:
        log.note(progress.step, workers=context.world_size, hosts=cluster.ranks_by_host)
        for note in notes:
            log.note(progress.step, note=note)
        loop = TrainingLoop(job, run, schema, context, reader, train_state, checkpoints, log, cluster.publish)
        progress, outcome = loop.fit(progress, cluster.is_leaving, usage)
        measured = usage.compare(train_state.plan)
        if outcome == RunOutcome.PREEMPTED:
            raise HostLeavingError(f"a host is about to be removed; the checkpoint of step {progress.step} was written")
        if outcome != RunOutcome.INTERRUPTED:
            loop.test(progress)
        if context.rank == 0:
            run.write_result({"outcome": outcome, **progress.summary(), "measured": measured})


def _plan_for(world_size: int, plan: Mapping[str, Any] | None, notes: list[str]) -> Mapping[str, Any] | None:
    """Return the user's plan. If it is for another number of workers, add a note and return None."""
    if plan and (mismatch := world_size_mismatch(plan, world_size, world_size)):
        notes.append(f"{mismatch}; a new sharding plan is computed")
        return None
    return plan
