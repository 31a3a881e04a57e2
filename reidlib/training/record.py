"""What a training writes into its run folder: checkpoints, metrics, its state, the best weights, and trackers.

After each epoch the checkpoint is written first, then metrics.jsonl, then the trackers get the epoch: a kill in between
is made good when the run is resumed.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reidlib.errors import unknown_name
from reidlib.files import whole_file
from reidlib.run_folder import RunFolder
from reidlib.training.recipes import Recipe

if TYPE_CHECKING:
    from reidlib.models import ReIDModel

History = list[dict[str, Any]]  # one dict per epoch, as in metrics.jsonl

MAY_CHANGE = {f.name for f in fields(Recipe) if f.metadata["may_change"]}  # settings that a resumed run may change
PROJECT = "reidlib"  # the trackers' project
_LOGGED = "trackers/logged.json"  # which epochs each tracker has got


# The history


def best_row(history: History, score: str) -> dict[str, Any] | None:
    """Return the evaluated epoch with the highest `score`, the earlier of equals; None before there is one.

    Epoch 0, the untrained network, does not count.
    """
    return max((row for row in history[1:] if score in row), key=lambda row: row[score], default=None)


def chosen_row(history: History, score: str, keep: str = "best") -> dict[str, Any] | None:
    """Return the evaluated epoch whose weights are kept: the "best", or the "last"; None before there is one."""
    return best_row(history, score) if keep == "best" else next((r for r in history[:0:-1] if score in r), None)


def out_of_patience(history: History, recipe: Recipe, score: str) -> str:
    """Say in one sentence why `recipe.patience` ends training with the last epoch; "" if it does not."""
    best = best_row(history, score)
    if not recipe.patience or best is None or score not in history[-1] or history[-1]["epoch"] == recipe.epochs:
        return ""
    since = sum(score in row for row in history[best["epoch"] + 1 :])
    if since < recipe.patience:
        return ""
    return f"no better {score} than {best[score]:.1%} of epoch {best['epoch']} in {since} evaluations"


# The state


@contextmanager
def training_state(run: RunFolder, history: History, *, finished: bool) -> Iterator[None]:
    """Write run.json: "training" while the block runs, then "ended" or "failed". A kill leaves "training".

    Args:
        run: The run folder.
        history: Read when the block ends, for the last epoch.
        finished: Whether nothing is left to train; a run that is marked as ended then stays as it is.
    """
    if finished and run.state.get("state") == "ended":
        yield
        return
    run.write_state("training")
    try:
        yield
    except BaseException as error:
        write_failure(run, error)
        raise
    last = history[-1]
    run.write_state("ended", epoch=last["epoch"], **{k: last[k] for k in ("stopped",) if k in last})


def write_failure(run: RunFolder, error: BaseException) -> None:
    """Write to run.json that training failed, with type and message of `error` in one sentence."""
    sentence = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    if isinstance(error, KeyboardInterrupt):
        sentence = "interrupted"
    with suppress(OSError):  # of a full disk, say; `error` is what the user should see
        run.write_state("failed", error=sentence)


# Checkpoints


def load_checkpoint(path: Path, stamp: Mapping[str, Any]) -> dict[str, Any] | None:
    """Load last.pt to resume from it.

    Args:
        path: The checkpoint.
        stamp: Values that must match for a checkpoint to be resumed, as JSON has them. A setting that the checkpoint
            lacks, because it was made before the setting existed, counts as its default, which changes nothing.

    Returns:
        The content; None if there is no such file.

    Raises:
        ValueError: The file is no checkpoint, or was made with other settings, each of which is named.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_with = state["stamp"]
    except Exception as error:  # torch raises many kinds on a file that is not a checkpoint
        raise ValueError(f"{path} is not a checkpoint of this workbook: move it away to start anew") from error
    if unknown := [f"{key}={value!r}" for key, value in made_with.items() if key not in stamp]:
        raise ValueError(
            f"{path} was made with settings that this version does not know ({', '.join(unknown)}): "
            "use the version that made it, choose another `run`, or resume='restart' to replace it"
        )
    made_with = json.loads(json.dumps(asdict(Recipe()))) | {"sync_bn": False} | made_with
    changed = [key for key, value in stamp.items() if key not in MAY_CHANGE and made_with.get(key) != value]
    if changed:
        values = "; ".join(f"{key} {made_with.get(key)} → {stamp[key]}" for key in changed)
        raise ValueError(
            f"{path.parent} holds a run with other settings ({values}): "
            "choose another `run`, or resume='restart' to replace it"
        )
    if "steps" in state.get("average", ()):  # as it was written before torch's AveragedModel was used
        steps, weights = state["average"]["steps"], state["average"]["model"]
        state["average"] = {"n_averaged": torch.tensor(steps)} | {f"module.{k}": v for k, v in weights.items()}
    return state


class Recorder:
    """Writes what each epoch leaves: the checkpoint, then the metrics, then a line to each tracker.

    Args:
        run: The run folder.
        history: The epochs so far. What a kill has kept from being written of them is written now.
        keep_every: Epochs between checkpoints that are kept beside the last; 0 for none.
        trackers: Names of the trackers.
        accelerator: The run's accelerate.Accelerator, which holds the trackers.
        settings: What a tracker shows as the settings of the run.
    """

    def __init__(
        self,
        run: RunFolder,
        history: History,
        keep_every: int,
        trackers: list[str],
        accelerator: Any,
        settings: Mapping[str, Any],
    ) -> None:
        self.run, self.keep_every = run, keep_every
        run.write_metrics(history)
        self._keep_checkpoint(history[-1]["epoch"])
        self.trackers = _Trackers(run, trackers, accelerator, settings) if trackers else None
        self._track(history)

    def __call__(self, history: History, state: dict[str, Any]) -> None:
        """Write the last epoch of `history`, and `state` as the checkpoint."""
        # Through a Python file: torch's own writer would hide that the disk is full.
        with whole_file(self.run.path / "last.pt") as part, part.open("wb") as file:
            torch.save({"history": history} | state, file)
        self._keep_checkpoint(history[-1]["epoch"])
        self.run.write_metrics(history)
        self._track(history)

    def close(self) -> None:
        if self.trackers:
            self.trackers.close()

    def _track(self, history: History) -> None:
        if self.trackers:
            self.trackers.log(history)

    def _keep_checkpoint(self, epoch: int) -> None:
        last, kept = self.run.path / "last.pt", self.run.path / f"epoch-{epoch:04}.pt"
        if not self.keep_every or not epoch or epoch % self.keep_every or kept.exists():
            return
        try:
            os.link(last, kept)  # last.pt is replaced later, never written into
        except OSError:  # some disks know no links
            with whole_file(kept) as part:
                shutil.copyfile(last, part)


# Trackers


def tracker_names(trackers: str) -> list[str]:
    """Split the names of trackers and check them.

    Args:
        trackers: Names as accelerate has them, comma-separated: "tensorboard, wandb"; "" for none.

    Raises:
        ValueError: A name is unknown, or its package is not installed.
    """
    names = [name.strip() for name in trackers.split(",") if name.strip()]
    if names:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
        from accelerate.utils import LoggerType
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown_name("tracker", name, LOGGER_TYPE_TO_CLASS)
        if name in LoggerType.list() and name not in map(str, get_available_trackers()):
            raise ValueError(f"the tracker {name} is not installed: install the package {name}, or change `trackers`")
    return list(dict.fromkeys(names))


class _Trackers:
    """Hands each epoch to accelerate's trackers, once, whatever interrupted the run before.

    TensorBoard's files are written anew from the history. The others continue the run that they began: which epochs
    each has got is kept in the run folder. One that was killed after it took an epoch, before that was noted, gets the
    epoch again, under the same step.
    """

    def __init__(self, run: RunFolder, names: list[str], accelerator: Any, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import filter_trackers

        self.run, self.trackers = run, accelerator.trackers
        folder = str(run.path / "trackers")
        self.logged = run.read_json(_LOGGED) or {"id": uuid.uuid4().hex, "epochs": {}}
        if "tensorboard" in names:
            shutil.rmtree(Path(folder) / PROJECT, ignore_errors=True)
            self.logged["epochs"].pop("tensorboard", None)
        same_run = {
            "wandb": {"name": run.name, "id": self.logged["id"], "resume": "allow", "dir": folder},
            "trackio": {"name": run.name, "resume": "allow"},
            "comet_ml": {"experiment_key": self.logged["id"]},
            "mlflow": {"run_name": run.name, "run_id": self.logged.get("mlflow")},
        }
        accelerator.project_configuration.logging_dir = folder
        accelerator.log_with = filter_trackers(names, folder)
        accelerator.init_trackers(PROJECT, init_kwargs=same_run)
        for tracker in self.trackers:
            if tracker.name == "mlflow":  # gives its runs their ids itself
                self.logged["mlflow"] = tracker.tracker.info.run_id
            if tracker.name not in self.logged["epochs"]:
                tracker.store_init_configuration(dict(settings))

    def log(self, history: History) -> None:
        """Give every tracker the epochs that it does not have yet."""
        for tracker in self.trackers:
            for row in history[self.logged["epochs"].get(tracker.name, -1) + 1 :]:
                values = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "epoch"}
                tracker.log(values, step=row["epoch"])
                self.logged["epochs"][tracker.name] = row["epoch"]
                self.run.write_json(_LOGGED, self.logged)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()
        self.trackers.clear()


# Weights


def save_model(run: RunFolder, model: "ReIDModel", **about: Any) -> None:
    """Write the weights of `model`, and beside them in model.json `about` and what it takes to rebuild the model."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(run.path / "model.safetensors") as part:
        save_file(state, part)
    run.write_json("model.json", _describe(model) | about)


def load_weights(run: RunFolder, model: "ReIDModel") -> None:
    """Load the best weights of `run` into `model`.

    Raises:
        ValueError: They belong to another model, or are damaged.
    """
    about = run.read_json("model.json")
    if about.get("name") != model.name:
        raise ValueError(f"{run.path} holds a {about.get('name')}, not a {model.name}: choose another `run`")
    path = run.path / "model.safetensors"
    try:
        state = load_file(path)
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the weights that model.json describes: {reason}") from error
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values, so every feature would: train it again")


def write_bad_batch(run: RunFolder, images: torch.Tensor | None, about: dict[str, Any]) -> None:
    """Keep the batch that training stopped at.

    Args:
        run: The run folder.
        images: (B, 3, H, W) uint8, as the model saw them; None if it saw none.
        about: What is known of the batch, for bad_batch.json.
    """
    if images is not None:
        with whole_file(run.path / "bad_batch.safetensors") as part:
            save_file({"images": images.cpu().contiguous()}, part)
    run.write_json("bad_batch.json", about)


def bad_batch(run: RunFolder) -> tuple[torch.Tensor, dict[str, Any]] | None:
    """Return what `write_bad_batch` kept; None if training did not stop at a batch."""
    path = run.path / "bad_batch.safetensors"
    return (load_file(path)["images"], run.read_json("bad_batch.json")) if path.is_file() else None


def _describe(model: "ReIDModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "num_classes": model.num_classes,
        "num_cameras": model.num_cameras,
        "input_size": list(model.input_size),
        "feature_dim": model.feature_dim,
        "mean": list(model.mean),
        "std": list(model.std),
        "init": model.init,
    }
