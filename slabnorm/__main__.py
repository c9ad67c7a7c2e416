"""The command `slabnorm`, also as `python -m slabnorm`."""

import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command, if what it is made with is installed."""
    from slabnorm.errors import ExtraError
    from slabnorm.extras import extra

    try:
        for package in ("typer", "rich"):
            extra(package, "the command slabnorm", "'slabnorm[cli]'")
    except ExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from slabnorm import cli

    cli.main()


if __name__ == "__main__":
    # `python -m` searches the current folder first, where a rich.py would stand for the library of that name.
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with suppress(FileNotFoundError):  # the current folder has been deleted
        if not sys.flags.safe_path and sys.path[0] == os.getcwd() != here:
            del sys.path[0]
    main()
