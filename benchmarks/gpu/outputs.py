"""The outputs of a section of the throughput measurements: results, details, failures."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._result import Result


@dataclass(frozen=True)
class Failure:
    """A measurement that raised an exception. The section continues with other measurements and fails at its end."""

    name: str
    error: str

    @staticmethod
    def of(name: str, error: Exception) -> Failure:
        """Return a failure for the exception that is being handled, and print its traceback."""
        traceback.print_exc()
        return Failure(name, f"{type(error).__name__}: {error}"[:1000])


Output = Result | Failure | dict[str, Any]
"""A dict has details, which only summary.json shows"""


def write(file: Path, outputs: Sequence[Output]) -> None:
    """Write outputs as one JSON document."""
    document: dict[str, Any] = {
        "results": [output.document() for output in outputs if isinstance(output, Result)],
        "details": [output for output in outputs if isinstance(output, dict)],
        "failures": [asdict(output) for output in outputs if isinstance(output, Failure)],
    }
    file.write_text(json.dumps(document, indent=1))
