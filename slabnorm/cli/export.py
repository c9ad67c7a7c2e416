"""`slabnorm export`: fitted input statistics in the format of another system."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from slabnorm.cli.shell import error_console, shown


def export(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    to: Annotated[str, typer.Option(help="onnx, torchvision, huggingface or json.")],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The file to write. ONNX needs one; text goes to stdout without it."
        ),
    ] = None,
    scaled_by: Annotated[
        float | None,
        typer.Option(
            help="For torchvision and huggingface: what images are divided by first.",
            show_default="255 for uint8, else 1",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="For onnx: the dtype of the raw data, such as float32.",
            show_default="that of the fitted data",
        ),
    ] = None,
) -> None:
    """Write input statistics in the format of ONNX, torchvision, Hugging Face, or as JSON.

    With `--to huggingface`, a file that is there already keeps its other keys.

    For scikit-learn, use slabnorm.inputs.exports.to_sklearn(norm) in Python.
    A file would have to be a pickle, which runs code when it is loaded.
    """
    from slabnorm.errors import OptionError
    from slabnorm.files import output_path, write_atomically
    from slabnorm.inputs import load
    from slabnorm.inputs.exports import content
    from slabnorm.inputs.outputs import check_outputs

    target = None if out is None else output_path(out)
    if target is not None:
        check_outputs([target], [artifact])
    made = content(load(artifact), to, target, scaled_by=scaled_by, dtype=dtype)
    if target is not None:
        write_atomically(target, made)
        error_console().print(f"{to}: {shown(target)}", style="dim", soft_wrap=True)
    elif isinstance(made, bytes):
        raise OptionError(f"An export to {to} must be written to a file", "", f'out="inputs.{to}"')
    else:
        sys.stdout.write(made)
        sys.stdout.flush()
