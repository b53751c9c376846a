"""The job file: one YAML file is one job, parsed into frozen pydantic models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from asymdiffrec.base import Config, InputError
from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.datasets.files.documents import apply_override, read_yaml, validate
from asymdiffrec.datasets.files.locations import join_location
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import ROWS_PER_SET, with_id_ranges
from asymdiffrec.trainer.metrics import require_validation_metric, validation_metrics


class ValidationConfig(Config):
    """The `train.validation:` section: how often to validate, by which metric, and when to stop early."""

    every: int | None = Field(None, gt=0, description="steps between validations; null: once per epoch")
    metric: Annotated[str, AfterValidator(require_validation_metric)] = Field(
        "auc",
        description="metric that chooses the best step: " + ", ".join(validation_metrics()),
        json_schema_extra={"enum": [*validation_metrics()]},
    )
    missing: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0,),
        min_length=1,
        description="shares of fields that are dropped in validation; the metric is averaged over them",
    )
    patience: int = Field(
        2, gt=0, description="number of validations in a row without a better metric after which training stops"
    )


class CheckpointsConfig(Config):
    """The `train.checkpoints:` section: when to save checkpoints, how many to keep, and where."""

    steps: int | None = Field(
        None, gt=0, description="also save every N steps, in addition to timed saves and saves at validation"
    )
    minutes: float | None = Field(30, gt=0, description="minutes between timed saves; null: no timed saves")
    keep: int = Field(1, gt=0, description="number of newest checkpoints to keep, in addition to the best one")
    path: str | None = Field(
        None,
        description="folder or URI (s3://, gs://, hdfs://) for the checkpoints of all runs; null: the run directory",
    )
    background: bool = Field(
        True,
        description="write checkpoints while training continues, from a copy in host memory; false: stop training "
        "while a checkpoint is written, and make no copy",
    )


class ScheduleConfig(Config):
    """The `train.schedule:` section: a factor on the learning rates of the dense parameters and the tables."""

    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rates grow linearly from near 0")
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="how the learning rates fall after the warm-up, until the last step of the run"
    )
    end: float = Field(0.0, ge=0, le=1, description="factor on the learning rates at the end of the decay")


class TrainConfig(Config):
    """The `train:` section of the job file."""

    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of the initial weights, the sample order and the forward process"
    )
    init_from: str | None = Field(
        None,
        description="directory of another run: start from the weights of its best step, as far as they fit this job; "
        "see `train --init-from`",
    )
    batch_size: int = Field(
        1024, gt=0, description="samples per step, all workers together; must be a multiple of data.lanes"
    )
    epochs: int = Field(10, gt=0, description="maximum number of epochs; validation may stop training earlier")
    steps: int | None = Field(None, gt=0, description="maximum number of steps over all epochs; null: no maximum")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="learning rate of the dense parameters (AdamW); for the tables see tables.optimizer.learning_rate",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the dense parameters (AdamW)")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="factor on all learning rates, by step")
    accumulate: int = Field(
        1,
        gt=0,
        description="steps whose dense gradients are averaged into one update; tables are updated in every step",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="maximum norm of all dense gradients together; gradients of tables are not clipped"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="autocast dtype of the dense part in training; weights and losses stay fp32. On CPUs without bf16 "
        "instructions bf16 is many times slower",
    )
    tf32: bool = Field(False, description="on GPUs, compute fp32 products in TF32, with 10 bits of mantissa")
    compile: bool | None = Field(
        None,
        description="compile the dense part with torch.compile, which needs a C++ compiler; null: only on GPUs, where "
        "it is faster",
    )
    profile: int = Field(0, ge=0, description="number of steps to trace into the run directory; see `train --profile`")
    log_every: int = Field(50, gt=0, description="steps between two lines of metrics.jsonl")
    checkpoints: CheckpointsConfig = Field(CheckpointsConfig(), description="when and where checkpoints are saved")
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do with a step whose loss is not finite or above max_loss; a skipped step changes no "
        "parameter",
    )
    max_loss: float = Field(1e4, gt=0, description="a loss above this value counts as diverged, see on_nan")
    validation: ValidationConfig = Field(ValidationConfig(), description="early stopping and the best step")


class Job(FieldsConfig):
    """A job file: data, fields, model and training. Relative paths are resolved by `read_job`.

    >>> fields = {"item": {"type": "id", "num_embeddings": 1000}}
    >>> Job.model_validate({"name": "clicks", "fields": fields}).train.batch_size
    1024
    """

    name: str = Field(pattern=r"^[\w.-]+$", description="name of the job, and of the folder of its runs")
    tables: TablesConfig = Field(TablesConfig(), description="embedding tables")
    model: ModelConfig = Field(ModelConfig(), description="base model")
    diffusion: DiffusionConfig = Field(DiffusionConfig(), description="method against missing fields")
    train: TrainConfig = Field(TrainConfig(), description="training")
    cluster: ClusterConfig = Field(ClusterConfig(), description="workers and where they run")

    @model_validator(mode="after")
    def _managed_tables_are_possible(self) -> Self:
        for table in self.to_schema().tables.values():
            if table.name not in self.tables.managed_tables:
                continue
            name = table.fields[0]
            if not table.hash:
                raise ValueError(
                    f"fields.{name}.hash: false is not possible with tables.per_table.{table.name}.collision: managed; "
                    "remove one of them"
                )
            if table.num_embeddings % ROWS_PER_SET:
                nearest = -(-table.num_embeddings // ROWS_PER_SET) * ROWS_PER_SET
                raise ValueError(
                    f"fields.{name}.num_embeddings: {table.num_embeddings} is not a multiple of {ROWS_PER_SET}, which "
                    f"a managed table needs; use for example {nearest}"
                )
        return self

    def to_schema(self, statistics: Statistics | None = None) -> Schema:
        """Return the schema, see `FieldsConfig.to_schema`. The model maps ids of managed tables to rows."""
        return with_id_ranges(super().to_schema(statistics), self.tables.managed_tables)

    def location(self, part: str) -> str:
        """Return the path or URI of a part of the data: train, valid, test or statistics.yaml."""
        return join_location(self.data.path, part)


def total_steps(job: Job, steps_per_epoch: int) -> int:
    """Return the number of steps of a whole run, if validation does not stop it early."""
    steps = job.train.epochs * steps_per_epoch
    return min(steps, job.train.steps) if job.train.steps else steps


def read_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job of a file with `PATH=VALUE` overrides applied. Relative paths are relative to the file's folder.

    Raises InputError, which names the file, the path of the wrong value in it, the value, and what is allowed.
    """
    document = read_yaml(str(path))
    for text in overrides:
        apply_override(document, text)
    job = validate(Job, document, str(path))
    if "://" not in job.data.path:
        data = job.data.model_copy(update={"path": str((path.parent / job.data.path).resolve())})
        job = job.model_copy(update={"data": data})
    if job.train.init_from is not None:
        train = job.train.model_copy(update={"init_from": str((path.parent / job.train.init_from).resolve())})
        job = job.model_copy(update={"train": train})
    return job


def read_statistics(job: Job) -> Statistics:
    """Return the statistics that `prepare` computed from the training rows.

    Raises InputError if the file statistics.yaml is wrong, lacks a numeric field, or shows that all labels are equal.
    """
    path = job.location("statistics.yaml")
    statistics = validate(Statistics, read_yaml(path), path)
    if statistics.label_rate in (0.0, 1.0):
        raise InputError(
            f"{job.location('train')}: every label is {statistics.label_rate:g}; training needs both 0 and 1"
        )
    missing = [name for name in job.to_schema().numeric if name not in statistics.numeric]
    if missing:
        raise InputError(
            f"{path}: has no mean and standard deviation of the numeric field {missing[0]}; prepare the data again"
        )
    return statistics
