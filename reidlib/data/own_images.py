"""Images of one's own: what lies in a folder, and what their names and sub-folders say of camera, time and person."""

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from reidlib.data.samples import SPLITS, ReIDDataset, Sample
from reidlib.errors import unknown_name

NOBODY = {"junk": -1, "-1": -1, "distractor": 0}
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FIELDS = ("pid", "camid", "track", "time")
# Cameras and times that a name gives without being asked: c3_20240131T0900_17.jpg, cam2_000451.png.
DEFAULT_PATTERN = re.compile(r"(?P<camid>c(?:am(?:era)?)?-?\d+)_(?P<time>\d[\d.:T-]*)(?:_.*)?\.\w+", re.IGNORECASE)


def walk_folder(folder: str | Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder, sorted within its folder, with the reason why it is no image, or "".

    Hidden files and folders are passed over; links to folders are followed, once each. The listing of one folder at a
    time is held in memory.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        error = NotADirectoryError if folder.exists() else FileNotFoundError
        raise error(f"{folder} is {'a file' if folder.exists() else 'not there'}: name a folder of images")
    visited = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__MACOSX" and real[n] not in visited)
        visited |= {real[name] for name in folders if os.path.islink(os.path.join(root, name))}
        for name in sorted(files):
            if name[0] != ".":
                ending = os.path.splitext(name)[1]
                known = ending.lower() in ENDINGS
                yield (
                    Path(root, name),
                    "" if known else f"no image that can be read, by its ending {ending or 'of none'}",
                )


def has_images(folder: str | Path) -> bool:
    """Whether there is an image anywhere below a folder, by its name."""
    return any(not reason for _, reason in walk_folder(folder))


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A file-name pattern such as "{camid}_{time}_*.jpg" as a regular expression with groups of those names.

    Args:
        pattern: Fields in braces, of `FIELDS`, each as short as possible; "*" for anything and "?" for one character.
            It is compared with the file's name, or, if it has a "/" in it, with the path from the dataset's folder.

    Raises:
        ValueError: A field is unknown, is there twice, or there is none.
    """
    parts, names = [], []
    for part in re.split(r"(\{[^{}]*\}|\*|\?)", pattern):
        if part[:1] == "{":
            names.append(part[1:-1])
            parts.append(f"(?P<{part[1:-1]}>[^/]+?)")
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part)))
    if not names or len(set(names)) < len(names) or set(names) - set(FIELDS):
        fields = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"the pattern {pattern!r} must have one or more of {fields}, each once, as in {{camid}}_*.jpg")
    return re.compile("".join(parts))


_compiled = lru_cache(compile_pattern)


def fields_of_name(name: str, pattern: str = "") -> dict[str, str]:
    """What one path from the folder says: by `pattern`, else by `DEFAULT_PATTERN`; the first sub-folder is the camera
    where the name says none. Nothing of it is an error: a name that does not fit says nothing.
    """
    form = _compiled(pattern) if pattern else DEFAULT_PATTERN
    match = form.fullmatch(name if "/" in pattern else name.rpartition("/")[2])
    return {"camid": name.partition("/")[0] if "/" in name else ""} | (match.groupdict() if match else {})


def fields_of_names(names: Sequence[str], pattern: str = "") -> tuple[list[dict[str, str]], list[str]]:
    """What file names say.

    Args:
        names: Paths from the dataset's folder, with /.
        pattern: See `compile_pattern`. Without one, `DEFAULT_PATTERN` counts if every name is of that form.

    Returns:
        The fields of each name, and notes for the user.

    Raises:
        ValueError: Some names are not of the form `pattern`.
    """
    if pattern:
        form, whole = compile_pattern(pattern), "/" in pattern
        found = [form.fullmatch(name if whole else name.rpartition("/")[2]) for name in names]
        bad = [name for name, match in zip(names, found, strict=True) if not match]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise ValueError(
                f"{len(bad)} of {len(names)} names are not of the form {pattern}: {', '.join(bad[:3])}{more}; "
                "* stands for anything"
            )
        return [match.groupdict() for match in found if match], []
    found = [DEFAULT_PATTERN.fullmatch(name.rpartition("/")[2]) for name in names]
    if names and all(found):
        return [m.groupdict() for m in found if m], ["cameras and times are those of the names, {camid}_{time}_*"]
    notes = []
    if names and all(re.match(r"(-1|\d+)_c\d+", name.rpartition("/")[2]) for name in names):
        notes = ["the names look like Market-1501's: pattern='{pid}_c{camid}s*' would read people and cameras of them"]
    return [{} for _ in names], notes


class Image(NamedTuple):
    """One image with what is known of it as text, "" for what is not."""

    path: Path
    pid: str = ""
    camid: str = ""
    split: str = ""
    track: str = ""
    time: str = ""


def dataset_of(
    name: str, root: Path, images: Sequence[Image], *, split: str = "", seed: int = 0, notes: Sequence[str] = ()
) -> ReIDDataset:
    """A dataset of images whose labels are text.

    People and cameras are numbered from 1 in sorted order, so that every process numbers them alike. Where nobody is
    named, every image is of nobody (pid 0); unknown cameras are camera 0.

    Args:
        name, root: See `ReIDDataset`.
        images: If none of them has a split, all are in the gallery.
        split: "auto" splits by person, whatever splits there are: half of the people train. Of the others, one image
            under each camera asks, if others of the person remain under other cameras; where all images are of one
            camera, one image of a person asks as if another camera had taken it.
        seed: Of that split.
        notes: See `ReIDDataset`.

    Raises:
        ValueError: Another `split`, or "auto" where nobody is named.
    """
    if split not in ("", "auto"):
        raise unknown_name("split", split, ("auto",))
    people, cameras = (sorted({getattr(image, of) for image in images} - {"", *NOBODY}) for of in ("pid", "camid"))
    pids = NOBODY | {"": 0} | {pid: number for number, pid in enumerate(people, 1)}
    camids = {"": 0} | {camid: number for number, camid in enumerate(cameras, 1)}
    samples = [Sample(i.path, pids[i.pid], camids[i.camid], i.track, i.time) for i in images]
    splits = [image.split or "gallery" for image in images]
    named, notes = dict(enumerate(cameras, 1)), list(notes)
    if split:
        if not people:
            raise ValueError(
                f"{name}: split='auto' is by person, and nobody is named: give people='folders' if each sub-folder is "
                "a person, a pattern with {pid}, or a column pid"
            )
        samples, splits = _split_by_person(samples, seed)
        notes.append(f"split by rule, with seed {seed}: write_table keeps it")
        if (new := max(s.camid for s in samples)) not in {*named, 0}:
            named[new] = "another camera, as which queries count"
            notes.append("all images are of one camera: queries count as if another one had taken them")
    kept: dict[str, list[Sample]] = {of: [] for of in SPLITS}
    for sample, of in zip(samples, splits, strict=True):
        if of != "train" or sample.pid > 0 or not people:  # junk and distractors train nobody
            kept[of].append(sample)
    if not people:
        notes.append("no labels: nobody is named")
    train, query, gallery = map(tuple, kept.values())
    known = dict(enumerate(people, 1)), named
    return ReIDDataset(name, root, train, query, gallery, notes=tuple(notes), people=known[0], cameras=known[1])


def _split_by_person(samples: list[Sample], seed: int) -> tuple[list[Sample], list[str]]:
    """The samples, queries of a single camera moved to a new one, and the split of each."""
    rng, found, splits = random.Random(seed), list(samples), ["gallery"] * len(samples)
    images: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        images[sample.pid].append(i)
    several, new = len({s.camid for s in samples}) > 1, 1 + max(s.camid for s in samples)
    people = sorted(pid for pid in images if pid > 0)
    rng.shuffle(people)
    for pid in people[: len(people) // 2]:
        for i in images[pid]:
            splits[i] = "train"
    for pid in people[len(people) // 2 :]:
        left: dict[int, list[int]] = defaultdict(list)
        for i in rng.sample(images[pid], len(images[pid])):
            left[samples[i].camid].append(i)
        if not several and len(images[pid]) > 1:
            (mine,) = left.values()
            splits[mine[0]], found[mine[0]] = "query", samples[mine[0]]._replace(camid=new)
        for camid in sorted(left) if several else ():
            if any(left[other] for other in left if other != camid):
                splits[left[camid].pop()] = "query"
    return found, splits


def read_folder(
    name: str, root: Path, *, people: str = "", pattern: str = "", split: str = "", seed: int = 0
) -> ReIDDataset:
    """A folder of images, with sub-folders or without.

    Args:
        name: Of the dataset.
        root: The folder. Sub-folders train/, query/ and gallery/, if there are no others, are the splits.
        people: "folders": the sub-folder that an image lies in is the person, and one above it the camera. Otherwise
            the first sub-folder is the camera, and nobody is named.
        pattern: What names say, in place of sub-folders; see `compile_pattern`.
        split, seed: See `dataset_of`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, names that do not fit `pattern`, or has the layout of a published dataset.
    """
    if people not in ("", "folders"):
        raise unknown_name("value of people", people, ("folders",))
    paths: list[Path] = []
    others: list[Path] = []
    for path, reason in walk_folder(root):
        (others if reason else paths).append(path)
    top = sorted({path.relative_to(root).parts[0] for path in paths if path.parent != root})
    if {"bounding_box_train", "bounding_box_test"} <= set(top):
        raise ValueError(
            f"{root} has the layout of Market-1501 and DukeMTMC-reID: write `market1501: {root}` or `dukemtmcreid: …` "
            "into data_paths.yaml and use that name; or name one of its folders"
        )
    if not paths:
        found = f"only {len(others)} other files, such as {others[0].name}" if others else "nothing"
        raise ValueError(f"{root} holds no image ({', '.join(ENDINGS)}): found {found}")
    by_split = bool(top) and set(top) <= set(SPLITS) and all(path.parent != root for path in paths)
    inner = [path.relative_to(root / path.relative_to(root).parts[0] if by_split else root) for path in paths]
    fields, notes = fields_of_names([path.as_posix() for path in inner], pattern)
    if people and (loose := [path for path in inner if len(path.parts) < 2]):
        raise ValueError(
            f"{len(loose)} of {len(inner)} images in {root} lie in no sub-folder, so in nobody's, such as {loose[0]}: "
            "leave out people='folders', or move them"
        )
    images, from_folders = [], 0
    for path, relative, field in zip(paths, inner, fields, strict=True):
        above = relative.parts[:-1]
        known = {"camid": above[0] if len(above) > bool(people) else "", "pid": above[-1] if people else ""} | field
        from_folders += bool(above) and "camid" not in field
        images.append(Image(path, split=path.relative_to(root).parts[0] if by_split else "", **known))
    if from_folders and not people:
        cameras = len({image.camid for image in images})
        advice = "; if they are people, say people='folders'" if "pid" not in fields[0] else ""
        notes.append(f"the {cameras} sub-folders are read as cameras{advice}")
    elif not any(field.get("camid") for field in fields) and not any(image.camid for image in images):
        notes.append("cameras are unknown: sub-folders, or a pattern such as '{camid}_{time}_*.jpg', would name them")
    if others:
        more = ", ".join(path.name for path in others[:3]) + (", …" if len(others) > 3 else "")
        notes.append(f"{len(others)} files are no images by their ending: {more}")
    has_people = any(image.pid for image in images)
    if has_people and not by_split and not split:
        split = "auto"
    return dataset_of(name, root, images, split=split, seed=seed, notes=notes)
