"""Decoded samples and their batches, against a reference that walks row by row."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import asymdiffrec.datasets.batching.batch as batch_module
from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import cut, to_batch, to_batches
from asymdiffrec.datasets.decoding.rows import Rows, decode, no_rows
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.statistics import NumericStatistics, Statistics
from asymdiffrec.datasets.statistics.vocabulary import RARE, Vocabulary

ROWS = 11
SCHEMA = FieldsConfig.model_validate(
    {
        "data": {"user": "user", "weight": "weight"},
        "fields": {
            "age": {"type": "number"},
            "history": {"type": "id_list", "num_embeddings": ROWS, "table": "item"},
            "city": {"type": "id", "num_embeddings": ROWS, "values": "string"},
            "item": {"type": "id", "num_embeddings": ROWS},
            "tags": {"type": "id_list", "num_embeddings": ROWS, "values": "string"},
            "slot": {"type": "id", "num_embeddings": ROWS, "hash": False},
            "price": {"type": "number"},
        },
    }
).to_schema(Statistics(rows={"train": 9}, label_rate=0.5, numeric={"price": NumericStatistics(mean=2, std=4)}))
TYPES = {
    "age": pa.float64(),
    "history": pa.list_(pa.int64()),
    "city": pa.string(),
    "item": pa.int64(),
    "tags": pa.list_(pa.string()),
    "slot": pa.int32(),
    "price": pa.int64(),
    "label": pa.int8(),
    "weight": pa.float32(),
    "user": pa.int64(),
}
quick = settings(derandomize=True, deadline=None, max_examples=60)

ids, words = st.integers(-(2**63), 2**63 - 1), st.text(max_size=3)
samples = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.none() | st.floats(-100, 100) | st.just(np.nan),
            "history": st.none() | st.lists(st.none() | ids, max_size=4),
            "city": st.none() | words,
            "item": st.none() | ids,
            "tags": st.none() | st.lists(st.none() | words, max_size=3),
            "slot": st.none() | st.integers(0, ROWS - 1),
            "price": st.none() | st.integers(-9, 9),
            "label": st.integers(0, 1),
            "weight": st.integers(0, 5),
            "user": st.integers(0, 9),
        }
    ),
    max_size=9,
)


def table_of(found, chunk=4):
    """The samples as an Arrow table of several chunks."""
    schema = pa.schema(list(TYPES.items()))
    parts = [pa.Table.from_pylist(found[k : k + chunk], schema) for k in range(0, len(found), chunk)]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def decoded(found):
    return decode(table_of(found), SCHEMA, "part-0.parquet, row group 0", labelled=True)


def mixed(value):
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def sparse(value, table):
    word = xxhash.xxh64_intdigest(value.encode()) if isinstance(value, str) else value % 2**64
    return mixed(word ^ xxhash.xxh3_64_intdigest(table.encode())) * ROWS // 2**64


def bag(sample, name):
    """The table rows of a sample's field."""
    value = sample[name]
    if name == "slot":
        return [] if value is None else [value]
    values = value if isinstance(value, list) else [value]
    table = "item" if name == "history" else name
    return [sparse(one, table) for one in values or [] if one is not None]


def bags(batch):
    """The batch's ids back in lists: {field: [rows of a sample]}."""
    values = iter(batch.ids.values().tolist())
    lengths = batch.ids.lengths().view(len(batch.ids.keys()), -1).tolist()
    found = {
        name: [list(itertools.islice(values, one)) for one in own]
        for name, own in zip(batch.ids.keys(), lengths, strict=True)
    }
    assert not list(values)
    return found


def standardised(sample):
    found = [sample["age"], None if sample["price"] is None else (sample["price"] - 2) / 4]
    return [None if value is None or np.isnan(value) else np.float32(value) for value in found]


@quick
@given(samples)
def test_a_batch_holds_what_the_samples_hold(found):
    batch = to_batch(decoded(found), SCHEMA, 100)
    assert batch.ids.keys() == SCHEMA.names[:5] == ["history", "item", "city", "tags", "slot"]
    assert bags(batch) == {name: [bag(sample, name) for sample in found] for name in SCHEMA.sparse}
    numbers = [standardised(sample) for sample in found]
    assert batch.numeric.tolist() == [[0 if value is None else value for value in row] for row in numbers]
    absent = [
        [not bag(sample, name) for name in SCHEMA.sparse] + [value is None for value in row]
        for sample, row in zip(found, numbers, strict=True)
    ]
    assert batch.missing.tolist() == absent
    for name in ("label", "weight", "user"):
        assert getattr(batch, name).tolist() == [sample[name] for sample in found]
    assert batch.sample_index.tolist() == list(range(100, 100 + len(found)))
    assert batch.counted == len(batch) == len(found)


def test_a_batch_has_the_types_that_the_model_takes():
    sample = dict.fromkeys(SCHEMA.names) | {"label": 1, "weight": 2, "user": 3}
    batch = to_batch(decoded([sample]), SCHEMA, 0)
    types = {name: getattr(batch, name).dtype for name in ("numeric", "label", "weight", "missing", "user")}
    assert types == {
        "numeric": torch.float32,
        "label": torch.float32,
        "weight": torch.float32,
        "missing": torch.bool,
        "user": torch.int64,
    }
    assert (batch.ids.values().dtype, batch.ids.lengths().dtype) == (torch.int64, torch.int32)
    assert batch.sample_index.dtype == torch.int64
    assert batch.missing.all()


@quick
@given(samples, st.integers(1, 4))
def test_padding_lacks_every_field_and_weighs_nothing(found, more):
    size = len(found) + more
    batch, bare = to_batch(decoded(found), SCHEMA, 7, size), to_batch(decoded(found), SCHEMA, 7)
    assert (len(batch), batch.counted) == (size, len(found))
    assert bags(batch) == {name: lists + [[]] * more for name, lists in bags(bare).items()}
    for name in ("numeric", "missing", "label", "weight", "user"):
        padded = getattr(batch, name)
        assert torch.equal(padded[: len(found)], getattr(bare, name))
        assert (padded[len(found) :] == (name == "missing")).all()
    assert batch.sample_index.tolist() == list(range(7, 7 + size))


@quick
@given(samples, st.data())
def test_rows_are_sliced_and_concatenated_like_lists(found, data):
    rows, size = decoded(found), len(found)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))

    def same(part, expected):
        one, other = to_batch(part, SCHEMA, 0), to_batch(decoded(expected), SCHEMA, 0)
        assert bags(one) == bags(other)
        assert one.numeric.tolist() == other.numeric.tolist()
        assert one.user.tolist() == other.user.tolist()

    same(rows.slice(start, stop), found[start:stop])
    same(
        Rows.concatenate([rows.slice(start, stop), rows, rows.slice(0, start)]),
        found[start:stop] + found + found[:start],
    )
    same(Rows.concatenate([no_rows(SCHEMA), rows]), found)
    same(no_rows(SCHEMA), [])


@quick
@given(st.lists(samples.filter(len), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_batches_take_from_each_lane_the_rows_that_the_order_says(lanes, steps, each, data):
    order = np.array(
        [[[data.draw(st.integers(0, len(lane) - 1)) for _ in range(each)] for _ in range(steps)] for lane in lanes],
        dtype=np.int32,
    )
    batches = to_batches([decoded(lane) for lane in lanes], order, SCHEMA, range(0, 100 * steps, 100))
    for step, batch in enumerate(batches):
        drawn = [lane[row] for lane, rows in zip(lanes, order[:, step], strict=True) for row in rows]
        expected = to_batch(decoded(drawn), SCHEMA, 100 * step)
        assert bags(batch) == bags(expected)
        for name in ("numeric", "missing", "label", "weight", "user", "sample_index"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))


def test_fields_of_one_table_share_rows_and_others_do_not():
    found = [dict.fromkeys(SCHEMA.names) | {"label": 0, "weight": 1, "user": 0} for _ in range(200)]
    for k, sample in enumerate(found):
        sample |= {"item": k, "history": [k], "city": str(k), "tags": [str(k)]}
    batch = bags(to_batch(decoded(found), SCHEMA, 0))
    assert batch["item"] == batch["history"]
    agree = sum(one == other for one, other in zip(batch["city"], batch["tags"], strict=True))
    assert agree < 200 / ROWS * 2, "two tables place a string independently"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            {"slot": ROWS},
            f"column slot, row 2: id {ROWS} with hash: false; allowed is 0 to {ROWS - 1} (num_embeddings: {ROWS})",
        ),
        ({"label": 2}, "column label, row 2: label 2; allowed is 0 or 1"),
        ({"label": None}, "column label, row 2: label None; allowed is 0 or 1"),
        ({"weight": -1.0}, "column weight, row 2: weight -1.0; allowed is a finite number of at least 0"),
        ({"weight": np.nan}, "column weight, row 2: weight nan; allowed is"),
        ({"age": np.inf}, "column age, row 2: number inf; allowed is"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(wrong, text):
    good = dict.fromkeys(SCHEMA.names) | {"label": 1, "weight": 1, "user": 1}
    with pytest.raises(InputError) as caught:
        decoded([good, good, good | wrong, good, good | wrong])
    assert str(caught.value).startswith(f"part-0.parquet, row group 0, {text}")


def test_a_wrong_value_in_a_list_is_named_with_the_row_of_the_list():
    schema = FieldsConfig.model_validate(
        {
            "fields": {
                "a": {"type": "id_list", "num_embeddings": 5, "hash": False},
                "b": {"type": "id_list", "num_embeddings": 5},
            }
        }
    ).to_schema()
    good = {"a": pa.array([[1, None], None, [], [2, 3], [None, 4]]), "b": pa.array([["1"]] * 5)}
    wrong_row = pa.table(good | {"a": pa.array([[1, None], None, [], [None, 2, 5], [9]])})
    with pytest.raises(InputError, match=r"p, column a, row 3: id 5 with hash: false"):
        decode(wrong_row, schema, "p", labelled=False)
    no_integer = pa.table(good | {"b": pa.array([["1", None], None, [], ["2", "02"], ["x"]])})
    with pytest.raises(InputError, match=r"p, column b, row 3: '02' is no 64-bit integer"):
        decode(no_integer, schema, "p", labelled=False)
    assert to_batch(decode(pa.table(good), schema, "p", labelled=False), schema, 0).ids["a"].values().tolist() == [
        1,
        2,
        3,
        4,
    ]


def test_dictionaries_of_several_chunks_are_one_column():
    schema = FieldsConfig.model_validate(
        {"fields": {"a": {"type": "id", "num_embeddings": 10**6, "values": "string"}}}
    ).to_schema()
    parts = [["x", "y", None], ["y", "z"], ["w", None]]
    chunks = pa.table({"a": pa.chunked_array([pa.array(part).dictionary_encode() for part in parts])})
    whole = pa.table({"a": pa.array(list(itertools.chain(*parts)))})
    one, other = (decode(table, schema, "p", labelled=False).columns for table in (chunks, whole))
    assert one.equals(other)


def test_without_labels_only_fields_are_read():
    rows = decode(table_of([]).select(SCHEMA.names), SCHEMA, "p", labelled=False)
    assert len(rows) == 0
    sample = dict.fromkeys(SCHEMA.names)
    table = pa.Table.from_pylist([sample, sample], pa.schema([(name, TYPES[name]) for name in SCHEMA.names]))
    rows = decode(table, SCHEMA, "p", labelled=False)
    batch = to_batch(rows, SCHEMA, 0)
    assert [batch.label.tolist(), batch.weight.tolist(), batch.user.tolist()] == [[0, 0], [1, 1], [0, 0]]


WEIGHTED = FieldsConfig.model_validate(
    {
        "fields": {
            "item": {"type": "id", "num_embeddings": 1000},
            "seen": {"type": "id_list", "num_embeddings": 1000, "weights": "shares", "pooling": "mean"},
            "bought": {"type": "id_list", "num_embeddings": 1000, "weights": "prices", "pooling": "sum"},
            "plain": {"type": "id_list", "num_embeddings": 1000, "pooling": "mean"},
            "summed": {"type": "id_list", "num_embeddings": 1000, "pooling": "sum"},
        }
    }
).to_schema()
pairs = st.none() | st.lists(st.tuples(st.none() | st.integers(0, 99), st.integers(0, 8)), max_size=4)


def weighted(found):
    """Rows of the fields of WEIGHTED with their weights."""

    def column(name, part, kind):
        return pa.array([None if row[name] is None else [one[part] for one in row[name]] for row in found], kind)

    return pa.table(
        {
            "item": pa.array(range(len(found))),
            "seen": column("seen", 0, pa.list_(pa.int64())),
            "shares": column("seen", 1, pa.list_(pa.float64())),
            "bought": column("bought", 0, pa.large_list(pa.int64())),
            "prices": column("bought", 1, pa.list_(pa.float32())),
            "plain": pa.array([[1, 2]] * len(found), pa.list_(pa.int64())),
            "summed": pa.array([[1, 2]] * len(found), pa.list_(pa.int64())),
        }
    )


@quick
@given(st.lists(st.fixed_dictionaries({"seen": pairs, "bought": pairs}), min_size=1, max_size=6))
def test_weights_go_with_their_ids_and_means_are_divided(found):
    batch = to_batch(decode(weighted(found), WEIGHTED, "p", labelled=False), WEIGHTED, 0)
    weights = iter(batch.ids.weights().tolist())
    lengths = batch.ids.lengths().view(5, -1).tolist()
    given = {
        name: [[weight for one, weight in row[name] or [] if one is not None] for row in found]
        for name in ("seen", "bought")
    }
    expected = {
        "item": [[1.0] for _ in found],
        "seen": [[weight / max(sum(row), 1e-30) for weight in row] for row in given["seen"]],
        "bought": given["bought"],
        "plain": [[0.5, 0.5] for _ in found],
        "summed": [[1.0, 1.0] for _ in found],
    }
    for name, own in zip(batch.ids.keys(), lengths, strict=True):
        for length, row in zip(own, expected[name], strict=True):
            assert list(itertools.islice(weights, length)) == pytest.approx(row, rel=1e-5)
            assert length == len(row)


@pytest.mark.parametrize(
    ("seen", "shares", "text"),
    [
        ([[1], [2, 3]], [[1.0], [1.0]], "row 1: 2 ids but 1 weights; there must be one for each id"),
        ([[1], [2]], [[1.0], None], "row 1: 1 ids but 0 weights"),
        ([[1], [2]], [[1.0], [-1.0]], "row 1: the weight of an id is -1.0; allowed is a finite number of at least 0"),
        ([[1], [2]], [[None], [1.0]], "row 0: the weight of an id is None"),
    ],
)
def test_wrong_weights_are_named_with_their_row(seen, shares, text):
    table = weighted([{"seen": None, "bought": None}] * 2)
    table = table.set_column(1, "seen", pa.array(seen)).set_column(2, "shares", pa.array(shares))
    with pytest.raises(InputError) as caught:
        decode(table, WEIGHTED, "p", labelled=False)
    assert str(caught.value).startswith(f"p, column seen, {text}")


def test_ids_outside_the_vocabulary_are_one_id():
    fields = {
        "a": {"type": "id", "num_embeddings": 10**6, "min_count": 2},
        "b": {"type": "id_list", "num_embeddings": 10**6, "table": "a", "min_count": 2},
    }
    known = Vocabulary.of(np.array([-5, 3, 7]))
    statistics = Statistics(rows={"train": 4}, label_rate=0.5, vocabularies={"a": known, "b": known})
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema(statistics)
    table = pa.table({"a": [3, None, 8, 9, -5], "b": [[3, 7], [], None, [8, 3], [9]]})
    found = bags(to_batch(decode(table, schema, "p", labelled=False), schema, 0))

    def row(value):
        return mixed(value % 2**64 ^ xxhash.xxh3_64_intdigest(b"a")) * 10**6 // 2**64

    rare = row(int(RARE))
    assert found["a"] == [[row(3)], [], [rare], [rare], [row(-5)]]
    assert found["b"] == [[row(3), row(7)], [], [], [rare, row(3)], [rare]]


def test_the_parts_of_a_batch_move_together():
    found = [dict.fromkeys(SCHEMA.names) | {"item": 3, "label": 1, "weight": 1, "user": 1}] * 2
    batch = to_batch(decoded(found), SCHEMA, 5, 3)
    moved = batch.to(torch.device("meta"))
    assert moved.ids.values().device.type == moved.sample_index.device.type == moved.missing.device.type == "meta"
    assert moved.counted == 2
    assert batch.label.device.type == "cpu"


@quick
@given(samples, st.integers(1, 4))
def test_samples_are_cut_into_batches_in_order(found, size):
    rows = decoded(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "AT_ONCE", 2)
        batches = list(cut(rows, SCHEMA, size))
    assert [len(batch) for batch in batches] == [len(found[at : at + size]) for at in range(0, len(found), size)]
    one = to_batch(rows, SCHEMA, 0) if found else None
    for at, batch in zip(range(0, len(found), size), batches, strict=True):
        assert bags(batch) == {name: own[at : at + size] for name, own in bags(one).items()}
        for name in ("numeric", "missing", "label", "weight", "user", "sample_index"):
            assert torch.equal(getattr(batch, name), getattr(one, name)[at : at + size])


def weights_by_id(batch):
    """{field: [(id, weight) of a sample]}"""
    lengths = batch.ids.lengths().view(len(batch.ids.keys()), -1).tolist()
    pairs = zip(batch.ids.values().tolist(), batch.ids.weights().tolist(), strict=True)
    return {
        name: [list(itertools.islice(pairs, length)) for length in own]
        for name, own in zip(batch.ids.keys(), lengths, strict=True)
    }


@quick
@given(st.lists(st.fixed_dictionaries({"seen": pairs, "bought": pairs}), min_size=4, max_size=9), st.data())
def test_weights_stay_with_their_ids_in_every_lane_and_step(found, data):
    rows = decode(weighted(found), WEIGHTED, "p", labelled=False)
    middle = len(found) // 2
    lanes = [rows.slice(0, middle), rows.slice(middle, len(found))]
    order = np.array(
        [[[data.draw(st.integers(0, len(lane) - 1)) for _ in range(2)] for _ in range(3)] for lane in lanes],
        dtype=np.int32,
    )
    alone = [weights_by_id(to_batch(rows.slice(at, at + 1), WEIGHTED, 0)) for at in range(len(found))]
    for step, batch in enumerate(to_batches(lanes, order, WEIGHTED, [0, 4, 8])):
        drawn = [start + row for start, own in zip((0, middle), order[:, step], strict=True) for row in own.tolist()]
        assert weights_by_id(batch) == {name: [alone[row][name][0] for row in drawn] for name in WEIGHTED.sparse}
    cuts = [weights_by_id(batch) for batch in cut(rows, WEIGHTED, 3)]
    for name in WEIGHTED.sparse:
        assert [bag for part in cuts for bag in part[name]] == [one[name][0] for one in alone]


def test_ids_of_tables_beyond_32_bits_keep_their_rows():
    far = 2**33 - 1
    fields = {
        "item": {"type": "id", "num_embeddings": 2**33, "hash": False},
        "seen": {"type": "id_list", "num_embeddings": 2**33, "hash": False, "pooling": "sum"},
    }
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
    table = pa.table({"item": [far, None, 7], "seen": [[far, 1], [], [2**31]]})
    batch = to_batch(decode(table, schema, "p", labelled=False), schema, 0)
    assert batch.ids.lengths().tolist() == [1, 0, 1, 2, 0, 1]
    assert batch.ids.values().tolist() == [far, 7, far, 1, 2**31]
