"""The widgets of the my_images notebook: thin layers over `ImageIndex.find` and `Extractor.same_person`."""

from typing import Any

from reidlib import plots
from reidlib.files import scratch_folder
from reidlib.workbook.image_index import ImageIndex
from reidlib.workbook.views import is_interactive

_TYPES = ".jpg,.jpeg,.png,.bmp,.webp,.tif,.tiff"


def found_figure(index: ImageIndex, queries: Any, k: int = 10, threshold: float | None = None) -> Any:
    """The figure of the images nearest to each query, files or folders."""
    found = index.extractor.extract(queries)
    if found.skipped:
        print(found.summary())
    if not len(found):
        raise ValueError("no query can be read")
    title = f"{index.extractor.model.name} in {index.folder.name}"
    return plots.found_images(found.names, index.find(found.feats, k), title=title, threshold=threshold)


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
