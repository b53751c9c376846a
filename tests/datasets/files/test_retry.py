"""Retries: errors that are retried, and errors that are not."""

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
def delays(monkeypatch):
    """The delays between attempts; no test waits for them."""
    seconds = []
    monkeypatch.setattr(retry.time, "sleep", seconds.append)
    return seconds


def failing_function(error, times):
    """Return a function that raises an error in its first calls, and the list of its calls."""
    calls = []

    def function():
        calls.append(error)
        if len(calls) <= times:
            raise error
        return "done"

    return function, calls


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
def test_a_failed_connection_is_retried(error, delays):
    function, calls = failing_function(error, 2)
    assert with_retries(function) == "done"
    assert (len(calls), delays) == (3, list(RETRY_DELAYS[:2]))


def test_the_number_of_retries_is_limited(delays):
    function, calls = failing_function(REFUSED, 99)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        with_retries(function)
    assert (len(calls), delays) == (len(RETRY_DELAYS) + 1, list(RETRY_DELAYS))
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
def test_other_errors_are_not_retried(error, delays):
    function, calls = failing_function(error, 1)
    with pytest.raises(type(error)):
        with_retries(function)
    assert (len(calls), delays) == (1, [])
    assert not describe_error(error).startswith("tried")
