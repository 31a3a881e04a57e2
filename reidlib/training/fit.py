"""Training a re-identification model: batches of people, judged by mAP on query and gallery."""

from torch import nn

from reidlib.data.datasets import ReIDDataset
from reidlib.data.loaders import eval_loader, train_loader
from reidlib.evaluation import evaluate_ranking, extract_features, ranking_inputs
from reidlib.runs import Run
from reidlib.training.loop import History, OnEpoch, Setup, begin, train
from reidlib.training.recipes import Recipe

_DEFAULT = Setup()


def fit(
    model: nn.Module,
    dataset: ReIDDataset,
    run: Run,
    recipe: Recipe,
    setup: Setup = _DEFAULT,
    *,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train `model` on `dataset` by `recipe` into the folder of `run`; the model ends with the best weights.

    Best is the highest mAP on the data set's own query and gallery. What it returns and raises: see `loop.train`, under
    which it runs; ValueError also where the set cannot fill a batch.
    """
    accelerator = begin(setup)
    loader = train_loader(
        dataset,
        model.input_size,
        people=recipe.people,
        images=recipe.images,
        pk=recipe.pk,
        seed=recipe.seed,
        workers=setup.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    splits = [
        eval_loader(s, model.input_size, cameras=dataset.camera_labels, workers=setup.workers)
        for s in (dataset.query, dataset.gallery)
    ]

    def evaluate(model: nn.Module) -> dict[str, float]:
        query, gallery = (extract_features(model, split, device=accelerator.device) for split in splits)
        result = evaluate_ranking(*ranking_inputs(query, gallery), metric=recipe.metric)
        return {name: share for name, share in result.to_dict().items() if not name.startswith("num_")}

    return train(
        model,
        loader,
        evaluate,
        run,
        recipe,
        accelerator=accelerator,
        score="mAP",
        stamp={"dataset": dataset.name, "data": dataset.fingerprint()},
        about={"trained_on": dataset.name, "tested_on": dataset.tested_on},
        on_epoch=on_epoch,
    )
