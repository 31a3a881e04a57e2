"""How much memory decoded images may take: one budget for all splits, and for all processes of one computer."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

CACHE_GIB = 8.0  # Market-1501 at 256 × 128 takes 3.3
_CGROUP = Path("/sys/fs/cgroup")
_FILES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}  # v2, v1


def available_memory() -> int:
    """Bytes that may still be taken: of the computer, and of the container or Slurm job (cgroup) that this runs in."""
    free = psutil.virtual_memory().available
    with suppress(OSError):  # not Linux
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controller, group = line.split(":", 2)
            folder = _CGROUP / controller / group.lstrip("/")
            for level in (folder, *folder.parents) if controller in _FILES else ():
                with suppress(OSError, ValueError, IndexError):  # no limit at this level
                    limit, used = (int((level / name).read_text()) for name in _FILES[controller])
                    reclaimable = int((level / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
                    free = min(free, limit - used + reclaimable)
    return max(free, 0)


def cache_room(limit_gib: float, cached: int, world: int = 1) -> int:
    """Bytes that this process may still cache.

    Args:
        limit_gib: GiB that the processes of this computer may cache together. They never take more than half of the
            memory that is free.
        cached: bytes that this process caches already.
        world: number of processes, all of them on this computer unless LOCAL_WORLD_SIZE says otherwise.
    """
    here = min(world, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    return int(min(limit_gib * 2**30 / here - cached, available_memory() / 2 / here))
