"""Parts of the tensors of a checkpoint, read without the rest and into memory of any layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list


@dataclass(frozen=True)
class Block:
    """The part of a stored tensor that starts at `first` and is as large as the tensor that it is read into."""

    name: str
    first: tuple[int, ...]
    into: torch.Tensor


class BlockPlanner(LoadPlanner):
    """Has `torch.distributed.checkpoint.load` read blocks; each rank names its own. Types are converted."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._stored: dict[str, Any] = {}

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self._stored = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([item for place in range(len(self._blocks)) for item in self._items(place)])

    def _items(self, place: int) -> list[ReadItem]:
        block = self._blocks[place]
        stored, size = self._stored[block.name], block.into.shape
        assert isinstance(stored, TensorStorageMetadata)
        assert all(start + length <= end for start, length, end in zip(block.first, size, stored.size, strict=True))
        wanted = ChunkStorageMetadata(torch.Size(block.first), size)
        index = MetadataIndex(block.name, block.first, place)
        items = create_read_items_for_chunk_list(block.name, stored, [wanted])
        return [replace(item, dest_index=index) for item in items]

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("blocks are of tensors")

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        place = read_item.dest_index.index
        assert place is not None
        into = self._blocks[place].into.detach()
        for dimension, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            into = into.narrow(dimension, start, length)
        return into

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass
