"""A restored model as it is served: its tables in a file, of some precision, and looked up from there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.serving_tables import Precision, ServedTables, write_tables
from asymdiffrec.embeddings.state import local_parts, look_up_state
from asymdiffrec.embeddings.tables import TablesConfig
from asymdiffrec.serving.export import Scorer
from asymdiffrec.trainer.build import TrainState


class Parts(NamedTuple):
    """All that scores of a trained model, of one worker, in memory."""

    dense: dict[str, torch.Tensor]
    """The weights beside the tables, by their names in a `Scorer`"""
    tables: dict[str, torch.Tensor]
    """The weights [rows, D] of each table"""
    ids: dict[str, torch.Tensor]
    """The ids of each managed table"""


def parts_of(train_state: TrainState) -> Parts:
    """Of a model that one worker holds whole."""
    state = {name: _whole(tensor) for name, tensor in look_up_state(train_state.model).items()}
    recommender = train_state.recommender
    dense = {f"diffusion.{name}": weight for name, weight in recommender.diffusion.state_dict().items()}
    columns = recommender.tables.get_submodule("columns").state_dict()
    return Parts(
        dense | {f"tables.columns.{name}": weight for name, weight in columns.items()},
        {name.removesuffix(".weight"): own for name, own in state.items() if name.endswith(".weight")},
        {name.removesuffix(".ids"): own for name, own in state.items() if name.endswith(".ids")},
    )


def scorer_of(
    train_state: TrainState, parts: Parts, schema: Schema, config: TablesConfig, precision: Precision, file: Path
) -> Scorer:
    """A scorer on CPU whose tables are written to `file`, of a model and its parts; it takes the dense part over."""
    write_tables(parts.tables, schema, config, precision, file)
    tables = ServedTables(schema, config, precision, file, parts.ids)
    tables.columns.load_state_dict(train_state.recommender.tables.get_submodule("columns").state_dict())
    return Scorer(tables, train_state.recommender.diffusion.cpu())


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    ((block, _, _),) = local_parts(tensor)
    return block.detach().cpu()
