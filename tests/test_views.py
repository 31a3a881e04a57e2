"""The helpers that notebooks share."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reidlib
from reidlib import plots
from reidlib.data.datasets import ReIDDataset, Sample
from reidlib.data.images import read_image
from reidlib.evaluation import Features
from reidlib.training import Recipe
from reidlib.workbook import views

nbformat = pytest.importorskip("nbformat")
AP = [0.5, np.nan, 0.9, 0.1, 0.1, 1.0]


@pytest.mark.parametrize(
    ("show", "count", "picked", "words"),
    [
        ("worst", 3, [3, 4, 0], "The 3 worst of 6 queries by average precision, worst first"),
        ("best", 2, [5, 2], "The 2 best of 6 queries by average precision, best first"),
        ("best", 50, [5, 2, 0, 3, 4], "The 5 best of 6"),
        ("random", 2, None, r"2 of 6 queries drawn at random \(seed 0\)"),
    ],
)
def test_choose_queries(show: str, count: int, picked: list[int] | None, words: str) -> None:
    got, order = views.choose_queries(AP, show, count)
    if picked is None:
        assert got == sorted(got)
        assert 1 not in got
    else:
        assert got == picked
    assert re.match(words, order)
    assert views.choose_queries(torch.tensor(AP), show, count) == (got, order)


def test_chosen_queries_keep_their_order_and_may_lack_a_match() -> None:
    assert views.choose_queries(AP, "chosen", 9, chosen=[4, 1])[0] == [4, 1]
    for chosen in ([6], [], [-1]):
        with pytest.raises(ValueError, match="query indices from 0 to 5"):
            views.choose_queries(AP, "chosen", 9, chosen=chosen)
    with pytest.raises(ValueError, match="did you mean 'worst'"):
        views.choose_queries(AP, "worse", 3)
    with pytest.raises(ValueError, match="nothing to show: 0 queries have a match"):
        views.choose_queries([np.nan], "best", 3)


def test_choose_people_takes_all_samples_of_some_people() -> None:
    samples = [Sample(Path(str(i)), pid, 1) for i, pid in enumerate([-1, 0, 3, 4, 3, 5, 0, 4])]
    picked = views.choose_people(samples, 2, seed=1)
    pids = {samples[i].pid for i in picked}
    assert len(pids) == 2
    assert not pids & {-1, 0}
    assert picked == [i for i, s in enumerate(samples) if s.pid in pids]
    assert len(views.choose_people(samples, 99)) == 5


def test_rank_rows_carry_the_cosine_similarity_of_each_pair(tiny) -> None:
    generator = torch.Generator().manual_seed(0)

    def features(samples: tuple) -> Features:
        ids = torch.zeros(len(samples), dtype=torch.int64)
        return Features(torch.randn(len(samples), 8, generator=generator), ids, ids)

    query, gallery = features(tiny.query), features(tiny.gallery)
    ranked = torch.stack([torch.arange(3) + i for i in range(len(query))])
    ranked[2, 2] = -1
    queries, _, rows, similarity = views.rank_rows(tiny, query, gallery, ranked, [2, 0])
    assert queries == [tiny.query[2], tiny.query[0]]
    assert rows.tolist() == [[2, 3, -1], [0, 1, 2]]
    expected = torch.nn.functional.cosine_similarity(query.feats[0], gallery.feats[1], dim=0)
    assert similarity[1, 1].item() == pytest.approx(expected.item(), abs=1e-6)


def test_cams_are_those_of_the_images_as_the_run_reads_them(tiny: ReIDDataset) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = reidlib.create_model("osnet_x0_25", num_classes=2, input_size=(64, 32)).eval()
    rows = list(tiny.query[:2]), tiny.gallery, torch.tensor([[3, 4, 5], [6, 7, -1]]), torch.zeros(2, 3)
    feature, query, match = views.cams(model, *rows, interpolation="bicubic", method="gradcam")
    assert [maps.shape[:-2] for maps in (feature, query, match)] == [(2,), (2, 3), (2, 3)]
    left, right = (
        read_image(s.path, (64, 32), interpolation="bicubic")[None] for s in (tiny.query[1], tiny.gallery[6])
    )
    want = plots.similarity_cam(model, left, right, method="gradcam")
    for got, pair in zip((query, match), want, strict=True):
        torch.testing.assert_close(got[1, 0], pair[0], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(views.cams(model, *rows, method="gradcam")[0], feature)


def test_image_cams_and_the_parts_of_a_network(tiny: ReIDDataset) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = reidlib.create_model("hacnn", num_classes=2).eval()
    samples = tiny.query[:2]
    parts = views.cam_parts(model)
    assert parts == {"branches": {"global": {"branch": "global"}, "local": {"branch": "local"}}}
    images = torch.stack([read_image(s.path, model.input_size) for s in samples])
    for how in ({}, *parts["branches"].values()):
        torch.testing.assert_close(views.image_cams(model, samples, **how), plots.feature_cam(model, images, **how))
    assert views.image_cams(model, samples).sum((1, 2)).min() > 0.4, "half of the similarity is the global branch's"
    assert views.cam_parts(model, "rollout") == {}


def test_paths_are_told_from_the_root() -> None:
    assert views.below("/data/m/query/a.jpg", "/data/m") == "query/a.jpg"
    assert views.below("/else/a.jpg", "/data/m") == "/else/a.jpg"


def test_epoch_lines_and_tables() -> None:
    recipe = Recipe(epochs=12, eval_every=4)
    history = [{"epoch": 0, "mAP": 0.01, "eval_seconds": 4.0}]
    history += [{"epoch": epoch, "loss": 4.5 / epoch, "seconds": 8.0} for epoch in (1, 2, 3)]
    # nine epochs and the evaluations after 4, 8 and 12
    assert views.epoch_line(history, recipe) == "epoch  3/12  loss 1.50  8 s, 84 s left"
    history.append({"epoch": 4, "loss": 1, "mAP": 0.428, "rank1": 0.594, "mINP": 0.1, "seconds": 8, "eval_seconds": 4})
    assert views.epoch_line(history, recipe) == "epoch  4/12  loss 1.00  mAP 42.8  Rank-1 59.4  12 s, 72 s left"
    history.append({"epoch": 12, "top1": 0.5, "top5": 1.0, "seconds": 600.0})
    assert views.epoch_line(history, recipe) == "epoch 12/12  top-1 50.0  top-5 100.0  10 min"
    history[-1]["stopped"] = "no better"
    assert views.epoch_line(history, recipe).endswith("100.0  stopped: no better")
    table = views.percent_table({"a": {"rank1": 0.123}, "b": {"mAP": 1.0}})
    assert table.loc["a", "Rank-1"] == "12.3"
    assert table.loc["a", "mAP"] == ""
    assert table.loc["b", "mAP"] == "100.0"


# Interactive or not

CELLS = [
    "from reidlib.workbook import views",
    "print(views.is_interactive())",
    "live = views.LiveFigure(lambda i: f'live {i}', 'soon')",
    "print('epoch')\nlive(1)\nlive(2)",
    "import ipywidgets\nslider = ipywidgets.IntSlider(3, 0, 4)",
    "slider.observe(lambda change: live(change['new']), 'value')",
]
PLAIN = [("stream", "False\n"), ("stream", "epoch\n")]


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front end that sets no session name, VS Code for one."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


@pytest.fixture
def kernel(no_session: None) -> Iterator[Any]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def outputs(client: Any, request: str) -> Iterator[tuple[str, Any]]:
    """What the kernel publishes in answer to a request: (kind of message, its text or its view)."""
    while (message := client.get_iopub_msg(timeout=60))["msg_type"] != "status" or (
        message["content"]["execution_state"] != "idle" or message["parent_header"].get("msg_id") != request
    ):
        content = message["content"]
        assert message["msg_type"] != "error", content
        if message["msg_type"] == "stream":
            yield "stream", content["text"]
        elif "data" in content and message["msg_type"] != "comm_msg":
            if message["msg_type"] != "comm_open":
                view = content["data"].get("application/vnd.jupyter.widget-view+json")
                yield message["msg_type"], view["model_id"] if view else content["data"]["text/plain"]
            elif content["data"]["state"].get("_model_name") == "IntSliderModel":
                yield "slider", content["comm_id"]


def test_a_front_end_without_a_session_name_gets_live_figures_and_widgets(kernel: Any) -> None:
    """And the same kernel gives plain figures to what executes its cells without asking for input."""
    found = [pair for cell in CELLS for pair in outputs(kernel, kernel.execute(cell, allow_stdin=True))]
    kinds = [kind for kind, _ in found]
    assert kinds == [
        *("stream", "display_data", "stream", "update_display_data", "update_display_data"),
        "slider",
    ]  # the figure's place is above what the cell that renews it prints
    assert [text for kind, text in found if kind not in ("slider", "display_data")] == [
        "True\n", "epoch\n", "'live 1'", "'live 2'",
    ]  # fmt: skip
    slider = dict(found)["slider"]
    move = {"comm_id": slider, "data": {"method": "update", "state": {"value": 4}, "buffer_paths": []}}
    message = kernel.session.msg("comm_msg", move)
    kernel.shell_channel.send(message)
    assert ("update_display_data", "'live 4'") in outputs(kernel, message["header"]["msg_id"])

    plain = [pair for cell in CELLS for pair in outputs(kernel, kernel.execute(cell, allow_stdin=False))]
    assert [pair for pair in plain if pair[0] != "slider"] == PLAIN


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook of CELLS, to be executed in the environment of a front end's own kernel."""
    monkeypatch.setenv("JPY_SESSION_NAME", "from-a-terminal-in-jupyterlab.ipynb")
    path = tmp_path / "book.ipynb"
    cells = [*CELLS, "assert not views.is_interactive()"]
    nbformat.write(nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells))), path)
    return path


def test_papermill_and_nbconvert_get_plain_figures(book: Path) -> None:
    """Whatever the environment says."""
    import papermill
    from nbconvert.preprocessors import ExecutePreprocessor

    milled = papermill.execute_notebook(str(book), None, kernel_name="python3", progress_bar=False)
    converted, _ = ExecutePreprocessor().preprocess(nbformat.read(book, as_version=4), {})
    for executed in (milled, converted):
        found = [output for cell in executed.cells for output in cell.outputs]
        texts = [o.text if o.output_type == "stream" else o.data["text/plain"] for o in found]
        assert [(o.output_type, text) for o, text in zip(found, texts, strict=True)] == PLAIN


@pytest.mark.slow
def test_nbval_gets_plain_figures(book: Path) -> None:
    nbval = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", str(book)]
    done = subprocess.run(nbval, capture_output=True, text=True, cwd=book.parent)
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


def test_outside_a_kernel_nothing_is_interactive(capsys: pytest.CaptureFixture) -> None:
    assert not views.is_interactive()
    drawn: list[int] = []
    views.LiveFigure(drawn.append)(1)
    assert drawn == []
    assert capsys.readouterr().out == ""
