"""Measure speed and memory of training on one GPU, one section per run.

python -m benchmarks.gpu.throughput turns|capacity|parquet|optimizers --json FILE --traces FOLDER

The model has 26 fp32 tables with embedding_dim 128 and Adagrad, an MLP of 1024-512-256-64 and a head of 32. The dense
part runs in bf16 and is compiled. A step has 65,536 samples. FILE is written after each result, so a section that is
stopped keeps its earlier results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.train_state import worker_device
from benchmarks.gpu.criteo import CriteoClicks, criteo_clicks
from benchmarks.gpu.from_parquet import from_parquet
from benchmarks.gpu.outputs import Failure, Output, write
from benchmarks.gpu.turns import capacity, optimizers, turns

Section = Callable[[CriteoClicks, bool, Path], Iterator[Output]]
SECTIONS: dict[str, tuple[Section, int]] = {
    "turns": (turns, 3_000_000),
    "capacity": (capacity, 20_000_000),
    "parquet": (from_parquet, 3_000_000),
    "optimizers": (optimizers, 3_000_000),
}
"""Sections: function, and largest num_embeddings of a table. Tables and optimizer state take 18 GB, or 96 GB for
`capacity`"""


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--traces", type=Path, required=True, help="folder for traces")
    parser.add_argument("--device-file", help="speed of the GPU, a file from `plan --calibrate`")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if torch finds a GPU")
    parser.add_argument("--quick", action="store_true", help="run a small version, to check that the program works")
    options = parser.parse_args()
    silence_torchrec_warnings()
    on_gpu = options.device == "cuda" if options.device else torch.cuda.is_available()
    section, rows = SECTIONS[options.section]
    outputs: list[Output] = []
    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=on_gpu), one_host=True):
        clicks = criteo_clicks(rows, options.quick, options.device_file, worker_device())
        for output in section(clicks, options.quick, options.traces):
            outputs.append(output)
            write(options.json, outputs)
            print(output, flush=True)
    if any(isinstance(output, Failure) for output in outputs):
        sys.exit(1)


if __name__ == "__main__":
    main()
