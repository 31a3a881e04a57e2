"""Notebooks in batch: parameters are checked, failures are plain, pages are made."""

import json
from pathlib import Path

import nbformat
import pytest

from reidlib.workbook import batch
from reidlib.workbook.runs import Run


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


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "20", 20),
        ("float", "1e-3", 1e-3),
        ("float", "2", 2.0),
        ("str", "0123", "0123"),
        ("bool", "true", True),
        ("list", "[1, 2]", [1, 2]),
        ("list", "random_flip,random_crop", ["random_flip", "random_crop"]),
        ("list", "one", ["one"]),
        ("list[str]", "[a]", ["a"]),
    ],
)
def test_values_have_the_declared_type(kind: str, text: str, value: object) -> None:
    got = batch.read_value("p", text, kind)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(("kind", "text"), [("int", "3.5"), ("int", "true"), ("float", "fast"), ("bool", "2")])
def test_values_of_another_type_are_refused(kind: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'p' is {kind}, got '{text}'"):
        batch.read_value("p", text, kind)


def test_none_is_taken_where_it_is_what_the_notebook_says(notebooks: Path) -> None:
    assert batch.read_value("p", "None", "int", optional=True) is None
    assert batch.read_value("p", "None", "str") == "None"
    with pytest.raises(ValueError, match="parameter 'p' is int, got 'None'"):
        batch.read_value("p", "None", "int")
    write(notebooks, "maybe", "1", parameters="epochs: int = None  # passes\nname: str = None  # or none\n")
    given = {"epochs": "3", "name": "None"}
    assert batch.sort_parameters(["maybe"], given) == {"maybe": {"epochs": 3, "name": None}}


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
    arguments = ["make", "look", "-p", "run", "r", "-p", "lr", "0.25", "-p", "code", "007", "-p", "names", "x,y"]
    assert batch.main(arguments) == 0
    run = Run.folder("r")
    assert {p.name for p in (run / "notebooks").iterdir()} == {"make.ipynb", "make.html", "look.ipynb", "look.html"}
    assert json.loads((run / "params.json").read_text()) == {"epochs": 3, "names": ["x", "y"], "code": "007"}
    page = (run / "notebooks" / "look.html").read_text()
    assert "seen" in page
    out = capsys.readouterr().out
    assert "toy" in out
    assert "25.0%" in out
    assert "1.0%" in out
    assert str(run) in out


def test_a_failing_cell_is_named_and_the_exit_code_is_not_zero(notebooks: Path, capsys) -> None:
    assert batch.main(["make", "look", "-p", "run", "r", "-p", "fail", "true"]) == 1
    err = capsys.readouterr().err
    assert "look.ipynb failed in cell" in err
    assert "(`assert not fail, 'this is wrong'`)" in err
    assert "AssertionError: this is wrong" in err
    assert "\x1b" not in err
    folder = Run.folder("r") / "notebooks"
    assert {p.name for p in folder.iterdir()} == {"make.ipynb", "make.html", "look.failed.ipynb"}
    assert batch.main(["look", "-p", "run", "r"]) == 0
    assert not (folder / "look.failed.ipynb").exists()


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
    page = batch.to_html(book, "page")
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
        assert [line.partition(":")[0] for line in lines] == declared  # papermill skips a line that it cannot parse
