"""Watching a run from its files alone: half-written, replaced, dated by another clock, over, or silent."""

import json
import os

import pytest

from reidlib.workbook.monitor import Watch, duration, follow, pace
from reidlib.workbook.runs import Run

nbformat = pytest.importorskip("nbformat")
START = 1_000_000.0  # the disk's clock


def line(epoch: int, **fields: float) -> dict[str, float]:
    return {"epoch": epoch} | ({"loss": 5 / epoch, "seconds": 100.0} if epoch else {}) | fields


class Training:
    """A run folder as a training elsewhere would leave it, on a disk whose clock the test moves."""

    def __init__(self, epochs: int = 10, **params: object) -> None:
        self.run = Run.create("far", {"epochs": epochs, "eval_every": 4, **params}).begin()
        self.now, self.rows = START, []

    def write(self, *rows: dict[str, float]) -> None:
        self.rows += rows
        self.run.write_metrics(self.rows)
        self.touch("metrics.jsonl")

    def touch(self, name: str) -> None:
        os.utime(self.run.path / name, (self.now, self.now))

    def state(self, state: str, **about: object) -> None:
        self.run.write_state(state, **about)
        self.touch("run.json")

    def watch(self, ahead: float = 0.0, **settings: float) -> Watch:
        """A watcher whose computer's clock is `ahead` of the disk's."""
        return Watch(self.run, clock=lambda: self.now + ahead, **settings)


def test_one_look_says_where_it_is_and_how_long_it_takes() -> None:
    far = Training()
    assert far.watch().look().state == "waiting"
    far.write(line(0, mAP=0.02), line(1, seconds=900.0), line(2), line(3), line(4, mAP=0.25, eval_seconds=30.0))
    far.now += 40
    status = far.watch().look()
    assert (status.state, status.epochs, status.silence) == ("training", 10, 40)
    # Epochs 5 to 10 at the usual 100 s (not the first one's 900), evaluations after 8 and 10, less what has passed.
    assert status.left == 6 * 100 + 2 * 30 - 40
    assert status.words == "epoch 4 of 10, the last line came 40 s ago, 10 min left"
    assert status.latest == {
        "loss": ("1.25", 4), "seconds to train": ("100.0", 4), "mAP": ("25.0%", 4),
        "seconds to evaluate": ("30.0", 4),
    }  # fmt: skip


def test_scores_keep_the_epoch_they_are_of() -> None:
    far = Training()
    far.write(line(0), line(4, mAP=0.25), line(5, lr=3e-4, images_per_second=812.3, rate_of_decay=0.5))
    latest = far.watch().look().latest
    assert latest["mAP"] == ("25.0%", 4)
    assert latest["learning rate"] == ("3.00e-04", 5)
    assert latest["rate of decay"] == ("0.5", 5)
    assert latest["images a second"] == ("812", 5)


def test_quiet_is_said_and_taken_back() -> None:
    far = Training()
    far.write(line(0), line(1), line(2))
    watch = far.watch(quiet_after=3)
    assert watch.look().state == "training"
    far.now += 3 * 100 + 59
    assert watch.look().state == "training"
    far.now += 2
    quiet = watch.look()
    assert quiet.state == "quiet"
    assert quiet.words.startswith("QUIET at epoch 2 of 10: the last line came 6 min ago, an epoch takes 100 s")
    far.write(line(3))
    assert watch.look().state == "training"


def test_an_evaluation_counts_as_part_of_an_epoch() -> None:
    far = Training()
    far.write(line(0), line(4, eval_seconds=1000.0))
    far.now += 3 * 1100
    assert far.watch().look().state == "training"


def test_before_an_epoch_was_timed_an_hour_is_waited() -> None:
    far = Training()
    far.write(line(0))
    far.now += 3590
    assert far.watch().look().state == "training"
    far.now += 20
    assert "no epoch has ended yet" in far.watch().look().words


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_a_wrong_clock_is_no_alarm_once_a_line_has_come(ahead: float) -> None:
    far = Training()
    far.write(line(0), line(1))
    watch = far.watch(ahead)
    first = watch.look()  # a clock that is ahead cannot be told from a silence yet; one that is behind can
    assert first.state == ("quiet" if ahead > 0 else "training")
    assert first.silence == max(0, ahead)
    for epoch in range(2, 5):
        far.now += 100
        far.write(line(epoch))
        far.now += 5
        assert watch.look().state == "training"
    far.now += 3 * 100 + 60 + 60 + 10  # what the clock's lead is known to: a look and what the disk holds back
    assert watch.look().state == "quiet"


def test_a_disk_that_shows_old_files_is_no_alarm() -> None:
    far = Training()
    far.write(line(0), line(1), line(2))
    watch = far.watch()
    watch.look()
    for epoch in range(3, 9):
        far.now += 100
        far.write(line(epoch))
        old, far.now = far.now, far.now + 55  # this computer sees it 55 s late, having looked in vain
        watch._read, seen = lambda: False, watch._read
        assert watch.look().state == "training"
        watch._read = seen
        far.now += 1
        assert watch.look().silence == pytest.approx(far.now - old)
        far.now = old


def test_half_written_and_vanished_files_leave_what_was_known() -> None:
    far = Training()
    path = far.run.path / "metrics.jsonl"
    far.write(line(0), line(1), line(2))
    watch = far.watch()
    watch.look()
    far.now += 100
    path.write_text("".join(json.dumps(line(e)) + "\n" for e in range(4)) + '{"epoch": 4, "lo')
    far.touch("metrics.jsonl")
    assert [row["epoch"] for row in watch.look().history] == [0, 1, 2, 3]
    far.now += 1
    for damaged in (b"", b"\xff\xfe", b'{"epoch'):
        path.write_bytes(damaged)
        far.touch("metrics.jsonl")
        assert len(watch.look().history) == 4
    path.unlink()
    (far.run.path / "params.json").write_text('{"epo')
    assert watch.look().words.startswith("epoch 3, the last line came 1 s ago")


def test_a_run_that_was_started_anew_is_followed_from_its_beginning() -> None:
    far = Training()
    far.write(line(0), line(1), line(2))
    watch = far.watch()
    watch.look()
    far.now += 10
    far.rows = []
    far.write(line(0))
    assert len(watch.look().history) == 1


def test_the_end_is_said_for_all_epochs_and_for_fewer() -> None:
    far = Training(epochs=2)
    far.write(line(0), line(1))
    assert far.watch().look().state == "training"
    far.now += 5
    far.run.add_result("toy", {"mAP": 0.5})  # stopped early, and content with it
    far.touch("result.json")
    assert far.watch().look().state == "ended"
    far.now += 5
    far.write()  # goes on after all: result.json is of the time before
    assert far.watch().look().state == "training"
    far.write(line(1) | {"stopped": "no better mAP than 50.0% of epoch 1 in 3 evaluations"})
    assert "0 s ago: no better mAP than 50.0%" in far.watch().look().words
    far.write(line(2))
    far.now += 1e6
    assert far.watch().look().words == "ended with epoch 2 of 2, 11 d 13 h ago"


def test_a_run_that_is_tested_while_it_trains_has_not_ended() -> None:
    far = Training()
    far.state("training")
    far.write(line(0), line(1))
    far.now += 5
    far.run.add_result("toy", {"mAP": 0.5})
    far.touch("result.json")
    assert far.watch().look().state == "training"
    far.now += 3 * 100 + 60
    assert far.watch().look().state == "quiet"  # as after a kill, which leaves the state as it is
    far.state("ended", epoch=1)
    assert far.watch().look().state == "ended"


def test_a_notebook_that_fails_after_training_does_not_make_the_run_a_failure() -> None:
    far = Training()
    for state, name, found in (
        ("ended", "ranklist", "ended"),
        ("ended", "train", "ended"),
        ("training", "ranklist", "training"),
        ("training", "train", "failed"),  # its kernel was killed, or it would have written "failed"
    ):
        far.state(state)
        far.write(line(0), line(1))
        far.now += 1
        fail(far, "no such query", name)
        assert far.watch().look().state == found, (state, name)
        (far.run.path / "notebooks" / f"{name}.failed.ipynb").unlink()
    fail(far, "the kernel died", "train")
    far.now += 1
    far.state("training")  # it was resumed
    assert far.watch().look().state == "training"


def test_a_training_that_failed_says_why() -> None:
    far = Training()
    far.state("failed", error="ValueError: a batch of 9 people needs 9 different people")
    words = "failed before the first epoch: ValueError: a batch of 9 people needs 9 different people"
    assert far.watch().look().words == words
    far.write(line(0), line(1))
    far.state("failed", error="interrupted")
    far.now += 1e6
    assert far.watch().look().words == "failed after epoch 1 of 10: interrupted"
    far.state("training")
    (far.run.path / "run.json").write_text('{"state": "fai')
    assert far.watch().look().state == "quiet"


def fail(far: Training, message: str, name: str = "train") -> None:
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("error", ename="OSError", evalue=message)])
    folder = far.run.path / "notebooks"
    folder.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{name}.failed.ipynb")
    far.touch(f"notebooks/{name}.failed.ipynb")


def test_a_failure_is_said_in_its_own_words_until_it_is_mended() -> None:
    far = Training()
    far.write(line(0), line(1))
    far.now += 1
    fail(far, "\x1b[31mthe disk is full:\nlast.pt was not written\x1b[0m")
    assert far.watch().look().words == "failed after epoch 1 of 10: OSError: the disk is full: last.pt was not written"
    far.now += 1
    far.write(line(2))
    assert far.watch().look().state == "training"


def test_a_batch_that_gave_no_number_is_a_failure() -> None:
    far = Training()
    far.write(line(0), line(1))
    far.now += 1
    far.run.write_json("bad_batch.json", {})
    far.touch("bad_batch.json")
    assert far.watch().look().words.endswith("the loss or a gradient became NaN or infinite, see bad_batch.json")
    far.now += 1
    far.write(line(2))
    assert far.watch().look().state == "training"


def test_following_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Training(epochs=3)
    shown: list[str] = []

    def sleep(seconds: float) -> None:
        far.now += seconds
        far.write(line(len(far.rows)))

    monkeypatch.setattr("reidlib.workbook.monitor.time.sleep", sleep)
    last = follow(far.watch(), lambda status: shown.append(status.state), 20.0)
    assert shown == ["waiting", "training", "training", "training", "ended"]
    assert last.state == "ended"
    shown.clear()
    follow(Training(epochs=9).watch(), lambda status: shown.append(status.state))
    assert len(shown) == 1  # no following asked for: one look


def test_interrupting_ends_the_watching_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reidlib.workbook.monitor.time.sleep", stop)
    far = Training()
    far.write(line(0))
    assert follow(far.watch(), lambda status: None, 1.0).state == "training"


def test_watching_writes_nothing() -> None:
    far = Training()
    far.write(line(0), line(1))
    before = {p: p.stat().st_mtime_ns for p in far.run.path.rglob("*")}
    status = far.watch().look()
    assert {p: p.stat().st_mtime_ns for p in far.run.path.rglob("*")} == before
    assert "<td>loss</td><td>5</td>" in status._repr_html_()
    assert "loss" in str(status)


def test_paces_are_medians_of_the_latest() -> None:
    rows = [line(0, eval_seconds=7.0), *(line(e, seconds=1000.0) for e in (1, 2, 3)), *(line(e) for e in range(4, 13))]
    assert pace(rows) == (100.0, 7.0)
    assert pace(rows[:1]) == (0.0, 7.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (5900, "98 min"), (11100, "3 h 05 min"), (190_000, "2 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("settings", [{"quiet_after": 0}, {"stale": -1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="quiet_after must be above 0"):
        Watch(Run("x"), **settings)
