"""A file from the web, whole and unchanged: downloaded once, continued after a cut, checked against a recorded hash.

torch.hub starts anew after every cut, huggingface_hub continues but for its own host only, and pooch does not continue;
hence this. What has been received is in `<name>.part` until all of it is there. `<name>.json` beside the file records
the link and the size, and once the file has been loaded its sha256.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, Request

from filelock import FileLock

from reidlib.files import sha256, whole_file

TRIES, PAUSE = 5, 1.0  # connections that may be cut, and seconds between them
_BLOCK = 1 << 18
_HANDLERS = (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPRedirectHandler)
_HANDLERS += (request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor, request.UnknownHandler)


class DownloadError(OSError):
    """A link that gives no file, a folder that takes none, or a file that is not the one recorded."""


class _CutError(Exception):
    """The connection ended early; another one may bring the rest."""


def fetch(link: str, path: str | Path, *, progress: bool | None = None, timeout: float = 30.0) -> str:
    """Download `link` to `path`, unless it is there. Of several processes one downloads and the others wait.

    A server is asked for the rest of a file only if it says by ETag or date that the file is still the same.

    Args:
        link: An http or https link.
        path: Where the file goes.
        progress: Whether to show a bar; None for terminals only.
        timeout: Seconds without a byte before a connection counts as cut.

    Returns:
        The sha256 of the file.

    Raises:
        DownloadError: Says in one sentence what is wrong; what has been received is kept.
    """
    path = Path(path)
    if not path.is_file():
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise DownloadError(
                f"nothing can be written to {path.parent} ({error.strerror}): set TORCH_HOME to a folder where it can"
            ) from error
        try:
            if not path.is_file():
                _download(link, path, progress, timeout)
        finally:
            lock.release()
    return verify(path)


def verify(path: Path) -> str:
    """Return the sha256 of `path`. Raises DownloadError if the recorded hash is another one."""
    digest = sha256(path)
    if (first := _record(path).get("sha256", digest)) != digest:
        raise DownloadError(
            f"{path} has changed since its first use (sha256 {str(first)[:12]}… then, {digest[:12]}… now): delete it "
            f"to fetch it again, or {_record_path(path).name} beside it to accept it as it is"
        )
    return digest


def record_hash(path: Path, link: str, digest: str) -> None:
    """Record the hash of a file that was loaded, unless there is one or the folder cannot be written to."""
    if "sha256" not in (record := _record(path)):
        with suppress(OSError):
            _write_record(path, record | {"link": link, "size": path.stat().st_size, "sha256": digest})


def discard_unverified(path: Path) -> bool:
    """Delete a file that was downloaded but never loaded; returns whether it was one."""
    record = _record(path)
    if "link" not in record or "sha256" in record:
        return False
    path.unlink(missing_ok=True)
    _record_path(path).unlink(missing_ok=True)
    return True


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{_record_path(path)} is not valid JSON ({_one_line(error)}): delete it") from error
    if not isinstance(record, dict):
        raise DownloadError(f"{_record_path(path)} holds no JSON object: delete it")
    return record


def _write_record(path: Path, record: dict[str, Any]) -> None:
    with whole_file(_record_path(path)) as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _download(link: str, path: Path, progress: bool | None, timeout: float) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            return _receive(link, path, progress, timeout)
        except _CutError as cut:
            reason = cut
        if attempt < TRIES:
            time.sleep(PAUSE)
    raise DownloadError(f"{link} was cut off {TRIES} times, {reason}: try again later, what has come is kept")


def _receive(link: str, path: Path, progress: bool | None, timeout: float) -> None:
    """One connection: the rest of the part if the server still has the same file and can, all of it otherwise."""
    part, record = path.with_name(f"{path.name}.part"), _record(path)
    same = record.get("validator") if record.get("link") == link else None
    have = part.stat().st_size if isinstance(same, str) and part.is_file() else 0
    with _open(link, {"Range": f"bytes={have}-", "If-Range": str(same)} if have else {}, timeout) as response:
        if response.status == 206 and not have:
            raise DownloadError(f"{link} answers with a part of a file, though all of it was asked for")
        if response.status == 416 or (response.status == 206 and not _continues(response, have, record.get("size"))):
            part.unlink()
            raise _CutError("it cannot be continued")
        have = have if response.status == 206 else 0
        length = response.headers["Content-Length"]
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
            raise DownloadError(f"{link} answers with the length {length[:40]!r}, which is none")
        size = have + int(length) if length else None
        tag = response.headers["ETag"] or ""
        validator = response.headers["Last-Modified"] if tag[:2] in ("", "W/") else tag  # a weak tag is no proof
        try:
            _write_record(path, record | {"link": link, "size": size, "validator": validator})
            with _bar(path.name, have, size, progress) as bar, part.open("ab" if have else "wb") as file:
                for block in _blocks(response):
                    bar.update(file.write(block))
                file.flush()
                os.fsync(file.fileno())  # before it gets its name: a power cut leaves a part or the whole
            received = part.stat().st_size
        except OSError as error:
            raise DownloadError(f"{part} cannot be written ({error.strerror}): make room and try again") from error
    if size is not None and received != size:
        raise _CutError(f"at {received:,} of {size:,} bytes")
    with part.open("rb") as file:
        head = file.read(512).lstrip()
    if not head or head.startswith(b"<"):
        part.unlink()
        raise DownloadError(f"{link} gives {'a web page' if head else 'nothing'}, not a file: open it in a browser")
    part.replace(path)


def _open(link: str, headers: dict[str, str], timeout: float) -> HTTPResponse | HTTPError:
    headers = {"User-Agent": "reidlib", "Accept-Encoding": "identity"} | headers
    try:
        opener = OpenerDirector()  # http and https only: urlopen's would follow a link to file:// or ftp://
        for handler in _HANDLERS:
            opener.add_handler(handler())
        response = opener.open(Request(link, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error  # it is a response as well
        raise DownloadError(f"{link} answers {error.code} {_one_line(error.reason)}: no file is available") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise DownloadError(f"{link} cannot be reached ({_one_line(reason)}): is this computer online?") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise DownloadError(f"{link} gives a web page, not a file: open it in a browser")
    return response


def _one_line(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return ascii(" ".join(text.split())[:200])[1:-1]


def _continues(response: HTTPResponse, have: int, size: object) -> bool:
    """Whether the response begins at byte `have` of a file of `size` bytes, where both say how many."""
    found = re.fullmatch(r"bytes (\d{1,15})-\d+/(\d{1,15}|\*)", response.headers["Content-Range"] or "", re.ASCII)
    return found is not None and int(found[1]) == have and (size is None or found[2] in ("*", str(size)))


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, HTTPException) as error:
            raise _CutError(f"the last time by {_one_line(error)}") from error
        if not block:
            return
        yield block


def _bar(name: str, have: int, size: int | None, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    disable = None if progress is None else not progress
    return tqdm(
        desc=name, initial=have, total=size, unit="B", unit_scale=True, unit_divisor=1024, leave=False, disable=disable
    )
