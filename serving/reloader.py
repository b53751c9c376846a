"""Load the export in a folder. While the server runs, also load each new export that appears in the folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.errors import RequestError
from asymdiffrec.serving.export import MANIFEST, load_export

POLL_SECONDS = 1.0
"""Time between two checks of the folder. File system notifications would miss changes on network file systems."""


class Reloader:
    """The engine of the export in a folder; `watch` replaces the engine when the folder gets a new export.

    folder: an export folder, or a link to an export folder.
    report: called with one line when a new export was loaded or failed to load.
    prepare: called with each new engine before the engine answers requests.

        reloader = Reloader(Path("model"))
        reloader.load()
        reloader.watch()
        reloader.engine().score(table)
    """

    def __init__(
        self,
        folder: Path,
        *,
        allow_user_classes: bool = False,
        report: Callable[[str], None] = lambda line: None,
        prepare: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self._folder, self._allow_user_classes, self._report, self._prepare = (
            folder,
            allow_user_classes,
            report,
            prepare,
        )
        self._engine: Engine | None = None
        self._loaded_state: object = None
        self._closed = threading.Event()
        self.reloads = 0
        """Number of times that a new export replaced the loaded export"""
        self.reload_error: str | None = None
        """The reason why the export in the folder cannot be loaded; None if this export is loaded"""

    def engine(self) -> Engine:
        """Return the current engine; raise RequestError (503) if no export is loaded yet."""
        if self._engine is None:
            raise RequestError(503, "the model is not loaded yet; try again later")
        return self._engine

    def load(self) -> Engine:
        """Load the export in the folder, run its self-test, and make it the current engine.

        Raises InputError if the export cannot be loaded; the current engine then stays in use.
        """
        state = self._folder_state()
        engine = Engine(load_export(self._folder.resolve(), allow_user_classes=self._allow_user_classes))
        engine.warm_up()
        self._prepare(engine)
        self._engine, self._loaded_state, self.reload_error = engine, state, None
        return engine

    def watch(self) -> None:
        """Start a thread that loads every new export in the folder, until `close`."""
        threading.Thread(target=self._watch, name="reloader", daemon=True).start()

    def close(self) -> None:
        """Stop watching the folder."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            state = self._folder_state()
            if state is None or state == self._loaded_state:
                continue
            previous = self._engine.version if self._engine else "none"
            try:
                version = self.load().version
            # After any error the current engine continues to answer, and the next export is tried.
            except Exception as error:
                self._loaded_state, self.reload_error = state, str(error)
                self._report(f"warning: the new export cannot be loaded; the server keeps version {previous}: {error}")
            else:
                self.reloads += 1
                self._report(f"Version {version} replaced version {previous}")

    def _folder_state(self) -> object:
        """Return a value that changes when a file in the folder changes; None while the folder has no export."""
        try:
            files = {entry.name: entry.stat() for entry in os.scandir(self._folder)}
        except OSError:
            return None
        if MANIFEST not in files:
            return None
        return {name: (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in files.items()}
