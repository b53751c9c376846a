"""Seconds of a training step: of each variant against the base model, and of settings against the default, on the same
batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import torch.distributed as dist

from asymdiffrec.cluster.group import process_group
from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.datasets.reader import Position, TrainingReader
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.embeddings.quiet import quiet_torchrec
from asymdiffrec.trainer.build import build, worker_device
from asymdiffrec.trainer.job import read_job, read_learned
from asymdiffrec.trainer.pipeline import pipeline
from benchmarks._report import Result, alternate, arguments, show

VARIANTS = ("dropout", "augment", "asymdiff")
SETTINGS = ({"compile": True}, {"precision": "bf16"}, {"clip_norm": 1.0}, {"accumulate": 4})
"""Of the section train, one at a time"""


def main() -> None:
    quiet_torchrec()
    options = arguments(__doc__ or "")
    rows, steps, rounds = (6_000, 1, 1) if options.quick else (200_000, 40, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        prepare_synthetic(folder, rows=rows)
        job = read_job(folder / "job.yaml", ["train.batch_size=4096"])
        schema = job.to_schema(read_learned(job))
        reader = TrainingReader(schema, open_shards(job.location("train")), 0, job.train.batch_size)
        batches = list(islice(reader.batches(Position()), min(steps, reader.steps_per_epoch)))
        results = []
        with process_group(dist.HashStore(), 0, 1, job.cluster, one_node=True):

            def steps_of(variant: str, **settings: object) -> Callable[[], object]:
                diffusion = job.diffusion.model_copy(update={"variant": variant})
                train = job.train.model_copy(update=settings)
                changed = job.model_copy(update={"diffusion": diffusion, "train": train})
                training = pipeline(build(changed, schema, worker_device()))
                stream = cycle(batches)
                return lambda: [training.progress(stream) for _ in range(steps)]

            base, default = steps_of("base"), steps_of("asymdiff")
            for variant in VARIANTS:
                ours, theirs = alternate(steps_of(variant), base, rounds)
                results.append(Result(f"step of {variant}", 1e3 * ours / steps, "ms", "base", 1e3 * theirs / steps))
            for settings in SETTINGS:
                if options.quick and "compile" in settings:
                    continue
                ours, theirs = alternate(steps_of("asymdiff", **settings), default, rounds)
                (what,) = (f"{key}={value}" for key, value in settings.items())
                name = f"step of asymdiff, {what}"
                results.append(Result(name, 1e3 * ours / steps, "ms", "default", 1e3 * theirs / steps))
    show(results, options.json)


if __name__ == "__main__":
    main()
