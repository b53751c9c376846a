"""Batches of decoded samples, compared with a reference that processes one sample at a time."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asymdiffrec.datasets.batching.batch as batch_module
from asymdiffrec.datasets.batching.batch import split_into_batches, to_batch, to_batches
from asymdiffrec.datasets.decoding.rows import decode
from tests.datasets.sample_rows import (
    SCHEMA,
    WEIGHTED_SCHEMA,
    bag,
    bags,
    decode_samples,
    sample_lists,
    standardised,
    weighted_samples,
    weighted_table,
)

quick = settings(derandomize=True, deadline=None, max_examples=60)


@quick
@given(sample_lists)
def test_a_batch_holds_the_values_of_the_samples(samples):
    batch = to_batch(decode_samples(samples), SCHEMA, 100)
    assert batch.ids.keys() == SCHEMA.names[:5] == ["history", "item", "city", "tags", "slot"]
    assert bags(batch) == {name: [bag(sample, name) for sample in samples] for name in SCHEMA.sparse}
    numbers = [standardised(sample) for sample in samples]
    assert batch.numeric.tolist() == [[0 if value is None else value for value in row] for row in numbers]
    missing = [
        [not bag(sample, name) for name in SCHEMA.sparse] + [value is None for value in row]
        for sample, row in zip(samples, numbers, strict=True)
    ]
    assert batch.missing.tolist() == missing
    for name in ("label", "weight", "user"):
        assert getattr(batch, name).tolist() == [sample[name] for sample in samples]
    assert batch.sample_index.tolist() == list(range(100, 100 + len(samples)))
    assert batch.num_samples == len(batch) == len(samples)


def test_a_batch_has_the_types_that_the_model_takes():
    sample = dict.fromkeys(SCHEMA.names) | {"label": 1, "weight": 2, "user": 3}
    batch = to_batch(decode_samples([sample]), SCHEMA, 0)
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
@given(sample_lists, st.integers(1, 4))
def test_padding_lacks_every_field_and_has_weight_0(samples, padding):
    size = len(samples) + padding
    batch, unpadded = to_batch(decode_samples(samples), SCHEMA, 7, size), to_batch(decode_samples(samples), SCHEMA, 7)
    assert (len(batch), batch.num_samples) == (size, len(samples))
    assert bags(batch) == {name: lists + [[]] * padding for name, lists in bags(unpadded).items()}
    for name in ("numeric", "missing", "label", "weight", "user"):
        padded = getattr(batch, name)
        assert torch.equal(padded[: len(samples)], getattr(unpadded, name))
        assert (padded[len(samples) :] == (name == "missing")).all()
    assert batch.sample_index.tolist() == list(range(7, 7 + size))


@quick
@given(st.lists(sample_lists.filter(len), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_batch_takes_the_rows_of_each_lane_in_the_given_order(lanes, steps, rows_per_step, data):
    order = np.array(
        [
            [[data.draw(st.integers(0, len(lane) - 1)) for _ in range(rows_per_step)] for _ in range(steps)]
            for lane in lanes
        ],
        dtype=np.int32,
    )
    batches = to_batches([decode_samples(lane) for lane in lanes], order, SCHEMA, range(0, 100 * steps, 100))
    for step, batch in enumerate(batches):
        rows_of_step = [lane[row] for lane, rows in zip(lanes, order[:, step], strict=True) for row in rows]
        expected = to_batch(decode_samples(rows_of_step), SCHEMA, 100 * step)
        assert bags(batch) == bags(expected)
        for name in ("numeric", "missing", "label", "weight", "user", "sample_index"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))


@quick
@given(st.lists(weighted_samples, min_size=1, max_size=6))
def test_each_id_has_its_weight_and_weights_of_means_sum_to_1(samples):
    rows = decode(weighted_table(samples), WEIGHTED_SCHEMA, "p", labelled=False)
    batch = to_batch(rows, WEIGHTED_SCHEMA, 0)
    weights = iter(batch.ids.weights().tolist())
    lengths = batch.ids.lengths().view(5, -1).tolist()
    given_weights = {
        name: [[weight for identity, weight in row[name] or [] if identity is not None] for row in samples]
        for name in ("seen", "bought")
    }
    expected = {
        "item": [[1.0] for _ in samples],
        "seen": [[weight / max(sum(row), 1e-30) for weight in row] for row in given_weights["seen"]],
        "bought": given_weights["bought"],
        "plain": [[0.5, 0.5] for _ in samples],
        "summed": [[1.0, 1.0] for _ in samples],
    }
    for name, lengths_of_field in zip(batch.ids.keys(), lengths, strict=True):
        for length, row in zip(lengths_of_field, expected[name], strict=True):
            assert list(itertools.islice(weights, length)) == pytest.approx(row, rel=1e-5)
            assert length == len(row)


def test_all_tensors_of_a_batch_move_together():
    samples = [dict.fromkeys(SCHEMA.names) | {"item": 3, "label": 1, "weight": 1, "user": 1}] * 2
    batch = to_batch(decode_samples(samples), SCHEMA, 5, 3)
    moved = batch.to(torch.device("meta"))
    assert moved.ids.values().device.type == moved.sample_index.device.type == moved.missing.device.type == "meta"
    assert moved.num_samples == 2
    assert batch.label.device.type == "cpu"


@quick
@given(sample_lists, st.integers(1, 4))
def test_samples_are_cut_into_batches_in_order(samples, size):
    rows = decode_samples(samples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "BATCHES_PER_CALL", 2)
        batches = list(split_into_batches(rows, SCHEMA, size))
    assert [len(batch) for batch in batches] == [len(samples[k : k + size]) for k in range(0, len(samples), size)]
    expected = to_batch(rows, SCHEMA, 0) if samples else None
    for start, batch in zip(range(0, len(samples), size), batches, strict=True):
        assert bags(batch) == {name: lists[start : start + size] for name, lists in bags(expected).items()}
        for name in ("numeric", "missing", "label", "weight", "user", "sample_index"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)[start : start + size])


def weighted_bags(batch):
    """Return {field: [[(id, weight) of a sample]]}."""
    lengths = batch.ids.lengths().view(len(batch.ids.keys()), -1).tolist()
    pairs = zip(batch.ids.values().tolist(), batch.ids.weights().tolist(), strict=True)
    return {
        name: [list(itertools.islice(pairs, length)) for length in lengths_of_field]
        for name, lengths_of_field in zip(batch.ids.keys(), lengths, strict=True)
    }


@quick
@given(st.lists(weighted_samples, min_size=4, max_size=9), st.data())
def test_weights_stay_with_their_ids_in_every_lane_and_step(samples, data):
    rows = decode(weighted_table(samples), WEIGHTED_SCHEMA, "p", labelled=False)
    middle = len(samples) // 2
    lanes = [rows.slice(0, middle), rows.slice(middle, len(samples))]
    order = np.array(
        [[[data.draw(st.integers(0, len(lane) - 1)) for _ in range(2)] for _ in range(3)] for lane in lanes],
        dtype=np.int32,
    )
    single = [weighted_bags(to_batch(rows.slice(k, k + 1), WEIGHTED_SCHEMA, 0)) for k in range(len(samples))]
    for step, batch in enumerate(to_batches(lanes, order, WEIGHTED_SCHEMA, [0, 4, 8])):
        rows_of_step = [
            start + row for start, rows in zip((0, middle), order[:, step], strict=True) for row in rows.tolist()
        ]
        expected = {name: [single[row][name][0] for row in rows_of_step] for name in WEIGHTED_SCHEMA.sparse}
        assert weighted_bags(batch) == expected
    parts = [weighted_bags(batch) for batch in split_into_batches(rows, WEIGHTED_SCHEMA, 3)]
    for name in WEIGHTED_SCHEMA.sparse:
        assert [bag for part in parts for bag in part[name]] == [bags_of_row[name][0] for bags_of_row in single]
