"""The order of an epoch, over random sizes of everything."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.sample_order import Epoch, evaluation_slice

quick = settings(derandomize=True, deadline=None, max_examples=80)


@st.composite
def epochs(draw):
    lanes = draw(st.integers(1, 6))
    batch_size = lanes * draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    sizes[0] += max(0, batch_size - sum(sizes))  # at least one step
    return Epoch(
        np.array(sizes),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 3)),
        batch_size,
        lanes,
        draw(st.integers(1, 30)),
    )


def windows(epoch, lane):
    """Number and row numbers of the windows of a lane that hold whole steps, before they are permuted."""
    firsts = np.cumsum(epoch.sizes) - epoch.sizes
    for window in range(-(-epoch.steps // epoch.steps_per_window)):
        parts = epoch.window_slices(lane, window)
        for part in parts:
            assert 0 <= part.start < part.stop <= epoch.sizes[part.row_group]
        yield window, np.concatenate([np.arange(part.start, part.stop) + firsts[part.row_group] for part in parts])


def read(epoch):
    """The row numbers of the epoch's batches, [steps, batch_size]."""
    lanes = []
    for lane in range(epoch.lanes):
        drawn = [rows[epoch.window_order(lane, window, len(rows))] for window, rows in windows(epoch, lane)]
        lanes.append(np.concatenate(drawn)[: epoch.steps * epoch.rows_per_step].reshape(epoch.steps, -1))
    return np.concatenate(lanes, axis=1)


@quick
@given(epochs())
def test_an_epoch_reads_no_row_twice_and_leaves_out_less_than_a_batch(epoch):
    rows = int(epoch.sizes.sum())
    found = read(epoch)
    assert found.shape == (rows // epoch.batch_size, epoch.batch_size)
    assert len(set(found.reshape(-1).tolist())) == found.size > rows - epoch.batch_size
    assert found.min() >= 0
    assert found.max() < rows


@quick
@given(epochs())
def test_windows_partition_the_lanes_and_lanes_the_sequence(epoch):
    seen = Counter()
    for lane in range(epoch.lanes):
        lengths = []
        for _, rows in windows(epoch, lane):
            seen.update(rows.tolist())
            lengths.append(len(rows))
        whole = epoch.steps_per_window * epoch.rows_per_step
        assert lengths[:-1] == [whole] * (len(lengths) - 1)
        assert sum(lengths) == min(epoch.lane_rows, len(lengths) * whole)
    assert set(seen.values()) == {1}


@quick
@given(epochs())
def test_the_order_is_a_function_of_its_arguments_alone(epoch):
    again = Epoch(epoch.sizes.copy(), epoch.seed, epoch.epoch, epoch.batch_size, epoch.lanes, epoch.window)
    last = epoch.lanes - 1
    assert again.window_slices(last, 0) == epoch.window_slices(last, 0), "whatever was asked before"
    np.testing.assert_array_equal(read(again), read(epoch))


def epoch(number=0, seed=1, sizes=(50, 7, 130, 33, 90), window=16):
    return Epoch(np.array(sizes), seed, number, 32, 8, window)


@pytest.mark.parametrize("other", [epoch(number=1), epoch(seed=2)], ids=["epoch", "seed"])
@pytest.mark.parametrize("sizes", [(50, 7, 130, 33, 90), (310,)], ids=["many", "one"])
def test_epochs_and_seeds_have_orders_of_their_own(other, sizes):
    one, other = read(epoch(sizes=sizes)), read(replace(other, sizes=np.array(sizes)))
    assert (one != other).mean() > 0.9
    assert set(one.reshape(-1).tolist()) != set(other.reshape(-1).tolist()), "other rows are left out"


def test_lanes_and_windows_have_orders_of_their_own():
    drawn = {tuple(epoch().window_order(lane, window, 16)) for lane in range(8) for window in range(2)}
    assert len(drawn) == 16


@pytest.mark.parametrize("sizes", [(50, 7, 130, 33, 90), (310,)])
def test_every_row_is_left_out_as_often_as_any_other(sizes):
    """22 of the 310 rows of each epoch."""
    count, epochs_ = np.zeros(310), 300
    for number in range(epochs_):
        count[read(epoch(number, sizes=sizes, window=1000)).reshape(-1)] += 1
    expected = epochs_ * 288 / 310
    assert abs(count - expected).max() < 5 * np.sqrt(epochs_ * 288 / 310 * 22 / 310)


def test_the_order_of_a_window_is_no_longer_that_of_the_rows():
    rows = 4096
    ranks = [Epoch(np.array([rows]), seed, 0, 1, 1, rows).window_order(0, 0, rows) for seed in range(20)]
    for drawn in ranks:
        assert sorted(drawn) == list(range(rows))
        assert abs(np.corrcoef(drawn, np.arange(rows))[0, 1]) < 5 / np.sqrt(rows)
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / np.sqrt(rows)
    places = np.stack(ranks)[:, 0]
    assert len(set(places.tolist())) > 15


def test_every_permutation_of_a_small_window_is_as_likely():
    drawn = Counter(tuple(epoch(number).window_order(0, 0, 3)) for number in range(6000))
    assert len(drawn) == 6
    assert max(abs(count - 1000) for count in drawn.values()) < 5 * np.sqrt(1000 * 5 / 6)


@quick
@given(rows=st.integers(0, 100), workers=st.integers(1, 12))
def test_evaluation_slices_partition_the_rows_evenly(rows, workers):
    slices = [evaluation_slice(rows, worker, workers) for worker in range(workers)]
    assert [slices[0][0], slices[-1][1]] == [0, rows]
    assert all(one[1] == next_[0] for one, next_ in itertools.pairwise(slices))
    lengths = {stop - start for start, stop in slices}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) == -(-rows // workers)
