"""What the notebooks would otherwise copy from each other: choosing, small tables, figures that redraw themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidlib.data.datasets import ReIDDataset, Sample
from reidlib.data.loaders import read_image
from reidlib.errors import unknown_name
from reidlib.evaluation import Features
from reidlib.models import ReIDModel, complexity
from reidlib.scores import CLASSIFICATION, HEADLINE, NAMES, RETRIEVAL
from reidlib.training import Job, Recipe, record
from reidlib.training.job import describe_settings
from reidlib.training.record import History, chosen_row
from reidlib.training.settings import help_of
from reidlib.workbook.monitor import duration, seconds_left
from reidlib.workbook.runs import Run

CHOICES = ("worst", "best", "random", "chosen")


def is_interactive() -> bool:
    """Whether this cell was run from a front end, where progress bars, widgets and live figures serve a person.

    JupyterLab, Notebook, VS Code, Colab and consoles let a cell ask for input, and every request to execute says so:
    `allow_stdin` in Jupyter's messaging protocol. papermill, nbconvert and nbval forbid it. Any other message, that of
    a widget, comes from a front end. False outside a kernel.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent() if kernel else {}
    return bool(request) and request["content"].get("allow_stdin", True)


class Note(str):
    """A sentence in place of a table or figure, which a notebook shows without quotes."""

    __repr__ = str.__str__


class LiveFigure:
    """A figure that each call redraws in place, below the cell that makes the LiveFigure: `live = LiveFigure(draw)`.

    Made in a cell above the one that calls it, it stays above what that one prints. It draws nothing where the notebook
    is not interactive: the final figure stands in a cell of its own.

    Args:
        draw: Gives the figure; it gets what the LiveFigure is called with.
        waiting: What is shown until the first call.
    """

    def __init__(self, draw: Callable[..., Any], waiting: str = "nothing to show yet") -> None:
        self.draw, self.shown = draw, None
        if is_interactive():
            from IPython.display import Markdown, display

            self.shown = display(Markdown(waiting), display_id=True)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self.shown is not None and is_interactive():
            self.shown.update(self.draw(*args, **kwargs))


def model_line(model: ReIDModel, classes: str = "people") -> str:
    """What a model costs at test time, what it sees and what it gives; `classes` says what it tells apart."""
    cost, (height, width) = complexity(model), model.input_size
    task = f"{model.num_classes} {classes} to tell apart" if model.num_classes else "no classifier"
    return (
        f"{model.name}: {cost.params / 1e6:.2f} M parameters, {cost.macs / 1e9:.3f} G multiply-adds, "
        f"{model.feature_dim} features from {height} × {width} pixels, {task}"
    )


def settings_table(job: Job) -> Any:
    """A pandas table of the settings that matter for a job: those every run has, and those that differ.

    Args:
        job: The job. A setting is shown if it differs from the recipe's, or the recipe's from a plain training's.
    """
    import pandas as pd

    used, published, plain = job.recipe, job.published, Recipe()
    shown = {*_ALWAYS, *used.changed(published), *used.changed(plain)}
    rows = {
        f.name: {
            "used": getattr(used, f.name),
            f"in place of {job.recipe_name}'s": getattr(published, f.name) if f.name in job.overridden else "",
            "meaning": help_of(f),
        }
        for f in fields(Recipe)
        if f.name in shown
    }
    table = pd.DataFrame.from_dict(rows, orient="index").map(
        lambda v: ", ".join(map(str, v)) if type(v) is tuple else v
    )
    return table


def all_settings(job: Job) -> Any:
    """Every parameter of a training with its value and meaning, folded away in the page."""
    import pandas as pd
    from IPython.display import HTML

    values = job.params
    rows = [(name, kind, values[name], words) for name, (kind, _, words) in describe_settings().items()]
    table = pd.DataFrame(rows, columns=["setting", "type", "value", "meaning"]).astype(str)
    return HTML(f"<details><summary>Every setting ({len(rows)})</summary>{table.to_html(index=False)}</details>")


def best_epoch(job: Job, history: History) -> dict[str, float]:
    """The metrics of the best evaluated epoch of a job's training."""
    return chosen_row(history, job.score, job.recipe.keep) or {}


def training_sheet(data: ReIDDataset) -> Any:
    """People by camera of a training set, or images by camera where nobody has a label: a figure."""
    from reidlib import plots

    if any(s.pid > 0 for s in data.train):
        return plots.contact_sheet(data.train, people=6, title=f"{data.name}: people × cameras", dataset=data)
    names = [plots.camera_name(camid, data) for camid in data.camera_labels]
    samples = [s._replace(pid=data.camera_labels[s.camid]) for s in data.train]
    return plots.class_sheet(samples, names, title=f"{data.name}: {len(samples)} images without labels, by camera")


def result_table(job: Job, history: History) -> Any:
    """The scores of the untrained network and of the best epoch, in percent."""
    if job.score == "epoch":
        import pandas as pd

        found = {"clusters": history[-1]["clusters"]}
        found |= {n: f"{history[-1][n]:.1%}" for n in ("outliers", "largest", "agreement") if n in history[-1]}
        return pd.DataFrame([found], index=["last epoch, without labels to score it"])
    best, columns = best_epoch(job, history), CLASSIFICATION if job.score in CLASSIFICATION else RETRIEVAL
    rows = {"untrained": history[0], f"trained from {job.model.init} weights, epoch {best['epoch']}": best}
    return percent_table(rows, columns)


_ALWAYS = ["epochs", "people", "images", "optimizer", "lr", "schedule", "augment"]


def epoch_line(history: History, recipe: Recipe) -> str:
    """One line for the last epoch: its loss and scores in percent, how long it took, and how long the rest will take.

    Args:
        history: One dict per epoch, as in metrics.jsonl.
        recipe: Says which epoch is the last, and which are evaluated.
    """
    row = history[-1]
    parts = [f"epoch {row['epoch']:{len(str(recipe.epochs))}}/{recipe.epochs}"]
    parts += [f"loss {row['loss']:.2f}"] if "loss" in row else []
    if "clusters" in row:
        agreement = f", agreement {row['agreement']:.2f}" if "agreement" in row else ""
        shares = f"{row['outliers']:.0%} outliers, {row['largest']:.0%} in the largest"
        parts += [f"{row['clusters']} clusters, {shares}{agreement}"]
    parts += [f"{NAMES[score]} {100 * row[score]:.1f}" for score in HEADLINE if score in row]
    left = seconds_left(history, recipe.epochs, recipe.eval_every)
    if "stopped" in row:
        parts += [f"stopped: {row['stopped']}"]
    elif left is not None:
        parts += [duration(row["seconds"] + row.get("eval_seconds", 0)) + (f", {duration(left)} left" if left else "")]
    return "  ".join(parts)


def live_curves(job: Job) -> Callable[[History], None]:
    """Make a figure that is to be called with the history after each epoch of a job; see `LiveFigure`.

    It shows the curves up to the last epoch that is planned, and the time left.
    """
    from reidlib.plots import training_curves

    live = LiveFigure(training_curves, "The curves appear here after the first epoch.")

    def draw(history: History) -> None:
        left = seconds_left(history, job.recipe.epochs, job.recipe.eval_every)
        state = f"epoch {history[-1]['epoch']} of {job.recipe.epochs}" + (f", {duration(left)} left" if left else "")
        live(history, title=f"{job.model.name} on {job.data.name}: {state}", epochs=job.recipe.epochs)

    return draw


def bad_batch(run: Run) -> Any:
    """The batch at which the training of `run` stopped, class and camera below each image; None if there is none."""
    from reidlib.plots import batch_sheet

    if (found := record.bad_batch(run)) is None:
        return None
    images, about = found
    words = [f"{label} · c{camid}" for label, camid in zip(about["labels"], about["camids"], strict=True)]
    drawn = "batch {} of epoch {}".format(about["drawn_from"]["step"] + 1, about["drawn_from"]["epoch"])
    return batch_sheet(images, words, title=f"{run.name}: {drawn}", note=f"class · camera; {about['error']}")


def percent_table(rows: dict[str, dict[str, float]], columns: Sequence[str] = RETRIEVAL) -> Any:
    """A pandas table of scores in percent with one decimal, one row a name, one column a score."""
    import pandas as pd

    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(columns)).rename(columns=NAMES)
    return table.map(lambda share: "" if pd.isna(share) else f"{100 * share:.1f}")


def split_means(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = RETRIEVAL) -> Any:
    """Mean ± sample standard deviation, in percent, of the random splits of one dataset, as its protocol asks.

    Args:
        rows: Name of a dataset → its scores; splits are those whose names end in "-split1" and so on.
        columns: The scores.

    Returns:
        A pandas table, a row each dataset of which two or more splits are there; empty without one.
    """
    import pandas as pd

    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, scores in rows.items():
        base, split, number = name.partition("-split")
        if split and number.isdigit():
            found.setdefault(base, []).append(scores)
    table = {}
    for base, several in found.items():
        if len(several) > 1:
            values = {column: [100 * scores[column] for scores in several] for column in columns}
            cells = {NAMES[column]: f"{mean(v):.1f} ± {stdev(v):.1f}" for column, v in values.items()}
            table[f"{base}, mean of {len(several)} splits"] = cells
    return pd.DataFrame.from_dict(table, orient="index")


def whole_table(table: Any) -> Any:
    """A pandas table as HTML with its text whole and on the left."""
    from IPython.display import HTML

    return HTML(table.style.format(precision=1).set_properties(**{"text-align": "left"}).to_html())


def choose_queries(
    ap: Any, show: str, count: int, *, chosen: Sequence[int] = (), seed: int = 0
) -> tuple[list[int], str]:
    """Indices of the queries to show, and the order in words for a title.

    `show`: "worst" or "best" `count` by average precision `ap` (Q,), the extreme first, equals by index; "random"
    `count`, in the order of the query set; "chosen", as listed. Queries without a match (NaN) are shown only where they
    are chosen. Raises ValueError for an unknown `show`, an empty or impossible choice.
    """
    ap = np.asarray(ap, dtype=np.float64)
    valid = np.flatnonzero(~np.isnan(ap))
    if show not in CHOICES:
        raise unknown_name("value of show", show, CHOICES)
    if show == "chosen":
        wrong = [i for i in chosen if not 0 <= i < len(ap)]
        if wrong or not chosen:
            raise ValueError(f"show='chosen' needs query indices from 0 to {len(ap) - 1}, got {wrong or list(chosen)}")
        return list(chosen), f"{len(chosen)} chosen of {len(ap)} queries, in the order given"
    if not len(valid) or count < 1:
        raise ValueError(f"nothing to show: {len(valid)} queries have a match, {count} were asked for")
    count = min(count, len(valid))
    if show == "random":
        picked = np.sort(np.random.default_rng(seed).choice(valid, count, replace=False))
        return picked.tolist(), f"{count} of {len(ap)} queries drawn at random (seed {seed})"
    order = valid[np.argsort(ap[valid] if show == "worst" else -ap[valid], kind="stable")]
    return order[:count].tolist(), f"The {count} {show} of {len(ap)} queries by average precision, {show} first"


def choose_people(samples: Sequence[Sample], count: int, *, seed: int = 0) -> list[int]:
    """Indices of all samples of `count` people drawn by `seed`; junk and distractors are nobody."""
    pids = sorted({s.pid for s in samples if s.pid > 0})
    drawn = set(np.random.default_rng(seed).choice(pids, min(count, len(pids)), replace=False).tolist())
    return [i for i, s in enumerate(samples) if s.pid in drawn]


def rank_rows(
    data: ReIDDataset, query: Features, gallery: Features, ranked: Tensor, picked: Sequence[int]
) -> tuple[list[Sample], tuple[Sample, ...], Tensor, Tensor]:
    """What the rank-list images take: queries, gallery, ranked (R, k) and their cosine similarity (R, k) float32.

    `ranked` (Q, k) holds gallery indices for all queries, -1 beyond the end of a list; `picked` are the rows wanted.
    """
    at = torch.as_tensor(picked)
    ranked = ranked.cpu()[at]
    unit = torch.nn.functional.normalize
    similarity = torch.einsum("rd,rkd->rk", unit(query.feats[at]), unit(gallery.feats[ranked.clamp(min=0)], dim=-1))
    return [data.query[i] for i in picked], data.gallery, ranked, similarity


def cams(
    model: ReIDModel,
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    ranked: Tensor,
    similarity: Tensor,
    *,
    cameras: dict[int, int] | None = None,
    interpolation: str = "bilinear",
    **how: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps that `plots.cam_figure` draws.

    Args:
        model: as in `plots.feature_cam`.
        queries, gallery, ranked, similarity: the result of `rank_rows`, R queries with k matches each.
        cameras: camid → index that the model takes; None for a model that uses no camera.
        interpolation: how images are resized to what the model takes, "bilinear" or "bicubic".
        how: method, branch and block, as in `plots.feature_cam`.

    Returns:
        Maps (R, h, w) of the queries' features, then (R, k, h, w) of the query and of the match of each pair, float32.
    """
    from reidlib.plots import similarity_cam

    matches = [gallery[i] for i in ranked.flatten().tolist()]
    (left, left_cams), (right, right_cams) = (_inputs(model, s, cameras, interpolation) for s in (queries, matches))
    k = ranked.shape[1]
    pairs = similarity_cam(
        model, left.repeat_interleave(k, 0), right, left_cams.repeat_interleave(k), right_cams, **how
    )  # 2 × (R·k, h, w)
    own = image_cams(model, queries, cameras=cameras, interpolation=interpolation, **how)
    return own, *(maps.unflatten(0, (-1, k)) for maps in pairs)


def image_cams(
    model: ReIDModel,
    samples: Sequence[Sample],
    *,
    cameras: dict[int, int] | None = None,
    interpolation: str = "bilinear",
    **how: Any,
) -> Tensor:
    """The maps (N, h, w) of the features of N images; arguments as for `cams`."""
    from reidlib.plots import feature_cam

    return feature_cam(model, *_inputs(model, samples, cameras, interpolation), **how)


def _inputs(
    model: ReIDModel, samples: Sequence[Sample], cameras: dict[int, int] | None, interpolation: str
) -> tuple[Tensor, Tensor]:
    images = [read_image(s.path, model.input_size, interpolation=interpolation) for s in samples]
    return torch.stack(images), torch.tensor([(cameras or {}).get(s.camid, -1) for s in samples])


def cam_parts(model: ReIDModel, method: str = "hirescam") -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of part ("branches", "blocks") → name of the part → what chooses it in `image_cams`, where there are any."""
    branches = {} if method == "rollout" else {name: {"branch": name} for name in model.branches}
    blocks = {f"block {i + 1}": {"block": i + 1} for i in range(len(model.cam_blocks))}
    return {kind: parts for kind, parts in (("branches", branches), ("blocks", blocks)) if parts}


def below(path: str | Path, root: str | Path) -> str:
    """`path` as seen from `root`, so that tables carry no folder of anybody's computer."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
