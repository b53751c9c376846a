"""The Parquet files of a split: reading, footers, column checks, and one-line errors for wrong files."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.column_check import check_columns
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.shards import added_files, open_shards

SCHEMA = FieldsConfig.model_validate(
    {
        "data": {"user": "user", "weight": "weight"},
        "fields": {
            "item": {"type": "id", "num_embeddings": 9, "column": "item_id"},
            "tags": {"type": "id_list", "num_embeddings": 9},
            "age": {"type": "number"},
        },
    }
).to_schema()


def table(rows=4, **others):
    columns = {
        "item_id": list(range(rows)),
        "tags": [[1]] * rows,
        "age": [0.5] * rows,
        "label": [1] * rows,
        "weight": [1.0] * rows,
        "user": ["u"] * rows,
    } | others
    return pa.table({name: column for name, column in columns.items() if column is not None})


def write(path, content=None, row_group_size=3):
    pq.write_table(table() if content is None else content, path, row_group_size=row_group_size)
    return path


def check_error(location, *texts):
    """Assert that opening and checking the files fails with an error of one line that contains all `texts`."""
    with pytest.raises(InputError) as caught:
        check_columns(SCHEMA, open_shards(str(location)), labelled=True)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message
    return message


def test_row_groups_are_in_the_order_of_the_file_names(tmp_path):
    write(tmp_path / "b.parquet", table(7))
    write(tmp_path / "a.parquet", table(4))
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "c.parquet").mkdir()
    shards = open_shards(str(tmp_path))
    assert shards.files == (f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet")
    assert shards.sizes.tolist() == [3, 1, 3, 3, 1]
    assert shards.rows == 11
    assert shards.location_of(3) == f"{tmp_path}/b.parquet, row group 1"
    assert shards.read(3, ["item_id"]).to_pydict() == {"item_id": [3, 4, 5]}


def test_one_file_of_any_name_can_be_a_split(tmp_path):
    assert open_shards(str(write(tmp_path / "data.pq"))).rows == 4


def test_a_uri_is_read_like_a_path(tmp_path):
    write(tmp_path / "a.parquet")
    by_uri, by_path = open_shards(f"file://{tmp_path}"), open_shards(str(tmp_path))
    assert by_uri.files == by_path.files
    assert by_uri.read(1, ["item_id"]).to_pydict() == {"item_id": [3]}


def test_a_file_without_rows_is_left_out_with_any_columns(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"other": pa.nulls(0)}))
    write(tmp_path / "b.parquet")
    shards = open_shards(str(tmp_path))
    check_columns(SCHEMA, shards, labelled=True)
    assert shards.files == (f"{tmp_path}/b.parquet",)
    assert shards.location_of(0) == f"{tmp_path}/b.parquet, row group 0"


def test_a_split_without_rows_is_an_error(tmp_path):
    write(tmp_path / "a.parquet", table(0))
    check_error(tmp_path, str(tmp_path), "hold no rows")


def test_files_can_differ_in_the_order_and_types_of_columns(tmp_path):
    write(tmp_path / "a.parquet")
    other = table(item_id=["0", "1", "2", "3"], age=[1, 2, 3, None], more=[0] * 4)
    write(tmp_path / "b.parquet", other.select(reversed(other.column_names)))
    shards = open_shards(str(tmp_path))
    check_columns(SCHEMA, shards, labelled=True)
    columns = SCHEMA.columns(labelled=True)
    first, second = (
        decode(shards.read(group, columns), SCHEMA, shards.location_of(group), labelled=True) for group in (0, 2)
    )
    for number in (0, -1):  # item and user
        assert first.columns.column(number).equals(second.columns.column(number))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,label\n1,0\n" * 9], ids=["empty", "short", "csv"])
def test_the_error_names_a_file_that_is_not_parquet(tmp_path, content):
    write(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(content)
    check_error(tmp_path, f"{tmp_path}/b.parquet: not a readable Parquet file")


def test_the_error_names_a_truncated_file(tmp_path):
    path = write(tmp_path / "a.parquet", table(100), row_group_size=10)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        check_error(tmp_path, f"{path}: not a readable Parquet file")


def test_the_error_names_a_damaged_row_group(tmp_path):
    path = write(tmp_path / "a.parquet", table(100), row_group_size=50)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    shards = open_shards(str(tmp_path))
    shards.read(0, ["item_id"])
    with pytest.raises(InputError, match=r"a\.parquet, row group 1, column item_id: cannot be read \(.+\)") as caught:
        shards.read(1, ["label", "item_id", "age"])
    assert "\n" not in str(caught.value)


def test_the_error_names_a_page_with_a_wrong_checksum(tmp_path):
    path, options = tmp_path / "a.parquet", {"compression": "none", "use_dictionary": False}
    pq.write_table(table(100), path, write_page_checksum=True, **options)
    content = path.read_bytes()
    values = np.arange(100).astype("<i8").tobytes()
    assert content.count(values) == 1
    path.write_bytes(content.replace(values, values[:-8] + values[:8]))
    shards = open_shards(str(tmp_path))
    shards.read(0, ["label", "age"])
    with pytest.raises(InputError, match=r"a\.parquet, row group 0, column item_id: cannot be read \(.*CRC"):
        shards.read(0, ["label", "item_id", "age"])


def test_the_error_names_a_file_that_was_deleted(tmp_path):
    path = write(tmp_path / "a.parquet")
    shards = open_shards(str(tmp_path))
    shards.read(0, ["item_id"])
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}, row group 0: cannot be read, the file no longer exists"):
        shards.read(0, ["item_id"])


def test_the_error_names_a_file_that_changed(tmp_path):
    """A changed file is recognised by its size, or by its row groups if the size is equal."""
    path = write(tmp_path / "a.parquet", table(60), row_group_size=20)
    shards = open_shards(str(tmp_path))
    shards.read(1, ["item_id"])
    write(path, table(60), row_group_size=30)
    with pytest.raises(InputError, match=rf"{path}: the file changed .*: it has [\d,]+ bytes instead of"):
        shards.read(1, ["item_id"])
    padding = shards.bytes[0] - path.stat().st_size
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(padding) + content[4:])
    with pytest.raises(InputError, match=rf"{path}: the file changed .*: it has other row groups"):
        shards.read(2, ["item_id"])


@pytest.mark.parametrize("error_type", [MemoryError, pa.ArrowMemoryError])
def test_the_error_for_exhausted_memory_names_the_row_group(tmp_path, monkeypatch, error_type):
    shards = open_shards(str(write(tmp_path / "a.parquet")))

    def fail(*_, **__):
        raise error_type("malloc of size 99 failed")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail)
    with pytest.raises(InputError) as caught:
        shards.read(1, ["item_id"])
    assert f"{tmp_path}/a.parquet, row group 1: no memory is left for 1 rows (malloc of size 99 failed)" in str(
        caught.value
    )


def test_a_record_opens_the_same_files_again(tmp_path):
    write(tmp_path / "b.parquet", table(7))
    write(tmp_path / "c.parquet", table(0))
    shards = open_shards(str(tmp_path))
    assert shards.record == {"b.parquet": [3, 3, 1], "c.parquet": []}
    assert added_files(str(tmp_path), shards.record) == []
    write(tmp_path / "d.parquet")
    write(tmp_path / "a.parquet")
    again = open_shards(str(tmp_path), shards.record)
    assert again.files == shards.files
    assert again.record == shards.record
    assert added_files(str(tmp_path), shards.record) == ["a.parquet", "d.parquet"]


def test_files_of_a_record_must_not_change(tmp_path):
    write(tmp_path / "a.parquet", table(7))
    write(tmp_path / "b.parquet", table(7))
    record = open_shards(str(tmp_path)).record
    write(tmp_path / "b.parquet", table(7), row_group_size=7)
    with pytest.raises(
        InputError,
        match="has 1 row groups with 7 rows, but the run started with other row groups, 3 with 7",
    ):
        open_shards(str(tmp_path), record)
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(InputError, match=rf"{tmp_path}/b\.parquet: no longer exists, but the run started with"):
        open_shards(str(tmp_path), record)


def test_decoded_bytes_are_those_of_the_largest_row_group(tmp_path):
    write(tmp_path / "a.parquet", table(2), row_group_size=2)
    longer = table(tags=[[1, 2], [], None, [3]], **{"tags.more": [1.5] * 4})
    write(tmp_path / "b.parquet", longer, row_group_size=4)
    shards = open_shards(str(tmp_path))
    expected = {"item_id": 4 * 8, "tags": 5 * 8 + 4 * 8, "age": 4 * 4}
    assert shards.decoded_bytes(list(expected)) == expected


def test_the_error_names_a_folder_without_data(tmp_path):
    check_error(tmp_path, str(tmp_path), r"no *.parquet file in this folder")
    check_error(tmp_path / "train", f"{tmp_path}/train: no such file or folder")


@pytest.mark.parametrize("location", ["what://bucket/train", "file://relative"])
def test_the_error_names_a_malformed_uri(location):
    check_error(location, location)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("item_id", "lacks the column item_id (field item)"),
        ("tags", "lacks the column tags (field tags)"),
        ("label", "lacks the column label (data.label)"),
        ("weight", "lacks the column weight (data.weight)"),
        ("user", "lacks the column user (data.user)"),
    ],
)
def test_the_error_names_a_column_that_the_second_file_lacks(tmp_path, column, text):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", table(**{column: None}))
    message = check_error(tmp_path, f"{tmp_path}/b.parquet: {text}")
    assert column not in message.split("its columns are")[1]


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        ("item_id", [0.5] * 4, "column item_id is double; field item of type id needs an integer or a string"),
        ("item_id", [[1]] * 4, "column item_id is list<element: int64>; field item of type id needs"),
        ("tags", [1] * 4, "column tags is int64; field tags of type id_list needs a list of integers or strings"),
        ("tags", [[0.5]] * 4, "column tags is list<element: double>; field tags of type id_list needs"),
        ("age", ["old"] * 4, "column age is string; field age of type number needs a number"),
        ("label", ["yes"] * 4, "label column label is string; allowed is a number or bool, 0 or 1"),
        ("weight", ["1"] * 4, "weight column weight is string; allowed is a number of at least 0"),
        ("user", [0.5] * 4, "user column user is double; allowed is an integer or a string"),
    ],
)
def test_the_error_names_a_column_of_the_wrong_type(tmp_path, column, values, text):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", table(**{column: values}))
    check_error(tmp_path, f"{tmp_path}/b.parquet: {text}")


def test_the_error_names_a_duplicate_column(tmp_path):
    write(tmp_path / "a.parquet", table().append_column("age", pa.array([1.0] * 4)))
    check_error(tmp_path, f"{tmp_path}/a.parquet: has more than once the column age (field age)")


def test_without_labels_only_the_columns_of_fields_are_needed(tmp_path):
    write(tmp_path / "a.parquet", table(label=None, weight=None, user=None))
    check_columns(SCHEMA, open_shards(str(tmp_path)), labelled=False)


def test_a_column_without_values_can_have_the_type_null(tmp_path):
    write(tmp_path / "a.parquet", table(item_id=pa.nulls(4), tags=pa.nulls(4), age=pa.nulls(4)))
    shards = open_shards(str(tmp_path))
    check_columns(SCHEMA, shards, labelled=True)
    rows = decode(shards.read(0, SCHEMA.columns(labelled=True)), SCHEMA, shards.location_of(0), True)
    item, tags, age, *_ = rows.columns.columns
    assert item.to_pylist() == [-1, -1, -1]
    assert tags.to_pylist() == [[], [], []]
    assert all(map(math.isnan, age.to_pylist()))


def test_strings_stay_in_their_dictionary_if_the_file_has_a_complete_one(tmp_path):
    few, long = [f"city {row % 3}" for row in range(3000)], [f"{row:0900d}" for row in range(3000)]
    content = table(3000, user=few, few=few, many=few, long=long, few_lists=[[text] for text in few])
    pq.write_table(content, tmp_path / "a.parquet", use_dictionary=["few", "long", "user", "few_lists.list.element"])
    names = ["few", "many", "long", "few_lists", "item_id"]
    read = open_shards(str(tmp_path)).read(0, names)
    is_dictionary = {name: pa.types.is_dictionary(read.schema.field(name).type) for name in names}
    assert is_dictionary == {"few": True, "many": False, "long": False, "few_lists": False, "item_id": False}
    assert read.to_pylist() == content.select(names).to_pylist()
