"""Training: the schedule, bit-equal resumption, self-describing checkpoints, and the commands."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import data_cache
import ext
from data_cache import InputError
from models import checkpoint, load_checkpoint, names
from models.checkpoint import read_tensors
from models.train import Config, learning_rate, main, train, training_batch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def datasets():
    """64 images to train on, 100 to test on."""
    return {split: data_cache.load("fashion_mnist", split).limit(n) for split, n in (("train", 64), ("test", 100))}


@pytest.fixture(autouse=True)
def small_data(monkeypatch, datasets):
    monkeypatch.setattr(data_cache, "load", lambda name, split: datasets[split])


def config(folder, **changes):
    settings = {
        "model": "resnet_mcdo_18",
        "out": folder / "a.safetensors",
        "model_args": ("width=4",),
        "epochs": 2,
        "batch_size": 24,  # 24, 24, 16
        "learning_rate": 0.02,
        "milestones": (0.5,),
        "device": "cpu",
        "quiet": True,
    }
    return Config(**{**settings, **changes})


def tiny(folder, **changes):
    """The fastest network."""
    return config(folder, **{"model": "alexnet_dnn", "model_args": ("width=4", "hidden=8"), "epochs": 1, **changes})


class Stop(KeyboardInterrupt):
    pass


def stop_after(monkeypatch, epoch):
    """Ctrl-C right after an epoch is saved."""
    from models import train as module

    save = module._save_resume

    def save_and_stop(path, recipe, model, optimizer, done, *rest):
        save(path, recipe, model, optimizer, done, *rest)
        if done == epoch:
            raise Stop

    monkeypatch.setattr(module, "_save_resume", save_and_stop)


# The schedule.


def test_the_rate_warms_up_linearly_from_near_zero(tmp_path):
    settings = Config(model="", out=tmp_path, epochs=10, warmup_epochs=2, learning_rate=0.1)
    assert learning_rate(settings, 0.0) == pytest.approx(0.1 * 1e-3 / 2)
    assert learning_rate(settings, 1.0) == pytest.approx(0.1 * 1.001 / 2)
    assert learning_rate(settings, 2.0) == 0.1


def test_the_rate_falls_by_gamma_at_each_milestone(tmp_path):
    # The paper's: 200 epochs and 1 of warm-up, a fifth after 60, 130 and 160.
    settings = Config(model="", out=tmp_path)
    for epoch, rate in (
        (1, 0.1),
        (60.9, 0.1),
        (61, 0.02),
        (130.9, 0.02),
        (131, 0.004),
        (160.9, 0.004),
        (161, 8e-4),
        (200.9, 8e-4),
    ):
        assert learning_rate(settings, epoch) == pytest.approx(rate, rel=1e-12)


def test_the_rate_falls_as_half_a_cosine_to_zero(tmp_path):
    settings = Config(model="", out=tmp_path, schedule="cosine", epochs=8, warmup_epochs=1, learning_rate=0.2)
    for epoch, share in ((1, 1.0), (3, (1 + math.sqrt(0.5)) / 2), (5, 0.5), (9, 0.0), (9.5, 0.0)):
        assert learning_rate(settings, epoch) == pytest.approx(0.2 * share, abs=1e-15)


def test_without_warm_up_the_rate_starts_at_its_peak(tmp_path):
    assert learning_rate(Config(model="", out=tmp_path, warmup_epochs=0), 0.0) == 0.1


# A run.


@pytest.fixture(scope="module")
def run(tmp_path_factory, datasets):
    """One uninterrupted run: its configuration, metrics, and the random state before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_cache, "load", lambda name, split: datasets[split])
        settings = config(tmp_path_factory.mktemp("run"))
        before = torch.get_rng_state()
        metrics = train(settings)
        return settings, metrics, before, torch.get_rng_state()


def test_training_leaves_the_global_random_state_alone(run):
    assert torch.equal(run[2], run[3])


def test_the_checkpoint_says_all_that_loading_needs(run):
    settings, metrics, *_ = run
    loaded = load_checkpoint(settings.out)
    assert loaded.name == "resnet_mcdo_18"
    assert loaded.kwargs == {"num_classes": 10, "width": 4}
    metadata = loaded.metadata
    assert metadata["dataset"] == "fashion_mnist"
    assert len(metadata["classes"]) == 10
    assert len(metadata["mean"]) == len(metadata["std"]) == 3
    assert metadata["weight_decay"] == 5e-4
    assert metadata["augmentation"] == "crop and flip"
    assert metadata["training"]["epochs"] == 2
    assert metadata["training"]["images"] == 64
    assert math.isfinite(metadata["training"]["final_loss"])
    assert metadata["test"] == metrics
    assert not list(settings.out.parent.glob("*.resume"))


def test_the_metrics_are_those_of_the_checkpoint(run, datasets):
    from models.metrics import evaluate

    settings, metrics, *_ = run
    assert list(metrics) == ["1 pass", "20 passes"]
    model = load_checkpoint(settings.out).model.to(memory_format=torch.channels_last)
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in datasets["test"].batches(125)]
    for row, passes in (("1 pass", 1), ("20 passes", 20)):
        assert metrics[row]["images"] == 100
        assert evaluate(model, batches, passes=passes).summary() == pytest.approx(metrics[row], rel=1e-5)


@pytest.mark.parametrize("model", ["alexnet_dnn_smoothing", "alexnet_dnn"])
def test_the_path_of_the_smoothing_operator_is_told_and_recorded(tmp_path, capsys, model):
    train(tiny(tmp_path, model=model, quiet=False))
    told = [line for line in capsys.readouterr().err.splitlines() if line == ext.status()]
    recorded = load_checkpoint(tmp_path / "a.safetensors").metadata["training"]["smoothing"]
    smooth = "smoothing" in model
    assert len(told) == smooth
    assert (recorded in ("fused", "eager") and recorded in told[0]) if smooth else recorded is None


def test_training_learns(tmp_path, datasets):
    # Guessing has ln 10 = 2.30.
    train(config(tmp_path, model="resnet_dnn_18", epochs=12, batch_size=16, learning_rate=0.05))
    assert load_checkpoint(tmp_path / "a.safetensors").metadata["training"]["final_loss"] < 1.8


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_bits(run, tmp_path, monkeypatch, epoch):
    settings = replace(run[0], out=tmp_path / "b.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, epoch)
        with pytest.raises(Stop):
            train(settings)
    assert not settings.out.exists()
    assert read_tensors(tmp_path / "b.safetensors.resume")[1]["epoch"] == epoch
    metrics = train(settings)
    whole, resumed = load_checkpoint(run[0].out), load_checkpoint(settings.out)
    expected = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert metrics == run[1]
    told = [{**each.metadata["training"], "out": None} for each in (whole, resumed)]
    assert told[0] == told[1]


def test_a_run_killed_within_an_epoch_goes_on_from_the_one_before(run, tmp_path):
    settings = replace(run[0], out=tmp_path / "b.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        calls = []

        def batch(*arguments):
            calls.append(arguments)
            if len(calls) == 5:  # the second step of the second epoch
                raise Stop
            return training_batch(*arguments)

        patch.setattr("models.train.training_batch", batch)
        with pytest.raises(Stop):
            train(settings)
    train(settings)
    expected = load_checkpoint(run[0].out).model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in load_checkpoint(settings.out).model.state_dict().items())


def test_another_seed_gives_another_network(run, tmp_path):
    train(replace(run[0], out=tmp_path / "b.safetensors", seed=1))
    other, expected = (
        load_checkpoint(path).model.layer0[0].weight for path in (tmp_path / "b.safetensors", run[0].out)
    )
    assert not torch.equal(other, expected)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"learning_rate": 0.03}, "learning_rate"),
        ({"epochs": 5}, "epochs"),
        ({"seed": 3}, "seed"),
        ({"model_args": ("width=8", "hidden=8")}, "model_args"),
        ({"limit": 32}, "limit"),
    ],
)
def test_resuming_with_another_recipe_is_refused_and_named(tmp_path, change, field):
    settings = tiny(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            train(settings)
    with pytest.raises(InputError, match=rf"a\.safetensors\.resume was begun with {field}=.*--restart") as caught:
        train(replace(settings, **change))
    assert "\n" not in str(caught.value)
    train(replace(settings, **change, restart=True))
    assert settings.out.exists()


def test_resuming_on_other_images_is_refused(tmp_path, datasets, monkeypatch):
    settings = tiny(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            train(settings)
    other = {**datasets, "train": datasets["train"].limit(63)}
    monkeypatch.setattr(data_cache, "load", lambda name, split: other[split])
    with pytest.raises(InputError, match="data_sha256"):
        train(settings)


def test_a_damaged_resume_file_is_refused(tmp_path):
    settings = tiny(tmp_path)
    (tmp_path / "a.safetensors.resume").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"a\.safetensors\.resume"):
        train(settings)
    train(replace(settings, restart=True))


def test_a_resume_file_without_its_epoch_is_refused(tmp_path):
    checkpoint.write_tensors(tmp_path / "a.safetensors.resume", {"x": torch.zeros(1)}, {})
    with pytest.raises(InputError, match=r"a\.safetensors\.resume"):
        train(tiny(tmp_path))


def test_a_restart_begins_again(tmp_path):
    settings = tiny(tmp_path, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            train(settings)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.train._save_resume", lambda *arguments: done.append(arguments[4]))
        train(replace(settings, restart=True))
    assert done == [1, 2, 3]


def test_a_diverging_run_ends_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="training loss is (nan|inf) after epoch .*--learning-rate") as caught:
        train(tiny(tmp_path, learning_rate=1e30, epochs=3))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.safetensors").exists()


def test_bfloat16_trains_a_float32_network(tmp_path):
    train(tiny(tmp_path, precision="bfloat16"))
    state = load_checkpoint(tmp_path / "a.safetensors").model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_limit_trains_on_fewer_images(tmp_path):
    train(tiny(tmp_path, limit=10))
    assert load_checkpoint(tmp_path / "a.safetensors").metadata["training"]["images"] == 10


def test_augmented_batches_depend_on_seed_epoch_and_image_alone(datasets):
    data = datasets["train"]
    x, y = training_batch(data, [3, 9, 20], seed=1, epoch=2)
    assert torch.equal(training_batch(data, [20, 3], seed=1, epoch=2)[0], x[[2, 0]])
    assert not torch.equal(training_batch(data, [3, 9, 20], seed=1, epoch=3)[0], x)
    assert torch.equal(y, data.labels[[3, 9, 20]])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"out": Path("a.pt")}, "--out"),
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"warmup_epochs": -1}, "--warmup-epochs"),
        ({"seed": -1}, "--seed"),
        ({"limit": 0}, "limit"),
        ({"limit": -5}, "limit"),
        ({"momentum": -0.5}, "--momentum"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"learning_rate": -0.1}, "--learning-rate"),
        ({"learning_rate": math.nan}, "--learning-rate"),
        ({"model": "resnet_dnn_19"}, "resnet_dnn_18"),
        ({"model_args": ("width",)}, "--model-args"),
        ({"model_args": ("widht=4",)}, "widht"),
        ({"device": "tpu9"}, "tpu9"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_step(tmp_path, monkeypatch, change, word):
    monkeypatch.setattr("models.train.training_batch", None)
    with pytest.raises(InputError) as caught:
        train(tiny(tmp_path, **change))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr("models.train.training_batch", None)
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for out in (tmp_path / "file" / "a.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(InputError) as caught:
            train(tiny(tmp_path, out=out))
        assert str(out) in str(caught.value)


def test_the_command_prints_a_table_and_the_path(tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.safetensors"
    arguments = f"train --model alexnet_dnn --out {out} --model-args width=4 hidden=8 --epochs 1 --quiet --device cpu"
    monkeypatch.setattr(sys, "argv", arguments.split())
    main()
    printed = capsys.readouterr().out
    assert "test NLL" in printed
    assert "1 pass" in printed
    assert str(out) in printed
    assert load_checkpoint(out).kwargs == {"num_classes": 10, "width": 4, "hidden": 8}


def test_the_command_ends_a_bad_input_with_one_line_and_status_two(tmp_path, monkeypatch, capsys):
    arguments = f"train --model resnet_dnn_19 --out {tmp_path / 'a.safetensors'} --quiet --device cpu"
    monkeypatch.setattr(sys, "argv", arguments.split())
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# Commands in processes of their own.


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_lists_every_option_without_loading_torch():
    code = (
        "import runpy, sys; sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('models.train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    finished = python("-c", code)
    assert finished.returncode == 0, finished.stderr
    for field in Config.__dataclass_fields__:
        assert "--" + field.replace("_", "-") in finished.stdout


def test_importing_the_rooms_loads_no_torch():
    finished = python("-c", "import sys, ext, models, models.train; assert 'torch' not in sys.modules")
    assert finished.returncode == 0, finished.stderr


def test_the_list_as_json_has_zoo_and_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "my_net.safetensors").touch()
    finished = python("-m", "models", "list", "--json", LANDSCOPE_CACHE=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    listed = json.loads(finished.stdout)
    assert set(listed) == {"zoo", "checkpoints"}
    assert listed["zoo"] == names()
    assert len(listed["zoo"]) == 92
    assert "my_net" in listed["checkpoints"]


def test_the_list_for_people_has_a_line_for_each_name(monkeypatch, capsys, tmp_path):
    from models.__main__ import main as list_main

    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["models", "list"])
    list_main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert set(names()) <= set(lines)
