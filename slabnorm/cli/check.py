"""`slabnorm check`: normalisation bugs of a model, by one batch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

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
    bench: Annotated[
        bool, typer.Option("--bench", help="Run the public set of normalisation bugs instead.")
    ] = False,
) -> None:
    """Find normalisation bugs in a model: wrong modes, damaged statistics, raw inputs, and more.

    It runs copies of the model on one batch, in train and in eval mode, and
    prints what it found, why it matters, and how to fix it. With --data the
    batch is real, which finds wrong inputs and stale statistics too.

    With --bench it trains some sixty small networks, each with a bug and
    without, and prints how many bugs are found, and how many are named first.

    Exit codes: 0 healthy, 1 an error or a warning, 2 bad input or usage.
    """
    from slabnorm.errors import OptionError
    from slabnorm.files import output_path, write_atomically
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.check import print_check
    from slabnorm.report.page import check_packages
    from slabnorm.report.terminal import terminal

    if bench:
        _print_bench(json_path)
        return
    if not model:
        raise OptionError("No model is named", "", "slabnorm check package.module:name --input 32,3,64,64")
    if bool(input) == bool(data):
        raise OptionError("A batch is needed: give --input or --data, one of them", "", "--input 32,3,64,64")
    paths = [output_path(path) for path in (json_path, sarif) if path and path != "-"]
    page = None if out is None else output_path(out)
    if page is not None:
        check_packages()
    check_outputs(filter(None, (page, *paths)), filter(None, (data, checkpoint)))
    batch = _from_data(data, batch_size) if data else _random(input)
    from slabnorm.doctor import check as find

    record = find(_loaded(_built(model), checkpoint), batch)
    for path, plain in ((json_path, record.as_dict()), (sarif, record.as_sarif())):
        if path == "-":
            print(json.dumps(plain, indent=1), flush=True)
        elif path:
            write_atomically(paths.pop(0), json.dumps(plain, indent=1) + "\n")
    if page is not None:
        record.report(page)
    print_check(record, terminal(stderr="-" in (json_path, sarif)))
    if not record.healthy:
        raise typer.Exit(FOUND)


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


def _from_data(data: str, samples: int) -> torch.Tensor:
    import torch

    from slabnorm.errors import OptionError
    from slabnorm.study.read import read_data

    if samples < 2:
        raise OptionError("batch_size must be 2 or more", str(samples), "as in --batch-size 32")
    read = read_data(data)
    some = torch.randperm(len(read.x), generator=torch.Generator().manual_seed(0))[:samples]
    return torch.as_tensor(read.x[some.numpy()]).float()
