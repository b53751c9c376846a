"""What is tried again, and what is not."""

import errno

import pyarrow as pa
import pytest

from asymdiffrec.datasets.files import retry
from asymdiffrec.datasets.files.retry import RETRY_DELAYS, describe_error, with_retries

REFUSED = OSError(
    "When reading information for key 'x' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation: "
    "curlCode: 7, Could not connect to server"
)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, without making them."""
    made = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


def failing(error, times):
    calls = []

    def work():
        calls.append(error)
        if len(calls) <= times:
            raise error
        return "done"

    return work, calls


@pytest.mark.parametrize(
    "error",
    [
        REFUSED,
        OSError("AWS Error UNKNOWN (HTTP status 503) during GetObject operation: No response body."),
        OSError("AWS Error SLOW_DOWN during GetObject operation"),
        OSError("google::cloud::Status(UNAVAILABLE: try again)"),
        ConnectionResetError("reset"),
        TimeoutError("too long"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
def test_a_connection_is_tried_again(error, pauses):
    work, calls = failing(error, 2)
    assert with_retries(work) == "done"
    assert (len(calls), pauses) == (3, list(RETRY_DELAYS[:2]))


def test_patience_ends(pauses):
    work, calls = failing(REFUSED, 99)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        with_retries(work)
    assert (len(calls), pauses) == (len(RETRY_DELAYS) + 1, list(RETRY_DELAYS))
    assert sum(RETRY_DELAYS) < 10
    assert describe_error(REFUSED).startswith(f"tried {len(RETRY_DELAYS) + 1} times: When reading")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),
        OSError(errno.ENOSPC, "No space left on device"),
        pa.ArrowInvalid("Parquet magic bytes not found in footer"),
    ],
)
def test_nothing_else_is_tried_again(error, pauses):
    work, calls = failing(error, 1)
    with pytest.raises(type(error)):
        with_retries(work)
    assert (len(calls), pauses) == (1, [])
    assert not describe_error(error).startswith("tried")
