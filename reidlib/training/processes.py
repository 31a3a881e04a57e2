"""Several processes of one run on this computer, started by a notebook and ended with it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from reidlib.files import scratch_folder
from reidlib.run_folder import RunFolder
from reidlib.training import record

WATCHED = "REID_WATCHED"  # set for processes whose standard input closes when whoever started them is gone
_ERRORS = {error.__name__: error for error in (ValueError, OSError, FloatingPointError)}


def place() -> tuple[int, int]:
    """Rank and number of the processes that whoever started this one speaks of; (0, 1) where nobody does."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def run_processes(model: nn.Module, run: RunFolder, count: int, on_epoch: Any = None) -> list[dict[str, Any]]:
    """Train the run in `count` processes of `python -m reidlib.training`; `on_epoch(history)` as its metrics grow.

    The run's params.json says what is trained; `model` gets its weights at the end. Returns one dict an epoch.
    When one of them dies the others are ended. Raises what it said where that is a ValueError, OSError or
    FloatingPointError, and RuntimeError otherwise.
    """
    with run.lock():
        run.begin()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), WATCHED: "1"}
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "reidlib.training", str(run.path / "params.json")]
    told = max(1, len(run.metrics))
    processes: list[subprocess.Popen] = []
    with scratch_folder() as folder:
        try:
            for rank in range(count):
                own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with open(f"{folder}/{rank}", "wb") as log:
                    processes.append(
                        subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
                    )
            going = True
            while going:
                time.sleep(0.2)
                codes = [process.poll() for process in processes]
                going = any(code is None for code in codes) and not any(codes)
                history = run.metrics
                for rows in range(told + 1, len(history) + 1):
                    if on_epoch:
                        on_epoch(history[:rows])
                told = max(told, len(history))
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdin.close()
        if any(codes):
            said = [Path(folder, str(rank)).read_text(errors="replace") for rank in range(count)]
            raise _first_failure(codes, said)
    record.load_weights(run, model)
    return run.metrics


def _first_failure(codes: list[int | None], said: list[str]) -> Exception:
    """What went wrong first: others only lost the one that died."""
    failures = []
    for rank, (code, text) in enumerate(zip(codes, said, strict=True)):
        if not code:
            continue
        lines = [line for line in text.splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("error: ")), "")
        _, kind, reason = told.split(": ", 2) if told else ("", "", lines[-1] if lines else "it said nothing")
        if code < 0:
            reason = (
                f"was killed by signal {-code} (9: out of memory?); started again, the run goes on from its last epoch"
            )
            failures.append((0, rank, RuntimeError(f"process {rank} of {len(codes)} {reason}")))
        elif kind in _ERRORS:
            failures.append((1, rank, _ERRORS[kind](reason)))
        else:
            failures.append((2, rank, RuntimeError(f"process {rank} of {len(codes)} failed: {reason}")))
    return min(failures, key=lambda failure: failure[:2])[2]
