"""Seconds of a training step of each variant, against the base model on the same batches."""

from __future__ import annotations

import tempfile
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

            def steps_of(variant: str):  # type: ignore[no-untyped-def]
                diffusion = job.diffusion.model_copy(update={"variant": variant})
                train = pipeline(build(job.model_copy(update={"diffusion": diffusion}), schema, worker_device()))
                stream = cycle(batches)
                return lambda: [train.progress(stream) for _ in range(steps)]

            base = steps_of("base")
            for variant in VARIANTS:
                ours, theirs = alternate(steps_of(variant), base, rounds)
                results.append(Result(f"step of {variant}", 1e3 * ours / steps, "ms", "base", 1e3 * theirs / steps))
    show(results, options.json)


if __name__ == "__main__":
    main()
