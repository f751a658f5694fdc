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
from models import Ensemble, get_model, save_checkpoint
from models.layers import TanhBlurBlock

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


def test_empty_batches_are_left_out():
    nothing, some = ((torch.randn(n, 6), torch.zeros(n, dtype=torch.long)) for n in (0, 3))
    subject = Subject(mlp(), [nothing, some, nothing, some], limit=5)
    assert [len(y) for _, y in subject.data] == [3, 2]
    assert subject.data.batch_size == 3 and subject.minibatches == 2


def test_data_too_large_to_keep_is_refused(monkeypatch):
    monkeypatch.setattr("analyze.batches.KEEP_BYTES", 1000)
    with pytest.raises(InputError, match="limit"):
        Subject(mlp(), [(torch.randn(50, 6), torch.zeros(50, dtype=torch.long))])


@pytest.mark.parametrize(
    "data, words",
    [
        ([], "no images"),
        ([torch.randn(3, 6)], "pairs"),
        ([(torch.randn(3, 6), torch.zeros(2, dtype=torch.long))], "first sizes must agree"),
        ([(torch.randn(3, 6), 1)], "pairs"),
        ([(torch.randn(0, 6), torch.zeros(0, dtype=torch.long))], "no images"),
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


@pytest.mark.parametrize("built", [True, False])
def test_description_tells_the_path_of_the_smoothing_operator(built, monkeypatch):
    """Of every network with the smoothing blocks, whatever it is called; of no other."""
    monkeypatch.setattr("ext.smoothing.DEVICES", {"cpu"} if built else set())
    smooth = nn.Sequential(conv_net(), nn.Unflatten(1, (-1, 1, 1)), TanhBlurBlock(3))
    assert Subject(smooth, image_data(3)).describe()["smoothing"] == ("fused" if built else "eager")
    assert "smoothing" not in Subject(conv_net(), image_data(3)).describe()


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


# What analyses see of the outputs


def image_data(*sizes: int, channels: int = 2) -> list:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, channels, 7, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator))
        for n in sizes
    ]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_are_those_of_the_model_and_leave_all_as_it_was(awkward_model, mode):
    subject = Subject(awkward_model, image_data(4, 4), mode=mode)
    x, _ = next(iter(subject.data))
    before = caller_state(awkward_model)
    found = subject.outputs(x, 1, 2)
    assert_same(before, caller_state(awkward_model))
    assert not found.requires_grad
    with subject.frozen(2, 1), torch.no_grad():
        assert torch.equal(found, awkward_model(x))
    assert torch.equal(found, subject.outputs(x, 1, 2))
    assert not torch.equal(found, subject.outputs(x, 1, 3)) and not torch.equal(found, subject.outputs(x, 0, 2))


def test_statistics_that_a_module_keeps_in_training_stay():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return super().forward(x)

    model = Counting()
    Subject(model, [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))], mode="train").outputs(torch.randn(3, 6), 0)
    assert model.calls == 0


def test_log_probability_is_that_of_the_mean_over_passes():
    subject = Subject(conv_net(), image_data(4))
    x, _ = next(iter(subject.data))
    outputs = [subject.outputs(x, 0, number).double().numpy() for number in range(3)]
    exponentials = [np.exp(z - z.max(1, keepdims=True)) for z in outputs]
    mean = np.mean([e / e.sum(1, keepdims=True) for e in exponentials], axis=0)
    found = subject.log_probability(x, 0, 3)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), np.log(mean), rtol=1e-13)


def test_outputs_that_are_no_class_scores_are_one_sentence():
    subject = Subject(nn.Conv2d(2, 3, 1), image_data(4))
    x, _ = next(iter(subject.data))
    with pytest.raises(InputError, match=r"\(4, 3, 7, 5\).*\(B, classes\)"):
        subject.log_probability(x, 0, 1)


def test_the_tensor_is_found_in_what_models_give():
    class Giving(nn.Linear):
        what: object = None

        def forward(self, x):
            return self.what(super().forward(x))

    class Named(tuple):
        logits = property(lambda self: self[1])

    x = torch.randn(3, 6)
    model = Giving(6, 3)
    subject = Subject(model, [(x, torch.zeros(3, dtype=torch.long))])
    Giving.what = staticmethod(lambda z: z)
    expected = subject.outputs(x, 0)
    for what in (
        lambda z: (z, 2 * z), lambda z: {"aux": -z, "logits": z}, lambda z: {"out": z}, lambda z: Named((-z, z)),
    ):  # fmt: skip
        Giving.what = staticmethod(what)
        assert torch.equal(subject.outputs(x, 0), expected)
    for what in (lambda z: "text", lambda z: (), lambda z: {}):
        Giving.what = staticmethod(what)
        with pytest.raises(InputError, match="not a tensor"):
            subject.outputs(x, 0)
    Giving.what = staticmethod(lambda z: z @ z)
    with pytest.raises(InputError, match=r"the model failed on a batch of shape \(4, 6\)"):
        subject.outputs(torch.randn(4, 6), 0)


def test_only_dropout_makes_a_subject_stochastic():
    plain = Subject(nn.Sequential(nn.Dropout(0.5), mlp()), [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))])
    assert not plain.stochastic and plain.passes(5) == 1
    trained = Subject(plain.model, list(plain.data), mode="train")
    assert trained.stochastic and trained.passes(5) == 5
    assert Subject(conv_net(), image_data(4)).stochastic
    with torch.no_grad():
        plain.model[1][1].weight.fill_(torch.nan)
    assert Subject(plain.model, list(plain.data)).stochastic  # what is no number does not tell


def test_batches_are_numbered_by_index_and_first_image():
    subject = Subject(conv_net(), image_data(4, 3, 2))
    for _ in range(2):
        found = [(index, first, len(y)) for index, first, (_, y) in subject.numbered_batches()]
        assert found == [(0, 0, 4), (1, 4, 3), (2, 7, 2)]


def test_pixels_are_the_images_before_normalisation():
    data = load("fashion_mnist:test").with_normalization([0.1, 0.2, 0.3], [0.5, 0.25, 0.125])
    subject = Subject(conv_net_3(), data, limit=5)
    x, _ = next(iter(subject.data))
    mean, std = subject.normalization
    assert mean.shape == std.shape == (3, 1, 1) and mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    expected = data.limit(5).read(np.arange(5))[0].float() / 255
    torch.testing.assert_close(subject.pixels(x), expected, rtol=0, atol=2e-7)  # two roundings of numbers up to 1
    torch.testing.assert_close(subject.normalized(subject.pixels(x)), x, rtol=0, atol=2e-6)


def test_normalisation_of_an_iterable_is_told_or_none():
    subject = Subject(conv_net(), image_data(3))
    x, _ = next(iter(subject.data))
    assert torch.equal(subject.pixels(x), x) and torch.equal(subject.normalized(x), x)
    told = Subject(conv_net(), image_data(3), normalization=([0.5, 0.25], [2.0, 4.0]))
    expected = x * torch.tensor([2.0, 4.0])[:, None, None] + torch.tensor([0.5, 0.25])[:, None, None]
    assert torch.equal(told.pixels(x), expected)
    assert told.describe() != subject.describe()


@pytest.mark.parametrize(
    ("normalization", "data", "words"),
    [(([0.5], [1.0]), image_data(3), "1 means and 1 stds for 2 channels"),
     (([0.5, 0.5], [0.0, 1.0]), image_data(3), "above 0"),
     (([float("nan")] * 2, [1.0] * 2), image_data(3), "finite"),
     ((0.5, 0.2), image_data(3), r"\(mean, std\), each with a number for each channel, not \(0.5, 0.2\)"),
     (([0.5], [0.5], [0.5]), image_data(3), r"\(mean, std\)"),
     (None, [(torch.randn(3, 6), torch.zeros(3, dtype=torch.long))], r"\(3, 6\)")],
)  # fmt: skip
def test_normalisation_that_does_not_fit_is_one_sentence(normalization, data, words):
    with pytest.raises(InputError, match=words) as caught:
        Subject(conv_net(), data, normalization=normalization).normalization  # noqa: B018
    assert "\n" not in str(caught.value)


# Ensembles


@pytest.fixture
def members(tmp_path):
    """Two checkpoints of one architecture, not trained."""
    files = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_model("resnet_dnn_18", 10, width=2)
        files.append(tmp_path / f"{'AB'[seed]}.safetensors")
        save_checkpoint(files[-1], model, metadata("resnet_dnn_18", width=2))
    return files


def test_several_checkpoints_are_an_ensemble(members):
    subject = Subject.load(members, limit=6)
    alone = [Subject.load(file, limit=6) for file in members]
    assert isinstance(subject.model, Ensemble) and [len(s.members) for s in (subject, *alone)] == [2, 1, 1]
    x, _ = next(iter(subject.data))
    for member, single in zip(subject.members, alone, strict=True):
        assert torch.equal(subject.outputs(x, 0, model=member), single.outputs(x, 0))
    assert subject.describe()["data_sha256"] == alone[0].describe()["data_sha256"]
    # members compute in float32, their mean is taken in it too
    mean = torch.stack([single.log_probability(x, 0, 1).exp() for single in alone]).mean(0)
    torch.testing.assert_close(subject.log_probability(x, 0, 1).exp(), mean, rtol=1e-5, atol=1e-7)
    assert not subject.stochastic


def test_description_of_an_ensemble_names_all_members(members):
    described = Subject.load(members, limit=6).describe()
    assert described["checkpoint"] == "A+B" and described["model"] == "ensemble of 2: resnet_dnn_18"
    singles = [Subject.load(file, limit=6).describe()["checkpoint_sha256"] for file in members]
    assert described["members"] == singles and described["checkpoint_sha256"] not in singles
    assert Subject.load(members[::-1], limit=6).describe()["checkpoint_sha256"] != described["checkpoint_sha256"]
    assert Subject.load(members[:1], limit=6).describe() == Subject.load(members[0], limit=6).describe()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"mean": [0.5] * 3}, "mean"), ({"dataset": "cifar10"}, "--data"), ({"weight_decay": 0.0}, "--weight-decay"),
     ({"classes": ["a"] * 10}, "classes")],
)  # fmt: skip
def test_members_that_do_not_go_together_are_one_sentence(members, change, words):
    save_checkpoint(members[1], get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2) | change)
    with pytest.raises(InputError, match=words) as caught:
        Subject.load(members)
    assert "\n" not in str(caught.value) and "A.safetensors" in str(caught.value)


def test_members_of_other_class_counts_are_one_sentence(members, tmp_path):
    save_checkpoint(members[1], get_model("resnet_dnn_18", 5, width=2), metadata("resnet_dnn_18", 5, width=2))
    with pytest.raises(InputError, match="10 classes and .* for 5"):
        Subject.load(members)
    with pytest.raises(InputError, match="at least one"):
        Subject.load([])


def test_split_of_the_recorded_data_can_be_chosen(members):
    assert Subject.load(members[0], limit=4, split="test").data.spec == "fashion_mnist:test"
    assert Subject.load(members[0], limit=4, split="test", data="fashion_mnist").data.spec == "fashion_mnist:train"
