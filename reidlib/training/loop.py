"""The loop under every training: whole epochs, one code path for CPU, GPU and several processes, exact resume.

An epoch is a function of the weights, the optimizer and the seed: batches, augmentation and dropout are drawn from
(seed, epoch, step), so that a run killed at any moment goes on from its last whole epoch to the same weights.

What is trained on what is not known here: `fit` brings people and mAP, and whoever else calls `train` brings batches
and an evaluation of its own.
"""

import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reidlib.data.loaders import Batch
from reidlib.data.transforms import build_augmentation
from reidlib.files import whole_file
from reidlib.runs import Run
from reidlib.seeds import seeded, torch_generator_for
from reidlib.training.losses import Criterion
from reidlib.training.optim import begin_epoch, build_optimizer, set_rate
from reidlib.training.recipes import Recipe

History = list[dict[str, Any]]
Evaluate = Callable[[nn.Module], dict[str, float]]
OnEpoch = Callable[[History], None]


@dataclass(frozen=True)
class Setup:
    """How a run is carried out; what it computes is the recipe's."""

    workers: int = 0  # loader processes, for sets too large to be kept in memory
    cpu: bool = False  # stay on the CPU even where there is a GPU

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "Setup":
        """The set-up whose fields stand in `values` under their own names; other entries are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def begin(setup: Setup) -> Any:
    """The processes and the device of a run, as an accelerate.Accelerator: asked for before the loaders are built.

    Its `process_index` and `num_processes` are the loaders' `rank` and `world`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # an earlier run of this kernel may have stayed on the CPU
    return Accelerator(cpu=setup.cpu)


def train(
    model: nn.Module,
    loader: DataLoader[Batch],
    evaluate: Evaluate,
    run: Run,
    recipe: Recipe,
    *,
    accelerator: Any,
    score: str,
    stamp: Mapping[str, Any],
    about: Mapping[str, Any],
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train `model` on `loader` by `recipe` into the folder of `run`; the model ends with the best weights.

    `loader` gives Batches whose pids are class labels, and its `sampler.set_epoch(epoch)` decides their order.
    `evaluate(model)` gives scores by name, is called on every process, every `recipe.eval_every` epochs and after the
    last, and gives the same on each; the weights of the epoch with the highest `score` are kept, the earlier of equals.
    `stamp` is what a checkpoint must agree on to be gone on with, beside model and recipe; `about` is for model.json.

    Returns one dict an epoch, as in metrics.jsonl; epoch 0 is the untrained network, with its scores alone. A run that
    was interrupted goes on, a finished one is loaded. `on_epoch(history)` is called after each epoch. With
    `recipe.patience` training may end early; then the last row says so under "stopped".

    Raises ValueError where the run folder was made by another model, data set or recipe; FloatingPointError where the
    loss is no longer a number; OSError for unreadable pictures and a full disk. The last checkpoint stays whole.
    """
    augment = build_augmentation(recipe.augment)
    criterion = Criterion(recipe, model)  # refuses what recipe and model cannot do together
    checkpoint = run.begin().path / "last.pt"
    stamp = {"model": model.name, "input_size": model.input_size, "processes": accelerator.num_processes, **stamp}
    stamp = json.loads(json.dumps(stamp | asdict(recipe)))  # plain values, which compare after a round trip
    state = _load_checkpoint(checkpoint, stamp)

    # Channels last: convolutions are half as fast again, on CPUs and in bfloat16.
    model.to(accelerator.device, memory_format=torch.channels_last)
    criterion.to(accelerator.device)
    optimizer = build_optimizer(model, recipe)
    average = Average(model, recipe.ema) if recipe.ema else None
    kept = average.model if average else model  # whose weights are evaluated and kept
    parts = {"model": model, "optimizer": optimizer, "criterion": criterion} | ({"average": average} if average else {})
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history = state["history"]
    else:
        history = [{"epoch": 0, **_timed(evaluate, kept)}]
    run.write_metrics(history)
    epoch_of = _Epochs(model, loader, criterion, optimizer, augment, recipe, accelerator, average)
    for epoch in range(len(history), recipe.epochs + 1):
        if "stopped" in history[-1]:
            break
        row = {"epoch": epoch, **epoch_of(epoch)}
        if epoch % recipe.eval_every == 0 or epoch == recipe.epochs:
            row |= _timed(evaluate, kept)
        history.append(row)
        if said := _out_of_patience(history, recipe, score):
            row["stopped"] = said
        if accelerator.is_main_process:
            if score in row and best_row(history, score) is row:
                run.save_model(kept, epoch=epoch, **about)
            state = {"stamp": stamp, "history": history} | {name: part.state_dict() for name, part in parts.items()}
            # Through a Python file: torch's own writer would hide that the disk is full.
            with whole_file(checkpoint) as part, part.open("wb") as file:
                torch.save(state, file)
            run.write_metrics(history)
            if on_epoch:
                on_epoch(history)
    accelerator.wait_for_everyone()
    run.load_weights(model)
    return history


def _timed(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    start = time.perf_counter()
    return evaluate(model) | {"eval_seconds": round(time.perf_counter() - start, 3)}


def best_row(history: History, score: str) -> dict[str, Any]:
    """The evaluated epoch with the highest `score`, the earlier of equals; the untrained network is not one."""
    return max((row for row in history[1:] if score in row), key=lambda row: row[score])


def _out_of_patience(history: History, recipe: Recipe, score: str) -> str:
    scores = [row[score] for row in history[1:] if score in row]
    since = len(scores) - 1 - scores.index(max(scores)) if scores else 0
    if not 0 < recipe.patience <= since or score not in history[-1] or history[-1]["epoch"] == recipe.epochs:
        return ""
    best = best_row(history, score)
    return f"no better {score} than {best[score]:.1%} of epoch {best['epoch']} in {since} evaluations"


class Average:
    """A running mean of a model's weights: each step takes `1 - decay` of the new ones.

    The first steps take more of them, 1 - (1 + n) / (10 + n) at step n, or a short run would be judged by its random
    beginning (as TensorFlow's ExponentialMovingAverage has it). Running statistics are averaged alike.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = copy.deepcopy(model).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        mine, new = (list(m.state_dict(keep_vars=True).values()) for m in (self.model, model))
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        floats = [i for i, tensor in enumerate(mine) if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[i] for i in floats], [new[i] for i in floats], share)
        for a, b in zip(mine, new, strict=True):
            if not a.is_floating_point():
                a.copy_(b)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])


class _Epochs:
    """`epoch_of(3)` trains epoch 3 and gives its row of metrics."""

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader[Batch],
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        augment: Callable[[Tensor, torch.Generator], Tensor],
        recipe: Recipe,
        accelerator: Any,
        average: Average | None,
    ) -> None:
        self.model, self.loader, self.criterion, self.optimizer = model, loader, criterion, optimizer
        self.augment, self.recipe, self.accelerator, self.average = augment, recipe, accelerator, average
        self.device, self.rank = accelerator.device, accelerator.process_index
        self.bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def __call__(self, epoch: int) -> dict[str, float]:
        recipe, steps = self.recipe, len(self.loader)
        sums: dict[str, Tensor] = {}
        begin_epoch(self.model.train(), recipe, epoch)
        self.criterion.epoch = epoch
        self.loader.sampler.set_epoch(epoch)
        self.optimizer.zero_grad()
        clock, shown, updates = _Clock(), 0, 0
        with seeded(recipe.seed):  # each step begins anew: any of them can be repeated alone
            for step, batch in enumerate(clock.waiting(self.loader)):
                group = step // recipe.accumulate * recipe.accumulate  # the step in which this update began
                if step == group:
                    rate = recipe.lr * set_rate(self.optimizer, recipe, epoch - 1 + step / steps)
                torch.manual_seed(torch_generator_for(recipe.seed, "dropout", epoch, step, self.rank).initial_seed())
                loss, parts = self._loss(batch, epoch, step)
                (loss / min(recipe.accumulate, steps - group)).backward()
                if step + 1 == min(group + recipe.accumulate, steps):
                    parts |= {"gradient_norm": self._update()}
                    updates += 1
                shown += len(batch.pids)
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0) + value  # stays on the device: .item() would make a GPU wait
        counts = {"gradient_norm": updates}
        names = list(sums)
        means = torch.stack([sums[name].float() / counts.get(name, steps) for name in names])
        row = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        if not torch.isfinite(torch.tensor(row["loss"])):
            raise FloatingPointError(
                f"the loss of epoch {epoch} is {row['loss']}: lower the learning rate (lr={recipe.lr}); "
                "the checkpoint of the epoch before is kept"
            )
        row |= {"lr": rate} | clock.row(shown * self.accelerator.num_processes)
        return row | {"memory_mib": _memory(self.device)}

    def _loss(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        labels = batch.pids.to(self.device, non_blocking=True)
        images = self.augment(images, torch_generator_for(self.recipe.seed, "augment", epoch, step, self.rank))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self.model(images, batch.cameras.to(self.device, non_blocking=True))
        loss, parts = self.criterion(outputs, labels)
        parts = parts if len(parts) > 1 else {}  # a single part is the loss itself
        accuracy = (outputs.logits[0].argmax(1) == labels).float().mean()
        return loss, parts | {"loss": loss.detach(), "accuracy": accuracy}

    def _update(self) -> Tensor:
        """One step of the optimizer; gives the length of the gradient before it was clipped."""
        moved = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in moved])
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(moved, self.recipe.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.criterion.update()
        if self.average:
            self.average.update(self.model)
        return norm


class _Clock:
    """How long an epoch took, and which share of it was spent waiting for the loader."""

    def __init__(self) -> None:
        self.start, self.waited = time.perf_counter(), 0.0

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        source = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def row(self, images: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        return {
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1),
            "loading": round(self.waited / seconds, 4),
        }


def _memory(device: torch.device) -> float:
    """The most memory that this process has held, in MiB: the GPU's where there is one, else its own."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _load_checkpoint(path: Path, stamp: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_by = state["stamp"]
    except Exception as error:  # torch raises many kinds on a file that is not a checkpoint
        raise ValueError(f"{path} is not a checkpoint of this workbook: move it away to start anew") from error
    wrong = [f"{key} {made_by.get(key)} → {value}" for key, value in stamp.items() if made_by.get(key) != value]
    if wrong:
        raise ValueError(
            f"{path.parent} holds a run with other settings ({'; '.join(wrong)}): "
            "choose another `run`, or resume='restart' to replace it"
        )
    return state
