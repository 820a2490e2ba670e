"""`python -m him COMMAND ...`; `python -m him --help` lists the commands."""

import sys

from him.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
