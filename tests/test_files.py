"""Files whole or not at all."""

import os
from pathlib import Path

import pytest

from slabnorm.errors import OptionError
from slabnorm.files import check_writable, write_atomically


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    write_atomically(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert os.listdir(tmp_path) == ["r.html"]


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OptionError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]


def test_a_link_is_followed_and_permissions_are_a_new_files(tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    write_atomically(tmp_path / "link.html", "new")
    assert (tmp_path / "real.html").read_text() == "new"
    assert (tmp_path / "link.html").is_symlink()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "real.html").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["nosuchfolder/r.html", ".", "file/r.html"])
def test_what_cannot_be_written_is_refused_beforehand(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError):
        check_writable(tmp_path / name)


def test_devices_are_not_replaced():
    with pytest.raises(OptionError, match="regular file"):
        check_writable(Path(os.devnull))
