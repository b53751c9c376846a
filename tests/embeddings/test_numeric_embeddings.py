"""The curves of numeric fields, and their gradients under DDP."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.numeric_embeddings import NumericEmbeddings
from asymdiffrec.embeddings.tables import FieldTables
from asymdiffrec.field_layout import FieldLayout

ID = {"type": "id", "num_embeddings": 5}
KNOTS = {"x": [1.0, 2.0, 4.0, 4.5], "y": [-3.0, 0.0]}


def numeric_parts(tables: FieldTables, numbers: torch.Tensor, missing: torch.Tensor) -> list[torch.Tensor]:
    """Return the embeddings of the numeric fields; the one id field is missing in all samples."""
    tables.ids.to_empty(device="cpu")
    rows = len(numbers)
    ids = KeyedJaggedTensor(
        keys=["a"], values=torch.tensor([], dtype=torch.int64), lengths=torch.zeros(rows, dtype=torch.int64)
    )
    all_missing = torch.cat([torch.ones(rows, 1, dtype=torch.bool), missing], dim=1)
    clean, returned = tables(SimpleNamespace(ids=ids, numeric=numbers, missing=all_missing))
    assert torch.equal(returned, all_missing)
    assert not clean[:, :16].any()
    return list(clean.split(tables.layout.widths, dim=1))[1:]


def tables_of(fields: dict, statistics: Statistics | None = None, **settings) -> FieldTables:
    schema = FieldsConfig.model_validate({"fields": {"a": ID, **fields}}).to_schema(statistics)
    return FieldTables(schema, TablesConfig.model_validate(settings))


def with_knots(numeric: dict) -> Statistics:
    return Statistics.model_validate({"rows": {"train": 9}, "label_rate": 0.5, "numeric": numeric})


def test_a_field_without_knots_is_a_line():
    torch.manual_seed(0)
    tables = tables_of({"x": {"type": "number", "embedding_dim": 3}, "y": {"type": "number"}})
    numeric = tables.concat.numeric
    with torch.no_grad():
        numeric.bias.normal_()
    numbers = torch.randn(6, 2)
    missing = torch.rand(6, 2) < 0.5
    x, y = numeric_parts(tables, numbers.masked_fill(missing, 0.0), missing)
    for embedding, field, columns in ((x, 0, slice(0, 3)), (y, 1, slice(3, 19))):
        expected = numbers[:, field : field + 1] * numeric.direction[columns] + numeric.bias[columns]
        assert torch.equal(embedding, torch.where(missing[:, field : field + 1], 0.0, expected))
    y.sum().backward()
    assert not numeric.direction.grad[:3].any()
    assert torch.equal(numeric.bias.grad[3:], (~missing[:, 1]).sum().float().expand(16))


@pytest.mark.parametrize("knots", [[], [2.0]])
def test_a_field_that_never_varies_is_a_line_beside_one_that_is_a_curve(knots):
    tables = tables_of(
        {"x": {"type": "number"}, "y": {"type": "number"}},
        with_knots({"x": {"knots": knots}, "y": {"knots": KNOTS["y"]}}),
    )
    with torch.no_grad():
        tables.concat.numeric.bins.fill_(1)
        x, y = numeric_parts(tables, torch.full((3, 2), 9.0), torch.zeros(3, 2, dtype=torch.bool))
    line = 9 * tables.concat.numeric.direction
    assert torch.equal(x, line[:16].expand(3, 16))
    torch.testing.assert_close(y, (line[16:] + 1).expand(3, 16))


@pytest.mark.parametrize("dims", [{}, {"x": 3}])
def test_a_field_with_knots_is_a_curve_that_starts_as_a_line(dims):
    fields = {name: {"type": "number", "embedding_dim": dims.get(name)} for name in ("x", "y")}
    statistics = with_knots({"x": {"mean": 1.0, "std": 2.0, "knots": KNOTS["x"]}, "y": {"knots": KNOTS["y"]}})
    torch.manual_seed(0)
    tables = tables_of(fields, statistics)
    numeric = tables.concat.numeric
    assert numeric.bins.shape == (2, 3, 16)
    numbers, missing = torch.randn(50, 2) * 3, torch.zeros(50, 2, dtype=torch.bool)
    line = numeric_parts(tables, numbers, missing)
    for (field, part), direction in zip(
        enumerate(line), numeric.direction.split(tables.layout.widths[1:]), strict=True
    ):
        assert torch.equal(part, numbers[:, field : field + 1] * direction), "it starts as a line"
    with torch.no_grad():
        numeric.bins.normal_()
        curve = numeric_parts(tables, numbers, missing)
    scaled = {"x": (np.array(KNOTS["x"]) - 1) / 2, "y": np.array(KNOTS["y"])}
    for field, (name, knots) in enumerate(scaled.items()):
        bins = numeric.bins[field, : len(knots) - 1, : tables.layout.widths[1 + field]].detach().numpy()
        heights = np.concatenate([np.zeros((1, bins.shape[1])), bins.cumsum(0)])
        expected = np.stack([np.interp(numbers[:, field], knots, height) for height in heights.T], 1)
        assert np.allclose((curve[field] - line[field]).detach(), expected, atol=1e-5), name


def test_initial_weights_depend_on_the_seed_of_torch():
    directions = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tables = tables_of({f"x{n}": {"type": "number"} for n in range(500)}, init_std=0.2)
        directions.append(tables.concat.numeric.direction.detach())
    assert torch.equal(directions[0], directions[1])
    assert not torch.equal(directions[0], directions[2])
    assert directions[0].std() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("num_fields", [1, 2])
@pytest.mark.parametrize("num_bins", [1, 3])
def test_gradients_have_the_strides_of_their_parameters_and_the_values_of_plain_einsum(num_fields, num_bins):
    torch.manual_seed(0)
    numeric = NumericEmbeddings(
        FieldLayout.from_widths([4] * num_fields), 0.05, [list(range(num_bins + 1))] * num_fields
    )
    values, missing = torch.rand(32, num_fields) * num_bins, torch.zeros(32, num_fields, dtype=torch.bool)
    upstream = torch.randn(32, 4 * num_fields)
    numeric(values, missing).backward(upstream)
    assert all(parameter.grad.stride() == parameter.stride() for parameter in numeric.parameters())
    passed = ((values[:, :, None] - numeric.bin_start) / numeric.bin_length).clamp(0, 1)
    bins = numeric.bins.detach().clone().requires_grad_()
    torch.einsum("bnk,nkd->bnd", passed, bins).flatten(1).backward(upstream)
    assert torch.equal(numeric.bins.grad, bins.grad)


def test_training_with_one_numeric_field_prints_no_warning_about_strides(
    clicks: Path, script: Path, tmp_path: Path
) -> None:
    job = yaml.safe_load((clicks / "job.yaml").read_text())
    numeric = [name for name, field in job["fields"].items() if field["type"] == "number"]
    for name in numeric[1:]:
        del job["fields"][name]
    job["data"]["path"] = str(clicks)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    overrides = [part for value in ("train.batch_size=256", "train.steps=3") for part in ("--set", value)]
    ended = subprocess.run(
        [script, "train", tmp_path / "job.yaml", "--run", tmp_path / "run", *overrides], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "strides" not in ended.stderr
