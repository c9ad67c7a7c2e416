"""The ledger of a study: an SQLite file of runs that are done, from which an interrupted study goes on."""

from __future__ import annotations

import hashlib
import inspect
import json
import marshal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer

from slabnorm._version import __version__
from slabnorm.errors import LedgerError
from slabnorm.study.models import parts_of
from slabnorm.study.train import Bench, quiet_corner, settle, start
from slabnorm.text import printable

APPLICATION = int.from_bytes(b"slbs", "big")
_MAGIC = b"SQLite format 3\0"
_TABLES = f"""
PRAGMA application_id = {APPLICATION};
CREATE TABLE IF NOT EXISTS runs (key TEXT PRIMARY KEY, record TEXT NOT NULL);
"""


class RunLedger:
    """The records of the runs that are done, by what decides their result.

    Args:
        path: the file; it is created if there is none.
        resume: whether to go on with the runs of a ledger that is there.

    Raises:
        LedgerError: there is a ledger and `resume` is false; the file is no ledger, is damaged, is in use by
            another study, or cannot be written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        if path.exists() and path.stat().st_size:
            self._check(resume)
        with self._mistakes():
            self._base = sqlite3.connect(path, timeout=0.1, isolation_level=None)
            try:
                self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._base.executescript(f"BEGIN EXCLUSIVE;{_TABLES}COMMIT;")
            except BaseException:
                self._base.close()
                raise

    def _check(self, resume: bool) -> None:
        with self._mistakes(), open(self.path, "rb") as file:
            head = file.read(100)
        if head[:16] != _MAGIC or head[68:72] != APPLICATION.to_bytes(4, "big"):
            raise LedgerError(
                f"Not the ledger of a study: {printable(self.path)}", "", "move it, or write to another name"
            )
        if not resume:
            raise LedgerError(
                "An interrupted study has not been finished",
                f"{printable(self.path)} holds the runs that it has done",
                "continue it with resume=True, or delete that file to begin anew",
            )

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what is kept of a run, or None."""
        with self._mistakes():
            row = self._base.execute("SELECT record FROM runs WHERE key = ?", (key,)).fetchone()
            kept: dict[str, Any] | None = None if row is None else json.loads(row[0])
            return kept

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Commit the record of a run."""
        with self._mistakes():
            self._base.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (key, json.dumps(record)))

    def close(self) -> None:
        """Close the file; a ledger without runs is deleted."""
        try:
            with self._mistakes():
                empty = not self._base.execute("SELECT EXISTS (SELECT 1 FROM runs)").fetchone()[0]
        finally:
            self._base.close()
        if empty:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        """Turn what SQLite and JSON say into a LedgerError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            busy = "locked" in str(error)
            raise LedgerError(
                "The ledger is in use by another study" if busy else "The ledger cannot be used",
                f"{printable(self.path)}: {printable(error)}",
                "wait for that one to end" if busy else "check the rights of its folder and the space there",
            ) from error
        except OSError as error:
            raise LedgerError(
                "The ledger cannot be read", printable(error), "give the path of a file that may be written"
            ) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise LedgerError(
                "The ledger is damaged",
                f"{printable(self.path)}: {printable(error)}",
                "delete that file to begin anew",
            ) from error


def job_key(shared: str, job: object) -> str:
    """Return the key of a job, by all that decides its result.

    Args:
        shared: a digest of what all jobs share: the data, the rules, the model.
        job: a frozen dataclass, whose repr names all its fields.
    """
    return hashlib.sha256(f"{__version__}\n{shared}\n{job!r}".encode()).hexdigest()


def shared_digest(bench: Bench, norm: str) -> str:
    """Return a digest of what all runs of a study share: inputs, labels, split, rules, and the model.

    Of the model it covers the source of the modules that make it and its layers (but not torch's own), how it
    prints, its state at seed 0, and the arguments that a `functools.partial` gives.

    Args:
        bench: what all runs share.
        norm: a norm of the study.
    """
    digest = hashlib.sha256(repr(bench.rules).encode())
    split = bench.data.split
    arrays = [bench.data.y, split.train, split.validation, split.test]
    arrays += [bench.inputs(scheme).numpy() for scheme in bench.layers]
    with quiet_corner():
        model, _ = start(bench.build, norm, 0)
        settle(model, bench.inputs(next(iter(bench.layers)))[torch.as_tensor(split.train[:2])])
    texts = [repr(model)]
    for value in model.state_dict().values():  # a layer may keep other things than tensors
        if isinstance(value, Tensor) and not isinstance(value, UninitializedBuffer):
            arrays.append(value.detach().cpu().float().numpy())
        else:
            texts.append(repr(value))
    for array in arrays:
        digest.update(repr((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data)
    kinds = dict.fromkeys(type(module) for module in model.modules())
    own = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    for text in (*texts, *arguments_of(bench.build), *map(source_of, (*own, *parts_of(bench.build)))):
        digest.update(text.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def arguments_of(build: Any) -> Iterator[str]:
    """Yield what a `functools.partial` gives its function: the source of functions, the repr of values."""
    while isinstance(build, partial):
        for name, value in (*enumerate(build.args), *sorted(build.keywords.items())):
            said = getattr(value, "__qualname__", "") + source_of(value) if callable(value) else repr(value)
            yield f"{name}={said}"
        build = build.func


def source_of(part: Any) -> str:
    """Return the source of the module of a function or class; what is compiled, if there is none."""
    try:
        return inspect.getsource(inspect.getmodule(part) or part)
    except (OSError, TypeError):
        code = getattr(part, "__code__", None)
        return marshal.dumps(code).hex() if inspect.iscode(code) else ""
