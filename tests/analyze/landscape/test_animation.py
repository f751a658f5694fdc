"""Animations: what moves, what stays, and how large the files are."""

import importlib
import itertools
import stat
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageSequence
from surfaces import bowl, surface

from analyze.landscape import animation
from analyze.landscape.animation import EASES, between, check_together, timeline, write_gif
from analyze.landscape.shown import one_frame
from analyze.landscape.spec import Config
from data_cache.errors import InputError


def pictures(path):
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)]


def color_tables(path):
    """Sizes of the local colour tables of a GIF's pictures, 0 where the shared one is used (GIF89a)."""
    data = path.read_bytes()
    position, tables = 13 + 3 * 2 ** ((data[10] & 7) + 1), []
    while data[position] != 0x3B:
        if data[position] == 0x2C:
            flags = data[position + 9]
            tables.append(2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
            position += 10 + 3 * tables[-1] + 1
        else:
            assert data[position] == 0x21
            position += 2
        while data[position]:
            position += 1 + data[position]
        position += 1
    return tables


# Time


@pytest.mark.parametrize("ease", EASES)
def test_easing_goes_from_zero_to_one_and_never_back(ease):
    gone = [EASES[ease](t) for t in np.linspace(0, 1, 101)]
    assert gone[0] == 0 and gone[-1] == 1 and gone[50] == pytest.approx(0.5)
    assert all(a <= b for a, b in itertools.pairwise(gone))


def test_every_frame_is_shown_as_it_is_and_the_last_leads_to_the_first():
    moments = timeline(6, 10, "cubic", orbit=False)
    assert len(moments) == 60
    assert [moment.frame for moment in moments if moment.weight == 0] == [0, 1, 2, 3, 4, 5]
    assert moments[-1].frame == 5 and moments[-1].following == 0 and 0.9 < moments[-1].weight < 1
    assert len({moment.azimuth for moment in moments}) == 1


def test_one_step_is_nothing_but_the_realisations():
    assert [moment.weight for moment in timeline(4, 1, "cubic", orbit=False)] == [0, 0, 0, 0]


def test_an_orbit_is_one_turn():
    azimuths = [moment.azimuth for moment in timeline(3, 8, "linear", orbit=True)]
    np.testing.assert_allclose(np.diff(azimuths), 360 / 24)
    assert len(timeline(1, 10, "linear", orbit=True)) == 60


def test_in_between_pictures_lie_between_the_realisations():
    result = surface(frames=3, points=(9, 7))
    frames = [one_frame(result, "nll", number) for number in range(3)]
    low, high = np.minimum(*result.nll[[2, 0]]), np.maximum(*result.nll[[2, 0]])
    for moment in timeline(3, 5, "cubic", orbit=False):
        shown = between(frames, moment)
        if moment.weight == 0:
            np.testing.assert_array_equal(shown.value, result.nll[moment.frame])
        elif moment.frame == 2:
            assert ((shown.value >= low) & (shown.value <= high)).all()


def test_what_one_of_both_lacks_is_missing_between_them():
    status = np.ones((2, 5, 5), np.uint8)
    status[1, 2, 2] = 0
    frames = [one_frame(surface(frames=2, points=(5, 5), status=status), "nll", number) for number in range(2)]
    shown = between(frames, timeline(2, 3, "linear", orbit=False)[1])
    assert shown.missing.sum() == 1 and np.isnan(shown.value[2, 2])


# Files


@pytest.fixture(scope="module")
def realistic(tmp_path_factory):
    """Six realisations of 21 x 21 points, sixty pictures of 400 pixels."""
    seen = []
    path = tmp_path_factory.mktemp("gif") / "a.gif"
    write_gif([surface(frames=6)], path, progress=lambda part, done, total, note: seen.append((done, total)))
    return path, seen


def test_sixty_pictures_of_400_pixels_take_less_than_3_megabytes(realistic):
    path, seen = realistic
    assert path.stat().st_size < 3e6
    assert seen == [(number, 60) for number in range(1, 61)]
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (60, (400, 400), 0)
        assert {frame.info["duration"] for frame in ImageSequence.Iterator(image)} == {30}


def test_all_pictures_share_one_palette(realistic):
    assert color_tables(realistic[0]) == [0] * 60


def test_what_surrounds_the_surface_never_changes(realistic):
    shown = pictures(realistic[0])
    assert all(np.array_equal(shown[0][-45:], each[-45:]) for each in shown)
    assert all(np.array_equal(shown[0][:20], each[:20]) for each in shown)
    assert (shown[0][0, 0] == 255).all()
    assert any((shown[0] != each).any() for each in shown)


def test_the_file_shows_what_was_drawn(realistic):
    result = surface(frames=6)
    frames = [one_frame(result, "nll", number) for number in range(6)]
    moments = timeline(6, 10, "cubic", orbit=False)
    stage = animation._Stage([result], [frames], "nll", "surface", 400, animation._caption(moments, "nll", [frames]))
    shown = pictures(realistic[0])
    for number in (0, 7, 33, 59):
        wrong = np.abs(shown[number] - stage.picture(moments[number]).astype(int)).max(axis=2)
        assert wrong.mean() < 2 and np.mean(wrong > 40) < 0.01


@pytest.mark.parametrize("style", ["surface", "contour"])
def test_the_best_accuracy_is_not_cut_off(style):
    result = surface(frames=2)
    frames = [one_frame(result, "accuracy", number) for number in range(2)]
    stage = animation._Stage([result], [frames], "accuracy", style, 100, "")
    assert stage.limits.high == stage.levels[-1] == result.accuracy.max()


def test_the_loop_has_no_seam(realistic):
    shown = pictures(realistic[0])
    steps = [np.abs(a - b).mean() for a, b in itertools.pairwise([*shown, shown[0]])]
    assert steps[-1] <= max(steps[:-1])
    assert steps[-1] == pytest.approx(steps[0], rel=2)  # the slow part of the easing


def test_panels_stand_side_by_side_with_the_same_limits(tmp_path):
    low, high = surface(lambda f, x, y: 0.1 * bowl(f, x, y)), surface(frames=2)
    path = write_gif([low, high], tmp_path / "b.gif", tween=2, size=120)
    frames = [[one_frame(low, "nll", 0)], [one_frame(high, "nll", 1)]]
    stage = animation._Stage([low, high], frames, "nll", "surface", 80, "")
    assert stage.limits.low == pytest.approx(0.1 * bowl(0, *np.meshgrid(low.x, low.y)).min())
    assert len({axes.get_zlim() for axes in stage.axes}) == 1
    with Image.open(path) as image:
        assert image.size == (240, 120) and image.n_frames == 4
    shown = pictures(path)
    assert all(np.array_equal(shown[0][:, :118], each[:, :118]) for each in shown)  # one frame: stands still
    assert any((shown[0][:, 122:] != each[:, 122:]).any() for each in shown)


@pytest.mark.parametrize("style", ["surface", "contour"])
def test_holes_are_drawn_and_explained(style, tmp_path):
    def holes(frame, x, y):
        return np.where((x == 0) & (np.abs(y) < 0.3), np.inf, bowl(frame, x, y))

    path = write_gif([surface(holes, frames=2)], tmp_path / "c.gif", style=style, tween=1, size=300)
    red = [np.sum((each[..., 0] > 150) & (each[..., 1] < 60) & (each[..., 2] < 80)) for each in pictures(path)]
    assert min(red) > 10


def test_orbits_of_one_frame_turn_and_come_back(tmp_path):
    shown = pictures(write_gif([surface(points=(9, 9))], tmp_path / "d.gif", orbit=True, size=100))
    assert len(shown) == 60
    steps = [np.abs(a - b).mean() for a, b in itertools.pairwise([*shown, shown[0]])]
    assert min(steps) > 0 and steps[-1] < 2 * np.median(steps)


def test_the_command_turns_the_camera_where_nothing_else_moves(tmp_path):
    result, config = surface(points=(5, 5)), Config(gif=tmp_path / "a.gif", gif_size=100, gif_tween=2)
    assert result.animate(config) == [config.gif]
    assert len(pictures(config.gif)) == animation.ORBIT
    result.animate(config, [surface(points=(5, 5), frames=2)])
    assert len(pictures(config.gif)) == 4
    assert result.animate(Config()) == []
    with pytest.raises(InputError, match="nothing would move"):
        result.animate(replace(config, gif_style="contour"))


def test_names_that_are_too_long_for_a_panel_lose_their_middle():
    results = [surface(frames=2, name=name) for name in ("resnet_mcdo_18", "resnet_mcdo_smoothing_18", "a" * 90)]
    frames = [[one_frame(result, "nll", number) for number in range(2)] for result in results]
    for size, cut in ((400, [False, False, True]), (120, [False, True, True])):
        stage = animation._Stage(results, frames, "nll", "surface", size, "caption")
        names = stage.canvas.figure.texts[:3]
        assert ["…" in text.get_text() for text in names] == cut
        assert names[0].get_text() == "resnet_mcdo_18" and names[1].get_text().endswith("18")
        boxes = [text.get_window_extent() for text in stage.canvas.figure.texts]
        assert all(box.x0 >= 0 and box.x1 <= 3 * size for box in boxes)
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes[:3]))


REFUSED = {
    "nothing would move": lambda path: write_gif([surface()], path / "a.gif"),
    "2 and 3 frames": lambda path: write_gif([surface(frames=2), surface(frames=3)], path / "a.gif"),
    "is a curve": lambda path: write_gif([surface(points=(5, 1), frames=2)], path / "a.gif"),
    "at least 100 pixels": lambda path: write_gif([surface(frames=2)], path / "a.gif", size=99),
    "only surfaces": lambda path: write_gif([surface()], path / "a.gif", style="contour", orbit=True),
    "an animation is a .gif or an .mp4": lambda path: write_gif([surface(frames=2)], path / "a.webp"),
    "no point of the grid": lambda path: write_gif(
        [surface(frames=2, status=np.zeros((2, 21, 21), np.uint8))], path / "a.gif"
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_animated_is_said_and_nothing_is_written(sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        REFUSED[sentence](tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_others_that_cannot_move_beside_it_are_refused_before_the_work(command, tiny_checkpoint, tmp_path, monkeypatch):
    for name, result in {"two": surface(frames=2), "three": surface(frames=3), "one": surface()}.items():
        result.save(tmp_path / f"{name}.h5")
    module = importlib.import_module("analyze.landscape.compute")
    monkeypatch.setattr(module, "compute", lambda *_, **__: pytest.fail("it has begun"))
    command_of = ["--ckpt", tiny_checkpoint, "--limit", 2, "--points", 3, "--quiet", "--gif", tmp_path / "x.gif"]
    for frames, others in ((3, ["two"]), (1, ["two", "three"]), (3, ["one", "two"])):
        files = [tmp_path / f"{name}.h5" for name in others]
        outcome = command(
            *command_of, "--frames", frames, "--out", tmp_path / "A.h5", "--compare", *files, name="landscape"
        )
        assert outcome.status == 2 and outcome.err.strip().endswith("2 and 3 frames can't move together.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.h5", "three.h5", "two.h5"]
    for frames, others in ((2, [surface(), surface(frames=2)]), (1, [surface(frames=3)])):
        check_together(frames, others, "nll")
    with pytest.raises(InputError, match="no point of the grid"):
        check_together(2, [surface(status=np.zeros((1, 21, 21), np.uint8))], "nll")


def test_mp4_without_ffmpeg_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs the program ffmpeg"):
        write_gif([surface(frames=2)], tmp_path / "a.mp4")


@pytest.mark.parametrize("works", [True, False])
def test_mp4_gets_every_picture(works, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    last = 'for file; do :; done; cat > "$file"' if works else "echo 'Unknown encoder. Sorry' >&2; exit 1"
    program.write_text(f"#!/bin/sh\n{last}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "out" / "a.mp4"
    if works:
        write_gif([surface(frames=2, points=(5, 5))], path, tween=3, size=101)
        assert path.stat().st_size == 6 * 100 * 100 * 3  # even numbers of pixels
    else:
        with pytest.raises(InputError, match="ffmpeg could not write .*Unknown encoder"):
            write_gif([surface(frames=2, points=(5, 5))], path, tween=3, size=101)
        assert list(path.parent.iterdir()) == []
