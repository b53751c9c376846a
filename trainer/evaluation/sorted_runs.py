"""Weighted rows in order of (user, score), more of them than memory holds: sorted runs, walked in slices."""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

# `positive` and `negative` are the weights of the positive and of the negative samples of one user and score.
ROW = np.dtype([("user", np.int64), ("score", np.float32), ("positive", np.float64), ("negative", np.float64)])


def starts(*columns: np.ndarray) -> np.ndarray:
    """Where groups start: the places whose value in any of the columns [R] is not that of the place before."""
    changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(np.append(True, changes)[: len(columns[0])])


def merge(rows: np.ndarray) -> np.ndarray:
    """A run: the rows [R] in order of (user, score), those of the same user and score added into one."""
    rows = rows.take(np.argsort(rows["score"]))  # rows[...] is ten times slower on rows of several columns
    rows = rows.take(np.argsort(rows["user"], kind="stable"))
    first = starts(rows["user"], rows["score"])
    run = rows.take(first)
    for name in ("positive", "negative"):
        run[name] = np.add.reduceat(rows[name], first)
    return run


def spill(run: np.ndarray, folder: Path) -> np.ndarray:
    """The same run, on disk: in a file without a name, so that its space is free once the array is gone or the process
    has ended, however it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(run.data)
        return np.memmap(file, ROW, "r", shape=run.shape)


def slices(runs: Sequence[np.ndarray], limit: int) -> Iterator[np.ndarray]:
    """The merge of all runs, in consecutive slices, none of them empty, each made of at most `limit` rows.

    Regular sampling (Shi and Schaeffer, 1992): every stride-th row of each of the n runs is a sample, and every n-th
    sample, in order, starts a slice. A run with k samples in a slice has less than (k + 1) * stride rows there, so that
    all runs together have less than 2n * stride. Holds while limit >= 2n.
    """
    stride = max(1, limit // (2 * len(runs)))
    samples = np.concatenate([run[::stride] for run in runs])
    samples["positive"] = samples["negative"] = -1  # comes before all rows of the same user and score
    splitters = np.sort(samples)[:: len(runs)]  # all distinct, for no run holds a user and score twice
    cuts = [np.append(np.searchsorted(run, splitters), len(run)) for run in runs]
    for start, stop in pairwise(zip(*cuts, strict=True)):
        parts = [run[i:j] for run, i, j in zip(runs, start, stop, strict=True) if i < j]
        yield merge(np.concatenate(parts)) if len(parts) > 1 else parts[0]
