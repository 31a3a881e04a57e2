"""Train from a run's own parameters, in as many processes as torchrun, accelerate or Slurm start.

    torchrun --nproc-per-node 2 -m reidlib.training runs/first/params.json
    accelerate launch --multi_gpu --num_processes 2 -m reidlib.training runs/first/params.json

The file is that of a run (which is gone on with), or one of your own with the same entries and a name under "run".
"""

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reidlib.data.datasets import load_dataset
from reidlib.data.folders import load_classes
from reidlib.models import create_model
from reidlib.run_folder import RunFolder
from reidlib.seeds import seeded
from reidlib.training import Recipe, Setup, class_recipe, fit, pretrain
from reidlib.training.loop import History, batch_line
from reidlib.training.processes import WATCHED, place
from reidlib.training.tasks import PRETRAIN


def _recipe(params: dict[str, Any]) -> Recipe:
    return (class_recipe if params.get("task") == PRETRAIN else Recipe.of)(params.get("recipe") or "toy", params)


def complete(params: dict[str, Any]) -> dict[str, Any]:
    """`params` with every setting of recipe and set-up, as the params.json of a run has them."""
    recipe = _recipe(params)
    size = [recipe.height, recipe.width] if recipe.height else None
    return asdict(recipe) | asdict(Setup.of(params)) | {"input_size": size} | params


def train_from(params: dict[str, Any], run: RunFolder) -> History:
    """What the train notebook, or the pretrain notebook, trains with these parameters, as params.json holds them."""
    recipe, setup = _recipe(params), Setup.of(params)
    rank, world = place()
    size = tuple(params["input_size"]) if params["input_size"] else None
    if params.get("task") == PRETRAIN:
        data, run_through = load_classes(params["dataset"], image_size=size or (256, 128)), pretrain
    else:
        chosen = {name: params[name] for name in ("combineall", "tested_on") if name in params}
        data, run_through = load_dataset(params["dataset"], image_size=size or (256, 128), **chosen), fit
    with seeded(recipe.seed, "weights"):
        model = create_model(
            params["model"],
            weights=params.get("init", "random").removeprefix("random"),
            num_classes=data.num_classes,
            num_cameras=len(data.camera_labels),
            input_size=size,
        )
    if rank == 0:
        print(batch_line(recipe, setup, world), flush=True)
    told = {"on_epoch": lambda history: print(json.dumps(history[-1]), flush=True)}
    return run_through(model, data, run, recipe, setup, **told)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 when all went well, 1 where training failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="python -m reidlib.training", description=__doc__.split("\n")[0])
    parser.add_argument("params", type=Path, help="params.json of a run, or one like it")
    args = parser.parse_args(argv)
    if WATCHED in os.environ:  # by a notebook: without it nobody would end this
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    try:
        params = complete(json.loads(args.params.read_text(encoding="utf-8")))
        folder = args.params.resolve().parent
        if (folder / "environment.json").is_file():
            run = RunFolder(folder)
        else:
            # Only the first process begins the run; another might find it begun already.
            resume = params.get("resume", "auto") if place()[0] == 0 else "auto"
            run = RunFolder.create(params["run"], params, resume=resume)
    except (OSError, ValueError) as error:
        print(f"error: {type(error).__name__}: {args.params}: {error}", file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"error: ValueError: {args.params} lacks {error}", file=sys.stderr)
        return 2
    try:
        train_from(params, run)
    except Exception as error:
        if not isinstance(error, ValueError | OSError | FloatingPointError):
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(1)  # at once: other processes may be waiting in a message that this one will never answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
