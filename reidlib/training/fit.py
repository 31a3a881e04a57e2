"""The training loop: one code path for CPU, one GPU and several (accelerate), whole epochs, exact resume.

An epoch is a function of the weights, the optimizer and the seed: batches, augmentation and dropout are drawn from
(seed, epoch, step), so that a run killed at any moment goes on from its last whole epoch to the same weights.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from reidlib.data.datasets import ReIDDataset
from reidlib.data.loaders import Batch, eval_loader, train_loader
from reidlib.data.transforms import build_augmentation
from reidlib.evaluation import evaluate_ranking, extract_features, ranking_inputs
from reidlib.files import whole_file
from reidlib.runs import Run
from reidlib.seeds import seeded, torch_generator_for
from reidlib.training.losses import Criterion
from reidlib.training.optim import begin_epoch, build_optimizer, set_rate
from reidlib.training.recipes import Recipe

History = list[dict[str, float]]


def fit(
    model: nn.Module,
    dataset: ReIDDataset,
    run: Run,
    recipe: Recipe,
    *,
    workers: int = 0,
    cpu: bool = False,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train `model` on `dataset` by `recipe` into the folder of `run`; the model ends with the best weights.

    Best is the highest mAP on the data set's own query and gallery, looked at every `recipe.eval_every` epochs and
    after the last. Returns one dict an epoch, as in metrics.jsonl; epoch 0 is the untrained network. A run
    that was interrupted goes on, a finished one is loaded. `on_epoch(history)` is called after each epoch.

    Raises ValueError where the run folder was made by another model, data set or recipe, or the set cannot fill a
    batch; FloatingPointError where the loss is no longer a number; OSError for unreadable pictures and for a full disk.
    In each case the last checkpoint stays whole.
    """
    accelerator = _accelerator(cpu)
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    loader = train_loader(
        dataset,
        model.input_size,
        people=recipe.people,
        images=recipe.images,
        pk=recipe.pk,
        seed=recipe.seed,
        workers=workers,
        **place,
    )
    splits = [
        eval_loader(s, model.input_size, cameras=dataset.camera_labels, workers=workers)
        for s in (dataset.query, dataset.gallery)
    ]
    augment = build_augmentation(recipe.augment)
    criterion = Criterion(recipe, model)  # refuses what recipe and model cannot do together
    stamp = _stamp(model, dataset, recipe, accelerator.num_processes)
    checkpoint = run.begin().path / "last.pt"
    state = _load_checkpoint(checkpoint, stamp)

    model.to(memory_format=torch.channels_last)  # convolutions are half as fast again, on CPUs and in bfloat16
    criterion.to(accelerator.device)
    optimizer = build_optimizer(model, recipe)
    net, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model)
    try:
        if state:
            bare.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            criterion.load_state_dict(state["criterion"])
            history, best = state["history"], state["best"]
        else:
            history, best = [{"epoch": 0, **_evaluate(bare, splits, recipe, accelerator)}], -1.0
        run.write_metrics(history)
        for epoch in range(len(history), recipe.epochs + 1):
            row = {"epoch": epoch}
            row |= _train_epoch(net, loader, criterion, optimizer, augment, recipe, epoch, accelerator, place)
            if epoch % recipe.eval_every == 0 or epoch == recipe.epochs:
                row |= _evaluate(bare, splits, recipe, accelerator)
            history.append(row)
            if accelerator.is_main_process:
                if row.get("mAP", -1.0) > best:
                    best = row["mAP"]
                    run.save_model(bare, trained_on=dataset.name, tested_on=dataset.tested_on, epoch=epoch)
                state = {"stamp": stamp, "history": history, "best": best}
                state |= {"model": bare.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"criterion": criterion.state_dict()}
                # Through a Python file: torch's own writer would hide that the disk is full.
                with whole_file(checkpoint) as part, part.open("wb") as file:
                    torch.save(state, file)
                run.write_metrics(history)
            if on_epoch and accelerator.is_main_process:
                on_epoch(history)
        accelerator.wait_for_everyone()
    finally:
        accelerator.unwrap_model(net, keep_fp32_wrapper=False)  # takes accelerate's autocast off the caller's model
        accelerator.free_memory()
    run.load_weights(bare)
    return history


def _accelerator(cpu: bool) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    bfloat16 = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    AcceleratorState._reset_state()  # an earlier run of this kernel may have chosen another precision
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bfloat16 else "no")


def _train_epoch(
    net: nn.Module,
    loader: DataLoader[Batch],
    criterion: Criterion,
    optimizer: Any,
    augment: Callable[..., torch.Tensor],
    recipe: Recipe,
    epoch: int,
    accelerator: Any,
    place: dict[str, int],
) -> dict[str, float]:
    device, rank = accelerator.device, place["rank"]
    sums: dict[str, torch.Tensor] = {}
    begin_epoch(net.train(), recipe, epoch)
    loader.sampler.set_epoch(epoch)
    start = time.perf_counter()
    with seeded(recipe.seed, "dropout", epoch, rank):
        for step, batch in enumerate(loader):
            rate = recipe.lr * set_rate(optimizer, recipe, epoch - 1 + step / len(loader))
            images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = batch.pids.to(device, non_blocking=True)
            images = augment(images, torch_generator_for(recipe.seed, "augment", epoch, step, rank))
            outputs = net(images, batch.cameras.to(device))
            loss, parts = criterion(outputs, labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            criterion.update()
            parts = parts if len(parts) > 1 else {}  # a single part is the loss itself
            parts |= {"loss": loss.detach(), "accuracy": (outputs.logits[0].argmax(1) == labels).float().mean()}
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value  # stays on the device: .item() would make a GPU wait
    means = {name: accelerator.reduce(value / len(loader), "mean").item() for name, value in sums.items()}
    if not torch.isfinite(torch.tensor(means["loss"])):
        raise FloatingPointError(
            f"the loss of epoch {epoch} is {means['loss']}: lower the learning rate (lr={recipe.lr}); "
            "the checkpoint of the epoch before is kept"
        )
    seconds = time.perf_counter() - start
    shown = len(loader) * recipe.people * recipe.images * place["world"]
    return means | {"lr": rate, "seconds": round(seconds, 3), "images_per_second": round(shown / seconds, 1)}


def _evaluate(model: nn.Module, splits: list[DataLoader[Batch]], recipe: Recipe, accelerator: Any) -> dict[str, float]:
    query, gallery = (extract_features(model, split, device=accelerator.device) for split in splits)
    result = evaluate_ranking(*ranking_inputs(query, gallery), metric=recipe.metric)
    return {name: share for name, share in result.to_dict().items() if not name.startswith("num_")}


def _stamp(model: nn.Module, dataset: ReIDDataset, recipe: Recipe, world: int) -> dict[str, Any]:
    """What a checkpoint must agree on to be gone on with; plain JSON values, so that it compares after a round trip."""
    stamp = {
        "model": model.name,
        "input_size": list(model.input_size),
        "dataset": dataset.name,
        "data": dataset.fingerprint(),
        "processes": world,
        **asdict(recipe),
    }
    return json.loads(json.dumps(stamp))


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
