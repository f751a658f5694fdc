"""Landscapes for other programs, and from them."""

import base64
import csv
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import numpy as np
import pytest
from surfaces import IMAGES, bowl, surface

from analyze.landscape.export import export, main, read
from analyze.landscape.figures import figures
from analyze.landscape.tomgoldstein import import_surface
from data_cache.errors import InputError


def with_holes():
    def formula(frame, x, y):
        values = bowl(frame, x, y).copy()
        values[1, 2], values[2, 4] = np.inf, np.nan
        return values

    status = surface(formula, points=(7, 4), frames=2).status.copy()
    status[:, 0, 1], status[:, 3, 6] = 0, 3
    return surface(formula, points=(7, 4), frames=2, status=status)


# VTK


def vtk_arrays(path):
    tree = ElementTree.parse(path)
    arrays = {}
    for item in tree.iter("DataArray"):
        content = base64.b64decode(item.text)
        size = int.from_bytes(content[:8], "little")
        values = np.frombuffer(content[8:], {"Float64": "<f8", "UInt8": "u1"}[item.get("type")])
        assert size == values.nbytes == len(content) - 8
        arrays[item.get("Name")] = values.reshape(-1, int(item.get("NumberOfComponents")))
    return tree.getroot(), arrays


def test_vtk_holds_points_in_order_and_all_metrics(tmp_path):
    result = surface(points=(7, 4))
    root, arrays = vtk_arrays(export(result, tmp_path / "a.vts"))
    assert root.get("type") == "StructuredGrid" and root.get("header_type") == "UInt64"
    assert root.find(".//Piece").get("Extent") == "0 6 0 3 0 0"
    x, y = np.meshgrid(result.x, result.y)  # x runs fastest
    np.testing.assert_allclose(arrays["Points"], np.stack([x, y, bowl(0, x, y)], axis=-1).reshape(-1, 3))
    for name in ("nll", "accuracy", "ece", "l2", "loss"):
        np.testing.assert_array_equal(arrays[name][:, 0], result.metric(name)[0].ravel())
    assert not arrays["vtkGhostType"].any()


def test_vtk_hides_points_without_height_and_keeps_their_values(tmp_path):
    result = with_holes()
    _, arrays = vtk_arrays(export(result, tmp_path / "a.vts"))
    hidden = arrays["vtkGhostType"].reshape(4, 7)
    assert set(zip(*np.nonzero(hidden), strict=True)) == {(0, 1), (1, 2), (2, 4), (3, 6)} and hidden.max() == 2
    assert np.isposinf(arrays["nll"].reshape(4, 7)[1, 2])
    assert np.isfinite(arrays["Points"]).all()
    np.testing.assert_array_equal(arrays["nll_frame_1"].reshape(4, 7), result.nll[1])
    assert arrays["status"].reshape(4, 7)[3, 6] == 3


# CSV and npz


def test_csv_has_a_line_for_every_point_and_frame(tmp_path):
    result = with_holes()
    with open(export(result, tmp_path / "a.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 7
    row = rows[1 * 28 + 2 * 7 + 3]
    assert (int(row["frame"]), float(row["x"]), float(row["y"])) == (1, result.x[3], result.y[2])
    assert float(row["nll"]) == result.nll[1, 2, 3] and float(row["ece"]) == result.ece[1, 2, 3]
    assert float(row["loss"]) == result.metric("loss")[1, 2, 3] and int(row["images"]) == IMAGES
    assert float(row["nll_stderr"]) == result.nll_stderr[1, 2, 3]
    assert rows[9]["nll"] == "inf" and rows[9]["status"] == "2"
    assert rows[1]["nll"] == "nan" and rows[1]["status"] == "0"


def test_npz_has_every_array(tmp_path):
    result = with_holes()
    with np.load(export(result, tmp_path / "a.npz")) as arrays:
        for name in ("x", "y", "frame", "status", "nll_sum", "bin_correct", "l2", "nll", "accuracy", "ece"):
            np.testing.assert_array_equal(arrays[name], getattr(result, name))
        np.testing.assert_array_equal(arrays["loss"], result.metric("loss"))


# tomgoldstein/loss-landscape


def their_file(path, x, y, formula, *, done=None, **options):
    """Write a surface as that program does: an (X, Y) array filled in the order of a (Y, X) mesh."""
    shape = (len(x), len(y)) if y is not None else (len(x),)
    loss, accuracy = -np.ones(shape), -np.ones(shape)
    mesh = [each.ravel() for each in np.meshgrid(x, y)] if y is not None else [x, 0 * x]
    for index, (a, b) in enumerate(zip(*mesh, strict=True)):
        if done is None or index < done:
            loss.ravel()[index] = formula(a, b)
            accuracy.ravel()[index] = 50 + a
    with h5py.File(path, "w", **options) as file:
        file["dir_file"] = "somewhere.h5"
        file["xcoordinates"] = x
        if y is not None:
            file["ycoordinates"] = y
        file["train_loss"], file["train_acc"] = loss, accuracy
    return path


def formula(x, y):
    return 1 + x**2 + 0.3 * y + 0.1 * x * y


X, Y = np.linspace(-1, 1, 6), np.linspace(-0.5, 0.5, 4)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_their_surface_that_is_not_square_is_put_in_order(version, tmp_path):
    result = import_surface(their_file(tmp_path / "s.h5", X, Y, formula, libver=version))
    a, b = np.meshgrid(X, Y)
    np.testing.assert_array_equal(result.nll[0], formula(a, b))
    np.testing.assert_allclose(result.accuracy[0], (50 + a) / 100)
    assert set(figures(result)) == {"", "surface", "metrics"}


def test_their_axes_that_descend_are_put_in_order(tmp_path):
    result = import_surface(their_file(tmp_path / "s.h5", X[::-1], Y[::-1], formula))
    a, b = np.meshgrid(X, Y)
    np.testing.assert_array_equal(result.nll[0], formula(a, b))
    np.testing.assert_allclose(result.accuracy[0], (50 + a) / 100)


def test_their_unfinished_surface_is_unfinished_here(tmp_path):
    def diverges(x, y):
        return np.nan if x == X[0] else formula(x, y)

    result = import_surface(their_file(tmp_path / "s.h5", X, Y, diverges, done=13))
    assert (result.status.ravel()[13:] == 0).all() and (result.status.ravel()[:13] != 0).all()
    assert result.status[0, 0, 0] == 2 and np.isnan(result.nll[0, 3]).all()


def test_their_curve_is_a_curve(tmp_path):
    result = import_surface(their_file(tmp_path / "s.h5", X, None, formula))
    assert result.one_dimensional
    np.testing.assert_array_equal(result.nll[0, 0], 1 + X**2)


def test_their_curve_leads_to_no_checkpoint_that_is_known(tmp_path):
    result = import_surface(their_file(tmp_path / "s.h5", np.linspace(0, 1, 5), None, formula))
    assert np.isnan(result.barrier)
    assert not {"barrier", "direction x", "cosine"} & {row.quantity for row in result.rows()}
    assert not any(np.isnan(row.value) for row in result.rows())
    left = figures(result)[""].axes[0]
    assert left.get_xlabel() == "x" and "barrier" not in " ".join(map(str, left.get_legend_handles_labels()[1]))


def test_a_surface_comes_back_as_it_went(tmp_path):
    result = with_holes()
    back = import_surface(export(result, tmp_path / "s.h5"))
    mean = result.nll.mean(axis=0)
    computed = ~np.isin(result.status[0], (0, 3))
    np.testing.assert_array_equal(back.nll[0][computed], mean[computed])
    assert (back.status[0][~computed] == 0).all()
    np.testing.assert_array_equal(back.x, result.x)
    np.testing.assert_array_equal(back.y, result.y)


def test_their_plots_can_draw_what_is_exported(tmp_path):
    with h5py.File(export(surface(points=(7, 4)), tmp_path / "s.h5")) as file:
        x, y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        assert x.shape == y.shape == file["train_loss"].shape == file["train_acc"].shape
        np.testing.assert_allclose(file["train_loss"][:], bowl(0, x, y))
        assert 1 < file["train_acc"][:].max() <= 100
        assert isinstance(file["dir_file"][()], bytes)
    with h5py.File(export(surface(points=(7, 1)), tmp_path / "c.h5")) as file:
        assert file["train_loss"].shape == (7,) and "ycoordinates" not in file


def broken_files(folder):
    with h5py.File(folder / "other.h5", "w") as file:
        file["xcoordinates"] = X
    with h5py.File(folder / "short.h5", "w") as file:
        file["xcoordinates"], file["train_loss"] = X, X[:-1]
    with h5py.File(folder / "link.h5", "w") as file:
        file["xcoordinates"], file["train_loss"] = X, h5py.ExternalLink("other.h5", "xcoordinates")
    with h5py.File(folder / "axis.h5", "w") as file:
        file["xcoordinates"], file["train_loss"] = X * np.nan, X
    with h5py.File(folder / "text.h5", "w") as file:
        file["xcoordinates"], file["train_loss"] = X, [b"a"] * 6
    whole = their_file(folder / "whole.h5", X, Y, formula).read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.h5").write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("other", "no train_loss"),
        ("short", "5 values"),
        ("link", "not an array inside the file"),
        ("axis", "axis.h5: the landscape's x must be finite"),
        ("text", "not a grid of numbers"),
        ("cut", "can't be read"),
        ("empty", "can't be read"),
        ("absent", "doesn't exist"),
    ],
)
def test_files_of_strangers_that_are_no_surface_are_refused_in_a_sentence(name, sentence, tmp_path):
    broken_files(tmp_path)
    with pytest.raises(InputError, match=sentence):
        import_surface(tmp_path / f"{name}.h5")


def test_no_damaged_byte_does_more_than_an_error(tmp_path):
    whole = bytearray(their_file(tmp_path / "s.h5", X, Y, formula).read_bytes())
    random = np.random.default_rng(0)
    for _ in range(6):
        damaged = bytearray(whole)
        for place in random.integers(0, 1200, 8):
            damaged[place] ^= 0xFF
        (tmp_path / "d.h5").write_bytes(damaged)
        try:
            import_surface(tmp_path / "d.h5")
        except InputError as error:
            assert "\n" not in str(error)


# The command


def test_the_command_turns_run_files_and_their_surfaces_into_other_files(tmp_path, capsys):
    result = surface(points=(5, 5))
    result.save(tmp_path / "run.h5")
    main([str(tmp_path / "run.h5"), str(tmp_path / "a.vts")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.vts")
    np.testing.assert_array_equal(vtk_arrays(tmp_path / "a.vts")[1]["nll"][:, 0], result.nll.ravel())
    main([str(their_file(tmp_path / "s.h5", X, Y, formula)), str(tmp_path / "b"), "--format", "csv"])
    assert len((tmp_path / "b").read_text().splitlines()) == 25
    np.testing.assert_array_equal(read(tmp_path / "run.h5").nll, result.nll)


@pytest.mark.parametrize("format", [[], ["--format", "csv"]])
@pytest.mark.parametrize("name", ["other.h5", "other.hdf5"])
def test_the_command_writes_over_no_run_file(name, format, tmp_path, capsys):
    surface(points=(5, 5)).save(tmp_path / "run.h5")
    surface(points=(3, 3)).save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "run.h5"), str(tmp_path / name), *(format or ["--format", "tomgoldstein"])])
    assert ended.value.code == 2 and f"{name} exists" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("run", "out", "sentence"),
    [
        ("run.h5", "a.xyz", "unknown"),
        ("run.h5", "run.h5", "give another one"),
        ("absent.h5", "a.csv", "doesn't exist"),
        ("text.h5", "a.csv", "can't be read"),
        ("run.h5", "run.h5/a.csv", "cannot write"),
    ],
)
def test_the_command_refuses_in_a_sentence(run, out, sentence, tmp_path, capsys):
    surface(points=(3, 3)).save(tmp_path / "run.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / run), str(tmp_path / out)])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and sentence in said and len(said.splitlines()) == 1
    assert sorted(os.listdir(tmp_path))[-2:] == ["run.h5", "text.h5"]


def test_the_command_loads_no_torch(tmp_path):
    surface(points=(3, 3)).save(tmp_path / "run.h5")
    program = "import sys; from analyze.landscape.export import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(tmp_path / "run.h5"), str(tmp_path / "a.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.split()[-1:] == ["False"], done.stderr
