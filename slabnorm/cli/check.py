"""`slabnorm check`: normalisation bugs of a model, by one batch."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from slabnorm.report.fixes import FixRecord
    from slabnorm.study.data import Dataset

FOUND = 1  # exit code


def check(
    model: Annotated[
        str,
        typer.Argument(help="Your model, as package.module:name: a network, or a function that builds one."),
    ] = "",
    input: Annotated[
        str, typer.Option(metavar="SIZES", help="The shape of a random batch, such as 32,3,64,64.")
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Real data instead of random numbers, which show more: whatever `slabnorm compare` reads.",
        ),
    ] = "",
    batch_size: Annotated[int, typer.Option(help="How many samples of the data to take.")] = 32,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A state_dict to load, .pt or .safetensors."),
    ] = None,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write the findings as JSON; - is stdout.")
    ] = None,
    sarif: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the findings as SARIF, for code review.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write an HTML report, with pictures.")
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Take damaged running statistics anew from the training split of the data."
        ),
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="With --fix: write the state_dict, .pt or .safetensors."),
    ] = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Run the public set of normalisation bugs instead.")
    ] = False,
) -> None:
    """Find normalisation bugs in a model: wrong modes, damaged statistics, raw inputs, and more.

    It runs copies of the model on one batch, in train and in eval mode, and
    prints what it found, why it matters, and how to fix it. With --data the
    batch is real, which finds wrong inputs and stale statistics too.

    With --fix it takes running statistics that are NaN, initial or stale anew
    from the training split of --data, and prints them before and after, and
    the accuracy on the test split. The state_dict goes to --save; without it
    nothing is written. What is wrong in the code is left to you, as a line.

    With --bench it trains some sixty small networks, each with a bug and
    without, and prints how many bugs are found, and how many are named first.

    Exit codes: 0 healthy (with --fix: afterwards), 1 an error or a warning, 2 bad input or usage.
    """
    from slabnorm.errors import OptionError
    from slabnorm.files import write_atomically
    from slabnorm.report.check import print_check
    from slabnorm.report.terminal import print_text, terminal
    from slabnorm.text import printable

    if bench:
        if fix or out is not None or save is not None:
            raise OptionError(
                "--bench runs the public set alone", "--fix, --out or --save", "leave these out"
            )
        _print_bench(json_path)
        return
    if not model:
        raise OptionError("No model is named", "", "slabnorm check package.module:name --input 32,3,64,64")
    if bool(input) == bool(data):
        raise OptionError("A batch is needed: give --input or --data, one of them", "", "--input 32,3,64,64")
    page, target, paths = _files(out, save, fix, (json_path, sarif), (model, data, checkpoint))
    dataset = _read(data, batch_size) if data else None
    batch = _random(input) if dataset is None else _some(dataset, batch_size)
    from slabnorm.doctor import check as find

    built = _loaded(_built(model), checkpoint)
    record = again = find(built, batch)
    plain = record.as_dict()
    if fix:
        from slabnorm.cli.fixes import mend

        mended = mend(built, batch, record, dataset, batch_size)
        again = find(built, batch) if mended.done else record
        plain["fixes"] = {**mended.as_dict(), "healthy": again.healthy, "verdict": again.verdict}
    for path, content in ((json_path, plain), (sarif, record.as_sarif())):
        if path == "-":
            print(json.dumps(content, indent=1), flush=True)
        elif path:
            write_atomically(paths.pop(0), json.dumps(content, indent=1) + "\n")
    if page is not None:
        record.report(page)
    console = terminal(stderr="-" in (json_path, sarif))
    print_check(record, console)
    if fix:
        _print_mended(mended, built, target, console)
        if mended.done:
            print_text(console, f"checked again: {printable(again.verdict, 300)}")
    if not again.healthy:
        raise typer.Exit(FOUND)


def _files(
    out: str | None,
    save: str | None,
    fix: bool,
    records: tuple[str | None, ...],
    reads: tuple[str, str, Path | None],
) -> tuple[Path | None, Path | None, list[Path]]:
    """Return where to write the page, the state_dict and the records; none is what is read or another one."""
    from slabnorm.cli.fixes import check_ending
    from slabnorm.errors import OptionError
    from slabnorm.files import output_path
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.page import check_packages

    paths = [output_path(path) for path in records if path and path != "-"]
    page, target = (None if path is None else output_path(path) for path in (out, save))
    if page is not None:
        check_packages()
    if target is not None:
        if not fix:
            raise OptionError("--save is where the fixed state_dict goes", "no --fix", "give --fix too")
        check_ending(target)
    model, *others = reads
    source = model.partition(":")[0].replace(".", os.sep) + ".py"
    check_outputs(filter(None, (page, target, *paths)), filter(None, (source, *others)))
    return page, target, paths


def _print_mended(mended: FixRecord, model: Any, target: Path | None, console: Console) -> None:
    """Print what was changed, and write the state_dict if there is a place for it."""
    from slabnorm.cli.fixes import write_state
    from slabnorm.cli.shell import shown
    from slabnorm.report.fixes import print_fixes
    from slabnorm.report.terminal import print_text

    print_fixes(replace(mended, before=None, after=None), console)
    if mended.before is not None and mended.after is not None:
        numbers = f"{mended.before:.1%} before, {mended.after:.1%} after"
        print_text(console, f"accuracy on the test split: {numbers}", "bold")
    if not mended.done:
        if target is not None:
            print_text(console, f"not written, as no statistics were changed: {shown(target)}", "yellow")
    elif target is None:
        print_text(console, "nothing is written: --save fixed.pt writes the state_dict", "dim")
    else:
        write_state(model, target)
        print_text(console, f"state_dict: {shown(target)}", "dim")


def _print_bench(json_path: str | None) -> None:
    """Run the set of bugs, and print what was found of each."""
    from slabnorm.cli.shell import progress_bar
    from slabnorm.doctor.bugs import run_all
    from slabnorm.files import output_path, write_atomically
    from slabnorm.report.terminal import Column, Row, print_rows, print_text, terminal

    path = output_path(json_path) if json_path and json_path != "-" else None
    with progress_bar("training") as progress:
        bench = run_all(lambda done, total, name: progress(1, total))
    plain = json.dumps(bench.as_dict(), indent=1)
    if path is not None:
        write_atomically(path, plain + "\n")
    if json_path == "-":
        print(plain, flush=True)
    console = terminal(stderr=json_path == "-")
    columns = [
        Column("bug", "name"),
        Column("expected", "name"),
        Column("found first", "name"),
        Column("seconds"),
    ]
    rows = []
    for outcome in bench.outcomes:
        expected = str(outcome.bug.rule or "none")
        first = ", ".join(map(str, outcome.codes[:3])) or "nothing"
        rows.append(Row([outcome.bug.name, expected, first, f"{outcome.seconds:.1f}"]))
    print_rows(console, columns, rows)
    total = f"{len(bench.outcomes)} bugs: {bench.recall:.0%} found, {bench.first_rate:.0%} named first"
    print_text(
        console, f"{total}; {bench.false_alarms} false alarms without the bug; {bench.seconds:.0f} s", "bold"
    )


def _built(name: str) -> Any:
    """Return the user's model; its module may lie in the current folder."""
    from torch import nn

    from slabnorm.errors import ModelError
    from slabnorm.study.models import import_build

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    found = import_build(name)
    if isinstance(found, nn.Module):
        return found
    try:
        built = found()
    except Exception as error:
        problem = f"{name} could not be built"
        raise ModelError(
            problem, f"{type(error).__name__}: {error}", "name a function without arguments"
        ) from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"{name} returned no torch.nn.Module", type(built).__name__, "return the model")
    return built


def _loaded(model: Any, checkpoint: Path | None) -> Any:
    """Return a model with the values of a checkpoint, which is read without running what is in it."""
    import torch
    from safetensors.torch import load_file

    from slabnorm.errors import ModelError

    if checkpoint is None:
        return model
    try:
        if checkpoint.suffix == ".safetensors":
            state = load_file(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except OSError:
        raise
    except Exception as error:
        raise ModelError(
            f"The checkpoint does not fit the model: {checkpoint}",
            f"{type(error).__name__}: {error}"[:600],
            "give a state_dict of this model, as torch.save(model.state_dict(), path) writes it",
        ) from error
    return model


def _random(text: str) -> torch.Tensor:
    import torch

    from slabnorm.errors import OptionError
    from slabnorm.text import printable

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 8 and int(part) > 0 for part in parts):
        raise OptionError(
            "--input must be sizes, separated by commas", printable(text), "as in --input 32,3,64,64"
        )
    return torch.randn([int(part) for part in parts], generator=torch.Generator().manual_seed(0))


def _read(data: str, samples: int) -> Dataset:
    from slabnorm.errors import OptionError
    from slabnorm.study.read import read_data

    if samples < 2:
        raise OptionError("batch_size must be 2 or more", str(samples), "as in --batch-size 32")
    return read_data(data)


def _some(dataset: Dataset, samples: int) -> torch.Tensor:
    import torch

    some = torch.randperm(len(dataset.x), generator=torch.Generator().manual_seed(0))[:samples]
    return torch.as_tensor(dataset.x[some.numpy()]).float()
