"""The click log and model of the throughput measurements: tables as large as those of Criteo's terabyte."""

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
"""Distinct values of the 26 categorical columns of Criteo's terabyte click log"""


@dataclass(frozen=True)
class CriteoClicks(Clicks):
    """26 tables, none larger than `rows`. Few ids are frequent, as in click logs: a third of a large table's look-ups
    are distinct."""

    fields: int = len(TABLE_SIZES)
    device_file: str | None = None
    """Figures of the GPU for the planner, as `plan --calibrate` writes them"""

    @property
    def table_sizes(self) -> list[int]:
        """Rows of each field's table"""
        return [min(size, self.rows) for size in TABLE_SIZES]

    @property
    def table_bytes(self) -> int:
        """Bytes of the fp32 tables with Adagrad's state"""
        return 8 * self.dim * sum(self.table_sizes)

    def draw_ids(self, rng: np.random.Generator, size: int, count: int) -> np.ndarray:
        """Return `count` skewed random ids of a table with `size` rows, [count] int64."""
        return (size * rng.random(count) ** 4).astype(np.int64)

    def job(self, method: str = "asymdiff", tables: dict[str, object] | None = None, **settings: object) -> Job:
        """Return the job of the model, planned with `device_file`."""
        job = super().job(method, tables, **settings)
        cluster = job.cluster.model_copy(update={"device": self.device_file})
        return job.model_copy(update={"cluster": cluster})


def criteo_clicks(rows: int, quick: bool, device_file: str | None, device: torch.device) -> CriteoClicks:
    """Return a log whose tables have at most `rows` rows, in bf16 where there is a GPU; a tiny log for a quick run."""
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
