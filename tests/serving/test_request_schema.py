"""Arrow tables of requests whose lists have what other writers leave in them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.serving.request_schema import RequestSchema, SampleError

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
FORM = RequestSchema(SCHEMA)


def with_a_hidden_value(values: pa.Array) -> pa.Array:
    """[[first], null, [third]], whose second list has a value all the same."""
    return pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), values, mask=pa.array([False, True, False]))


@pytest.mark.parametrize("hidden", [5, 99, -1])
def test_ids_that_are_no_rows_are_missing_beside_lists_that_are_null(hidden: int) -> None:
    pairs = pa.array([[1, 2], None, [10**9, 3]], pa.list_(pa.int64(), 2))
    assert FORM.checked(pa.table({"tags": pairs}))["tags"].to_pylist() == [[1, 2], None, [3]]
    lists = with_a_hidden_value(pa.array([9, hidden, 8]))
    assert FORM.checked(pa.table({"tags": lists}))["tags"].to_pylist() == [[], None, [8]]
    behind = pa.Array.from_buffers(
        pa.int64(), 3, [pa.array([True, False, True]).buffers()[1], pa.array([9, hidden, 8]).buffers()[1]]
    )
    assert FORM.checked(pa.table({"slot": behind}))["slot"].to_pylist() == [None, None, 8]


def test_a_weight_below_zero_is_named_with_its_row() -> None:
    seen, shares = with_a_hidden_value(pa.array([1, 2, 3])), with_a_hidden_value(pa.array([1.0, -1.0, -2.0]))
    with pytest.raises(SampleError, match=r"^shares\[2\]: the weight of an id is -2.0; allowed is a finite number"):
        FORM.checked(pa.table({"seen": seen, "shares": shares}))
    unknown = pa.table({"seen": pa.array([[1, 2], [3]]), "shares": pa.array([[None, 1.0], [-1.0]])})
    with pytest.raises(SampleError, match=r"^shares\[1\]: the weight of an id is -1.0; allowed is a finite number"):
        FORM.checked(unknown)


def test_weights_of_ids_that_are_no_rows_go_with_them_and_stay_where_they_are_not_theirs() -> None:
    both, lacking = {"bought": [1, 99], "prices": [0.5, 2.0]}, {"bought": [1, 99]}
    table = FORM.table_of([FORM.query(both, [{"slot": 1}, {"slot": 99}])])
    assert table["bought"].to_pylist() == [[1], None, None]
    assert table["prices"].to_pylist() == [[0.5], None, None]
    assert table["slot"].to_pylist() == [None, 1, None]
    for shared, candidate in ((lacking, {"slot": 1}), (lacking, {"prices": [0.5, 2.0]})):
        table = FORM.table_of([FORM.query(shared, [candidate])])
        with pytest.raises(InputError, match="row 0: 1 ids but 0 weights"):
            decode(table.select(SCHEMA.columns(labelled=False)), SCHEMA, "candidates", labelled=False)
