"""The embedding under the mouse: points on a plane, their images on hover, the images and rank list of what is chosen.

t-SNE: van der Maaten and Hinton, JMLR 2008, by scikit-learn; above `MANY` points by openTSNE (Poličar et al., JSS
2024), which takes time proportional to their number. UMAP: McInnes et al., 2018, arXiv 1802.03426. With a front end the
map is a jupyter-scatter widget (WebGL); a page gets one piece of HTML with the same points, colours and images.
"""

import base64
import json
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from reidlib.decoding import decode_image
from reidlib.errors import unknown_name
from reidlib.plots.names import camera_name, person_name
from reidlib.plots.tsne import Embedding, tsne_map
from reidlib.workbook.ranked import Ranked, image_html, list_html, picture
from reidlib.workbook.views import below, is_interactive

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("tsne", "umap", "pca")
COLOURS = ("person", "camera", "outcome", "AP", "split")  # columns that a map can be coloured by
MANY = 3000  # points above which openTSNE is quicker than scikit-learn
PREVIEWS = 20_000  # points up to which the widget holds every image ready
SPRITES = {1500: (64, 32), 10**9: (32, 16)}  # points → height and width of an image in the page's map, in pixels


def embed(feats: Any, method: str = "tsne", *, seed: int = 0, perplexity: float | None = None) -> Embedding:
    """Features on a plane; near points are near in the embedding, axes and distances of far groups mean nothing.

    Args:
        feats: (N, D) float; rows are scaled to length 1 first.
        method: "tsne", "umap" or "pca".
        seed: Equal seeds give equal points on one machine.
        perplexity: Of t-SNE: about how many neighbours count; None: 30.

    Returns:
        Points (N, 2) float32, and a sentence on them.

    Raises:
        ValueError: Another method, no row, or a value that is NaN or infinite.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    rows = torch.nn.functional.normalize(torch.as_tensor(feats).float()).numpy()
    if method == "tsne" and len(rows) <= MANY:
        return tsne_map(rows, seed=seed, perplexity=perplexity)
    if not np.isfinite(rows).all():
        raise ValueError(f"feats has a value that is NaN or infinite in row {np.isfinite(rows).all(1).argmin()}")
    if method == "umap" and len(rows) > 3:
        import warnings

        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a seed leaves one thread
            points = UMAP(n_neighbors=min(15, len(rows) - 1), metric="cosine", random_state=seed).fit_transform(rows)
        return Embedding(np.asarray(points, np.float32), f"{len(rows)} images, UMAP, 15 neighbours")
    from sklearn.decomposition import PCA

    pca = PCA(min(50, *rows.shape), random_state=seed)
    reduced = pca.fit_transform(rows)
    if method != "tsne":
        share = pca.explained_variance_ratio_[:2].sum()
        points = np.pad(reduced, ((0, 0), (0, 2)))[:, :2]
        return Embedding(points.astype(np.float32), f"{len(rows)} images, PCA, {share:.0%} of the variance")
    from openTSNE import TSNE

    perplexity = perplexity or 30
    tsne = TSNE(perplexity=perplexity, initialization="pca", random_state=seed, n_jobs=1)
    points = np.asarray(tsne.fit(reduced.astype(np.float64)), np.float32)
    return Embedding(points, f"{len(rows)} images, openTSNE, perplexity {perplexity:.3g}")


def map_table(ranked: Ranked, points: Any, keep: Sequence[int] | None = None) -> "pd.DataFrame":
    """What there is to know of each point.

    Args:
        ranked: What is mapped: query and gallery images, in this order.
        points: (N, 2).
        keep: N indices among query and gallery together; None: all of them.

    Returns:
        N rows: `x`, `y`, `person`, `camera`, `split`, `outcome` (of queries: "right at rank 1", "wrong at rank 1" or
        "no match"; else "gallery"), `AP` (percent, NaN for the gallery), `file`, and `at`, the index.
    """
    import pandas as pd

    data, result = ranked.data, ranked.result
    samples = [*data.query, *data.gallery]
    at = np.arange(len(samples)) if keep is None else np.asarray(keep)
    words = {True: "right at rank 1", False: "wrong at rank 1"}
    outcome = [words[rank == 1] if rank > 0 else "no match" for rank in result.first_match.tolist()]
    outcome += ["gallery"] * len(data.gallery)
    ap = np.concatenate([100 * result.ap.numpy(), np.full(len(data.gallery), np.nan)])
    table = pd.DataFrame(np.asarray(points, np.float32), columns=["x", "y"])
    table["person"] = [person_name(samples[i].pid, data) for i in at]
    table["camera"] = [camera_name(samples[i].camid, data) for i in at]
    table["split"] = np.where(at < len(data.query), "query", "gallery")
    table["outcome"] = [outcome[i] for i in at]
    table["AP"] = ap[at].round(1)
    table["file"] = [below(samples[i].path, data.root) for i in at]
    table["at"] = at
    return table


def chosen_html(ranked: Ranked, at: Sequence[int], k: int = 10, most: int = 40) -> str:
    """The images at these indices of query and gallery together, and the rank list of the first.

    Args:
        ranked: What is looked at.
        at: Indices. A gallery image is asked for as if it were a query.
        k: Matches in the list.
        most: Images shown.
    """
    data = ranked.data
    samples = [*data.query, *data.gallery]
    first = at[0]
    asked, i = (ranked, first) if first < len(data.query) else (ranked.asking(first - len(data.query)), 0)
    cells = []
    for sample in (samples[n] for n in at[:most]):
        names = person_name(sample.pid, data), camera_name(sample.camid, data, "c")
        cells.append(image_html(data, sample, names, "solid #767676", 80))
    more = f"<p>and {len(at) - most} more</p>" if len(at) > most else ""
    chosen = f'<div style="display: flex; flex-wrap: wrap">{"".join(cells)}</div>{more}' if len(at) > 1 else ""
    return chosen + list_html(asked, [i], k)


def explore_map(
    maps: Sequence[tuple[Ranked, "pd.DataFrame"]],
    *,
    lists: Sequence[Ranked] = (),
    colour: str = "person",
    height: int = 480,
) -> Any:
    """Maps side by side under the mouse, with one selection; without a front end the first as HTML.

    Hovering shows image, person, camera and file; a click or the toolbar's lasso shows these images and the rank
    list of the first one.

    Args:
        maps: A ranking and its `map_table` each; the tables hold the same images in the same order.
        lists: The rankings whose lists are shown for what is chosen; empty: those of the maps.
        colour: The column to begin with, one of `COLOURS`.
        height: Of the maps, in pixels.

    Returns:
        A widget, or HTML.
    """
    if colour not in COLOURS:
        raise unknown_name("colour", colour, COLOURS)
    if not is_interactive():
        from IPython.display import HTML

        return HTML(map_html(*maps[0], colour=colour))
    return MapExplorer(maps, lists or [ranked for ranked, _ in maps], colour, height).box


class MapExplorer:
    """The widgets of `explore_map`: `scatters`, `colour`, and `shown`, the HTML of what is chosen."""

    def __init__(
        self, maps: Sequence[tuple[Ranked, "pd.DataFrame"]], lists: Sequence[Ranked], colour: str, height: int
    ) -> None:
        import ipywidgets as w
        import jscatter

        self.at, self.lists = maps[0][1]["at"], lists
        self.scatters, self.names = [], []
        for ranked, table in maps:
            table = table.copy()
            for column in ("person", "camera", "split", "outcome"):
                table[column] = table[column].astype("category")
            properties = ["person", "camera", "outcome", "AP", "file"]
            scatter = jscatter.Scatter(data=table, x="x", y="y", height=height, width="auto")
            scatter.axes(False)
            scatter.camera(distance=1.3)  # no point at the edge
            scatter.legend(False)
            scatter.tooltip(True, properties=properties)
            if len(table) <= PREVIEWS:
                samples = [*ranked.data.query, *ranked.data.gallery]
                table["image"] = [picture(samples[i].path) for i in table["at"]]
                scatter.tooltip(preview="image", preview_type="image", preview_image_height=128)
            scatter.size(default=7 if len(table) < 5000 else 3)
            scatter.widget.observe(self.choose, "selection")
            self.scatters.append(scatter)
            self.names.append({c: list(table[c].cat.categories) for c in COLOURS if c != "AP"})
        self.colour = w.Dropdown(options=COLOURS, value=colour, description="colour")
        self.colour.observe(self.paint, "value")
        self.shown = w.HTML("hover: the image; click, or the lasso on the left: what is chosen, with a rank list")
        views = [scatter.widget for scatter in self.scatters]
        if len(self.scatters) > 1:
            views = [jscatter.link(self.scatters, rows=1)]
        self.box = w.VBox([self.colour, *views, self.shown])
        self.paint()

    def paint(self, change: Any = None) -> None:
        """Colour every map by the chosen column."""
        column = self.colour.value
        for scatter, names in zip(self.scatters, self.names, strict=True):
            if column == "AP":
                scatter.color(by=column, map="viridis", norm=(0, 100))
            else:
                scatter.color(by=column, map=dict(zip(names[column], _palette(len(names[column])), strict=True)))

    def choose(self, change: Any) -> None:
        """Show what was selected in any of the maps."""
        chosen = [int(i) for i in change["new"]]
        if not chosen:
            return
        at = self.at.iloc[chosen].tolist()
        self.shown.value = "<hr>".join(chosen_html(ranked, at) for ranked in self.lists)


def _palette(count: int) -> list[str]:
    """Colours around the wheel, of two lightnesses in turn; Okabe and Ito's where they suffice."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    from reidlib.plots.style import COLOURS as FEW

    if count <= len(FEW):
        return list(FEW[:count])
    return [to_hex(hsv_to_rgb((i / count, 0.75, 0.9 if i % 2 else 0.6))) for i in range(count)]


# The page


def map_html(ranked: Ranked, table: "pd.DataFrame", *, colour: str = "person", quality: int = 60) -> str:
    """A map as one piece of HTML that needs no other file: points, colours to choose, images on hover.

    Args:
        ranked: What is mapped.
        table: From `map_table`.
        colour: The column to begin with.
        quality: Of the images' JPEG.
    """
    samples = [*ranked.data.query, *ranked.data.gallery]
    h, w = next(size for most, size in SPRITES.items() if len(table) <= most)
    across = max(1, min(len(table), 60))
    sheet = Image.new("RGB", (across * w, -(-len(table) // across) * h), "white")
    for n, i in enumerate(table["at"]):
        sheet.paste(decode_image(samples[i].path).resize((w, h)), (n % across * w, n // across * h))
    file = BytesIO()
    sheet.save(file, "JPEG", quality=quality)
    low, span = table[["x", "y"]].min(), (table[["x", "y"]].max() - table[["x", "y"]].min()).clip(lower=1e-9)
    places = ((table[["x", "y"]] - low) / span).round(4)
    columns: dict[str, Any] = {}
    for name in COLOURS:
        if name == "AP":
            columns[name] = [None if value != value else float(value) for value in table[name]]
        else:
            names = sorted(set(table[name]))
            codes = {value: code for code, value in enumerate(names)}
            columns[name] = {"names": names, "colours": _palette(len(names)), "codes": [codes[v] for v in table[name]]}
    content = {
        "points": places.to_numpy().tolist(),
        "columns": columns,
        "files": table["file"].tolist(),
        "sprite": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
        "size": [h, w, across],
        "colour": colour,
    }
    data = json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("</", "<\\/")
    options = "".join(f"<option{' selected' * (name == colour)}>{escape(name)}</option>" for name in COLOURS)
    return _PAGE.replace("OPTIONS", options).replace("DATA", data)


_PAGE = """<div class="reid-map" style="position: relative; max-width: 760px; background: white; color: #222">
<label style="font-size: 12px">colour <select>OPTIONS</select></label>
<canvas width="1520" height="1040" style="width: 100%; border: 1px solid #ddd" role="img"
 aria-label="map of the embedding: hover over a point to see its image"></canvas>
<div style="position: absolute; display: none; pointer-events: none; background: white; border: 1px solid #767676;
 padding: 4px; font-size: 11px; line-height: 1.35; z-index: 5"></div>
<script>
(() => {
  const root = document.currentScript.parentElement, m = DATA;
  const canvas = root.querySelector("canvas"), tip = root.querySelector("div"), select = root.querySelector("select");
  const sheet = new Image(), pen = canvas.getContext("2d"), pad = 24, [h, w, across] = m.size;
  sheet.src = m.sprite;
  const place = p => [pad + p[0] * (canvas.width - 2 * pad), pad + (1 - p[1]) * (canvas.height - 2 * pad)];
  const at = m.points.map(place), radius = at.length < 2000 ? 7 : 4;
  const shade = v => v === null ? "#cccccc" : `hsl(${260 - 2 * v}, 70%, ${30 + 0.3 * v}%)`;
  const colourOf = i => {
    const c = m.columns[select.value];
    return Array.isArray(c) ? shade(c[i]) : c.colours[c.codes[i]];
  };
  const nameOf = (key, i) => {
    const c = m.columns[key];
    return Array.isArray(c) ? (c[i] === null ? "–" : c[i] + " %") : c.names[c.codes[i]];
  };
  function draw(near) {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    at.forEach(([x, y], i) => {
      pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fillStyle = colourOf(i); pen.globalAlpha = 0.85; pen.fill();
    });
    if (near >= 0) {
      pen.beginPath(); pen.arc(...at[near], radius + 4, 0, 7); pen.globalAlpha = 1; pen.lineWidth = 3; pen.stroke();
    }
  }
  const named = key => i => /^\\d+$/.test(nameOf(key, i)) ? `${key} ${nameOf(key, i)}` : nameOf(key, i);
  let marked = -1;
  canvas.addEventListener("mousemove", event => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let near = -1, best = 900;
    at.forEach((p, i) => {
      const d = (p[0] - x) ** 2 + (p[1] - y) ** 2;
      if (d < best) { best = d; near = i; }
    });
    if (near !== marked) draw(marked = near);
    tip.style.display = near < 0 ? "none" : "block";
    if (near < 0) return;
    const picture = document.createElement("canvas"), words = document.createElement("div");
    [picture.width, picture.height] = [w, h];
    picture.style.cssText = `height: 128px; width: ${128 * w / h}px`;
    const part = [near % across * w, Math.floor(near / across) * h, w, h];
    picture.getContext("2d").drawImage(sheet, ...part, 0, 0, w, h);
    words.innerText = [named("person")(near), named("camera")(near),
      nameOf("outcome", near), `AP ${nameOf("AP", near)}`, m.files[near]].join("\\n");
    tip.replaceChildren(picture, words);
    const left = at[near][0] / scale, top = canvas.offsetTop + at[near][1] / scale;
    const wide = tip.offsetWidth;
    tip.style.left = Math.max(0, left + 14 + wide > box.width ? left - 14 - wide : left + 14) + "px";
    tip.style.top = Math.max(0, top - 60) + "px";
  });
  canvas.addEventListener("mouseleave", () => { tip.style.display = "none"; draw(marked = -1); });
  select.addEventListener("change", () => draw(-1));
  draw(-1);
})();
</script></div>"""
