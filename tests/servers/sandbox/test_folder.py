"""The escapes through links and races are in `test_escapes.py`."""

import os

import pytest

from agentrl.servers.sandbox import SandboxFileError
from agentrl.servers.sandbox.folder import MOST_PARTS, Folder, Quota, components

MOST = 1 << 20


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, None)


def test_what_is_written_is_read_and_listed(folder):
    folder.write("a/b/c.bin", b"\x00\xff")
    folder.write("/sandbox/top", b"")
    assert folder.read("a/b/c.bin", MOST) == b"\x00\xff"
    assert folder.read("/sandbox/a/./b/c.bin", MOST) == b"\x00\xff"
    assert folder.listing(".") == ["a/", "a/b/", "a/b/c.bin", "top"]
    assert folder.listing("/sandbox/a") == ["b/", "b/c.bin"]
    folder.write("top", b"new")
    assert folder.read("top", MOST) == b"new"
    assert not [name for name in folder.listing(".") if "agentrl" in name]  # nothing half-written is left


def test_a_program_that_can_be_run_stays_one(folder, tmp_path):
    folder.write("run.sh", b"old")
    (tmp_path / "run.sh").chmod(0o755)
    folder.write("run.sh", b"new")
    folder.write("text", b"new")
    assert os.access(tmp_path / "run.sh", os.X_OK)
    assert not (tmp_path / "text").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "no such file"),
        ("missing/file", "no such file"),
        ("folder", "a folder, not a file"),
        ("file/below", "through a file"),
        ("link", "symbolic link"),
        ("loop", "symbolic link"),
        ("pipe", "a pipe, not a file"),
        ("large", "larger than 1048576 bytes"),
        ("..", "straight down"),
        ("folder/../file", "straight down"),
        ("/etc/passwd", "outside of /sandbox"),
        ("/sandboxes", "outside of /sandbox"),
        ("", "names no file"),
        (".", "names no file"),
        ("/sandbox", "names no file"),
        ("zero\0byte", "zero byte"),
        ("x" * 300, "too long"),
        ("\ud800", "cannot be the name"),
        ("d/" * 100 + "f", "too deep"),
    ],
)
def test_a_file_that_cannot_be_had_is_refused_in_words(folder, tmp_path, path, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(MOST + 1))
    with pytest.raises(SandboxFileError, match=reason) as refused:
        folder.read(path, MOST)
    assert str(tmp_path) not in str(refused.value)


def test_names_that_are_no_text_are_listed(folder, tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff\n", "w"):
        pass
    assert folder.listing(".") == ["\ufffd\n"]
    assert folder.listing(".")[0].encode() == b"\xef\xbf\xbd\n"


def test_a_folder_that_holds_too_much_says_so(folder, tmp_path):
    assert folder.excess(MOST) is None
    folder.write("a", bytes(MOST))
    folder.write("b", b"x")
    assert folder.excess(MOST) == "its folder held more than 1 MiB"
    assert folder.excess(8 * MOST) is None
    assert folder.excess(8 * MOST, 1) == "its folder held more than 1 entries"
    os.makedirs(tmp_path.joinpath(*["d"] * (MOST_PARTS + 2)))
    assert folder.excess(8 * MOST) == f"it nested folders more than {MOST_PARTS} deep"


def test_a_quota_that_was_broken_lets_programs_only_remove(folder, tmp_path):
    quota = Quota(folder)
    watch = quota.watch(MOST)
    folder.write("a", bytes(2 * MOST))
    assert watch() == "its folder held more than 1 MiB"
    assert quota.over
    assert quota.watch(MOST)() is None  # nothing can be added, so what is there does not count
    (tmp_path / "a").unlink()
    assert quota.measure(MOST) is None
    assert not quota.over


def test_a_path_is_cut_into_its_parts():
    assert components("a//b/./c") == ["a", "b", "c"]
    assert components("/sandbox/a") == ["a"]
