"""`python -m benchmarks.fitting`: fitting input statistics beside those who do the same, or who only read.

Everything is timed in turns in one process: medians of ratios count, absolute times are this machine's.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import slabnorm as sn
from benchmarks import fitting_data as data
from benchmarks.load import Others
from benchmarks.machine import machine
from slabnorm.inputs.accumulator import count_shard
from slabnorm.inputs.engines.local import cores
from slabnorm.inputs.fitting import Opened
from slabnorm.inputs.ledger import Ledger
from slabnorm.inputs.shard_statistics import Tally, TallyTree
from slabnorm.inputs.sources import open_source
from slabnorm.inputs.sources.memory import ArrayShard

RESULTS = Path(__file__).with_name("results") / "fitting.json"
Calls = dict[str, Callable[[], Any]]


def in_turns(calls: Calls, rounds: int) -> dict[str, Any]:
    """Return the median seconds of every call, and what part of the cores others took."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    others = Others()
    for number in range(rounds):
        names = list(calls)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            calls[name]()
            found[name].append(time.perf_counter() - start)
    return {
        **{name: statistics.median(times) for name, times in found.items()}, "others": others.share()
    }  # fmt: skip


def fit(source: Any, workers: int | None = None, scheme: str = "zscore", **options: Any) -> Any:
    """Return the statistics of a source."""
    return sn.fit(source, scheme, split="train", workers=workers, **options)


def in_memory(rows: int, columns: int, rounds: int) -> dict[str, Any]:
    """A float32 array: scikit-learn, Polars, and a plain sum, which only reads."""
    import polars
    from sklearn.preprocessing import StandardScaler

    x = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    frame = polars.DataFrame({str(column): x[:, column].copy() for column in range(columns)})
    every = polars.all()
    wanted = [getattr(every, name)().name.suffix(name) for name in ("mean", "var", "min", "max")]
    tensor = torch.from_numpy(x)
    found = in_turns(
        {
            "slabnorm": lambda: fit(x),
            "one worker": lambda: fit(x, 1),
            "robust": lambda: fit(x, scheme="robust"),
            "Polars": lambda: frame.select(wanted),
            "scikit-learn": lambda: StandardScaler().fit(x),
            "reading": tensor.sum,
        },
        rounds,
    )
    return {**found, "bytes": x.nbytes}


def parquet(folder: Path, rounds: int) -> dict[str, Any]:
    """A folder of Parquet files: reading alone with pyarrow, on as many threads."""
    import pyarrow.dataset

    def read() -> None:
        for _ in pyarrow.dataset.dataset(folder).scanner(use_threads=True).to_batches():
            pass

    found = in_turns(
        {"slabnorm": lambda: fit(folder), "one worker": lambda: fit(folder, 1), "reading": read}, rounds
    )
    return {**found, "bytes": data.size(folder)}


def images(folder: Path, rounds: int) -> dict[str, Any]:
    """A folder of images: decoding alone with Pillow, on as many threads."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    paths = sorted(path for path in folder.rglob("*") if path.is_file())

    def decode(workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda path: np.asarray(Image.open(path)).shape, paths, chunksize=16):
                pass

    found = in_turns(
        {
            "slabnorm": lambda: fit(folder),
            "one worker": lambda: fit(folder, 1),
            "decoding": lambda: decode(cores()),
            "decoding, one worker": lambda: decode(1),
        },
        rounds,
    )
    return {**found, "bytes": data.size(folder), "images": len(paths)}


def other(path: Path, rounds: int, **options: Any) -> dict[str, Any]:
    """Any other file: how fast, and how much faster with more workers."""
    found = in_turns(
        {"slabnorm": lambda: fit(path, **options), "one worker": lambda: fit(path, 1, **options)}, rounds
    )
    return {**found, "bytes": data.size(path)}


def resident(gigabytes: int) -> float:
    """Return by how many MB a process grows that fits a file of so many GB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.npy"
        data.sparse(path, gigabytes)
        # Not ru_maxrss, which a process inherits from the one that starts it.
        script = f"""
import numpy, pathlib, slabnorm as sn
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sn.fit(numpy.arange(6400, dtype="float32").reshape(100, 64), split="train")
before = peak()
sn.fit({str(path)!r}, sn.FixedScale(0, 1), "n c -> c", split="train")
print(peak() - before)
"""
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1000


def task() -> float:
    """Return the seconds for a task where all come together: bytes to Tally to ledger and tree."""
    x = np.random.default_rng(0).standard_normal((1 << 16, data.COLUMNS), np.float32)
    opened = Opened(open_source(x))
    counting = opened.counting("n c -> c", {})
    found = []
    for number in range(512):
        shard = ArrayShard(number, f"part {number}", "mark", first=128 * number, samples=128, array=x)
        found.append((shard, count_shard(shard, counting).to_bytes()))
    with tempfile.TemporaryDirectory() as folder:
        ledger, tree = Ledger(Path(folder) / "ledger", {}, False), TallyTree()
        start = time.perf_counter()
        for shard, content in found:
            tally = Tally.from_bytes(content)
            ledger.add(shard, tally)
            tree.add(shard.number, tally)
        seconds = time.perf_counter() - start
        ledger.close()
    return seconds / len(found)


def measure(quick: bool) -> dict[str, Any]:
    """Return everything measured."""
    rounds, part = (3, 8) if quick else (9, 1)
    found: dict[str, Any] = {"in memory": {}, "files": {}, "resident": {}}
    for rows, columns in ((1_000_000 // part, 64), (100_000 // part, 1000)):
        found["in memory"][f"{rows:,} x {columns:,}"] = in_memory(rows, columns, rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, path in data.parquet(folder, part).items():
            found["files"][kind] = parquet(path, rounds)
        for kind, path in data.images(folder, part).items():
            found["files"][kind] = images(path, max(3, rounds // 2))
        for kind, (path, options) in data.others(folder, part).items():
            found["files"][kind] = other(path, max(3, rounds // 2), **options)
    found["task"] = task()
    for gigabytes in (1, 2) if quick else (1, 8):
        found["resident"][f"{gigabytes} GB"] = resident(gigabytes)
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Print what was measured, as ratios."""
    table = Table(title="In memory", box=None, header_style="dim")
    for head in ("float32", "ms", "x scikit-learn", "x Polars", "of reading", "2 workers : 1", "robust, ms"):
        table.add_column(head, justify="right")
    for name, case in found["in memory"].items():
        own = case["slabnorm"]
        table.add_row(
            name, f"{1e3 * own:.1f}", f"{case['scikit-learn'] / own:.1f}", f"{case['Polars'] / own:.1f}",
            f"{case['reading'] / own:.0%}", f"{case['one worker'] / own:.2f}", f"{1e3 * case['robust']:.1f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title="Files", box=None, header_style="dim")
    for head in ("", "MB", "s", "MB/s a core", "x reading or decoding alone", "2 workers : 1"):
        table.add_column(head, justify="right")
    for name, case in found["files"].items():
        own, size = case["slabnorm"], case["bytes"] / 1e6
        alone = case.get("reading", case.get("decoding"))
        table.add_row(
            name, f"{size:,.0f}", f"{own:.2f}", f"{size / case['one worker']:,.0f}",
            f"{own / alone:.2f}" if alone else "", f"{case['one worker'] / own:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"a task takes {1e3 * found['task']:.2f} ms where all come together")
    for name, grown in found["resident"].items():
        console.print(f"a file of {name}: the process grows by {grown:.0f} MB")


def main(
    quick: Annotated[bool, typer.Option(help="Smaller data, fewer rounds.")] = False,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS,
) -> None:
    """Time fitting beside scikit-learn, Polars, and reading or decoding alone."""
    torch.set_num_threads(cores())
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "peak_kb": 0,
        **measure(quick),
    }
    found["peak_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    show(found, Console())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
