"""Publish values of a worker as gauges of Ray, which Ray's agents pass to Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Gauge


def metrics_publisher(rank: int) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that sets the gauge asymdiffrec_KEY, tagged with this rank, for each number of a record.

    Rank 0 publishes the values of the record that describe all workers together. The list `ranks` in the record has an
    element with the values of each worker, and each worker publishes its element. Values that are not numbers are
    ignored.
    """
    gauges: dict[str, Gauge] = {}

    def publish(record: Mapping[str, Any]) -> None:
        shared = record if rank == 0 else {}
        for key, value in {**shared, **record["ranks"][rank]}.items():
            if isinstance(value, int | float):
                name = f"asymdiffrec_{re.sub('[^0-9A-Za-z]', '_', key)}"
                if name not in gauges:
                    gauges[name] = Gauge(name, tag_keys=("rank",))
                gauges[name].set(value, {"rank": str(rank)})

    return publish
