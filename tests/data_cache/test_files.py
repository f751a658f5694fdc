"""Files that appear whole or not at all."""

import os

import pytest

from data_cache import InputError
from data_cache.files import written_whole


def test_file_appears_at_the_end_with_the_usual_mode(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt" and not path.exists()
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_exception_leaves_the_old_file_and_nothing_else(tmp_path, fault):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(fault), written_whole(path) as temporary:
        temporary.write_text("half")
        raise fault
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), written_whole(tmp_path / "file" / "a.txt") as temporary:
        temporary.write_text("never")
    with pytest.raises(InputError, match="cannot write"), written_whole(tmp_path) as temporary:
        temporary.write_text("never")
    assert os.listdir(tmp_path) == ["file"]
