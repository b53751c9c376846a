"""The click log and the model of the throughput measurements. Tables have the sizes of the Criteo 1TB click log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from asymdiffrec.trainer.job import Job
from benchmarks._clicks import Clicks

TABLE_SIZES = (
    *(45_833_188, 36_746, 17_245, 7_413, 20_243, 3, 7_114, 1_441, 62, 29_275_261, 1_572_176, 345_138, 10),
    *(2_209, 11_267, 128, 4, 974, 14, 48_937_457, 11_316_796, 40_094_537, 452_104, 12_606, 104, 35),
)
"""Number of distinct values in each of the 26 categorical columns of the Criteo 1TB click log"""


@dataclass(frozen=True)
class CriteoClicks(Clicks):
    """A click log with 26 id columns, whose tables have at most `rows` rows.

    As in real click logs, few ids are frequent. The number of distinct ids of a large table is a third of its look-ups.
    """

    fields: int = len(TABLE_SIZES)
    device_file: str | None = None
    """File that `plan --calibrate` wrote: speed of the GPU for the planner; None: the built-in values"""

    @property
    def table_sizes(self) -> list[int]:
        """num_embeddings of each field's table"""
        return [min(size, self.rows) for size in TABLE_SIZES]

    @property
    def table_bytes(self) -> int:
        """Bytes of the fp32 tables and their Adagrad state"""
        return 8 * self.dim * sum(self.table_sizes)

    def draw_ids(self, rng: np.random.Generator, size: int, count: int) -> np.ndarray:
        """Return `count` random ids of a table with `size` rows, [count] int64. Small ids are more frequent."""
        return (size * rng.random(count) ** 4).astype(np.int64)

    def job(self, method: str = "asymdiff", tables: dict[str, object] | None = None, **settings: object) -> Job:
        """Return the job of the model. Its plan uses `device_file`."""
        job = super().job(method, tables, **settings)
        cluster = job.cluster.model_copy(update={"device": self.device_file})
        return job.model_copy(update={"cluster": cluster})


def criteo_clicks(rows: int, quick: bool, device_file: str | None, device: torch.device) -> CriteoClicks:
    """Return the sizes of the log and the model: bf16 on a GPU, fp32 on a CPU; tiny sizes for a quick run."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    if quick:
        small = {"rows": 500, "dim": 16, "batch": 256, "hidden": (32,)}
        return CriteoClicks(**small, device=device, precision=precision, device_file=device_file)  # type: ignore[arg-type]
    return CriteoClicks(
        rows=rows,
        dim=128,
        batch=65_536,
        hidden=(1024, 512, 256),
        device=device,
        precision=precision,
        device_file=device_file,
    )
