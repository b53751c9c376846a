"""Collect the ids that occur in a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards


def seen_ids(schema: Schema, shards: Shards, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {field: its distinct ids in all rows} for fields of type id. Ids are as in batches, sorted, [V] int64."""
    selected = replace(schema, fields={name: schema.fields[name] for name in names})
    ids: dict[str, np.ndarray] = {name: np.empty(0, np.int64) for name in names}
    for group in range(len(shards.row_groups)):
        table = shards.read(group, selected.columns(labelled=False))
        rows = decode(table, selected, shards.location_of(group), labelled=False).columns
        for index, name in enumerate(selected.sparse):
            ids[name] = np.union1d(ids[name], rows.column(index).to_numpy())
    return {name: values[values >= 0].astype(np.int64) for name, values in ids.items()}
