"""Files that appear whole, with the permissions that the user wants, and a temporary folder that works."""

import os
import shutil
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from reidlib.files import scratch_folder, whole_file, whole_folder


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as part:
            part.write_text("x")
        with whole_folder(tmp_path / "folder") as part:
            (part / "inner").write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_threads_that_write_leave_the_umask_alone(tmp_path, monkeypatch):
    """It belongs to the process: one thread that changes it for a moment changes the files of all the others."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))

    def write(i):
        with whole_file(tmp_path / f"{i}.txt") as part:
            part.write_text(str(i))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(100)))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{i}.txt" for i in range(100))


def test_a_scratch_folder_is_gone_afterwards():
    with pytest.raises(ZeroDivisionError), scratch_folder() as folder:
        (folder / "x").write_text(f"{1 / 0}")
    assert not folder.exists()


def test_a_temporary_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(OSError, match=rf"the temporary folder {tmp_path}/gone cannot be used .*: set TMPDIR to another"),
        scratch_folder(),
    ):
        pytest.fail("it began")


def test_a_full_temporary_folder_is_named(small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    refused = pytest.raises(OSError, match=rf"the temporary folder {small_disk} cannot be used .*16 MiB.*: set TMPDIR")
    with refused, scratch_folder():
        pytest.fail("it began")
    assert [p.name for p in small_disk.iterdir()] == ["filler"]
