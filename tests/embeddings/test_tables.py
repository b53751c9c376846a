"""Tables of a schema, and settings of tables that are refused."""

import pytest
from pydantic import ValidationError

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.tables import embedding_bag_configs

ID = {"type": "id", "num_embeddings": 5}


def schema(**fields):
    return FieldsConfig.model_validate({"fields": fields}).to_schema()


def test_fields_share_a_table():
    tables = embedding_bag_configs(
        schema(
            likes={"type": "id_list", "num_embeddings": 5, "table": "item", "embedding_dim": 8},
            user=ID,
            item={"type": "id", "num_embeddings": 5, "embedding_dim": 8},
        ),
        TablesConfig(),
    )
    assert [(table.name, table.feature_names, table.num_embeddings, table.embedding_dim) for table in tables] == [
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
        ({"a": ID | {"embedding_dim": 10}}, {}, "fields.a.embedding_dim: found 10, allowed are multiples of 4"),
        ({"type": ID}, {}, "fields.type: PyTorch does not allow a table named type"),
        ({"a.b": ID}, {}, "fields.a.b: PyTorch does not allow a table named a.b"),
    ],
)
def test_tables_that_cannot_exist_are_input_errors(fields, settings, message):
    with pytest.raises(InputError, match=message):
        embedding_bag_configs(schema(**fields), TablesConfig.model_validate(settings))


def test_a_field_with_a_reserved_name_can_name_another_table():
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
            "per_table.a.sharding: column_wise splits columns, so the state of rowwise_adagrad",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TablesConfig.model_validate(settings)
