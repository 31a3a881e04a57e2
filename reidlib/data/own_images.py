"""Images of one's own: what lies in a folder, and what their names and sub-folders say of camera, time and person."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

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


def number(names: Iterable[str], first: int = 1) -> dict[str, int]:
    """Names → numbers from `first` on, in sorted order, so that every process numbers them alike."""
    return {name: n for n, name in enumerate(sorted(set(names)), first)}


def common(items: Iterable[str], most: int = 3) -> str:
    """The most frequent of `items`, with how often each is there."""
    return ", ".join(f"{count} × {item}" for item, count in Counter(items).most_common(most))
