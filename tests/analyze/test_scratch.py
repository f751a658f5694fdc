"""The state that long computations leave: found again by the same computation, and by no other."""

import numpy as np

from analyze.scratch import Scratch


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"basis": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32), "count": np.array(7)}
    Scratch(tmp_path / "s.npz", {"seed": 0}).save(arrays)
    found = Scratch(tmp_path / "s.npz", {"seed": 0}).load()
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[key], arrays[key]) and found[key].dtype == arrays[key].dtype for key in arrays)


def test_another_computation_does_not_find_them(tmp_path):
    Scratch(tmp_path / "s.npz", {"seed": 0}).save({"count": np.array(7)})
    assert Scratch(tmp_path / "s.npz", {"seed": 1}).load() is None


def test_a_damaged_file_is_as_good_as_none(tmp_path):
    scratch = Scratch(tmp_path / "s.npz")
    scratch.save({"count": np.arange(1000)})
    whole = scratch.path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80\x04N.", whole[:100] + bytes(len(whole) - 100)):
        scratch.path.write_bytes(content)
        assert scratch.load() is None


def test_nothing_is_left_when_it_is_done(tmp_path):
    scratch = Scratch(tmp_path / "s.npz")
    scratch.save({"count": np.array(7)})
    scratch.clear()
    scratch.clear()
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Scratch().save({"count": np.array(7)})
    assert Scratch().load() is None
    assert list(tmp_path.iterdir()) == []
