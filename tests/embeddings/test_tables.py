from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.tables import FieldTables, TablesConfig, embedding_bag_configs

ID = {"type": "id", "num_embeddings": 5}


def schema(**fields):
    return FieldsConfig.model_validate({"fields": fields}).to_schema()


def test_fields_share_a_table():
    found = embedding_bag_configs(
        schema(
            likes={"type": "id_list", "num_embeddings": 5, "table": "item", "embedding_dim": 8},
            user=ID,
            item={"type": "id", "num_embeddings": 5, "embedding_dim": 8},
        ),
        TablesConfig(),
    )
    assert [(table.name, table.feature_names, table.num_embeddings, table.embedding_dim) for table in found] == [
        ("item", ["likes", "item"], 5, 8),
        ("user", ["user"], 5, 16),
    ]


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (
            {"a": ID},
            {"per_table": {"b": {"sharding": "row_wise"}}},
            "tables.per_table: no table is named b; the tables are a",
        ),
        ({"a": ID | {"embedding_dim": 10}}, {}, "fields.a.embedding_dim: 10; a table needs a multiple of 4"),
        ({"type": ID}, {}, "fields.type: PyTorch cannot hold a table named type"),
        ({"a.b": ID}, {}, "fields.a.b: PyTorch cannot hold a table named a.b"),
    ],
)
def test_wrong_tables(fields, settings, message):
    with pytest.raises(InputError, match=message):
        embedding_bag_configs(schema(**fields), TablesConfig.model_validate(settings))


def test_a_reserved_name_may_be_a_field():
    (table,) = embedding_bag_configs(schema(type=ID | {"table": "type_"}), TablesConfig())
    assert table.feature_names == ["type"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_dim": 6}, "multiple of 4"),
        ({"init_std": 0}, "greater than 0"),
        ({"per_table": {"a": {"sharding": "diagonal"}}}, "table_row_wise"),
        ({"optimizer": {"name": "lamb"}}, "rowwise_adagrad"),
        ({"optimizer": {"name": "sgd", "eps": 1e-8}}, "Extra inputs"),
        ({"optimizer": {"name": "adagrad", "eps": 0}}, "greater than 0"),
        (
            {"optimizer": {"name": "rowwise_adagrad"}, "per_table": {"a": {"sharding": "column_wise"}}},
            "per_table.a.sharding: column_wise splits columns, which rowwise_adagrad cannot reshard",
        ),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        TablesConfig.model_validate(settings)


def test_columns_may_be_split_on_request():
    settings = {
        "optimizer": {"name": "rowwise_adagrad"},
        "per_table": {"a": {"sharding": "column_wise"}},
        "allow_column_split": True,
    }
    assert TablesConfig.model_validate(settings).splits_columns


def numbers_only(tables: FieldTables, numbers: torch.Tensor, missing: torch.Tensor) -> list[torch.Tensor]:
    """The embeddings of the number fields; the one id field is missing throughout."""
    tables.ids.to_empty(device="cpu")
    rows = len(numbers)
    ids = KeyedJaggedTensor(
        keys=["a"], values=torch.tensor([], dtype=torch.int64), lengths=torch.zeros(rows, dtype=torch.int64)
    )
    absent = torch.cat([torch.ones(rows, 1, dtype=torch.bool), missing], dim=1)
    clean, found = tables(SimpleNamespace(ids=ids, numeric=numbers, missing=absent))
    assert torch.equal(found, absent)
    assert not clean[:, :16].any()
    return list(clean.split(tables.layout.widths, dim=1))[1:]


def test_numbers():
    torch.manual_seed(0)
    fields = {"a": ID, "x": {"type": "number", "embedding_dim": 3}, "y": {"type": "number"}}
    tables = FieldTables(schema(**fields), TablesConfig())
    with torch.no_grad():
        tables.columns.numbers.bias.normal_()
    numbers = torch.randn(6, 2)
    missing = torch.rand(6, 2) < 0.5
    x, y = numbers_only(tables, numbers.masked_fill(missing, 0.0), missing)
    direction, bias = tables.columns.numbers.direction, tables.columns.numbers.bias
    for embedding, place, own in ((x, 0, slice(0, 3)), (y, 1, slice(3, 19))):
        expected = numbers[:, place : place + 1] * direction[own] + bias[own]
        assert torch.equal(embedding, torch.where(missing[:, place : place + 1], 0.0, expected))
    y.sum().backward()
    assert not tables.columns.numbers.direction.grad[:3].any()
    assert torch.equal(tables.columns.numbers.bias.grad[3:], (~missing[:, 1]).sum().float().expand(16))


KNOTS = {"x": [1.0, 2.0, 4.0, 4.5], "y": [-3.0, 0.0]}


@pytest.mark.parametrize("knots", [[], [2.0]])
def test_a_number_that_never_varies_beside_one_that_does(knots):
    moments = {"x": {"knots": knots}, "y": {"knots": KNOTS["y"]}}
    statistics = Statistics.model_validate({"rows": {"train": 9}, "label_rate": 0.5, "numeric": moments})
    config = FieldsConfig.model_validate({"fields": {"a": ID, "x": {"type": "number"}, "y": {"type": "number"}}})
    tables = FieldTables(config.to_schema(statistics), TablesConfig())
    with torch.no_grad():
        tables.columns.numbers.pieces.fill_(1)
        x, y = numbers_only(tables, torch.full((3, 2), 9.0), torch.zeros(3, 2, dtype=torch.bool))
    line = 9 * tables.columns.numbers.direction
    assert torch.equal(x, line[:16].expand(3, 16))
    torch.testing.assert_close(y, (line[16:] + 1).expand(3, 16))


@pytest.mark.parametrize("dims", [{}, {"x": 3}])
def test_a_number_follows_a_curve(dims):
    fields = {name: {"type": "number", "embedding_dim": dims.get(name)} for name in ("x", "y")}
    moments = {"x": {"mean": 1.0, "std": 2.0, "knots": KNOTS["x"]}, "y": {"knots": KNOTS["y"]}}
    statistics = Statistics.model_validate({"rows": {"train": 9}, "label_rate": 0.5, "numeric": moments})
    config = FieldsConfig.model_validate({"fields": {"a": ID, **fields}})
    torch.manual_seed(0)
    tables = FieldTables(config.to_schema(statistics), TablesConfig())
    curve = tables.columns.numbers
    assert curve.pieces.shape == (2, 3, 16)
    numbers, missing = torch.randn(50, 2) * 3, torch.zeros(50, 2, dtype=torch.bool)
    line = numbers_only(tables, numbers, missing)
    for (column, found), direction in zip(
        enumerate(line), curve.direction.split(tables.layout.widths[1:]), strict=True
    ):
        assert torch.equal(found, numbers[:, column : column + 1] * direction), "it starts as a line"
    with torch.no_grad():
        curve.pieces.normal_()
        bent = numbers_only(tables, numbers, missing)
    scaled = {"x": (np.array(KNOTS["x"]) - 1) / 2, "y": np.array(KNOTS["y"])}
    for place, (name, knots) in enumerate(scaled.items()):
        pieces = curve.pieces[place, : len(knots) - 1, : tables.layout.widths[1 + place]].detach().numpy()
        heights = np.concatenate([np.zeros((1, pieces.shape[1])), pieces.cumsum(0)])
        expected = np.stack([np.interp(numbers[:, place], knots, height) for height in heights.T], 1)
        assert np.allclose((bent[place] - line[place]).detach(), expected, atol=1e-5), name


def test_numbers_start_from_torchs_seed():
    directions = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tables = FieldTables(
            schema(a=ID, **{f"x{n}": {"type": "number"} for n in range(500)}), TablesConfig(init_std=0.2)
        )
        directions.append(tables.columns.numbers.direction.detach())
    assert torch.equal(directions[0], directions[1])
    assert not torch.equal(directions[0], directions[2])
    assert directions[0].std() == pytest.approx(0.2, rel=0.05)
