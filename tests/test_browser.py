"""JupyterLab in a real browser: open a notebook, run all its cells, see its figures and its slider."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_run_table import a_run

import reidlib
from reidlib import plots
from reidlib.plots.style import preview
from reidlib.workbook.clusters import VERDICTS
from reidlib.workbook.pages import write_pages
from reidlib.workbook.run_table import write_index
from reidlib.workbook.runs import Run

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Iterator[tuple[str, Path]]:
    """JupyterLab's address and the folder of notebooks that it serves: copies, so that running leaves no trace."""
    folder = tmp_path_factory.mktemp("lab")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        book = json.loads(path.read_text())
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        (folder / path.name).write_text(json.dumps(book))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += ["--IdentityProvider.token=secret", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    own = {"REID_DATA_PATHS": str(world / "data_paths.yaml"), "REID_RUNS": str(folder / "runs")}
    own |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/api?token=secret", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.25)
        yield url, folder
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def play() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield play


@pytest.fixture(scope="module")
def browser(play) -> Iterator:
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    chromium = play.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-component-update"])
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def webgl(play) -> Iterator:
    """Chromium that draws WebGL without a GPU."""
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    chromium = play.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield chromium
    chromium.close()


def start_all(browser, url: str, name: str):
    """Open notebook `name`, click Run › Run All Cells. The page."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{url}/lab/tree/{name}.ipynb?token=secret&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    # The indicator beside the kernel's name says idle before there is a kernel; the status bar does not.
    page.wait_for_selector(".jp-StatusBar-TextItem:has-text('| Idle')", timeout=60_000)
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    return page


def wait_until_all_ran(page, folder: Path, name: str, timeout: float) -> list[dict]:
    """Save notebook `name` until every cell of it has run; these cells."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        time.sleep(2)
        page.keyboard.press("Control+s")
        try:
            book = json.loads((folder / f"{name}.ipynb").read_text())
        except json.JSONDecodeError:  # read while JupyterLab was writing it
            continue
        cells = [c for c in book["cells"] if c["cell_type"] == "code"]
        wrong = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
        assert not wrong, f"{name}: {wrong[0]['ename']}: {wrong[0]['evalue']}"
        if all(c["execution_count"] for c in cells):
            return cells
    raise AssertionError(f"{name}: not all cells ran within {timeout} s")


def run_all(browser, url: str, folder: Path, name: str, timeout: float = 240) -> tuple:
    page = start_all(browser, url, name)
    return page, wait_until_all_ran(page, folder, name, timeout)


def shows_image(page) -> bool:
    """Whether an image of the notebook is on the screen, loaded and not empty."""
    image = page.locator(".jp-OutputArea img").first
    image.scroll_into_view_if_needed()
    return image.evaluate("e => e.complete && e.naturalWidth > 200")


@pytest.mark.timeout(600)
def test_run_all_works_in_jupyterlab(lab: tuple[str, Path], browser) -> None:
    url, folder = lab
    train = folder / "train.ipynb"
    quick = {"epochs: int = ": "1", "dataset: str = ": '\\"synthetic-tiny\\"'}
    text = train.read_text()
    for head, value in quick.items():
        before, _, after = text.partition(head)
        assert after, head
        text = before + head + value + after[after.index("  #") :]
    train.write_text(text)
    page, cells = run_all(browser, url, folder, "train")
    assert shows_image(page)
    assert "epoch 1/1" in json.dumps([cell["outputs"] for cell in cells])
    page.close()
    (run,) = (folder / "runs").iterdir()
    assert (run / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def trained(lab: tuple[str, Path], world: Path) -> Path:
    """A run of one epoch in the folder that JupyterLab serves."""
    folder = lab[1]
    params = {"run": "looked-at", "recipe": "toy", "dataset": "synthetic-tiny", "epochs": 1, "cpu": True}
    (folder / "params.json").write_text(json.dumps(params))
    own = {"REID_DATA_PATHS": str(world / "data_paths.yaml"), "REID_RUNS": str(folder / "runs")}
    command = [sys.executable, "-m", "reidlib.training", str(folder / "params.json")]
    subprocess.run(command, env=os.environ | own, check=True, capture_output=True)
    return folder / "runs" / "looked-at"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rank_lists_are_stepped_through_and_compared(lab, trained, browser, tmp_path: Path) -> None:
    url, folder = lab
    page, _ = run_all(browser, url, folder, "ranklist")
    assert shows_image(page)
    lists = page.locator(".jp-OutputArea .widget-html:has(figure)").last
    lists.scroll_into_view_if_needed(timeout=30_000)
    first = lists.locator("figcaption").first.inner_text()
    slider = page.locator(".jupyter-widgets .noUi-handle").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "old => [...document.querySelectorAll('.widget-html figcaption')].some(e => e.innerText.startsWith('query')"
        " && e.innerText !== old)",
        arg=first,
        timeout=30_000,
    )
    page.locator("select:has(option:text-is('re-ranked'))").last.select_option("re-ranked")
    lists.get_by_text("re-ranked (k1 20").wait_for(timeout=60_000)
    page.locator("input[placeholder='part of a file name']").fill("nowhere")
    page.keyboard.press("Tab")
    page.get_by_text("no query is left").wait_for(timeout=30_000)
    page.screenshot(path=tmp_path / "ranklist.png")
    page.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_map_shows_images_on_hover_and_the_list_of_what_is_chosen(lab, trained, webgl, tmp_path: Path) -> None:
    url, folder = lab
    page, _ = run_all(webgl, url, folder, "tsne")
    page.locator(".jp-OutputArea canvas").first.scroll_into_view_if_needed(timeout=30_000)
    page.wait_for_timeout(3000)
    boxes = [canvas.bounding_box() for canvas in page.locator(".jp-OutputArea canvas").all()]
    box = max((b for b in boxes if b), key=lambda b: b["width"] * b["height"])  # others belong to its buttons
    shown = "e => getComputedStyle(e).backgroundImage.includes('data:image/jpeg')"
    seen = f"() => [...document.querySelectorAll('*')].some({shown})"
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")).astype(int)
    coloured = np.argwhere(np.ptp(picture, axis=2) > 90)  # of points; axes, buttons and background are grey
    coloured = coloured[coloured[:, 1] > 100]
    page.screenshot(path=tmp_path / "map.png")
    assert len(coloured), boxes
    for row, column in coloured[:: len(coloured) // 12 + 1]:
        page.mouse.move(box["x"] + int(column), box["y"] + int(row), steps=4)
        page.wait_for_timeout(700)
        if found := page.evaluate(seen):
            break
    assert found, "no image was shown on hover"
    page.screenshot(path=tmp_path / "hover.png")
    chosen = page.locator(".widget-html:has-text('first right')").last.locator("figure")
    page.mouse.down()
    page.mouse.up()  # the point under the pointer
    chosen.first.wait_for(timeout=30_000)
    one = chosen.count()
    tools = [
        tool for tool in page.locator(".jp-OutputArea button").all() if (tool.bounding_box() or box)["x"] < box["x"]
    ]
    sorted(tools, key=lambda tool: tool.bounding_box()["y"])[1].click()  # the lasso
    corners = [(0.03, 0.03), (0.97, 0.03), (0.97, 0.97), (0.03, 0.97), (0.03, 0.05)]
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()
    page.get_by_text(re.compile(r"and \d+ more")).last.wait_for(timeout=30_000)
    assert chosen.count() > one + 20
    page.screenshot(path=tmp_path / "lasso.png")
    page.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_label_is_marked_with_a_button_and_stands_in_the_table(lab, trained, browser, tmp_path: Path) -> None:
    url, folder = lab
    page, _ = run_all(browser, url, folder, "failures")
    button = page.locator("button:has-text('junk')").last
    button.scroll_into_view_if_needed(timeout=30_000)
    page.screenshot(path=tmp_path / "repair.png")
    button.click()
    page.locator("button:has-text('same person')").last.click()
    page.get_by_text("2 in corrections.csv").wait_for(timeout=30_000)
    lines = (trained / "corrections.csv").read_text().splitlines()
    assert lines[0] == "path,pid,new_pid,verdict,note"
    assert [line.split(",")[3] for line in lines[1:]] == ["junk", "same"]
    page.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_monitor_follows_a_run_of_another_process(lab: tuple[str, Path], browser, tmp_path: Path) -> None:
    """Its table and its curves change in place as lines are written, and its cell ends when the run does."""
    url, folder = lab
    far = Run.create(str(folder / "runs" / "far"), {"epochs": 3, "eval_every": 1}).begin()
    rows = [{"epoch": 0, "mAP": 0.01}]
    far.write_metrics(rows)
    book = folder / "monitor.ipynb"
    book.write_text(book.read_text().replace("follow: float = 5.0", "follow: float = 0.2"))
    page = start_all(browser, url, "monitor")
    status = page.locator(".jp-OutputArea .jp-RenderedHTMLCommon p").first
    figures = set()
    for epoch in range(1, 4):
        status.get_by_text(f"epoch {epoch - 1} of 3").wait_for(timeout=60_000)
        rows.append({"epoch": epoch, "loss": 3.0 / epoch, "mAP": 0.2 * epoch, "seconds": 60.0})
        far.write_metrics(rows)
        status.get_by_text(f"epoch {epoch} of 3").wait_for(timeout=60_000)
        figures.add(page.locator(".jp-OutputArea img").first.get_attribute("src"))
        if epoch == 2:
            page.screenshot(path=tmp_path / "live.png")
    assert len(figures) >= 2
    cells = wait_until_all_ran(page, folder, "monitor", 60)
    assert "ended with epoch 3 of 3" in json.dumps([cell["outputs"] for cell in cells])
    live = next(cell for cell in cells if "monitor.follow" in "".join(cell["source"]))
    assert len(live["outputs"]) == 2  # one text and one figure, however often they were renewed
    page.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_zoo_is_searched_sorted_and_filtered(lab: tuple[str, Path], browser, tmp_path: Path) -> None:
    """The fields above its table redraw it, and the one above the card shows another model's."""
    url, folder = lab
    book = folder / "zoo.ipynb"
    book.write_text(book.read_text().replace("seconds: float = 1.0", "seconds: float = 0.0"))
    page, _ = run_all(browser, url, folder, "zoo")
    area = page.locator(".jp-OutputArea:has(input[placeholder='any words'])").last
    count, first = area.locator("p").first, area.locator("tbody tr").first.locator("td").first
    count.get_by_text("86 published results").wait_for(timeout=30_000)
    assert first.text_content() == "mgn_sbs_S50_ibn_fastreid"
    area.scroll_into_view_if_needed()
    area.screenshot(path=tmp_path / "table.png")

    area.locator("input[placeholder='any words']").fill("osnet ibn")
    count.get_by_text("2 published results").wait_for(timeout=30_000)
    area.locator("select").nth(1).select_option("any")
    count.get_by_text("3 published results").wait_for(timeout=30_000)
    area.locator("select").nth(4).select_option("mINP")
    area.get_by_label("largest first").uncheck()
    first.get_by_text("osnet_ibn_x1_0_dpr").wait_for(timeout=30_000)
    area.screenshot(path=tmp_path / "chosen.png")

    card = page.locator(".jp-OutputArea:has(h3:text-is('osnet_x1_0'))").last
    page.locator(".jp-OutputArea select").last.select_option("vit_transreid")
    page.locator(".jp-OutputArea h3:text-is('vit_transreid')").wait_for(timeout=60_000)
    assert card.count() == 0
    page.locator(".jp-OutputArea:has(h3:text-is('vit_transreid'))").last.screenshot(path=tmp_path / "card.png")
    page.close()


def a_notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    parameters = nbformat.v4.new_code_cell('run: str = ""  # run folder\nepochs: int = 3  # passes')
    parameters.metadata["tags"] = ["parameters"]
    about = {"papermill": {"parameters": {"run": "r", "epochs": 9}, "duration": 90.0}}
    return nbformat.v4.new_notebook(cells=[parameters, *cells], metadata=about)


def test_the_index_of_runs_is_sorted_searched_and_followed_from_the_disk(browser, tmp_path: Path) -> None:
    """With the network off, wide and narrow: index.html, a page of a run, and one of a notebook that failed."""
    heading, figure = nbformat.v4.new_markdown_cell("## The curves"), nbformat.v4.new_code_cell("figure")
    kind, image = preview(plots.cmc_curves({"a": [0.5, 1]}))
    data = {kind: base64.b64encode(image).decode(), "text/plain": "CMC of a"}
    figure.outputs = [nbformat.v4.new_output("execute_result", data, metadata={kind: {"width": 680, "height": 340}})]
    wrong = nbformat.v4.new_code_cell("1 / 0  # " + "a long line " * 20)
    wrong.outputs = [
        nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])
    ]
    filler = [nbformat.v4.new_markdown_cell("words " * 400) for _ in range(6)]
    for name, mAP in (("rates/lr=0.1,seed=0", 0.2), ("it's <best>", 0.9), ("third", 0.095)):
        run = a_run(name)
        run.add_result("market1501", {"mAP": mAP})
        (run.path / "notebooks").mkdir()
        nbformat.write(a_notebook(heading, figure), run.path / "notebooks" / "train.ipynb")
        if name == "third":
            nbformat.write(a_notebook(*filler, heading, wrong), run.path / "notebooks" / "test-msmt17.failed.ipynb")
        write_pages(run)
    index = write_index()
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(index.as_uri())
    names = page.locator("#runs tbody tr:not([hidden]) td.run")
    assert names.count() == 3
    page.click("th button:text-is('mAP')")
    assert names.all_text_contents() == ["it's <best>", "rates/lr=0.1,seed=0", "third"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.click("th button:text-is('mAP')")
    assert names.all_text_contents() == ["third", "rates/lr=0.1,seed=0", "it's <best>"]
    page.fill("#search", "MARKET1501 lr=0.1")
    assert names.all_text_contents() == ["rates/lr=0.1,seed=0"]
    assert page.text_content("#shown") == "1 of 3 runs"
    page.fill("#search", "best")
    page.click("#runs tr:not([hidden]) a:text-is('train')")
    page.wait_for_url("**/train.html")
    assert page.title() == "it's <best> · train"
    assert page.locator("img").get_attribute("alt") == "CMC of a"
    assert page.locator("img").evaluate("image => [image.complete, image.width, image.naturalWidth > 1000]") == [
        True,
        680,
        True,
    ]
    assert not page.locator("details.code pre").first.is_visible()
    page.click("nav a:text-is('All runs')")
    page.wait_for_url("**/index.html")
    page.click("#runs a:text-is('test · msmt17 (failed)')")
    page.wait_for_url("**/test-msmt17.failed.html#error")
    assert page.locator("#error pre").is_visible()
    assert 0 <= page.locator("#error").bounding_box()["y"] < 800  # opened there, below pages of words
    page.click("nav a:text-is('train')")
    page.wait_for_url("**/third/notebooks/train.html")
    narrow = browser.new_page(viewport={"width": 400, "height": 800})
    for path in (index, *(index.parent / "third" / "notebooks").glob("*.html")):
        for view in (page, narrow):
            view.goto(path.as_uri())
            view.screenshot(path=tmp_path / f"{path.stem}-{view.viewport_size['width']}.png")
            assert view.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert all(url.startswith(("file:", "data:")) for url in requested)
    page.close()
    narrow.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dropped_images_are_looked_for_and_compared(lab, trained, browser) -> None:
    from playwright.sync_api import expect

    url, folder = lab
    page, _ = run_all(browser, url, folder, "my_images")
    field = page.locator(".jp-OutputArea input[type=file]")
    crops = reidlib.load_dataset("synthetic-tiny").gallery[:2]
    outputs = page.locator(".widget-vbox:has(input[type=file]) img")
    field.set_input_files(str(crops[0].path))
    outputs.first.wait_for(timeout=60_000)
    one = outputs.first.get_attribute("src")
    field.set_input_files([str(crop.path) for crop in crops])
    page.get_by_text("pairs of one person are accepted on").wait_for(timeout=60_000)
    expect(outputs.first).not_to_have_attribute("src", one)
    dropped = """data => { const all = new DataTransfer();
        all.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], "words.jpg"));
        return all; }"""
    words = page.evaluate_handle(dropped, base64.b64encode(b"no image").decode())
    page.dispatch_event(".jp-OutputArea label:has(input[type=file])", "drop", {"dataTransfer": words})
    page.get_by_text("no query can be read").wait_for(timeout=60_000)
    page.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_questions_about_clusters_are_answered_by_clicks(lab, trained, browser) -> None:
    url, folder = lab
    page, _ = run_all(browser, url, folder, "cluster")
    same, different = (page.locator(f".jp-OutputArea button:has-text('{word} person')").first for word in VERDICTS)
    same.scroll_into_view_if_needed(timeout=30_000)
    shown = page.locator(".jp-OutputArea .widget-image").first.get_attribute("src")
    same.click()
    page.locator(".widget-html:has-text('1 answers')").first.wait_for(timeout=20_000)
    assert page.locator(".jp-OutputArea .widget-image").first.get_attribute("src") != shown
    different.click()
    page.locator(".widget-html:has-text('2 answers')").first.wait_for(timeout=20_000)
    answers = (trained / "links.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in answers] == ["verdict", *VERDICTS]
    page.close()
