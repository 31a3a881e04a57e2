"""What can be trained: people, judged by mAP on query and gallery, and classes of images, judged by top-1.

Pretraining: a backbone learns to tell the classes of a folder of images apart, before it is shown any people. Judged by
top-1 and top-5 on the centres of the validation images, as is usual on ImageNet. Images are loaded 1.4 times larger
than the model sees them, and random crops are cut from them on the device; the usual way cuts from the original file,
which only a decoder can do. Both tasks share the loop, the recipes and the run folder.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reidlib.data.datasets import ReIDDataset
from reidlib.data.folders import ClassDataset
from reidlib.data.loaders import (
    Batch,
    class_loaders,
    draw_batches,
    eval_loader,
    load_batches,
    slice_of,
    train_loader,
)
from reidlib.data.samples import frames_of
from reidlib.data.transforms import build_augmentation, random_resized_crop
from reidlib.evaluation import Features, average_tracks, evaluate_ranking, extract_features, ranking_inputs
from reidlib.run_folder import RunFolder
from reidlib.training.distributed import rank_and_world, run_processes
from reidlib.training.fixed import FixedFeatures
from reidlib.training.loop import History, OnEpoch, Setup, Stage, begin, train
from reidlib.training.recipes import Recipe
from reidlib.training.relabel import Relabel, cluster_batches

_DEFAULT = Setup()


def fit(
    model: nn.Module,
    dataset: ReIDDataset,
    run: RunFolder,
    recipe: Recipe,
    setup: Setup = _DEFAULT,
    *,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> History:
    """Train `model` on `dataset` by `recipe` into the folder of `run`; the model ends with the best weights.

    Best is the highest mAP on the dataset's own query and gallery. What it returns and raises: see `loop.train`, under
    which it runs; ValueError also where the set cannot fill a batch. With `setup.num_processes`, and where this is not
    one of several processes already, they are started from the run's params.json, which must then say all of this.
    """
    if setup.num_processes > 1 and rank_and_world()[1] == 1:
        return run_processes(run.params, model, run, setup.num_processes, on_epoch)
    accelerator = begin(setup)
    part = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    *earlier, last = recipe.in_stages()
    sampler = cluster_batches(dataset, recipe, **part) if recipe.finds_clusters else None
    loader = train_loader(
        dataset,
        model.input_size,
        people=recipe.people,
        images=recipe.images,
        pk=recipe.pk,
        frames=recipe.frames,
        sampler=sampler,
        seed=recipe.seed,
        workers=setup.workers,
        interpolation=recipe.interpolation,
        **part,
    )
    relabel = None
    if sampler is not None:
        relabel = Relabel(dataset, loader.dataset, sampler, recipe, accelerator.device, workers=setup.workers, **part)

    def stage(recipe: Recipe) -> Stage:
        """A stage before the last, on the same images."""
        how = {"frames": recipe.frames, "seed": recipe.seed, **part}
        batches = draw_batches(loader.dataset, recipe.people, recipe.images, recipe.pk, **how)
        images: Any = loader.dataset
        if recipe.trained == "losses":
            images = FixedFeatures(images, workers=setup.workers, **part)
        return Stage(recipe, load_batches(images, batches, setup.workers), build_augmentation(recipe.augment))

    stages = [stage(each) for each in earlier]
    stages.append(Stage(last, loader, build_augmentation(last.augment), relabel))
    images, tracks = zip(*map(frames_of, (dataset.query, dataset.gallery)), strict=True)
    splits = [
        eval_loader(
            split,
            model.input_size,
            cameras=dataset.camera_labels,
            workers=setup.workers,
            interpolation=recipe.interpolation,
            **part,
        )
        for split in images
    ]

    def whole(features: Features) -> Features:
        """Those of all processes, which have a part each."""
        parts: list[Any] = [None] * part["world"]
        dist.all_gather_object(parts, features)
        return Features(*(torch.cat([getattr(p, f) for p in parts]) for f in ("feats", "pids", "camids")))

    def evaluate(model: nn.Module) -> dict[str, float]:
        if not dataset.query:  # images without labels
            return {}
        query, gallery = (extract_features(model, split, device=accelerator.device) for split in splits)
        group, mine = (dist.group.WORLD, slice_of(dataset.gallery, **part)) if part["world"] > 1 else (None, None)
        if group:  # all need every query, and keep their part of the gallery
            query = whole(query)
        if any(tracks):  # a tracklet's images may be in several parts
            gallery, group, mine = (whole(gallery) if group else gallery), None, None
            query, gallery = (
                average_tracks(f, names)[0] if names else f for f, names in zip((query, gallery), tracks, strict=True)
            )
        rules = dataset.protocol(gallery=mine)
        inputs = ranking_inputs(query, gallery)
        result = evaluate_ranking(*inputs, metric=recipe.metric, device=accelerator.device, group=group, **rules)
        return {name: share for name, share in result.to_dict().items() if not name.startswith("num_")}

    return train(
        model,
        stages,
        evaluate,
        run,
        recipe,
        setup,
        accelerator=accelerator,
        score="mAP" if dataset.query else "epoch",
        stamp={"dataset": dataset.name, "data": dataset.fingerprint(files=False)},
        about={
            "trained_on": dataset.name,
            "tested_on": dataset.tested_on,
            "interpolation": recipe.interpolation,
        },
        on_epoch=on_epoch,
        progress=progress,
    )


def pretrain(
    model: nn.Module,
    dataset: ClassDataset,
    run: RunFolder,
    recipe: Recipe,
    setup: Setup = _DEFAULT,
    *,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> History:
    """Train `model` on the classes of `dataset` by `recipe` into the folder of `run`; it ends with the best weights.

    A batch holds `recipe.people` × `recipe.images` images drawn from all; `recipe.augment` follows the random crop.
    Best is the highest top-1 of the validation images. What it returns and raises: see `loop.train`; ValueError also
    where model and set disagree on the number of classes, or the recipe wants batches of people. With
    `setup.num_processes` see `fit`; its params.json then has `PRETRAIN` under "task".
    """
    if model.num_classes != dataset.num_classes:
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, {model.name} was built for {model.num_classes}"
        )
    if recipe.stages:
        raise ValueError("pretraining has no stages: set stages=[]")
    if recipe.pk:
        raise ValueError("classes are not drawn by person: set pk=False, or choose a recipe for pretraining")
    if setup.num_processes > 1 and rank_and_world()[1] == 1:
        return run_processes(run.params, model, run, setup.num_processes, on_epoch)
    accelerator = begin(setup)
    loader, val = class_loaders(
        dataset,
        model.input_size,
        batch=recipe.people * recipe.images,
        interpolation=recipe.interpolation,
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
        [Stage(recipe, loader, augment)],
        lambda model: classify(model, val, accelerator),
        run,
        recipe,
        setup,
        accelerator=accelerator,
        score="top1",
        stamp={"dataset": dataset.name, "data": dataset.fingerprint()},
        about={
            "trained_on": dataset.name,
            "classes": list(dataset.classes),
            "interpolation": recipe.interpolation,
        },
        on_epoch=on_epoch,
        progress=progress,
    )


def classify(model: Any, batches: DataLoader[Batch], accelerator: Any = None) -> dict[str, float]:
    """Top-1 and top-5 accuracy of a model.

    Equal scores go to the lower class; a NaN score counts as higher than the image's own.

    Args:
        model: A model with a classifier.
        batches: The images, with class labels as pids.
        accelerator: If given, the accuracy is over the batches of all its processes.

    Returns:
        `top1` and `top5`: shares of images whose class has the highest score, or one of the five highest.
    """
    device = next(model.parameters()).device
    right = torch.zeros(3, dtype=torch.int64, device=device)  # first, among five, images
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
