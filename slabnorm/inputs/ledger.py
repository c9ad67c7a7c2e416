"""The ledger of a fit: an SQLite file of the tallies of shards that are done; from it a killed fit goes on.

A shard's tally, its fingerprint and a digest of both are committed in one transaction, once. While a fit
runs it holds the file's lock, so that two never write one output.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slabnorm.errors import LedgerError
from slabnorm.inputs.sources.base import Shard
from slabnorm.inputs.tally import Tally

_TABLES = """
CREATE TABLE IF NOT EXISTS fit (plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, fingerprint TEXT NOT NULL,
    tally BLOB NOT NULL, digest TEXT NOT NULL
);
"""


class Ledger:
    """The shards that are done.

    Args:
        path: the file; it is made if there is none.
        plan: what is counted, as JSON's own types: a ledger goes on with the same only.
        resume: whether to go on with what is there.

    Raises:
        LedgerError: there is one of an interrupted fit, and `resume` is false; it is damaged, of another
            plan, or another fit writes it.
    """

    def __init__(self, path: Path, plan: dict[str, Any], resume: bool) -> None:
        self.path = path
        found = path.exists() and path.stat().st_size > 0
        if found and not resume:
            raise LedgerError(
                "a fit that was interrupted is gone on with, or begun anew on purpose",
                f"{path} holds what one has counted",
                "go on with resume=True (--resume), or delete that file",
            )
        with self._mistakes():
            # Statements commit at once, but for those between BEGIN and COMMIT.
            self._base = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
            try:
                self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(f"BEGIN EXCLUSIVE;{_TABLES}COMMIT;")
                self._check_plan(json.dumps(plan, sort_keys=True))
            except BaseException:
                self._base.close()
                raise

    def done(self, shards: list[Shard]) -> Iterator[tuple[Shard, Tally]]:
        """Yield the shards that are done, with their tallies.

        Raises:
            LedgerError: an entry is damaged, or a shard has changed since.
        """
        with self._mistakes():
            rows = self._base.execute("SELECT number, name, fingerprint, tally, digest FROM shards")
            for number, name, fingerprint, content, digest in rows:
                if digest != _digest(number, name, fingerprint, content):
                    raise self._damaged(f"the entry of shard {number} is not what was written")
                if not 0 <= number < len(shards) or _text(shards[number].name) != name:
                    raise LedgerError(
                        "a fit goes on with the same data",
                        f"{self.path} has {name}, which is no longer shard {number} of the data",
                        "bring it back, or delete the ledger and begin anew",
                    )
                if shards[number].fingerprint != fingerprint:
                    raise LedgerError(
                        "a fit goes on with data that have not changed",
                        f"{name} has changed since it was counted",
                        "delete the ledger and begin anew",
                    )
                yield shards[number], Tally.from_bytes(content)

    def add(self, shard: Shard, tally: Tally) -> None:
        """Commit a shard's tally.

        Raises:
            LedgerError: it cannot be written, as on a full disk.
        """
        content = tally.to_bytes()
        name = _text(shard.name)
        digest = _digest(shard.number, name, shard.fingerprint, content)
        row = (shard.number, name, shard.fingerprint, content, digest)
        with self._mistakes():
            self._base.execute("INSERT INTO shards VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Let go of the file; a ledger without entries is deleted."""
        with self._mistakes():
            empty = not self._base.execute("SELECT EXISTS (SELECT 1 FROM shards)").fetchone()[0]
        self.remove() if empty else self._base.close()

    def remove(self) -> None:
        """Delete the file: the fit is whole."""
        self.path.unlink(missing_ok=True)
        self._base.close()

    def _check_plan(self, plan: str) -> None:
        found = self._base.execute("SELECT plan FROM fit").fetchall()
        if not found:
            self._base.execute("INSERT INTO fit VALUES (?)", (plan,))
        elif found != [(plan,)]:
            raise LedgerError(
                "a fit goes on with the arguments it began with",
                f"{self.path} was begun with {_difference(found[0][0], plan)}",
                "give the same arguments, or delete the ledger and begin anew",
            )

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        try:
            yield
        except LedgerError:  # which is a ValueError
            raise
        except sqlite3.OperationalError as error:
            if "no such" in str(error):  # another program's tables
                raise self._damaged(str(error)) from error
            if "locked" in str(error):
                raise LedgerError(
                    "one fit at a time writes an output",
                    f"{self.path} is in use",
                    "wait for the other fit, or name another output",
                ) from error
            raise LedgerError("a ledger can be written", f"{self.path}: {error}", "make room") from error
        except (sqlite3.Error, ValueError, KeyError, TypeError, OverflowError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> LedgerError:
        return LedgerError(
            "a ledger is as slabnorm wrote it", f"{self.path}: {why}", "delete it and begin anew"
        )


def _text(name: str) -> str:
    """Return a name that SQLite takes: those of files may hold bytes that are no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _digest(number: int, name: str, fingerprint: str, content: bytes) -> str:
    head = json.dumps([number, name, fingerprint]).encode()
    return hashlib.sha256(head + content).hexdigest()


def _difference(old: str, new: str) -> str:
    """Say what of two plans differs."""
    try:
        a, b = json.loads(old), json.loads(new)
        keys = [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
        return "; ".join(f"{key}={a.get(key)!r}, not {b.get(key)!r}" for key in sorted(keys))
    except (ValueError, AttributeError):
        return "other arguments"
