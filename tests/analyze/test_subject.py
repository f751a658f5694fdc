"""The subject: deterministic data and masks, and a model left as it was found."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, conv_net, mlp
from commands import metadata
from PIL import Image
from torch import nn

from analyze import Subject, hessian
from analyze.hessian import HessianOperator
from data_cache import InputError, load
from models import get_model, save_checkpoint

CASE = {case.name: case for case in CASES}


def caller_state(model: nn.Module) -> dict:
    """All that an analysis may not change, bit by bit."""
    return {
        "modes": [m.training for m in model.modules()],
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "rng": torch.get_rng_state(),
        "python_rng": random.getstate(),
        "numpy_rng": np.random.get_state()[1].copy(),  # noqa: NPY002
        "flags": (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def assert_same(before, after) -> None:
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list):
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert_same(a, b)
    else:
        assert before == after


@pytest.fixture
def awkward_model():
    """In mixed modes, with gradients, TF32 on and a used generator."""
    torch.manual_seed(3)
    model = conv_net()
    model.train()
    model[1].eval()
    model[0].weight.grad = torch.randn_like(model[0].weight)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.randn(7)
    yield model
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_analysis_leaves_the_model_and_process_as_found(awkward_model, mode):
    data = [(torch.randn(4, 2, 7, 5), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    before = caller_state(awkward_model)
    subject = Subject(awkward_model, data, mode=mode, weight_decay=0.1)
    hessian.compute(subject, hessian.Config(largest=2, probes=1, steps=3, trace_samples=2, tolerance=1e-2))
    assert_same(before, caller_state(awkward_model))


@pytest.mark.parametrize("fails_at", [0, 3])
def test_state_is_restored_after_an_exception(awkward_model, fails_at):
    calls = 0

    def loss(output, y):
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise KeyError("a fault of the user's loss")
        return F.cross_entropy(output, y)

    data = [(torch.randn(4, 2, 7, 5), torch.tensor([0, 1, 2, 0]))]
    before = caller_state(awkward_model)
    subject = Subject(awkward_model, data, loss, mode="train")
    with pytest.raises(KeyError):
        hessian.compute(subject, hessian.Config(graph_memory=0))
    assert_same(before, caller_state(awkward_model))


def test_two_subjects_on_one_model_do_not_disturb_each_other():
    torch.manual_seed(0)
    model = mlp().double()
    first = [(torch.randn(5, 6).double(), torch.randint(0, 3, (5,)))]
    second = [(torch.randn(4, 6).double(), torch.randint(0, 3, (4,)))]
    alone = {
        key: HessianOperator(Subject(model, data, mode=mode)).matvec
        for key, data, mode in (("a", first, "eval"), ("b", second, "train"))
    }
    v = torch.randn(sum(p.numel() for p in model.parameters())).double()
    expected = {key: product(v) for key, product in alone.items()}
    a, b = HessianOperator(Subject(model, first)), HessianOperator(Subject(model, second, mode="train"))
    for _ in range(2):  # interleaved, on kept graphs the second time
        assert torch.equal(a.matvec(v), expected["a"])
        assert torch.equal(b.matvec(v), expected["b"])
    assert not torch.allclose(expected["a"], expected["b"])


def test_dropout_masks_are_a_function_of_seed_pass_and_batch():
    case = CASE["conv_bn_dropout"]
    subject, same, other = case.build(), case.build(), case.build(seed=1)
    batch = next(iter(subject.data))

    def loss(s: Subject, index: int = 0, number: int = 0) -> float:
        return s.batch_loss(s.parameters, batch, index, number).item()

    reference = loss(subject)
    torch.randn(11)  # the global generator plays no part
    assert loss(subject) == loss(same) == reference
    assert len({reference, loss(subject, index=1), loss(subject, number=1), loss(other)}) == 4


def test_train_mode_uses_batch_statistics_and_ordinary_dropout():
    case = CASE["conv_bn_dropout"]
    evaluated, trained = case.build(), case.build(mode="train")
    batch = next(iter(evaluated.data))
    losses = [s.batch_loss(s.parameters, batch, 0).item() for s in (evaluated, trained)]
    assert losses[0] != losses[1]
    with trained.frozen(0, 0):
        assert all(m.training for m in trained.model.modules())
    with evaluated.frozen(0, 0):
        assert not any(m.training for m in evaluated.model.modules())


def test_shuffling_and_augmenting_loader_is_read_once():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.randn(6), index % 3

    loader = torch.utils.data.DataLoader(Noisy(), batch_size=4, shuffle=True)
    subject = Subject(mlp(), loader)
    passes = [[x for x, _ in subject.data] for _ in range(2)]
    assert [len(x) for x in passes[0]] == [4, 4, 2]
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))
    assert subject.data.images == 10


def test_generator_data_is_kept_and_limited():
    batches = ((torch.randn(4, 6), torch.zeros(4, dtype=torch.long)) for _ in range(5))
    subject = Subject(mlp(), batches, limit=6)
    assert [len(y) for _, y in subject.data] == [4, 2]
    assert [len(y) for _, y in subject.data] == [4, 2]


def test_data_too_large_to_keep_is_refused(monkeypatch):
    monkeypatch.setattr("analyze.subject.KEEP_BYTES", 1000)
    with pytest.raises(InputError, match="limit"):
        Subject(mlp(), [(torch.randn(50, 6), torch.zeros(50, dtype=torch.long))])


@pytest.mark.parametrize(
    "data, words",
    [
        ([], "no images"),
        ([torch.randn(3, 6)], "pairs"),
        ([(torch.randn(3, 6), torch.zeros(2, dtype=torch.long))], "first sizes must agree"),
        ([(torch.randn(3, 6), 1)], "pairs"),
    ],
)
def test_data_that_is_no_data_is_one_sentence(data, words):
    with pytest.raises(InputError, match=words) as caught:
        Subject(mlp(), data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "test"},
        {"weight_decay": -1.0},
        {"weight_decay": float("nan")},
        {"batch_size": 0},
        {"seed": -1},
        {"limit": 0},
    ],
)
def test_bad_options_are_one_sentence(options):
    with pytest.raises(InputError) as caught:
        Subject(mlp(), [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))], **options)
    assert "\n" not in str(caught.value)


def test_model_without_parameters_is_refused():
    with pytest.raises(InputError, match="no parameters"):
        Subject(nn.Flatten(), [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))])


def test_images_of_the_wrong_shape_are_one_sentence():
    subject = Subject(mlp(), [(torch.randn(3, 7), torch.zeros(3, dtype=torch.long))])
    with pytest.raises(InputError, match=r"\(3, 7\)"):
        hessian.compute(subject)


def test_loss_that_is_no_scalar_is_refused():
    def unreduced(output, y):
        return F.cross_entropy(output, y, reduction="none")

    subject = Subject(mlp(), [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))], unreduced)
    with pytest.raises(InputError, match="one number"):
        hessian.compute(subject)


def test_another_dtype_studies_a_copy():
    model = mlp()
    subject = Subject(model, [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))], dtype=torch.float64)
    assert next(model.parameters()).dtype == torch.float32
    assert next(iter(subject.parameters.values())).dtype == torch.float64
    assert next(iter(subject.data))[0].dtype == torch.float64


def test_frozen_model_is_studied_over_all_its_weights():
    model = mlp().requires_grad_(False)
    subject = Subject(model, [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))])
    assert list(subject.parameters) == [name for name, _ in model.named_parameters()]
    assert not any(p.requires_grad for p in model.parameters())


def test_data_by_name_gives_the_batches_every_analysis_sees():
    data = load("fashion_mnist:test")
    subject = Subject(conv_net_3(), data, limit=100, batch_size=64)
    batches = list(subject.data)
    assert [tuple(x.shape) for x, _ in batches] == [(64, 3, 32, 32), (36, 3, 32, 32)]
    assert subject.data.images == 100 and subject.data.spec == "fashion_mnist:test"
    x = torch.cat([x for x, _ in batches])
    expected = data.read(np.arange(100) * 100)[0].float() / 255
    assert torch.allclose(x, (expected - 0.2860) / 0.3530, atol=1e-6)


def conv_net_3() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))


def test_hash_tells_data_apart():
    def subject(seed: int, **options) -> Subject:
        generator = torch.Generator().manual_seed(seed)
        return Subject(mlp(), [(torch.randn(3, 6, generator=generator), torch.zeros(3, dtype=torch.long))], **options)

    assert subject(0).data.sha256 == subject(0).data.sha256 != subject(1).data.sha256
    described = subject(0, weight_decay=0.5).describe()
    assert described["weight_decay"] == 0.5 and described["images"] == 3


def test_case_table_is_reproducible():
    for case in CASES:
        assert isinstance(case, Case)
        a, b = case.build(), case.build()
        assert a.describe() == b.describe()


def test_checkpoint_alone_is_enough(tiny_checkpoint):
    subject = Subject.load(tiny_checkpoint, limit=20)
    described = subject.describe()
    assert described["data"] == "fashion_mnist:train" and described["weight_decay"] == 5e-4
    assert described["model"] == "resnet_mcdo_smoothing_18" and len(described["checkpoint_sha256"]) == 64
    x, y = next(iter(subject.data))
    assert x.shape == (20, 3, 32, 32) and y.shape == (20,) and not subject.model.training


def test_loading_takes_other_data_and_weight_decay(tiny_checkpoint):
    batches = [(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))]
    subject = Subject.load(tiny_checkpoint, data=batches, weight_decay=0.0, dtype=torch.float64, seed=3)
    assert subject.weight_decay == 0.0 and subject.seed == 3 and subject.data.images == 4
    assert next(iter(subject.data))[0].dtype == torch.float64
    assert Subject.load(tiny_checkpoint, data="fashion_mnist:test", limit=8).data.spec == "fashion_mnist:test"


def test_normalisation_recorded_in_the_checkpoint_is_used(tmp_path):
    path = tmp_path / "own.safetensors"
    recorded = metadata("resnet_dnn_18", width=2) | {"mean": [0.5] * 3, "std": [0.25] * 3}
    save_checkpoint(path, get_model("resnet_dnn_18", 10, width=2), recorded)
    x, _ = next(iter(Subject.load(path, limit=8).data))
    assert x.min() == -2.0  # black is (0 - 0.5) / 0.25


def test_labels_that_the_model_has_no_output_for_are_one_sentence(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(get_model("resnet_dnn_18", 5, width=2).state_dict(), path)
    with pytest.raises(InputError, match="10 classes"):
        Subject.load(path, model="resnet_dnn_18", model_args={"width": 2}, data="fashion_mnist")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precision_of_the_caller_neither_matters_nor_changes(precision):
    """In a process of its own: torch refuses to mix its old and new names for this."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / "shared")!r})
import torch
torch.set_float32_matmul_precision({precision!r})
from cases import CASES
from analyze.hessian import HessianOperator
operator = HessianOperator(CASES[0].build(torch.float32))
product = operator.matvec(torch.ones(operator.size))
print(torch.get_float32_matmul_precision(), product.double().sum().item().hex())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    printed, value = done.stdout.split()
    case = CASES[0].build(torch.float32)
    operator = HessianOperator(case)
    assert printed == precision
    assert value == operator.matvec(torch.ones(operator.size)).double().sum().item().hex()


def test_no_grad_and_autocast_of_the_caller_do_not_leak_in():
    case = CASE["mlp"]
    operator = HessianOperator(case.build(torch.float32), graph_memory=0)
    v = torch.ones(operator.size)
    expected = operator.matvec(v)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operator.matvec(v), expected)


def test_model_that_detaches_its_output_is_one_sentence():
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    subject = Subject(Detached(6, 3), [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))])
    with pytest.raises(InputError, match="detaches"):
        hessian.compute(subject)


def test_loader_that_refills_one_buffer_is_read_right():
    buffer = torch.empty(2, 6)

    def batches():
        for number in range(3):
            yield buffer.fill_(number), torch.zeros(2, dtype=torch.long)

    assert [x[0, 0].item() for x, _ in Subject(mlp(), batches()).data] == [0.0, 1.0, 2.0]


def test_weights_changed_after_loading_are_another_identity(tiny_checkpoint):
    subject = Subject.load(tiny_checkpoint, limit=4)
    before = subject.describe()
    with torch.no_grad():
        subject.model.layer0[0].weight.mul_(2)
    after = subject.describe()
    assert before["checkpoint"] == str(tiny_checkpoint) and after["checkpoint"] == "(from Python)"
    assert before["checkpoint_sha256"] != after["checkpoint_sha256"]


@pytest.mark.parametrize(
    "key, value",
    [("weight_decay", "abc"), ("weight_decay", -1), ("mean", "abc"), ("std", None), ("std", [0, 0, 0]),
     ("dataset", 5), ("classes", 5), ("split", [])],
)  # fmt: skip
def test_metadata_that_can_not_be_is_one_sentence(tmp_path, key, value):
    path = tmp_path / "odd.safetensors"
    save_checkpoint(path, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2) | {key: value})
    with pytest.raises(InputError, match=f"metadata's {key}") as caught:
        Subject.load(path)
    assert "\n" not in str(caught.value)


def test_model_arguments_can_not_turn_one_network_into_another(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_checkpoint(path, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2))
    with pytest.raises(InputError, match="num_sblocks"):
        Subject.load(path, model_args={"num_sblocks": [1, 1, 1, 1]})


def test_checkpoint_trained_on_a_folder_is_enough(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (30, 40), (len(name), 7, 9)).save(tmp_path / "pets" / split / name / "a.png")
    path = tmp_path / "own.safetensors"
    recorded = metadata("resnet_dnn_18", 2, width=2) | {"dataset": f"folder:{tmp_path}/pets", "split": "train"}
    save_checkpoint(path, get_model("resnet_dnn_18", 2, width=2), recorded)
    assert Subject.load(path).data.spec == f"folder:{tmp_path}/pets:train"
