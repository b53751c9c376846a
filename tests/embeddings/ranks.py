"""Two ranks of a test program of its own, which write down what they found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def two_reports(program: str, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """What two ranks of the test file `program`, run with RANK and FOLDER, left in FOLDER/rankRANK.json."""
    module = ".".join(Path(program).relative_to(ROOT).with_suffix("").parts)
    settings = {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(folder)],
            cwd=ROOT,
            env=os.environ | settings | {"LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=seconds)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
