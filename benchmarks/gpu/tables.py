"""Compare FBGEMM's look-up and update of tables with a reference in fp64, for each optimizer, dtype and kernel.

python -m benchmarks.gpu.tables [--kernels device|uvm] [--device cuda|cpu] [--quick] [--json FILE]

The exit status is 1 if a case differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor

from benchmarks.gpu.table_reference import BETAS, EPS, OPTIMIZERS, RATE, ReferenceTable

FBGEMM_OPTIMIZERS = {
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}
LOCATIONS = {"device": ("DEVICE",), "uvm": ("MANAGED", "MANAGED_CACHING")}
STEPS = 3
TABLE_SIZES, BAGS = (2000, 50, 3), 4096
LIMITS = {"fp32": 2e-5, "fp16": 4e-3}
"""Largest ratio of the norm of the difference to the norm of the reference, by dtype of the table"""


@dataclass(frozen=True)
class Case:
    """A case of the comparison: optimizer, dtype, location and embedding_dim of the tables."""

    optimizer: str
    dtype: str
    location: str
    """Name of an `EmbeddingLocation`: the memory of the rows"""
    dim: int
    weighted: bool


@dataclass(frozen=True)
class Lookups:
    """The ids looked up in one table [L], with the bag and the weight of each id [L]."""

    ids: Tensor
    bags: Tensor
    weights: Tensor


def draw(seed: int, weighted: bool) -> list[Lookups]:
    """Return random look-ups of each table.

    About half of the ids are 0, because FBGEMM uses another kernel for rows with many look-ups. Some bags are empty.
    """
    generator = torch.Generator().manual_seed(seed)
    lookups = []
    for rows in TABLE_SIZES:
        bags = torch.arange(BAGS).repeat_interleave(torch.randint(0, 4, (BAGS,), generator=generator))
        ids = torch.randint(0, rows, bags.shape, generator=generator)
        ids[torch.rand(bags.shape, generator=generator) < 0.5] = 0
        weights = torch.rand(bags.shape, generator=generator) + 0.5 if weighted else torch.ones(bags.shape)
        lookups.append(Lookups(ids, bags, weights))
    return lookups


def fbgemm_tables(case: Case, device: str) -> SplitTableBatchedEmbeddingBagsCodegen:
    """Return FBGEMM's tables of a case."""
    compute = ComputeDevice.CPU if device == "cpu" else ComputeDevice.CUDA
    options: dict[str, Any] = {"cache_load_factor": 0.3} if case.location == "MANAGED_CACHING" else {}
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, case.dim, EmbeddingLocation[case.location], compute) for rows in TABLE_SIZES],
        weights_precision=SparseType[case.dtype.upper()],
        optimizer=FBGEMM_OPTIMIZERS[case.optimizer],
        learning_rate=RATE,
        eps=EPS,
        beta1=BETAS[0],
        beta2=BETAS[1],
        stochastic_rounding=False,
        **options,
    )


def compare(case: Case, device: str) -> dict[str, float]:
    """Return the largest relative differences of pooled vectors and of weights, over STEPS steps."""
    tables = fbgemm_tables(case, device)
    generator = torch.Generator().manual_seed(7)
    references = []
    for weight in tables.split_embedding_weights():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        references.append(ReferenceTable(weight, case.optimizer))
    look_up = 0.0
    for step in range(STEPS):
        lookups = draw(step, case.weighted)
        pooled = tables(*_arguments(lookups, case.weighted, device))
        pairs = list(zip(references, lookups, strict=True))
        expected = [table.look_up(look.ids, look.bags, look.weights, BAGS) for table, look in pairs]
        look_up = max(look_up, _difference(pooled.detach(), torch.cat(expected, dim=1)))
        upstream = torch.randn(pooled.shape, generator=generator)
        pooled.backward(upstream.to(device))
        parts = upstream.double().split(case.dim, dim=1)
        for (table, look), part in zip(pairs, parts, strict=True):
            table.update(look.ids, look.bags, look.weights, part)
    if case.location == "MANAGED_CACHING":
        tables.flush()
    weights = zip(tables.split_embedding_weights(), references, strict=True)
    return {"look_up": look_up, "weights": max(_difference(weight, table.weight) for weight, table in weights)}


def _arguments(lookups: list[Lookups], weighted: bool, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return FBGEMM's arguments: ids, offsets of the bags, and weights, concatenated over all tables."""
    lengths = torch.cat([torch.bincount(look.bags, minlength=BAGS) for look in lookups])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    weights = torch.cat([look.weights for look in lookups]).to(device) if weighted else None
    return torch.cat([look.ids for look in lookups]).to(device), offsets.to(device), weights


def _difference(values: Tensor, expected: Tensor) -> float:
    return float((values.double().cpu() - expected).norm() / expected.norm())


def cases(kernels: str, device: str, quick: bool) -> list[Case]:
    """Return the cases for a device. FBGEMM has no Adam on the CPU."""
    names = [name for name in OPTIMIZERS if device == "cuda" or name != "adam"]
    locations = ("HOST",) if device == "cpu" else LOCATIONS[kernels]
    dtypes, dims = (["fp32"], [16]) if quick else (["fp32", "fp16"], [16, 128])
    return [Case(*values) for values in product(names, dtypes, locations, dims, (False, True))]


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kernels", choices=LOCATIONS, default="device", help="GPU memory or managed memory")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="run fewer cases")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    results = []
    for case in cases(options.kernels, options.device, options.quick):
        result: dict[str, Any] = asdict(case)
        try:
            result |= compare(case, options.device)
            limit = LIMITS[case.dtype]
            result["holds"] = result["look_up"] <= limit and result["weights"] <= limit  # false for a NaN
        except Exception as error:  # reported as a case that does not hold; the other cases still run
            result |= {"holds": False, "error": f"{type(error).__name__}: {error}"[:500]}
            traceback.print_exc(limit=-2)
        results.append(result)
        if not result["holds"]:
            print(f"the case differs from the reference: {result}", flush=True)
    equal = sum(result["holds"] for result in results)
    if options.json:
        options.json.write_text(json.dumps({"equal": equal, "cases": results}, indent=1))
    largest = {key: max(result.get(key, 0.0) for result in results) for key in ("look_up", "weights")}
    summary = f"{equal} of {len(results)} cases are within the limits on {options.device}"
    print(f"{summary}; largest relative differences: {json.dumps(largest)}")
    sys.exit(equal < len(results))


if __name__ == "__main__":
    main()
