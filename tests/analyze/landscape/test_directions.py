"""Directions against formulas written in NumPy, gradients, dense Hessians, and the files they lead to."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, dense_hessian, mlp, partly_frozen
from commands import metadata
from torch import nn

from analyze import RunFile, Subject
from analyze.arrays import arrays
from analyze.landscape.checkpoints import difference
from analyze.landscape.direction import read_directions
from analyze.landscape.directions import (
    checkpoint_direction,
    eigen_directions,
    make_plane,
    random_direction,
)
from analyze.landscape.filters import moved, normalized
from analyze.landscape.spec import Config, DirectionInfo
from data_cache import InputError
from models import get_model, save_checkpoint
from models.layers import Blur

NORMS = ["filter", "layer", "weight", "none", "filter_transposed"]
DTYPES = [torch.float32, torch.float64]


def subject_of(model, dtype=torch.float64, **options):
    return Subject(model.to(dtype), [(torch.zeros(2, 1, dtype=dtype), torch.zeros(2, dtype=torch.long))], **options)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 6)),
    "grouped_conv": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 6, 6)),
    "depthwise_conv": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "depthwise_conv_1x1": (lambda: nn.Conv2d(4, 4, 1, groups=4), (2, 4, 6, 6)),
    "one_output_conv": (lambda: nn.Conv2d(3, 1, 1), (2, 3, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3), (2, 3, 9)),
    "transposed_conv": (lambda: nn.ConvTranspose2d(3, 5, 3), (2, 3, 6, 6)),
    "grouped_transposed_conv": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 6, 6)),
    "depthwise_transposed_conv": (lambda: nn.ConvTranspose1d(4, 8, 3, groups=4), (2, 4, 6)),
    "linear": (lambda: nn.Linear(7, 3), (2, 7)),
    "one_output_linear": (lambda: nn.Linear(7, 1), (2, 7)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_filter_is_what_makes_one_output_channel(name, dtype):
    """Which weights an output channel depends on is read off its gradient."""
    make, shape = LAYERS[name]
    layer = seeded(make).to(dtype)
    d = random_direction(subject_of(layer, dtype), "filter").tensors["weight"]
    output, filters = layer(torch.ones(shape, dtype=dtype)), []
    for channel in range(output.shape[1]):
        (gradient,) = torch.autograd.grad(output[:, channel].sum(), layer.weight, retain_graph=True)
        filters.append(gradient != 0)
    assert torch.stack(filters).sum(0).eq(1).all()
    for mask in filters:
        w = layer.weight.detach()[mask].double().norm()
        # the direction is rounded once to its dtype, after the norms
        assert d[mask].double().norm().item() == pytest.approx(w.item(), rel=4 * torch.finfo(dtype).eps)


def rows_by_hand(d, w):
    """Li et al. 2018, net_plotter's filter normalisation: of each slice along axis 0."""
    return np.stack([di * np.linalg.norm(wi) / (np.linalg.norm(di) + 1e-10) for di, wi in zip(d, w, strict=True)])


def test_rows_of_embeddings_and_attention_are_filters():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.same = nn.MultiheadAttention(4, 2)
            self.different = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)

    subject = subject_of(seeded(Network))
    found = random_direction(subject, "filter").tensors
    drawn = random_direction(subject, "none").tensors
    projections = {f"different.{letter}_proj_weight" for letter in "qkv"}
    assert set(found) == projections | {
        "words.weight",
        "same.in_proj_weight",
        "same.out_proj.weight",
        "different.out_proj.weight",
    }
    for name, d in found.items():
        w = subject.parameters[name].detach().numpy()
        assert np.allclose(d.numpy(), rows_by_hand(drawn[name].numpy(), w), rtol=1e-9, atol=0)


def test_lis_and_the_transposed_formula_on_a_network():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Flatten(), nn.Linear(16, 10)))
    subject = subject_of(model)
    drawn = random_direction(subject, "none").tensors
    for name in ("0.weight", "2.weight"):
        d, w = drawn[name].numpy(), subject.parameters[name].detach().numpy()
        # as published, with 1e-7 and norms over axis 0 alone
        transposed = d * np.sqrt((w**2).sum(0)) / (np.sqrt((d**2).sum(0)) + 1e-7)
        layer = d * np.linalg.norm(w) / np.linalg.norm(d)
        for norm, exact in {
            "filter": rows_by_hand(d, w),
            "filter_transposed": transposed,
            "layer": layer,
            "weight": d * w,
        }.items():
            found = random_direction(subject, norm).tensors[name].numpy()
            # 1e-7 over the shortest norm of 10 to 16 normal numbers
            assert np.allclose(found, exact, rtol=1e-7, atol=0), norm


@pytest.mark.parametrize("norm", ["filter", "layer", "filter_transposed"])
def test_direction_is_as_long_as_the_weights_it_moves(norm):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 3), nn.Linear(4, 2)))
    subject = subject_of(model)
    direction = random_direction(subject, norm)
    weights = torch.cat([p.detach().flatten() for name, p in subject.parameters.items() if name in moved(subject)])
    everything = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert direction.info.length == pytest.approx(weights.norm().item(), rel=1e-12)
    assert direction.info.relative_length == pytest.approx((weights.norm() / everything.norm()).item(), rel=1e-12)
    assert direction.info.norm == norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["filter", "layer", "weight", "filter_transposed"])
def test_filters_of_zeros_stay(norm, dtype):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].weight[:, 2] = 0
        model[1].weight[:] = 0
    d = random_direction(subject_of(model, dtype), norm).tensors
    assert all(torch.isfinite(tensor).all() for tensor in d.values())
    assert not d["1.weight"].any()
    if norm in ("filter", "weight"):
        assert not d["0.weight"][1].any()
    if norm in ("filter_transposed", "weight"):
        assert not d["0.weight"][:, 2].any()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in d.items()}
    assert not any(tensor.any() for tensor in normalized(zeros, subject_of(model, dtype), norm).values())


class MyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


class Unmoved(nn.Module):
    """One convolution, and all that random directions leave alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.layer = nn.LayerNorm((4, 3, 3))
        self.group = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.root = nn.RMSNorm((2, 3))
        self.mine = MyNorm()
        self.blur = Blur(4, (1, 2, 1), "constant")
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 4))
        self.position_embeddings = nn.Embedding(5, 4)
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, 2))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.reg_token = nn.Parameter(torch.randn(1, 3, 4))
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("table", torch.randn(4, 4))


def test_norms_vectors_positions_tokens_blurs_and_buffers_stay():
    assert set(moved(subject_of(Unmoved()))) == {"conv.weight"}
    assert set(random_direction(subject_of(Unmoved())).tensors) == {"conv.weight"}
    frozen = Unmoved().requires_grad_(False)  # where nothing needs a gradient, everything is studied
    assert set(moved(subject_of(frozen))) == {"conv.weight"}


def test_parameters_of_a_users_layer_move():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.randn(3, 4))
            self.position_projection = nn.Linear(4, 4)
            self.pos_embed_conv = nn.Conv2d(2, 2, 3)

    subject = subject_of(Mixer())
    assert set(moved(subject)) == {"mixing", "position_projection.weight", "pos_embed_conv.weight"}
    d = random_direction(subject).tensors["mixing"]
    assert torch.allclose(d.norm(dim=1), subject.parameters["mixing"].detach().norm(dim=1), rtol=1e-12)


def test_transformers_of_the_libraries():
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    block = "encoder.layers.encoder_layer_0"
    assert set(moved(subject_of(model))) == {
        "conv_proj.weight",
        f"{block}.self_attention.in_proj_weight",
        f"{block}.self_attention.out_proj.weight",
        f"{block}.mlp.0.weight",
        f"{block}.mlp.3.weight",
        "heads.head.weight",
    }


def test_timms_transformers():
    vit = pytest.importorskip("timm.models.vision_transformer").VisionTransformer
    model = vit(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, reg_tokens=2)
    block = "blocks.0"
    assert set(moved(subject_of(model))) == {
        "patch_embed.proj.weight",
        f"{block}.attn.qkv.weight",
        f"{block}.attn.proj.weight",
        f"{block}.mlp.fc1.weight",
        f"{block}.mlp.fc2.weight",
        "head.weight",
    }


def test_frozen_parameters_stay_and_tied_ones_move_once():
    assert set(random_direction(subject_of(partly_frozen())).tensors) == {"3.weight"}
    tied = next(case for case in CASES if case.name == "tied").build()
    assert set(random_direction(tied).tensors) == {"first.weight", "head.weight"}


class Named(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


@pytest.mark.parametrize("norm", NORMS)
def test_other_layers_and_their_order_change_no_bit(norm):
    a, b, c = seeded(lambda: [nn.Linear(4, 3), nn.Conv2d(2, 5, 3), nn.Linear(9, 9)])
    before = random_direction(subject_of(Named(a=a, b=b)), norm).tensors
    after = random_direction(subject_of(Named(c=c, b=b, a=a)), norm).tensors
    assert all(torch.equal(after[name], before[name]) for name in ("a.weight", "b.weight"))
    assert not torch.equal(before["a.weight"].flatten()[:12], before["b.weight"].flatten()[:12])


def test_streams_are_standard_normal_and_differ_by_seed_axis_and_name():
    model = Named(a=nn.Linear(300, 300), b=nn.Linear(300, 300))
    drawn = [
        random_direction(subject_of(model, seed=seed), "none", axis).tensors[name].flatten().numpy()
        for seed in (0, 1)
        for axis in "xy"
        for name in ("a.weight", "b.weight")
    ]
    n = len(drawn[0])
    # 5 standard errors of mean, variance and correlation of n = 90 000 numbers
    assert np.abs(np.mean(drawn, axis=1)).max() < 5 / np.sqrt(n)
    assert np.abs(np.var(drawn, axis=1) - 1).max() < 5 * np.sqrt(2 / n)
    assert np.abs(np.corrcoef(drawn) - np.eye(8)).max() < 5 / np.sqrt(n)


def test_no_global_random_number_is_drawn():
    subject = subject_of(mlp())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = random_direction(subject).tensors
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert all(torch.equal(first[name], d) for name, d in random_direction(subject).tensors.items())


@pytest.mark.parametrize("norm", NORMS)
def test_float32_and_float64_have_the_same_direction(norm):
    model = seeded(lambda: nn.Conv2d(8, 8, 3)).float()
    single = random_direction(subject_of(model, torch.float32), norm).tensors["weight"]
    double = random_direction(subject_of(model, torch.float64), norm).tensors["weight"]
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.allclose(single.double(), double, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


def test_what_no_direction_can_be_made_of():
    with pytest.raises(InputError, match="norm is filter, layer"):
        random_direction(subject_of(mlp()), "filters")
    with pytest.raises(InputError, match="no weights that a random direction moves"):
        random_direction(subject_of(nn.BatchNorm1d(3)))
    zeros = nn.Linear(3, 2)
    nn.init.zeros_(zeros.weight)
    with pytest.raises(InputError, match="has the length 0"):
        random_direction(subject_of(zeros))


# Eigenvectors


def regression(n=40, features=6, **options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features)) * np.arange(1, features + 1)
    model = seeded(lambda: nn.Linear(features, 1, bias=False)).double()
    data = [(torch.from_numpy(x), torch.from_numpy(rng.normal(size=(n, 1))))]
    return x, Subject(model, data, F.mse_loss, **options)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_eigenvectors_of_linear_regression(weight_decay):
    x, subject = regression(weight_decay=weight_decay)
    values, vectors = np.linalg.eigh(2 * x.T @ x / len(x))
    for number, direction in zip((2, 1), eigen_directions(subject, [2, 1], tolerance=1e-10), strict=True):
        exact = vectors[:, -number] * np.sign(vectors[np.abs(vectors[:, -number]).argmax(), -number])
        assert np.abs(direction.tensors["weight"].numpy()[0] - exact).max() < 1e-6
        assert direction.info.eigenvalue == pytest.approx(values[-number] + weight_decay, rel=1e-10)
        assert direction.info.residual <= 1e-10 * values[-1]
        assert direction.info.length == pytest.approx(1, abs=1e-12)
        assert (direction.info.kind, direction.info.norm) == (f"eigen:{number}", "")


@pytest.mark.parametrize("name", ["mlp", "conv_bn_dropout", "tied", "unused_parameters"])
def test_eigenvectors_of_networks_span_all_parameters(name):
    subject = next(case for case in CASES if case.name == name).build()
    values, vectors = torch.linalg.eigh(dense_hessian(subject))
    (direction,) = eigen_directions(subject, [1], tolerance=1e-9)
    assert list(direction.tensors) == list(subject.parameters)
    flat = torch.cat([tensor.flatten() for tensor in direction.tensors.values()])
    assert abs((flat @ vectors[:, -1]).item()) == pytest.approx(1, abs=1e-9)
    assert flat[flat.abs().argmax()] > 0
    assert direction.info.eigenvalue == pytest.approx(values[-1].item(), rel=1e-9)


def test_more_eigenvectors_than_parameters():
    _, subject = regression()
    for numbers in ([7], [0], [1, -1]):
        with pytest.raises(InputError, match="numbered from 1 to the 6 parameters"):
            eigen_directions(subject, numbers)


# Other checkpoints


def network(seed, name="resnet_dnn_18", **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_model(name, 10, **{"width": 2, **kwargs})
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")

    def save(file, seed, name="resnet_dnn_18", **kwargs):
        path = folder / f"{file}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, network(seed, name, **kwargs), metadata(name, **{"width": 2, **kwargs}))
        return str(path)

    made = {f"step{seed}": save(f"step{seed}", seed) for seed in range(4)}
    made["again"] = save("other/step1", 1)
    made["wide"] = save("wide", 0, width=4)
    made["smoothing"] = save("smoothing", 0, "resnet_dnn_smoothing_18")
    torch.save(network(2).state_dict(), folder / "foreign.pt")
    return {**made, "foreign": str(folder / "foreign.pt")}


@pytest.fixture(scope="module")
def loaded(files):
    return Subject.load(files["step0"], limit=4, device="cpu")


@pytest.mark.parametrize("name, seed", [("step1", 1), ("foreign", 2)])
def test_the_other_checkpoint_lies_at_one(loaded, files, name, seed):
    direction = checkpoint_direction(loaded, files[name])
    own, other = loaded.model.state_dict(), network(seed).state_dict()
    steps = {**direction.tensors, **direction.rest}
    assert set(direction.tensors) == set(loaded.parameters)
    assert set(steps) == {key for key, value in own.items() if value.is_floating_point()}
    eps = torch.finfo(torch.float32).eps
    for key, step in steps.items():
        # two roundings, of the difference and of the sum
        bound = eps * (own[key].abs() + 2 * other[key].abs())
        assert ((own[key] + step - other[key]).abs() <= bound).all()
    assert direction.info.kind == files[name]


def test_models_and_state_dicts_are_checkpoints_too(loaded):
    other = network(1)
    expected = checkpoint_direction(loaded, other)
    assert checkpoint_direction(loaded, other.state_dict()).info.sha256 == expected.info.sha256
    frozen = Subject(partly_frozen(), [(torch.zeros(2, 6), torch.zeros(2, dtype=torch.long))])
    direction = checkpoint_direction(frozen, mlp())
    assert set(direction.rest) == {"1.weight"}
    tied = next(case for case in CASES if case.name == "tied")
    twin = checkpoint_direction(tied.build(), {k: v + 1 for k, v in tied.build().model.state_dict().items()})
    assert not twin.rest
    assert "second.weight" not in twin.tensors


def test_checkpoints_of_other_networks_are_refused(loaded, files):
    for file, told in {
        "wide": r"wide.safetensors is of another network: 'layer0.0.weight' is \(4, 3, 3, 3\), not \(2, 3, 3, 3\)",
        "smoothing": "smoothing.safetensors is of resnet_dnn_smoothing_18, not of resnet_dnn_18",
        "step0": "step0.safetensors has the length 0",
    }.items():
        with pytest.raises(InputError, match=told):
            checkpoint_direction(loaded, files[file])
    with pytest.raises(InputError, match="there is no checkpoint nowhere"):
        checkpoint_direction(loaded, "nowhere")
    state = network(1).state_dict()
    broken = state | {"layer0.0.weight": state["layer0.0.weight"] / 0}
    with pytest.raises(InputError, match="'layer0.0.weight' holds NaN or infinity"):
        checkpoint_direction(loaded, broken)
    with pytest.raises(InputError, match="the other model is of another network: it has 'more'"):
        checkpoint_direction(loaded, state | {"more": torch.zeros(1)})
    state.pop("layer0.1.running_mean")
    with pytest.raises(InputError, match="it lacks 'layer0.1.running_mean'"):
        checkpoint_direction(loaded, state)


# Planes


def test_plane_of_random_directions(loaded):
    plane = make_plane(loaded, Config())
    assert [direction.info.kind for direction in (plane.x, plane.y)] == ["random", "random"]
    assert plane.x.info.sha256 == random_direction(loaded, "filter", "x").info.sha256
    assert plane.y.info.sha256 == random_direction(loaded, "filter", "y").info.sha256
    flat = [torch.cat([t.flatten() for t in d.tensors.values()]).double() for d in (plane.x, plane.y)]
    exact = flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()
    assert plane.cosine == pytest.approx(exact.item(), abs=1e-12)
    assert plane.trajectory is None


def test_curve_has_one_direction(loaded, files):
    curve = make_plane(loaded, Config(one_dimensional=True, direction_x=files["step1"], series=(files["step2"],)))
    assert curve.y is None
    assert np.isnan(curve.cosine)
    assert curve.trajectory.y.tolist() == [0]


def test_eigenvectors_and_random_directions_mix():
    _, subject = regression()
    plane = make_plane(subject, Config(direction_x="eigen:2", direction_y="eigen:1"))
    assert [direction.info.kind for direction in (plane.x, plane.y)] == ["eigen:2", "eigen:1"]
    assert abs(plane.cosine) < 1e-6
    assert make_plane(subject, Config(direction_x="random", direction_y="eigen:3")).y.info.kind == "eigen:3"


def test_a_checkpoint_that_is_missing_is_noticed_before_the_search_for_eigenvectors():
    _, subject = regression()
    config = Config(direction_x="eigen:1", direction_y="nowhere.safetensors")
    with pytest.raises(InputError, match="there is no checkpoint nowhere"):
        make_plane(subject, config, progress=lambda *_: pytest.fail("it has begun"))


def test_plane_of_three_networks_holds_them(loaded, files):
    config = Config(direction_x=files["step1"], direction_y=files["step2"], series=(files["step1"], files["step2"]))
    found = make_plane(loaded, config).trajectory
    assert found.name.tolist() == ["step1", "step2"]
    # float32 weights
    assert np.abs(np.array([found.x, found.y]) - np.eye(2)).max() < 1e-6
    assert found.distance.max() < 1e-5
    assert np.isnan(found.nll).all()


def test_same_checkpoint_twice_spans_no_plane(loaded, files):
    with pytest.raises(InputError, match="are the same direction"):
        make_plane(loaded, Config(direction_x=files["step1"], direction_y=files["again"]))


def test_principal_plane_of_a_series(loaded, files):
    series = tuple(files[f"step{seed}"] for seed in (3, 2, 1, 0))
    plane = make_plane(loaded, Config(direction_x="pca:2", direction_y="pca:1", series=series))
    steps = [difference(loaded, file)[0] for file in series]
    matrix = np.stack([torch.cat([t.flatten() for t in step.values()]).double().numpy() for step in steps])
    singular = np.linalg.svd(matrix, compute_uv=False)
    shares = singular**2 / (singular**2).sum()
    assert plane.x.info.explained == pytest.approx(shares[1], rel=1e-6)
    assert plane.y.info.explained == pytest.approx(shares[0], rel=1e-6)
    found = plane.trajectory
    assert found.name.tolist() == ["step3", "step2", "step1", "step0"]
    assert (found.x[3], found.y[3], found.distance[3]) == (0, 0, 0)
    assert np.abs([found.x, found.y]).max() == pytest.approx(0.9, abs=1e-6)
    # what the plane does not explain is the squared distance from it
    rest = (found.distance**2).sum() / (matrix**2).sum()
    assert rest == pytest.approx(1 - shares[:2].sum(), rel=1e-5)


def test_files_of_one_name_are_told_apart_by_their_paths(loaded, files):
    series = (files["step1"], files["again"])
    assert make_plane(loaded, Config(series=series)).trajectory.name.tolist() == list(series)


def test_too_few_checkpoints_span_no_plane(loaded, files):
    with pytest.raises(InputError, match="span no plane through"):
        make_plane(loaded, Config(direction_x="pca:1", direction_y="pca:2", series=(files["step1"], files["step0"])))


# Directions of another run


@dataclass(frozen=True)
class Stored:
    direction_x: dict = arrays()
    direction_y: dict = arrays()
    info_x: DirectionInfo
    info_y: DirectionInfo | None


@dataclass(frozen=True)
class Empty:
    pass


def store(path, *directions):
    tensors = [{name: t.numpy() for name, t in d.tensors.items()} for d in directions]
    infos = [d.info for d in directions]
    with RunFile(path, {"checkpoint_sha256": "0"}) as run:
        run.save("landscape", Stored(*[*tensors, {}][:2], *[*infos, None][:2]), config={}, complete=True, seconds=0.0)
    return path


def test_directions_are_taken_from_another_run(loaded, files, tmp_path):
    other = Subject.load(files["step1"], limit=4, device="cpu", seed=5)
    made = make_plane(other, Config(norm="layer"))
    path = store(tmp_path / "other.h5", made.x, made.y)
    found = make_plane(loaded, Config(same_directions=path))
    assert (found.x.info.sha256, found.y.info.sha256) == (made.x.info.sha256, made.y.info.sha256)
    assert found.x.info.norm == "layer"
    assert make_plane(loaded, Config(same_directions=path, one_dimensional=True)).y is None


def test_all_parameters_or_those_that_random_directions_move(loaded, files, tmp_path):
    toward = checkpoint_direction(loaded, files["step1"])
    path = store(tmp_path / "toward.h5", toward)
    (found,) = read_directions(loaded, path)
    assert found.info.kind == "towards " + files["step1"]
    assert set(found.tensors) == set(loaded.parameters)
    with pytest.raises(InputError, match="is of a curve"):
        make_plane(loaded, Config(same_directions=path))


def test_directions_of_other_networks_are_refused(loaded, files, tmp_path):
    def refused(told, subject):
        path = store(tmp_path / f"{len(list(tmp_path.iterdir()))}.h5", random_direction(subject))
        with pytest.raises(InputError, match=told):
            read_directions(loaded, path)

    refused(r"'classifier.0.dense.weight' of shape \(10, 32\), not \(10, 16\)", Subject.load(files["wide"], limit=4))
    refused("'1.weight', which this network has no parameter of", subject_of(mlp()))
    refused("for other parameters than this network moves", subject_of(Named(layer0=network(0).layer0)))
    with pytest.raises(InputError, match="doesn't exist"):
        read_directions(loaded, tmp_path / "nowhere.h5")
    with RunFile(tmp_path / "other.h5", {"checkpoint_sha256": "0"}) as run:
        run.save("variance", Empty(), config={}, complete=True, seconds=0.0)
    with pytest.raises(InputError, match="holds no landscape"):
        read_directions(loaded, tmp_path / "other.h5")


def test_direction_of_eleven_million_parameters_costs_a_few_draws_of_its_numbers():
    subject = subject_of(network(0, width=64), torch.float32)
    size = sum(p.numel() for p in subject.parameters.values())

    def seconds(function):
        begin = time.process_time()
        function()
        return time.process_time() - begin

    pairs = [(seconds(lambda: random_direction(subject)), seconds(lambda: torch.randn(size))) for _ in range(5)]
    assert min(made / draw for made, draw in pairs) < 10  # one after the other, on a machine that may be busy
