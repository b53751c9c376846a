from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asymdiffrec.datasets.prepare.movielens.past_events import past_events

EVENT = st.tuples(st.integers(0, 3), st.integers(-5, 5), st.booleans(), st.integers(0, 9))


@given(st.lists(EVENT, min_size=1, max_size=40), st.integers(1, 5))
def test_past_events_have_the_same_key_and_a_smaller_time(
    events: list[tuple[int, int, bool, int]], max_length: int
) -> None:
    key, time, counts, value = (np.array(column) for column in zip(*events, strict=True))
    past = past_events(key, time, counts)
    lists = past.last(value, max_length).to_pylist()
    for row in range(len(events)):
        earlier = np.flatnonzero(counts & (key == key[row]) & (time < time[row]))
        earlier = earlier[np.argsort(time[earlier], kind="stable")]
        assert past.count()[row] == len(earlier)
        assert past.total(value)[row] == value[earlier].sum()
        assert lists[row] == value[earlier][-max_length:].tolist()
