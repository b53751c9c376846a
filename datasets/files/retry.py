"""Trying again where a connection failed, and only there."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each new attempt; the SDKs of object stores have tried several times for some seconds by themselves"""
NUMBERS = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ESTALE,
}
WORDS = re.compile(
    r"NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|UNAVAILABLE|INTERNAL_FAILURE|DEADLINE_EXCEEDED"
    r"|HTTP status (5\d\d|429)|curlCode|[Tt]imed out|[Cc]onnection (refused|reset|closed)"
)
"""What pyarrow's filesystems say of failures that may pass: they raise a bare OSError for whatever goes wrong"""

T = TypeVar("T")


def patiently(work: Callable[[], T]) -> T:
    """What `work` gives. Where it fails as a connection does, it is called again after each of PAUSES."""
    for pause in PAUSES:
        try:
            return work()
        except (pa.ArrowException, OSError) as error:
            if not passing(error):
                raise
        time.sleep(pause)
    return work()


def passing(error: BaseException) -> bool:
    """Whether an error may be gone at the next attempt: not that of a file that is lacking, forbidden or damaged."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in NUMBERS:
        return True
    return WORDS.search(str(error)) is not None


def reason(error: BaseException) -> str:
    """What an error says, in one line, and that it came again where it was tried again."""
    line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"tried {len(PAUSES) + 1} times: {line}" if passing(error) else line
