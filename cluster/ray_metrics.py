"""Values of a worker as gauges of Ray, which Ray's agents show to Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Gauge


def metrics_publisher(rank: int) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that sets the gauge asymdiffrec_KEY, tagged with this rank, for each number of a record.

    A record has values that hold for all workers, which rank 0 publishes, and under `ranks` a list with the values of
    each worker, which each worker publishes for itself. Values that are not numbers are ignored.
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
