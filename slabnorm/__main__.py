"""`python -m slabnorm` is the command `slabnorm`."""

from slabnorm.cli import main

if __name__ == "__main__":
    main()
