"""The job file: one YAML file is one job, read into frozen models; a wrong value is one clear line."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from asymdiffrec.cluster.launch import ClusterConfig
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.schema import Config, FieldsConfig, Learned, Schema
from asymdiffrec.datasets.shards import filesystem_of, part_of, shown
from asymdiffrec.diffusion.model import DiffusionConfig, ModelConfig
from asymdiffrec.embeddings.managed.ids import WAYS, id_range
from asymdiffrec.embeddings.tables import TablesConfig

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where there are: a large vocabulary takes them a hundredth of the time"""


class ValidationConfig(Config):
    every: int | None = Field(None, gt=0, description="steps between validations; an epoch when left out")
    metric: Literal["auc", "uauc", "log_loss"] = Field("auc", description="what chooses the best step")
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


class TrainConfig(Config):
    seed: int = Field(0, ge=0, lt=2**63, description="of the initial weights, the order of the samples and the noise")
    batch_size: int = Field(1024, gt=0, description="samples of a step over all workers; a multiple of data.lanes")
    epochs: int = Field(10, gt=0, description="at most; validation may stop training earlier")
    steps: int | None = Field(None, gt=0, description="at most, over all epochs")
    learning_rate: float = Field(1e-3, gt=0, description="of the dense parameters (Adam); the tables have their own")
    weight_decay: float = Field(0.0, ge=0, description="of the dense parameters (AdamW)")
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
        for name, field in self.to_schema().hashed.items():
            table = field.table or name
            if table not in self.tables.managed_tables:
                continue
            if not field.hash:
                raise ValueError(f"fields.{name}.hash: false, but tables.per_table.{table}.collision is managed")
            if field.rows % WAYS:
                nearest = -(-field.rows // WAYS) * WAYS
                raise ValueError(
                    f"fields.{name}.rows: {field.rows}; a table with collision: managed needs a multiple of {WAYS}, "
                    f"such as {nearest}"
                )
        return self

    def to_schema(self, learned: Learned | None = None) -> Schema:
        """As `FieldsConfig.to_schema`; ids of managed tables keep apart, whatever rows there are."""
        schema = super().to_schema(learned)
        managed = {
            name: schema.table(name) for name in schema.hashed if schema.table(name) in self.tables.managed_tables
        }
        return replace(schema, id_ranges={table: id_range(schema.hashed[name].rows) for name, table in managed.items()})

    def location(self, part: str) -> str:
        """The path or URI of a part of the data: train, valid, test or schema.yaml."""
        return part_of(self.data.path, part)


def read_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """The job of a file with `PATH=VALUE` settings laid over it; a relative data path is taken from the file's folder.

    Raises InputError with the file, the path within it, what was found and what is allowed.
    """
    document = read_yaml(str(path))
    for setting in settings:
        override(document, setting)
    job = validate(Job, document, str(path))
    if "://" not in job.data.path:
        data = job.data.model_copy(update={"path": str((path.parent / job.data.path).resolve())})
        job = job.model_copy(update={"data": data})
    return job


def read_learned(job: Job) -> Learned:
    """What `prepare` learned from the data: `schema.yaml` beside the shards."""
    path = job.location("schema.yaml")
    learned = validate(Learned, read_yaml(path), path)
    if learned.label_rate in (0.0, 1.0):
        raise InputError(f"{job.location('train')}: every label is {learned.label_rate:g}; training needs both 0 and 1")
    lacking = [name for name in job.to_schema().numbers if name not in learned.numbers]
    if lacking:
        raise InputError(
            f"{path}: no mean and standard deviation of the number field {lacking[0]}; prepare the data again"
        )
    return learned


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file at a local path or a URI."""
    filesystem, inner = filesystem_of(path)
    try:
        with filesystem.open_input_stream(inner) as stream:
            document = yaml.load(stream.read().decode(), Loader)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{shown(path)}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InputError(f"{shown(path)}: found {type(document).__name__}; a mapping of sections is expected")
    return document


def write_yaml(path: Path, model: BaseModel) -> None:
    path.write_text(yaml.dump(model.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=2**31 - 1))


M = typing.TypeVar("M", bound=BaseModel)


def validate(model: type[M], document: dict[str, Any], where: str) -> M:
    """The document as a model, or an InputError about the first thing that is wrong with it."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {_describe(model, error.errors()[0])}") from None


def override(document: dict[str, Any], setting: str) -> None:
    """Lay one `PATH=VALUE` setting over a document. Raises InputError where it is none."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise InputError(f"--set {setting}: expected PATH=VALUE, such as train.batch_size=8192")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {setting}: the value is not YAML") from None
    *parents, last = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise InputError(f"--set {setting}: {parent} is a value, not a section")
    document[last] = value


def _describe(model: type[BaseModel], error: Any) -> str:
    """One line on a validation error: the path, what was found, what is allowed."""
    path, section = _walk(model, error["loc"])
    at = ".".join(path)
    if error["type"] == "extra_forbidden":
        keys = list(section.model_fields) if section else []
        close = difflib.get_close_matches(path[-1], keys, 1)
        hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(keys)}"
        return f"{at}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{at}: is required"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{at}: {message}" if at else message
    return f"{at}: found {error['input']!r}; {message[0].lower()}{message[1:]}"


def _walk(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """The path of a location as it stands in the file, and the section that holds its last key.

    After a union of sections pydantic's locations name the section that was chosen, which is in no file.
    """
    path: list[str] = []
    section: type[BaseModel] | None = model
    at: Any = model
    for part in loc:
        sections = [member for member in _members(at) if isinstance(member, type) and issubclass(member, BaseModel)]
        if len(sections) > 1:
            at = next((member for member in sections if part in _tags(member)), sections[-1])
            continue
        path.append(str(part))
        section = sections[0] if sections else None
        if section is not None and part in section.model_fields:
            at = section.model_fields[str(part)].annotation
        else:
            at = (typing.get_args(at) or (None,))[-1]
    return path, section


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(annotation) for part in _members(member))
    return (annotation,)


def _tags(section: type[BaseModel]) -> set[Any]:
    """The values of the literal fields that tell the sections of a union apart."""
    literals = [field.annotation for field in section.model_fields.values()]
    return {value for kind in literals if typing.get_origin(kind) is Literal for value in typing.get_args(kind)}
