"""What the my_images notebook shows: thin layers over `ImageIndex`, `ThresholdCard` and `Extractor.same_person`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reidlib import plots
from reidlib.files import scratch_folder
from reidlib.workbook.image_index import ImageIndex
from reidlib.workbook.threshold import ThresholdCard
from reidlib.workbook.views import Note, below, is_interactive

if TYPE_CHECKING:
    import pandas as pd

# FileUpload of ipywidgets takes no dropped files: this one sends names and bytes of what is chosen or dropped.
_FIELD = """
export default { render({ model, el }) {
  const field = document.createElement("label"), input = document.createElement("input");
  field.textContent = "Drop images here, or click to choose them";
  field.style = "display: block; width: 24em; padding: 1.5em; text-align: center; cursor: pointer; "
    + "border: 2px dashed var(--jp-border-color1, #999); border-radius: 6px";
  Object.assign(input, { type: "file", multiple: true, accept: "image/*", style: "display: none" });
  field.append(input); el.append(field);
  const send = async (files) => {
    const images = await Promise.all([...files].map((file) => file.arrayBuffer()));
    model.send({ names: [...files].map((file) => file.name) }, undefined, images);
  };
  input.addEventListener("change", () => send(input.files));
  input.addEventListener("click", () => { input.value = ""; });  // the same file once more is a change too
  for (const kind of ["dragenter", "dragover", "drop"])
    field.addEventListener(kind, (event) => {
      event.preventDefault(); event.stopPropagation();
      if (kind === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files);
    });
} };
"""


def found_figure(index: ImageIndex, queries: Any, k: int = 10, threshold: float | None = None) -> Any:
    """The figure of the images nearest to each query, files or folders; a query that is in the index is left out."""
    found = index.extractor.extract(queries)
    if found.skipped:
        print(found.summary())
    if not len(found):
        raise ValueError("no query can be read")
    title = f"{index.extractor.model.name} in {index.folder.name}"
    lists = []
    for name, hits in zip(found.names, index.find(found.feats, k + 1), strict=True):
        itself = Path(name).resolve()
        lists.append([hit for hit in hits if Path(hit.path).resolve() != itself][:k])
    return plots.found_images(found.names, lists, title=title, threshold=threshold)


def threshold_table(
    card: ThresholdCard | None, elsewhere: list[dict[str, float]] | None = None
) -> "pd.DataFrame | Note":
    """The thresholds of a card in words; with `elsewhere`, of `threshold.rates_on`, what they do to other images."""
    import pandas as pd

    if card is None:
        return Note("no threshold card: extractor.calibrate(dataset) makes one")
    rows: list[dict[str, str]] = []
    for n, t in enumerate(card.thresholds):
        rows.append({"similarity at least": f"{t.threshold:.3f}"})
        if elsewhere is None:
            rows[n]["95 % interval"] = f"{t.interval[0]:.3f} to {t.interval[1]:.3f}"
            rows[n]["pairs of two people accepted"] = f"{t.false_positive_rate:.1%}"
            rows[n]["pairs of one person accepted"] = f"{t.true_positive_rate:.1%}"
        else:
            rows[n]["two people accepted, as calibrated"] = f"{t.false_positive_rate:.1%}"
            for pairs, rate in (("two people", "false_positive_rate"), ("one person", "true_positive_rate")):
                share = elsewhere[n][rate]
                rows[n][f"{pairs} accepted here"] = "no pairs" if math.isnan(share) else f"{share:.1%}"
    return pd.DataFrame(rows).set_index("similarity at least")


def skipped_table(index: ImageIndex, shown: int = 10) -> "pd.DataFrame | Note":
    """The first files that were skipped, with the reason; a sentence where all were read."""
    import pandas as pd

    rows = [(below(path, index.folder), why) for path, why in index.skipped()]
    return pd.DataFrame(rows[:shown], columns=["file", "why"]) if rows else Note("every file was read")


def drop_images(index: ImageIndex, k: int = 10, threshold: float | None = None) -> Any:
    """A field to drop images on, or to choose them with, that shows what is nearest to them.

    With two images at once it also says whether they show the same person.

    Returns:
        The widgets; a sentence where nobody watches the notebook.
    """
    if not is_interactive():
        return Note("open this page in JupyterLab to drop images here")
    import anywidget
    import ipywidgets as widgets
    from IPython.display import display

    field, out = anywidget.AnyWidget(_esm=_FIELD), widgets.Output()

    def show(widget: Any, content: dict[str, list[str]], buffers: list[Any]) -> None:
        out.clear_output(wait=True)
        with out, scratch_folder() as folder:
            paths = []
            for i, (name, image) in enumerate(zip(content["names"], buffers, strict=True)):
                paths.append(folder / str(i) / name.replace("/", "_"))
                paths[-1].parent.mkdir()
                paths[-1].write_bytes(image)
            try:
                if len(paths) == 2:
                    print(index.extractor.same_person(*paths))
                display(found_figure(index, paths, k, threshold))
            except (OSError, ValueError) as error:
                print(error)

    field.on_msg(show)
    return widgets.VBox([field, out])
