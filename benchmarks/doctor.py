"""`python -m benchmarks.doctor`: what `watch` costs a training, in time and in memory.

Blocks of steps with and without it take turns in one process: the ratio counts, times are this machine's.
"""

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import slabnorm as sn
from benchmarks.load import Others
from benchmarks.machine import machine
from benchmarks.tasks import TASKS, Task
from benchmarks.timing import no_garbage_collection, spread
from benchmarks.training import step_once
from slabnorm.doctor.record import Layer
from slabnorm.doctor.watch import NUMBERS, Track, WatchRecord
from slabnorm.inputs.engines.local import cores

RESULTS = Path(__file__).with_name("results") / "doctor.json"
BLOCK = 10  # steps, of which watch(every=10) looks at one
LAYERS, STEPS = 100, 10_000  # of the training whose record is weighed


def overhead(task: Task, blocks: int) -> dict[str, Any]:
    """Return how many times as long a block of steps takes with `watch(every=10)` as without."""
    torch.manual_seed(0)
    plain = task.network().train()
    networks = {"plain": plain, "watched": copy.deepcopy(plain)}
    optimizers = {which: task.optimizer(network) for which, network in networks.items()}
    generator, others = torch.Generator().manual_seed(1), Others()
    seconds, cpu = ({which: [0.0] * blocks for which in networks} for _ in range(2))
    with no_garbage_collection(), sn.watch(networks["watched"], every=BLOCK) as record:
        for number in range(-1, blocks):  # the first one warms up
            batches = [task.batch(generator) for _ in range(BLOCK)]
            for which in ("plain", "watched") if number % 2 else ("watched", "plain"):
                begin = time.process_time()
                steps = [step_once(task, networks[which], optimizers[which], batch)[0] for batch in batches]
                if number >= 0:
                    seconds[which][number], cpu[which][number] = sum(steps), time.process_time() - begin
    assert len(record.looks) == blocks + 1
    step = {which: spread([value / BLOCK for value in values]) for which, values in seconds.items()}
    ratios = [
        spread([b / a for a, b in zip(times["plain"], times["watched"], strict=True)])
        for times in (seconds, cpu)
    ]
    found = {"ratio": ratios[0], "cpu_ratio": ratios[1], "step": step, "blocks": blocks}
    return {**found, "others": others.share()}


def memory(every: int) -> dict[str, Any]:
    """Return the bytes of the record of a long training of many layers: of its arrays, and of all of it."""
    layers = {f"layer{number}": Layer(f"layer{number}", "Linear", "linear") for number in range(LAYERS)}
    numbers = {name: dict.fromkeys(NUMBERS, 0.5) for name in layers}
    tracemalloc.start()
    try:
        record = WatchRecord("Net", every, tracks={name: Track(layer) for name, layer in layers.items()})
        for record.steps in range(STEPS):
            if record.steps % record.every == 0:
                record.add(numbers)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    arrays = [getattr(track, key) for track in record.tracks.values() for key in NUMBERS]
    held = sum(len(values) * values.itemsize for values in arrays)
    return {"arrays": held, "traced": size, "peak": peak, "looks": len(record.looks)}


def main(
    quick: Annotated[bool, typer.Option(help="Smaller batches, fewer blocks.")] = False,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS,
) -> None:
    """Time training steps with and without `watch(every=10)`, and weigh its record."""
    torch.set_num_threads(cores())
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "overhead": {name: overhead(make(quick), 4 if quick else 8) for name, make in TASKS.items()},
        "memory": {str(every): memory(every) for every in (10, 1)},
    }
    console = Console(highlight=False)
    for name, took in found["overhead"].items():
        ratio, others = took["ratio"], took["others"]
        busy = "" if others is None else f"; others took {others:.0%} of the cores"
        console.print(
            f"{name}: {ratio['median']:.3f}x with watch(every={BLOCK}), quartiles {ratio['q1']:.3f} and "
            f"{ratio['q3']:.3f}, in {took['blocks']} blocks; {took['cpu_ratio']['median']:.3f}x in CPU time"
            f"{busy}"
        )
    for every, size in found["memory"].items():
        held, traced, peak = (f"{size[what] / 1e6:.1f} MB" for what in ("arrays", "traced", "peak"))
        console.print(
            f"{LAYERS} layers, {STEPS:,} steps, every={every}: {size['looks']:,} looks take {held}, "
            f"the whole record {traced}, at most {peak}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
