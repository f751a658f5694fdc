import errno
import io
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import _safe_hdf5
from analyze.arrays import array, arrays, read_result, write_result
from analyze.run import RunFile, library_versions, open_run
from data_cache.errors import InputError

IDENTITY = {"checkpoint_sha256": "abc", "checkpoint": "A.safetensors", "seed": 3, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Extremes:
    rank: np.ndarray = array("rank", doc="1 is the largest")
    largest: np.ndarray = array("rank", unit="nat", doc="largest eigenvalues, descending")


@dataclass(frozen=True)
class Study:
    layer: np.ndarray = array("layer", doc="names")
    power: np.ndarray = array("layer", "ring", unit="dB")
    converged: bool = array(doc="whether it did")
    products: int = array()
    loss: float = array(unit="nat")
    engine: str = array()
    direction: dict[str, np.ndarray] = arrays(doc="of each parameter")
    spread: np.ndarray | None = array("layer")
    extremes: Extremes | None = None


@dataclass(frozen=True)
class Counted:
    value: np.ndarray = array("i")


@dataclass(frozen=True)
class AnyArray0:
    value: np.ndarray = array()


@dataclass(frozen=True)
class AnyArray1:
    value: np.ndarray = array("a")


@dataclass(frozen=True)
class AnyArray2:
    value: np.ndarray = array("a", "b")


@dataclass(frozen=True)
class AnyArray3:
    value: np.ndarray = array("a", "b", "c")


def study(**changes):
    fields = {
        "layer": np.array(["conv1", "große Schicht", "層"]),
        "power": np.array([[1, np.nan], [np.inf, -np.inf], [-0.0, 5e-324]]),
        "converged": True,
        "products": 2**62,
        "loss": float("nan"),
        "engine": "böse",
        "direction": {
            "layer1.conv.weight": np.ones((3, 2, 1), np.float32),
            "bias": np.zeros(0),
            "t": np.array(2.0),
        },
        "spread": None,
        "extremes": Extremes(np.arange(2), np.array([2.0, 1.0], np.float32)),
    }
    return Study(**fields | changes)


def save(path, name="study", result=None, identity=IDENTITY, **options):
    options = {"config": {"probes": 10}, "complete": True, "seconds": 1.0} | options
    with RunFile(path, identity) as run:
        run.save(name, study() if result is None else result, **options)
    return path


def same(a, b):
    """Equal to the bit, in dtype and in shape."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))


def contents(path, group):
    """Everything below a group: values, types, attributes, and what the dimensions are scaled by."""
    found = {}

    def visit(name, item):
        attributes = {key: str(value) for key, value in item.attrs.items() if "LIST" not in key}
        if isinstance(item, h5py.Dataset):
            values = item[()] if item.dtype.kind == "O" else np.asarray(item[()]).tobytes()
            found[name] = (str(values), item.dtype, item.shape, [dim.keys() for dim in item.dims], attributes)
        else:
            found[name] = attributes

    with h5py.File(path) as file:
        found["/"] = {key: str(value) for key, value in file[group].attrs.items()}
        file[group].visititems(visit)
    return found


def in_child(action):
    """Fork; run the action there; return the pid. The child ends with status 0 if the action returns."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def wait(pid):
    return os.waitpid(pid, 0)[1]


# Round trips


DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8"]


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_array_comes_back_bit_equal(shape, dtype, seed):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).bytes(count)  # as floats: all kinds of NaN, inf and subnormals
    if dtype == "?":
        raw = bytes(byte & 1 for byte in raw)
    values = np.frombuffer(raw, dtype).reshape(shape)
    cls = [AnyArray0, AnyArray1, AnyArray2, AnyArray3][len(shape)]
    with h5py.File(io.BytesIO(), "w") as file:
        write_result(file.create_group("group"), cls(values))
        assert same(read_result(file["group"], cls), cls(values))


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT, max_size=6))
def test_any_strings_come_back(texts):
    with h5py.File(io.BytesIO(), "w") as file:
        write_result(file, AnyArray1(np.array(texts, dtype=str)))
        assert read_result(file, AnyArray1).value.tolist() == texts


def test_nested_result_comes_back_bit_equal(tmp_path):
    save(tmp_path / "A.h5")
    with open_run(tmp_path / "A.h5") as run:
        assert same(run.load("study", Study), study())


def test_absent_parts_come_back_as_none_and_present_ones_as_they_are(tmp_path):
    result = study(extremes=None, spread=np.array([1.0, 2.0, 3.0]))
    save(tmp_path / "A.h5", result=result)
    with open_run(tmp_path / "A.h5") as run:
        assert same(run.load("study", Study), result)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (study(layer=np.array(["a", "b"])), "'layer' also the length 2"),
        (study(power=np.zeros(3)), "shape"),
        (study(power=np.zeros((3, 2), complex)), "complex"),
        (study(layer=np.array(["a", "b", 3], dtype=object)), "strings"),
        (study(layer=np.array(["a", "b", "c\0d"])), "NUL"),
        (study(products=1.5), "declared as int"),
        (study(direction={"a/b": np.zeros(1)}), "name"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_file_stays(tmp_path, result, message):
    path = save(tmp_path / "A.h5")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        save(path, result=result)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["A.h5"]


def test_undeclared_field_and_repeated_dimension_are_programming_errors():
    @dataclass(frozen=True)
    class Undeclared:
        value: int

    with pytest.raises(TypeError, match="value"):
        write_result(None, Undeclared(1))
    with pytest.raises(ValueError, match="different names"):
        array("rank", "rank")


def test_dimension_named_like_another_field_is_refused():
    @dataclass(frozen=True)
    class Clash:
        a: np.ndarray = array("b")
        b: np.ndarray = array("a")

    with h5py.File(io.BytesIO(), "w") as file, pytest.raises(ValueError, match="coordinate"):
        write_result(file, Clash(np.zeros(2), np.zeros(2)))


def test_another_result_class_is_an_input_error(tmp_path):
    save(tmp_path / "A.h5", result=Counted(np.zeros(1)))
    with open_run(tmp_path / "A.h5") as run, pytest.raises(InputError, match="lacks 'layer'"):
        run.load("study", Study)


def test_xarray_opens_every_group_with_dimensions_and_units(tmp_path):
    xarray = pytest.importorskip("xarray")
    path = save(tmp_path / "A.h5")
    save(path, "robustness/heat_map")  # the second save copies the first group: its scales must survive that
    for group in ("study", "robustness/heat_map"):
        with xarray.open_dataset(path, engine="h5netcdf", group=group) as data:
            assert data.power.dims == ("layer", "ring") and data.power.attrs["units"] == "dB"
            assert data.layer.values.tolist() == study().layer.tolist() and "layer" in data.coords
            assert data.ring.values.tolist() == [0, 1]
            np.testing.assert_array_equal(data.power, study().power)
            assert data.converged.dtype == bool and data.products == 2**62
            assert all("units" in data[name].attrs and "long_name" in data[name].attrs for name in data.variables)
        with xarray.open_dataset(path, engine="h5netcdf", group=f"{group}/extremes") as data:
            assert data.largest.dims == ("rank",) and data.largest.attrs["units"] == "nat"
            assert data.largest.attrs["long_name"] == "largest eigenvalues, descending"
        with xarray.open_dataset(path, engine="h5netcdf", group=f"{group}/direction") as data:
            assert data["layer1.conv.weight"].shape == (3, 2, 1)


# Attributes, identity, resume


def test_attributes_say_what_the_file_is_of(tmp_path):
    subject = {"batch_size": 32, "model_args": {"width": np.int64(2)}}
    path = save(tmp_path / "A.h5", config={"b": 1, "a": (1, 2)}, complete=False, subject=subject, rank_count=2)
    with open_run(path) as run:
        assert run.attributes.items() >= (IDENTITY | {"format": "landscope", "version": 1}).items()
        assert {"created", "modified", "command", "numpy_version", "torch_version"} <= set(run.attributes)
        attributes = run.group_attributes("study")
        assert run.analyses == ["study"]
        assert run.group_attributes("absent") is None and run.load("absent", Study) is None
    assert attributes["config"] == {"a": [1, 2], "b": 1}
    assert attributes["subject"] == {"batch_size": 32, "model_args": {"width": 2}}
    assert attributes["complete"] is False and attributes["seconds"] == 1.0 and attributes["rank_count"] == 2
    with h5py.File(path) as file:  # without our code
        assert json.loads(file["study"].attrs["config"]) == {"a": [1, 2], "b": 1}
        assert file.attrs["format"] == "landscope"


def test_created_stays_and_modified_moves(tmp_path, monkeypatch):
    monkeypatch.setattr("analyze.run._now", lambda: "2001")
    path = save(tmp_path / "A.h5")
    monkeypatch.setattr("analyze.run._now", lambda: "2002")
    save(path, "other")
    with open_run(path) as run:
        assert (run.attributes["created"], run.attributes["modified"]) == ("2001", "2002")


def test_file_of_another_checkpoint_is_refused_and_stays(tmp_path):
    path = save(tmp_path / "A.h5")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"A\.h5 .*checkpoint_sha256 'abc', not 'xyz'.*--out"):
        save(path, identity=IDENTITY | {"checkpoint_sha256": "xyz"})
    with (
        pytest.raises(InputError, match="seed 3, not 4"),
        RunFile(path, IDENTITY | {"seed": 4}, must_match=["seed"]),
    ):
        pass
    assert path.read_bytes() == before
    save(path, identity=IDENTITY | {"seed": 4})  # not among must_match


def test_identity_cannot_overwrite_what_the_file_says_itself(tmp_path):
    with pytest.raises(ValueError, match="format"):
        RunFile(tmp_path / "A.h5", {"format": "mine"})


def test_resume_names_the_first_field_that_differs(tmp_path):
    config, subject = {"probes": 10, "tolerance": 0.1, "plot": True}, {"data_sha256": "d"}
    path = save(tmp_path / "A.h5", config=config, subject=subject)
    with RunFile(path, IDENTITY) as run:
        assert run.check_resume("absent", config, subject) is False
        assert run.check_resume("study", config, subject) is True
        assert run.check_resume("study", config | {"plot": False}, subject, ignore=["plot"]) is True
        with pytest.raises(InputError, match="config probes = 10, not 20; use --restart .* another --out"):
            run.check_resume("study", config | {"probes": 20}, subject)
        with pytest.raises(InputError, match="subject data_sha256 = 'd', not 'e'"):
            run.check_resume("study", config, {"data_sha256": "e"})
        with pytest.raises(InputError, match="config extra = None, not 1"):
            run.check_resume("study", config | {"extra": 1}, subject)
        with pytest.raises(InputError, match="config plot = True, not None"):
            run.check_resume("study", {"probes": 10, "tolerance": 0.1}, subject)


def test_writer_reads_back_an_incomplete_result(tmp_path):
    path = tmp_path / "A.h5"
    with RunFile(path, IDENTITY) as run:
        assert run.load("study", Study) is None and run.attributes("study") is None
        run.save("study", study(), config={}, complete=False, seconds=0)
        assert same(run.load("study", Study), study())
        assert run.attributes("study")["complete"] is False


def test_library_versions_load_no_torch():
    code = (
        "import sys; from analyze.run import library_versions\n"
        "print(sorted(library_versions())); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split("[")[1] == "'h5py', 'landscope', 'numpy', 'python', 'torch']\n", done.stderr
    assert library_versions()["numpy"] == np.__version__


# Saving


def test_other_groups_stay_bit_for_bit(tmp_path):
    path = save(tmp_path / "A.h5")
    save(path, "robustness/heat_map")
    before, other = contents(path, "study"), contents(path, "robustness/heat_map")
    for seed in range(3):
        save(path, "robustness/noise", Counted(np.random.default_rng(seed).random(1000)), config={"seed": seed})
    assert contents(path, "study") == before
    assert contents(path, "robustness/heat_map") == other
    with open_run(path) as run:
        assert run.analyses == ["robustness/heat_map", "robustness/noise", "study"]
        assert run.group_attributes("robustness/noise")["config"] == {"seed": 2}


def test_repeated_saves_do_not_grow_the_file(tmp_path):
    path = tmp_path / "A.h5"
    sizes = []
    with RunFile(path, IDENTITY) as run:
        for _ in range(20):
            run.save("study", study(), config={}, complete=False, seconds=0)
            sizes.append(path.stat().st_size)
    assert len(set(sizes[1:])) == 1 and sizes[1] - sizes[0] < 100  # the first has no attributes to replace


def test_foreign_compressed_dataset_survives_a_save(tmp_path):
    path = save(tmp_path / "A.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("notes/x", data=np.arange(100.0), chunks=(10,), compression="gzip", maxshape=(None,))
        file["notes"].attrs["who"] = ["me", "yöu"]
    save(path, "other")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["notes/x"], np.arange(100.0))
        assert list(file["notes"].attrs["who"]) == ["me", "yöu"]


@pytest.mark.parametrize("name", ["läuft schon/A b.h5", "新/果.h5", "a/b/c/d.h5", "[x]*?.h5", "no_suffix"])
def test_any_path_works_and_nothing_else_is_left(tmp_path, name):
    path = save(tmp_path / name)
    with open_run(path) as run:
        assert run.analyses == ["study"]
    assert os.listdir(path.parent) == [path.name]


def test_save_through_a_symbolic_link_keeps_the_link(tmp_path):
    path = save(tmp_path / "A.h5")
    (tmp_path / "link.h5").symlink_to("A.h5")
    save(tmp_path / "link.h5", "other")
    assert (tmp_path / "link.h5").is_symlink()
    with open_run(path) as run:
        assert run.analyses == ["other", "study"]


def test_mode_of_the_file_stays(tmp_path):
    path = save(tmp_path / "A.h5")
    path.chmod(0o640)
    save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_writer_that_saves_nothing_leaves_nothing(tmp_path):
    with RunFile(tmp_path / "new" / "A.h5", IDENTITY):
        assert sorted(os.listdir(tmp_path / "new")) == [".A.h5.lock"]
    assert os.listdir(tmp_path / "new") == []


def test_temporary_files_of_dead_writers_go_and_similar_names_stay(tmp_path):
    others = [".A.h5.tmp-x", ".B.h5.tmp-12", "A.h5.tmp-12", ".A.h5.tmp-12.tmp-13"]
    for name in [".A.h5.tmp-12", *others]:
        (tmp_path / name).write_bytes(b"half")
    save(tmp_path / "A.h5")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "A.h5"])


# What goes wrong


def not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    yield tmp_path / "file" / "A.h5"  # a folder that is a file
    yield tmp_path  # a file that is a folder
    yield Path("/proc/landscope/A.h5")  # where nothing can be made, not even by root
    yield tmp_path / ("n" * 255)  # no room for the names beside it
    yield Path("/dev/null")


@pytest.mark.parametrize("which", range(5))
def test_unwritable_output_is_an_input_error_before_any_work(tmp_path, which):
    path = list(not_writable(tmp_path))[which]
    with pytest.raises(InputError) as caught, RunFile(path, IDENTITY):
        pytest.fail("entered")
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]
    assert not list(Path("/dev").glob(".null*"))


def test_name_with_nul_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        RunFile(str(tmp_path / "a\0b"), IDENTITY)
    with pytest.raises(InputError), open_run(str(tmp_path / "a\0b")):
        pass


def test_full_disk_on_opening_is_an_input_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"A\.h5 .*No space left"), RunFile(tmp_path / "A.h5", IDENTITY):
        pytest.fail("entered")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [5_000, 50_000, 100_000])
def test_disk_that_fills_up_while_saving_leaves_the_old_file(tmp_path, limit):
    """The kernel's limit on file sizes fails writes as a full disk does; HDF5 itself would crash here."""
    path = save(tmp_path / "A.h5", result=Counted(np.zeros(2)))
    before = path.read_bytes()

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with RunFile(path, IDENTITY) as run:
            for _ in range(3):
                with pytest.raises(InputError, match=r"A\.h5 can't be written: File too large"):
                    run.save("big", Counted(np.zeros(100_000)), config={}, complete=True, seconds=0)

    assert wait(in_child(fill)) == 0
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["A.h5"]


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "A.h5")
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with RunFile(path, IDENTITY) as run:
        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.save("other", study(), config={}, complete=True, seconds=0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["A.h5"]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"\0" * 5000, "truncated", "other format"])
def test_writer_refuses_what_is_not_a_run_file_and_does_not_touch_it(tmp_path, content):
    path = tmp_path / "A.h5"
    if content == "truncated":
        content = save(tmp_path / "B.h5").read_bytes()[:-100]
    if content == "other format":
        with h5py.File(path, "w", libver="latest") as file:
            file["x"] = 1
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"A\.h5 .*--out"):
        save(path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


# Killed and competing writers


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_writer_killed_at_the_worst_moment_leaves_the_old_file(tmp_path, moment):
    path = save(tmp_path / "A.h5")
    before = path.read_bytes()

    def die():
        with RunFile(path, IDENTITY) as run:
            setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            run.save("study", study(loss=1.0), config={}, complete=True, seconds=0)

    assert wait(in_child(die)) == signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob(".A.h5.tmp-*"))) == 1
    save(path, "other")
    assert os.listdir(tmp_path) == ["A.h5"]


def test_writer_killed_at_any_moment_leaves_a_readable_file(tmp_path):
    path = save(tmp_path / "A.h5")
    before = contents(path, "study")
    delays = random.Random(0)

    def save_forever():
        with RunFile(path, IDENTITY) as run:
            for count in range(1_000_000):
                run.save("loop", Counted(np.full(50_000, count)), config={"n": count}, complete=False, seconds=0)

    for _ in range(10):
        inode, deadline = path.stat().st_ino, time.monotonic() + 60
        pid = in_child(save_forever)
        while path.stat().st_ino == inode and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05 * delays.random())
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == signal.SIGKILL
        with open_run(path) as run:
            loop = run.load("loop", Counted)
            assert set(loop.value) == {run.group_attributes("loop")["config"]["n"]}
        assert contents(path, "study") == before
    save(path)
    assert os.listdir(tmp_path) == ["A.h5"]


def hold(path, *, then=time.sleep):
    """A child that has the file open for writing; returns its pid once it has."""
    reader, writer = os.pipe()

    def action():
        with RunFile(path, IDENTITY):
            then_pid = os.fork() if then is not time.sleep else 1
            if then_pid:
                os.write(writer, b"x")
            time.sleep(60)

    pid = in_child(action)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return pid


def test_second_writer_stops_at_once_and_says_who_writes(tmp_path):
    path = save(tmp_path / "A.h5")
    before = path.read_bytes()
    pid = hold(path)
    try:
        with pytest.raises(InputError, match=rf"A\.h5 is being written by another process \(pid {pid}\b"):
            save(path)
        with open_run(path) as run:  # readers need no lock
            assert run.analyses == ["study"]
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    assert path.read_bytes() == before
    save(path)  # the kernel released the lock of the killed writer
    assert os.listdir(tmp_path) == ["A.h5"]


def test_second_writer_in_the_same_process_is_refused_too(tmp_path):
    path = tmp_path / "A.h5"
    with RunFile(path, IDENTITY) as run:
        with pytest.raises(InputError, match=f"pid {os.getpid()}"):
            save(path)
        run.save("study", study(), config={}, complete=True, seconds=0)
    save(path)


def test_worker_that_outlives_a_killed_writer_does_not_keep_its_lock(tmp_path):
    pid = hold(tmp_path / "A.h5", then=os.fork)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    try:
        save(tmp_path / "A.h5")
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_many_writers_in_turn_never_hold_the_lock_together(tmp_path):
    """Each adds one to a number under the lock; a lost update would show two holders."""
    path, number = tmp_path / "A.h5", tmp_path / "number"
    number.write_text("0")

    def add():
        done = 0
        while done < 20:
            try:
                with RunFile(path, IDENTITY):
                    value = int(number.read_text())
                    time.sleep(0.001)
                    number.write_text(str(value + 1))
                    done += 1
            except InputError as error:
                assert "being written" in str(error), error  # noqa: PT017

    assert [wait(pid) for pid in [in_child(add) for _ in range(3)]] == [0, 0, 0]
    assert number.read_text() == "60"
    assert os.listdir(tmp_path) == ["number"]


# Files from strangers


def craft(path, fill):
    with h5py.File(path, "w", libver=("v108", "latest")) as file:
        file.attrs["format"], file.attrs["version"] = "landscope", 1
        group = file.create_group("study")
        group.attrs["config"] = "{}"
        fill(group)
    return path


def secret(folder):
    """A file outside, whose data must not be reached through another."""
    with h5py.File(folder / "secret.h5", "w") as file:
        file["value"] = np.arange(4)
    np.arange(4.0).tofile(folder / "secret.bin")
    return folder


def external_link(group):
    group["value"] = h5py.ExternalLink("secret.h5", "/value")


def soft_link(group):
    group["value"] = h5py.SoftLink("/study")


def external_storage(group):
    group.create_dataset("value", (4,), "f8", external=[("secret.bin", 0, 32)])


def virtual_dataset(group):
    layout = h5py.VirtualLayout((4,), "i8")
    layout[:] = h5py.VirtualSource("secret.h5", "value", (4,))
    group.create_virtual_dataset("value", layout)


def cyclic_group(group):
    group["again"] = group.parent


def doubled_dataset(group):
    group["value"] = np.arange(4)
    group["again"] = group["value"]


def object_references(group):
    group.create_dataset("value", data=[group.ref], dtype=h5py.ref_dtype)


def region_references(group):
    group["target"] = np.arange(4)
    group.create_dataset("value", data=[group["target"].regionref[:2]], dtype=h5py.regionref_dtype)


def reference_attribute(group):
    group.attrs["value"] = group.ref


def compound(group):
    group["value"] = np.zeros(3, [("a", "f8"), ("b", "i4")])


def opaque(group):
    group["value"] = np.zeros(3, "V7")


def ragged(group):
    group.create_dataset("value", (3,), h5py.vlen_dtype("f8"))


def enumeration(group):
    group.create_dataset("value", (3,), h5py.enum_dtype({"a": 0, "b": 1}, "i4"))


def named_type(group):
    group["value"] = np.dtype("f8")


def array_of_named_type(group):
    group["type"] = np.dtype("f8")
    group.create_dataset("value", (3,), group["type"])
    del group["type"]


def bomb(group):
    group.create_dataset("value", (1 << 20, 1 << 20), "f8", chunks=(1024, 1024), compression="gzip")


def uncompressed_bomb(group):
    group.create_dataset("value", (1 << 40,), "f8", chunks=(1024,))


def bombs_together(group):
    for part in range(3):
        group.create_dataset(str(part), (1 << 27,), "f8", chunks=(1024,))


def overflowing_size(group):
    group.create_dataset("value", (1 << 33, 1 << 33), "f8", chunks=(1024, 1))


def huge_chunks(group):
    group.create_dataset("value", (2,), "f8", maxshape=(None,), chunks=((1 << 29) - 8,))


def scale_offset(group):
    group.create_dataset("value", data=np.arange(100), chunks=(10,), scaleoffset=4)


def deflated_twice(group):
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((100,))
    layout.set_deflate(9)
    layout.set_deflate(9)
    h5py.h5d.create(group.id, b"value", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((100,)), layout)


def chunk_that_unpacks_to_more_than_it_says(group):
    value = group.create_dataset("value", (1000,), "u1", chunks=(1000,), compression="gzip")
    value.id.write_direct_chunk((0,), os.urandom(3 << 20))


def deep_groups(group):
    for _ in range(20):
        group = group.create_group("deeper")


def many_attributes(group):
    for index in range(1001):
        group.attrs[f"a{index}"] = index


def long_attribute(group):
    group.attrs["config"] = "x" * (2 << 20)


def large_attribute(group):
    group.attrs["value"] = np.zeros(200_000)


def null_space(group):
    group["value"] = h5py.Empty("f8")


HOSTILE = {
    external_link: "external link",
    soft_link: "soft link",
    external_storage: "external storage",
    virtual_dataset: "virtual dataset",
    cyclic_group: "linked twice",
    doubled_dataset: "linked twice",
    object_references: "neither numbers",
    region_references: "neither numbers",
    reference_attribute: "study@value' is neither numbers",
    compound: "neither numbers",
    opaque: "neither numbers",
    ragged: "neither numbers",
    enumeration: "neither numbers",
    named_type: "neither a group nor a dataset",
    array_of_named_type: "neither numbers",
    bomb: "unpacked",
    uncompressed_bomb: "unpacked",
    bombs_together: "unpacked",
    overflowing_size: "unpacked",
    huge_chunks: "chunks",
    scale_offset: "filters",
    deflated_twice: "filters",
    chunk_that_unpacks_to_more_than_it_says: "chunks",
    deep_groups: "deep",
    many_attributes: "attributes",
    large_attribute: "unreasonable size",
    null_space: "no data space",
}


@pytest.mark.parametrize("fill", HOSTILE, ids=lambda fill: fill.__name__)
def test_hostile_file_is_refused_by_reader_and_writer_and_not_touched(tmp_path, monkeypatch, fill):
    monkeypatch.chdir(secret(tmp_path))
    path = craft(tmp_path / "A.h5", fill)
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"A\.h5: .*{HOSTILE[fill]}"), open_run(path):
        pytest.fail("opened")
    with pytest.raises(InputError, match=HOSTILE[fill]), RunFile(path, {}):
        pytest.fail("opened")
    assert path.read_bytes() == before


def test_too_long_text_is_refused(tmp_path):
    with (
        open_run(craft(tmp_path / "A.h5", long_attribute)) as run,
        pytest.raises(InputError, match="1048576"),
    ):
        run.group_attributes("study")
    with pytest.raises(ValueError, match="config"):
        save(tmp_path / "B.h5", config={"x": "x" * (2 << 20)})


def test_too_many_objects_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_safe_hdf5, "MAX_OBJECTS", 50)
    path = craft(tmp_path / "A.h5", lambda group: [group.create_group(str(i)) for i in range(60)])
    with pytest.raises(InputError, match="50 objects"), open_run(path):
        pass


def test_file_over_the_limit_of_bytes_is_refused_and_under_it_read(tmp_path):
    path = save(tmp_path / "A.h5", result=Counted(np.zeros(10_000)))
    with pytest.raises(InputError, match="50000"), open_run(path, max_bytes=50_000):
        pass
    with open_run(path, max_bytes=500_000) as run:
        assert run.load("study", Counted).value.size == 10_000


def test_strings_that_share_one_long_text_are_refused_before_they_fill_the_memory(tmp_path):
    """Every element points to the same megabyte: 100 GB of text in a file of 3 MB."""

    def fill(group):
        layer = group.create_dataset("value", (100_000,), h5py.string_dtype())
        layer[0] = "x" * (1 << 20)

    path = craft(tmp_path / "A.h5", fill)
    with h5py.File(path) as file:
        start = file["study/value"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[start : start + 16 * 100_000] = content[start : start + 16] * 100_000
    path.write_bytes(content)
    limit = 256 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_run(path, max_bytes=limit) as run, pytest.raises(InputError, match="strings of more than"):
        run.load("study", AnyArray1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * limit / 1024


def test_compressed_foreign_data_within_bounds_is_read(tmp_path):
    values = np.random.default_rng(0).random(10_000)
    for compression in ("gzip", "lzf"):
        path = craft(
            tmp_path / "A.h5",
            lambda group, by=compression: group.create_dataset(
                "value", data=values, chunks=(1000,), compression=by, shuffle=True, fletcher32=True
            ),
        )
        with open_run(path) as run:
            assert same(run.load("study", AnyArray1).value, values)


@pytest.mark.parametrize("config", [b"not json", b"[1]", b"\xff"])
def test_broken_config_is_an_input_error(tmp_path, config):
    def fill(group):
        group.attrs.create("config", config, dtype=h5py.string_dtype("utf-8", len(config)))

    with open_run(craft(tmp_path / "A.h5", fill)) as run, pytest.raises(InputError, match=r"A\.h5"):
        run.group_attributes("study")


def test_pipe_folder_missing_and_newer_files_are_input_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    newer = craft(tmp_path / "newer.h5", lambda group: group.parent.attrs.modify("version", 2))
    for path, message in [
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "missing.h5", "doesn't exist"),
        (newer, "format version 2"),
    ]:
        with pytest.raises(InputError, match=message), open_run(path):
            pass


def test_old_format_without_checksums_is_refused(tmp_path):
    with h5py.File(tmp_path / "A.h5", "w", libver="earliest") as file:
        file.attrs["format"], file.attrs["version"] = "landscope", 1
    with pytest.raises(InputError, match="without checksums"), open_run(tmp_path / "A.h5"):
        pass


def test_heap_on_which_hdf5_runs_forever_is_refused(tmp_path):
    """A zero for the index of the second string, which then is free space of no size."""
    path = save(tmp_path / "A.h5")
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    second = first + 16 + -(-int.from_bytes(content[first + 8 : first + 16], "little") // 8) * 8
    content[second : second + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(InputError, match="heap"), open_run(path):
        pass


FUZZ = """
import random, sys
from pathlib import Path
from analyze.run import RunFile, open_run
from data_cache.errors import InputError
sys.path.insert(0, sys.argv[2])
from test_run import Study, study
source, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[1] + ".damaged")
random = random.Random(0)
def damaged():
    for step in range(200):
        yield source[: step * len(source) // 200]
    for _ in range(500):
        content = bytearray(source)
        content[random.randrange(len(source))] ^= random.randrange(1, 256)
        yield content
outcomes = {"read": 0, "refused": 0}
for content in damaged():
    path.write_bytes(content)
    try:
        with open_run(path) as run:
            for name in run.analyses:
                run.group_attributes(name)
                run.load(name, Study)
        if len(content) == len(source) and random.random() < 0.3:
            with RunFile(path, {"checkpoint_sha256": "abc"}) as run:
                run.save("other", study(), config={}, complete=True, seconds=0)
        outcomes["read"] += 1
    except InputError as error:
        assert str(path) in str(error) and "\\n" not in str(error), error
        outcomes["refused"] += 1
print(outcomes)
"""


def test_damaged_file_is_read_or_refused_and_never_crashes_or_hangs(tmp_path):
    """In a process of its own, as HDF5 may crash it."""
    path = save(tmp_path / "A.h5")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(path), str(here)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=here.parents[1],
    )
    assert done.returncode == 0, done.stderr
    outcomes = eval(done.stdout)
    assert outcomes["refused"] > 300 and outcomes["read"] > 50, outcomes
