"""One run: every part in turn, each measurement on disk before the next begins."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import cases, first_use, runtime, settings, tasks, training
from benchmarks.allocator import described, keep_freed_memory
from benchmarks.layers import measure_inference, measure_small, measure_training
from benchmarks.machine import caches, machine, versions
from benchmarks.markdown import markdown
from benchmarks.page import write_page
from benchmarks.peers import PEERS
from benchmarks.record import PARTS, Record
from benchmarks.summary import summarise
from benchmarks.tables import print_summary, print_tables

WIDTH = 155  # of the widest table
Measurement = tuple[str, str, Callable[[], Any]]  # part, name, what to do


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    quick: bool
    only: tuple[str, ...]  # how norms begin
    dtype: str | None
    peers: tuple[str, ...]
    parts: tuple[str, ...]
    budget: float | None
    path: Path
    resume: bool
    case: cases.Case | None  # the only one to measure

    def __post_init__(self) -> None:
        """Refuse names that do not exist."""
        for start in self.only:
            if not any(norm.startswith(start) for norm in cases.norms()):
                raise typer.BadParameter(f"no norm of {', '.join(cases.norms())} begins with {start!r}")
        for given, known in (
            (self.peers, PEERS),
            (self.parts, PARTS),
            ((self.dtype,), (None, *cases.DTYPES)),
        ):
            for name in given:
                if name not in known:
                    raise typer.BadParameter(f"{name} is none of {', '.join(map(str, known))}")

    def seconds(self, quick: float, full: float) -> float:
        """Return the time to spend on a case."""
        return self.budget if self.budget is not None else quick if self.quick else full


def run(options: Options) -> None:
    """Measure, write and print."""
    # A narrow terminal breaks the lines; Rich would leave columns out.
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    record = Record(options.path, _conditions(options))
    _print_conditions(console, record.content["conditions"])
    if options.resume and (refused := record.resume()):
        raise typer.BadParameter(f"cannot resume: {refused}")
    gc.collect()
    gc.freeze()  # what is imported stays; a collection before each case is short then
    try:
        _measure(record, measurements(options))
    except KeyboardInterrupt:
        console.print(f"stopped; {options.path} has what was measured, and --resume goes on from there")
        raise typer.Exit(130) from None
    record.content["summary"] = summarise(record.content)
    record.write()
    print_tables(console, record.content)
    print_summary(console, record.content["summary"])
    console.print(f"every number: {options.path}")
    text = options.path.with_suffix(".md")
    text.write_text(markdown(record.content), encoding="utf-8")
    console.print(f"in Markdown: {text}")
    page = options.path.with_name(f"{options.path.stem}-training.html")
    if write_page(page, record.content["training"]):
        console.print(f"loss curves and steps: {page}")


def _conditions(options: Options) -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "allocator": described(),
        "budget_seconds": options.seconds(0.25, 1.5),
        "quick": options.quick,
        "peers": options.peers,
    }


def _print_conditions(console: Console, conditions: dict[str, Any]) -> None:
    on, with_ = conditions["machine"], conditions["versions"]
    sizes = ", ".join(f"{name} {size >> 10:,} KiB" for name, size in on["caches_per_core"].items())
    console.print(f"{on['cpu']}, {on['cores']} cores, {sizes}; {conditions['threads']} threads")
    console.print(", ".join(f"{name} {version}" for name, version in with_.items()))
    console.print(
        f"allocator: {conditions['allocator']}; in the part `reused`, keeping freed memory for all peers"
    )
    console.print("bfloat16: weight and bias are float32; for PyTorch's RMS norm bfloat16, its faster case")
    console.print()


def measurements(options: Options) -> list[Measurement]:
    """Return what is to be done, in order."""
    makers = {
        "layers": _layers,
        "small": _small,
        "inference": _inference,
        "first_use": _first_use,
        "training": _training,
        "settings": _settings,
        "reused": _reused,
    }
    return [measurement for part in PARTS if part in options.parts for measurement in makers[part](options)]


def _layers(options: Options) -> list[Measurement]:
    l2 = caches()["L2"]

    def measure(case: cases.Case) -> Any:
        compiled = case.name in cases.QUICK_COMPILED if options.quick else case.dtype == "float32"
        names = tuple(peer for peer in options.peers if peer != "compile" or compiled)
        return measure_training(case, names, options.seconds(0.25, 1.5), l2, twice=True)

    return [("layers", case.name, partial(measure, case)) for case in _chosen(options)]


def _reused(options: Options) -> list[Measurement]:
    l2 = caches()["L2"]
    names = tuple(peer for peer in options.peers if peer != "compile")

    def measure(case: cases.Case) -> Any:
        allocator = keep_freed_memory()  # for good: this part is the last
        found = measure_training(case, names, options.seconds(0.25, 0.7), l2, twice=False)
        return {**found, "allocator": allocator}

    return [("reused", case.name, partial(measure, case)) for case in _chosen(options)]


def _settings(options: Options) -> list[Measurement]:
    if options.case is not None or options.only or options.dtype:
        return []  # they are measured on the quick cases, whichever others are asked for
    return [("settings", name, partial(settings.measure, name)) for name in settings.settings()]


def _chosen(options: Options) -> list[cases.Case]:
    if options.case is not None:
        return [options.case]
    return cases.select(cases.quick() if options.quick else cases.full(), options.only, options.dtype)


def _small(options: Options) -> list[Measurement]:
    names = tuple(peer for peer in options.peers if peer != "compile")
    return [
        ("small", case.name, partial(measure_small, case, names, options.seconds(0.1, 0.5)))
        for case in cases.select(cases.small(), options.only, options.dtype)
    ]


def _inference(options: Options) -> list[Measurement]:
    names = tuple(peer for peer in options.peers if peer != "compile" or not options.quick)
    budget = options.seconds(0.25, 0.7)

    def with_runtime(case: cases.Case) -> tuple[str, ...]:
        also = runtime.available() and case.layout == "contiguous"
        return (*names, runtime.NAME) if also else names

    return [
        (
            "inference",
            case.name,
            partial(measure_inference, case, with_runtime(case), budget),
        )
        for case in cases.select(cases.inference(options.quick), options.only, options.dtype)
    ]


def _first_use(options: Options) -> list[Measurement]:
    return [("first_use", name, partial(first_use.measure, name)) for name in first_use.names(options.quick)]


def _training(options: Options) -> list[Measurement]:
    return [("training", name, partial(training.measure, name, options.quick)) for name in tasks.TASKS]


def _measure(record: Record, todo: list[Measurement]) -> None:
    """Do what is not in the record yet; a progress bar on a terminal, silence in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not Console().is_terminal) as progress:
        bar = progress.add_task("", total=len(todo))
        for part, name, measure in todo:
            progress.update(bar, description=f"{part}: {name}")
            if not record.has(part, name):
                begin = time.perf_counter()
                found = measure()
                record.add(part, name, {**found, "took_seconds": time.perf_counter() - begin})
            progress.advance(bar)
