"""Files and folders that appear whole or not at all: written under a temporary name, flushed, then renamed."""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART = ".part-"
_SCRATCH = 2**24  # bytes


def sha256(path: str | Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_parts(folder: str | Path) -> None:
    """Remove what a killed process had begun in `folder` and never renamed. Only for a folder with one writer."""
    for part in Path(folder).glob(f".*{_PART}*"):
        part.unlink()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it there when the block ends well, remove it when it does not.

    The file is on disk (fsync) before the rename, so a kill or a power cut leaves the old file or the new one.
    Raises OSError with a sentence that names `path` when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    # Not by mkstemp, whose files only their owner may read: the umask, which threads share, is the kernel's business.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        _raise_if_disk_full(error, path)
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder that does not exist yet. If another process made it meanwhile, that one is kept."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    part.mkdir()
    try:
        yield part
        try:
            part.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except BaseException as error:
        _raise_if_disk_full(error, path)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}{_PART}{secrets.token_hex(8)}{path.suffix}")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the temporary folder of this computer (TMPDIR), removed when the block ends.

    Raises OSError naming the temporary folder where it cannot be written or is full.
    """
    try:
        folder = tempfile.mkdtemp()
        if shutil.disk_usage(folder).free < _SCRATCH:
            os.rmdir(folder)
            raise OSError(errno.ENOSPC, "less than 16 MiB are free")
    except OSError as error:
        named = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
        raise OSError(f"the temporary folder {named} cannot be used ({error}): set TMPDIR to another") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _raise_if_disk_full(error: BaseException, path: Path) -> None:
    """torch and safetensors wrap the operating system's error in their own: follow what led to it, and its words."""
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(cause):
            sentence = f"the disk is full: {path} was not written, what was there before is untouched"
            raise OSError(errno.ENOSPC, sentence) from error
        cause = cause.__cause__ or cause.__context__
