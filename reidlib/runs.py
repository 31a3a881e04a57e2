"""The run folder: everything that one training run leaves, and the only way notebooks hand over to each other.

`params.json`, `environment.json`, `metrics.jsonl` (one line an epoch), `result.json`, `last.pt` (for an exact resume),
`model.safetensors` (best weights) with `model.json` (enough to rebuild it), `features/`, `figures/`, `notebooks/`.
Weights that were not trained here stand as a run as well, with their source in `model.json` and no training files.
Where asked for or needed: `epoch-0010.pt` (as `last.pt` was then), `tensorboard/`, `bad_batch.safetensors` with
`bad_batch.json` (what training stopped at), `.lock` (who trains here). Every file is written whole or not at all.
"""

import errno
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reidlib.errors import unknown_name
from reidlib.files import clear_parts, sha256, whole_file
from reidlib.paths import REPOSITORY, run_folder, runs_root

if TYPE_CHECKING:  # torch takes seconds to import, and a run folder can be looked at without it
    import torch
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from reidlib.data.datasets import ReIDDataset
    from reidlib.evaluation import Features
    from reidlib.models import ReIDModel

RESUME = ("auto", "restart", "never")


class Run:
    """One folder of `runs/`. Make one with `Run.create`, take an existing one with `Run.open`."""

    folder = staticmethod(run_folder)

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._new: tuple[dict[str, Any], str] | None = None  # what `create` was given, until `begin`

    def __repr__(self) -> str:
        return f"Run({self.name})"

    @property
    def name(self) -> str:
        """As `Run.folder` takes it: "<run>", or "<search>/<point>" where it belongs to a search."""
        root = runs_root()
        return self.path.relative_to(root).as_posix() if self.path.is_relative_to(root) else self.path.name

    @classmethod
    def create(cls, run: str, params: dict[str, Any], *, resume: str = "auto") -> "Run":
        """A run to be trained, with the parameters that its params.json will hold; `begin` makes the folder.

        `resume="auto"` goes on with what is there, `"restart"` lets `begin` remove a former run of that name, `"never"`
        raises FileExistsError where there is one, as anything does that stands there and is not a run.
        """
        if resume not in RESUME:
            raise unknown_name("value of resume", resume, RESUME)
        self = cls(cls.folder(run))
        is_run = (self.path / "params.json").is_file()
        if self.path.exists() and not is_run and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} exists and is not a run folder: choose another `run`")
        if is_run and resume == "never":
            raise FileExistsError(f"the run {self.name} exists already: choose another `run`, or resume='auto'")
        self._new = params, resume
        return self

    def begin(self) -> "Run":
        """Make the folder that `create` promised: called when everything that can fail early has not failed."""
        if self._new:
            params, resume = self._new
            if resume == "restart" and self.path.exists():
                for path in self.path.iterdir():
                    if path.name != ".lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not (self.path / "last.pt").exists():
                self.write_json("params.json", params)
                self.write_json("environment.json", environment() | {"seed": params.get("seed")})
            clear_parts(self.path)
            self._new = None
        return self

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Train in this folder alone: makes it, and holds its `.lock` until the block ends or the process dies.

        Raises OSError that names the other process where there is one. The operating system keeps the lock, so nothing
        has to be tidied after a kill, and a shared disk keeps it between computers.
        """
        import fcntl  # where notebooks run: Linux and macOS

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a lock of the process: its loaders do not inherit it
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise OSError(f"{self.path} cannot be locked ({error.strerror}): use another disk") from error
                file.seek(0)
                other = file.read().strip() or "another process"
                raise OSError(f"{self.path} is being trained by {other}: wait, or choose another `run`") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    @classmethod
    def open(
        cls,
        run: str = "",
        *,
        model: str = "",
        weights: str = "",
        trained: bool = True,
        progress: bool | None = None,
    ) -> "Run":
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
            if not (self.path / ("model.json" if trained else "params.json")).is_file():
                have = [r.name for r in cls.all(trained=trained)]
                have = ", ".join(([n for n in have if n.startswith(f"{self.name}/")] or have)[:6]) or "none yet"
                kind = "trained run" if trained else "run"
                raise FileNotFoundError(f"no {kind} at {self.path}; runs in {runs_root()}: {have}")
            return self
        if not cls.all(trained=trained):
            from reidlib.batch import run_notebook

            run_notebook("train", {"run": "toy"})
        found = cls.all(trained=trained)
        whole = [run for run in found if "/" not in run.name] if trained else []  # a point of a search is one of many
        return (whole or found)[0]

    @classmethod
    def _light(cls, run: str, model: str, weights: str, progress: bool | None) -> "Run":
        from reidlib.models import create_model
        from reidlib.models.weights import find_weights

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
            self.begin().save_model(net, trained_on=found.trained_on, tested_on=found.tested_on, weights=about)
        return self

    @classmethod
    def all(cls, *, trained: bool = True) -> list["Run"]:
        """Every run with a trained model, the newest first; points of searches are among them, pretrained ones are not.

        `trained=False`: every run that has begun.
        """
        file = "model.json" if trained else "metrics.jsonl"
        found = [p for depth in ("*", "*/*") for p in runs_root().glob(f"{depth}/{file}")]
        if trained:
            found = [p for p in found if "classes" not in cls(p.parent).read_json(file)]
        return [cls(p.parent) for p in sorted(found, key=lambda p: (-p.stat().st_mtime, p.parent.name))]

    # What is in the folder

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files; {} where it is not there yet."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error})") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        with whole_file(self.path / name) as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def params(self) -> dict[str, Any]:
        return self.read_json("params.json")

    @property
    def metric(self) -> str:
        """The distance to rank by: what its best epoch was chosen by, else what its model was published with."""
        from reidlib.models.published import distance

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

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One dict an epoch."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def write_metrics(self, history: list[dict[str, float]]) -> None:
        with whole_file(self.path / "metrics.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in history))

    def add_result(self, dataset: str, result: dict[str, Any]) -> None:
        """Write `result` under the name of `dataset` into result.json, beside those already there."""
        about = self.read_json("model.json")
        begun = {"model": about.get("name"), "init": about.get("init"), "results": {}}
        content = self.read_json("result.json") or begun
        content["results"][dataset] = content["results"].get(dataset, {}) | result
        self.write_json("result.json", content)

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

    def write_bad_batch(self, images: "torch.Tensor", about: dict[str, Any]) -> None:
        """Keep what training stopped at: the pictures (B, 3, H, W) uint8 as the model saw them, and `about` in JSON."""
        from safetensors.torch import save_file

        with whole_file(self.path / "bad_batch.safetensors") as part:
            save_file({"images": images.cpu().contiguous()}, part)
        self.write_json("bad_batch.json", about)

    def bad_batch(self) -> "tuple[torch.Tensor, dict[str, Any]] | None":
        """What `write_bad_batch` kept, where training stopped at one."""
        from safetensors.torch import load_file

        path = self.path / "bad_batch.safetensors"
        return (load_file(path)["images"], self.read_json("bad_batch.json")) if path.is_file() else None

    # The model

    def save_model(self, model: "ReIDModel", **about: Any) -> None:
        """The weights, and beside them what it takes to rebuild the model."""
        from safetensors.torch import save_file

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        with whole_file(self.path / "model.safetensors") as part:
            save_file(state, part)
        self.write_json("model.json", _describe(model) | about)

    def load_model(self, device: "torch.device | str | None" = None) -> "ReIDModel":
        """The run's best model, in eval mode, on `device` (default: the GPU where there is one)."""
        import torch

        from reidlib.models import create_model

        about = self.read_json("model.json")
        keep = ("num_classes", "num_cameras")
        model = create_model(
            about["name"], input_size=tuple(about["input_size"]), **{k: about[k] for k in keep if about.get(k)}
        )
        self.load_weights(model)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def load_weights(self, model: "ReIDModel") -> None:
        """Put the best weights into `model`. Raises ValueError where they are another model's or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        about = self.read_json("model.json")
        if about.get("name") != model.name:
            raise ValueError(f"{self.path} holds a {about.get('name')}, not a {model.name}: choose another `run`")
        path = self.path / "model.safetensors"
        try:
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} does not hold the weights that model.json describes: {reason}") from error

    def cameras(self, dataset: "ReIDDataset") -> dict[int, int] | None:
        """What a model that embeds the camera is told of those of `dataset`: camid → label on the data set that it was
        trained on; elsewhere None, as it knows none of them.
        """
        return dataset.camera_labels if dataset.name == self.read_json("model.json").get("trained_on") else None

    def features(
        self, model: "ReIDModel", dataset: "ReIDDataset", *, workers: int = 0, progress: bool = False
    ) -> tuple["Features", "Features"]:
        """Query and gallery features of `dataset`, from features/<dataset>.safetensors where weights and data agree."""
        from reidlib.data.loaders import eval_loader
        from reidlib.evaluation.features import extract_features, load_features, save_features

        path = self.path / "features" / f"{dataset.name}.safetensors"
        stamp = {"weights": sha256(self.path / "model.safetensors"), "data": dataset.fingerprint()}
        found = load_features(path, stamp)
        if found is None:
            told = {"cameras": self.cameras(dataset), "workers": workers}
            splits = {"query": dataset.query, "gallery": dataset.gallery}
            found = {
                split: extract_features(model, eval_loader(samples, model.input_size, **told), progress=progress)
                for split, samples in splits.items()
            }
            save_features(path, found, stamp)
        return found["query"], found["gallery"]


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


def environment() -> dict[str, Any]:
    """What a run ran on: versions, device, git commit, time."""
    import torch

    packages = ("reidlib", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
    describe = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this computer
        commit = ""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "git": commit or None,
        "packages": {p: metadata.version(p) for p in packages},
    }
