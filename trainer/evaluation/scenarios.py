"""Evaluation scenarios: which fields are missing from the samples of a split, and which samples count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import IdConfig, Schema
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.seen_ids import seen_ids
from asymdiffrec.diffusion.forward import ForwardConfig, ForwardProcess
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.train_state import missing_patterns

SEED = 0
"""Seed of the dropped fields. It is the same for all runs, so all runs are evaluated on the same masked samples."""


@dataclass(frozen=True)
class Scenario:
    """One way in which fields are missing.

    Present fields are dropped independently. Whether a field is dropped is a function of the row and the field alone.

    >>> from asymdiffrec.datasets.schema import FieldsConfig
    >>> fields = {"item": {"type": "id", "num_embeddings": 1000}}
    >>> scenario = drop_at_random(0.3, FieldsConfig.model_validate({"fields": fields}).to_schema())
    >>> scenario.name, scenario.share
    ('30%', 0.3)
    """

    name: str
    rates: tuple[float, ...] | None = None
    """Probability that a field is dropped, for each field in the schema's order; None: no field is dropped"""
    share: float | None = None
    """The probability, if it is the same for all fields"""
    uses_patterns: bool = False
    """True if fields are dropped by the missing-field patterns of the training rows"""
    unseen_field: str | None = None
    """If set, only samples count whose id of this field does not occur in the training rows"""

    def process(self, layout: FieldLayout, schema: Schema) -> ForwardProcess | None:
        """Return the forward process that drops the fields; None if the scenario drops none."""
        if self.uses_patterns:
            config, patterns = ForwardConfig(pattern="empirical"), missing_patterns(schema)
            return ForwardProcess(layout, config, seed=SEED, patterns=patterns)
        if self.rates is None or not any(self.rates):
            return None
        return ForwardProcess.at_rates(layout, self.rates, SEED)


@dataclass(frozen=True)
class ScenarioOptions:
    """The scenarios that the options of a command select, before a schema is known."""

    shares: Sequence[float] = (0.0,)
    outages: Sequence[str] = ()
    """Names of fields and groups"""
    rates: Mapping[str, float] = field(default_factory=dict)
    """One more scenario, as {field: share of samples in which the field is dropped}"""
    as_in_training: bool = False
    unseen_fields: Sequence[str] = ()

    def scenarios(self, schema: Schema) -> list[Scenario]:
        """Return the scenarios. Raises InputError if the schema has no such field or group."""
        return [
            *(drop_at_random(share, schema) for share in self.shares),
            *(outage(name, schema) for name in self.outages),
            *([drop_at_rates(self.rates, schema)] if self.rates else []),
            *([drop_as_in_training(schema)] if self.as_in_training else []),
            *(unseen_ids(name, schema) for name in self.unseen_fields),
        ]


def drop_at_random(share: float, schema: Schema) -> Scenario:
    """Return the scenario that drops each present field with probability `share`."""
    return Scenario(f"{100 * share:g}%", (share,) * len(schema.names), share=share)


def drop_at_rates(rates: Mapping[str, float], schema: Schema) -> Scenario:
    """Return the scenario that drops each field with its probability in `rates`; 0 if `rates` does not name the field.

    Raises InputError if the schema has no field of that name.
    """
    for name in rates:
        if name not in schema.fields:
            raise InputError(f"{name}: no such field; the fields are {', '.join(schema.names)}")
    description = ", ".join(f"{name} {100 * rate:g}%" for name, rate in rates.items())
    return Scenario(description, tuple(rates.get(name, 0.0) for name in schema.names))


def outage(name: str, schema: Schema) -> Scenario:
    """Return the scenario in which a field, or all fields of a group, are missing from all samples.

    Raises InputError if the schema has neither a group nor a field of that name.
    """
    fields = [name] if name in schema.fields else fields_by_group(schema).get(name)
    if fields is None:
        names = ", ".join([*fields_by_group(schema), *schema.names])
        raise InputError(f"{name}: neither a group nor a field; groups and fields are {names}")
    return Scenario(f"{name} outage", tuple(float(field in fields) for field in schema.names))


def outage_drill(schema: Schema) -> list[Scenario]:
    """Return an outage of each group that has more than one but not all fields, then an outage of each field."""
    groups = [name for name, fields in fields_by_group(schema).items() if 1 < len(fields) < len(schema.fields)]
    return [outage(name, schema) for name in (*groups, *schema.names)]


def drop_as_in_training(schema: Schema) -> Scenario:
    """Return the scenario that drops fields by the missing-field patterns of the training rows.

    Fields that are missing from a sample stay missing. Raises InputError if statistics.yaml has no patterns.
    """
    if missing_patterns(schema) is None:
        raise InputError("statistics.yaml has no patterns of missing fields; prepare the data again")
    return Scenario("as in training", uses_patterns=True)


def unseen_ids(name: str, schema: Schema) -> Scenario:
    """Return the scenario that counts only samples whose id of a field does not occur in the training rows.

    Raises InputError if the field is not of type id.
    """
    if not isinstance(schema.fields.get(name), IdConfig):
        names = ", ".join(name for name, config in schema.fields.items() if isinstance(config, IdConfig))
        raise InputError(f"{name}: not a field of type id; fields of type id are {names}")
    return Scenario(f"unseen {name}", unseen_field=name)


def fields_by_group(schema: Schema) -> dict[str, list[str]]:
    """Return the names of the fields of each group, in the schema's order."""
    groups: dict[str, list[str]] = {}
    for name, config in schema.fields.items():
        groups.setdefault(config.group, []).append(name)
    return groups


def training_ids(scenarios: Sequence[Scenario], job: Job, schema: Schema) -> dict[str, np.ndarray]:
    """Return {field: ids that occur in training rows, sorted int64 [V]} for the `unseen_ids` scenarios."""
    names = sorted({scenario.unseen_field for scenario in scenarios if scenario.unseen_field})
    return seen_ids(schema, open_shards(job.location("train")), names) if names else {}
