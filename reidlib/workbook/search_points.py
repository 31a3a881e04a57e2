"""Which points a search runs: all combinations of values, some drawn at random, or those that optuna asks for.

A value of the grid is a text as on the command line. One of the form `low..high` is a range: `1e-4..1e-2:log:5` are
five values evenly spaced by their logarithm, `8..64:4` four whole numbers; without a count it can be drawn from.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from reidlib.run_folder import RunFolder

SEED = "seed"  # the parameter over which mean and spread are taken
Texts = dict[str, str]
_NUMBER = r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}(:log)?(?::(\d+))?")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: whole ones if both ends are written so."""

    text: str
    low: float
    high: float
    log: bool
    count: int
    whole: bool

    @classmethod
    def read(cls, axis: str, text: str) -> "Range | None":
        """The range that a text means, if it is one. Raises ValueError for one that is empty or has no logarithm."""
        if not (found := _RANGE.fullmatch(text)):
            return None
        low, high = float(found[1]), float(found[2])
        if not low < high or (found[3] and low <= 0):
            raise ValueError(f"the range {text!r} of {axis!r} must rise{', from above 0' if found[3] else ''}")
        whole = found[1].lstrip("+-").isdigit() and found[2].lstrip("+-").isdigit()
        return cls(text, low, high, bool(found[3]), int(found[4] or 0), whole)

    def at(self, share: float) -> str:
        """The number at a share of the way from the lower end to the upper one, as text of at most four digits."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = ends[0] + share * (ends[1] - ends[0])
        return self.written(math.exp(value) if self.log else value)

    def written(self, value: float) -> str:
        return str(round(value)) if self.whole else f"{value:.4g}"

    def values(self) -> list[str]:
        """All of them, evenly spaced. Raises ValueError where there is no count."""
        if not self.count:
            raise ValueError(f"the range {self.text!r} needs a count ({self.text}:5), or draw from it: --sample 20")
        return list(dict.fromkeys(self.at(i / max(1, self.count - 1)) for i in range(self.count)))


Axes = Mapping[str, Sequence[str | Range]]


def read_axes(grid: Mapping[str, Sequence[str]]) -> Axes:
    """The values of each axis, with ranges read."""
    return {axis: [Range.read(axis, text) or text for text in texts] for axis, texts in grid.items()}


def _listed(values: Sequence[str | Range]) -> list[str]:
    return [text for value in values for text in (value.values() if isinstance(value, Range) else [value])]


def combinations(axes: Axes) -> Iterator[Texts]:
    """Every combination of the values."""
    for texts in product(*map(_listed, axes.values())):
        yield dict(zip(axes, texts, strict=True))


def sampled(axes: Axes, count: int) -> Iterator[Texts]:
    """`count` different combinations drawn at random, each with every seed; the same ones each time."""
    drawn, rng = {axis: values for axis, values in axes.items() if axis != SEED}, random.Random(0)
    seeds, seen = _listed(axes.get(SEED, ())), set()
    for _ in range(100 * count):
        point = {axis: _drawn(values, rng) for axis, values in drawn.items()}
        if tuple(point.values()) not in seen:
            seen.add(tuple(point.values()))
            yield from ({axis: point.get(axis, seed) for axis in axes} for seed in seeds or [""])
        if len(seen) == count:
            return


def _drawn(values: Sequence[str | Range], rng: random.Random) -> str:
    value = rng.choice(list(values))
    if isinstance(value, Range):
        return rng.choice(value.values()) if value.count else value.at(rng.random())
    return value


class Trials:
    """Points that optuna proposes from the scores of earlier ones: `for texts in trials` asks for one after the other.

    What it knows lies in `optuna.log` in the folder of the search, so that a search that was killed goes on: the points
    that ran then come first.
    """

    def __init__(self, folder: RunFolder, axes: Axes, count: int, score: str) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ValueError("--optuna needs optuna: pip install optuna, or draw at random with --sample") from error
        if SEED in axes:
            raise ValueError("a seed is not learned: leave it to -p seed, or compare seeds afterwards")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.path.mkdir(parents=True, exist_ok=True)
        self.optuna, self.axes, self.count, self.score = optuna, axes, count, score
        self.study = optuna.create_study(
            study_name="search",
            storage=JournalStorage(JournalFileBackend(str(folder.path / "optuna.log"))),
            pruner=optuna.pruners.MedianPruner(),
            direction="maximize",
            load_if_exists=True,
        )
        # A seed of its own for each call: from the same one, a search that goes on would draw the same points again.
        self.study.sampler = optuna.samplers.TPESampler(seed=len(self.study.get_trials()))
        self.trials: dict[str, Any] = {}  # those that run, by the name of their point
        self.latest: Any = None

    def __iter__(self) -> Iterator[Texts]:
        running = (self.optuna.trial.TrialState.RUNNING,)
        for interrupted in self.study.get_trials(states=running):
            self.latest = self.optuna.trial.Trial(self.study, interrupted._trial_id)
            yield self._texts()
        while len(self.study.get_trials()) < self.count:
            self.latest = self.study.ask()
            yield self._texts()

    def _texts(self) -> Texts:
        texts = {}
        for axis, values in self.axes.items():
            if len(values) == 1 and isinstance(span := values[0], Range) and not span.count:
                suggest = self.latest.suggest_int if span.whole else self.latest.suggest_float
                ends = (int(span.low), int(span.high)) if span.whole else (span.low, span.high)
                texts[axis] = span.written(suggest(axis, *ends, log=span.log))
            else:
                texts[axis] = self.latest.suggest_categorical(axis, _listed(values))
        return texts

    def begin(self, name: str) -> None:
        """The latest texts are the point `name`."""
        known = self.study.get_trials(deepcopy=False)[self.latest.number]
        self.trials[name] = self.latest, set(known.intermediate_values)

    def hopeless(self, name: str, metrics: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a training should be stopped, by its metrics so far: worse than the median of the others."""
        trial, reported = self.trials[name]
        for row in metrics:
            if row["epoch"] > 0 and row["epoch"] not in reported and self.score in row:
                reported.add(row["epoch"])
                trial.report(row[self.score], row["epoch"])
        return bool(reported) and trial.should_prune()

    def end(self, name: str, metrics: Sequence[Mapping[str, Any]], state: str) -> None:
        """Tell optuna how a point ended: "COMPLETE", "PRUNED" or "FAIL"."""
        trial, _ = self.trials.pop(name)
        best = max((row[self.score] for row in metrics if row["epoch"] > 0 and self.score in row), default=None)
        state = "FAIL" if state == "COMPLETE" and best is None else state
        value = best if state == "COMPLETE" else None
        self.study.tell(trial, value, state=self.optuna.trial.TrialState[state])
