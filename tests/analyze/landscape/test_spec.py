"""Axes, what options are refused, and what files of strangers are."""

import dataclasses

import h5py
import numpy as np
import pytest
from surfaces import surface

from analyze.landscape.figures import figures
from analyze.landscape.spec import SUMS, Config, Prescan, Result
from analyze.run import RunFile
from data_cache import InputError

# Axes


@pytest.mark.parametrize(("span", "points"), [(0.2, 15), (0.3, 17), (0.4, 19), (0.1, 13), (0.1, 25), (0.5, 9)])
def test_a_grid_that_meets_both_checkpoints_meets_them_exactly(span, points):
    line, _ = Config(points=(points,), span=(span,), one_dimensional=True, direction_x="o.pt").axes()
    for end in (0.0, 1.0):
        meets = np.abs(np.linspace(-span, 1 + span, points) - end).min() < 1e-9
        assert (line == end).sum() == meets
    assert (line[0], line[-1]) == (-span, 1 + span) and (np.diff(line) > 0).all()


def test_the_way_to_a_checkpoint_begins_at_plain_zero():
    line, _ = Config(points=(5,), one_dimensional=True, direction_x="o.pt").axes()
    assert line.tolist() == [0, 0.25, 0.5, 0.75, 1] and not np.signbit(line).any()


def test_each_axis_has_a_span_that_suits_it():
    with pytest.raises(InputError, match="span along y must be a number above 0, not 0"):
        Config(points=(3,), span=(0.0,), direction_x="o.pt")
    with pytest.raises(InputError, match="span along x must be a number above 0"):
        Config(points=(3,), span=(0.0, 1.0), direction_y="o.pt")
    x, y = Config(points=(3,), span=(0.0, 1.0), direction_x="o.pt").axes()
    assert x.tolist() == [0, 0.5, 1] and y.tolist() == [-1, 0, 1]
    assert Config(points=(3,), span=(0.0,), direction_x="o.pt", one_dimensional=True).axes()[0].tolist() == [0, 0.5, 1]


def test_a_checkpoint_named_twice_in_a_series_is_refused():
    with pytest.raises(InputError, match="series names s2.st twice"):
        Config(series=("s1.st", "s2.st", "s2.st"))


# What strangers write


def of_a_stranger(path, config=None, subject=None, **changes):
    """A run file that holds a landscape with these arrays, whatever they are."""
    result = surface(points=(3, 3), frames=2)
    with RunFile(path, {"checkpoint": "x", "checkpoint_sha256": "x"}) as run:
        run.save("landscape", result, config=config or result.config, complete=True, seconds=1.0,
                 subject=subject if subject is not None else result.subject)  # fmt: skip
    with h5py.File(path, "r+", libver="latest") as file:
        for name, value in changes.items():
            file["landscape"][name][...] = value
    return path


SUBJECT = surface(points=(3, 3)).subject
DAMAGED = {
    "images is missing": {"subject": {"checkpoint": "x", "model": "y", "data": "z"}},
    "images is 'many'": {"subject": {**SUBJECT, "images": "many"}},
    "weight_decay is 'x'": {"subject": {**SUBJECT, "weight_decay": "x"}},
    "model is missing": {"subject": {key: value for key, value in SUBJECT.items() if key != "model"}},
    "x must be finite": {"x": np.nan},
    "x must be finite numbers, each above the last": {"x": [1.0, 0.0, -1.0]},
    "y must be finite numbers, each above the last": {"y": 0.0},
    "counts of images that are no counts": {"count": -1},
}


@pytest.mark.parametrize("sentence", DAMAGED)
def test_files_that_hold_no_landscape_are_refused_in_a_sentence_that_names_them(sentence, tmp_path):
    path = of_a_stranger(tmp_path / "s.h5", **DAMAGED[sentence])
    with pytest.raises(InputError, match=sentence) as refused:
        Result.read(path)
    assert str(refused.value).count(str(path)) == 1 and "\n" not in str(refused.value)


def test_arrays_without_frames_numbers_or_points_are_refused():
    result = surface(points=(3, 3))
    none = {name: getattr(result, name)[:0] for name in ("frame", "status", *SUMS)}
    nothing = Prescan(*[np.zeros(0)] * 4, 1.0, np.nan)
    for sentence, changes in {
        "holds no frames": none,
        "frame in float64": {"frame": np.zeros(1)},
        "nll_sum in <U1": {"nll_sum": np.full((1, 3, 3), "a")},
        "pre-scan holds no points": {"prescan": nothing},
    }.items():
        with pytest.raises(InputError, match=sentence):
            dataclasses.replace(result, **changes)


def test_a_landscape_that_says_nothing_of_what_it_is_of_can_be_drawn(tmp_path):
    result = Result.read(of_a_stranger(tmp_path / "s.h5", subject={}))
    assert set(figures(result, [surface(points=(3, 3))])) == {"", "surface", "metrics", "compare"}
    assert result.rows() and result.quantities()
