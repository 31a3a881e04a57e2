"""Weights by name: which were published for a model, what each is called, where its file is.

A name is a dataset ("market1501", or "imagenet" for a start before training), with "-combineall" where all of its
images were trained on. A table in front tells several apart ("torchreid-2019-03:market1501"); without one the newest
table with a link is meant. "drawn" lies in the package: trained on drawn people alone, for a start without a download
(benchmarks/drawn_weights.md). A file, or the folder or name of a run, may take a name's place.

Plain links are downloaded into torch hub's folder of checkpoints (TORCH_HOME), unless their file lies in the weights
folder of data_paths.yaml. Links that need a browser raise an error with the link and the expected file name. A file is
checked against the hash recorded when it was first loaded.
"""

import os
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from reidlib.files import sha256
from reidlib.models.checkpoints import read_state_dict
from reidlib.models.download import discard_unverified, fetch, record_hash, verify
from reidlib.models.printed.published import Published, published
from reidlib.models.weight_files import CheckpointError
from reidlib.models.zoo import canonical_name
from reidlib.paths import run_folder, weights_file, weights_root
from reidlib.run_folder import RunFolder

_FOLDERS = ("1drv.ms", "huggingface.co")  # links of these hosts are to folders of files
_NEED_A_BROWSER = ("mega.nz", "drive.google.com", *_FOLDERS)
_SUFFIXES = (".pth", ".pth.tar", ".pt", ".safetensors", ".zip")
DRAWN = Path(__file__).with_name("drawn")  # <model>/model.safetensors with its card, model.json
# Folders that say nothing of an experiment: torchreid saves into <experiment>/model/model.pth.tar-60.
_COMMON_FOLDERS = {"checkpoint", "checkpoints", "ckpt", "log", "logs", "model", "models", "output", "weights"}


@dataclass(frozen=True)
class Weights:
    """One set of weights for `model`: published, or a file of one's own, or a run's.

    Attributes:
        model: The model's name.
        name: "torchreid-2020-03:market1501", "drawn", or the file or run as it was given.
        row: The published result; None for files and runs.
        file: The file; None for published weights.
        run: The run folder that `file` is in; None if it is in none.
    """

    model: str
    name: str
    row: Published | None = None
    file: Path | None = None
    run: Path | None = None

    @property
    def in_package(self) -> bool:
        """Whether these are the weights "drawn"."""
        return self.run == DRAWN / self.model

    @cached_property
    def by_hand(self) -> bool:
        """Whether the link needs a browser."""
        return self.row is not None and urlsplit(self.row.link).hostname in _NEED_A_BROWSER

    @property
    def file_name(self) -> str:
        """What the file is called, here and in the weights folder; there also with another of the usual endings."""
        if self.row is None:
            return self.file.name
        return f"{self.label}.pth" if self.by_hand else Path(urlsplit(self.row.link).path).name

    @property
    def label(self) -> str:
        """A name for a run that holds these weights: the model, and the weights' name or the file's and its folder's.

        Two folders up at most, none of them the home folder or above: the name is short and says nothing of a computer.
        """
        if self.row is not None or self.in_package:
            return f"{self.model}-{self.name.replace(':', '-')}"
        path, home = Path(os.path.abspath(self.file)), Path(os.path.expanduser("~"))
        folders = (folder.name for folder in takewhile(lambda folder: folder != home, path.parents[:2]))
        folder = next((name for name in folders if name.lower() not in _COMMON_FOLDERS), "")
        return re.sub(r"[^\w.+=,]+", "-", "-".join(filter(None, (self.model, folder, _stem(path.name)))))

    @property
    def trained_on(self) -> str:
        """The dataset's name; empty if not known."""
        return self.row.weights if self.row else str(self._about.get("trained_on", ""))

    @property
    def tested_on(self) -> str:
        """The first dataset that a result of theirs was published for; empty if there is none."""
        return self.row.tested_on if self.row else ""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) that they were trained at, as their table or run says; None if it does not."""
        if self.row:
            height, _, width = self.row.input.partition("x")
            return (int(height), int(width)) if height else None
        size = self._about.get("input_size")
        if size is None:
            return None
        if not (isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s <= 4096 for s in size)):
            raise ValueError(f"{self.run / 'model.json'}: input_size is {size!r:.80}, not [height, width]")
        return tuple(size)

    @property
    def _about(self) -> dict[str, Any]:
        return RunFolder(self.run).read_json("model.json") if self.run else {}

    def fetch(self, *, progress: bool | None = None) -> tuple[Path, str]:
        """Find the file on this computer, or download it.

        Args:
            progress: Whether to show a bar; None for terminals only.

        Returns:
            The file and its sha256.

        Raises:
            FileNotFoundError: The link needs a browser; says the link and the name to keep the file under.
            DownloadError: The download failed, or the file is not the one that was loaded first.
            CheckpointError: The file in the package is not the one that its card describes.
        """
        from torch.hub import get_dir

        if self.row is None and self.file is not None:
            digest = sha256(self.file)
            if self.in_package and digest != self._about.get("sha256"):
                raise CheckpointError(f"{self.file} is not the file of its model.json: install the package again")
            return self.file, digest
        root = weights_root()
        stem = _stem(self.file_name)
        here = [path for path in (root / f"{stem}{suffix}" for suffix in _SUFFIXES) if path.is_file()]
        if here:
            return here[0], verify(here[0])
        if self.by_hand:
            file = f"the file of {self.model}" if urlsplit(self.row.link).hostname in _FOLDERS else "the file"
            raise FileNotFoundError(
                f"the weights {self.name} of {self.model} need a browser: open {self.row.link} and save {file} as "
                f"{root / self.file_name}"
            )
        path = Path(get_dir()) / "checkpoints" / self.file_name
        return path, fetch(self.row.link, path, progress=progress)

    def read(self) -> tuple[dict[str, Tensor], Path, str]:
        """Fetch and read the weights.

        Returns:
            The tensors by key, the file, and its sha256.

        Raises:
            CheckpointError: The file holds no weights; a download that was never loaded is then deleted.
            FileNotFoundError, DownloadError: As `fetch`.
        """
        file, digest = self.fetch()
        try:
            return read_state_dict(file), file, digest
        except CheckpointError as error:
            if not discard_unverified(file):
                raise
            raise CheckpointError(f"{error} (deleted here, so the next call downloads it anew)") from error

    def accept(self, file: Path, digest: str) -> None:
        """Record the hash of `file`, now that it has been loaded: another file will be refused."""
        if self.row is not None:
            record_hash(file, self.row.link, digest)


def published_weights(model: str) -> dict[str, Weights]:
    """All weights of `model` with a link, by their name with the table in front, oldest table first."""
    model = canonical_name(model)
    found: dict[str, Weights] = {}
    for row in published(model):
        if row.link:
            name = f"{row.table}:{row.weights}"
            found.setdefault(name, Weights(model, name, row))
    return found


def find_weights(model: str, weights: str | Path) -> Weights:
    """Find what `weights` names; nothing is downloaded.

    Args:
        model: A model's name.
        weights: The name of published weights, a file by its path or by its name in the folder of weights, or a run.

    Returns:
        The weights.

    Raises:
        FileNotFoundError: A path at which nothing is; "drawn" of a model that was not trained on drawn people.
        ValueError: An unknown model, or any other name; lists the names that exist, the nearest first.
    """
    model, text = canonical_name(model), str(weights)
    found = published_weights(model)
    plain = {name.partition(":")[2]: one for name, one in found.items()}  # the newest of each
    if one := found.get(text) or plain.get(text):
        return one
    if text == "drawn":
        return _drawn_weights(model)
    path = Path(text).expanduser()
    if path.is_file():
        return Weights(model, text, file=path)
    for folder in (path, run_folder(text)):
        if (folder / "model.json").is_file() and (folder / "model.safetensors").is_file():
            return Weights(model, folder.name, file=folder / "model.safetensors", run=folder)
    if file := weights_file(text):
        return Weights(model, text, file=file)
    if path.parent != Path() or path.suffix in _SUFFIXES:
        raise FileNotFoundError(f"no weights at {path}: neither a file nor the folder of a run is there")
    drawn = ["drawn"] * (DRAWN / model).is_dir()
    names = sorted([*plain, *found, *drawn], key=lambda name: -SequenceMatcher(None, text, name).ratio())
    have = f"published are {', '.join(names)}" if names else "none are published"
    raise ValueError(f"{model} has no weights {text!r}: {have}; or name a file or a run")


def _drawn_weights(model: str) -> Weights:
    """The weights "drawn" of `model`, which lie in the package."""
    folder = DRAWN / model
    if not (folder / "model.safetensors").is_file():
        others = ", ".join(sorted(path.parent.name for path in DRAWN.glob("*/model.json"))) or "none yet"
        raise FileNotFoundError(
            f"{model} has no weights 'drawn' in the package (there are: {others}): "
            f"`make drawn-weights MODELS={model}` trains them"
        )
    return Weights(model, "drawn", file=folder / "model.safetensors", run=folder)


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
