"""The workbook runs from a read-only checkout with a space in its path, without HOME, and without root's rights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["-p", "dataset", "synthetic-tiny", "-p", "epochs", "1", "-p", "people", "4"]
    done = subprocess.run(
        powerless(command), cwd=checkout, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    run = out / "my runs" / "first"
    assert (run / "notebooks" / "train.html").is_file()
    assert (run / "model.safetensors").is_file()
    assert "Traceback" not in done.stderr
