"""Atomic writes: the old file or the new one, never half of either."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ir_peft.files import atomic_path, write_bytes, write_text

ROOT = Path(__file__).parents[1]


def test_write_and_replace(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_the_temporary_file_lies_beside_the_target_with_its_suffix(tmp_path):
    path = tmp_path / "image.png"
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("ha")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    script = textwrap.dedent(f"""
        import resource, signal, sys
        sys.path.insert(0, {str(ROOT / "ir_peft")!r})
        from files import write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # A write past the limit is then an OSError.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes({str(path)!r}, bytes(10_000))
        except OSError:
            sys.exit(7)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 7
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "inner", "text")


def test_sigkill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(ROOT / "ir_peft")!r})
        from files import write_bytes
        n = 0
        while True:
            write_bytes({str(path)!r}, bytes([n % 256]) * 1_000_000)
            n += 1
    """)
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05 + os.getpid() % 50 / 1000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    content = path.read_bytes()
    assert len(content) == 1_000_000 and len(set(content)) == 1
