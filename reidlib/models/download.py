"""A file from the web, whole and unchanged: fetched once, continued after a cut, known again by its hash.

torch.hub starts anew after every cut, huggingface_hub continues but for its own host only, and pooch does not continue;
hence this. What has come lies in `<name>.part` until all of it is there. `<name>.json` beside the file holds the link,
the size and the sha256 that it had at first use.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

from reidlib.files import sha256, whole_file

TRIES, PAUSE = 5, 1.0  # connections that may be cut, and seconds between them
_BLOCK = 1 << 18


class DownloadError(OSError):
    """A link that gives no file, a place that takes none, or a file that is not what it was."""


class _Cut(Exception):
    """The connection ended early; another one may bring the rest."""


def fetch(link: str, path: str | Path, *, progress: bool | None = None, timeout: float = 30.0) -> str:
    """Bring what `link` serves to `path`, unless it is there; returns its sha256.

    A server is asked for the rest only if it says by ETag or date that the file is still the same. Of several processes
    that want it one fetches and the others wait. `timeout`: seconds without a byte. `progress`: None for a bar on
    terminals only. DownloadError says in one sentence what is wrong, a file that is not what it was at first use
    included; what has come is kept.
    """
    path = Path(path)
    if not path.is_file():
        with _alone(path):
            if not path.is_file():
                _download(link, path, progress, timeout)
    digest = checked(path)
    note(path, link, digest)
    return digest


def checked(path: Path) -> str:
    """The sha256 of `path`. DownloadError where `<name>.json` beside it says another."""
    digest = sha256(path)
    if (first := _record(path).get("sha256", digest)) != digest:
        raise DownloadError(
            f"{path} has changed since its first use (sha256 {first[:12]}… then, {digest[:12]}… now): delete it to "
            f"fetch it again, or {_beside(path).name} beside it to accept it as it is"
        )
    return digest


def note(path: Path, link: str, digest: str) -> None:
    """Write into `<name>.json` what the first use found, unless it is there or the folder cannot be written to."""
    if "sha256" not in _record(path):
        with suppress(OSError):
            _write_record(path, {"link": link, "size": path.stat().st_size, "sha256": digest})


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _record(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_beside(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DownloadError(f"{_beside(path)} is not valid JSON ({error}): delete it") from error


def _write_record(path: Path, record: dict[str, Any]) -> None:
    with whole_file(_beside(path)) as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DownloadError(
            f"nothing can be written to {path.parent} ({error.strerror}): set TORCH_HOME to a folder where it can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(link: str, path: Path, progress: bool | None, timeout: float) -> None:
    for tried in range(1, TRIES + 1):
        try:
            return _receive(link, path, progress, timeout)
        except _Cut as cut:
            reason = cut
        if tried < TRIES:
            time.sleep(PAUSE)
    raise DownloadError(f"{link} was cut off {TRIES} times, {reason}: try again later, what has come is kept")


def _receive(link: str, path: Path, progress: bool | None, timeout: float) -> None:
    """One connection: the rest of the part where the server has the same file still and can, all of it otherwise."""
    part, record = path.with_name(f"{path.name}.part"), _record(path)
    same = record.get("validator") if record.get("link") == link else None
    have = part.stat().st_size if same and part.is_file() else 0
    with _open(link, {"Range": f"bytes={have}-", "If-Range": same} if have else {}, timeout) as response:
        if response.status == 416 or (response.status == 206 and _begin(response) != have):
            part.unlink()
            raise _Cut("it cannot be continued")
        have = have if response.status == 206 else 0
        size = have + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        tag = response.headers["ETag"] or ""
        validator = response.headers["Last-Modified"] if tag[:2] in ("", "W/") else tag  # a weak tag is no proof
        try:
            _write_record(path, record | {"link": link, "size": size, "validator": validator})
            with part.open("ab" if have else "wb") as file, _bar(path.name, have, size, progress) as bar:
                for block in _blocks(response):
                    bar.update(file.write(block))
                file.flush()
                os.fsync(file.fileno())  # before it gets its name: a power cut leaves a part or the whole
            came = part.stat().st_size
        except OSError as error:
            raise DownloadError(f"{part} cannot be written ({error.strerror}): make room and try again") from error
    if size is not None and came != size:
        raise _Cut(f"at {came:,} of {size:,} bytes")
    with part.open("rb") as file:
        head = file.read(512).lstrip()
    if not head or head.startswith(b"<"):
        part.unlink()
        raise DownloadError(f"{link} gives {'a web page' if head else 'nothing'}, not a file: open it in a browser")
    part.replace(path)


def _open(link: str, headers: dict[str, str], timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "reidlib", "Accept-Encoding": "identity"} | headers
    try:
        response = urlopen(Request(link, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code == 416:
            return error  # it is a response as well
        raise DownloadError(f"{link} answers {error.code} {error.reason}: it is not there for us now") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise DownloadError(f"{link} cannot be reached ({_plain(reason)}): is this computer online?") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise DownloadError(f"{link} gives a web page, not a file: open it in a browser")
    return response


def _plain(reason: object) -> str:
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _begin(response: HTTPResponse) -> int:
    found = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
    return int(found[1]) if found else -1


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, HTTPException) as error:
            raise _Cut(f"the last time by {_plain(error)}") from error
        if not block:
            return
        yield block


def _bar(name: str, have: int, size: int | None, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    disable = None if progress is None else not progress
    return tqdm(
        desc=name, initial=have, total=size, unit="B", unit_scale=True, unit_divisor=1024, leave=False, disable=disable
    )
