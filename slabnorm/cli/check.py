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
        typer.Argument(
            help="Your model, as package.module:name: a function without arguments, or a network."
        ),
    ],
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
) -> None:
    """Find normalisation bugs in a model: wrong modes, damaged statistics, raw inputs, and more.

    It runs copies of the model on one batch, in train and in eval mode, and
    prints what it found, why it matters, and how to fix it. With --data the
    batch is real, which finds wrong inputs and stale statistics too.

    Exit codes: 0 healthy, 1 an error or a warning, 2 bad input or usage.
    """
    from slabnorm.errors import OptionError
    from slabnorm.files import output_path, write_atomically
    from slabnorm.report.check import print_check
    from slabnorm.report.terminal import terminal

    if bool(input) == bool(data):
        raise OptionError("A batch is needed: give --input or --data, one of them", "", "--input 32,3,64,64")
    paths = [output_path(path) for path in (json_path, sarif) if path and path != "-"]
    batch = _from_data(data, batch_size) if data else _random(input)
    from slabnorm.doctor import check as find

    record = find(_loaded(_built(model), checkpoint), batch)
    for path, plain in ((json_path, record.as_dict()), (sarif, record.as_sarif())):
        if path == "-":
            print(json.dumps(plain, indent=1), flush=True)
        elif path:
            write_atomically(paths.pop(0), json.dumps(plain, indent=1) + "\n")
    print_check(record, terminal(stderr="-" in (json_path, sarif)))
    if not record.healthy:
        raise typer.Exit(FOUND)


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
