"""How Sphinx builds the website: README, docs/ and an API page out of the docstrings. `make docs` writes it to site/.

The sources are the Markdown files as they are; relative links in them work on a code host and in the site alike.
Nothing in the site asks another host for anything: furo brings its own styles, and uses the fonts of the computer.
"""

import sys
from html import escape
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the docstrings of this checkout

project, author, copyright = "reidlib", "The reidlib contributors", "2026, the reidlib contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md"]
html_theme, html_title, html_show_sourcelink, html_copy_source = "furo", "reidlib", False, False
html_theme_options = {"top_of_page_buttons": []}
default_role, highlight_language = "code", "none"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types with shapes and units; signatures in full would hide the names
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"
suppress_warnings = ["myst.header"]  # README's pictures stand before its first section

CONTENTS = {
    "Data": ["docs/data", "docs/own_images"],
    "Training": [
        "docs/training",
        "docs/clusters",
        "docs/distributed",
        "docs/your_idea",
        "docs/pretraining",
        "docs/memory",
    ],
    "Running": ["docs/looking", "docs/batch", "docs/parameters", "docs/search", "docs/run_folders", "docs/platforms"],
    "Results": ["docs/metrics", "docs/evaluator", "benchmarks/README"],
    "Models": ["docs/zoo", "Every published result </MODEL_ZOO>"],
    "Help": ["docs/faq", "docs/cite", "docs/SECURITY", "CONTRIBUTING", "CHANGELOG"],
    "Reference": ["docs/api"],
}


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Append what code hosts do not show: the contents of the site to README, those of the benchmarks to their page."""
    if name == "README":
        for caption, pages in CONTENTS.items():
            listed = "\n".join(page if "<" in page else f"/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"
    elif name == "benchmarks/README":
        listed = "\n".join(sorted(path.stem for path in ROOT.glob("benchmarks/*.md") if path.stem != "README"))
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    elif name == "docs/parameters":
        source[0] += parameter_tables()


def parameter_tables() -> str:
    """A table of each notebook's parameters, those that it takes through `settings` last."""
    from reidlib.training.settings import type_name
    from reidlib.workbook import batch

    text = ""
    for name in batch.list_notebooks():
        text += f"\n## {name}\n\n| parameter | type | default | |\n|---|---|---|---|\n"
        for key, (kind, default, words, _) in batch.parameters(name).items():
            text += f"| `{key}` | {type_name(kind)} | `{default!r}` | {escape(words).replace('|', '&#124;')} |\n"
    return text


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
