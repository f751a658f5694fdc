"""What commands can be started on: only files that say what they are, and nothing outside of the root."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from apps import inputs
from data_cache import InputError, catalogue, paths

GOOD = {"format": "landscope", "model": '"resnet_dnn_18"', "dataset": '"fashion_mnist"'}


def write(path, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.zeros(2, np.float32)}, path, {**GOOD, **header})
    return path


def below(root):
    """Names of the checkpoints that are found under the root, and why others are not."""
    found, left_out = inputs.checkpoints(root)
    return [checkpoint.name for checkpoint in found if checkpoint.name not in paths.checkpoints()], left_out


def test_checkpoints_that_ship_go_by_name(tmp_path):
    found, left_out = inputs.checkpoints(tmp_path)
    assert [checkpoint.value for checkpoint in found] == list(paths.checkpoints())
    assert {checkpoint.dataset for checkpoint in found} == {"fashion_mnist"}
    assert left_out == []


def test_own_checkpoints_go_by_path(tmp_path):
    write(tmp_path / "b.safetensors")
    path = write(tmp_path / "deep" / "a.safetensors", model='"torchvision:resnet18"')
    assert below(tmp_path) == (["b.safetensors", "deep/a.safetensors"], [])
    assert str(path) in [checkpoint.value for checkpoint in inputs.checkpoints(tmp_path)[0]]


@pytest.mark.parametrize(
    ("name", "file"),
    [("sub/my net.safetensors", "my_net.h5"), ("-..x.safetensors", "x.h5"), ("ä.safetensors", "run.h5")],
)
def test_run_files_are_called_after_their_checkpoint(tmp_path, name, file):
    checkpoint = inputs.Checkpoint(name, str(tmp_path / name), "")
    assert checkpoint.run_file == file
    assert inputs.output_file(tmp_path, file).name == file


def test_names_with_dots_are_whole(tmp_path):
    assert inputs.Checkpoint("net.v2", "net.v2", "").run_file == "net.v2.h5"


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_files_that_do_not_say_what_they_are_stay_out_with_a_sentence_and_unopened(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "boom"))
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    write(tmp_path / "code.safetensors", model='"os:system"')
    write(tmp_path / "folder.safetensors", dataset='"folder:/etc"')
    write(tmp_path / "foreign.safetensors", format="pt")
    write(tmp_path / "list.safetensors", model='["resnet_dnn_18"]')
    write(tmp_path / "odd.safetensors", model="[" * 10**4)
    (tmp_path / "torn.safetensors").write_bytes(write(tmp_path / "whole.safetensors").read_bytes()[:-3])
    (tmp_path / "void.safetensors").touch()
    unsaid = "doesn't say which network it is of: the command line takes it with --model."
    torn = "is not a whole safetensors file."
    assert below(tmp_path) == (
        ["whole.safetensors"],
        [
            f"bomb.pth {unsaid}",
            "code.safetensors is of a network that your own code makes: the command line takes it with --model.",
            "folder.safetensors was trained on images that have no name here: the command line takes it.",
            f"foreign.safetensors {unsaid}",
            f"list.safetensors {unsaid}",
            f"odd.safetensors {unsaid}",
            f"torn.safetensors {torn}",
            f"void.safetensors {torn}",
        ],
    )
    assert not (tmp_path / "boom").exists()


def test_links_pipes_hidden_files_and_control_characters_stay_out(tmp_path):
    root = tmp_path / "root"
    target = write(tmp_path / "outside" / "a.safetensors")
    root.mkdir()
    (root / "link.safetensors").symlink_to(target)
    (root / "linked").symlink_to(target.parent)
    os.mkfifo(root / "pipe.safetensors")
    write(root / ".hidden.safetensors")
    write(root / ".jobs" / "a.safetensors")
    assert below(root) == ([], [])
    write(root / "a\nb.safetensors")
    assert below(root) == ([], ["a\nb.safetensors has control characters in its path."])


def test_data_sets_are_those_that_can_be_loaded():
    assert set(inputs.SETS) == set(catalogue._REGISTRY)
    for name, (splits, _) in inputs.SETS.items():
        assert set(splits) <= set(catalogue._REGISTRY[name].splits)


def test_only_data_that_is_there_is_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    assert inputs.data_choices() == ["fashion_mnist:train", "fashion_mnist:test"]
    (tmp_path / "datasets" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "datasets" / "train_32x32.mat").touch()
    assert inputs.data_choices()[2:] == ["cifar10:train", "cifar10:test"]


@pytest.mark.parametrize(("name", "file"), [("a", "a.h5"), (" a.h5 ", "a.h5"), ("A-1_b.c", "A-1_b.c.h5")])
def test_run_files_lie_in_the_root(tmp_path, name, file):
    assert inputs.output_file(tmp_path, name) == tmp_path / file


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".h5", "../a", "/etc/x", "a/b", "a\\b", "-a", "--out=x", "a b", "a\nb", "a\0", "ä", "a" * 101],
)
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="^The run file's name has letters"):
        inputs.output_file(tmp_path, name)


def test_nothing_is_written_through_links_or_over_what_ships(tmp_path):
    (tmp_path / "a.h5").symlink_to(tmp_path / "elsewhere.h5")
    (tmp_path / "b.h5").mkdir()
    for name, kind in (("a", "link"), ("b.h5", "folder")):
        with pytest.raises(InputError, match=rf"^{name[0]}\.h5 is a {kind}; choose another name\.$"):
            inputs.output_file(tmp_path, name)
    with pytest.raises(InputError, match="The results that ship stay as they are"):
        inputs.output_file(Path(paths.shipped()) / "results" / "shipped", "a")
