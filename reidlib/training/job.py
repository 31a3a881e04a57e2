"""A job: the only way from parameters to dataset, model, recipe, set-up and run folder.

The notebooks, `python -m reidlib.training`, child processes and searches all train through `Job.from_params`. Names and
types of all parameters are checked there, before anything is read or written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from reidlib.data import check
from reidlib.data.datasets import load_adaptation, load_dataset
from reidlib.data.folders import load_classes
from reidlib.data.transforms import build_augmentation
from reidlib.errors import unknown_name
from reidlib.models import ReIDModel, create_model
from reidlib.models.zoo import canonical_name, declaration
from reidlib.paths import slug
from reidlib.run_folder import RESUME, RunFolder
from reidlib.seeds import seeded
from reidlib.training.distributed import rank_and_world, run_processes
from reidlib.training.loop import History, OnEpoch, Setup, batch_line
from reidlib.training.losses import named_losses
from reidlib.training.plugins import keep_plugins, load_plugins
from reidlib.training.recipes import CLASS_RECIPES, RECIPES, Recipe
from reidlib.training.record import best_row, chosen_row
from reidlib.training.relabel import num_classes
from reidlib.training.settings import check_limits, default_of, help_of, setting, type_name, typed
from reidlib.training.tasks import fit, pretrain

TRAIN, PRETRAIN = "train", "pretrain"
_RESULTS = {"overridden", "input_size", "plugin_files"}  # what params.json says beside the parameters


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, into which folder: the parameters that are neither the recipe's nor the set-up's."""

    run: str = setting(
        "", "name of the run folder; empty: <model>-<dataset>, with -2, -3, ... for other settings", may_change=True
    )
    task: str = setting(TRAIN, "what is learned: people, or the classes of images", choices=(TRAIN, PRETRAIN))
    recipe: str = setting(
        "", "published settings by name; empty: those that the model was published with", may_change=True
    )
    model: str = setting("osnet_x0_25", "any of reidlib.list_models(), timm/<name>, or one of your plug-ins")
    init: str = setting("", "weights to begin with: imagenet, a run such as runs/pretrained, or a file; empty: random")
    dataset: str = setting("synthetic-small", "any of reidlib.list_datasets(), or one of your plug-ins")
    combineall: bool = setting(False, "train on query and gallery too; name another dataset in tested_on then")
    tested_on: str = setting("", "dataset whose query and gallery choose the best epoch; empty: its own")
    source: str = setting("", "labelled dataset to learn from too, where a recipe of clusters adapts to `dataset`")
    scaled: int | None = setting(
        None, "scales epochs, warm-up, milestones and batch size to so many epochs", least=1, may_change=True
    )
    skip_check: bool = setting(False, "train even if the check of the dataset says stop", may_change=True)
    resume: str = setting(
        "auto", "auto resumes the run, restart replaces it, never refuses it", choices=RESUME, may_change=True
    )
    plugins: str = setting(
        "", "Python files with your own networks, losses, augmentations, datasets or recipes", may_change=True
    )

    def __post_init__(self) -> None:
        check_limits(self)


class Job:
    """One training, from its parameters; make it with `Job.from_params`.

    Attributes:
        plan: What is trained, on what, into which folder.
        recipe: How: all settings resolved.
        setup: On what hardware, and what is written beside.
        run: The run folder; `train` makes it.
    """

    def __init__(self, plan: Plan, recipe: Recipe, setup: Setup, plugins: dict[str, str]) -> None:
        self.plan, self.recipe, self.setup, self._plugins = plan, recipe, setup, plugins

    @classmethod
    def from_params(cls, params: Mapping[str, Any], **more: Any) -> "Job":
        """Resolve parameters into a job.

        Args:
            params: Parameters by name, as a notebook declares them or as params.json of a run holds them: fields of
                `Plan`, `Recipe` and `Setup`, and `settings`, a dict of further ones. None stands for "as the recipe".
            more: Parameters that replace those of `params`.

        Raises:
            ValueError: A name is unknown or given twice, a value has the wrong type or contradicts another.
            FileNotFoundError: A plug-in file does not exist.
        """
        values = _flat(params) | more
        if values.get("init") == "random":  # as model.json and older params.json say it
            values["init"] = ""
        plugins = load_plugins(typed("plugins", values.get("plugins") or "", str))
        for name in values:
            if name not in SETTINGS and name not in _RESULTS:
                raise unknown_name("parameter", name, SETTINGS)
        values = {
            name: typed(name, value, SETTINGS[name].type)
            for name, value in values.items()
            if name in SETTINGS and value is not None
        }
        plan, setup = (
            kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values}) for kind in (Plan, Setup)
        )
        canonical_name(plan.model)  # an unknown name is an error
        recipe = base_recipe(plan).having({f.name: values.get(f.name) for f in fields(Recipe)})
        named_losses(recipe.losses), build_augmentation(recipe.augment)  # likewise
        if plan.source and not recipe.finds_clusters:
            raise ValueError(
                "source is for recipes that find clusters: join datasets as dataset='a+b', or set source=''"
            )
        if recipe.domain_bn and not plan.source:
            raise ValueError("domain_bn needs a source: name a labelled dataset, or set domain_bn=False")
        return cls(plan, recipe, setup, plugins)

    @property
    def recipe_name(self) -> str:
        """The name of the recipe that the settings come from."""
        return self.plan.recipe or _recipe_of_model(self.plan)

    @property
    def overridden(self) -> list[str]:
        """The settings that are not as the recipe of that name has them."""
        return self.recipe.changed(self.published)

    @property
    def published(self) -> Recipe:
        """The recipe of that name, without anything in its place."""
        return named_recipe(self.plan)

    @property
    def _tested(self) -> bool:
        """Whether there is, or should be, something to test on: not for clusters of images without labels."""
        return bool(self.data.query) or not self.recipe.finds_clusters

    @property
    def score(self) -> str:
        """The score that chooses the best epoch; the epoch itself where there is nothing to test on."""
        return "top1" if self.plan.task == PRETRAIN else "mAP" if self._tested else "epoch"

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of images as the recipe says; None: as the model was published."""
        return (self.recipe.height, self.recipe.width) if self.recipe.height else None

    @cached_property
    def name(self) -> str:
        """The run's name or path.

        Where `run` is empty: the latest of <model>-<dataset>, <model>-<dataset>-2, ... that can be resumed with these
        settings, else the first that is free.
        """
        if self.plan.run:
            return self.plan.run
        ending = "-pretrained" * (self.plan.task == PRETRAIN)
        first = f"{slug(self.plan.model)}-{slug(self.plan.dataset)}{ending}"
        names = (first if number == 1 else f"{first}-{number}" for number in count(1))
        taken = list(takewhile(lambda name: RunFolder.folder(name).exists(), names))
        same = (name for name in reversed(taken) if self._resumes(RunFolder(RunFolder.folder(name))))
        return next(same, f"{first}-{len(taken) + 1}" if taken else first)

    def _resumes(self, run: RunFolder) -> bool:
        """Whether `run` was begun with the settings of this job, or has not got as far as to write any."""
        try:
            return run.is_run and not self.differences(run.params)
        except (OSError, ValueError):  # a damaged folder is not resumed unless it is named
            return False

    def differences(self, params: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The settings that keep a run from being resumed by this job.

        Args:
            params: The run's params.json; empty if it has none yet.

        Returns:
            The run's value and this job's by name, for each setting in which they differ.
        """
        if not params:
            return {}
        own = asdict(self.plan) | asdict(self.recipe) | asdict(self.setup) | {"plugin_files": self._plugin_files}
        fixed = {name: default_of(f) for name, f in SETTINGS.items() if not f.metadata["may_change"]}
        before = fixed | {"plugin_files": {}} | params  # a setting that is newer than the run had its default
        pairs = {name: (_as_json(before[name]), _as_json(own[name])) for name in (*fixed, "plugin_files")}
        return {name: (old, new) for name, (old, new) in pairs.items() if old != new}

    @property
    def _plugin_files(self) -> dict[str, str]:
        return {Path(path).name: digest for path, digest in self._plugins.items()}

    @cached_property
    def data(self) -> Any:
        """The dataset: a ReIDDataset, or a ClassDataset for pretraining."""
        if self.plan.task == PRETRAIN:
            return load_classes(self.plan.dataset)
        plan = self.plan
        if not plan.source:
            data = load_dataset(plan.dataset, combineall=plan.combineall, tested_on=plan.tested_on)
            if data.train or not self.recipe.finds_clusters:
                return data
        return load_adaptation(plan.source, plan.dataset, tested_on=plan.tested_on)

    @cached_property
    def findings(self) -> list[check.Finding]:
        """What the check of the dataset found; none for pretraining."""
        return [] if self.plan.task == PRETRAIN else check.check_dataset(self.data, tested=self._tested)

    @cached_property
    def model(self) -> ReIDModel:
        """The model with its initial weights, drawn from the recipe's seed."""
        with seeded(self.recipe.seed, "weights"):
            return create_model(
                self.plan.model,
                weights=self.plan.init,
                num_classes=num_classes(self.data, self.recipe),
                num_cameras=len(self.data.camera_labels),
                input_size=self.size,
            )

    @cached_property
    def run(self) -> RunFolder:
        """The run folder, checked and not yet made."""
        return RunFolder.create(self.name, self.params, resume=self.plan.resume)

    @property
    def params(self) -> dict[str, Any]:
        """All parameters as resolved, as params.json holds them; `from_params` gives the same job from them."""
        resolved = {"run": self.name, "recipe": self.recipe_name}
        found = {"overridden": self.overridden, "plugin_files": self._plugin_files}
        return asdict(self.plan) | asdict(self.recipe) | asdict(self.setup) | resolved | found

    def batch_line(self) -> str:
        """What one step of the optimizer sees, in one line."""
        return batch_line(self.recipe, self.setup, max(rank_and_world()[1], self.setup.num_processes))

    def train(self, on_epoch: OnEpoch | None = None, *, progress: bool = False) -> History:
        """Train into the run folder; the model ends with the best weights, and result.json holds their scores.

        Args:
            on_epoch: Called with the history after each epoch.
            progress: Show a bar within each epoch; not where several processes train.

        Returns:
            One dict per epoch, as in metrics.jsonl.

        Raises:
            ValueError, OSError, FloatingPointError, RuntimeError: See `loop.train`.
        """
        check.stop_if_unsound(self.findings, skip_check=self.plan.skip_check)
        run, model = self.run, self.model

        began = run.params if run.is_run and self.plan.resume == "auto" else {}
        if began.get("plugin_files") not in (None, self.params["plugin_files"]):
            raise ValueError(
                f"the plug-ins of {run.name} have changed since it began: choose another `run`, or restart"
            )

        def after_epoch(history: History) -> None:
            keep_plugins(self._plugins, run.path)
            if run.params != self.params:  # what may change when a run resumes
                run.write_json("params.json", self.params)
            if on_epoch:
                on_epoch(history)

        if self.setup.num_processes > 1 and rank_and_world()[1] == 1:
            history = run_processes(self.params, model, run, self.setup.num_processes, after_epoch)
        else:
            task = pretrain if self.plan.task == PRETRAIN else fit
            history = task(model, self.data, run, self.recipe, self.setup, on_epoch=after_epoch, progress=progress)
        if rank_and_world()[0] == 0:
            kept, first = chosen_row(history, self.score, self.recipe.keep) or {}, history[0]
            scores, untrained, best = (
                {name: row[name] for name in first if name in kept and name not in _NO_SCORES}
                for row in (kept, first, best_row(history, self.score) or {})
            )
            others = {"untrained": untrained} | ({"best": best} if self.recipe.keep == "last" else {})
            run.add_result(self.tested_on, scores | others | self.data.stamp())
        return history

    @property
    def tested_on(self) -> str:
        """The dataset that the scores of the training are about."""
        return getattr(self.data, "tested_on", "") or self.data.name


_NO_SCORES = {"epoch", "eval_seconds"}
SETTINGS = {f.name: f for kind in (Plan, Recipe, Setup) for f in fields(kind)}
"""Every parameter of a training by its name: the dataclass field with type, default, help and limits."""


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def describe_settings(declared: Mapping[str, Any] = {}) -> dict[str, tuple[str, Any, str]]:
    """Type, default and help of every parameter of a training that `declared` does not have, by name."""
    hidden = {*declared, "task"}
    return {n: (type_name(f.type), default_of(f), help_of(f)) for n, f in SETTINGS.items() if n not in hidden}


def named_recipe(plan: Plan) -> Recipe:
    """The recipe that the plan names, else the one that its model was published with."""
    table, kind = (CLASS_RECIPES, "recipe for pretraining") if plan.task == PRETRAIN else (RECIPES, "recipe")
    name = plan.recipe or _recipe_of_model(plan)
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def base_recipe(plan: Plan) -> Recipe:
    """The named recipe, scaled to `plan.scaled` epochs where that is set."""
    recipe = named_recipe(plan)
    return recipe.scaled(plan.scaled) if plan.scaled is not None else recipe


def _recipe_of_model(plan: Plan) -> str:
    return "imagenet" if plan.task == PRETRAIN else declaration(plan.model).recipe


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the entries of `settings` among them."""
    settings = params.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"parameter 'settings' is dict, got {settings!r}")
    values = {name: value for name, value in params.items() if name != "settings"}
    for name in settings:
        if values.get(name) is not None:
            raise ValueError(f"{name!r} is given twice, as a parameter and in settings: keep one of them")
    return values | dict(settings)
