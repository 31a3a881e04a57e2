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

_TYPES = ".jpg,.jpeg,.png,.bmp,.webp,.tif,.tiff"


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
    """A field to drop images on, which shows what is nearest to them; None where nobody watches the notebook.

    With two images at once it also says whether they show the same person.
    """
    if not is_interactive():
        return None
    import ipywidgets as widgets
    from IPython.display import display

    upload = widgets.FileUpload(accept=_TYPES, multiple=True, description="Choose or drop images")
    upload.layout.width = "18em"
    out = widgets.Output()

    def show(change: Any = None) -> None:
        out.clear_output(wait=True)
        with out, scratch_folder() as folder:
            paths = []
            for i, file in enumerate(upload.value):
                paths.append(folder / str(i) / file["name"].replace("/", "_"))
                paths[-1].parent.mkdir()
                paths[-1].write_bytes(bytes(file["content"]))
            try:
                if len(paths) == 2:
                    print(index.extractor.same_person(*paths))
                display(found_figure(index, paths, k, threshold))
            except (OSError, ValueError) as error:
                print(error)

    upload.observe(show, "value")
    return widgets.VBox([upload, out])
