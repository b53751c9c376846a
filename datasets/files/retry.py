"""Retry reads over a network after transient failures.

The main task of this module is to recognise transient failures: pyarrow's filesystems raise a plain OSError for all
failures. A retry library such as tenacity would replace only the loop of `with_retries`, so the project uses none.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

RETRY_DELAYS = (1.0, 2.0, 4.0)
"""Delay before each retry in seconds. The SDKs of object stores retry for some seconds too, before pyarrow raises."""
TRANSIENT_ERRNOS = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ESTALE,
}
TRANSIENT_MESSAGES = re.compile(
    r"NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|UNAVAILABLE|INTERNAL_FAILURE|DEADLINE_EXCEEDED"
    r"|HTTP status (5\d\d|429)|curlCode|[Tt]imed out|[Cc]onnection (refused|reset|closed)"
)
"""Texts in the error messages of pyarrow's filesystems that identify transient failures."""

T = TypeVar("T")


def with_retries(function: Callable[[], T]) -> T:
    """Return the result of `function`; call it again after each of RETRY_DELAYS while it raises a transient error.

    Other errors are raised immediately. A transient error is raised if the last retry fails.
    """
    for delay in RETRY_DELAYS:
        try:
            return function()
        except (pa.ArrowException, OSError) as error:
            if not is_transient(error):
                raise
        time.sleep(delay)
    return function()


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: True for a failed connection, False for a missing or damaged file."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in TRANSIENT_ERRNOS:
        return True
    return TRANSIENT_MESSAGES.search(str(error)) is not None


def describe_error(error: BaseException) -> str:
    """Return the first line of an error's message, with the number of attempts if the error is transient."""
    line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"tried {len(RETRY_DELAYS) + 1} times: {line}" if is_transient(error) else line
