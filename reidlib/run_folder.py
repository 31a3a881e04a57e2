"""The run folder: the files that one training leaves, and the only way notebooks hand over to each other.

A run folder holds

- `run.json`: the mark of a run folder, and its state: begun, training, ended or failed;
- `params.json`, `environment.json`: the parameters as resolved; versions, device, git commit, seed;
- `metrics.jsonl` (one line per epoch), `result.json` (final metrics per dataset);
- `last.pt` (for an exact resume), and `epoch-0010.pt` where checkpoints are kept;
- `model.safetensors` (best weights) with `model.json` (enough to rebuild the model);
- `features/`, `figures/`, `notebooks/`, `tensorboard/`, `plugins/`;
- `bad_batch.safetensors` with `bad_batch.json`, where training stopped at a batch; `.lock`, who trains here.

Every file is written whole or not at all. Nothing here knows of models or data.
"""

import errno
import json
import os
import platform
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from reidlib.errors import unknown_name
from reidlib.files import clear_parts, whole_file
from reidlib.paths import REPOSITORY, run_folder, runs_root

FIGURE_FORMATS = ("png", "jpg", "pdf", "svg")
RESUME = ("auto", "restart", "never")
MARK = "run.json"
KIND = {"kind": "reidlib run", "format": 1}
_REPLACED = ".replaced"  # holds the former run while a restart replaces it
# Only these names are ever removed from a run folder. The first is written last when a run begins, moved first when the
# run is replaced and put back last: a folder without it holds half a run.
_WHOLE = "environment.json"
_FILES = (_WHOLE, MARK, "params.json", "metrics.jsonl", "result.json", "last.pt", "epoch-*.pt")
_FILES += ("results.tex", "results.md")
_FILES += ("model.safetensors", "model.json", "bad_batch.safetensors", "bad_batch.json")
_FOLDERS = ("features", "figures", "notebooks", "tensorboard", "trackers", "plugins")

_locked: set[str] = set()  # run folders that this process trains in
_locked_guard = threading.Lock()


class RunFolder:
    """One folder of `runs/`.

    Args:
        path: The folder; it need not exist yet.
        output: Another folder for what is written, for a run that is read-only.
    """

    folder = staticmethod(run_folder)

    def __init__(self, path: str | Path, output: str | Path = "") -> None:
        self.path = Path(path)
        self._output = Path(output) if str(output) else None
        self._new: tuple[dict[str, Any], str] | None = None  # parameters and `resume` of `create`, until `begin`

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @property
    def name(self) -> str:
        """The run's name as `folder` takes it: "<run>", or "<search>/<point>" where it belongs to a search."""
        root = runs_root()
        return self.path.relative_to(root).as_posix() if self.path.is_relative_to(root) else self.path.name

    @property
    def out(self) -> Path:
        """The folder that is written to.

        Raises:
            PermissionError: It is the run's own, which is read-only.
        """
        if self._output is None and self.path.is_dir() and not os.access(self.path, os.W_OK):
            raise PermissionError(f"the run {self.path} is read-only: set `output` to a folder of yours")
        return self._output or self.path

    # Begin

    @property
    def is_run(self) -> bool:
        """Whether the folder carries the mark of a run; runs of older versions are known by their files."""
        about = self._read_if_valid(MARK)
        if about is not None:
            return about.get("kind") == KIND["kind"]
        params = self._read_if_valid("params.json")  # before there was a mark
        return params is not None and "model" in params and (self.path / "environment.json").is_file()

    @classmethod
    def create(cls, run: str, params: dict[str, Any], *, resume: str = "auto") -> Self:
        """Give a run to be trained; `begin` makes the folder.

        Args:
            run: Name or path of the run.
            params: What its params.json will hold.
            resume: "auto" resumes the run that is there, "restart" lets `begin` replace it, "never" refuses it.

        Raises:
            FileExistsError: The folder holds a run and `resume` is "never", or holds something else.
            ValueError: `resume` has another value.
        """
        if resume not in RESUME:
            raise unknown_name("value of resume", resume, RESUME)
        self = cls(cls.folder(run))
        self.recover()
        if self.path.exists() and not self.is_run and not self._is_empty():
            raise FileExistsError(f"{self.path} exists and is not a run folder: choose another `run`")
        if self.is_run and resume == "never":
            raise FileExistsError(f"the run {self.name} exists already: choose another `run`, or resume='auto'")
        self._new = params, resume
        return self

    def begin(self) -> Self:
        """Make the folder that `create` promised, after everything that can fail early has not failed.

        With `resume="restart"` the former run is moved aside first and deleted last, so that an error or a kill in
        between leaves the former run or the new one. Files that a run does not write stay where they are.
        """
        if self._new:
            params, resume = self._new
            with self._replacing() if resume == "restart" and self.is_run else nullcontext():
                clear_parts(self.path)
                if not (self.path / MARK).exists():
                    self.write_state("begun")
                if not (self.path / "last.pt").exists():
                    self.write_json("params.json", params)
                    self.write_json(_WHOLE, environment() | {"seed": params.get("seed")})
            self._new = None
        return self

    def _is_empty(self) -> bool:
        return self.path.is_dir() and not any(path.name[0] != "." for path in self.path.iterdir())

    def _own(self, folder: Path) -> list[Path]:
        """The files and folders in `folder` that a run writes."""
        return [path for pattern in (*_FILES, *_FOLDERS) for path in sorted(folder.glob(pattern))]

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Move the former run aside for the block; delete it when the block ends well, put it back when it does not."""
        aside = self.path / _REPLACED
        self._restore()
        aside.mkdir()
        try:
            for path in self._own(self.path):
                path.rename(aside / path.name)
            yield
        except BaseException:
            self._restore(undo=True)
            raise
        shutil.rmtree(aside, ignore_errors=True)  # what cannot be deleted now is tried again at the next restart

    def recover(self) -> None:
        """Put back the former run if a restart was killed before the new one had begun."""
        if (self.path / _REPLACED).is_dir():
            with suppress(OSError), self.lock():  # another process may be in the middle of a restart
                self._restore()

    def _restore(self, *, undo: bool = False) -> None:
        aside = self.path / _REPLACED
        if not aside.is_dir():
            return
        if undo or not (self.path / _WHOLE).exists():
            for path in reversed(self._own(aside)):
                new = self.path / path.name
                if new.exists() or new.is_symlink():
                    shutil.rmtree(new) if new.is_dir() and not new.is_symlink() else new.unlink()
                path.rename(new)
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Train in this folder alone: makes the folder, and holds its `.lock` until the block or the process ends.

        The operating system keeps the lock, so nothing has to be tidied after a kill, and a shared disk keeps it
        between computers.

        Raises:
            OSError: Another process, or another block of this one, holds the lock.
        """
        import fcntl  # where notebooks run: Linux and macOS

        self.path.mkdir(parents=True, exist_ok=True)
        key = str(self.path.resolve())
        with _locked_guard:  # the system grants a second lock to the same process
            if key in _locked:
                raise OSError(f"{self.path} is being trained by this kernel: wait, or choose another `run`")
            _locked.add(key)
        try:
            with (self.path / ".lock").open("a+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: its loaders do not inherit it
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
        finally:
            with _locked_guard:
                _locked.discard(key)

    # Find

    @classmethod
    def having(cls, file: str) -> list[Self]:
        """Every run that has `file`, the one whose `file` is newest first; points of searches are among them."""
        found = [p for depth in ("*", "*/*") for p in runs_root().glob(f"{depth}/{file}") if p.parent.name[0] != "."]
        return [cls(p.parent) for p in sorted(found, key=lambda p: (-p.stat().st_mtime, p.parent.name))]

    # Read and write

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files; {} if it does not exist yet.

        Raises:
            ValueError: The file is not a JSON object.
        """
        path = self.path / name
        if self._output is not None and (self._output / name).is_file():
            path = self._output / name
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}): restore it, or train the run anew") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds no JSON object: restore it, or train the run anew")
        return content

    def _read_if_valid(self, name: str) -> dict[str, Any] | None:
        """As `read_json`; None if the file does not exist or is damaged."""
        try:
            return self.read_json(name) if (self.path / name).is_file() else None
        except (OSError, ValueError):
            return None

    def readable(self, name: str) -> bool:
        """Whether the JSON file `name` can be read; warns if it is damaged. For lists, which one run must not stop."""
        try:
            self.read_json(name)
        except (OSError, ValueError) as error:
            warnings.warn(f"left out of the list of runs: {error}", stacklevel=2)
            return False
        return True

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `content` to the JSON file `name`."""
        with whole_file(self.out / name) as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def state(self) -> dict[str, Any]:
        """The content of run.json: `state` (begun, training, ended or failed), `time`, and `error` of a failed one."""
        return self.read_json(MARK)

    def write_state(self, state: str, **about: Any) -> None:
        """Write run.json; training calls this when it starts, ends and fails.

        Args:
            state: "begun", "training", "ended" or "failed".
            about: What else is known, such as `error`, one sentence.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.write_json(MARK, KIND | {"state": state, "time": now} | about)

    @property
    def params(self) -> dict[str, Any]:
        """The content of params.json."""
        return self.read_json("params.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per epoch, up to the first line of metrics.jsonl that is not whole."""
        path = self.path / "metrics.jsonl"
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        except UnicodeDecodeError:
            text = ""
        return list(whole_rows(text))

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl, one line per epoch."""
        with whole_file(self.path / "metrics.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in history))

    def add_result(self, dataset: str, result: dict[str, Any]) -> None:
        """Write `result` under the name of `dataset` into result.json, beside those already there."""
        about = self.read_json("model.json")
        begun: dict[str, Any] = {"model": about.get("name"), "init": about.get("init"), "results": {}}
        content: dict[str, Any] = self.read_json("result.json") or begun
        content["results"][dataset] = content["results"].get(dataset, {}) | result
        self.write_json("result.json", content)


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Check the formats that figures are saved in; give them as a tuple.

    Raises:
        ValueError: There is none, or one that is not in `FIGURE_FORMATS`.
    """
    for name in formats:
        if name not in FIGURE_FORMATS:
            raise unknown_name("format of figures", name, FIGURE_FORMATS)
    if not formats:
        raise ValueError(f"formats is empty: name at least one of {', '.join(FIGURE_FORMATS)}")
    return tuple(formats)


def whole_rows(text: str) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl up to the first line that is not whole."""
    lines = text.splitlines()
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # all at once: three times as fast
        whole = len(rows) == len(lines)
    except ValueError:
        whole = False
    for line in rows if whole else lines:
        try:
            row = line if whole else json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict) or "epoch" not in row:
            return
        yield row


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
