"""The export that is live: another one in its place is loaded aside, checked and swapped in, or refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import MANIFEST, load_export
from asymdiffrec.serving.protocol import RequestError

EVERY = 1.0
"""Seconds between looks at the folder"""


class Reloader:
    """Serves what a folder, or a link to one, holds, and from `watch` on what it comes to hold.

    tell: is told in a line what was swapped in or refused; prepare: is called with what was loaded, before it is live.
    """

    def __init__(
        self,
        folder: Path,
        *,
        allow_user_classes: bool = False,
        tell: Callable[[str], None] = lambda line: None,
        prepare: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self._folder, self._own_classes, self._tell, self._prepare = folder, allow_user_classes, tell, prepare
        self._engine: Engine | None = None
        self._seen: object = None
        self._end = threading.Event()
        self.swaps = 0
        self.refused: str | None = None
        """Why what the folder holds now is not live"""

    def engine(self) -> Engine:
        """RefusedError while there is none."""
        if self._engine is None:
            raise RequestError(503, "not ready yet")
        return self._engine

    def load(self) -> Engine:
        """Load and check what the folder holds now, and make it live. InputError where it is not fit to serve; what was
        live stays so."""
        seen = self._look()
        engine = Engine(load_export(self._folder.resolve(), allow_user_classes=self._own_classes))
        engine.warm()
        self._prepare(engine)
        self._engine, self._seen, self.refused = engine, seen, None
        return engine

    def watch(self) -> None:
        """Swap in what comes to be there, from a thread, until `close`."""
        threading.Thread(target=self._watch, name="watching", daemon=True).start()

    def close(self) -> None:
        self._end.set()

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            seen = self._look()
            if seen is None or seen == self._seen:
                continue
            before = self._engine.version if self._engine else "nothing"
            try:
                version = self.load().version
            except Exception as error:  # whatever it is, what is live stays so, and the next one is looked at
                self._seen, self.refused = seen, str(error)
                self._tell(f"Still version {before}, for the new one cannot be served: {error}")
            else:
                self.swaps += 1
                self._tell(f"Version {version} in place of {before}")

    def _look(self) -> object:
        """What tells one export from another; None while there is none."""
        try:
            files = {entry.name: entry.stat() for entry in os.scandir(self._folder)}
        except OSError:
            return None
        if MANIFEST not in files:
            return None
        return {name: (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size) for name, found in files.items()}
