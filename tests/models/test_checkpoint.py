"""Checkpoints go out and come back whole; what is broken, foreign or malicious is refused in one sentence."""

import contextlib
import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn

from data_cache import InputError
from models import fixed_randomness, get_model, load_checkpoint, save_checkpoint
from models.arguments import parse_key_values
from models.checkpoint import from_how_do_vits_work, to_how_do_vits_work

METADATA = {"classes": ["cat", "dog", "fish"], "dataset": "pets", "mean": [0.5], "std": [0.25], "weight_decay": 5e-4}


def small(name="resnet_dnn_18", **kwargs):
    with fixed_randomness("cpu", 1):
        return get_model(name, **{"num_classes": 3, "width": 4, **kwargs})


def save(path, name="resnet_dnn_18", **kwargs):
    """One of our own checkpoints and its network."""
    model = small(name, **kwargs)
    stored = {"num_classes": 3, "width": 4, **kwargs}
    save_checkpoint(path, model, {"model": name, "kwargs": stored, **METADATA})
    return model


def same_weights(model, state):
    found = model.state_dict()
    return list(found) == list(state) and all(torch.equal(found[key], state[key]) for key in state)


@contextlib.contextmanager
def refused(*words):
    """Exactly one sentence in one line, with these words in it."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


# Our own files.


def test_a_checkpoint_comes_back_whole_and_in_eval_mode(tmp_path):
    path = tmp_path / "made" / "on the way" / "a.safetensors"
    model = save(path, "resnet_mcdo_smoothing_18", rate=0.1, sfilter=(1, 2, 1))
    loaded = load_checkpoint(path)
    assert same_weights(loaded.model, model.state_dict())
    assert loaded.name == loaded.model.name == "resnet_mcdo_smoothing_18"
    assert loaded.kwargs == {"num_classes": 3, "width": 4, "rate": 0.1, "sfilter": [1, 2, 1]}
    assert loaded.metadata == METADATA
    assert loaded.path == path
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(module.training for module in loaded.model.modules())
    assert list(tmp_path.rglob("*.tmp*")) == []


def test_weights_in_channels_last_and_shared_tensors_are_saved(tmp_path):
    model = small().to(memory_format=torch.channels_last)
    save_checkpoint(
        tmp_path / "a.safetensors", model, {"model": "resnet_dnn_18", "kwargs": {"width": 4, "num_classes": 3}}
    )
    assert same_weights(load_checkpoint(tmp_path / "a.safetensors").model, model.state_dict())
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    save_checkpoint(tmp_path / "tied.safetensors", tied, {})
    assert safetensors.torch.load_file(tmp_path / "tied.safetensors")["1.weight"].tolist() == tied[0].weight.tolist()


def test_loading_leaves_the_random_state_alone(tmp_path):
    save(tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_loads_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    model = save(tmp_path / "checkpoints" / "my_net.safetensors")
    assert same_weights(load_checkpoint("my_net").model, model.state_dict())


def test_an_unknown_name_is_answered_with_those_that_are_close(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    save(tmp_path / "checkpoints" / "my_net.safetensors")
    with refused("my_nte", "did you mean my_net?"):
        load_checkpoint("my_nte")
    with refused("zzzzzz", "by name there are", "my_net"):
        load_checkpoint("zzzzzz")


def test_agreeing_arguments_may_be_given_again(tmp_path):
    save(tmp_path / "a.safetensors", sfilter=(1, 2, 1), sblock="TanhBlurBlock")
    loaded = load_checkpoint(
        tmp_path / "a.safetensors", model="resnet_18", model_args={"width": 4, "sfilter": (1, 2, 1)}
    )
    assert loaded.name == "resnet_dnn_18"


# Everybody else's files.

WRAPPINGS = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state},
    "net": lambda state: {"net": state, "acc": 95.0},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "data parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "compiled data parallel": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "compiled, then data parallel": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin"])
def test_every_suffix_of_torch_save_is_read(tmp_path, suffix, zipped):
    path, state = tmp_path / f"a{suffix}", small().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4})
    assert same_weights(loaded.model, state)
    assert loaded.kwargs == {"width": 4, "num_classes": 3}  # read off the weights
    assert loaded.metadata == {}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_common_wrapping_is_taken_off(tmp_path, wrapping):
    path, state = tmp_path / "a.pt", small().state_dict()
    torch.save(WRAPPINGS[wrapping](state), path)
    assert same_weights(load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4}).model, state)


def test_a_foreign_safetensors_file_is_read(tmp_path):
    path, state = tmp_path / "a.safetensors", small().state_dict()
    safetensors.torch.save_file(state, path, {"format": "pt"})
    assert same_weights(load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4}).model, state)


def test_half_precision_weights_fill_a_float32_network(tmp_path):
    path, state = tmp_path / "a.pt", small().half().state_dict()
    torch.save(state, path)
    model = load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4}).model
    assert model.layer0[0].weight.dtype == torch.float32
    assert torch.equal(model.layer0[0].weight, state["layer0.0.weight"].float())


def test_files_older_than_batch_counters_are_read(tmp_path):
    path = tmp_path / "a.pt"
    state = {k: v for k, v in small().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, path)
    model = load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4}).model
    assert torch.equal(model.layer0[1].running_var, state["layer0.1.running_var"])


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("resnet_dnn_18", {}),
        ("vgg_dnn_11", {"hidden": 8}),
        ("resnet_dnn_18", {"cblock": "GAPMLPBlock", "hidden": 8}),
        ("preresnet_dnn_18", {}),
    ],
)
def test_the_number_of_classes_is_read_off_the_weights(tmp_path, network, options):
    torch.save(small(network, num_classes=17, **options).state_dict(), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt", model=network, model_args={"width": 4, **options})
    assert loaded.kwargs["num_classes"] == 17


def test_a_published_file_says_its_name_also_without_dnn(tmp_path):
    torch.save({"name": "resnet_18", "state_dict": get_model("resnet_dnn_18").state_dict()}, tmp_path / "a.pth.tar")
    assert load_checkpoint(tmp_path / "a.pth.tar").name == "resnet_dnn_18"


def test_a_name_that_is_not_the_zoos_does_not_stand_in_the_way(tmp_path):
    torch.save({"name": "my best run", "state_dict": small().state_dict()}, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt", model="resnet_dnn_18", model_args={"width": 4})
    assert loaded.name == "resnet_dnn_18"
    with refused("a.pt", "--model"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_torchvision_network_is_built_by_name(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    torch.save(state, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth", model="torchvision:resnet18", model_args={"num_classes": 3})
    assert same_weights(loaded.model, state)


def test_a_timm_network_is_built_by_name_and_its_own_file_is_enough(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "a.bin")
    loaded = load_checkpoint(tmp_path / "a.bin", model="timm:resnet10t", model_args={"num_classes": 3})
    assert same_weights(loaded.model, model.state_dict())
    save_checkpoint(tmp_path / "own.safetensors", model, {"model": "timm:resnet10t", "kwargs": {"num_classes": 3}})
    assert same_weights(load_checkpoint(tmp_path / "own.safetensors").model, model.state_dict())


FACTORY = """
from torch import nn

def network(size=2):
    return nn.Linear(size, size)

def fails():
    raise RuntimeError("no such\\nthing here")

def number():
    return 3
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "users_package").mkdir()
    (tmp_path / "own" / "users_package" / "nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path / "own")
    return "users_package.nets"


def test_a_factory_of_the_users_builds_the_network(tmp_path, factory):
    state = nn.Linear(5, 5).state_dict()
    torch.save(state, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt", model=f"{factory}:network", model_args={"size": 5})
    assert same_weights(loaded.model, state)
    assert loaded.name == "users_package.nets:network"


@pytest.mark.parametrize(
    "name", ["alexnet_mcdo", "vgg_dnn_11", "prevgg_mcdo_11", "resnet_mcdo_50", "preresnet_dnn_18", "preresnet_mcdo_50"]
)
@pytest.mark.parametrize("options", [{}, {"sblock": "BNTanhBlurBlock", "sfilter": [1, 2, 1]}])
def test_every_family_comes_back(tmp_path, name, options):
    parts = name.split("_")
    name = "_".join([parts[0], parts[1], "smoothing", *parts[2:]])
    hidden = {} if "res" in name else {"hidden": 8}
    model = save(tmp_path / "a.safetensors", name, **hidden, **options)
    assert same_weights(load_checkpoint(tmp_path / "a.safetensors").model, model.state_dict())
    torch.save(model.state_dict(), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt", model=name, model_args={"width": 4, **hidden, **options})
    assert same_weights(loaded.model, model.state_dict())


# how-do-vits-work's names.

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm_keys(at):
    return [f"{at}.{leaf}" for leaf in BN]


VITS_BLOCK = {
    "resnet_dnn_18": ["conv1.0.weight", *norm_keys("conv1.1"), "conv2.0.weight", *norm_keys("conv2.1")],
    "resnet_dnn_50": [
        *("conv1.0.weight", *norm_keys("conv1.1"), "conv2.0.weight", *norm_keys("conv2.1")),
        *("conv3.0.weight", *norm_keys("conv3.1")),
    ],
    "preresnet_dnn_18": [*norm_keys("bn"), "conv1.weight", *norm_keys("conv2.0"), "conv2.2.weight"],
    "preresnet_mcdo_50": [
        *(*norm_keys("bn"), "conv1.weight", *norm_keys("conv2.0"), "conv2.2.weight"),
        *(*norm_keys("conv3.0"), "conv3.2.weight"),
    ],
}
VITS_BLOCK["preresnet_mcdo_18"] = VITS_BLOCK["preresnet_dnn_18"]
VITS_BLOCK["preresnet_dnn_50"] = VITS_BLOCK["preresnet_mcdo_50"]


@pytest.mark.parametrize("name", VITS_BLOCK)
def test_how_do_vits_work_names_of_a_block(name):
    renamed = [key for key in to_how_do_vits_work(small(name).state_dict()) if key.startswith("layer1.1.")]
    assert renamed == [f"layer1.1.{key}" for key in VITS_BLOCK[name]]


@pytest.mark.parametrize("name", VITS_BLOCK)
def test_how_do_vits_work_names_leave_stem_shortcuts_and_classifier_alone(name):
    state = small(name).state_dict()
    renamed = to_how_do_vits_work(state)
    for key in state:
        if key.startswith(("layer0.", "classifier.")) or ".shortcut." in key:
            assert renamed[key] is state[key]


@pytest.mark.parametrize("name", VITS_BLOCK)
def test_how_do_vits_work_names_there_and_back_change_nothing(name):
    state = small(name).state_dict()
    renamed = to_how_do_vits_work(state)
    assert len(renamed) == len(state)
    assert list(renamed) != list(state)
    back = from_how_do_vits_work(renamed)
    assert list(back) == list(state)
    assert all(back[key] is state[key] for key in state)
    assert list(from_how_do_vits_work(state)) == list(state)


@pytest.mark.parametrize("name", VITS_BLOCK)
def test_a_file_with_how_do_vits_work_names_computes_the_same(tmp_path, name):
    model = small(name).eval()
    torch.save({"name": name, "state_dict": to_how_do_vits_work(model.state_dict())}, tmp_path / "a.pth.tar")
    loaded = load_checkpoint(tmp_path / "a.pth.tar", model_args={"width": 4})
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    outputs = []
    for network in (model, loaded.model):
        with torch.no_grad(), fixed_randomness("cpu", 0):
            outputs.append(network(x))
    assert torch.equal(*outputs)


# Files that are not there, broken, or do not fit.


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody_at_home/a.pt", "nul\0byte", ""])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(InputError):
        load_checkpoint(name)


def test_no_file(tmp_path):
    with refused(tmp_path / "absent.pt"):
        load_checkpoint(tmp_path / "absent.pt")


def test_a_folder(tmp_path):
    with refused(tmp_path, "folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_empty_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    with refused(path, "empty"):
        load_checkpoint(path, model="resnet_dnn_18")


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5, 0.999])
def test_a_truncated_safetensors_file(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * share))])
    with refused(path, "not a whole safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_torch_file(tmp_path, share, zipped):
    path = tmp_path / "a.pt"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * share))])
    with refused(path):
        load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_with_damaged_bytes_loads_or_is_refused(tmp_path, zipped):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refusals = 0
    for at in range(0, min(len(whole), 700), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            load_checkpoint(path, model="torch.nn:Linear", model_args={"in_features": 2, "out_features": 2})
        except InputError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 10


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"just some text\n", b"version https://git-lfs.github.com/spec/v1\n", b"<html>\n<body>404", bytes(200)]
)
def test_a_file_of_something_else(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with refused(path):
        load_checkpoint(path, model="resnet_dnn_18")


def test_a_safetensors_file_named_pt_and_the_other_way_round(tmp_path):
    save(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pt")
    with refused("a.pt"):
        load_checkpoint(tmp_path / "a.pt", model="resnet_dnn_18")
    torch.save(small().state_dict(), tmp_path / "b.safetensors")
    with refused("b.safetensors"):
        load_checkpoint(tmp_path / "b.safetensors", model="resnet_dnn_18")


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", ["pickle", "torch", "legacy", "zip"])
def test_a_malicious_pickle_runs_nothing(tmp_path, write):
    path, trap = tmp_path / "a.pt", tmp_path / "trap"
    content = {"state_dict": small().state_dict(), "x": Touch(trap)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(Touch(trap)))
    elif write == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Touch(trap), protocol=2))
            file.writestr("archive/version", "3\n")
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    with refused(path):
        load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4})
    assert not trap.exists()
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists()  # so the trap works


def test_a_pickle_of_a_whole_network(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(small(), path)
    with refused(path, "state_dict()"):
        load_checkpoint(path, model="resnet_dnn_18")


def test_metadata_cannot_have_code_run(tmp_path):
    # os.mkdir(path=...) would be "package.module:factory" with keyword arguments.
    path, trap = tmp_path / "a.safetensors", tmp_path / "trap"
    save_checkpoint(path, small(), {"model": "os:mkdir", "kwargs": {"path": str(trap)}})
    with refused(path, "os:mkdir", "--model"):
        load_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["timm:hf-hub:stranger/net", "timm:local-dir:/tmp/x", "users_package.nets:network"])
def test_metadata_cannot_name_a_source_of_code_or_configuration(tmp_path, factory, name):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, nn.Linear(2, 2), {"model": name, "kwargs": {}})
    with refused(path, name):
        load_checkpoint(path)


def test_a_file_of_a_users_factory_loads_once_the_user_names_it(tmp_path, factory):
    path, model = tmp_path / "a.safetensors", nn.Linear(5, 5)
    save_checkpoint(path, model, {"model": f"{factory}:network", "kwargs": {"size": 5}})
    assert same_weights(load_checkpoint(path, model=f"{factory}:network").model, model.state_dict())


def test_metadata_cannot_have_another_file_opened(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small(), {"model": "timm:resnet10t", "kwargs": {"checkpoint_path": "/tmp/x.pth"}})
    with refused(path, "checkpoint_path"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "kwargs",
    [{"width": 10**6}, {"width": 10**30}, {"hidden": 10**9, "cblock": "MLPBlock"}, {"num_sblocks": [10**9] * 4}],
)
def test_metadata_cannot_have_a_giant_built(tmp_path, kwargs):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small(), {"model": "resnet_dnn_18", "kwargs": {"num_classes": 3, **kwargs}})
    with refused(path):
        load_checkpoint(path)


@pytest.mark.parametrize("kwargs", [3, "x", [1], {"name": "y"}, {"widht": 4}, {"width": "4"}, {"sfilter": [[1]]}])
def test_strange_arguments_in_metadata(tmp_path, kwargs):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small(), {"model": "resnet_dnn_18", "kwargs": kwargs})
    with refused(path):
        load_checkpoint(path)


@pytest.mark.parametrize("kwargs", ["not json", "{", "[" * 100_000, "1" * 5000])
def test_metadata_that_is_not_json(tmp_path, kwargs):
    path = tmp_path / "a.safetensors"
    header = {"format": "landscope", "model": '"resnet_dnn_18"', "kwargs": kwargs}
    safetensors.torch.save_file(small().state_dict(), path, header)
    with refused(path, "metadata"):
        load_checkpoint(path)


@pytest.mark.parametrize("length", [2**63, 2**40, 10**6])
def test_a_header_that_claims_a_huge_length(tmp_path, length):
    path = tmp_path / "a.safetensors"
    save(path)
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", length) + content[8:])
    with refused(path):
        load_checkpoint(path)


def test_a_header_with_overlapping_or_outlying_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    for offsets in ([0, 10**9], [4, 0], [-4, 0]):
        header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with refused(path):
            load_checkpoint(path, model="resnet_dnn_18")


@pytest.mark.parametrize("asked", ["resnet_mcdo_18", "resnet_dnn_smoothing_18", "vgg_dnn_11", "torchvision:resnet18"])
def test_another_variant_than_the_stored_one(tmp_path, asked):
    save(tmp_path / "a.safetensors")
    torch.save({"name": "resnet_dnn_18", "state_dict": small().state_dict()}, tmp_path / "a.pth.tar")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth.tar"):
        with refused(path, "resnet_dnn_18", asked):
            load_checkpoint(path, model=asked, model_args={"width": 4})


@pytest.mark.parametrize("conflict", [{"width": 8}, {"num_classes": 4}])
def test_arguments_that_contradict_the_file(tmp_path, conflict):
    path = tmp_path / "a.safetensors"
    save(path)
    (key,) = conflict
    with refused(path, key):
        load_checkpoint(path, model_args=conflict)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [({"width": 8}, "layer0.0.weight"), ({"width": 4, "num_classes": 5}, "classifier.0.dense.weight")],
)
def test_weights_of_another_shape(tmp_path, arguments, key):
    path = tmp_path / "a.pt"
    torch.save(small().state_dict(), path)
    with refused(path, key, "(4, 3, 3, 3)" if "layer" in key else "(3, 32)"):
        load_checkpoint(path, model="resnet_dnn_18", model_args=arguments)


def changed(**changes):
    state = dict(small().state_dict())
    for key, value in changes.items():
        key = key.replace("__", ".")
        state.pop(key, None)
        if value is not None:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (changed(layer1__0__conv1__weight=None), ["layer1.0.conv1.weight", "1 missing"]),
        (changed(surprise=torch.ones(1)), ["surprise", "1 unknown"]),
        (changed(layer1__0__bn1__bias=torch.tensor([0.0, float("nan"), 0, 0])), ["layer1.0.bn1.bias", "NaN"]),
        (changed(layer1__0__bn1__running_var=torch.full((4,), float("inf"))), ["layer1.0.bn1.running_var"]),
        (changed(layer1__0__bn1__bias=torch.zeros(4).to_sparse()), ["state dict"]),
        (changed(layer1__0__bn1__bias=torch.zeros(4, device="meta")), ["state dict"]),
        (changed(layer1__0__bn1__bias=[0.0] * 4), ["state dict"]),
        (changed(classifier__0__dense__bias=torch.tensor(1.0)), ["classifier.0.dense"]),
        (changed(classifier__0__dense__bias=torch.zeros(1).expand(10**9)), ["classifier.0.dense"]),
        ({}, ["no weights"]),
        ({"state_dict": {}}, ["no weights"]),
        ({"a": 1, "b": "two"}, ["state dict"]),
        ([torch.ones(1)], ["state dict"]),
        (torch.ones(3), ["state dict"]),
        ({1: torch.ones(1)}, ["state dict"]),
        (None, ["state dict"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_state_dict_that_is_none_or_does_not_fit(tmp_path, state, words):
    path = tmp_path / "a.pt"
    torch.save(state, path)
    with refused(path, *words):
        load_checkpoint(path, model="resnet_dnn_18", model_args={"width": 4})


def test_a_file_that_does_not_say_what_it_is_of(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(small().state_dict(), path)
    with refused(path, "--model"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet_dnn_19", ["resnet_dnn_18"]),
        ("torchvision:no_such_net", ["no_such_net"]),
        ("timm:no_such_net", ["no_such_net"]),
        ("no_such_package.at_all:net", ["no_such_package"]),
        ("users_package.nets:absent", ["absent"]),
        ("users_package.nets:", ["users_package.nets"]),
        (":network", ["module:factory"]),
        ("users_package.nets:fails", ["RuntimeError", "no such thing here"]),
        ("users_package.nets:number", ["int", "torch.nn.Module"]),
    ],
)
def test_networks_that_cannot_be_built(tmp_path, factory, model, words):
    path = tmp_path / "a.pt"
    torch.save(small().state_dict(), path)
    with refused(path, *words):
        load_checkpoint(path, model=model)


def test_arguments_that_the_factory_does_not_take(tmp_path, factory):
    path = tmp_path / "a.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with refused(path, "wings"):
        load_checkpoint(path, model=f"{factory}:network", model_args={"wings": 2})


# Writing.


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("keep me")
    with refused(tmp_path / "file" / "a.safetensors", "cannot write"):
        save(tmp_path / "file" / "a.safetensors")
    assert (tmp_path / "file").read_text() == "keep me"


def test_a_folder_cannot_be_written_over(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with refused(tmp_path / "a.safetensors", "cannot write"):
        save(tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failure, where):
    path = tmp_path / "a.safetensors"
    save(path)
    before = path.read_bytes()

    def fail(*args):
        raise failure

    monkeypatch.setattr(where, fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        save(path, width=8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


def test_metadata_that_is_not_json_is_not_written(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "a.safetensors", small(), {"model": object()})
    assert list(tmp_path.iterdir()) == []


# Options on the command line.


def test_key_value_pairs_are_json_or_text():
    pairs = ("width=16", "sfilter=[1,2,1]", "cblock=MLPBlock", "stem=true", "temp=null", "rate=0.1", "x=a=b", "e=")
    assert parse_key_values(pairs) == {
        "width": 16, "sfilter": [1, 2, 1], "cblock": "MLPBlock", "stem": True, "temp": None, "rate": 0.1,
        "x": "a=b", "e": "",
    }  # fmt: skip
    assert parse_key_values(("stem=True", "a=False", "b=None")) == {"stem": True, "a": False, "b": None}


@pytest.mark.parametrize("pair", ["width", "=3", "two words=3", ""])
def test_what_is_no_pair_is_refused(pair):
    with refused("key=value", repr(pair)):
        parse_key_values((pair,))
