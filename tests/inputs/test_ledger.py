"""The ledger: a fit that is killed goes on, and nothing damaged is believed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from slabnorm import inputs
from slabnorm.errors import DataError, LedgerError, OptionError
from slabnorm.inputs import ZScore, save
from tests.inputs.chunking import small

DATA = (np.random.default_rng(5).standard_normal((4000, 6)) * [1, 10, 0.1, 1, 3, 2] + 1e4).astype(np.float32)


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "train.npy"
    np.save(path, DATA)
    return path


def fit(path, *arguments, **options):
    """Fit a table in 25 shards of 160 rows, which are 16 chunks of 10."""
    return inputs.fit(small(path, 60), *arguments, **options)


class StopHereError(Exception):
    pass


def stopped(path: Path, ledger: Path, shards: int, **options) -> None:
    """Fit until so many shards are done."""
    done = []

    def progress(size: int, total: int) -> None:
        done.append(size)
        if len(done) == shards:
            raise StopHereError

    with pytest.raises(StopHereError):
        fit(path, split="train", ledger=ledger, progress=progress, **options)


def artifact(norm, path: Path) -> bytes:
    save(norm, path)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:.*nearly constant between quantiles:slabnorm.errors.DataWarning")
@pytest.mark.parametrize("shards", [1, 7, 24])
@pytest.mark.parametrize("workers", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("scheme", ["zscore", "robust"])
def test_a_fit_that_stops_goes_on_to_the_same_bytes(table, tmp_path, shards, workers, scheme):
    whole = artifact(fit(table, scheme, split="train"), tmp_path / "whole")
    ledger = tmp_path / "ledger"
    stopped(table, ledger, shards, workers=workers[0], scheme=scheme)
    seen = []
    norm = fit(
        table, scheme, split="train", ledger=ledger, resume=True, workers=workers[1],
        progress=lambda size, total: seen.append(size),
    )  # fmt: skip
    assert artifact(norm, tmp_path / "again") == whole
    assert sum(seen) == DATA.nbytes  # every shard once
    assert artifact(fit(table, scheme, split="train", ledger=ledger, resume=True), tmp_path / "x") == whole


def test_a_ledger_is_not_overwritten_unasked(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    with pytest.raises(LedgerError, match="resume=True"):
        fit(table, split="train", ledger=ledger)


def test_a_shard_that_changed_is_named(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    os.utime(table, ns=(1, 1))
    with pytest.raises(LedgerError, match=r"train\.npy has changed"):
        fit(table, split="train", ledger=ledger, resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"nan": "omit"}, "nan='omit' now, nan='raise' then"), ({"pattern": "n c -> "}, "pattern=")],
)
def test_other_arguments_are_named(table, tmp_path, options, words):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    with pytest.raises(LedgerError, match=words):
        fit(table, split="train", ledger=ledger, resume=True, **options)


def test_another_scheme_on_the_same_counts_goes_on(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    norm = fit(table, ZScore(ddof=1), split="train", ledger=ledger, resume=True)
    assert norm.samples == 4000


def test_no_flipped_bit_gives_other_numbers(table, tmp_path):
    whole = artifact(fit(table, split="train"), tmp_path / "whole")
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 12, workers=1)
    content, refused = ledger.read_bytes(), 0
    chance = random.Random(1)
    for _ in range(60):
        bit = chance.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        ledger.write_bytes(damaged)
        try:
            norm = fit(table, split="train", ledger=ledger, resume=True, workers=1)
        except LedgerError:
            refused += 1
        else:  # a bit that means nothing, or an entry that is no longer found and was counted anew
            assert artifact(norm, tmp_path / "again") == whole
    assert refused > 10


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.999])
def test_a_torn_ledger(table, tmp_path, left):
    whole = artifact(fit(table, split="train"), tmp_path / "whole")
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 12)
    content = ledger.read_bytes()
    ledger.write_bytes(content[: int(left * len(content))])
    try:
        norm = fit(table, split="train", ledger=ledger, resume=True)
    except LedgerError:
        assert left < 1
    else:
        assert artifact(norm, tmp_path / "again") == whole


def test_a_file_that_is_no_ledger(table, tmp_path):
    ledger = tmp_path / "ledger"
    ledger.write_text("my precious notes\n" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        fit(table, split="train", ledger=ledger, resume=True)
    assert ledger.read_text().startswith("my precious notes")
    with pytest.raises(LedgerError, match="unable to open"):
        fit(table, split="train", ledger=tmp_path / "no folder" / "ledger")


def test_no_page_copied_swapped_or_of_another_ledger_gives_other_numbers(table, tmp_path):
    np.save(table, DATA[:1200])
    whole = artifact(fit(table, split="train"), tmp_path / "whole")
    ledger, chance, refused = tmp_path / "ledger", random.Random(3), 0
    stopped(table, ledger, 6, workers=1, nan="omit")
    other = ledger.read_bytes()
    ledger.unlink()
    stopped(table, ledger, 7, workers=1)
    content = ledger.read_bytes()
    pages = range(len(content) // 4096)
    for number in range(60):
        source, a, b = (
            (content, other)[number % 2],
            chance.choice(pages),
            chance.randrange(len(other) // 4096),
        )
        damaged = bytearray(content)
        damaged[a * 4096 : (a + 1) * 4096] = source[b * 4096 : (b + 1) * 4096]
        if number % 4 == 0:
            damaged[b * 4096 : (b + 1) * 4096] = content[a * 4096 : (a + 1) * 4096]
        ledger.write_bytes(damaged)
        try:
            norm = fit(table, split="train", ledger=ledger, resume=True, workers=1)
        except LedgerError:
            refused += 1
        else:
            assert artifact(norm, tmp_path / "again") == whole
    assert refused > 10


def test_an_entry_that_is_there_twice_is_damage(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 5, workers=1)
    with closing(sqlite3.connect(ledger)) as base, base:
        # As one page copied over another leaves it: the same row in two places of the tree.
        base.executescript(
            "CREATE TABLE again (number, name, fingerprint, tally, digest);"
            "INSERT INTO again SELECT * FROM shards; INSERT INTO again SELECT * FROM shards WHERE number = 2;"
            "DROP TABLE shards; ALTER TABLE again RENAME TO shards;"
        )
    with pytest.raises(LedgerError, match="shard 2 is there twice"):
        fit(table, split="train", ledger=ledger, resume=True)


def test_an_entry_of_a_fit_with_other_arguments_is_damage(table, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    stopped(table, one, 3, workers=1)
    stopped(table, other, 3, workers=1, nan="omit")
    with closing(sqlite3.connect(one)) as base, base:
        base.execute("ATTACH ? AS b", (str(other),))
        base.execute("DELETE FROM shards")
        base.execute("INSERT INTO shards SELECT * FROM b.shards")
    with pytest.raises(LedgerError, match="does not match its digest"):
        fit(table, split="train", ledger=one, resume=True)


def test_a_ledger_of_other_data_says_so(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    np.save(tmp_path / "other.npy", DATA)
    with pytest.raises(LedgerError, match=r"other data(.|\n)*other\.npy in 25 shards; it read .*train\.npy"):
        fit(tmp_path / "other.npy", split="train", ledger=ledger, resume=True)
    assert ledger.exists()


def test_a_ledger_without_the_mark_in_its_header_is_refused_and_kept(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    with closing(sqlite3.connect(ledger)) as base:
        base.execute("PRAGMA application_id = 0")
    content = ledger.read_bytes()
    for resume in (False, True):
        with pytest.raises(LedgerError, match=r"of slabnorm 0\.1"):
            fit(table, split="train", ledger=ledger, resume=resume)
    assert ledger.read_bytes() == content


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of POSIX")
def test_a_ledger_that_cannot_be_written(table, tmp_path, monkeypatch):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    ledger.chmod(0o400)
    real = sqlite3.connect

    # root may write to anything: opened as for one who may not
    def read_only(path, **options):
        return real(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(LedgerError, match=r"readonly(.|\n)*make the file and its folder writable"):
        fit(table, split="train", ledger=ledger, resume=True)


def test_a_name_that_no_file_system_takes(table, tmp_path):
    with pytest.raises(LedgerError, match="too long"):
        fit(table, split="train", ledger=tmp_path / ("a" * 250))


def test_two_fits_on_one_ledger(table, tmp_path):
    ledger, inside, go = tmp_path / "ledger", threading.Event(), threading.Event()

    def progress(size: int, total: int) -> None:
        inside.set()
        go.wait(20)

    first = threading.Thread(
        target=fit, args=(table,), kwargs={"split": "train", "ledger": ledger, "progress": progress}
    )
    first.start()
    inside.wait(20)
    try:
        for resume in (False, True):
            with pytest.raises(LedgerError, match=r"in use|interrupted"):
                fit(table, split="train", ledger=ledger, resume=resume)
    finally:
        go.set()
        first.join()


def test_a_full_disk(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 2)
    with closing(sqlite3.connect(ledger)) as base:
        pages = base.execute("PRAGMA page_count").fetchone()[0]
    real = sqlite3.connect

    class Full(sqlite3.Connection):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.execute(f"PRAGMA max_page_count = {pages + 2}")

    sqlite3.connect = lambda *arguments, **options: real(*arguments, factory=Full, **options)
    try:
        with pytest.raises(LedgerError, match="full"):
            fit(table, split="train", ledger=ledger, resume=True)
    finally:
        sqlite3.connect = real
    assert fit(table, split="train", ledger=ledger, resume=True).samples == 4000


def test_what_cannot_have_a_ledger(tmp_path):
    for source in (DATA, iter([DATA])):
        with pytest.raises(OptionError, match="ledger"):
            fit(source, split="train", ledger=tmp_path / "ledger")
    assert not (tmp_path / "ledger").exists()


# Forked from a process that has imported and compiled everything: a new one would take seconds to begin.
KILLED = """
import os, sys, time
import numpy as np
from slabnorm.inputs import fit, save
from slabnorm.inputs.sources import open_source
fit(np.arange(2400.0, dtype=np.float32).reshape(400, 6), split="train", workers=1)
for line in sys.stdin:
    table, ledger, out, pause = line.split()
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("over", flush=True)
    else:
        progress = lambda *_: time.sleep(float(pause))
        source = open_source(table)
        source.chunk_values = 60
        save(fit(source, split="train", ledger=ledger, resume=True, workers=2, progress=progress), out)
        os._exit(0)
"""


def test_kill_9_at_any_moment(table, tmp_path):
    whole = artifact(fit(table, split="train"), tmp_path / "whole")
    ledger, out, chance, left = tmp_path / "ledger", tmp_path / "out", random.Random(2), []
    command, lasts = [sys.executable, "-c", KILLED], 0.0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        for number in range(101):
            print(table, ledger, out, 0.002, file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            if number:  # the first is left in peace, to see how long one takes here
                time.sleep(chance.uniform(0, lasts))
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(child, signal.SIGKILL)
            start = time.perf_counter()
            assert server.stdout.readline() == "over\n"
            if not number:
                lasts = time.perf_counter() - start
            if out.exists():  # it had done its work
                assert out.read_bytes() == whole
                out.unlink()
                ledger.unlink()
            left.append(ledger.stat().st_size if ledger.exists() else 0)
        print(table, ledger, out, 0, file=server.stdin, flush=True)
        int(server.stdout.readline())
        assert server.stdout.readline() == "over\n"
        server.stdin.close()
    assert out.read_bytes() == whole
    assert not [path.name for path in tmp_path.iterdir() if "tmp" in path.name]
    assert len(set(left)) > 2, left  # killed at different moments


def test_a_broken_file_is_still_an_error_on_going_on(table, tmp_path):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3)
    with open(table, "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"Truncated|changed"):
        fit(table, split="train", ledger=ledger, resume=True)


@pytest.mark.parametrize(("begun", "goes_on"), [("zscore", "robust"), ("robust", "minmax")])
def test_a_ledger_with_and_one_without_quantiles_are_two(table, tmp_path, begun, goes_on):
    ledger = tmp_path / "ledger"
    stopped(table, ledger, 3, scheme=begun)
    with pytest.raises(LedgerError, match=r"other arguments(.|\n)*`scheme` ") as caught:
        fit(table, goes_on, split="train", ledger=ledger, resume=True)
    assert "slabnorm wrote it" not in str(caught.value)


def test_a_file_whose_name_is_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/tr\xff.npy"))
    np.save(path, DATA)
    ledger = tmp_path / "ledger"
    first = fit(path, split="train", ledger=ledger)
    again = fit(path, split="train", ledger=ledger, resume=True)
    assert artifact(first, tmp_path / "a") == artifact(again, tmp_path / "b")
