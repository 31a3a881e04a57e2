"""Corrected labels: applied strictly, counted, and never to another edition of the dataset."""

from pathlib import Path

import pytest

from reidlib import load_dataset
from reidlib.data.patches import Correction, apply_corrections, read_corrections, write_corrections


@pytest.fixture
def data(tiny):
    return tiny


def row(data, sample, new: str, verdict: str = "other") -> Correction:
    return Correction(data.relative(sample), str(sample.pid), new, verdict, "seen")


def test_labels_change_in_their_place_and_nowhere_else(data, tmp_path: Path) -> None:
    first, second = data.gallery[0], next(s for s in data.gallery if s.pid > 0 and s.pid != data.gallery[0].pid)
    other = next(s.pid for s in data.query if s.pid != data.query[1].pid)
    rows = [
        row(data, second, "junk", "junk"),
        row(data, data.query[0], str(data.query[0].pid), "same"),
        row(data, data.query[1], str(other)),
        row(data, data.train[0], "junk", "junk"),
    ]
    write_corrections(tmp_path / "fixes.csv", rows)
    found = load_dataset(data.name, patch=tmp_path / "fixes.csv")
    assert found.gallery == tuple(s._replace(pid=-1) if s == second else s for s in data.gallery)
    assert found.query[1].pid == other
    assert (found.query[0], *found.query[2:]) == (data.query[0], *data.query[2:])
    assert found.train == data.train[1:]
    assert found.notes[-1] == "3 labels corrected by fixes.csv"
    assert "fixes.csv" in found.stamp()["version"]
    assert found.fingerprint() != data.fingerprint()
    assert first in found.gallery


def test_a_later_row_of_an_image_replaces_an_earlier_one(data, tmp_path: Path) -> None:
    rows = [row(data, data.query[0], "junk", "junk"), row(data, data.query[0], str(data.query[0].pid), "same")]
    write_corrections(tmp_path / "fixes.csv", rows)
    assert read_corrections(tmp_path / "fixes.csv") == rows[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "query/none.jpg"}, "has no image query/none.jpg"),
        ({"pid": "4711"}, "is labelled .* not 4711"),
        ({"new_pid": "4711"}, "nobody in the test images of synthetic-tiny is called 4711"),
        ({"new_pid": "train"}, "nobody in the test images"),
        ({"verdict": "junk"}, "the verdict junk goes with the new_pid junk"),
        ({"verdict": "maybe"}, "line 2: 5 columns with a verdict of same, other, swap, junk are needed"),
    ],
)
def test_what_does_not_fit_is_an_error(data, tmp_path: Path, change, message) -> None:
    other = next(s.pid for s in data.query if s.pid != data.query[0].pid)
    if change.get("new_pid") == "train":
        change = {"new_pid": str(data.train[0].pid)}
    write_corrections(tmp_path / "fixes.csv", [row(data, data.query[0], str(other))._replace(**change)])
    with pytest.raises(ValueError, match=message):
        apply_corrections(data, tmp_path / "fixes.csv")


def test_an_image_that_is_corrected_twice_and_a_strange_table_are_errors(data, tmp_path: Path) -> None:
    line = ",".join(row(data, data.query[0], "junk", "junk"))
    (tmp_path / "twice.csv").write_text(f"path,pid,new_pid,verdict,note\n{line}\n{line}\n")
    with pytest.raises(ValueError, match=r"row 3: .* was corrected above"):
        apply_corrections(data, tmp_path / "twice.csv")
    (tmp_path / "strange.csv").write_text("path,pid\na,1\n")
    with pytest.raises(ValueError, match="the columns are path,pid,new_pid,verdict,note, not"):
        apply_corrections(data, tmp_path / "strange.csv")
