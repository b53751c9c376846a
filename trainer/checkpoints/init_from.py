"""Starting from the weights of another run, whose job may be another: what of them fits, and taking it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Schema, Table
from asymdiffrec.embeddings.optimizers import STATES
from asymdiffrec.embeddings.state import local_blocks
from asymdiffrec.trainer.build import TrainState, recommender
from asymdiffrec.trainer.checkpoints import state as checkpoint
from asymdiffrec.trainer.checkpoints.blocks import Block
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import Run

NUMBERS = "tables.concat.numeric."
"""Where the model has the embeddings of numbers: those of all fields, one after the other"""
NUMBER_PARTS = ("direction", "bias")

HASHED_ALIKE = ("values", "hash")
"""What of two fields must be equal for an id to have a row of the same meaning"""


@dataclass(frozen=True)
class Piece:
    """A table, the embedding of a number, or another parameter, of one job or of both."""

    kind: Literal["table", "number", "dense"]
    name: str
    outcome: Literal["taken", "new", "left"]
    note: str = ""
    before: int = 0
    """Rows of the table, or first column of the number, in the other run"""
    after: int = 0
    """The same in the new one"""
    spread: bool = False
    """Each new row begins as the row that its ids had"""
    columns: int = 0
    """Of a number"""


@dataclass(frozen=True)
class Start:
    """What a job takes of another run's checkpoint."""

    run: Run
    checkpoints: Checkpoints
    step: int
    pieces: list[Piece]

    def document(self) -> dict[str, Any]:
        return {"run": str(self.run.path), "step": self.step, "pieces": [asdict(piece) for piece in self.pieces]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Start:
        """What `document` gave."""
        run = Run(Path(document["run"]))
        return cls(run, _checkpoints(run), document["step"], [Piece(**piece) for piece in document["pieces"]])


def _checkpoints(run: Run) -> Checkpoints:
    return Checkpoints(run.checkpoints(run.job()))


def start_from(run: Run, job: Job, schema: Schema) -> Start:
    """What a job's model takes of the best step of a run; nothing is allocated but the dense part, nothing is read.

    A table is matched by its name, and taken where its columns are as many and its ids mean the same. Other numbers of
    rows: rows that are ids are added or cut; where ids are hashed to rows each new row begins as the one that its ids
    had before, so that a table with a multiple of the rows gives every id what it had. Tables with managed collision
    keep their ids, and are taken with as many rows. A number is matched by its field, all else by name and shape.

    Raises InputError where the run has no checkpoint, or none of it fits.
    """
    checkpoints, before = _checkpoints(run), run.job()
    step = checkpoints.best()
    if step is None:
        raise InputError(f"{run.path}: no checkpoint to start from")
    sizes = checkpoints.sizes(step)
    model = recommender(job, schema, torch.device("cpu"))
    dense = {
        name: list(weight.shape)
        for name, weight in model.named_parameters()
        if weight.device.type != "meta"  # as tables are
    }
    stored = {name.removeprefix("dense."): size for name, size in sizes.items() if name.startswith("dense.")}
    pieces = [
        *_tables(before, job, sizes),
        *_numbers(before.to_schema(run.statistics()), before, schema, job),
        *_dense(stored, dense),
    ]
    if not any(piece.outcome == "taken" for piece in pieces):
        raise InputError(f"{run.path}: nothing of it fits this job")
    return Start(run, checkpoints, step, pieces)


def _tables(before: Job, job: Job, sizes: Mapping[str, Sequence[int]]) -> Iterator[Piece]:
    old, new = before.to_schema().tables, job.to_schema().tables
    for name, field in new.items():
        if name not in old:
            yield Piece("table", name, "new", "the other run has none of that name")
        elif why := _unlike(name, old[name], field, before, job, sizes):
            yield Piece("table", name, "new", why)
        else:
            rows, more = old[name].num_embeddings, field.num_embeddings - old[name].num_embeddings
            if more and field.hash:
                note = f"{field.num_embeddings:,} rows for {rows:,}: each begins as the row that its ids had"
            else:
                note = f"rows {'added' if more > 0 else 'cut'}: {abs(more):,}" if more else ""
            yield Piece("table", name, "taken", note, rows, field.num_embeddings, spread=bool(more) and field.hash)
    for name in old.keys() - new.keys():
        yield Piece("table", name, "left", "this job has none of that name")


def _unlike(
    name: str,
    old: Table,
    new: Table,
    before: Job,
    job: Job,
    sizes: Mapping[str, Sequence[int]],
) -> str:
    """Why a table cannot be taken; empty where it can."""
    columns = sizes[f"tables.{name}.weight"][1], new.embedding_dim or job.tables.embedding_dim
    if columns[0] != columns[1]:
        return f"{columns[1]} columns, {columns[0]} in the other run"
    for key in HASHED_ALIKE:
        values = getattr(old, key), getattr(new, key)
        if values[0] != values[1]:
            return f"{key}: {values[1]}, {values[0]} in the other run: its ids are in other rows"
    managed = [name in one.tables.managed_tables for one in (before, job)]
    if managed[0] != managed[1]:
        return "its collision is managed in one of the two alone: its ids are in other rows"
    if managed[0] and old.num_embeddings != new.num_embeddings:
        return f"managed, with {new.num_embeddings:,} rows, {old.num_embeddings:,} in the other run: other ids"
    if managed[0] and (before.tables.managed.eviction, before.tables.managed.admit_after > 1) != (
        job.tables.managed.eviction,
        job.tables.managed.admit_after > 1,
    ):
        return "managed, with another eviction or admission"
    return ""


def _numbers(old: Schema, before: Job, new: Schema, job: Job) -> Iterator[Piece]:
    places = _columns_of_numbers(old, before), _columns_of_numbers(new, job)
    for name, (first, columns) in places[1].items():
        if name not in places[0]:
            yield Piece("number", name, "new", "the other run has none of that name")
        elif places[0][name][1] != columns:
            yield Piece("number", name, "new", f"{columns} columns, {places[0][name][1]} in the other run")
        elif old.numeric[name].transform != new.numeric[name].transform:
            yield Piece("number", name, "new", f"transform: {new.numeric[name].transform}, another in the other run")
        else:
            yield Piece("number", name, "taken", before=places[0][name][0], after=first, columns=columns)
    for name in places[0].keys() - places[1].keys():
        yield Piece("number", name, "left", "this job has none of that name")


def _columns_of_numbers(schema: Schema, job: Job) -> dict[str, tuple[int, int]]:
    """The first column of each number among those of all, and how many it has."""
    found, first = {}, 0
    for name, field in schema.numeric.items():
        columns = field.embedding_dim or job.tables.embedding_dim
        found[name] = first, columns
        first += columns
    return found


def _dense(old: Mapping[str, Sequence[int]], new: Mapping[str, Sequence[int]]) -> Iterator[Piece]:
    for name, size in new.items():
        if name.startswith(NUMBERS):
            continue
        if name not in old:
            yield Piece("dense", name, "new", "the other run has none of that name")
        elif list(old[name]) != list(size):
            yield Piece("dense", name, "new", f"{_times(size)}, {_times(old[name])} in the other run")
        else:
            yield Piece("dense", name, "taken")
    for name in old:
        if name not in new and not name.startswith(NUMBERS):
            yield Piece("dense", name, "left", "this job has none of that name")


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def take(start: Start, train_state: TrainState) -> None:
    """Fill a trainee with the pieces that are taken; a collective call. Optimizers begin anew.

    Raises CheckpointError where the checkpoint is damaged or cannot be read.
    """
    if damage := start.checkpoints.damage(start.step):
        raise CheckpointError(damage)
    live, taken = checkpoint.state(train_state), [piece for piece in start.pieces if piece.outcome == "taken"]
    start.checkpoints.read(start.step, [block for piece in taken for block in _blocks(piece, train_state, live)])
    # One after the other: what is read of such a table is held beside it.
    for piece in taken:
        if piece.spread:
            _spread(piece, start, live["tables"][f"{piece.name}.weight"])


def _blocks(piece: Piece, train_state: TrainState, live: Mapping[str, Mapping[str, torch.Tensor]]) -> Iterator[Block]:
    """What is read straight into the live tensors of a piece."""
    if piece.kind == "dense":
        weight = live["dense"][piece.name]
        yield Block(f"dense.{piece.name}", (0,) * weight.dim(), weight)
    elif piece.kind == "number":
        for part in NUMBER_PARTS:
            key = f"{NUMBERS}{part}"
            yield Block(f"dense.{key}", (piece.before,), live["dense"][key].narrow(0, piece.after, piece.columns))
    elif not piece.spread:
        states = STATES[train_state.job.tables.optimizer.name]
        for key, tensor in live["tables"].items():
            table, name = key.rsplit(".", 1)
            if table == piece.name and name not in states:
                yield from _rows(f"tables.{key}", tensor, piece)


def _rows(key: str, tensor: torch.Tensor, piece: Piece) -> Iterator[Block]:
    """What this rank holds of a tensor of a table, but for rows that the other run does not have."""
    if tensor.dim() == 1:  # a managed table's count of steps
        yield Block(key, (0,), tensor)
        return
    for block, row, column in local_blocks(tensor):
        rows = min(len(block), piece.before - row) if key.endswith(".weight") else len(block)
        if rows > 0:
            yield Block(key, (row, column), block[:rows])


def _spread(piece: Piece, start: Start, weight: torch.Tensor) -> None:
    """Fill rows of a hashed table from those that their ids had: floor(h R' / 2^64) was floor(h R / 2^64)."""
    blocks, copies = [], []
    for block, row, column in local_blocks(weight):
        source = source_rows(torch.arange(row, row + len(block)), piece.before, piece.after)
        if not len(source):
            continue
        first, last = int(source[0]), int(source[-1])
        read = torch.empty(last + 1 - first, block.shape[1], dtype=block.dtype)
        blocks.append(Block(f"tables.{piece.name}.weight", (first, column), read))
        copies.append((block, source - first, read))
    start.checkpoints.read(start.step, blocks)
    with torch.no_grad():
        for block, source, read in copies:
            block.copy_(read[source])


def source_rows(rows: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """The rows, of `before`, that hold the ids at the middle of `rows` [R] int64, of `after`:
    floor((r + 1/2) before / after)."""
    return ((2 * rows + 1).double() * before / (2 * after)).long()
