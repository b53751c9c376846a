"""Look-ups in tables that are mapped from a file: sums of embeddings, in less memory than the tables take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import to_batch
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.serving_tables import ServedTables, write_tables
from tests.serving.test_batch_prediction import SCHEMA, make_table

PRECISIONS = ["fp32", "fp16", "int8", "int4"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_look_ups_are_sums_of_embeddings(tmp_path: Path, precision: str) -> None:
    config = TablesConfig(embedding_dim=8)
    torch.manual_seed(0)
    weights = {name: torch.randn(9, 8) for name in ("tags", "slot")}
    write_tables(weights, SCHEMA, config, precision, tmp_path / "tables.bin")
    served = ServedTables(SCHEMA, config, precision, tmp_path / "tables.bin")
    rows = decode(make_table(40).select(SCHEMA.columns(labelled=False)), SCHEMA, "", labelled=False)
    batch = to_batch(rows, SCHEMA, 0)
    clean, missing = served(batch)
    assert torch.equal(missing, batch.missing)
    tolerance = {"fp32": 1e-6, "fp16": 1e-2, "int8": 0.05, "int4": 0.6}[precision]
    for index, name in enumerate(("tags", "slot")):
        ids = batch.ids[name]
        sums = torch.segment_reduce(weights[name][ids.values()], "sum", lengths=ids.lengths().long(), initial=0)
        if name == "tags":
            sums = sums / ids.lengths().clamp(min=1)[:, None]
        torch.testing.assert_close(clean[:, 8 * index : 8 * index + 8], sums, atol=tolerance, rtol=0)
    (tmp_path / "tables.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes"):
        ServedTables(SCHEMA, config, precision, tmp_path / "tables.bin")


LOOK_UP_WITH_LIMITED_MEMORY = """
import resource, sys, numpy as np, torch
from pathlib import Path
from asymdiffrec.embeddings.serving_tables import ServedTables
from asymdiffrec.embeddings.config import TablesConfig
from tests.embeddings.test_served_lookups import LARGE
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (48 << 20), used + (48 << 20)))
try:
    np.ones(128 << 20, np.uint8)
    print("the memory limit has no effect")
except MemoryError:
    tables = ServedTables(LARGE, TablesConfig(embedding_dim=64), "fp32", Path(sys.argv[1]))
    out = tables.operator(torch.tensor([499_999, 3]), torch.tensor([0, 1, 2]))
    print(out[0, 0].item(), out[1, 0].item(), tables.touch() >= 0)
"""


LARGE = FieldsConfig.model_validate({"fields": {"big": {"type": "id", "num_embeddings": 500_000}}}).to_schema()
"""One field whose fp32 table takes 128 MB"""


def test_table_may_be_larger_than_the_memory_of_the_process(tmp_path: Path) -> None:
    weight = torch.arange(500_000, dtype=torch.float32)[:, None].repeat(1, 64)
    write_tables({"big": weight}, LARGE, TablesConfig(embedding_dim=64), "fp32", tmp_path / "tables.bin")
    command = [sys.executable, "-c", LOOK_UP_WITH_LIMITED_MEMORY, str(tmp_path / "tables.bin")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.stdout.split() == ["499999.0", "3.0", "True"], result.stderr
