"""Train FuxiCTR's DNN in a subprocess that uses another Python environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from asymdiffrec.datasets.batching.batch import Batch
from benchmarks._clicks import LEARNING_RATE, Clicks, Steps

PROGRAM = Path(__file__).parent / "peers" / "fuxictr_dnn.py"


def padded_ids(clicks: Clicks, batch: Batch) -> np.ndarray:
    """Return the table row of each id plus 1, and 0 for a missing id, [fields, B] int64."""
    ids = np.zeros((clicks.fields, len(batch)), np.int64)
    present = batch.ids.lengths().numpy().reshape(ids.shape) > 0
    ids[present] = batch.ids.values().numpy() + 1
    return ids


@contextmanager
def fuxictr_dnn(python: Path, clicks: Clicks, batches: Sequence[Batch]) -> Iterator[Steps]:
    """Start the subprocess and yield a function that trains on each batch once.

    Raises OSError if the subprocess does not start.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "batches.npz"
        ids = np.stack([padded_ids(clicks, batch) for batch in batches])
        np.savez(file, ids=ids, label=np.stack([batch.label.numpy() for batch in batches]))
        sizes = {"fields": clicks.names, "rows": clicks.rows, "dim": clicks.dim, "hidden": clicks.hidden}
        arguments = json.dumps({**sizes, "learning_rate": LEARNING_RATE, "batches": str(file)})
        with subprocess.Popen(
            [python, PROGRAM, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            expect(process, "ready")

            def steps() -> None:
                process.stdin.write("\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                expect(process, "done")

            try:
                yield steps
            finally:
                process.stdin.close()


def expect(process: subprocess.Popen[str], word: str) -> None:
    """Read the output of the process until a line equals `word`. Raises OSError if the process ends first."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise OSError(f"{PROGRAM.name} ended with exit status {process.wait()} before it printed {word!r}")
