"""Read parts of a checkpoint's tensors, without the rest of the checkpoint, into tensors of any layout."""

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
    """A part of the stored tensor `name`: starts at index `first`, has the shape of `into`, and is read into `into`."""

    name: str
    first: tuple[int, ...]
    into: torch.Tensor


class BlockPlanner(LoadPlanner):
    """A planner for `torch.distributed.checkpoint.load` that reads the blocks of this rank and converts dtypes."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._stored: dict[str, Any] = {}

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the metadata of the stored tensors."""
        assert metadata is not None
        self._stored = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        """Return the parts of files to read for the blocks of this rank."""
        return LoadPlan([item for number in range(len(self._blocks)) for item in self._items(number)])

    def _items(self, number: int) -> list[ReadItem]:
        block = self._blocks[number]
        stored, size = self._stored[block.name], block.into.shape
        assert isinstance(stored, TensorStorageMetadata)
        assert all(start + length <= end for start, length, end in zip(block.first, size, stored.size, strict=True))
        chunk = ChunkStorageMetadata(torch.Size(block.first), size)
        index = MetadataIndex(block.name, block.first, number)
        items = create_read_items_for_chunk_list(block.name, stored, [chunk])
        return [replace(item, dest_index=index) for item in items]

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans of all ranks as they are."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Return the plan of this rank as it is."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Raise AssertionError: torch never calls this, because blocks are parts of tensors."""
        raise AssertionError("BlockPlanner reads tensors only; torch asked for a bytes entry")

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """Return the part of a block's tensor that a read item fills."""
        number = read_item.dest_index.index
        assert number is not None
        into = self._blocks[number].into.detach()
        for dimension, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            into = into.narrow(dimension, start, length)
        return into

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Do nothing: `resolve_tensor` returned a view of the block, so the values are already stored."""
