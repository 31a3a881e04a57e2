"""A run as notebooks see it: its model, its features and its figures, on top of the run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from reidlib.errors import unknown_name
from reidlib.files import sha256, whole_file
from reidlib.paths import runs_root
from reidlib.run_folder import RunFolder, check_formats
from reidlib.scores import NAMES, SCORES

if TYPE_CHECKING:  # torch takes seconds to import, and a run folder can be looked at without it
    import torch
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from reidlib.data.datasets import ReIDDataset
    from reidlib.data.samples import Sample
    from reidlib.evaluation import Features
    from reidlib.models import ReIDModel


INTERPOLATIONS = ("bilinear", "bicubic")


class Run(RunFolder):
    """One folder of `runs/`. Make one with `Run.create`, take an existing one with `Run.open`.

    Attributes:
        formats: The formats that figures are saved in, of `run_folder.FIGURE_FORMATS`.
    """

    formats: tuple[str, ...] = ("png",)

    @classmethod
    def open(
        cls,
        run: str = "",
        *,
        model: str = "",
        weights: str = "",
        size: tuple[int, int] | None = None,
        interpolation: str = "",
        plugins: str = "",
        output: str = "",
        trained: bool = True,
        progress: bool | None = None,
        formats: Sequence[str] = ("png",),
    ) -> Self:
        """Open a run that holds a trained model.

        If there is no run at all, the train notebook is run first with its own defaults, the toy, so that every
        notebook works alone.

        Args:
            run: Its name or path; empty: the newest run, points of searches only if there is nothing else.
            model: The newest run of this model; with `weights`, the model that they belong to.
            weights: Published weights or a file, see `create_model`: gives a run that holds a copy of them,
                `runs/<model>-<weights>` unless `run` names it, which every notebook accepts like a trained run.
            size: (height, width) that these weights take, if not the published one.
            interpolation: How images are resized for them, "bilinear" or "bicubic".
            plugins: Plug-in files that the model needs, if nobody here has used them yet.
            output: Another folder for what is written, for a run that is read-only.
            trained: False opens runs that have only begun as well: without a name the one that wrote last.
            progress: Whether a download shows its progress; None: on a terminal.
            formats: The formats that figures are saved in: png, jpg, pdf, svg.

        Raises:
            FileNotFoundError: `run` is no run, or no run holds `model`.
            ValueError: The run holds another model; what `create_model` raises.
        """
        formats = check_formats(formats)
        if interpolation and interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        if size and None in size:
            raise ValueError(f"height and width go together, got {size[0]} × {size[1]}: give both, or neither")
        if weights:
            self = cls._light(run, model, weights, size, interpolation, progress)
        elif run:
            self = cls(cls.folder(run))
            self.recover()
            if not (self.path / ("model.json" if trained else "params.json")).is_file():
                have = [r.name for r in cls.all(trained=trained)]
                have = ", ".join(([n for n in have if n.startswith(f"{self.name}/")] or have)[:6]) or "none yet"
                kind = "trained run" if trained else "run"
                raise FileNotFoundError(f"no {kind} at {self.path}; runs in {runs_root()}: {have}")
        else:
            self = cls._newest(model, trained)
        if model and not weights:
            from reidlib.models.zoo import canonical_name

            if self.read_json("model.json")["name"] != canonical_name(model):
                raise ValueError(f"the run {self.name} holds no {model}: choose another `run`, or leave out `model`")
        if not weights:  # a training's parameters go to every notebook that follows it: the run's own are no error
            own = tuple(self.read_json("model.json").get("input_size", ()))
            if (size and tuple(size) != own) or (interpolation and interpolation != self.interpolation):
                raise ValueError(
                    f"height, width and interpolation go with `weights`: the run {self.name} takes {self.input_line}"
                )
        if trained:
            load_run_plugins(self, plugins)
        self = cls(self.path, cls.folder(output)) if output else self
        self.formats = formats
        return self

    @classmethod
    def _newest(cls, model: str, trained: bool) -> Self:
        if model:
            from reidlib.models.zoo import canonical_name

            name = canonical_name(model)
            found = [r for r in cls.all() if r.read_json("model.json")["name"] == name]
            if not found:
                raise FileNotFoundError(f"no run in {runs_root()} holds a {model}: name its `weights`, or train it")
            return found[0]
        if not cls.all(trained=trained):
            from reidlib.workbook.batch import run_notebook

            run_notebook("train", {"run": "toy"})
        found = cls.all(trained=trained)
        whole = [run for run in found if "/" not in run.name] if trained else []  # a point of a search is one of many
        return (whole or found)[0]

    @classmethod
    def _light(
        cls,
        run: str,
        model: str,
        weights: str,
        size: tuple[int, int] | None,
        interpolation: str,
        progress: bool | None,
    ) -> Self:
        """A run that holds a copy of published weights, so that it stays whole when the download is gone."""
        from reidlib.models import create_model
        from reidlib.models.weights import find_weights
        from reidlib.models.zoo import declaration
        from reidlib.training import record

        if not model:
            raise ValueError(f"`weights` {weights!r} need a `model` to go into: name it")
        found = find_weights(model, weights)
        if found.run and not found.in_package:
            return cls.open(str(found.run), model=model)
        ending = (f"-{size[0]}x{size[1]}" if size else "") + (f"-{interpolation}" if interpolation else "")
        interpolation = interpolation or declaration(found.model).interpolation
        asked = {"model": found.model, "weights": found.name, "input_size": list(size) if size else None}
        asked |= {"interpolation": interpolation}
        self = cls.create(run or f"{found.label}{ending}", asked)
        made = self.read_json("model.json").get("weights")
        if self.params and (
            made is None or {"interpolation": interpolation, "input_size": None} | self.params != asked
        ):
            raise FileExistsError(f"the run {self.name} holds other weights than these: choose another `run`")
        if made and found.row:
            return self  # whether or not the download is there still
        file, digest = found.fetch(progress=progress)
        if made is None or made["sha256"] != digest:
            net = create_model(model, weights=weights, input_size=size)
            about = {"name": found.name, "link": found.row.link if found.row else "", "file": file.name}
            about |= {"sha256": digest, "report": str(net.report)}
            about = {"weights": about, "interpolation": interpolation}
            record.save_model(self.begin(), net, trained_on=found.trained_on, tested_on=found.tested_on, **about)
            self.write_state("ended")
        return self

    @classmethod
    def all(cls, *, trained: bool = True) -> list[Self]:
        """Every run with a trained model, the newest first; points of searches are among them, pretrained ones are not.

        `trained=False`: every run that has begun.
        """
        if not trained:
            return cls.having("metrics.jsonl")
        runs = [run for run in cls.having("model.json") if run.readable("model.json")]
        return [run for run in runs if "classes" not in run.read_json("model.json")]

    # What is in the folder

    @property
    def metric(self) -> str:
        """The distance to rank by: what its best epoch was chosen by, else what its model was published with."""
        from reidlib.models.printed.published import distance

        return self.params.get("metric") or distance(self.read_json("model.json").get("name", ""))

    @property
    def interpolation(self) -> str:
        """How images are resized for the run's model: "bilinear" or "bicubic"."""
        return self.read_json("model.json").get("interpolation") or "bilinear"

    @property
    def input_line(self) -> str:
        """What the model sees of an image, in words."""
        return "{} × {} pixels ({})".format(*self.read_json("model.json")["input_size"], self.interpolation)

    @property
    def tested_on(self) -> str:
        """The dataset to test on where none is named: whose query and gallery chose the best epoch, or the first that
        the weights were published with. ValueError where there is none.
        """
        about = self.read_json("model.json")
        name = about.get("tested_on") or ("" if "weights" in about else about["trained_on"])
        if not name:
            raise ValueError(f"what the weights of {self.name} are to be tested on is not known: name a dataset")
        return name

    @property
    def origin(self) -> str:
        """Where the model's weights come from, in words."""
        about = self.read_json("model.json")
        if "weights" not in about:
            begun = f" from {about['init']} weights" if about.get("init") else ""
            return f"trained{begun} on {about['trained_on']} for {about['epoch']} epochs"
        return "weights {name} from {file}, sha256 {sha256:.12}…".format(**about["weights"])

    def save_figure(self, figure: "Figure", name: str) -> Path:
        """Write `figure` to figures/<name>.png, or in each of `formats`; give the first file."""
        from reidlib.plots import save

        first, *_ = [save(figure, self.out / "figures" / f"{name}.{kind}") for kind in self.formats]
        return first

    def save_table(self, table: "DataFrame", name: str) -> Path:
        """Write a pandas table to figures/<name>.csv, .tex and .md, beside the image of that name; give the first."""
        path = self.out / "figures" / f"{name}.csv"
        with whole_file(path) as part:
            table.to_csv(part, index=False)
        write_tables(table, path)
        return path

    def add_result(self, dataset: str, result: dict[str, Any]) -> None:
        """Write `result` under the name of `dataset` into result.json, and the tables of `save_results`."""
        super().add_result(dataset, result)
        self.save_results()

    def save_results(self) -> None:
        """Write the scores of result.json, in percent, as the tables results.tex and results.md."""
        import pandas as pd

        results = self.read_json("result.json").get("results", {})
        shown = [score for score in SCORES if any(score in row for row in results.values())]
        cells = ({"dataset": data} | {NAMES[s]: _percent(row.get(s)) for s in shown} for data, row in results.items())
        write_tables(pd.DataFrame(list(cells)), self.out / "results")

    # The model

    def load_model(self, device: "torch.device | str | None" = None, *, random: int | None = None) -> "ReIDModel":
        """The run's best model, in eval mode, on `device` (default: the GPU where there is one).

        `random`: The same network with random weights instead: those that a training from this seed begins with.
        """
        import torch

        from reidlib.models import create_model
        from reidlib.seeds import seeded
        from reidlib.training import record

        about = self.read_json("model.json")
        keep = ("num_classes", "num_cameras")
        with seeded(random or 0, "weights"):
            model = create_model(
                about["name"], input_size=tuple(about["input_size"]), **{k: about[k] for k in keep if about.get(k)}
            )
        if random is None:
            record.load_weights(self, model)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def cameras(self, dataset: "ReIDDataset") -> dict[int, int] | None:
        """What a model that embeds the camera is told of those of `dataset`: camid → label on the dataset that it was
        trained on; elsewhere None, as it knows none of them.
        """
        return dataset.camera_labels if dataset.name == self.read_json("model.json").get("trained_on") else None

    def features(
        self,
        model: "ReIDModel",
        dataset: "ReIDDataset",
        *,
        flip: bool = False,
        workers: int = 0,
        progress: bool = False,
    ) -> tuple["Features", "Features"]:
        """Query and gallery features of `dataset`, from features/<dataset>.safetensors where weights and data agree.

        Those with `flip` (see `extract_features`) are in a file of their own, features/<dataset>-flip.safetensors.
        """
        from reidlib.evaluation.features import load_features, save_features

        path = self.path / "features" / f"{dataset.name}{'-flip' * flip}.safetensors"
        if not path.is_file():
            path = self.out / "features" / path.name
        stamp = {"weights": sha256(self.path / "model.safetensors"), "data": dataset.fingerprint()}
        stamp |= {"input": "{}x{} {}".format(*model.input_size, self.interpolation)}
        found = load_features(path, stamp)
        if found is None:
            query, gallery = self.extract(model, dataset, flip=flip, workers=workers, progress=progress)
            found = {"query": query, "gallery": gallery}
            save_features(self.out / "features" / path.name, found, stamp)
        return found["query"], found["gallery"]

    def extract(
        self, model: "ReIDModel", dataset: "ReIDDataset", *, flip: bool, workers: int, progress: bool
    ) -> tuple["Features", "Features"]:
        """Query and gallery features by `model`, whatever its weights, with the run's preprocessing; not cached.

        One row a sample: of a tracklet the mean over its images, see `average_tracks`.
        """
        from reidlib.data.loaders import eval_loader
        from reidlib.data.samples import frames_of
        from reidlib.evaluation import average_tracks, extract_features

        options = {"cameras": self.cameras(dataset), "workers": workers, "interpolation": self.interpolation}

        def features_of(split: "Sequence[Sample]") -> "Features":
            images, tracks = frames_of(split)
            loader = eval_loader(images, model.input_size, **options)
            found = extract_features(model, loader, flip=flip, progress=progress)
            return average_tracks(found, tracks)[0] if tracks else found

        return features_of(dataset.query), features_of(dataset.gallery)


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def write_tables(table: "DataFrame", path: Path) -> None:
    """Write a pandas table, without its index, as LaTeX and as Markdown: `path` with the endings .tex and .md."""
    rows = [list(map(str, row)) for row in (table.columns, *table.itertuples(index=False))]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    texts = {
        ".tex": table.to_latex(index=False, escape=True),
        ".md": "\n".join([lines[0], "|" + " --- |" * len(table.columns), *lines[1:]]) + "\n",
    }
    for ending, text in texts.items():
        with whole_file(path.with_suffix(ending)) as part:
            part.write_text(text, encoding="utf-8")


def load_run_plugins(run: RunFolder, plugins: str = "") -> None:
    """Load the plug-ins that a run was trained with.

    Args:
        run: The run folder.
        plugins: Plug-in files that the user names, which are trusted from now on.

    Raises:
        ValueError: A plug-in of the run has not been named by anybody here, or has changed.
    """
    needed = run.params.get("plugin_files") or {}
    if needed or plugins:
        from reidlib.training.plugins import load_kept_plugins, load_plugins, trust

        named = load_plugins(plugins)
        trust(named)
        load_kept_plugins(run.path, {n: digest for n, digest in needed.items() if digest not in named.values()})
