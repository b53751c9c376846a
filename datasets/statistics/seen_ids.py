"""Which ids are in a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards


def seen_ids(schema: Schema, shards: Shards, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The ids of some fields of type id that are in any row, as batches have them: sorted, each once."""
    narrow = replace(schema, fields={name: schema.fields[name] for name in names})
    found: dict[str, np.ndarray] = {name: np.empty(0, np.int64) for name in names}
    for group in range(len(shards.row_groups)):
        table = shards.read(group, narrow.columns(labelled=False))
        rows = decode(table, narrow, shards.location_of(group), labelled=False).columns
        for place, name in enumerate(narrow.sparse):
            found[name] = np.union1d(found[name], rows.column(place).to_numpy())
    return {name: ids[ids >= 0].astype(np.int64) for name, ids in found.items()}
