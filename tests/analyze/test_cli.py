"""The command: what it prints and writes, how it resumes, and one sentence for every mistake."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
import xarray
from commands import SMALL, metadata

from analyze import cli, hessian, open_run
from analyze.hessian.spec import Result
from models import get_model, save_checkpoint


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, tmp_path_factory):
    """A run file of the whole analysis, with its figure."""
    out = tmp_path_factory.mktemp("run") / "tiny.h5"
    cli.main("hessian", ["--ckpt", str(tiny_checkpoint), "--out", str(out), *SMALL])
    return out


def test_command_writes_the_run_file_and_figure_and_prints_the_table(command, tiny_checkpoint, tmp_path):
    out = tmp_path / "new folder" / "A.h5"
    outcome = command("--ckpt", tiny_checkpoint, "--out", out, *SMALL)
    assert outcome.status == 0
    for words in ("24 images of fashion_mnist:train", "largest eigenvalue 1", "residual", "standard error", str(out)):
        assert words in outcome.out
    assert "smoothing operator: " in outcome.out
    assert (tmp_path / "new folder" / "A_hessian.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(out.parent)) == ["A.h5", "A_hessian.png"]  # no lock, no temporary file


def test_json_is_the_numbers_of_the_run_file(command, tiny_checkpoint, finished):
    outcome = command("--ckpt", tiny_checkpoint, "--out", finished, *SMALL, "--json")
    printed, stored = json.loads(outcome.out), Result.read(finished)
    assert printed["hessian"]["extremes"]["largest"] == stored.extremes.largest.tolist()
    assert printed["hessian"]["trace"]["stderr"] == stored.trace.stderr
    assert printed["subject"]["images"] == 24
    assert printed["run_file"] == str(finished)


def test_run_file_opens_in_xarray_with_dimensions_and_units(finished):
    for group, variable, dims in (
        ("extremes", "largest", ("rank",)),
        ("trace", "samples", ("sample",)),
        ("density", "node", ("probe", "step")),
        ("density", "density", ("grid",)),
    ):
        with xarray.open_dataset(finished, engine="h5netcdf", group=f"hessian/{group}") as data:
            assert data[variable].dims == dims
            assert data[variable].attrs["units"]


def test_run_file_says_what_it_is_of(finished, tiny_checkpoint):
    with open_run(finished) as run:
        root, group = run.attributes, run.group_attributes("hessian")
    assert root["format"] == "landscope" and root["checkpoint"] == str(tiny_checkpoint)
    assert root["model"] == "resnet_mcdo_smoothing_18" and len(root["checkpoint_sha256"]) == 64
    assert len(root["data_sha256"]) == 64 and root["torch_version"] in torch.__version__
    assert group["complete"] and group["config"]["largest"] == 2 and group["subject"]["images"] == 24
    assert group["seconds"] > 0


def test_ensemble_has_a_run_file_of_its_own(command, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2))
    members = ["--ckpt", tiny_checkpoint, "--ckpt", other, "--ensemble"]
    outcome = command(*members, *SMALL, "--parts", "trace", "--no-plot")
    assert outcome.status == 0, outcome.err
    assert "tiny+other (ensemble of 2: resnet_mcdo_smoothing_18, resnet_dnn_18): 24 images" in outcome.out
    result = Result.read(tmp_path / "results" / "tiny+other.h5")
    singles = [get_model(name, 10, width=2) for name in ("resnet_mcdo_smoothing_18", "resnet_dnn_18")]
    assert result.parameters == sum(p.numel() for model in singles for p in model.parameters())
    again = command(*members, *SMALL, "--parts", "trace", "--no-plot")
    assert "already in the run file" in again.out
    swapped = [*members[2:4], *members[:2], "--ensemble"]  # other masks for each member: another subject
    assert command(*swapped, *SMALL, "--parts", "trace", "--out", tmp_path / "results" / "tiny+other.h5").status == 2


def test_same_command_again_computes_nothing(command, tiny_checkpoint, finished, monkeypatch):
    monkeypatch.setattr(hessian.operator.HessianOperator, "matvec", None)
    before = finished.read_bytes()
    outcome = command("--ckpt", tiny_checkpoint, "--out", finished, *SMALL)
    assert outcome.status == 0 and "already in the run file" in outcome.out
    assert finished.read_bytes() == before


def test_stored_result_names_the_path_that_it_was_computed_by(command, tiny_checkpoint, tmp_path, monkeypatch):
    """Computed by the eager path and printed, then extended, where the fused one is loaded."""
    path = {}
    monkeypatch.setattr("analyze.subject.smoothing_path", lambda model, device: path["now"])
    base = ["--ckpt", tiny_checkpoint, "--out", tmp_path / "A.h5", *SMALL, "--parts", "trace", "--no-plot"]
    path["now"] = "eager"
    assert command(*base).status == 0
    path["now"] = "fused"
    assert "smoothing operator: eager (cpu)\n" in command(*base).out
    assert json.loads(command(*base, "--json").out)["subject"]["smoothing"] == "eager"
    more = command(*base, "--trace-samples", "5")
    assert "smoothing operator: eager and fused (cpu)\n" in more.out
    assert Result.read(tmp_path / "A.h5").subject["smoothing"] == "eager and fused"
    restarted = command(*base, "--restart", "--json")
    assert json.loads(restarted.out)["subject"]["smoothing"] == "fused"


def test_run_file_of_before_paths_were_stored_goes_on(command, tiny_checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "A.h5"
    base = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL, "--parts", "trace", "--no-plot"]
    assert command(*base).status == 0
    with h5py.File(out, "a", libver="v108") as file:
        subject = json.loads(file["hessian"].attrs["subject"])
        del subject["smoothing"]
        file["hessian"].attrs["subject"] = json.dumps(subject)
    assert "smoothing operator: unknown (cpu)\n" in command(*base).out


def test_parts_of_several_runs_add_up(command, tiny_checkpoint, tmp_path, finished):
    out = tmp_path / "A.h5"
    for part in ("trace", "density", "extremes"):
        assert command("--ckpt", tiny_checkpoint, "--out", out, *SMALL, "--parts", part).status == 0
    assert_equal(Result.read(out), Result.read(finished))


def assert_equal(a: Result, b: Result) -> None:
    for part, names in (
        ("extremes", ("largest", "smallest")),
        ("trace", ("samples",)),
        ("density", ("node", "weight", "width", "density")),
    ):
        for name in names:
            assert np.array_equal(getattr(getattr(a, part), name), getattr(getattr(b, part), name)), (part, name)


def test_another_option_is_refused_by_name_and_restart_replaces(command, tiny_checkpoint, tmp_path):
    out, base = tmp_path / "A.h5", [*SMALL, "--parts", "density"]
    assert command("--ckpt", tiny_checkpoint, "--out", out, *base).status == 0
    before = out.read_bytes()
    outcome = command("--ckpt", tiny_checkpoint, "--out", out, *base, "--steps", "5")
    assert_sentence(outcome, "steps", "--restart")
    outcome = command("--ckpt", tiny_checkpoint, "--out", out, *base, "--seed", "7")
    assert_sentence(outcome, "seed")
    outcome = command("--ckpt", tiny_checkpoint, "--out", out, *base, "--limit", "20")
    assert_sentence(outcome, "images", "--restart")
    assert out.read_bytes() == before
    assert command("--ckpt", tiny_checkpoint, "--out", out, *base, "--steps", "5", "--restart").status == 0
    assert Result.read(out).density.node.shape == (2, 5)


def test_options_of_parts_that_are_not_stored_may_differ_and_samples_can_be_added(command, tiny_checkpoint, tmp_path):
    out, base = tmp_path / "A.h5", [*SMALL, "--parts", "trace"]
    assert command("--ckpt", tiny_checkpoint, "--out", out, *base).status == 0
    first = Result.read(out).trace.samples
    more = command("--ckpt", tiny_checkpoint, "--out", out, *base, "--trace-samples", "5", "--steps", "9")
    assert more.status == 0
    samples = Result.read(out).trace.samples
    assert len(samples) == 5 and np.array_equal(samples[:3], first)


def assert_sentence(outcome, *words: str) -> None:
    """Exit status 2 and one line on stderr, no traceback."""
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.replace("\r", "\n").strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in outcome.err
    assert [line for line in lines if line.strip() != "loading ..."] == lines[-1:]
    for word in words:
        assert word in lines[-1]


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def bad_files(tmp_path):
    """(arguments, words of the sentence) for each thing that can be wrong with a checkpoint."""
    good = tmp_path / "good.safetensors"
    save_checkpoint(good, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2))
    content = good.read_bytes()
    empty, cut, bomb, nan, hundred = (
        tmp_path / name
        for name in ("empty.safetensors", "cut.safetensors", "bomb.pt", "nan.safetensors", "hundred.safetensors")
    )
    empty.touch()
    cut.write_bytes(content[: len(content) // 2])
    bomb.write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "exploded")}))
    model = get_model("resnet_dnn_18", 10, width=2)
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")
    save_checkpoint(nan, model, metadata("resnet_dnn_18", width=2))
    save_checkpoint(hundred, get_model("resnet_dnn_18", 100, width=2), metadata("resnet_dnn_18", 100, width=2))
    return {
        "no file": (["--ckpt", tmp_path / "none.pt"], ["none.pt"]),
        "folder": (["--ckpt", tmp_path], [str(tmp_path)]),
        "empty": (["--ckpt", empty], ["empty.safetensors"]),
        "truncated": (["--ckpt", cut], ["cut.safetensors"]),
        "code": (["--ckpt", bomb, "--model", "resnet_dnn_18"], ["bomb.pt", "nothing in it was run"]),
        "wrong variant": (["--ckpt", good, "--model", "resnet_mcdo_18"], ["resnet_dnn_18", "resnet_mcdo_18"]),
        "wrong class count": (["--ckpt", hundred], ["10 classes", "100"]),
        "wrong classes asked": (["--ckpt", good, "--model-args", "num_classes=7"], ["num_classes"]),
        "NaN weights": (["--ckpt", nan], ["layer2.0.conv1.weight", "NaN"]),
        "unknown data": (["--ckpt", good, "--data", "fashion_mnits"], ["fashion_mnits"]),
        "unknown split": (["--ckpt", good, "--data", "fashion_mnist:tset"], ["tset"]),
        "bad device": (["--ckpt", good, "--device", "cuda:99"], ["cuda:99"]),
        "output is a folder": (["--ckpt", good, "--out", tmp_path], [str(tmp_path)]),
        "output under a file": (["--ckpt", good, "--out", good / "A.h5"], ["A.h5"]),
        "contradiction": (["--ckpt", good, "--resume", "--restart"], ["--resume", "--restart"]),
        "tolerance": (["--ckpt", good, "--tolerance", "2"], ["tolerance"]),
        "no checkpoint": ([], ["--ckpt"]),
        "several checkpoints": (["--ckpt", good, "--ckpt", hundred], ["--ensemble", "analyze.compare"]),
        "one network twice": (["--ckpt", good, "--ckpt", good, "--ensemble"], ["good.safetensors", "same network"]),
        "members of other classes": (["--ckpt", good, "--ckpt", hundred, "--ensemble"], ["10 classes", "100"]),
    }


BAD = (
    "no file", "folder", "empty", "truncated", "code", "wrong variant", "wrong class count", "wrong classes asked",
    "NaN weights", "unknown data", "unknown split", "bad device", "output is a folder", "output under a file",
    "contradiction", "tolerance", "no checkpoint", "several checkpoints", "one network twice",
    "members of other classes",
)  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(command, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path / "cache"))
    arguments, words = bad_files(tmp_path)[fault]
    before = sorted(path for path in tmp_path.rglob("*"))
    base = [argument for argument in SMALL if fault != "tolerance" or argument not in ("--tolerance", "1e-2")]
    assert_sentence(command(*base, *arguments), *words)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert not (tmp_path / "exploded").exists()


def test_run_file_of_another_checkpoint_is_refused_and_untouched(command, tmp_path, finished):
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2))
    before = finished.read_bytes()
    for extra in ([], ["--restart"]):
        outcome = command("--ckpt", other, "--out", finished, *SMALL, *extra)
        assert_sentence(outcome, "checkpoint_sha256", "--out")
    assert finished.read_bytes() == before


def test_hdf5_with_an_external_link_is_refused_and_not_followed(command, tiny_checkpoint, tmp_path, finished):
    out = tmp_path / "linked.h5"
    out.write_bytes(finished.read_bytes())
    with h5py.File(out, "a", libver="v108") as file:
        file["elsewhere"] = h5py.ExternalLink(str(finished), "/hessian")
    before = out.read_bytes()
    assert_sentence(command("--ckpt", tiny_checkpoint, "--out", out, *SMALL), "linked.h5")
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_output_that_is_no_run_file_is_refused_and_untouched(command, tiny_checkpoint, tmp_path, content):
    out = tmp_path / "mine.h5"
    out.write_bytes(content)
    assert_sentence(command("--ckpt", tiny_checkpoint, "--out", out, *SMALL), "mine.h5")
    assert out.read_bytes() == content


def test_help_is_complete_and_loads_neither_torch_nor_matplotlib():
    script = (
        "import sys\n"
        "from analyze import cli\n"
        "try:\n    cli.main('hessian', ['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'matplotlib', 'plotly', 'streamlit', 'scipy'} & set(sys.modules)\n"
        "print('LOADED', sorted(heavy))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in printed
    for option in (
        "--ckpt",
        "--data",
        "--limit",
        "--out",
        "--restart",
        "--resume",
        "--json",
        "--no-plot",
        "--tolerance",
    ):
        assert option in printed


def test_import_analyze_is_light():
    script = (
        "import sys, analyze, analyze.hessian; print({'torch', 'streamlit', 'matplotlib', 'plotly'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


ALL = [
    *SMALL,
    "--parts",
    "extremes",
    "trace",
    "density",
    "max-spectrum",
    "blocks",
    "--batches",
    "2",
    "--minibatch",
    "16",
]
ALL += ["--top", "2", "--block-samples", "2", "--bits", "4", "8", "--basis-memory", "0.0004"]  # eight vectors: restarts

REACHED = {
    "extremes": lambda out: any(out.parent.glob(f".{out.name}.hessian-state.npz")),
    "trace": lambda out: holds(out, "trace"),
    "density": lambda out: holds(out, "density"),
    "max_spectrum": lambda out: holds(out, "max_spectrum"),
    "blocks": lambda out: holds(out, "blocks"),
    "quantization": lambda out: holds(out, "quantization"),
}


@pytest.fixture(scope="module")
def all_parts(tiny_checkpoint, tmp_path_factory):
    """A run file of all parts, of a search for extremes that restarts."""
    out = tmp_path_factory.mktemp("run") / "tiny.h5"
    cli.main("hessian", ["--ckpt", str(tiny_checkpoint), "--out", str(out), *ALL])
    return out


@pytest.mark.parametrize(("blow", "part"), [*((signal.SIGKILL, part) for part in REACHED), (signal.SIGINT, "trace")])
def test_killed_run_resumes_bit_equal(tiny_checkpoint, tmp_path, all_parts, command, blow, part):
    out = tmp_path / "A.h5"
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(out), *ALL]
    slow = (  # saves after each step, and pauses before each product once the part has begun: the blow lands inside it
        "import sys, time\n"
        "from pathlib import Path\n"
        "from test_cli import REACHED\n"
        "from analyze import cli\n"
        "from analyze.hessian.operator import HessianOperator\n"
        "cli.SAVE_SECONDS = 0\n"
        "product, out, part = HessianOperator.matvec, Path(sys.argv[1]), sys.argv[2]\n"
        "def slowly(self, v):\n"
        "    time.sleep(0.3 if REACHED[part](out) else 0)\n"
        "    return product(self, v)\n"
        "HessianOperator.matvec = slowly\n"
        "cli.main('hessian', sys.argv[3:])"
    )
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", slow, str(out), part, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    deadline = time.monotonic() + 120
    while not REACHED[part](out):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(blow)
    _, err = process.communicate(timeout=60)
    if blow == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    with open_run(out) as run:
        assert not run.group_attributes("hessian")["complete"]
    assert command(*arguments).status == 0
    assert contents(out) == contents(all_parts)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["A.h5", "A_hessian.png", "A_hessian_blocks.png", "A_hessian_max_spectrum.png"]
    )


def holds(path, part: str) -> bool:
    return path.exists() and getattr(Result.read(path), part) is not None  # a reader never sees half a file


def test_comparisons_that_cannot_be_drawn_are_refused_before_work(command, tiny_checkpoint, tmp_path, finished):
    base = ["--ckpt", tiny_checkpoint, "--out", tmp_path / "A.h5", *SMALL]
    spectrum = ["--parts", "max-spectrum"]
    assert_sentence(command(*base, "--parts", "trace", "--compare", finished), "max-spectrum", "--parts")
    assert_sentence(command(*base, *spectrum, "--compare", finished), str(finished), "none of max-spectrum")
    assert_sentence(command(*base, *spectrum, "--compare", finished, "--no-plot"), "--no-plot")
    assert_sentence(command(*base, *spectrum, "--compare", tiny_checkpoint), str(tiny_checkpoint))
    assert list(tmp_path.iterdir()) == []


def test_minibatches_added_alone_leave_the_other_numbers(command, tiny_checkpoint, tmp_path):
    out, few = tmp_path / "A.h5", [*SMALL, "--batches", "1", "--minibatch", "8", "--top", "1"]
    assert command("--ckpt", tiny_checkpoint, "--out", out, *few, "--parts", "trace").status == 0
    before = contents(out)
    assert command("--ckpt", tiny_checkpoint, "--out", out, *few, "--parts", "max-spectrum").status == 0
    after = contents(out)
    assert Result.read(out).max_spectrum is not None
    assert {key: after[key] for key in before if key[1] != "config"} == {
        key: value for key, value in before.items() if key[1] != "config"
    }


def test_restart_does_not_go_on_from_the_state_of_an_old_search(command, tiny_checkpoint, tmp_path, monkeypatch):
    out, base = tmp_path / "A.h5", ["--ckpt", tiny_checkpoint, "--out", tmp_path / "A.h5", *ALL[:-2]]
    state = tmp_path / ".A.h5.hessian-state.npz"
    state.write_bytes(b"of an old search")
    outcome = command(*base, "--parts", "trace", "--restart")
    assert outcome.status == 0 and not state.exists() and out.exists()


def test_result_saves_reads_and_plots_from_python(tmp_path, finished):
    result = Result.read(finished)
    result.save(tmp_path / "copy.h5")
    assert_equal(Result.read(tmp_path / "copy.h5"), result)
    for suffix in ("png", "pdf", "svg"):
        result.plot(tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").stat().st_size > 1000


def contents(path) -> dict:
    """Every dataset and attribute of a run file but the times and the command line."""
    found = {}
    with h5py.File(path, "r") as file:

        def note(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = item[()].tobytes() if item.dtype.kind != "O" else np.asarray(item[()]).tolist()
            for key, value in item.attrs.items():
                if key not in ("seconds", "modified", "created", "command", "DIMENSION_LIST", "REFERENCE_LIST"):
                    found[name, key] = value if isinstance(value, str) else np.asarray(value).tobytes()

        note("/", file)
        file.visititems(note)
    return found


def test_an_interrupt_that_was_dropped_comes_back_at_the_next_report():
    before = signal.getsignal(signal.SIGINT)
    with cli.Bars(quiet=True) as bars:
        bars.report("trace", 1, 3, "")
        try:  # what Python does around a destructor
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass
        with pytest.raises(KeyboardInterrupt):
            bars.report("trace", 2, 3, "")
    assert signal.getsignal(signal.SIGINT) is before
