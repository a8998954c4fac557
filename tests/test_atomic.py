"""Files written whole or not at all, also on a disk that is full."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from bidir.atomic import remove_drafts, write_bytes, write_text


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


def test_a_link_in_the_place_of_a_draft_leads_nowhere(tmp_path, monkeypatch):
    """By the name that drafts once had, and by the one that they have, if it could be guessed."""
    victim, path = tmp_path / "victim", tmp_path / "file.txt"
    victim.write_text("mine")
    (tmp_path / f"file.txt.{os.getpid()}.part").symlink_to(victim)
    write_text(path, "new")
    assert (path.read_text(), path.is_symlink(), victim.read_text()) == ("new", False, "mine")
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / "file.txt.guessed.part").symlink_to(victim)
    with pytest.raises(OSError, match="previous file is intact"):
        write_text(path, "newer")
    assert (path.read_text(), victim.read_text()) == ("new", "mine")


def test_drafts_that_a_kill_left_are_removed_once_they_are_old(tmp_path):
    for name, age in (("a.pt.12.part", 7200), ("b.pt.13.part", 60), ("a.pt", 7200)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_drafts(tmp_path, age=3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt.13.part"]
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
