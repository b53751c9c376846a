"""The weights of a restored model, and a scorer whose embedding tables are quantised as in an export."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.serving_tables import Precision, ServedTables, write_tables
from asymdiffrec.embeddings.state import local_blocks, lookup_state
from asymdiffrec.serving.scorer import Scorer
from asymdiffrec.trainer.train_state import TrainState


class ModelWeights(NamedTuple):
    """All tensors that are needed to rebuild a `Scorer`."""

    dense: dict[str, torch.Tensor]
    """The weights of the dense part, by their names in a `Scorer`"""
    tables: dict[str, torch.Tensor]
    """The weights [num_embeddings, D] of each table, on CPU"""
    ids: dict[str, torch.Tensor]
    """The ids of each managed table, on CPU"""


def model_weights(train_state: TrainState) -> ModelWeights:
    """Return the weights of a model with all tables in this process, for example from `restore_run`."""
    state = {name: _only_block(tensor) for name, tensor in lookup_state(train_state.model).items()}
    recommender = train_state.recommender
    dense = {f"diffusion.{name}": weight for name, weight in recommender.diffusion.state_dict().items()}
    columns = recommender.tables.get_submodule("concat").state_dict()
    return ModelWeights(
        dense | {f"tables.concat.{name}": weight for name, weight in columns.items()},
        {name.removesuffix(".weight"): weight for name, weight in state.items() if name.endswith(".weight")},
        {name.removesuffix(".ids"): ids for name, ids in state.items() if name.endswith(".ids")},
    )


def quantised_scorer(
    train_state: TrainState,
    weights: ModelWeights,
    schema: Schema,
    config: TablesConfig,
    precision: Precision,
    file: Path,
) -> Scorer:
    """Write the tables to `file` in `precision`, and return a scorer on CPU that maps them from the file.

    The scorer uses the dense part of `train_state`, which is moved to the CPU.
    """
    write_tables(weights.tables, schema, config, precision, file)
    tables = ServedTables(schema, config, precision, file, weights.ids)
    tables.concat.load_state_dict(train_state.recommender.tables.get_submodule("concat").state_dict())
    return Scorer(tables, train_state.recommender.diffusion.cpu())


def _only_block(tensor: torch.Tensor) -> torch.Tensor:
    """Return the only local block of a sharded tensor, on CPU; with one process, each tensor has one block."""
    ((block, _, _),) = local_blocks(tensor)
    return block.detach().cpu()
