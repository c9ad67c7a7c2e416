"""`slabnorm export`: fitted input statistics for other systems."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from slabnorm.cli.shell import error_console, exits, shown


def export(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    to: Annotated[str, typer.Option(help="onnx, torchvision, huggingface or json.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where it goes; text goes to stdout by default, ONNX to a file."),
    ] = None,
    scaled_by: Annotated[
        float | None,
        typer.Option(
            help="torchvision, huggingface: what images are divided by before.",
            show_default="255 for uint8, else 1",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="onnx: of the raw data.", show_default="that of the fitted data")
    ] = None,
) -> None:
    """Export input statistics to ONNX, torchvision, Hugging Face or JSON.

    With huggingface, an --out that exists is merged into: its other keys stay.

    A scaler of scikit-learn is made in Python, by slabnorm.inputs.exports.to_sklearn(norm): its file would
    be a pickle, which runs code when it is loaded.
    """
    with exits():
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
            raise OptionError(f"{to} is no text, and goes to a file", "no --out", f"--out inputs.{to}")
        else:
            sys.stdout.write(made)
            sys.stdout.flush()
