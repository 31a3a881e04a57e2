"""A run as notebooks see it: its model, its features and its figures, on top of the run folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

from reidlib.files import sha256, whole_file
from reidlib.paths import runs_root
from reidlib.run_folder import RunFolder

if TYPE_CHECKING:  # torch takes seconds to import, and a run folder can be looked at without it
    import torch
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from reidlib.data.datasets import ReIDDataset
    from reidlib.evaluation import Features
    from reidlib.models import ReIDModel


class Run(RunFolder):
    """One folder of `runs/`. Make one with `Run.create`, take an existing one with `Run.open`."""

    @classmethod
    def open(
        cls,
        run: str = "",
        *,
        model: str = "",
        weights: str = "",
        trained: bool = True,
        progress: bool | None = None,
    ) -> Self:
        """A run that holds a trained model; without a name the newest one, with `model` the newest of that model.

        Points of a search are taken by name, or where there is nothing else.

        With `weights` (see `create_model`) it is a light run, `runs/<model>-<weights>` unless `run` names it, made
        where it is not there yet, downloads included: a copy of the weights in our own keys, so that it stays whole
        when the download is gone, and all that takes a run takes it too. Its model.json says where they came from.
        `trained=False` takes one that has only begun as well: without a name the one that wrote a line last.
        Where there is no run at all, the train notebook is run first with its own defaults, the toy: so every notebook
        works alone, from the first click. Raises FileNotFoundError for a name that is no run, ValueError for a run of
        another model, and what `create_model` raises.
        """
        if weights:
            return cls._light(run, model, weights, progress)
        if model:
            from reidlib.models.zoo import known

            of_model = [r for r in cls.all() if r.read_json("model.json")["name"] == known(model)]
            self = cls.open(run) if run else next(iter(of_model), None)
            if self is None:
                raise FileNotFoundError(f"no run in {runs_root()} holds a {model}: name its `weights`, or train it")
            if self.read_json("model.json")["name"] != known(model):
                raise ValueError(f"the run {self.name} holds no {model}: choose another `run`, or leave out `model`")
            return self
        if run:
            self = cls(cls.folder(run))
            self.recover()
            if not (self.path / ("model.json" if trained else "params.json")).is_file():
                have = [r.name for r in cls.all(trained=trained)]
                have = ", ".join(([n for n in have if n.startswith(f"{self.name}/")] or have)[:6]) or "none yet"
                kind = "trained run" if trained else "run"
                raise FileNotFoundError(f"no {kind} at {self.path}; runs in {runs_root()}: {have}")
            return self
        if not cls.all(trained=trained):
            from reidlib.workbook.batch import run_notebook

            run_notebook("train", {"run": "toy"})
        found = cls.all(trained=trained)
        whole = [run for run in found if "/" not in run.name] if trained else []  # a point of a search is one of many
        return (whole or found)[0]

    @classmethod
    def _light(cls, run: str, model: str, weights: str, progress: bool | None) -> Self:
        from reidlib.models import create_model
        from reidlib.models.weights import find_weights
        from reidlib.training import record

        if not model:
            raise ValueError(f"`weights` {weights!r} need a `model` to go into: name it")
        found = find_weights(model, weights)
        if found.run:
            return cls.open(str(found.run), model=model)
        self = cls.create(run or found.label, {"model": found.model, "weights": found.name})
        made = self.read_json("model.json").get("weights")
        if self.params and (made is None or self.params != {"model": found.model, "weights": found.name}):
            raise FileExistsError(f"the run {self.name} holds other weights than these: choose another `run`")
        if made and found.row:
            return self  # whether or not the download is there still
        file, digest = found.fetch(progress=progress)
        if made is None or made["sha256"] != digest:
            net = create_model(model, weights=weights)
            about = {"name": found.name, "link": found.row.link if found.row else "", "file": file.name}
            about |= {"sha256": digest, "report": str(net.report)}
            record.save_model(self.begin(), net, trained_on=found.trained_on, tested_on=found.tested_on, weights=about)
        return self

    @classmethod
    def all(cls, *, trained: bool = True) -> list[Self]:
        """Every run with a trained model, the newest first; points of searches are among them, pretrained ones are not.

        `trained=False`: every run that has begun.
        """
        if not trained:
            return super().all()
        runs = [run for run in super().all("model.json") if run.readable("model.json")]
        return [run for run in runs if "classes" not in run.read_json("model.json")]

    # What is in the folder

    @property
    def metric(self) -> str:
        """The distance to rank by: what its best epoch was chosen by, else what its model was published with."""
        from reidlib.models.printed.published import distance

        return self.params.get("metric") or distance(self.read_json("model.json").get("name", ""))

    @property
    def tested_on(self) -> str:
        """The data set to test on where none is named: whose query and gallery chose the best epoch, or the first that
        the weights were published with. ValueError where there is none.
        """
        about = self.read_json("model.json")
        name = about.get("tested_on") or ("" if "weights" in about else about["trained_on"])
        if not name:
            raise ValueError(f"what the weights of {self.name} are to be tested on is not known: name a data set")
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
        """Write `figure` to figures/<name>.png."""
        from reidlib.plots import save

        return save(figure, self.path / "figures" / f"{name}.png")

    def save_table(self, table: "DataFrame", name: str) -> Path:
        """Write a pandas table to figures/<name>.csv, beside the picture of that name."""
        path = self.path / "figures" / f"{name}.csv"
        with whole_file(path) as part:
            table.to_csv(part, index=False)
        return path

    # The model

    def load_model(self, device: "torch.device | str | None" = None) -> "ReIDModel":
        """The run's best model, in eval mode, on `device` (default: the GPU where there is one)."""
        import torch

        from reidlib.models import create_model
        from reidlib.training import record

        about = self.read_json("model.json")
        keep = ("num_classes", "num_cameras")
        model = create_model(
            about["name"], input_size=tuple(about["input_size"]), **{k: about[k] for k in keep if about.get(k)}
        )
        record.load_weights(self, model)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def cameras(self, dataset: "ReIDDataset") -> dict[int, int] | None:
        """What a model that embeds the camera is told of those of `dataset`: camid → label on the data set that it was
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
        from reidlib.data.loaders import eval_loader
        from reidlib.evaluation.features import extract_features, load_features, save_features

        path = self.path / "features" / f"{dataset.name}{'-flip' * flip}.safetensors"
        stamp = {"weights": sha256(self.path / "model.safetensors"), "data": dataset.fingerprint()}
        found = load_features(path, stamp)
        if found is None:
            found = {}
            for split in ("query", "gallery"):
                options = {"cameras": self.cameras(dataset), "workers": workers}
                loader = eval_loader(getattr(dataset, split), model.input_size, **options)
                found[split] = extract_features(model, loader, flip=flip, progress=progress)
            save_features(path, found, stamp)
        return found["query"], found["gallery"]
