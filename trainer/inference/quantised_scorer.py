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
    """All tensors that a `Scorer` is rebuilt from."""

    dense: dict[str, torch.Tensor]
    """The weights besides the tables, by their names in a `Scorer`"""
    tables: dict[str, torch.Tensor]
    """The weights [num_embeddings, D] of each table, on CPU"""
    ids: dict[str, torch.Tensor]
    """The ids of each managed table, on CPU"""


def model_weights(train_state: TrainState) -> ModelWeights:
    """Return the weights of a model whose tables are all on this process, as `restore_run` builds it."""
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
    """Return a scorer on CPU whose tables have the given precision and are mapped from `file`, which is written.

    The scorer takes over the dense part of `train_state`, which is moved to the CPU.
    """
    write_tables(weights.tables, schema, config, precision, file)
    tables = ServedTables(schema, config, precision, file, weights.ids)
    tables.concat.load_state_dict(train_state.recommender.tables.get_submodule("concat").state_dict())
    return Scorer(tables, train_state.recommender.diffusion.cpu())


def _only_block(tensor: torch.Tensor) -> torch.Tensor:
    """Return the only local block of a sharded tensor, on CPU; with one process, each tensor is one block."""
    ((block, _, _),) = local_blocks(tensor)
    return block.detach().cpu()
