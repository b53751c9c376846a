"""The train state of a job: sharded tables, the replicated dense part, and their optimizers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.documents import validate
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.diffusion.forward import MissingPatterns
from asymdiffrec.diffusion.methods import method_class
from asymdiffrec.diffusion.recommender import Recommender
from asymdiffrec.embeddings.optimizers import dense_parameters, tables_optimizer
from asymdiffrec.embeddings.planner.dense import dense_work
from asymdiffrec.embeddings.planner.devices import Cluster, Device, find_device, local_cluster
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.plan_document import plan_document, solve_from_document
from asymdiffrec.embeddings.planner.problem import Problem
from asymdiffrec.embeddings.sharding import run_on_rank_0, shard
from asymdiffrec.embeddings.tables import FieldTables
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.optimizers import ADAMW_MOMENTS, TrainOptimizer, build_dense_optimizer

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainState:
    """A sharded model with its optimizers."""

    job: Job
    model: DistributedModelParallel
    recommender: Recommender
    """The model inside the wrappers of TorchRec and DDP"""
    tables_optimizer: CombinedOptimizer
    dense: dict[str, torch.nn.Parameter]
    """The dense parameters by name"""
    dense_optimizer: torch.optim.Optimizer
    optimizer: TrainOptimizer
    """The optimizer that the train pipeline calls; it steps both optimizers above"""
    device: torch.device
    plan: dict[str, Any]
    """The document of the sharding plan, see `plan_document`"""


def worker_device() -> torch.device:
    """Return this worker's GPU if its process group has NCCL, else the CPU."""
    if "nccl" in dist.get_backend_config():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def build_train_state(
    job: Job, schema: Schema, device: torch.device, plan: Mapping[str, Any] | None = None
) -> TrainState:
    """Build a job's model and optimizers on the workers of the default process group. A collective call.

    Initial values depend on the job only, not on the number of workers. `plan` is the document of a sharding plan, see
    `plan_document`. If it is None, a plan is computed for these workers. Raises InputError if sections of the job
    contradict each other, the tables do not fit into the memory of the workers, or the plan does not fit the job or the
    workers.
    """
    unsharded = build_recommender(job, schema, device)
    sharding_plan, document = run_on_rank_0(lambda: _plan(job, schema, unsharded, device, plan))
    model = shard(unsharded, job.tables, sharding_plan, device, job.train.seed)
    dense = dense_parameters(model)
    settings = job.train
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    if settings.compile or (settings.compile is None and device.type == "cuda"):
        _require_compiler(device)
        model.module.diffusion.compile(dynamic=False)
    dense_optimizer = build_dense_optimizer(dense.values(), settings)
    tables = tables_optimizer(model, job.tables.optimizer)
    optimizer = TrainOptimizer(tables, dense_optimizer, settings)
    return TrainState(job, model, model.module, tables, dense, dense_optimizer, optimizer, device, document)


def build_recommender(job: Job, schema: Schema, device: torch.device) -> Recommender:
    """Build a job's model; its tables are on the meta device until they are sharded.

    If `device` is meta, no memory is allocated; this is enough for planning. Raises InputError if sections of the job
    contradict each other.
    """
    torch.manual_seed(job.train.seed)
    tables = FieldTables(schema, job.tables)
    # Draw the weights on the CPU (unless the device is meta), so that they are the same on all devices.
    with torch.device("meta" if device.type == "meta" else "cpu"):
        diffusion = method_class(job.diffusion.method)(
            tables.layout,
            job.model,
            job.diffusion,
            seed=job.train.seed,
            drop_factors=[field.drop for field in schema.fields.values()],
            patterns=missing_patterns(schema),
            precision=AUTOCAST_DTYPES[job.train.precision],
        )
    tables.concat.to(device)
    return Recommender(tables, diffusion.to(device))


def planning_problem(job: Job, schema: Schema, model: Recommender, cluster: Cluster) -> Problem:
    """Return the input of the planner: the model's tables, the cluster and the work of the dense part."""
    batch = max(1, job.train.batch_size // cluster.world_size)
    layout = model.diffusion.layout
    clean = torch.empty(batch, layout.total_width, device="meta", requires_grad=True)
    missing = torch.empty(batch, layout.num_fields, dtype=torch.bool, device="meta")
    label, weight = torch.empty(batch, device="meta"), torch.empty(batch, device="meta")
    index = torch.empty(batch, dtype=torch.int64, device="meta")
    dense = dense_work(model.diffusion, [clean, missing, label, weight, index], moments=ADAMW_MOMENTS)
    return Problem(model, schema, job.tables, cluster, job.train.batch_size, dense)


def _require_compiler(device: torch.device) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise InputError(
            f"train.compile: true; needs a C++ compiler, and {compiler} is not installed. Set CXX to an installed "
            "compiler"
        )


def _plan(
    job: Job, schema: Schema, model: Recommender, device: torch.device, plan: Mapping[str, Any] | None
) -> tuple[ShardingPlan, dict[str, Any]]:
    """Return the sharding plan for these workers, and the document of the plan."""
    figures = find_device(job.cluster.device, "cluster.device") if job.cluster.device else None
    if plan and figures is None and plan.get("device", {}).get("kind") == device.type:
        # Use the device figures of the given plan, so that measured values are compared with its predictions.
        figures = validate(Device, plan["device"], "device of the plan")
    problem = planning_problem(job, schema, model, local_cluster(device.type, figures, dist.get_world_size()))
    solution = solve_from_document(problem, plan) if plan else solve(problem)
    return solution.plan, plan_document(solution)


def missing_patterns(schema: Schema) -> MissingPatterns | None:
    """Return the missing-field patterns of the training rows, or None if the statistics contain no patterns.

    The fields of a pattern are in the order of the schema.
    """
    if schema.statistics is None or not schema.statistics.missing_patterns:
        return None
    patterns = schema.statistics.missing_patterns
    rows = [[name in pattern.missing for name in schema.names] for pattern in patterns]
    return MissingPatterns(torch.tensor(rows), torch.tensor([pattern.rows for pattern in patterns]))
