"""README and docs/ against the code: links, commands, Python blocks, counts and quoted figures, and the website."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import reidlib
from reidlib.models.printed.published import published
from reidlib.models.weights import find_weights
from reidlib.models.zoo import ALIASES
from reidlib.paths import data_names
from reidlib.run_folder import _FILES, _FOLDERS
from reidlib.training import plugins
from reidlib.training.job import Job
from reidlib.training.recipes import CLASS_RECIPES, RECIPES
from reidlib.workbook import batch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
README = (ROOT / "README.md").read_text()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them: a second heading of one name ends in -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return {f"{name}-{found[:i].count(name)}" if name in found[:i] else name for i, name in enumerate(found)}


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}: {target.name} has {anchors(target)}"


@each_page
def test_files_modules_and_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"`make ([a-z-]+)", page.read_text()) + re.findall(
        r"^make ([a-z-]+)", page.read_text(), re.M
    ):
        assert name in targets, f"{page.name}: make {name}"
    for path in re.findall(r"`((?:reidlib|docs|tests|notebooks|benchmarks|\.ci|\.github)/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
    for name in re.findall(r"`(reidlib(?:\.\w+)+)", page.read_text()):
        resolve(name)


def resolve(name: str) -> object:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(resolve(module), attribute)


# Commands


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every shell command of a page."""
    for text in blocks(page, "sh", "text"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.lstrip("!%"), comments=True)
            if words:
                yield words


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The datasets of the examples have names, and plug-ins do not outlive the test."""
    (tmp_path / "data_paths.yaml").write_text(
        "market1501: m\nmsmt17: m\ncuhk03: c\nimagenet: i\nmy_shop: s.csv\nsynthetic: s\nsynthetic_b: s\n"
    )
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    monkeypatch.chdir(ROOT / "notebooks")  # my_ideas.py lies here
    before = {name: dict(table) for name, table in plugins.TABLES.items()}
    yield
    for name, table in plugins.TABLES.items():
        table.clear()
        table.update(before[name])
    plugins._added.clear()


@each_page
def test_commands_are_accepted(page: Path, shop: None) -> None:
    for words in commands(page):
        line = " ".join(words)
        if "reidlib.batch" in words:
            check_batch(words[words.index("reidlib.batch") + 1 :], line)
        elif words[0].endswith("papermill"):
            declared = batch.parameters(Path(words[1]).stem)
            given = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
            given += [name for i, word in enumerate(words) if word == "-y" for name in yaml.safe_load(words[i + 1])]
            for name in given:
                assert not declared[name].in_settings, line
        elif "reidlib.models" in words:
            rest = words[words.index("reidlib.models") + 1 :]
            assert not rest or rest[0] in reidlib.list_models(), line
        elif "torchrun" in words:
            from torch.distributed.run import get_args_parser

            parsed = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
            assert parsed.module, line
            assert parsed.training_script == "reidlib.training", line
        elif words[:2] == ["accelerate", "launch"]:
            from accelerate.commands.launch import launch_command_parser

            parsed = launch_command_parser().parse_args(words[2:])
            assert parsed.module, line
            assert parsed.training_script == "reidlib.training", line
        for path in words:
            if path.startswith(("notebooks/", "tests/", "benchmarks/")):
                assert (ROOT / path.partition("::")[0]).exists(), line


def check_batch(words: list[str], line: str) -> None:
    names, given, i = [], {}, 0
    while i < len(words):
        if words[i] == "-p":
            given[words[i + 1]] = words[i + 2]
            i += 3
        elif words[i] == "--grid":
            given[words[i + 1]] = words[i + 2]
            i += 3
            while i < len(words) and words[i][0] != "-":  # the other values
                i += 1
        elif words[i] == "--list":
            assert batch.parameters(words[i + 1]), line
            return
        else:
            assert words[i] in batch.list_notebooks() or words[i] == "--runs", line
            names += [words[i]] * (words[i] != "--runs")
            i += 1
    if not names:
        return
    values = batch.sort_parameters(names, given)
    for name in names:
        batch.check_job(name, values[name])
    known = {*reidlib.list_datasets(), *data_names(), "synthetic", "synthetic_b", "synthetic_c"}
    for name in [given.get("dataset", "synthetic"), *given.get("datasets", "synthetic").split(",")]:
        if name.startswith(("~", "/")):  # a folder of the reader's
            continue
        assert set(name.removesuffix("-combineall").split("+")) <= known, f"{line}: {name}"
    if "weights" in given and not re.search(r"[/.]", given["weights"]):
        find_weights(given["model"], given["weights"])


@each_page
def test_parameters_in_sentences_exist(page: Path) -> None:
    every = {name for notebook in batch.list_notebooks() for name in batch.parameters(notebook)}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for name in re.findall(r"(?:^|\s)-p (\w+) ", code):
            assert name in every, f"{page.name}: -p {name}"


def test_parameter_files_of_the_docs_are_jobs(shop: None) -> None:
    (text,) = blocks(ROOT / "docs" / "distributed.md", "json")
    assert Job.from_params(json.loads(text)).recipe.people == 16


# Python, YAML and tables


@each_page
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for text in blocks(page, "python"):
        tree = ast.parse(text)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names: dict[str, object] = {}
        exec(compile(ast.Module(imports, []), page.name, "exec"), names)
        for node in ast.walk(tree):  # what is used of the package is there
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "reidlib":
                assert hasattr(reidlib, node.attr), f"{page.name}: reidlib.{node.attr}"


def test_the_worked_example_of_the_metrics_gives_what_the_page_says(capsys: pytest.CaptureFixture) -> None:
    page = ROOT / "docs" / "metrics.md"
    source = "".join(blocks(page, "python"))
    names: dict[str, object] = {}
    exec(source, names)
    printed = [eval(line) if line[0] in "[{" else line for line in capsys.readouterr().out.splitlines()]
    promised = re.findall(r"^print\(.*?\)  # (.+)$", source, re.MULTILINE)
    assert promised[:3] == ["[0.45, 1.0]", "[0.4, 1.0]", "0.5 1.0 0.725 0.7"]
    assert printed[0] == pytest.approx([0.45, 1.0])
    assert printed[1] == pytest.approx([0.4, 1.0])
    assert [float(x) for x in printed[2].split()] == pytest.approx([0.5, 1.0, 0.725, 0.7])
    assert list(printed[3].values()) == pytest.approx([1 / 3, 2 / 3])
    assert list(printed[4].values()) == pytest.approx([0.25**2, 2**2])
    # The table above it: distances of both queries, and how many pairs there are.
    distances = abs(names["query"] - names["gallery"].T)
    rows = re.findall(r"^\| distance to query .*?\) \| (.+) \|$", page.read_text(), re.MULTILINE)
    assert [[float(x.strip(" *")) for x in row.split("|")] for row in rows] == distances.tolist()
    assert (names["found"] is not None, names["found"].num_genuine, names["found"].num_impostor) == (True, 3, 7)


def test_the_table_of_the_data_page_is_read_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "data.md"
    (table,) = (text for text in blocks(page, "text") if text.startswith("path,pid"))
    (tmp_path / "my_shop.csv").write_text(table)
    for line in table.splitlines()[1:]:
        path = tmp_path / line.partition(",")[0]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "data_paths.yaml").write_text("my_shop: my_shop.csv\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    data = reidlib.load_dataset("my_shop")
    assert (len(data.train), len(data.query), [s.pid for s in data.gallery]) == (2, 1, [2, -1, 0])
    (lines,) = blocks(page, "yaml")
    (tmp_path / "data_paths.yaml").write_text(lines)
    assert {"market1501", "msmt17", "my_shop"} <= data_names().keys()


# Counts and figures


def test_readme_is_short_and_counts_models_and_notebooks() -> None:
    assert len(README.splitlines()) <= 140
    models, notebooks = re.search(
        r"(\d+) published person re-identification models.*?in (\d+) notebooks", README, re.S
    ).groups()
    assert (int(models), int(notebooks)) == (len(reidlib.list_models()), len(batch.list_notebooks()))
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted(listed) == batch.list_notebooks()


def test_readme_quotes_the_published_score() -> None:
    rank1, score, table = re.search(r"Rank-1 ([\d.]+), mAP ([\d.]+): the result of ([\w-]+) for", README).groups()
    (row,) = (
        r for r in published("resnet50_agw") if (r.trained_on, r.tested_on, r.table) == ("market1501",) * 2 + (table,)
    )
    assert (row.rank1, row.mAP) == (float(rank1), float(score))


OURS = ("toy", "demo", "drawn")  # not published


@pytest.mark.parametrize("page", ["training", "clusters"])
def test_every_recipe_is_listed_with_the_result_of_its_declaration(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    source = (ROOT / "reidlib" / "training" / "recipes.py").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+? \| `(\w+)` \| ([\d.–]+ / [\d.–]+|–) \|$", text, re.MULTILINE)
    published = {name: r.finds_clusters for name, r in RECIPES.items() if name not in OURS}
    assert [name for name, _, _ in rows] == [
        name for name, clusters in published.items() if clusters == (page == "clusters")
    ]
    for name, model, result in rows:  # as in the comment above the declaration, beside the command
        figures = rf"{model}: {re.escape(result)}" if result != "–" else "no figures beside its files"
        said = re.search(rf"^# .*{figures}[^\n]*(?:\n#.*){{0,2}}-p recipe {name} ", source, re.MULTILINE)
        assert said, f"{name}: {model} {result}"
    assert {"toy", "imagenet"} == set(CLASS_RECIPES)


def test_models_that_the_docs_name_exist() -> None:
    known = {*reidlib.list_models(), *ALIASES}
    for page in PAGES:
        pattern = r"`((?:osnet|resnet50|agw|sbs|mgn|bagtricks|v2018|mlfn|vit|deit)_[A-Za-z0-9_]+)`"
        for name in re.findall(pattern, page.read_text()):
            assert name in known | RECIPES.keys() or name.endswith("_"), f"{page.name}: {name}"


def test_names_of_one_network_are_those_of_the_cards() -> None:
    from reidlib.models.printed.cards import same_network

    pairs = [("osnet_x1_0", "osnet_x1_0_dpr"), ("mlfn", "mlfn_dpr"), ("resnet50", "v2018_ResNet50")]
    pairs += [("mgn_sbs_S50_fastreid", "mgn_sbs_S50_ibn_fastreid"), ("vit_transreid", "deit_transreid")]
    text = (ROOT / "docs" / "zoo.md").read_text()
    for first, second in pairs:
        assert second in same_network(first)
        assert f"`{first}`" in text
        assert f"`{second}`" in text
    others = ("resnet50_fc512", "resnet50_bot", "resnet50_agw", "bagtricks_R50_fastreid", "agw_R50_fastreid")
    assert not any(same_network(name) for name in others)


def test_every_file_of_a_run_folder_is_explained() -> None:
    text = (ROOT / "docs" / "run_folders.md").read_text()
    for name in _FILES:
        assert name.replace("epoch-*", "epoch-0010") in text, name
    for name in set(_FOLDERS) - {"tensorboard", "trackers"}:
        assert f"`{name}/`" in text, name


# Pictures


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_of_a_page_is_made_by_make_pictures(pictures: ModuleType) -> None:
    shown = {name for page in PAGES for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose(page))}
    assert {Path(name).name for name in shown} == pictures.PICTURES.keys()
    assert {
        path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".jpg", ".png")
    } <= pictures.PICTURES.keys()


def test_no_picture_is_stale(pictures: ModuleType) -> None:
    stale = {name: changes for name in pictures.PICTURES if (changes := pictures.changed(name))}
    assert not stale, f"call `make pictures`: {stale}"


def test_a_picture_is_stale_when_its_code_has_changed_and_not_when_words_have(
    pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, notebook = tmp_path / "plot.py", tmp_path / "page.ipynb"
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    monkeypatch.setattr(pictures, "DOCS", tmp_path)
    monkeypatch.setattr(pictures, "NOTES", tmp_path / "pictures.json")
    monkeypatch.setattr(pictures, "PICTURES", {"a.jpg": pictures.Picture(9, ("plot.py", "page.ipynb"), trained=False)})
    code = 'def draw():\n    """Draw it."""\n    return 1\n'
    cell = {"cell_type": "code", "source": ["k = 3"], "outputs": []}
    source.write_text(code)
    notebook.write_text(json.dumps({"cells": [cell]}))
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    assert pictures.changed("a.jpg") == ["a.jpg", "page.ipynb", "plot.py"]  # never made
    (tmp_path / "pictures.json").write_text(json.dumps({"a.jpg": pictures.stamp("a.jpg")}))
    assert pictures.changed("a.jpg") == []
    source.write_text('"""A module."""\n\n' + code.replace("Draw it.", "Draw it well,\n    and say so.") + "# done\n")
    notebook.write_text(json.dumps({"cells": [cell | {"outputs": ["3"]}, {"cell_type": "markdown", "source": ["#"]}]}))
    assert pictures.changed("a.jpg") == []
    source.write_text(code.replace("1", "2"))
    notebook.write_text(json.dumps({"cells": [cell | {"source": ["k = 4"]}]}))
    (tmp_path / "a.jpg").write_bytes(b"another picture")
    assert pictures.changed("a.jpg") == ["a.jpg", "page.ipynb", "plot.py"]


# What a code host shows


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    quoted = re.search(r"version = \{(.+?)\}", (ROOT / "docs" / "cite.md").read_text())[1]
    assert {version} == {reidlib.__version__, citation["version"], newest, quoted}


def test_the_citation_has_what_its_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["authors"] == [{"name": "The reidlib contributors"}]
    assert citation["license"] == "MIT"


def test_public_ci_runs_what_ci_runs_here() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_pre_commit_runs_the_linters_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing is fetched
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    linted = [line.split()[0].removeprefix("$(BIN)/") + " " + line.split()[1] for line in recipe.splitlines()]
    assert [" ".join(hook.split()[:2]).removeprefix(".venv/bin/") for hook in hooks] == linted


# The website


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees"), "-c", "docs"]
    done = subprocess.run([*command, ".", str(site)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = sorted(site.rglob("*.html"))
    assert {"README.html", "CHANGELOG.html", "CONTRIBUTING.html"} <= {page.name for page in pages}
    assert {page.stem for page in ROOT.glob("docs/*.md")} <= {page.stem for page in pages}
    for page in pages:  # links of a person may lead elsewhere; what a browser loads by itself may not
        loads = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^>]*>", page.read_text()
        )
        assert not loads, f"{page.name}: {loads}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style.name
    api = (site / "docs" / "api.html").read_text()
    for package in ("reidlib", "reidlib.evaluation", "reidlib.training", "reidlib.plots"):
        for name in importlib.import_module(package).__all__:
            assert f"{package}.{name}" in api, f"{package}.{name} is not on the API page"
    table = (site / "docs" / "parameters.html").read_text()
    for name in ("num_processes", "triplet_weight", "perplexity"):  # of a first cell, of settings, of another notebook
        assert f">{name}</span>" in table, f"{name} is not on the page of parameters"
    browser = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if browser:
        asked = requests_of(browser, [site / "README.html", site / "docs" / "api.html"])
        assert asked
        assert all(url.startswith(("file:", "data:")) for url in asked), asked


def requests_of(browser: str, pages: list[Path]) -> list[str]:
    """Every address that a browser asks for when it opens the pages from the disk."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as play:
        options = {"executable_path": browser, "args": ["--no-sandbox", "--disable-gpu"]}
        with play.chromium.launch(**options) as chromium:
            page = chromium.new_page()
            page.on("request", lambda request: asked.append(request.url))
            for path in pages:
                page.goto(path.as_uri(), wait_until="networkidle")
    return asked
