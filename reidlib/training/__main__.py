"""Train from a file of parameters, in as many processes as torchrun, accelerate or Slurm start.

    torchrun --nproc-per-node 2 -m reidlib.training runs/first/params.json
    accelerate launch --multi_gpu --num_processes 2 -m reidlib.training runs/first/params.json

The file is the params.json of a run, which is resumed, or one of your own with the same entries.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from reidlib.training.distributed import rank_and_world, stop_with_parent
from reidlib.training.job import Job
from reidlib.training.record import History


def read_job(path: Path) -> Job:
    """The job of a file of parameters.

    Args:
        path: params.json of a run folder, or a file like it.

    Raises:
        ValueError: The file is no JSON object, or `Job.from_params` refuses its entries.
        OSError: It cannot be read.
    """
    try:
        params = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not valid JSON ({error})") from error
    if not isinstance(params, dict):
        raise ValueError(f"it holds a {type(params).__name__}, not an object of parameters")
    folder = path.resolve().parent
    more: dict[str, Any] = {"run": str(folder)} if (folder / "environment.json").is_file() else {}
    if rank_and_world()[0] or more:  # only the first process begins the run; another might find it begun already
        more["resume"] = "auto"
    return Job.from_params(params, **more)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return dict(pairs)


def print_epoch(history: History) -> None:
    """Print the last line of metrics.jsonl."""
    print(json.dumps(history[-1]), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 when all went well, 1 if training failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="python -m reidlib.training", description=__doc__.split("\n")[0])
    parser.add_argument("params", type=Path, help="params.json of a run, or one like it")
    args = parser.parse_args(argv)
    stop_with_parent()
    try:
        job = read_job(args.params)
    except (OSError, ValueError) as error:
        print(f"error: {type(error).__name__}: {args.params}: {error}", file=sys.stderr)
        return 2
    try:
        if rank_and_world()[0] == 0:
            print(job.batch_line(), flush=True)
        record(job.train)(on_epoch=print_epoch, progress=sys.stderr.isatty())
    except Exception as error:
        if not isinstance(error, ValueError | OSError | FloatingPointError):
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(1)  # at once: other processes may be waiting in a message that this one will never answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
