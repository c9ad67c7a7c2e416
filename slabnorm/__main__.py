"""`python -m slabnorm` is the command `slabnorm`."""

import os
import sys

if __name__ == "__main__":
    # `python -m` searches the current folder first, where a rich.py would stand for the library of that name.
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and sys.path[0] == os.getcwd() != here:
        del sys.path[0]
    from slabnorm.cli import main

    main()
