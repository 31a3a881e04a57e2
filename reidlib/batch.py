"""The command line of the workbook: `python -m reidlib.batch` (see `reidlib.workbook.batch`)."""

import sys

from reidlib.workbook.batch import main

if __name__ == "__main__":
    sys.exit(main())
