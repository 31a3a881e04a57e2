"""Notebooks in batch: parameters are checked, failures are plain, pages are made."""

import json
import os
from pathlib import Path

import pytest
from test_run_table import Tags, requests

from reidlib.workbook import batch
from reidlib.workbook.pages import to_html
from reidlib.workbook.runs import Run

nbformat = pytest.importorskip("nbformat")


def write(
    folder: Path, name: str, *cells: str, parameters: str = '# Parameters\nrun: str = ""  # run folder\n'
) -> None:
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    )
    book.cells = [nbformat.v4.new_code_cell(parameters), *map(nbformat.v4.new_code_cell, cells)]
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small notebooks in place of the real ones: `make` creates the run, `look` reads it."""
    folder = tmp_path / "books"
    folder.mkdir()
    monkeypatch.setattr(batch, "NOTEBOOKS", folder)
    write(
        folder,
        "make",
        "from reidlib import Run\nr = Run.create(run, {'epochs': epochs, 'names': names, 'code': code}).begin()",
        "r.add_result('toy', {'mAP': lr, 'rank1': 0.5, 'untrained': {'mAP': 0.01}})",
        parameters=(
            'run: str = ""  # run folder\nepochs: int = 3  # passes\nlr: float = 0.1  # rate\n'
            'names: list = ["a"]  # some\ncode: str = "1"  # text\nfast: bool = False  # or slow\n'
        ),
    )
    write(folder, "look", "print('seen')", "# first a word\nassert not fail, 'this is wrong'", parameters=(
        'run: str = ""  # run folder\nfail: bool = False  # whether to\n'
    ))  # fmt: skip
    return folder


def test_none_is_taken_where_it_is_what_the_notebook_says(notebooks: Path) -> None:
    write(notebooks, "maybe", "1", parameters="epochs: int = None  # passes\nname: str = None  # or none\n")
    given = {"epochs": "3", "name": "None"}
    assert batch.sort_parameters(["maybe"], given) == {"maybe": {"epochs": 3, "name": None}}
    with pytest.raises(ValueError, match="parameter 'epochs' is int, got 'None'"):
        batch.sort_parameters(["make"], {"epochs": "None"})


def test_each_notebook_gets_what_it_knows(notebooks: Path) -> None:
    given = {"epochs": "7", "run": "r", "fail": "false"}
    assert batch.sort_parameters(["make", "look"], given) == {
        "make": {"epochs": 7, "run": "r"},
        "look": {"run": "r", "fail": False},
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make", "-p", "epoch", "3"], "unknown parameter of make 'epoch': did you mean 'epochs'"),
        (["mak"], "unknown notebook 'mak': did you mean 'make'"),
        (["make", "-p", "epochs", "three"], "parameter 'epochs' is int, got 'three'"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_runs(notebooks: Path, capsys, arguments: list[str], said: str) -> None:
    assert batch.main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not Run.folder("x").parent.exists()


def test_a_run_leaves_notebooks_pages_and_a_table(notebooks: Path, capsys) -> None:
    arguments = ["make", "look", "-p", "run", "r", "-p", "lr", "0.25", "-p", "code", "<b>&", "-p", "names", "x,y"]
    arguments += ["-p", "epochs", "3"]
    assert batch.main(arguments) == 0
    run = Run.folder("r")
    assert {p.name for p in (run / "notebooks").iterdir()} == {"make.ipynb", "make.html", "look.ipynb", "look.html"}
    assert json.loads((run / "params.json").read_text()) == {"epochs": 3, "names": ["x", "y"], "code": "<b>&"}
    pages = {name: (run / "notebooks" / f"{name}.html").read_text() for name in ("make", "look")}
    assert "seen" in pages["look"]
    assert "<title>r · make</title>" in pages["make"]
    words = "\n".join(filter(None, Tags(pages["make"]).words))
    assert "toy\nRank-1 50.0, mAP 25.0" in words
    own, _, others = words.partition("parameters as by default")
    assert "lr\n0.25\n0.1\nrate" in own
    assert "code\n<b>&\n1\ntext" in own
    assert "epochs\n3\npasses" in others  # given, and the same as the default
    for page in pages.values():
        assert requests(page) == []
        assert not [about for tag, about in Tags(page).tags if tag == "details" and "open" in about]
    out = capsys.readouterr().out
    assert "toy" in out
    assert "25.0%" in out
    assert "1.0%" in out
    assert str(run) in out


def test_a_failing_cell_is_named_and_the_exit_code_is_not_zero(notebooks: Path, capsys) -> None:
    assert batch.main(["make", "look", "-p", "run", "r", "-p", "fail", "true"]) == 1
    err = capsys.readouterr().err
    assert "look.ipynb failed, cell" in err
    assert "AssertionError: this is wrong" in err
    assert "\x1b" not in err
    folder = Run.folder("r") / "notebooks"
    assert str(folder / "look.failed.html") in err
    assert {p.name for p in folder.iterdir()} == {
        "make.ipynb", "make.html", "look.failed.ipynb", "look.failed.html",
    }  # fmt: skip
    page = (folder / "look.failed.html").read_text()
    (opened,) = (about for tag, about in Tags(page).tags if tag == "details" and "open" in about)
    assert opened["id"] == "error"
    assert page.index('id="error"') < page.index("first a word") < page.rindex("this is wrong")
    assert 'location.hash = "error"' in page
    assert requests(page) == []
    assert 'href="r/notebooks/look.failed.html#error"' in (Run.folder("r").parent / "index.html").read_text()
    assert batch.main(["look", "-p", "run", "r"]) == 0
    assert {p.name for p in folder.iterdir()} == {"make.ipynb", "make.html", "look.ipynb", "look.html"}


def test_a_kernel_that_dies_is_said(notebooks: Path, capsys) -> None:
    write(notebooks, "dies", "import os\nos._exit(9)")
    assert batch.main(["dies", "-p", "run", "gone"]) == 1
    assert "dies.ipynb failed: its kernel died" in capsys.readouterr().err
    assert not Run.folder("gone").exists()


def test_tags_hide_cells_from_pages() -> None:
    book = nbformat.v4.new_notebook()
    for tag in ("remove_cell", "remove_input", "keep"):
        cell = nbformat.v4.new_code_cell(f"source_{tag}")
        cell.outputs = [nbformat.v4.new_output("stream", text=f"output_{tag}")]
        cell.metadata["tags"] = [tag]
        book.cells.append(cell)
    page = to_html(book, "page")
    assert "source_keep" in page
    assert "output_remove_input" in page
    assert not any(hidden in page for hidden in ("source_remove_cell", "output_remove_cell", "source_remove_input"))


def notebook_parameters(name: str) -> list[str]:
    book = nbformat.read(batch.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    return [line.partition(":")[0] for line in cell.source.splitlines()]


def test_the_real_notebooks_declare_their_parameters(capsys) -> None:
    for name in ("train", "test", "ranklist", "gradcam", "tsne"):
        assert batch.main(["--list", name]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("run: str") for line in lines)
        assert all("  # " in line for line in lines)
        declared = notebook_parameters(name)
        assert [line.partition(":")[0] for line in lines if line[0] != " "] == declared
    assert batch.main(["--list", "train"]) == 0
    assert "  triplet_weight: float = 0.0  # weight of the triplet loss" in capsys.readouterr().out


def test_a_setting_that_the_notebook_does_not_declare_goes_into_its_settings() -> None:
    values = batch.sort_parameters(["train", "test"], {"triplet_weight": "1", "epochs": "3", "milestones": "1,2"})
    assert values == {"train": {"epochs": 3, "settings": {"triplet_weight": 1.0, "milestones": [1, 2]}}, "test": {}}
    both = batch.sort_parameters(["train"], {"settings": "{margin: 0.5}", "clip": "1"})
    assert both["train"]["settings"] == {"margin": 0.5, "clip": 1.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "triplet_wait", "1"], "unknown parameter of train 'triplet_wait': did you mean 'triplet_weight'"),
        (["-p", "triplet_weight", "x"], "parameter 'triplet_weight' is float, got 'x'"),
        (["-p", "model", "osnet_x0_52"], "unknown model 'osnet_x0_52'"),
        (["-p", "settings", "{lr: 1"], "parameter 'settings': '{lr: 1' is not valid YAML"),
        (["-p", "epochs", "0"], "epochs must be at least 1, got 0"),
        (["-p", "scaled", "0"], "scaled must be at least 1, got 0"),
        (["-p", "seed", "-1"], "seed must be at least 0, got -1"),
        (["-p", "epochs", "1:30"], "parameter 'epochs' is int, got '1:30'"),
        (["-p", "epochs", "1", "-p", "epochs", "2"], "the parameter 'epochs' is given twice"),
        (["-p", "epochs", "1", "-p", "settings", "{epochs: 2}"], "'epochs' is given twice"),
    ],
)
def test_a_wrong_training_is_refused_before_a_kernel_starts(
    capsys, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(batch, "run_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    assert batch.main(["train", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not Run.folder("x").parent.exists()


def test_paths_start_at_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A kernel runs in notebooks/: whatever is relative would mean another place there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "mine.py").touch()
    monkeypatch.setenv("REID_RUNS", "myruns")
    monkeypatch.setenv("REID_DATA_PATHS", "paths.yaml")
    (tmp_path / "paths.yaml").write_text("synthetic: data\n")
    seen = {}

    def run_notebook(name: str, values: dict, **_) -> None:
        seen[name] = values | {key: os.environ[key] for key in ("REID_RUNS", "REID_DATA_PATHS")}

    monkeypatch.setattr(batch, "run_notebook", run_notebook)
    monkeypatch.setattr(batch, "check_job", lambda *_: None)
    call = ["-p", "run", "./here", "-p", "init", "w.safetensors", "-p", "plugins", "mine.py"]
    assert batch.main(["train", *call, "-p", "dataset", "market1501"]) == 0
    assert seen["train"] == {
        "run": str(tmp_path / "here"),
        "init": str(tmp_path / "w.safetensors"),
        "plugins": str(tmp_path / "mine.py"),
        "dataset": "market1501",
        "REID_RUNS": str(tmp_path / "myruns"),
        "REID_DATA_PATHS": str(tmp_path / "paths.yaml"),
    }
    out = capsys.readouterr().out
    assert f"data: {tmp_path / 'paths.yaml'}\nruns: {tmp_path / 'myruns'}" in out
    assert batch.main(["train", "-p", "run", "r", "-p", "init", "runs/first"]) == 0
    assert seen["train"]["init"] == "runs/first"  # a run, wherever runs are


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["test", "-p", "run", "frist"], "no trained run at"),
        (["monitor", "-p", "run", "frist"], "no run at"),
        (["test", "-p", "model", "osnet_x1_O", "-p", "weights", "market1501"], "unknown model 'osnet_x1_O'"),
    ],
)
def test_a_run_or_a_model_that_does_not_exist_is_noticed_before_a_kernel_starts(
    capsys, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(batch, "run_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    assert batch.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_training_without_a_name_gets_that_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(batch, "run_notebook", lambda name, values, **_: ran.append(values["run"]))
    call = ["train", "test", "-p", "dataset", "synthetic-tiny", "-p", "epochs", "2"]
    assert batch.main(call) == 0
    Run.create(ran[0], batch._job("train", {"dataset": "synthetic-tiny", "epochs": 2}).params).begin()
    assert batch.main(call) == 0
    assert batch.main([*call, "-p", "lr", "0.01"]) == 0
    assert ran == ["osnet_x0_25-synthetic-tiny"] * 4 + ["osnet_x0_25-synthetic-tiny-2"] * 2


def test_the_console_shows_what_a_training_prints_and_no_bar(notebooks: Path, capsys) -> None:
    write(notebooks, "train", "print('epoch 1/2  loss 2.00')", "print('epoch 2/2  loss 1.00')")
    assert batch.main(["train", "look", "-p", "run", "r"]) == 0
    said = capsys.readouterr()
    assert "\nepoch 1/2  loss 2.00\nepoch 2/2  loss 1.00\n" in said.out
    assert "seen" not in said.out  # of the others the pages tell
    assert said.err == ""  # not a terminal


def test_pages_of_one_run_on_several_datasets_stand_side_by_side(notebooks: Path) -> None:
    declared = 'run: str = ""  # run folder\ndataset: str = ""  # to look at\noutput: str = ""  # elsewhere\n'
    write(notebooks, "show", "print(dataset)", parameters=declared)
    run = Run.create("r", {}).begin()
    assert batch.page_name("show", {}, run) == "show"  # nothing is trained: there is no dataset of its own
    run.write_json("model.json", {"name": "m", "trained_on": "market1501"})
    for data in ("market1501", "msmt17"):
        batch.run_notebook("show", {"run": "r", "dataset": data})
    assert batch.page_name("show", {}, run) == "show-market1501"
    pages = {p.name: p.read_text() for p in (run.path / "notebooks").glob("*.html")}
    assert set(pages) == {"show-market1501.html", "show-msmt17.html"}
    for page in pages.values():  # the first too: each links to all others, and to the index
        links = {about["href"] for tag, about in Tags(page).tags if tag == "a"}
        others = set(pages) - {name for name, text in pages.items() if text == page}
        assert others | {"../../index.html"} <= links


def test_a_run_whose_kernel_died_is_failed_and_leaves_a_page(notebooks: Path, capsys) -> None:
    write(notebooks, "dies", "from reidlib import Run\nr = Run.create(run, {}).begin()\nr.write_state('training')",
          "import os\nos._exit(9)")  # fmt: skip
    assert batch.main(["dies", "-p", "run", "r"]) == 1
    assert Run(Run.folder("r")).state["state"] == "failed"
    assert "its kernel died" in (Run.folder("r") / "notebooks" / "dies.failed.html").read_text()
    assert "dies.failed.html" in capsys.readouterr().err
