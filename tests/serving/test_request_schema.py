"""Arrow tables of requests with lists in the memory layouts of other Arrow writers."""

from __future__ import annotations

import pyarrow as pa
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.serving.errors import SampleError
from asymdiffrec.serving.request_schema import RequestSchema

SCHEMA = FieldsConfig.model_validate(
    {
        "fields": {
            "slot": {"type": "id", "num_embeddings": 9, "hash": False},
            "tags": {"type": "id_list", "num_embeddings": 9, "hash": False},
            "seen": {"type": "id_list", "num_embeddings": 9, "weights": "shares"},
            "bought": {"type": "id_list", "num_embeddings": 9, "hash": False, "weights": "prices"},
        }
    }
).to_schema()
REQUEST_SCHEMA = RequestSchema(SCHEMA)


def lists_with_hidden_value(values: pa.Array) -> pa.Array:
    """Return [[first], null, [third]]; the second value is stored under the null list."""
    return pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), values, mask=pa.array([False, True, False]))


@pytest.mark.parametrize("hidden", [5, 99, -1])
def test_out_of_range_ids_are_missing_beside_null_lists_with_hidden_values(hidden: int) -> None:
    pairs = pa.array([[1, 2], None, [10**9, 3]], pa.list_(pa.int64(), 2))
    table = REQUEST_SCHEMA.table_from_arrow(pa.table({"tags": pairs}))
    assert table["tags"].to_pylist() == [[1, 2], None, [3]]
    lists = lists_with_hidden_value(pa.array([9, hidden, 8]))
    table = REQUEST_SCHEMA.table_from_arrow(pa.table({"tags": lists}))
    assert table["tags"].to_pylist() == [[], None, [8]]
    validity, values = pa.array([True, False, True]).buffers()[1], pa.array([9, hidden, 8]).buffers()[1]
    ids = pa.Array.from_buffers(pa.int64(), 3, [validity, values])
    assert REQUEST_SCHEMA.table_from_arrow(pa.table({"slot": ids}))["slot"].to_pylist() == [None, None, 8]


def test_error_names_the_row_of_a_negative_weight() -> None:
    seen = lists_with_hidden_value(pa.array([1, 2, 3]))
    shares = lists_with_hidden_value(pa.array([1.0, -1.0, -2.0]))
    with pytest.raises(SampleError, match=r"^shares\[2\]: the weight of an id is -2.0; allowed is a finite number"):
        REQUEST_SCHEMA.table_from_arrow(pa.table({"seen": seen, "shares": shares}))
    with_null = pa.table({"seen": pa.array([[1, 2], [3]]), "shares": pa.array([[None, 1.0], [-1.0]])})
    with pytest.raises(SampleError, match=r"^shares\[1\]: the weight of an id is -1.0; allowed is a finite number"):
        REQUEST_SCHEMA.table_from_arrow(with_null)


def test_weights_of_out_of_range_ids_are_dropped_if_every_id_has_a_weight() -> None:
    both, without_weights = {"bought": [1, 99], "prices": [0.5, 2.0]}, {"bought": [1, 99]}
    table = REQUEST_SCHEMA.query_table([REQUEST_SCHEMA.query(both, [{"slot": 1}, {"slot": 99}])])
    assert table["bought"].to_pylist() == [[1], None, None]
    assert table["prices"].to_pylist() == [[0.5], None, None]
    assert table["slot"].to_pylist() == [None, 1, None]
    for candidate in ({"slot": 1}, {"prices": [0.5, 2.0]}):
        table = REQUEST_SCHEMA.query_table([REQUEST_SCHEMA.query(without_weights, [candidate])])
        with pytest.raises(InputError, match="row 0: 1 ids but 0 weights"):
            decode(table.select(SCHEMA.columns(labelled=False)), SCHEMA, "candidates", labelled=False)
