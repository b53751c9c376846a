"""The fields of the job file: their order, their tables, and errors."""

import pytest
import yaml
from pydantic import ValidationError

from asymdiffrec.datasets.schema import FieldsConfig, table_seed
from asymdiffrec.datasets.statistics.statistics import MissingPattern, NumericStatistics, Statistics


def config(**fields):
    return FieldsConfig.model_validate({"fields": fields})


def an_id(**settings):
    return {"type": "id", "num_embeddings": 10} | settings


def a_list(**settings):
    return {"type": "id_list", "num_embeddings": 10} | settings


def test_sparse_fields_are_grouped_by_table_and_come_before_numeric_fields():
    schema = config(
        age={"type": "number"},
        user=an_id(),
        history=a_list(table="item"),
        tags=a_list(),
        item=an_id(),
        price={"type": "number"},
        friend=an_id(table="user"),
    ).to_schema()
    assert schema.names == ["user", "friend", "history", "item", "tags", "age", "price"]
    assert list(schema.sparse) == schema.names[:5]
    assert list(schema.numeric) == ["age", "price"]
    assert {name: table.fields for name, table in schema.tables.items()} == {
        "user": ("user", "friend"),
        "item": ("history", "item"),
        "tags": ("tags",),
    }
    assert [schema.table_of(name).name for name in schema.sparse] == ["user", "user", "item", "item", "tags"]


def test_the_default_column_of_a_field_is_its_name():
    schema = config(user=an_id(), item=an_id(column="item_id")).to_schema()
    assert [schema.column(name) for name in schema.names] == ["user", "item_id"]


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"num_embeddings": 20}, "num_embeddings 10 and 20"),
        ({"values": "string"}, "values int and string"),
        ({"hash": False}, "hash True and False"),
        ({"embedding_dim": 8}, "embedding_dim None and 8"),
    ],
)
def test_fields_that_share_a_table_must_agree(other, text):
    with pytest.raises(ValidationError, match=f"fields item and history share the table item but have {text}"):
        config(item=an_id(), history=a_list(table="item", **other))


def test_rare_ids_need_a_hash():
    config(a=an_id(min_count=2), b=an_id(hash=False))
    with pytest.raises(ValidationError, match=r"fields\.a: min_count needs hash: true"):
        config(a=an_id(min_count=2, hash=False))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "at least 1 item"),
        ({"age": {"type": "number"}}, "no field of type id or id_list"),
        ({"user": an_id(num_embeddings=0)}, "greater than 0"),
        ({"user": {"type": "id"}}, "num_embeddings"),
        ({"user": {"type": "text"}}, "'id', 'id_list', 'number'"),
        ({"user": an_id(pooling="sum")}, "Extra inputs are not permitted"),
        ({"user": an_id(values="float")}, "'int' or 'string'"),
        ({"user": an_id(drop=-1)}, "greater than or equal to 0"),
    ],
)
def test_wrong_fields_are_an_error(fields, text):
    with pytest.raises(ValidationError, match=text):
        config(**fields)


def test_an_unknown_key_of_data_is_an_error():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        FieldsConfig.model_validate({"data": {"labels": "y"}, "fields": {"user": an_id()}})


def test_statistics_survive_yaml():
    statistics = Statistics(
        rows={"train": 7, "test": 2},
        label_rate=1 / 3,
        numeric={"age": NumericStatistics(mean=0.1, std=1e-9)},
        cardinalities={"user": 5},
        missing_patterns=[MissingPattern(missing=["age"], rows=3), MissingPattern(missing=[], rows=4)],
    )
    assert Statistics.model_validate(yaml.safe_load(yaml.safe_dump(statistics.model_dump()))) == statistics


def test_without_statistics_a_numeric_field_has_mean_0_and_std_1():
    fields = config(user=an_id(), age={"type": "number"}, price={"type": "number"})
    statistics = Statistics(rows={"train": 1}, label_rate=0.5, numeric={"age": NumericStatistics(mean=30, std=9)})
    assert fields.to_schema().numeric_statistics("age") == NumericStatistics(mean=0, std=1)
    assert fields.to_schema(statistics).numeric_statistics("age") == NumericStatistics(mean=30, std=9)
    assert fields.to_schema(statistics).numeric_statistics("price") == NumericStatistics(mean=0, std=1)


def test_the_hash_seed_of_a_table_never_changes():
    assert table_seed("item") == 0x6CA8F7B0F03F9E41
