"""Watch a run that trains elsewhere, in another kernel or on another computer of a shared disk.

Only the files of the run folder are read. The training writes its state to run.json. A line of `metrics.jsonl` is dated
by the file's own time, which the disk keeps. How far this computer's clock is from the disk's is learnt from the files:
neither a wrong clock nor a shared disk that shows old files for a while (NFS: up to a minute) makes a living run look
dead.
"""

import html
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

from reidlib.run_folder import whole_rows
from reidlib.scores import NAMES
from reidlib.workbook.runs import Run

OVER = ("ended", "failed")
_RECENT = 9  # lines that a usual epoch is estimated from
FIRST = 3600.0  # seconds without a line that pass for usual where no epoch has been timed
_COLOURS = {"ended": "#009E73", "failed": "#D55E00", "quiet": "#D55E00"}
# Field of metrics.jsonl → what the table calls it, and how it writes it; others are shown under their own names.
_FIELDS = {name: (shown, "{:.1%}") for name, shown in NAMES.items()} | {
    "lr": ("learning rate", "{:.2e}"),
    "gradient_norm": ("gradient norm", "{:.3g}"),
    "images_per_second": ("images a second", "{:,.0f}"),
    "loading": ("time spent loading", "{:.1%}"),
    "memory_mib": ("memory", "{:,.0f} MiB"),
    "seconds": ("seconds to train", "{:,.1f}"),
    "eval_seconds": ("seconds to evaluate", "{:,.1f}"),
}


@dataclass(frozen=True)
class Status:
    """What one look found. `left` and `silence` are in seconds, None while they cannot be estimated."""

    run: str
    state: str  # waiting, training, quiet, ended, failed
    words: str  # the same in one sentence
    history: list[dict[str, Any]]
    epochs: int | None  # that were asked for
    left: float | None = None  # until the last epoch, with its evaluations
    silence: float | None = None  # since the last line, by the disk's clock

    @property
    def latest(self) -> dict[str, tuple[str, int]]:
        """The latest value of each field, as text, and its epoch: scores are not in every line."""
        shown = ((key, value, row["epoch"]) for row in self.history for key, value in row.items())
        rows = {key: (value, at) for key, value, at in shown if key not in ("epoch", "stopped")}
        return {
            _FIELDS.get(key, (key.replace("_", " "),))[0]: (_text(key, value), at) for key, (value, at) in rows.items()
        }

    def __str__(self) -> str:
        lines = (f"  {name:<22}{value:>12}   epoch {at}" for name, (value, at) in self.latest.items())
        return "\n".join([f"{self.run}: {self.words}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        look = f"border-left: 0.4em solid {_COLOURS.get(self.state, '#0072B2')}; padding: 0.3em 0.8em"
        cells = ((name, value, f"epoch {at}") for name, (value, at) in self.latest.items())
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in cells)
        head = f"<p style='{look}'><b>{html.escape(self.run)}</b>: {html.escape(self.words)}</p>"
        return head + "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


class Watch:
    """Reads a run folder as often as `look` is called.

    Args:
        run: The run.
        quiet_after: A run is quiet when no line has come for so many usual epochs; before one was timed, for an hour.
        stale: Seconds for which the disk may show an old file.
        clock: Gives this computer's time in seconds.
    """

    def __init__(
        self, run: Run, *, quiet_after: float = 3.0, stale: float = 60.0, clock: Callable[[], float] = time.time
    ) -> None:
        if quiet_after <= 0 or stale < 0:
            raise ValueError(f"quiet_after must be above 0 and stale not below, got {quiet_after} and {stale}")
        self.name = run.name
        self.run, self.quiet_after, self.stale, self.clock = run, quiet_after, stale, clock
        self.history: list[dict[str, Any]] = []
        self.written = 0.0  # when, by the disk's clock
        self._looked: float | None = None
        self._ahead = (-float("inf"), float("inf"))  # by how much this clock is ahead of the disk's: bounds

    def look(self) -> Status:
        """Read the folder once. What cannot be read now stays as it was when last read."""
        now, changed = self.clock(), self._read()
        if self.written:
            low, high = self._ahead
            high = min(high, now - self.written)  # nothing was written in the future
            if changed and self._looked is not None:  # and this line not before the look that did not see it
                low = max(low, self._looked - self.written - self.stale)
            self._ahead = low, high
        self._looked = now
        epochs = self._params().get("epochs")
        if not self.history:
            state, error = self._state()
            if state == "ended":  # published weights, which were not trained here
                return Status(self.name, state, "ended", [], epochs)
            if state == "failed":
                return Status(self.name, state, f"failed before the first epoch: {error}", [], epochs)
            return Status(self.name, "waiting", "nothing has been written yet", [], epochs)
        low, high = self._ahead
        silence = now - self.written - min(max(0.0, low), high)  # the clocks agree unless the files say otherwise
        return self._status(epochs, silence)

    def _status(self, epochs: int | None, silence: float) -> Status:
        at = self.history[-1]["epoch"]
        epoch = f"epoch {at} of {epochs}" if epochs else f"epoch {at}"
        last_line, (state, error) = f"the last line came {duration(silence)} ago", self._state()
        if state in ("", "training"):
            error = self._failed(state)
        if error:
            return Status(self.name, "failed", f"failed after {epoch}: {error}", self.history, epochs)
        early = self.history[-1].get("stopped")
        ended = state == "ended" or early or (epochs and at >= epochs)
        if ended or (not state and self._newer("result.json")):
            words = f"ended with {epoch}, {duration(silence)} ago" + (f": {early}" if early else "")
            return Status(self.name, "ended", words, self.history, epochs)
        left, usual = self._left(epochs, silence), sum(pace(self.history))
        limit = self.quiet_after * usual + self.stale if usual else FIRST
        if silence > limit:
            expected = f"an epoch takes {duration(usual)}" if usual else "no epoch has ended yet"
            words = f"QUIET at {epoch}: {last_line}, {expected}; it was stopped, or its computer is"
            return Status(self.name, "quiet", words, self.history, epochs, left, silence)
        words = f"{epoch}, {last_line}" + ("" if left is None else f", {duration(left)} left")
        return Status(self.name, "training", words, self.history, epochs, left, silence)

    def _left(self, epochs: int | None, silence: float) -> float | None:
        left = seconds_left(self.history, epochs, self._params().get("eval_every") or 1)
        return None if left is None else max(0.0, left - min(silence, sum(pace(self.history))))

    def _read(self) -> bool:
        """Whether metrics.jsonl has been written since the look before, or for the first time."""
        try:
            with (self.run.path / "metrics.jsonl").open(encoding="utf-8") as file:
                text, written = file.read(), os.fstat(file.fileno()).st_mtime
        except (OSError, UnicodeDecodeError):  # not there yet, just replaced (a stale handle), or half there
            return False
        rows = list(whole_rows(text))
        if not rows or written < self.written or (written == self.written and len(rows) <= len(self.history)):
            return False
        self.history, self.written = rows, written
        return True

    def _params(self) -> dict[str, Any]:
        try:
            return self.run.params
        except (OSError, ValueError):
            return {}

    def _state(self) -> tuple[str, str]:
        """State and error that the training wrote to run.json; ("", "") if none, as in runs of older versions."""
        try:
            about = self.run.state
        except (OSError, ValueError):
            about = {}
        state = about.get("state", "")
        if state not in ("training", "ended", "failed"):
            return "", ""
        return state, about.get("error", "for a reason that run.json does not name") if state == "failed" else ""

    def _newer(self, name: str, than: str = "metrics.jsonl") -> bool:
        """Whether a file of the folder was written after another; both by the disk's clock."""
        try:
            since = self.written if than == "metrics.jsonl" else (self.run.path / than).stat().st_mtime
            return (self.run.path / name).stat().st_mtime >= since
        except OSError:
            return False

    def _failed(self, state: str) -> str:
        """The error of a notebook that failed after the last line; "" if none did.

        While the training says that it trains only its own notebook counts: its kernel may have been killed. A run
        without a state is judged by any notebook, and by the batch that it stopped at.
        """
        with suppress(OSError, ValueError, KeyError):
            for path in sorted((self.run.path / "notebooks").glob("*.failed.ipynb")):
                name = f"notebooks/{path.name}"
                if state and not (path.name.startswith(("train.", "pretrain.")) and self._newer(name, "run.json")):
                    continue
                if self._newer(name):
                    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
                    outputs = (out for cell in cells for out in cell.get("outputs", []))
                    errors = [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
                    return _plain_line(errors[-1] if errors else path.name)
        stopped = not state and self._newer("bad_batch.json")
        return "the loss or a gradient became NaN or infinite, see bad_batch.json" if stopped else ""


def pace(history: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of a usual epoch's training and of a usual evaluation, medians of the latest; 0.0 if none was timed."""

    def usual(key: str) -> float:
        timed = [row[key] for row in history if isinstance(row.get(key), int | float)]
        timed = timed[1:] or timed  # the first is slower: things are compiled and caches are filled
        return float(median(timed[-_RECENT:])) if timed else 0.0

    return usual("seconds"), usual("eval_seconds")


def seconds_left(history: Sequence[dict[str, Any]], epochs: int | None, eval_every: int) -> float | None:
    """Estimate the time from the end of the last epoch to the end of training.

    Args:
        history: One dict per epoch, as in metrics.jsonl.
        epochs: The last epoch.
        eval_every: Epochs between evaluations; the last epoch is evaluated too.

    Returns:
        Seconds; None if no epoch was timed, or `epochs` is None.
    """
    train, evaluation = pace(history)
    if not epochs or not train:
        return None
    rest = range(history[-1]["epoch"] + 1, epochs + 1)
    return len(rest) * train + sum(epoch % eval_every == 0 or epoch == epochs for epoch in rest) * evaluation


def follow(watch: Watch, show: Callable[[Status], None], every: float = 0.0) -> Status:
    """Look every `every` seconds and `show` what was found, until the run is over; 0 looks once.

    A quiet run is looked at further: it may come back. Interrupting the kernel ends the watching, not the run.
    """
    status = watch.look()
    show(status)
    with suppress(KeyboardInterrupt):
        while every > 0 and status.state not in OVER:
            time.sleep(every)
            status = watch.look()
            show(status)
    return status


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 119.5:
        return f"{max(0, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _plain_line(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())[:300]


def _text(key: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return _FIELDS[key][1].format(value) if key in _FIELDS else f"{value:.4g}"
