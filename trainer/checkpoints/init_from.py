"""Start a run from the weights of another run: which weights fit the new job, and how they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Schema, Table
from asymdiffrec.embeddings.optimizers import STATES
from asymdiffrec.embeddings.state import local_blocks
from asymdiffrec.trainer.checkpoints import tensors as checkpoint
from asymdiffrec.trainer.checkpoints.blocks import Block
from asymdiffrec.trainer.checkpoints.init_numeric import NUMERIC, CurveChange, CurveReader, curves
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import Run
from asymdiffrec.trainer.train_state import TrainState, build_recommender

ID_KEYS = ("values", "hash")
"""Keys of a table that must be equal in both jobs: otherwise an id would get the row of another id"""

ONLY_NEW, ONLY_OLD = "the other run has no such name", "this job has no such name"


@dataclass(frozen=True)
class RowChange:
    """Number of rows of a table in the other run (`old`) and in the new run (`new`)."""

    old: int
    new: int
    is_rehashed: bool
    """True if ids are hashed to rows and the numbers differ: each new row starts as a copy of the old row of its ids"""


@dataclass(frozen=True)
class InitPart:
    """A part of the model of one run or both: a table, the curve of a numeric field, or another parameter."""

    kind: Literal["table", "numeric", "dense"]
    name: str
    outcome: Literal["taken", "new", "left out"]
    """taken: loaded from the other run. new: initialised as usual, because the other run has no part that fits. left
    out: only the other run has the part."""
    note: str = ""
    rows: RowChange | None = None
    """Numbers of rows, for a table that is taken"""
    curve: CurveChange | None = None
    """Change of the curve, for a numeric field that is taken"""


@dataclass(frozen=True)
class InitPlan:
    """The parts that a job takes from a checkpoint of another run."""

    run: Path
    step: int
    parts: list[InitPart]

    @property
    def taken(self) -> list[InitPart]:
        """The parts that are taken from the other run."""
        return [part for part in self.parts if part.outcome == "taken"]


def plan_init(run: Run, job: Job, schema: Schema) -> InitPlan:
    """Plan which weights a job's model takes from the best step of another run. Reads no weights, allocates no tables.

    - A table is matched by name, and taken if its width is the same and its ids mean the same. If the number of rows
      differs and ids are row numbers, rows are added or cut. If ids are hashed to rows, each new row starts as a copy
      of the old row of its ids. If the new number of rows is a multiple of the old number, every id keeps its weights.
      A table with collision: managed keeps its ids, and is taken if its number of rows is the same.
    - The curve of a numeric field is matched by the name of the field, and taken if its width and transform are the
      same. If statistics or knots differ, the function is kept, see `CurveChange`.
    - Every other parameter is matched by name and shape.

    Raises InputError if the run has no checkpoint, or if no part of it fits.
    """
    old_job = run.job()
    checkpoints = Checkpoints(run.checkpoints(old_job))
    step = checkpoints.best()
    if step is None:
        raise InputError(f"{run.path}: no checkpoint to start from")
    sizes = checkpoints.sizes(step)
    model = build_recommender(job, schema, torch.device("cpu"))
    dense = {
        name: list(weight.shape)
        for name, weight in model.named_parameters()
        if weight.device.type != "meta"  # tables are on meta
    }
    old_dense = {name.removeprefix("dense."): size for name, size in sizes.items() if name.startswith("dense.")}
    parts = [
        *_tables(old_job, job, sizes),
        *_numeric(old_job, old_job.to_schema(run.statistics()), job, schema),
        *_dense(old_dense, dense),
    ]
    plan = InitPlan(run.path, step, parts)
    if not plan.taken:
        raise InputError(f"{run.path}: no table or parameter of this run fits this job")
    return plan


def _tables(old_job: Job, job: Job, sizes: Mapping[str, Sequence[int]]) -> Iterator[InitPart]:
    old_tables, tables = old_job.to_schema().tables, job.to_schema().tables
    for name, table in tables.items():
        if name not in old_tables:
            yield InitPart("table", name, "new", ONLY_NEW)
            continue
        old = old_tables[name]
        if difference := _table_difference(name, old, table, old_job, job, sizes):
            yield InitPart("table", name, "new", difference)
            continue
        added = table.num_embeddings - old.num_embeddings
        rows = RowChange(old.num_embeddings, table.num_embeddings, is_rehashed=bool(added) and table.hash)
        if rows.is_rehashed:
            note = f"{rows.new:,} rows, {rows.old:,} in the other run: each starts as a copy of the old row of its ids"
        else:
            note = f"rows {'added' if added > 0 else 'cut'}: {abs(added):,}" if added else ""
        yield InitPart("table", name, "taken", note, rows=rows)
    for name in old_tables.keys() - tables.keys():
        yield InitPart("table", name, "left out", ONLY_OLD)


def _table_difference(
    name: str, old: Table, new: Table, old_job: Job, job: Job, sizes: Mapping[str, Sequence[int]]
) -> str:
    """Return why a table cannot be taken; "" if it can."""
    old_width, width = sizes[f"tables.{name}.weight"][1], job.tables.width(new)
    if old_width != width:
        return f"embedding_dim: {width}, {old_width} in the other run"
    for key in ID_KEYS:
        old_value, value = getattr(old, key), getattr(new, key)
        if old_value != value:
            return f"{key}: {value}, {old_value} in the other run: ids have other rows"
    was_managed, is_managed = (name in either.tables.managed_tables for either in (old_job, job))
    if was_managed != is_managed:
        return "collision: managed in only one of the two runs: ids have other rows"
    if is_managed and old.num_embeddings != new.num_embeddings:
        return f"collision: managed, with {new.num_embeddings:,} rows, {old.num_embeddings:,} in the other run"
    old_policy, policy = (
        (either.tables.managed.eviction, either.tables.managed.admit_after > 1) for either in (old_job, job)
    )
    if is_managed and old_policy != policy:
        return "collision: managed, with another eviction or admit_after"
    return ""


def _numeric(old_job: Job, old_schema: Schema, job: Job, schema: Schema) -> Iterator[InitPart]:
    old_curves, new_curves = curves(old_schema, old_job), curves(schema, job)
    for name, new in new_curves.items():
        if name not in old_curves:
            yield InitPart("numeric", name, "new", ONLY_NEW)
            continue
        old, transform = old_curves[name], schema.numeric[name].transform
        if old.width != new.width:
            yield InitPart("numeric", name, "new", f"embedding_dim: {new.width}, {old.width} in the other run")
        elif (old_transform := old_schema.numeric[name].transform) != transform:
            yield InitPart("numeric", name, "new", f"transform: {transform}, {old_transform} in the other run")
        else:
            change = CurveChange(old, new)
            yield InitPart("numeric", name, "taken", change.note(), curve=change)
    for name in old_curves.keys() - new_curves.keys():
        yield InitPart("numeric", name, "left out", ONLY_OLD)


def _dense(old: Mapping[str, Sequence[int]], new: Mapping[str, Sequence[int]]) -> Iterator[InitPart]:
    for name, size in new.items():
        if name.startswith(NUMERIC):
            continue
        if name not in old:
            yield InitPart("dense", name, "new", ONLY_NEW)
        elif list(old[name]) != list(size):
            yield InitPart("dense", name, "new", f"shape {_times(size)}, {_times(old[name])} in the other run")
        else:
            yield InitPart("dense", name, "taken")
    for name in old:
        if name not in new and not name.startswith(NUMERIC):
            yield InitPart("dense", name, "left out", ONLY_OLD)


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def load_init(plan: InitPlan, train_state: TrainState) -> None:
    """Load the parts that are taken from the other run. Optimizer states stay as they are. A collective call.

    Raises CheckpointError if the checkpoint is damaged or cannot be read.
    """
    run = Run(plan.run)
    checkpoints = Checkpoints(run.checkpoints(run.job()))
    if damage := checkpoints.damage(plan.step):
        raise CheckpointError(damage)
    live = checkpoint.state(train_state)
    readers = [CurveReader(part.curve) for part in plan.taken if part.curve]
    blocks = [block for part in plan.taken for block in _blocks(part, train_state, live)]
    checkpoints.read(plan.step, blocks + [block for reader in readers for block in reader.blocks()])
    for reader in readers:
        reader.store(live["dense"])
    # One table at a time, so that the old rows of only one table are in memory in addition to the live tables.
    for part in plan.taken:
        if part.rows and part.rows.is_rehashed:
            _fill_rehashed(part.name, part.rows, checkpoints, plan.step, live["tables"][f"{part.name}.weight"])


def _blocks(part: InitPart, train_state: TrainState, live: Mapping[str, Mapping[str, torch.Tensor]]) -> Iterator[Block]:
    """Yield the blocks that are read directly into the live tensors of a part."""
    if part.kind == "dense":
        weight = live["dense"][part.name]
        yield Block(f"dense.{part.name}", (0,) * weight.dim(), weight)
    elif part.rows and not part.rows.is_rehashed:
        optimizer_states = STATES[train_state.job.tables.optimizer.name]
        for key, tensor in live["tables"].items():
            table, name = key.rsplit(".", 1)
            if table == part.name and name not in optimizer_states:
                yield from _local_blocks(f"tables.{key}", tensor, part.rows)


def _local_blocks(key: str, tensor: torch.Tensor, rows: RowChange) -> Iterator[Block]:
    """Yield this rank's blocks of a table's tensor, without rows that the other run does not have."""
    if tensor.dim() == 1:  # the step counter of a managed table
        yield Block(key, (0,), tensor)
        return
    for block, row, column in local_blocks(tensor):
        count = min(len(block), rows.old - row) if key.endswith(".weight") else len(block)
        if count > 0:
            yield Block(key, (row, column), block[:count])


def _fill_rehashed(table: str, rows: RowChange, checkpoints: Checkpoints, step: int, weight: torch.Tensor) -> None:
    """Fill each row of a hashed table with a copy of the old row of its ids.

    An id with hash h has row floor(h R' / 2^64) in the new table of R' rows, and row floor(h R / 2^64) in the old table
    of R rows.
    """
    blocks, copies = [], []
    for block, row, column in local_blocks(weight):
        sources = source_rows(torch.arange(row, row + len(block)), rows.old, rows.new)
        if not len(sources):
            continue
        first, last = int(sources[0]), int(sources[-1])
        old_rows = torch.empty(last + 1 - first, block.shape[1], dtype=block.dtype)
        blocks.append(Block(f"tables.{table}.weight", (first, column), old_rows))
        copies.append((block, sources - first, old_rows))
    checkpoints.read(step, blocks)
    with torch.no_grad():
        for block, sources, old_rows in copies:
            block.copy_(old_rows[sources])


def source_rows(rows: torch.Tensor, old_rows: int, new_rows: int) -> torch.Tensor:
    """Return the old row for each of the new `rows`, both [R] int64: floor((r + 1/2) old_rows / new_rows).

    It is the old row of the hash in the middle of new row r.
    """
    return ((2 * rows + 1).double() * old_rows / (2 * new_rows)).long()
