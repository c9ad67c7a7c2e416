"""The ledger of a fit: an SQLite file of the tallies of shards that are done; from it a killed fit goes on.

A shard's tally, its fingerprint and a digest of both and of the plan are committed in one transaction, once.
While a fit runs it holds the file's lock, so that two never write one output.

The header of the file has slabnorm's application id from the first transaction on. A file without it is not
ours: it is neither opened by SQLite, which may write to what it opens, nor deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from slabnorm.errors import LedgerError
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sources.base import Shard
from slabnorm.text import printable

APPLICATION = int.from_bytes(b"slbn", "big")
_MAGIC, _JOURNAL = b"SQLite format 3\0", bytes.fromhex("d9d505f920a163d7")
_BESIDE = ("-journal", "-wal", "-shm")  # what SQLite has beside a file while it writes to it
_TABLES = f"""
PRAGMA application_id = {APPLICATION};
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
        self.path, self._plan = path, json.dumps(plan, sort_keys=True)
        if _check_ours(path) and not resume:
            raise LedgerError(
                "a fit that was interrupted is gone on with, or begun anew on purpose",
                f"{printable(path)} holds what one has counted",
                "go on with resume=True (--resume), or delete that file",
            )
        with self._mistakes():
            # Statements commit at once, but for those between BEGIN and COMMIT.
            self._base = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
            try:
                self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(f"BEGIN EXCLUSIVE;{_TABLES}COMMIT;")
                self._check_plan()
            except BaseException:
                self._base.close()
                raise

    @staticmethod
    def files(path: Path) -> list[Path]:
        """Return a ledger's path and those of what SQLite may write beside it."""
        return [path, *(Path(f"{path}{end}") for end in _BESIDE)]

    @staticmethod
    def delete(path: Path) -> None:
        """Delete a ledger; what is none stays.

        Raises:
            LedgerError: the file is none.
        """
        if _check_ours(path):
            path.unlink(missing_ok=True)

    def done(self, shards: list[Shard]) -> Iterator[tuple[Shard, Tally]]:
        """Yield the shards that are done, with their tallies.

        Raises:
            LedgerError: an entry is damaged or there twice, or a shard has changed since.
        """
        seen = set[int]()
        with self._mistakes():
            rows = self._base.execute("SELECT number, name, fingerprint, tally, digest FROM shards")
            for number, name, fingerprint, content, digest in rows:
                if digest != _digest(self._plan, number, name, fingerprint, content):
                    raise self._damaged(f"the entry of shard {number} is not what was written")
                if number in seen:
                    raise self._damaged(f"the entry of shard {number} is there twice")
                seen.add(number)
                if not 0 <= number < len(shards) or _text(shards[number].name) != name:
                    raise LedgerError(
                        "a fit goes on with the same data",
                        f"{printable(self.path)} has {name}, which is no longer shard {number} of the data",
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
        digest = _digest(self._plan, shard.number, name, shard.fingerprint, content)
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

    def _check_plan(self) -> None:
        found = self._base.execute("SELECT plan FROM fit").fetchall()
        if not found:
            self._base.execute("INSERT INTO fit VALUES (?)", (self._plan,))
        elif len(found) > 1 or not isinstance(found[0][0], str):
            raise self._damaged(f"it is of {len(found)} fits")
        elif found[0][0] != self._plan:
            raise LedgerError(*_difference(printable(self.path), found[0][0], self._plan))

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        try:
            yield
        except LedgerError:  # which is a ValueError
            raise
        except sqlite3.OperationalError as error:
            fixes = {
                "locked": "",
                "readonly": "make it writable, with the folder it is in, or name another output",
                "unable to open": "name one in a folder that exists and that you may write to",
                "full": "make room",
                "I/O": "look at the disk, and at the rights of the folder",
            }
            fix = next((fixes[word] for word in fixes if word in str(error)), None)
            if fix is None:  # of what is in the file, as "no such column"
                raise self._damaged(str(error)) from error
            if not fix:
                raise LedgerError(
                    "one fit at a time writes an output",
                    f"{printable(self.path)} is in use",
                    "wait for the other fit, or name another output",
                ) from error
            raise LedgerError("a ledger can be written", f"{printable(self.path)}: {error}", fix) from error
        # MemoryError: a length that was changed to gigabytes.
        except (sqlite3.Error, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise self._damaged(str(error) or type(error).__name__) from error

    def _damaged(self, why: str) -> LedgerError:
        return LedgerError(
            "a ledger is as slabnorm wrote it", f"{printable(self.path)}: {why}", "delete it and begin anew"
        )


def base_of(path: Path) -> Path:
    """Return the path of the ledger that a file is beside, or the path itself."""
    end = next((end for end in _BESIDE if path.name.endswith(end)), "")
    return path.with_name(path.name.removesuffix(end)) if path.name != end else path


def is_ledger(path: Path) -> bool:
    """Whether a file is a ledger."""
    try:
        return path.is_file() and _check_ours(path)
    except LedgerError:
        return False


def _check_ours(path: Path) -> bool:
    """Whether there is a ledger at a path, which is nothing, an empty file, or a ledger.

    Raises:
        LedgerError: it is something else, which is not to be touched, or it cannot be looked at.
    """
    try:
        for file in Ledger.files(path):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited for
                    raise _foreign(file, "it is no regular file")
        head, journal = (_head(file) for file in Ledger.files(path)[:2])
    except LedgerError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        raise LedgerError(
            "a ledger can be written", f"{printable(path)}: {why}", "name another one, as by another output"
        ) from error
    if head and not head.startswith(_MAGIC):
        raise _foreign(path, "file is not a database")
    if head and int.from_bytes(head[68:72], "big") != APPLICATION:
        raise _foreign(path, "a database without slabnorm's mark: of another program, or of slabnorm 0.1")
    # SQLite takes what is beside a file for its own, plays it back and deletes it.
    # Until it is synchronised, a journal begins with zeros.
    if journal[:8].strip(b"\0") and not journal.startswith(_JOURNAL):
        raise _foreign(Ledger.files(path)[1], "file is not a journal")
    return bool(head)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(100)
    except FileNotFoundError:
        return b""


def _foreign(path: Path, why: str) -> LedgerError:
    return LedgerError(
        "what lies at a ledger's place is a ledger of this slabnorm; other files are not touched",
        f"{printable(path)}: {why}",
        "move it away, or name another ledger, as by another output",
    )


def _text(name: str) -> str:
    """Return a name that SQLite takes: those of files may hold bytes that are no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _digest(plan: str, number: int, name: str, fingerprint: str, content: bytes) -> str:
    # The plan, too: an entry of another fit on the same data is as whole as one of this fit.
    head = json.dumps([plan, number, name, fingerprint]).encode()
    return hashlib.sha256(head + content).hexdigest()


def _difference(path: str, old: str, new: str) -> tuple[str, str, str]:
    """Return what of two plans differs, as the three parts of an error."""
    rule, begun = "a fit goes on with the arguments it began with", f"{path} was begun with"
    try:
        a, b = cast(dict[str, Any], json.loads(old)), json.loads(new)
        keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    except (ValueError, AttributeError):
        return rule, f"{begun} other arguments", "give the same arguments, or delete the ledger"
    if "source" in keys or "shards" in keys:
        given = [f"{printable(plan.get('source'))} in {plan.get('shards')} shards" for plan in (a, b)]
        return (
            "a fit goes on with the same data",
            f"{path} is of {given[0]}, not of {given[1]}",
            "give the same data, or delete the ledger and begin anew",
        )
    differs = "; ".join(printable(f"{key}={a.get(key)!r}, not {b.get(key)!r}") for key in keys)
    return rule, f"{begun} {differs}", "give the same arguments, or delete the ledger and begin anew"
