"""Verdicts on disk: what a judge has said is not asked again, by this run, the next, or another process."""

import json
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

_BUSY_S = 30.0
"""How long one process waits for another's write."""


class VerdictCache:
    """Key -> verdict in one SQLite file, opened when first used, by one thread.

    Each verdict is a transaction of its own: a process that is killed loses none that it has written, and leaves a file
    that others can read. The journal (WAL) wants a file system of this machine, not one of the network.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._connection: Any = None
        self._writes = True

    def get(self, key: str) -> dict[str, Any] | None:
        """The verdict, None where there is none. Raises ValueError where the file is no such cache."""
        import sqlite3

        try:
            row = self._open().execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"the judge's cache {self.path} cannot be read ({error}); delete or rename it") from None
        return None if row is None else json.loads(row[0])

    def put(self, key: str, verdict: dict[str, Any]) -> None:
        """Keeps a verdict. A disk that takes no more ends the keeping, with a warning, not the run."""
        import sqlite3

        if not self._writes:
            return
        try:
            with self._open() as connection:
                connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, json.dumps(verdict)))
        except sqlite3.OperationalError as error:
            self._writes = False
            warnings.warn(f"the judge's cache {self.path} keeps no more verdicts: {error}", stacklevel=2)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Any:
        import sqlite3

        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_BUSY_S)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last verdicts, a kill loses none
            with connection, closing(connection.cursor()) as cursor:
                cursor.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
            self._connection = connection
        return self._connection
