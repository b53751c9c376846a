"""External sort of weighted rows by (user, score): sorted runs on disk, merged in slices.

DuckDB's external sort could replace `spill` and `slices`. It is not used because its temporary files have names and
remain on disk when the process is killed, and because its parallel sums depend on the order of the threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

ROW = np.dtype([("user", np.int64), ("score", np.float32), ("positive", np.float64), ("negative", np.float64)])
"""`positive` and `negative` are the summed weights of the positive and of the negative samples"""


def starts(*columns: np.ndarray) -> np.ndarray:
    """Return the indices [G] at which groups start: rows in which a column [R] differs from the previous row.

    >>> starts(np.array([3, 3, 5, 5, 5])).tolist()
    [0, 2]
    """
    changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(np.append(True, changes)[: len(columns[0])])


def merge(rows: np.ndarray) -> np.ndarray:
    """Return a run: the rows [R] sorted by (user, score), with rows of equal user and score summed into one row."""
    rows = rows.take(np.argsort(rows["score"]))  # rows[...] is ten times slower on a structured dtype
    rows = rows.take(np.argsort(rows["user"], kind="stable"))
    first = starts(rows["user"], rows["score"])
    run = rows.take(first)
    for name in ("positive", "negative"):
        run[name] = np.add.reduceat(rows[name], first)
    return run


def spill(run: np.ndarray, folder: Path) -> np.ndarray:
    """Write a run to disk and return it as a memory-mapped array.

    The file has no name: the system frees its space when the array is deleted or the process ends, even if the process
    is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(run.data)
        return np.memmap(file, ROW, "r", shape=run.shape)


def slices(runs: Sequence[np.ndarray], limit: int) -> Iterator[np.ndarray]:
    """Yield the merge of n runs in consecutive slices. A slice merges 1 to `limit` rows; `limit` is at least 2n.

    Regular sampling (Shi and Schaeffer, 1992): every stride-th row of each run is a sample. The samples of all runs are
    sorted, and every n-th sample starts a slice. A run with k samples in a slice has less than (k + 1) * stride rows in
    the slice, so all runs together have less than 2n * stride rows in it.
    """
    stride = max(1, limit // (2 * len(runs)))
    samples = np.concatenate([run[::stride] for run in runs])
    samples["positive"] = samples["negative"] = -1  # sorts before all rows of the same user and score
    splitters = np.sort(samples)[:: len(runs)]  # distinct: no run contains a user and score twice
    cuts = [np.append(np.searchsorted(run, splitters), len(run)) for run in runs]
    for start, stop in pairwise(zip(*cuts, strict=True)):
        parts = [run[i:j] for run, i, j in zip(runs, start, stop, strict=True) if i < j]
        yield merge(np.concatenate(parts)) if len(parts) > 1 else parts[0]
