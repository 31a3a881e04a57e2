"""The command line: `python -m reidlib.extract` (see `reidlib.workbook.own_commands`)."""

import sys

from reidlib.workbook.own_commands import extract

if __name__ == "__main__":
    sys.exit(extract())
