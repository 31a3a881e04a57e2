"""Seconds and memory of a call, on a CPU or a GPU, for the benchmarks in this folder."""

import ctypes
import gc
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch


class Measured(NamedTuple):
    seconds: float
    memory: float  # MiB, the highest above what was taken before the call
    result: Any


def measure(
    work: Callable[..., Any], *args: Any, device: str, threads: int = 0, repeats: int = 1, warm_up: int = 0
) -> Measured:
    """Call `work(*args)` first `warm_up` times, then `repeats` times.

    On a CPU the seconds are those of the best call: of the processor with one thread, which other programs on the
    machine disturb least, else of the clock. On a GPU they are the median of the times between two CUDA events.

    Args:
        work: What is measured.
        args: Its arguments.
        device: "cpu" or "cuda".
        threads: Of torch; 0: as it is set.
        repeats: Measured calls.
        warm_up: Calls before them.
    """
    on_gpu = device.startswith("cuda")
    clock = time.process_time if (threads or torch.get_num_threads()) == 1 else time.perf_counter
    seconds, memory = [], []
    for turn in range(-warm_up, repeats):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() / 2**20
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = work(*args)
            end.record()
            end.synchronize()
            took, highest = start.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated() / 2**20
        else:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it cannot hide what is taken
            with suppress(OSError):  # not everywhere
                Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
            before, begun = _status("VmRSS"), clock()
            result = work(*args)
            took, highest = clock() - begun, _status("VmHWM")
        if turn >= 0:
            seconds.append(took)
            memory.append(highest - before)
    return Measured(median(seconds) if on_gpu else min(seconds), max(memory), result)


def _status(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")
