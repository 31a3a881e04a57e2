"""Pretraining: a backbone learns to tell the classes of a folder of pictures, before it is shown any people.

The loop, its recipes and its run folder are those of every training. Judged by top-1 and top-5 on the centres of the
validation pictures, as is usual on ImageNet. Pictures are loaded 1.4 times larger than the model sees them, and random
crops are cut from them on the device: what is usual cuts from the whole file, which only a decoder can do.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reidlib.data.folders import ClassDataset
from reidlib.data.loaders import Batch, class_loaders
from reidlib.data.transforms import build_augmentation, random_resized_crop
from reidlib.errors import unknown_name
from reidlib.runs import Run
from reidlib.training.loop import History, OnEpoch, Setup, begin, train
from reidlib.training.processes import place, run_processes
from reidlib.training.recipes import Recipe

_DEFAULT = Setup()
PRETRAIN = "pretrain"  # the "task" in the params.json of such a run

# A batch is `people` pictures. "imagenet": Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677, their
# baseline for ResNet-50, 76.4 top-1 in the original architecture; norms decay here as well, as in `build_optimizer`.
# About the command: `python -m reidlib.batch pretrain -p recipe imagenet -p model resnet50 -p dataset imagenet`.
CLASS_RECIPES: dict[str, Recipe] = {
    "toy": Recipe(height=128, width=64, epochs=8, people=64, images=1, pk=False, augment=("random_flip",)),
    "imagenet": Recipe(
        height=224,
        width=224,
        epochs=90,
        people=256,
        images=1,
        pk=False,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(30, 60, 80),
        warmup=0,
        smoothing=0,
        augment=("random_flip",),
        eval_every=1,
    ),
}


def class_recipe(name: str, values: Mapping[str, object] | None = None) -> Recipe:
    """The recipe `name` of `CLASS_RECIPES`, with the settings that stand in `values` and are not None."""
    if name not in CLASS_RECIPES:
        raise unknown_name("recipe for pretraining", name, CLASS_RECIPES)
    return CLASS_RECIPES[name].having(values or {})


def pretrain(
    model: nn.Module,
    dataset: ClassDataset,
    run: Run,
    recipe: Recipe,
    setup: Setup = _DEFAULT,
    *,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train `model` on the classes of `dataset` by `recipe` into the folder of `run`; it ends with the best weights.

    A batch holds `recipe.people` × `recipe.images` pictures drawn from all; `recipe.augment` follows the random crop.
    Best is the highest top-1 of the validation pictures. What it returns and raises: see `loop.train`; ValueError also
    where model and set disagree on the number of classes, or the recipe wants batches of people. With
    `setup.num_processes` see `fit`; its params.json then has `PRETRAIN` under "task".
    """
    if model.num_classes != dataset.num_classes:
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, {model.name} was built for {model.num_classes}"
        )
    if recipe.pk:
        raise ValueError("classes are not drawn by person: set pk=False, or choose a recipe for pretraining")
    if setup.num_processes > 1 and place()[1] == 1:
        return run_processes(model, run, setup.num_processes, on_epoch)
    accelerator = begin(setup)
    loader, val = class_loaders(
        dataset,
        model.input_size,
        batch=recipe.people * recipe.images,
        seed=recipe.seed,
        workers=setup.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    named = build_augmentation(recipe.augment)

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        return named(random_resized_crop(images, generator, model.input_size), generator)

    return train(
        model,
        loader,
        lambda model: classify(model, val, accelerator),
        run,
        recipe,
        setup,
        accelerator=accelerator,
        score="top1",
        stamp={"dataset": dataset.name, "data": dataset.fingerprint()},
        about={"trained_on": dataset.name, "classes": list(dataset.classes)},
        augment=augment,
        on_epoch=on_epoch,
    )


def classify(model: Any, batches: DataLoader[Batch], accelerator: Any = None) -> dict[str, float]:
    """Top-1 and top-5 of a model on `batches`: shares of pictures whose class has the highest, or one of the five
    highest, scores. Equal scores go to the lower class, and what is no number counts as higher. With an accelerator,
    over the batches of all its processes.
    """
    device = next(model.parameters()).device
    right = torch.zeros(3, dtype=torch.int64, device=device)  # first, among five, pictures
    with torch.inference_mode():
        for batch in batches:
            images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
            ranks = rank_of(model.scores(images), batch.pids.to(device, non_blocking=True))
            right += torch.stack([(ranks < 1).sum(), (ranks < 5).sum(), right.new_tensor(len(ranks))])
    first, five, count = (accelerator.reduce(right.clone(), "sum") if accelerator else right).tolist()
    return {"top1": first / count, "top5": five / count}


def rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes of scores (B, C) come before each image's own, of labels (B,): (B,) int64, 0 for the first."""
    own = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return (~(scores <= own)).sum(1) + ((scores == own) & lower).sum(1)
