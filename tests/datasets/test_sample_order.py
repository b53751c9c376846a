"""The sample order of an epoch, for random row group sizes, lanes, windows and batch sizes."""

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
    """Yield the number and the unshuffled row numbers of each window of a lane."""
    firsts = np.cumsum(epoch.sizes) - epoch.sizes
    for window in range(-(-epoch.steps // epoch.steps_per_window)):
        parts = epoch.window_slices(lane, window)
        for part in parts:
            assert 0 <= part.start < part.stop <= epoch.sizes[part.row_group]
        yield window, np.concatenate([np.arange(part.start, part.stop) + firsts[part.row_group] for part in parts])


def read(epoch):
    """Return the row numbers of the batches of an epoch, [steps, batch_size]."""
    lanes = []
    for lane in range(epoch.lanes):
        shuffled = [rows[epoch.window_order(lane, window, len(rows))] for window, rows in windows(epoch, lane)]
        lanes.append(np.concatenate(shuffled)[: epoch.steps * epoch.rows_per_step].reshape(epoch.steps, -1))
    return np.concatenate(lanes, axis=1)


@quick
@given(epochs())
def test_an_epoch_reads_no_row_twice_and_leaves_out_fewer_rows_than_a_batch(epoch):
    rows = int(epoch.sizes.sum())
    batches = read(epoch)
    assert batches.shape == (rows // epoch.batch_size, epoch.batch_size)
    assert len(set(batches.reshape(-1).tolist())) == batches.size > rows - epoch.batch_size
    assert batches.min() >= 0
    assert batches.max() < rows


@quick
@given(epochs())
def test_windows_cover_the_lanes_without_overlap(epoch):
    seen = Counter()
    for lane in range(epoch.lanes):
        lengths = []
        for _, rows in windows(epoch, lane):
            seen.update(rows.tolist())
            lengths.append(len(rows))
        full_window = epoch.steps_per_window * epoch.rows_per_step
        assert lengths[:-1] == [full_window] * (len(lengths) - 1)
        assert sum(lengths) == min(epoch.lane_rows, len(lengths) * full_window)
    assert set(seen.values()) == {1}


@quick
@given(epochs())
def test_the_order_depends_only_on_the_arguments(epoch):
    other = Epoch(epoch.sizes.copy(), epoch.seed, epoch.epoch, epoch.batch_size, epoch.lanes, epoch.window)
    last = epoch.lanes - 1
    assert other.window_slices(last, 0) == epoch.window_slices(last, 0), "earlier calls do not matter"
    np.testing.assert_array_equal(read(other), read(epoch))


def epoch(number=0, seed=1, sizes=(50, 7, 130, 33, 90), window=16):
    return Epoch(np.array(sizes), seed, number, 32, 8, window)


@pytest.mark.parametrize("other", [epoch(number=1), epoch(seed=2)], ids=["epoch", "seed"])
@pytest.mark.parametrize("sizes", [(50, 7, 130, 33, 90), (310,)], ids=["many", "one"])
def test_different_epochs_and_seeds_give_different_orders(other, sizes):
    one, other = read(epoch(sizes=sizes)), read(replace(other, sizes=np.array(sizes)))
    assert (one != other).mean() > 0.9
    assert set(one.reshape(-1).tolist()) != set(other.reshape(-1).tolist()), "they leave out different rows"


def test_different_lanes_and_windows_give_different_orders():
    orders = {tuple(epoch().window_order(lane, window, 16)) for lane in range(8) for window in range(2)}
    assert len(orders) == 16


@pytest.mark.parametrize("sizes", [(50, 7, 130, 33, 90), (310,)])
def test_all_rows_are_left_out_equally_often(sizes):
    """The 22 of 310 rows that an epoch leaves out are uniformly distributed over many epochs."""
    count, num_epochs = np.zeros(310), 300
    for number in range(num_epochs):
        count[read(epoch(number, sizes=sizes, window=1000)).reshape(-1)] += 1
    expected = num_epochs * 288 / 310
    assert abs(count - expected).max() < 5 * np.sqrt(num_epochs * 288 / 310 * 22 / 310)


def test_a_shuffled_window_does_not_follow_the_row_order():
    rows = 4096
    orders = [Epoch(np.array([rows]), seed, 0, 1, 1, rows).window_order(0, 0, rows) for seed in range(20)]
    for order in orders:
        assert sorted(order) == list(range(rows))
        assert abs(np.corrcoef(order, np.arange(rows))[0, 1]) < 5 / np.sqrt(rows)
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(rows)
    first_rows = np.stack(orders)[:, 0]
    assert len(set(first_rows.tolist())) > 15


def test_all_permutations_of_a_small_window_are_equally_likely():
    counts = Counter(tuple(epoch(number).window_order(0, 0, 3)) for number in range(6000))
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 5 * np.sqrt(1000 * 5 / 6)


@quick
@given(rows=st.integers(0, 100), world_size=st.integers(1, 12))
def test_evaluation_slices_divide_the_rows_evenly(rows, world_size):
    slices = [evaluation_slice(rows, rank, world_size) for rank in range(world_size)]
    assert [slices[0][0], slices[-1][1]] == [0, rows]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(slices))
    lengths = {stop - start for start, stop in slices}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) == -(-rows // world_size)
