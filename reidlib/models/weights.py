"""Weights by name: which were published for a model, what each is called, and how it comes here.

A name is a data set ("market1501", or "imagenet" for a start before training), with "-combineall" where all of its
images were trained on; a table in front tells several apart ("torchreid-2019-03:market1501"), and without one the
newest table that has a link is meant. A file, or the folder or name of a run, may stand in a name's place.

Plain links are fetched into torch hub's folder of checkpoints (TORCH_HOME), unless their file lies in the weights
folder of data_paths.yaml. Links that ask for a person are said, with the name that their file is looked for under.
"""

import json
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from reidlib.files import sha256
from reidlib.models.download import checked, fetch, note
from reidlib.models.printed.published import Published, published
from reidlib.models.zoo import canonical_name
from reidlib.paths import run_folder, weights_root

_ASK_A_PERSON = ("mega.nz", "drive.google.com")
_SUFFIXES = (".pth", ".pth.tar", ".pt", ".safetensors", ".zip")
_COMBINED = "-combineall"


@dataclass(frozen=True)
class Weights:
    """One set of weights for `model`: published (`row`), or a file of one's own, or a run's."""

    model: str
    name: str  # "torchreid-2020-03:market1501", or the file or run as it was given
    row: Published | None = None
    file: Path | None = None
    run: Path | None = None  # the folder that `file` is in, where that is a run's

    @cached_property
    def by_hand(self) -> bool:
        """Whether the link asks for a person."""
        return self.row is not None and urlsplit(self.row.link).hostname in _ASK_A_PERSON

    @property
    def file_name(self) -> str:
        """What the file is called, here and in the weights folder; there also with another of the usual endings."""
        if self.row is None:
            return self.file.name
        return f"{self.label}.pth" if self.by_hand else Path(urlsplit(self.row.link).path).name

    @property
    def label(self) -> str:
        """Model and weights in a name for a file or folder."""
        if self.row is None:
            return f"{self.model}-{_stem(self.file.name)}"
        return f"{self.model}-{self.name.replace(':', '-')}"

    @property
    def trained_on(self) -> str:
        """The data set's name; empty where nobody says."""
        return _trained_on(self.row) if self.row else _about(self.run).get("trained_on", "")

    @property
    def tested_on(self) -> str:
        """The first data set that a result of theirs was published for; empty where there is none."""
        return self.row.tested_on if self.row else ""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """The size that a run was trained at."""
        size = _about(self.run).get("input_size")
        return tuple(size) if size else None

    def fetch(self, *, progress: bool | None = None) -> tuple[Path, str]:
        """The file on this computer and its sha256.

        FileNotFoundError says the link and the file's name where a person has to fetch it; DownloadError what is wrong
        with a download, or that the file is no longer what it was at first use.
        """
        from torch.hub import get_dir

        if self.row is None:
            return self.file, sha256(self.file)
        root = weights_root()
        stem = _stem(self.file_name)
        there = [path for path in (root / f"{stem}{suffix}" for suffix in _SUFFIXES) if path.is_file()]
        if there:
            return there[0], checked(there[0])
        if self.by_hand:
            raise FileNotFoundError(
                f"the weights {self.name} of {self.model} ask for a person: open {self.row.link} in a browser and put "
                f"the file there as {root / self.file_name}"
            )
        path = Path(get_dir()) / "checkpoints" / self.file_name
        return path, fetch(self.row.link, path, progress=progress)

    def accept(self, file: Path, digest: str) -> None:
        """Note the hash of what `fetch` gave, now that it fits: another file will be refused."""
        if self.row is not None:
            note(file, self.row.link, digest)


def published_weights(model: str) -> dict[str, Weights]:
    """All that have a link, by their name with the table in front, oldest table first."""
    model, found = canonical_name(model), {}
    for row in published(model):
        if row.link:
            name = f"{row.table}:{_trained_on(row)}"
            found.setdefault(name, Weights(model, name, row))
    return found


def find_weights(model: str, weights: str | Path) -> Weights:
    """The weights that `weights` names for `model`; nothing is fetched.

    FileNotFoundError for a file that is not there, ValueError for an unknown model or any other name, which lists the
    names that exist, the nearest first.
    """
    model, text = canonical_name(model), str(weights)
    found = published_weights(model)
    plain = {name.partition(":")[2]: one for name, one in found.items()}  # the newest of each
    if one := found.get(text) or plain.get(text):
        return one
    path = Path(text).expanduser()
    if path.is_file():
        return Weights(model, text, file=path)
    for folder in (path, run_folder(text)):
        if (folder / "model.json").is_file() and (folder / "model.safetensors").is_file():
            return Weights(model, folder.name, file=folder / "model.safetensors", run=folder)
    if path.parent != Path() or path.suffix in _SUFFIXES:
        raise FileNotFoundError(f"no weights at {path}: neither a file nor the folder of a run is there")
    names = sorted([*plain, *found], key=lambda name: -SequenceMatcher(None, text, name).ratio())
    have = f"published are {', '.join(names)}" if names else "none are published"
    raise ValueError(f"{model} has no weights {text!r}: {have}; or name a file or a run")


def _trained_on(row: Published) -> str:
    return row.trained_on + _COMBINED * row.combineall


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def _about(run: Path | None) -> dict:
    return json.loads((run / "model.json").read_text(encoding="utf-8")) if run else {}
