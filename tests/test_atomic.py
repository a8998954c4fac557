"""Files written whole or not at all, also on a disk that is full."""

import os
import subprocess
from pathlib import Path

import pytest

from bidir.atomic import write_bytes, write_text


def test_what_was_there_is_replaced_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for text in ("old", "größer"):
        write_text(path, text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the previous file is intact.*file/below") as error:
        write_bytes(tmp_path / "file" / "below", b"")
    assert error.value.filename == str(tmp_path / "file" / "below")


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs root to mount a tiny disk")
def test_a_disk_that_is_really_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_bytes(tmp_path / "file", b"old")
        with pytest.raises(OSError, match="previous file is intact"):
            write_bytes(tmp_path / "file", bytes(200_000))
        assert (tmp_path / "file").read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
