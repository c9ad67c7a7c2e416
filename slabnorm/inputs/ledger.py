"""The ledger of a fit: an SQLite file of the tallies of the shards that are done, to resume a fit.

A shard's tally, its fingerprint, and a digest of both and of the plan are committed once, in one transaction.
A running fit holds the lock of the file, so that two fits never write one output.

From the first transaction on, the header of the file has slabnorm's application id. A file without it belongs
to somebody else: it is not deleted, and not opened by SQLite, which may write to what it opens.
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
_BESIDE = ("-journal", "-wal", "-shm")  # files that SQLite keeps beside a file while it writes to it
_TABLES = f"""
PRAGMA application_id = {APPLICATION};
CREATE TABLE IF NOT EXISTS fit (plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, fingerprint TEXT NOT NULL,
    tally BLOB NOT NULL, digest TEXT NOT NULL
);
"""


class Ledger:
    """The tallies of the shards that are done.

    Args:
        path: the file; it is created if there is none.
        plan: what is counted and how, in JSON's own types. A fit can only be resumed with the same plan.
        resume: whether to continue with the ledger that is there.

    Raises:
        LedgerError: the file holds what an interrupted fit has counted and `resume` is false, or it is
            damaged, of another plan, or in use by another fit.
    """

    def __init__(self, path: Path, plan: dict[str, Any], resume: bool) -> None:
        self.path, self._plan = path, json.dumps(plan, sort_keys=True)
        if _check_ours(path) and not resume:
            raise LedgerError(
                "An interrupted fit has not been finished",
                f"{printable(path)} holds what it has counted",
                "continue it with resume=True, or delete that file to begin anew",
            )
        with self._mistakes():
            # Every statement commits at once, except those between BEGIN and COMMIT.
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
        """Return the path of a ledger, and those of the files that SQLite may write beside it."""
        return [path, *(Path(f"{path}{end}") for end in _BESIDE)]

    @staticmethod
    def delete(path: Path) -> None:
        """Delete a ledger.

        Raises:
            LedgerError: the file is not a ledger, and was not deleted.
        """
        if _check_ours(path):
            path.unlink(missing_ok=True)

    def done(self, shards: list[Shard]) -> Iterator[tuple[Shard, Tally]]:
        """Yield the shards that are done, with their tallies.

        Raises:
            LedgerError: an entry is damaged or there twice, or a shard has changed since it was counted.
        """
        seen = set[int]()
        with self._mistakes():
            rows = self._base.execute("SELECT number, name, fingerprint, tally, digest FROM shards")
            for number, name, fingerprint, content, digest in rows:
                if digest != _digest(self._plan, number, name, fingerprint, content):
                    raise self._damaged(f"the entry of shard {number} does not match its digest")
                if number in seen:
                    raise self._damaged(f"the entry of shard {number} is there twice")
                seen.add(number)
                if not 0 <= number < len(shards) or _text(shards[number].name) != name:
                    raise LedgerError(
                        f"{name} was counted but is no longer shard {number} of the data",
                        "",
                        f"bring it back, or delete {printable(self.path)} to begin anew",
                    )
                if shards[number].fingerprint != fingerprint:
                    raise LedgerError(
                        f"{name} has changed since it was counted",
                        "",
                        f"delete {printable(self.path)} to begin anew",
                    )
                yield shards[number], Tally.from_bytes(content)

    def add(self, shard: Shard, tally: Tally) -> None:
        """Commit the tally of a shard.

        Raises:
            LedgerError: it cannot be written, for instance because the disk is full.
        """
        content = tally.to_bytes()
        name = _text(shard.name)
        digest = _digest(self._plan, shard.number, name, shard.fingerprint, content)
        row = (shard.number, name, shard.fingerprint, content, digest)
        with self._mistakes():
            self._base.execute("INSERT INTO shards VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file; a ledger without entries is deleted."""
        with self._mistakes():
            empty = not self._base.execute("SELECT EXISTS (SELECT 1 FROM shards)").fetchone()[0]
        self.remove() if empty else self._base.close()

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)
        self._base.close()

    def _check_plan(self) -> None:
        found = self._base.execute("SELECT plan FROM fit").fetchall()
        if not found:
            self._base.execute("INSERT INTO fit VALUES (?)", (self._plan,))
        elif len(found) > 1 or not isinstance(found[0][0], str):
            raise self._damaged(f"it holds the plans of {len(found)} fits")
        elif found[0][0] != self._plan:
            raise _difference(printable(self.path), found[0][0], self._plan)

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        try:
            yield
        except LedgerError:  # which is a ValueError
            raise
        except sqlite3.OperationalError as error:
            fixes = {
                "locked": "",
                "readonly": "make the file and its folder writable, or name another output",
                "unable to open": "name an output in a folder that exists and that you may write to",
                "full": "free some space",
                "I/O": "check the disk, and the rights of the folder",
            }
            fix = next((fixes[word] for word in fixes if word in str(error)), None)
            if fix is None:  # an error about the content of the file, such as "no such column"
                raise self._damaged(str(error)) from error
            if not fix:
                raise LedgerError(
                    "Another fit is writing the same output",
                    f"{printable(self.path)} is in use",
                    "wait for the other fit, or name another output",
                ) from error
            raise LedgerError(f"Cannot write {printable(self.path)}", str(error), fix) from error
        # MemoryError: damage has changed a length to gigabytes.
        except (sqlite3.Error, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise self._damaged(str(error) or type(error).__name__) from error

    def _damaged(self, why: str) -> LedgerError:
        return LedgerError(f"Damaged ledger: {printable(self.path)}", why, "delete it to begin anew")


def base_of(path: Path) -> Path:
    """Return the path of a ledger for a file that SQLite keeps beside it; other paths as they are."""
    end = next((end for end in _BESIDE if path.name.endswith(end)), "")
    return path.with_name(path.name.removesuffix(end)) if path.name != end else path


def is_ledger(path: Path) -> bool:
    """Return whether a file is a ledger."""
    try:
        return path.is_file() and _check_ours(path)
    except LedgerError:
        return False


def _check_ours(path: Path) -> bool:
    """Return whether there is a ledger at a path; there may also be nothing, or an empty file.

    Raises:
        LedgerError: there is another file, which must not be touched, or it cannot be read.
    """
    try:
        for file in Ledger.files(path):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would wait for ever
                    raise _foreign(file, "not a regular file")
        head, journal = (_head(file) for file in Ledger.files(path)[:2])
    except LedgerError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        raise LedgerError(f"Cannot write {printable(path)}", why, "name another output") from error
    if head and not head.startswith(_MAGIC):
        raise _foreign(path, "not a database of SQLite")
    if head and int.from_bytes(head[68:72], "big") != APPLICATION:
        raise _foreign(path, "a database of another program, or of slabnorm 0.1")
    # SQLite takes a file beside a database for its own journal: it would play it back and delete it.
    # A journal begins with zeros until it is synchronised.
    if journal[:8].strip(b"\0") and not journal.startswith(_JOURNAL):
        raise _foreign(Ledger.files(path)[1], "not a journal of SQLite")
    return bool(head)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(100)
    except FileNotFoundError:
        return b""


def _foreign(path: Path, why: str) -> LedgerError:
    return LedgerError(
        f"The file at the place of the ledger is not a ledger: {printable(path)}",
        why,
        "move it away, or name another output",
    )


def _text(name: str) -> str:
    """Return a name that SQLite can store: names of files may hold bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _digest(plan: str, number: int, name: str, fingerprint: str, content: bytes) -> str:
    # The plan is part of it: an entry of a fit with other arguments must not be taken for one of this fit.
    head = json.dumps([plan, number, name, fingerprint]).encode()
    return hashlib.sha256(head + content).hexdigest()


def _difference(path: str, old: str, new: str) -> LedgerError:
    """Return the error that says in which arguments two plans differ."""
    fix = f"give the same again with resume=True, or delete {path} to begin anew"
    try:
        a, b = cast(dict[str, Any], json.loads(old)), json.loads(new)
        keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    except (ValueError, AttributeError):
        return LedgerError("The interrupted fit had other arguments", "", fix)
    if "source" in keys or "shards" in keys:
        before, now = (f"{printable(plan.get('source'))} in {plan.get('shards')} shards" for plan in (a, b))
        return LedgerError("The interrupted fit read other data", f"{now}; it read {before}", fix)
    differs = list(dict.fromkeys(_differing_argument(key, a.get(key), b.get(key)) for key in keys))
    return LedgerError("The interrupted fit had other arguments", "; ".join(differs), fix)


def _differing_argument(key: str, before: Any, now: Any) -> str:
    """Return in the words of `fit` what an entry of the plan says about its arguments."""
    if key == "positions":
        what = "reads quantiles now, but did not then" if now else "read quantiles then, but does not now"
        return f"`scheme` {what}"
    if key in ("nan", "skip_bad", "pattern", "sizes", "weights"):
        return printable(f"{key}={now!r} now, {key}={before!r} then")
    if key in ("schema", "rows", "order", "whole", "unit"):  # all of them follow from the samples
        return "the samples are others now, because of `columns`, `key` or `convert`"
    return "another version of slabnorm began it"
