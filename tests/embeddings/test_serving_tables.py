"""Served tables compared with a plain implementation of their quantisation."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import id_range
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import local_cluster
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.problem import Problem
from asymdiffrec.embeddings.serving_tables import ServedTables, write_tables
from asymdiffrec.embeddings.sharding import shard
from asymdiffrec.embeddings.state import local_blocks, lookup_state, table_weights
from asymdiffrec.embeddings.tables import FieldTables

ROWS, SAMPLES, CPU = 128, 64, torch.device("cpu")


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Initialise a process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Model(nn.Module):
    def __init__(self, tables: FieldTables) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, batch: Batch) -> torch.Tensor:
        clean, _ = self.tables(batch)
        return clean


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.stack([torch.randint(0, most + 1, (SAMPLES,), generator=draw) for most in (1, 4, 3)])
    highest = (ROWS, ROWS, id_range(ROWS))
    ids = [
        torch.randint(0, high, (int(length.sum()),), generator=draw)
        for length, high in zip(lengths, highest, strict=True)
    ]
    return Batch(
        ids=KeyedJaggedTensor(["user", "history", "tags"], torch.cat(ids), lengths=lengths.flatten()),
        numeric=torch.randn(SAMPLES, 1, generator=draw),
        missing=torch.cat([lengths.T == 0, torch.zeros(SAMPLES, 1, dtype=torch.bool)], dim=1),
        label=torch.zeros(SAMPLES),
        weight=torch.ones(SAMPLES),
        user=torch.zeros(SAMPLES, dtype=torch.int64),
        sample_index=torch.arange(SAMPLES),
        num_samples=SAMPLES,
    )


def reference(weight: torch.Tensor, levels: int | None) -> torch.Tensor:
    """Round each row to `levels` steps from its smallest value, both in fp16; round to fp16 if levels is None."""
    if levels is None:
        return weight.half().float()
    smallest = weight.amin(1, keepdim=True).half().float()
    step = ((weight.amax(1, keepdim=True) - smallest) / (levels - 1)).half().float()
    return smallest + step * ((weight - smallest) / step).round().clamp(0, levels - 1)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("precision", "levels", "bits"), [("fp16", None, 16), ("int8", 256, 8), ("int4", 16, 4)])
def test_sums_are_sums_of_rounded_rows(one_rank, precision, levels, bits, dtype, tmp_path) -> None:
    """The fields cover a table that two fields share, a managed table, and a numeric field."""
    fields = {
        "user": {"type": "id", "num_embeddings": ROWS, "embedding_dim": 20},
        "history": {"type": "id_list", "num_embeddings": ROWS, "table": "user", "embedding_dim": 20},
        "tags": {"type": "id_list", "num_embeddings": ROWS, "pooling": "sum"},
        "age": {"type": "number"},
    }
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
    config = TablesConfig.model_validate(
        {"per_table": {"tags": {"collision": "managed"}}, "managed": {"admit_after": 1}, "dtype": dtype}
    )
    model = Model(FieldTables(schema, config))
    cluster, dense = local_cluster("cpu", None, 1), DenseWork(0, 0.0, 0.0, 0, 0, 0)
    plan = solve(Problem(model, schema, config, cluster, SAMPLES, dense))
    sharded = shard(model, config, plan.plan, CPU, seed=1)
    sharded(batch())  # ids of tags get rows
    sharded.eval()
    weights = {table: next(local_blocks(weight))[0] for table, weight in table_weights(sharded).items()}
    originals = {table: weight.clone() for table, weight in weights.items()}
    with torch.no_grad():
        as_trained = sharded(batch())
        for weight in weights.values():
            weight.copy_(reference(weight.float(), levels))
        expected = sharded(batch())
        for table, weight in weights.items():
            weight.copy_(originals[table])

        state = {name: next(local_blocks(tensor))[0] for name, tensor in lookup_state(sharded).items()}
        ids = {"tags": state.pop("tags.ids")}
        tables = {name.removesuffix(".weight"): weight for name, weight in state.items()}
        write_tables(tables, schema, config, precision, tmp_path / "tables.bin")
        served = ServedTables(schema, config, precision, tmp_path / "tables.bin", ids)
        served.concat.load_state_dict(model.tables.concat.state_dict())
        clean, _ = served(batch())
    tolerance = {"fp32": 1e-6, "fp16": 2e-4}[dtype]  # the reference is written into the table, in its dtype
    torch.testing.assert_close(clean, expected, rtol=0, atol=tolerance)
    assert levels is None or not torch.equal(clean, as_trained)
    elements = sum(weight.numel() for weight in weights.values())
    min_bytes = elements * bits // 8 + (0 if levels is None else 4 * ROWS * len(weights))
    assert min_bytes <= (tmp_path / "tables.bin").stat().st_size < min_bytes + 128 * len(weights)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.serving_tables import ServedTables
from asymdiffrec.embeddings.config import TablesConfig
from types import SimpleNamespace
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

file, rows = Path(sys.argv[1]), int(sys.argv[2])
data = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (data + (64 << 20),) * 2)
try:
    np.fromfile(file, np.uint8)
except MemoryError:
    print("too large to be read")
fields = {"item": {"type": "id", "num_embeddings": rows, "hash": False}}
schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
tables = ServedTables(schema, TablesConfig(embedding_dim=64), "fp32", file)
ids = KeyedJaggedTensor(["item"], torch.tensor([0, rows - 1]), lengths=torch.tensor([1, 1]))
clean, _ = tables(SimpleNamespace(ids=ids, numeric=torch.zeros(2, 0), missing=torch.zeros(2, 1, dtype=torch.bool)))
print(clean[:, 0].tolist())
"""


def test_a_table_can_be_larger_than_the_memory_limit_of_the_process(tmp_path: Path) -> None:
    rows, file = 1 << 20, tmp_path / "tables.bin"  # a sparse file of 256 MB, with two rows on disk
    with file.open("wb") as out:
        out.truncate(256 * rows)
        out.write(np.full(64, 3, np.float32).tobytes())
        out.seek(256 * (rows - 1))
        out.write(np.full(64, 5, np.float32).tobytes())
    command = [sys.executable, "-c", LIMITED, str(file), str(rows)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.stdout.splitlines() == ["too large to be read", "[3.0, 5.0]"], ended.stderr


@pytest.mark.parametrize("dim", [24, 32, 128])
def test_int8_tables_take_less_than_a_third_of_fp32_tables(tmp_path: Path, dim: int) -> None:
    fields = {"item": {"type": "id", "num_embeddings": 1000}}
    schema, config = FieldsConfig.model_validate({"fields": fields}).to_schema(), TablesConfig(embedding_dim=dim)
    for precision in ("fp32", "int8"):
        write_tables({"item": torch.randn(1000, dim)}, schema, config, precision, tmp_path / precision)
    sizes = [(tmp_path / precision).stat().st_size for precision in ("int8", "fp32")]
    assert sizes[0] <= 0.3 * sizes[1]
