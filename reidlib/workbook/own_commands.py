"""The commands for images of one's own: `python -m reidlib.find` and `python -m reidlib.extract`."""

import argparse
import csv
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reidlib.files import whole_file

if TYPE_CHECKING:
    from reidlib.workbook.extractor import Extractor
    from reidlib.workbook.image_index import ImageIndex


def _common(parser: argparse.ArgumentParser, pattern: str) -> argparse.ArgumentParser:
    parser.add_argument("--run", default="", help="run whose model to use; default: the newest")
    parser.add_argument("--model", default="", help="a model of the zoo in place of a run, with --weights")
    parser.add_argument("--weights", default="", help="weights of --model, such as market1501")
    parser.add_argument("--index", default="", help="where the index lies; default: in the run's folder")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; default: the GPU where there is one")
    parser.add_argument("--batch-size", type=int, default=64, help="images a batch")
    parser.add_argument("--pattern", default="", help=pattern)
    return parser


def _command(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Any) -> int:
    """Run a command; whatever goes wrong is one sentence and exit status 1."""
    from PIL import Image

    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such an image is skipped and named
    try:
        main(args)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was extracted is kept", file=sys.stderr)
        return 130
    return 0


def _extractor(args: argparse.Namespace) -> "Extractor":
    from reidlib.workbook.extractor import Extractor

    if bool(args.model) != bool(args.weights):
        raise ValueError("--model and --weights go together: give both, or name a run")
    extractor = Extractor(args.model or args.run, weights=args.weights, device=args.device, batch_size=args.batch_size)
    print(f"{extractor.model.name}: {extractor.run.origin if extractor.run else ''}")
    return extractor


def _updated(extractor: "Extractor", folder: str, path: str) -> "ImageIndex":
    """The index of a folder, up to date; what was skipped is printed."""
    from reidlib.workbook.image_index import ImageIndex

    index = ImageIndex(extractor, folder, path)
    print(index.update(progress=sys.stderr.isatty()))
    skipped: Counter[str] = Counter()
    for name, reason in index.skipped():
        if sum(skipped.values()) < 10:
            print(f"  skipped {name}: {reason}")
        skipped["copies" if reason.startswith("the same file as") else "unreadable or no image"] += 1
    if sum(skipped.values()) > 10:
        print("  … and more: " + ", ".join(f"{count} {kind}" for kind, count in skipped.items()) + " in all")
    return index


# find

_BY_TRACK = "what file names say, such as '{camid}_{track}_*.jpg': search and group tracklets, not images"


def find(argv: Sequence[str] | None = None) -> int:
    """`python -m reidlib.find QUERY FOLDER`: the images of a folder that are nearest to a query."""
    parser = _common(argparse.ArgumentParser(prog="python -m reidlib.find", description=find.__doc__), _BY_TRACK)
    parser.add_argument("query", help="an image, or a folder of images")
    parser.add_argument("folder", help="the folder to search; an image: are the two the same person?")
    parser.add_argument("-k", type=int, default=10, help="images in a list")
    parser.add_argument("--rate", type=float, default=1e-3, help="false positive rate of the threshold, 0.001 or 0.01")
    parser.add_argument("--threshold", type=float, default=None, help="a similarity in place of the threshold card")
    parser.add_argument("--calibrate", default="", help="a labelled dataset to make the threshold card of first")
    parser.add_argument("--groups", default="", help="a CSV to write: which images show the same person")
    parser.add_argument("--figure", default="", help="an image file to draw the lists into")
    parser.add_argument("--faiss", action="store_true", help="search approximately, and print the recall")
    return _command(_find, parser, argv)


def _find(args: argparse.Namespace) -> None:
    if args.faiss and args.pattern:
        raise ValueError("--faiss searches images, and --pattern tracklets: leave one of them out")
    extractor = _extractor(args)
    if args.calibrate:
        print(extractor.calibrate(args.calibrate, progress=sys.stderr.isatty()))
    if Path(args.folder).is_file():
        print(extractor.same_person(args.query, args.folder, false_positive_rate=args.rate))
        return
    index = _updated(extractor, args.folder, args.index)
    searched = index.tracks(args.pattern) if args.pattern else index
    if args.pattern:
        print(f"{len(searched.members)} tracklets, each listed as its first image")
    threshold, meaning = args.threshold, "as given"
    if threshold is None:
        card = extractor.threshold_card()
        if card:
            at = card.at(args.rate)
            threshold = at.threshold
            meaning = (
                f"{at.false_positive_rate:.1%} of two people pass it on {card.dataset}; elsewhere it may be others"
            )
    if threshold is None:
        print("no threshold: --calibrate DATASET makes one of labelled images, --threshold 0.7 takes yours")
    else:
        print(f"same person: similarity of at least {threshold:.3f} ({meaning})")
    queries = extractor.extract(args.query)
    if queries.skipped:
        print(queries.summary())
    if args.faiss:
        from reidlib.workbook import faiss_index

        print(f"recall of the approximate search: {faiss_index.recall(index, args.k):.1%} of the {args.k} nearest")
    options = {"approximate": True} if args.faiss else {}
    lists = searched.find(queries.feats, args.k, **options) if len(queries) else []
    for name, hits in zip(queries.names, lists, strict=True):
        print(f"\n{name}")
        for rank, hit in enumerate(hits, 1):
            same = "" if threshold is None else ("same" if hit.similarity >= threshold else "")
            print(f"{rank:4}  {hit.similarity:6.3f}  {same:4}  {hit.path}")
    if args.figure and lists:
        from reidlib import plots

        figure = plots.found_images(queries.names, lists, title=f"{extractor.model.name} in {Path(args.folder).name}",
                                    threshold=threshold)  # fmt: skip
        print(f"\nlists drawn in {plots.save(figure, args.figure)}")
    if args.groups:
        if threshold is None:
            raise ValueError("groups need a threshold: give --threshold, or --calibrate DATASET")
        groups = searched.groups(threshold)
        write_groups(args.groups, groups)
        several = [group for group in groups if len(group) > 1]
        alone = len(groups) - len(several)
        print(f"\n{len(several)} people with several images, {alone} images alone, at {threshold:.3f}: {args.groups}")


def write_groups(file: str | Path, groups: Sequence[Sequence[str]]) -> Path:
    """Write groups of images as a table path,pid, which a person can correct and `load_dataset` can read."""
    file = Path(file)
    with whole_file(file) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["path", "pid"])
        for number, group in enumerate(groups, 1):
            writer.writerows([path, f"person-{number:05}"] for path in group)
    return file


# extract


_OF_NAMES = "what file names say, such as '{camid}_{time}_*.jpg': into the columns camera, time and track"


def extract(argv: Sequence[str] | None = None) -> int:
    """`python -m reidlib.extract FOLDER -o feats.parquet`: path, camera, time, track, feature and the weights' hash."""
    parser = _common(argparse.ArgumentParser(prog="python -m reidlib.extract", description=extract.__doc__), _OF_NAMES)
    parser.add_argument("folder", help="the images; sub-folders are read too")
    parser.add_argument("-o", "--output", default="feats.parquet", help="the Parquet file to write")
    return _command(_extract, parser, argv)


def _extract(args: argparse.Namespace) -> None:
    index = _updated(_extractor(args), args.folder, args.index)
    print(f"{write_parquet(index, args.output, args.pattern)} rows in {args.output}")


def write_parquet(index: "ImageIndex", file: str | Path, pattern: str = "") -> int:
    """Write an index as a Parquet file, one features file of it at a time.

    Columns: path, camera, time, track (text, "" where unknown; see `own_images.fields_of_name`), vector (float32, of
    fixed length), weights (SHA-256). Returns the number of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from reidlib.data.own_images import compile_pattern

    if pattern:
        compile_pattern(pattern)  # an error now, not after hours
    dim, weights = index.extractor.model.feature_dim, index.extractor.weights
    texts = [pa.field(name, pa.string()) for name in ("path", "camera", "time", "track")]
    vector, hashed = pa.field("vector", pa.list_(pa.float32(), dim)), pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([*texts, vector, pa.field("weights", hashed)], metadata=index.extractor.stamp)
    rows = 0
    with whole_file(file) as part, pq.ParquetWriter(part, schema, use_dictionary=["weights", "camera"]) as writer:
        for paths, fields, feats in index.table(pattern):
            named = [[field.get(name) or "" for field in fields] for name in ("camid", "time", "track")]
            columns = [[_utf8(path) for path in paths], *([_utf8(x) for x in column] for column in named)]
            values = pa.FixedSizeListArray.from_arrays(pa.array(feats.flatten().numpy()), dim)
            same = pa.DictionaryArray.from_arrays(pa.array([0] * len(paths), pa.int32()), [weights])
            writer.write_table(pa.table([*(pa.array(c, pa.string()) for c in columns), values, same], schema=schema))
            rows += len(paths)
    return rows


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
