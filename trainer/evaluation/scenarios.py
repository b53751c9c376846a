"""Which fields samples lack where a model is judged: at random, as in the data, some dark; or whose ids are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import IdConfig, Schema
from asymdiffrec.diffusion.forward import ForwardConfig, ForwardProcess
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.trainer.build import missing_patterns

SEED = 0
"""Of the fields that are dropped: one for all runs, so that all are judged on the same samples."""


@dataclass(frozen=True)
class Scenario:
    """Present fields are dropped by independent draws, which are a function of the row and the field alone."""

    name: str
    rates: tuple[float, ...] | None = None
    """Probability of each field, in the schema's order; None: none is dropped"""
    share: float | None = None
    """The probability, where it is the same for all fields"""
    patterns: bool = False
    """Fields are dropped as they are missing together in the training rows"""
    unseen: str | None = None
    """Only samples count whose id of this field is in no training row"""

    def process(self, layout: FieldLayout, schema: Schema) -> ForwardProcess | None:
        """Return the forward process that drops the fields; None if the scenario drops none."""
        if self.patterns:
            config, found = ForwardConfig(pattern="empirical"), missing_patterns(schema)
            return ForwardProcess(layout, config, seed=SEED, patterns=found)
        if self.rates is None or not any(self.rates):
            return None
        return ForwardProcess.at_rates(layout, self.rates, SEED)


@dataclass(frozen=True)
class Asked:
    """Scenarios as they are asked for, before a schema is known."""

    shares: Sequence[float] = (0.0,)
    outages: Sequence[str] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    as_in_training: bool = False
    unseen: Sequence[str] = ()

    def of(self, schema: Schema) -> list[Scenario]:
        """InputError where the schema lacks what is asked for."""
        return [
            *(at_random(share, schema) for share in self.shares),
            *(dark(name, schema) for name in self.outages),
            *([drifted(self.rates, schema)] if self.rates else []),
            *([as_in_data(schema)] if self.as_in_training else []),
            *(unseen(name, schema) for name in self.unseen),
        ]


def at_random(share: float, schema: Schema) -> Scenario:
    """Each present field is dropped with probability `share`."""
    return Scenario(f"{100 * share:g}%", (share,) * len(schema.names), share=share)


def drifted(rates: Mapping[str, float], schema: Schema) -> Scenario:
    """Fields are dropped with probabilities of their own, 0 where none is given; InputError for an unknown field."""
    for name in rates:
        if name not in schema.fields:
            raise InputError(f"{name}: no such field; there are {', '.join(schema.names)}")
    shown = ", ".join(f"{name} {100 * rate:g}%" for name, rate in rates.items())
    return Scenario(shown, tuple(rates.get(name, 0.0) for name in schema.names))


def dark(name: str, schema: Schema) -> Scenario:
    """A field, or all fields of a group, are gone; InputError where there is neither."""
    fields = [name] if name in schema.fields else members(schema).get(name)
    if fields is None:
        known = ", ".join([*members(schema), *schema.names])
        raise InputError(f"{name}: neither a group nor a field; there are {known}")
    return Scenario(f"{name} dark", tuple(float(each in fields) for each in schema.names))


def as_in_data(schema: Schema) -> Scenario:
    """Fields are missing, beside those that are, as they are missing together in the training rows."""
    if missing_patterns(schema) is None:
        raise InputError("statistics.yaml has no patterns of missing fields; prepare the data again")
    return Scenario("as in training", patterns=True)


def unseen(name: str, schema: Schema) -> Scenario:
    """Only the samples whose id of a field is new; InputError where the field has no single id."""
    if not isinstance(schema.fields.get(name), IdConfig):
        known = ", ".join(name for name, found in schema.fields.items() if isinstance(found, IdConfig))
        raise InputError(f"{name}: not a field of type id; there are {known}")
    return Scenario(f"new {name}", unseen=name)


def members(schema: Schema) -> dict[str, list[str]]:
    """The fields of each group, in the order of the schema."""
    groups: dict[str, list[str]] = {}
    for name, found in schema.fields.items():
        groups.setdefault(found.group, []).append(name)
    return groups


def drill(schema: Schema) -> list[Scenario]:
    """Every group that is neither all nor one of the fields, and every field, gone dark."""
    groups = [name for name, fields in members(schema).items() if 1 < len(fields) < len(schema.fields)]
    return [dark(name, schema) for name in (*groups, *schema.names)]
