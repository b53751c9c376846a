"""The job file: one YAML file is one job, read into frozen models."""

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
from asymdiffrec.embeddings.managed.ids import WAYS, with_id_ranges
from asymdiffrec.trainer.metrics import require_validation_metric, validation_metrics


class ValidationConfig(Config):
    every: int | None = Field(None, gt=0, description="steps between validations; an epoch when left out")
    metric: Annotated[str, AfterValidator(require_validation_metric)] = Field(
        "auc",
        description="metric that chooses the best step: " + ", ".join(validation_metrics()),
        json_schema_extra={"enum": [*validation_metrics()]},
    )
    missing: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0,), min_length=1, description="shares of fields dropped; the metric is averaged over them"
    )
    patience: int = Field(2, gt=0, description="validations without a better metric before training stops")


class CheckpointsConfig(Config):
    steps: int | None = Field(None, gt=0, description="steps between two, beside those of time and of validations")
    minutes: float | None = Field(30, gt=0, description="minutes between two; null: none for the time that has passed")
    keep: int = Field(1, gt=0, description="newest ones that are kept, besides the best")
    path: str | None = Field(
        None,
        description="folder or URI (s3://, gs://, hdfs://) for those of all runs; left out: the run directory",
    )
    background: bool = Field(
        True, description="written while training goes on, from a copy in the machine's memory; false: no copy"
    )


class ScheduleConfig(Config):
    """Of all learning rates, those of the tables too."""

    warmup_steps: int = Field(0, ge=0, description="steps in which they grow from near 0")
    decay: Literal["none", "linear", "cosine"] = Field("none", description="after that, to the run's last step")
    end: float = Field(0.0, ge=0, le=1, description="what decay leaves of them at the end")


class TrainConfig(Config):
    seed: int = Field(0, ge=0, lt=2**63, description="of the initial weights, the order of the samples and the noise")
    init_from: str | None = Field(
        None, description="run whose best step the weights start from, as far as its job fits; see train --init-from"
    )
    batch_size: int = Field(1024, gt=0, description="samples of a step over all workers; a multiple of data.lanes")
    epochs: int = Field(10, gt=0, description="at most; validation may stop training earlier")
    steps: int | None = Field(None, gt=0, description="at most, over all epochs")
    learning_rate: float = Field(1e-3, gt=0, description="of the dense parameters (Adam); the tables have their own")
    weight_decay: float = Field(0.0, ge=0, description="of the dense parameters (AdamW)")
    schedule: ScheduleConfig = ScheduleConfig()
    accumulate: int = Field(
        1, gt=0, description="steps whose dense gradients are averaged into one change; tables change in every step"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of all dense gradients together; those of tables are not clipped"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the dense part's products in training (autocast); weights and losses are fp32; many times "
        "slower on CPUs without bf16 of their own",
    )
    tf32: bool = Field(False, description="on GPUs, fp32 products with 10 bits of mantissa")
    compile: bool | None = Field(
        None, description="the dense part by torch.compile, which needs a C++ compiler; null: on GPUs, where it wins"
    )
    profile: int = Field(0, ge=0, description="steps whose trace is left in the run directory; see train --profile")
    log_every: int = Field(50, gt=0, description="steps between lines of metrics.jsonl")
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="where a loss is not finite or beyond max_loss; a skipped step changes no parameter"
    )
    max_loss: float = Field(1e4, gt=0, description="a loss beyond it has exploded")
    metric_rows: int = Field(
        2_000_000, gt=0, description="rows an evaluation holds in memory before it spills to the run directory"
    )
    validation: ValidationConfig = ValidationConfig()


class Job(FieldsConfig):
    name: str = Field(pattern=r"^[\w.-]+$", description="folder of the job's runs")
    tables: TablesConfig = TablesConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _managed_tables_can_be(self) -> Self:
        for table in self.to_schema().tables.values():
            if table.name not in self.tables.managed_tables:
                continue
            name = table.fields[0]
            if not table.hash:
                raise ValueError(f"fields.{name}.hash: false, but tables.per_table.{table.name}.collision is managed")
            if table.num_embeddings % WAYS:
                nearest = -(-table.num_embeddings // WAYS) * WAYS
                raise ValueError(
                    f"fields.{name}.num_embeddings: {table.num_embeddings}; managed tables need a multiple of {WAYS}, "
                    f"such as {nearest}"
                )
        return self

    def to_schema(self, statistics: Statistics | None = None) -> Schema:
        """As `FieldsConfig.to_schema`; ids of managed tables keep apart, whatever rows there are."""
        return with_id_ranges(super().to_schema(statistics), self.tables.managed_tables)

    def location(self, part: str) -> str:
        """The path or URI of a part of the data: train, valid, test or statistics.yaml."""
        return join_location(self.data.path, part)


def total_steps(job: Job, steps_per_epoch: int) -> int:
    """Return the number of steps of a whole run, if validation does not stop it early."""
    steps = job.train.epochs * steps_per_epoch
    return min(steps, job.train.steps) if job.train.steps else steps


def read_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """The job of a file with `PATH=VALUE` settings laid over it; relative paths are taken from the file's folder.

    Raises InputError with the file, the path within it, what was found and what is allowed.
    """
    document = read_yaml(str(path))
    for setting in settings:
        apply_override(document, setting)
    job = validate(Job, document, str(path))
    if "://" not in job.data.path:
        data = job.data.model_copy(update={"path": str((path.parent / job.data.path).resolve())})
        job = job.model_copy(update={"data": data})
    if job.train.init_from is not None:
        train = job.train.model_copy(update={"init_from": str((path.parent / job.train.init_from).resolve())})
        job = job.model_copy(update={"train": train})
    return job


def read_statistics(job: Job) -> Statistics:
    """What `prepare` learned from the data: `statistics.yaml` beside the shards."""
    path = job.location("statistics.yaml")
    statistics = validate(Statistics, read_yaml(path), path)
    if statistics.label_rate in (0.0, 1.0):
        raise InputError(
            f"{job.location('train')}: every label is {statistics.label_rate:g}; training needs both 0 and 1"
        )
    lacking = [name for name in job.to_schema().numeric if name not in statistics.numeric]
    if lacking:
        raise InputError(
            f"{path}: no mean and standard deviation of the number field {lacking[0]}; prepare the data again"
        )
    return statistics
