"""The command line: `python -m reidlib.find` (see `reidlib.workbook.own_commands`)."""

import sys

from reidlib.workbook.own_commands import find

if __name__ == "__main__":
    sys.exit(find())
