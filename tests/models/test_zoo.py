"""The 92 names of the zoo, their keys, sizes and numerics, as published (with the published faults mended)."""

import functools

import pytest
import torch
import torch.nn.functional as F

from data_cache import InputError
from models import fixed_randomness, get_model, names
from models.layers import CLASSIFIER_BLOCKS, SMOOTHING_BLOCKS, MCDropout, blur

VARIANTS = ("dnn", "mcdo", "dnn_smoothing", "mcdo_smoothing")
DEPTHS = {
    "vgg": (11, 13, 16, 19),
    "prevgg": (11, 13, 16, 19),
    "resnet": (18, 34, 50, 101, 152),
    "preresnet": (18, 34, 50, 101, 152),
    "resnext": (50, 101),
    "wideresnet": (50, 101),
}
PUBLISHED = [f"alexnet_{v}" for v in VARIANTS] + [
    f"{family}_{v}_{depth}" for family, depths in DEPTHS.items() for v in VARIANTS for depth in depths
]


def on_meta(name, **options):
    with torch.device("meta"):
        return get_model(name, **options)


@functools.cache
def published(name):
    return on_meta(name, num_classes=100).eval()


def filled(name, seed=0, **options):
    """A small network in float64 whose norms have all kinds of weights and statistics."""
    with fixed_randomness("cpu", seed):
        model = get_model(name, **options).double()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.weight, 1.0, 0.2)
                torch.nn.init.normal_(module.bias, 0.0, 0.2)
                torch.nn.init.normal_(module.running_mean, 0.0, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def images(batch=2, size=32, seed=9):
    with fixed_randomness("cpu", seed):
        return torch.randn(batch, 3, size, size, dtype=torch.float64)


# The published names, sizes and keys.


def test_the_zoo_has_exactly_the_92_published_names():
    assert len(PUBLISHED) == 92
    assert len(names()) == 92
    assert set(names()) == set(PUBLISHED)


def small(name, **options):
    """At a hundredth of the published size; ResNeXt divides each 64 channels by 16 and more."""
    extra = {} if "resn" in name else {"hidden": 8}
    return get_model(name, width=16 if name.startswith("resnext") else 4, **extra, **options).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_network_classifies_small_images_and_knows_its_name(name):
    model = small(name, num_classes=7)
    assert model.name == name
    with torch.no_grad():
        logits = model(images(size=32).float())
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", [n for n in PUBLISHED if "vgg" not in n])
def test_every_network_with_a_stem_classifies_large_images(name):
    with torch.no_grad():
        logits = small(name, num_classes=7, stem=True)(images(size=224).float())
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "name", [f"{t}_mcdo_smoothing{d}" for t, d in [("alexnet", "")] + [(f, f"_{d[0]}") for f, d in DEPTHS.items()]]
)
def test_networks_of_the_published_width_fit_together(name):
    assert published(name)(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 100)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet_dnn_18", 11.220),
        ("resnet_dnn_34", 21.328),
        ("resnet_dnn_50", 23.705),
        ("resnet_dnn_101", 42.697),
        ("resnet_dnn_152", 58.341),
        ("preresnet_dnn_18", 11.218),
        ("preresnet_dnn_50", 23.698),
        ("preresnet_mcdo_50", 23.705),
        ("resnext_dnn_50", 23.177),
        ("resnext_dnn_101", 86.940),
        ("wideresnet_dnn_50", 67.031),
        ("wideresnet_dnn_101", 125.035),
        ("vgg_dnn_16", 134.674),
        ("vgg_dnn_19", 139.985),
        ("prevgg_dnn_16", 134.673),
        ("alexnet_dnn", 23.836),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    assert round(sum(p.numel() for p in published(name).parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("preresnet_dnn_18", 107),
        ("preresnet_mcdo_18", 107),
        ("preresnet_dnn_50", 300),
        ("preresnet_mcdo_50", 320),  # only here the shortcut is normalised: 4 more norms of 5 tensors
        ("resnet_dnn_18", 122),
        ("resnet_mcdo_50", 320),
    ],
)
def test_key_counts_are_the_published_ones(name, count):
    assert len(published(name).state_dict()) == count


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def keys(*parts):
    """Key names in order, from modules; one ending in a colon is a norm."""
    return [f"{p[:-1]}.{leaf}" for p in parts for leaf in BN] if parts[0].endswith(":") else list(parts)


def test_keys_of_resnet_18_in_order():
    expected = ["layer0.0.weight", *keys("layer0.1:")]
    for stage in range(1, 5):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            if stage > 1 and block == 0:
                expected += [f"{at}.shortcut.0.weight", *keys(f"{at}.shortcut.1:")]
            expected += [f"{at}.conv1.weight", *keys(f"{at}.bn1:"), f"{at}.conv2.weight", *keys(f"{at}.bn2:")]
    expected += ["classifier.0.dense.weight", "classifier.0.dense.bias"]
    assert list(published("resnet_dnn_18").state_dict()) == expected


def test_keys_of_a_bottleneck_start_with_the_shortcut():
    block = [k for k in published("resnet_dnn_50").state_dict() if k.startswith("layer1.0.")]
    expected = ["shortcut.0.weight", *keys("shortcut.1:")]
    for i in (1, 2, 3):
        expected += [f"conv{i}.weight", *keys(f"bn{i}:")]
    assert block == [f"layer1.0.{key}" for key in expected]


@pytest.mark.parametrize(("variant", "normalised"), [("dnn", False), ("mcdo", True)])
def test_keys_of_preactivation_bottlenecks_put_norms_first(variant, normalised):
    state = published(f"preresnet_{variant}_50").state_dict()
    expected = ["shortcut.0.weight", *(keys("shortcut.1:") if normalised else [])]
    for i in (1, 2, 3):
        expected += [*keys(f"bn{i}:"), f"conv{i}.weight"]
    assert [k for k in state if k.startswith("layer2.0.")] == [f"layer2.0.{key}" for key in expected]
    assert [k for k in state if k.startswith("layer0.")] == ["layer0.0.weight"]
    assert list(state)[-7:] == [*keys("classifier.0.bn:"), "classifier.0.dense.weight", "classifier.0.dense.bias"]


MLP = [f"classifier.2.dense{i}.{leaf}" for i in (1, 2, 3) for leaf in ("weight", "bias")]


@pytest.mark.parametrize(
    ("family", "first"), [("vgg", ["conv.weight", *keys("bn:")]), ("prevgg", [*keys("bn:"), "conv.weight"])]
)
def test_keys_of_vgg_11_in_order(family, first):
    expected = [f"layer0.0.{key}" for key in first]
    for stage, blocks in ((1, 1), (2, 2), (3, 2), (4, 2)):
        for block in range(1, blocks + 1):  # 0 is the pooling
            expected += [f"layer{stage}.{block}.{key}" for key in first]
    assert list(published(f"{family}_dnn_11").state_dict()) == expected + MLP


def test_keys_of_alexnet_in_order():
    convolutions = [f"layer{at}.conv.weight" for at in ("0.0", "1.1", "2.1", "2.2", "2.3")]
    assert list(published("alexnet_dnn").state_dict()) == convolutions + MLP


def test_keys_of_a_dense_classifier_on_a_resnet():
    model = on_meta("resnet_dnn_18", cblock="MLPBlock")
    assert list(model.state_dict())[-6:] == [key.replace("classifier.2", "classifier.1") for key in MLP]


FIRST_OF_FAMILY = ["alexnet_{}"] + [f"{family}_{{}}_{depths[0]}" for family, depths in DEPTHS.items()]


@pytest.mark.parametrize("template", [*FIRST_OF_FAMILY, "resnet_{}_50"])
def test_dropout_and_smoothing_add_no_keys(template):
    plain = published(template.format("dnn")).state_dict()
    for variant in VARIANTS[1:]:
        state = published(template.format(variant)).state_dict()
        assert list(state) == list(plain)
        assert all(state[key].shape == plain[key].shape for key in plain)


def test_smoothing_adds_no_keys_to_preactivation_bottlenecks():
    for variant in ("dnn", "mcdo"):
        plain, smooth = (published(f"preresnet_{variant}{s}_50").state_dict() for s in ("", "_smoothing"))
        assert list(smooth) == list(plain)


def test_another_kernel_is_stored_as_a_filter_and_keeps_the_size():
    plain, model = published("resnet_dnn_18"), on_meta("resnet_dnn_smoothing_18", num_classes=100, sfilter=(1, 2, 1))
    added = {key: value.shape for key, value in model.state_dict().items() if key not in plain.state_dict()}
    widths = (64, 128, 256, 512)
    assert added == {f"smooth{i}.0.blur.filter": (w, 1, 3, 3) for i, w in enumerate(widths, start=1)}
    assert sizes(model, 32, "smooth") == {f"smooth{i}": 32 >> (i - 1) for i in range(1, 5)}
    assert not model.smooth1[0].blur.filter.requires_grad


def test_normalised_smoothing_stores_a_norm():
    plain, model = published("resnet_dnn_18"), on_meta("resnet_dnn_smoothing_18", sblock="BNTanhBlurBlock")
    added = [key for key in model.state_dict() if key not in plain.state_dict()]
    assert added == [f"smooth{i}.0.bn.{leaf}" for i in range(1, 5) for leaf in BN]


def test_preactivation_networks_have_no_smoothing_after_the_last_stage():
    assert [len(getattr(published("preresnet_dnn_smoothing_18"), f"smooth{i}")) for i in range(1, 5)] == [1, 1, 1, 0]
    assert [len(getattr(published("resnet_dnn_smoothing_18"), f"smooth{i}")) for i in range(1, 5)] == [1, 1, 1, 1]
    assert [len(getattr(published("vgg_dnn_smoothing_11"), f"smooth{i}")) for i in range(5)] == [1] * 5
    assert [len(getattr(published("alexnet_dnn_smoothing"), f"smooth{i}")) for i in range(3)] == [1] * 3


# Sizes of the maps.


def sizes(model, image_size, *prefixes):
    """Height of the output of each child whose name starts with a prefix, by name."""
    found, handles = {}, []
    for name, child in model.named_children():
        if name.startswith(prefixes):

            def note(module, inputs, output, name=name):
                assert output.shape[2] == output.shape[3]
                found[name] = output.shape[2]

            handles.append(child.register_forward_hook(note))
    model.eval()(torch.empty(2, 3, image_size, image_size, device="meta"))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["resnet_dnn_smoothing_18", "resnet_mcdo_smoothing_50", "resnext_dnn_smoothing_50"])
@pytest.mark.parametrize(
    ("stem", "image", "stages", "smoothed"),
    [(False, 32, (32, 17, 9, 5), (33, 18, 10, 6)), (True, 224, (56, 29, 15, 8), (57, 30, 16, 9))],
)
def test_smoothing_makes_every_stage_of_a_resnet_one_larger(name, stem, image, stages, smoothed):
    found = sizes(on_meta(name, stem=stem), image, "layer", "smooth")
    assert tuple(found[f"layer{i}"] for i in range(1, 5)) == stages
    assert tuple(found[f"smooth{i}"] for i in range(1, 5)) == smoothed


def test_stages_of_a_plain_resnet_halve():
    assert list(sizes(published("resnet_dnn_18"), 32, "layer").values()) == [32, 32, 16, 8, 4]


def test_preactivation_smoothing_ends_before_the_last_stage():
    found = sizes(published("preresnet_dnn_smoothing_18"), 32, "layer", "smooth")
    assert [found[f"layer{i}"] for i in range(1, 5)] == [32, 17, 9, 5]
    assert [found[f"smooth{i}"] for i in range(1, 5)] == [33, 18, 10, 5]


@pytest.mark.parametrize("family", ["vgg", "prevgg"])
def test_pooling_in_vgg_drops_the_row_that_smoothing_added(family):
    found = sizes(published(f"{family}_dnn_smoothing_11"), 32, "layer", "smooth")
    assert [found[f"layer{i}"] for i in range(5)] == [32, 16, 8, 4, 2]
    assert [found[f"smooth{i}"] for i in range(5)] == [33, 17, 9, 5, 3]
    pooled = published(f"{family}_dnn_smoothing_11").classifier[0](torch.empty(1, 512, 3, 3, device="meta"))
    assert pooled.shape[2:] == (1, 1)


def test_sizes_in_alexnet():
    # The first convolution has stride 2; poolings drop the row that smoothing added.
    plain, smooth = (sizes(published(f"alexnet_dnn{s}"), 32, "layer", "smooth") for s in ("", "_smoothing"))
    assert [plain[f"layer{i}"] for i in range(3)] == [16, 8, 4]
    assert [smooth[f"smooth{i}"] for i in range(3)] == [17, 9, 5]


# Numerics against plain code that shares nothing with the zoo but the weights.


def norm(state, at, x):
    mean, var, weight, bias = (
        state[f"{at}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def box(x, temperature=10.0):
    x = F.pad(torch.clamp(temperature * torch.tanh(x / temperature), min=0), (1, 1, 1, 1))
    return (x[..., :-1, :-1] + x[..., 1:, :-1] + x[..., :-1, 1:] + x[..., 1:, 1:]) / 4


def linear(state, at, x):
    return x @ state[f"{at}.weight"].T + state[f"{at}.bias"]


def stages(state):
    blocks = sorted({tuple(key.split(".")[:2]) for key in state if key[:6] in {f"layer{i}" for i in range(1, 5)}})
    return [[f"layer{i}.{b}" for stage, b in blocks if stage == f"layer{i}"] for i in range(1, 5)]


def plain_resnet(state, x, smoothing):
    x = norm(state, "layer0.1", F.conv2d(x, state["layer0.0.weight"], padding=1)).clamp(min=0)
    for stage, blocks in enumerate(stages(state)):
        for i, at in enumerate(blocks):
            stride = 2 if stage and i == 0 else 1
            skip = x
            if f"{at}.shortcut.0.weight" in state:
                skip = norm(state, f"{at}.shortcut.1", F.conv2d(x, state[f"{at}.shortcut.0.weight"], stride=stride))
            if f"{at}.conv3.weight" in state:
                y = norm(state, f"{at}.bn1", F.conv2d(x, state[f"{at}.conv1.weight"])).clamp(min=0)
                y = F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
                y = norm(state, f"{at}.bn2", y).clamp(min=0)
                y = norm(state, f"{at}.bn3", F.conv2d(y, state[f"{at}.conv3.weight"]))
            else:
                y = F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
                y = norm(state, f"{at}.bn1", y).clamp(min=0)
                y = norm(state, f"{at}.bn2", F.conv2d(y, state[f"{at}.conv2.weight"], padding=1))
            x = (skip + y).clamp(min=0)
        x = box(x) if smoothing else x
    return linear(state, "classifier.0.dense", x.mean((2, 3)))


def plain_preresnet(state, x, smoothing):
    x = F.conv2d(x, state["layer0.0.weight"], padding=1)
    for stage, blocks in enumerate(stages(state)):
        for i, at in enumerate(blocks):
            stride = 2 if stage and i == 0 else 1
            a = norm(state, f"{at}.bn1", x).clamp(min=0)
            skip = x
            if f"{at}.shortcut.0.weight" in state:
                skip = F.conv2d(a, state[f"{at}.shortcut.0.weight"], stride=stride)
            if f"{at}.shortcut.1.weight" in state:
                skip = norm(state, f"{at}.shortcut.1", skip)
            if f"{at}.conv3.weight" in state:
                y = norm(state, f"{at}.bn2", F.conv2d(a, state[f"{at}.conv1.weight"])).clamp(min=0)
                y = F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
                y = F.conv2d(norm(state, f"{at}.bn3", y).clamp(min=0), state[f"{at}.conv3.weight"])
            else:
                y = F.conv2d(a, state[f"{at}.conv1.weight"], stride=stride, padding=1)
                y = F.conv2d(norm(state, f"{at}.bn2", y).clamp(min=0), state[f"{at}.conv2.weight"], padding=1)
            x = skip + y
        x = box(x) if smoothing and stage < 3 else x
    return linear(state, "classifier.0.dense", norm(state, "classifier.0.bn", x).clamp(min=0).mean((2, 3)))


def plain_mlp(state, x):
    """From 2x2-pooled 1x1 maps, which adaptive pooling to 7x7 repeats 49 times."""
    assert x.shape[2:] == (1, 1)
    x = x.expand(-1, -1, 7, 7).reshape(len(x), -1)
    x = linear(state, "classifier.2.dense1", x).clamp(min=0)
    return linear(state, "classifier.2.dense3", linear(state, "classifier.2.dense2", x).clamp(min=0))


def halved(x):
    height, width = (n // 2 * 2 for n in x.shape[2:])
    return x[..., :height, :width].unflatten(-1, (-1, 2)).amax(-1).unflatten(-2, (-1, 2)).amax(-2)


def plain_vgg(state, x, smoothing, preactivation):
    for stage in range(5):
        x = halved(x) if stage else x
        first = 1 if stage else 0
        for block in range(first, first + 4):
            at = f"layer{stage}.{block}"
            if f"{at}.conv.weight" not in state:
                break
            if preactivation:
                x = F.conv2d(norm(state, f"{at}.bn", x).clamp(min=0), state[f"{at}.conv.weight"], padding=1)
            else:
                x = norm(state, f"{at}.bn", F.conv2d(x, state[f"{at}.conv.weight"], padding=1)).clamp(min=0)
        x = box(x) if smoothing else x
    return plain_mlp(state, halved(x))


# Twenty layers of float64 roundings leave 1e-13 or so; 1e-10 relative is far below any difference in kind.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("family", ["resnet", "preresnet"])
def test_a_resnet_computes_what_its_plain_transcription_computes(family, depth, smoothing):
    model = filled(f"{family}_dnn{'_smoothing' * smoothing}_{depth}", width=4)
    plain = plain_resnet if family == "resnet" else plain_preresnet
    with torch.no_grad():
        torch.testing.assert_close(model(images()), plain(model.state_dict(), images(), smoothing), **CLOSE)


def test_the_normalised_shortcut_of_mcdo_preactivation_bottlenecks_is_used():
    model = filled("preresnet_mcdo_50", width=4, rate=0.0)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), plain_preresnet(model.state_dict(), images(), False), **CLOSE)


@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize(("family", "depth"), [("vgg", 11), ("vgg", 16), ("prevgg", 11)])
def test_a_vgg_computes_what_its_plain_transcription_computes(family, depth, smoothing):
    model = filled(f"{family}_dnn{'_smoothing' * smoothing}_{depth}", width=4, hidden=8)
    with torch.no_grad():
        expected = plain_vgg(model.state_dict(), images(), smoothing, family == "prevgg")
        torch.testing.assert_close(model(images()), expected, **CLOSE)


def test_float32_agrees_with_the_plain_transcription_to_its_rounding():
    model = filled("resnet_dnn_smoothing_18", width=8)
    with torch.no_grad():
        expected = plain_resnet(model.state_dict(), images(), True)
        # 1e-5 of the largest logit: about eps * sqrt(terms) * layers.
        error = (model.float()(images().float()).double() - expected).abs().max()
    assert error < 1e-5 * max(1.0, expected.abs().max())


@pytest.mark.parametrize("name", ["resnet_{}_18", "preresnet_{}_18", "vgg_{}_11", "alexnet_{}", "resnext_{}_50"])
def test_a_dropout_rate_of_zero_is_the_deterministic_network(name):
    options = {"width": 16, "hidden": 8} if "resnext" in name else {"width": 4, "hidden": 8}
    stochastic = filled(name.format("mcdo_smoothing"), rate=0.0, **options)
    deterministic = filled(name.format("dnn_smoothing"), seed=1, **options)
    deterministic.load_state_dict(stochastic.state_dict())
    with torch.no_grad():
        assert torch.equal(stochastic(images()), deterministic(images()))


# Dropout.


@pytest.mark.parametrize("template", ["alexnet_{}", "vgg_{}_11", "prevgg_{}_11", "resnet_{}_18", "preresnet_{}_18"])
def test_monte_carlo_dropout_is_on_in_eval_mode_and_the_plain_network_deterministic(template):
    with torch.no_grad():
        mcdo, dnn = (filled(template.format(v), width=4, hidden=8) for v in ("mcdo", "dnn"))
        assert not torch.equal(mcdo(images()), mcdo(images()))
        assert torch.equal(dnn(images()), dnn(images()))


@pytest.mark.parametrize("template", ["alexnet_{}", "vgg_{}_11"])
def test_the_dense_classifiers_dropout_is_off_in_eval_mode_and_on_in_training(template):
    model = filled(template.format("mcdo"), width=4, hidden=64)
    x = torch.randn(2, *({"alexnet_mcdo": (16, 8, 8)}.get(model.name, (32, 2, 2))), dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model.classifier(x), model.classifier(x))
        model.train()
        assert not torch.equal(model.classifier(x), model.classifier(x))


@pytest.mark.parametrize(
    ("name", "rate"), [("alexnet_mcdo", 0.1), ("vgg_mcdo_11", 0.3), ("resnet_mcdo_18", 0.3), ("resnext_mcdo_50", 0.3)]
)
def test_the_default_rates(name, rate):
    rates = {m.rate for m in published(name).modules() if isinstance(m, MCDropout)}
    assert rates == {rate}
    assert {m.rate for m in on_meta(name, rate=0.05).modules() if isinstance(m, MCDropout)} == {0.05}
    assert not any(isinstance(m, MCDropout) for m in published(name.replace("mcdo", "dnn")).modules())


def test_dropout_drops_elements_at_its_rate_and_keeps_the_mean():
    with fixed_randomness("cpu", 0):
        y = MCDropout(0.3).eval()(torch.ones(100_000))
    assert torch.equal(y.unique(), torch.tensor([0.0, 1 / 0.7]))
    # sigma = sqrt(.3 * .7 / 1e5) = .0015
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.006)


@pytest.mark.parametrize(("name", "last"), [("resnet_mcdo_50", "conv3"), ("preresnet_mcdo_18", "conv2")])
def test_dropout_stands_before_the_last_convolution_of_a_block(name, last):
    block, seen = filled(name, width=4).layer2[0], {}
    block.dropout.register_forward_hook(lambda m, i, o: seen.update(dropped=o))
    getattr(block, last).register_forward_hook(lambda m, i, o: seen.update(convolved=i[0]))
    with torch.no_grad():
        block(torch.randn(1, 16 if "50" in name else 4, 8, 8, dtype=torch.float64))
    assert seen["convolved"] is seen["dropped"]


# Smoothing blocks, kernels, paddings and classifier blocks against formulas.

ACTIVATION = {
    "TanhBlurBlock": lambda x: (10 * torch.tanh(x / 10)).clamp(min=0),
    "BNTanhBlurBlock": lambda x: (10 * torch.tanh(x / 10)).clamp(min=0),
    "TanhBlock": lambda x: (10 * torch.tanh(x / 10)).clamp(min=0),
    "SigmoidBlurBlock": lambda x: (40 * (1 / (1 + torch.exp(-x / 10)) - 0.5)).clamp(min=0),
    "SoftmaxBlurBlock": lambda x: 10 * torch.exp(x / 10) / torch.exp(x / 10).sum(1, keepdim=True),
    "ReLuBlurBlock": lambda x: torch.minimum(x.clamp(min=0), torch.tensor(6.0)),
    "ReLuBlock": lambda x: torch.minimum(x.clamp(min=0), torch.tensor(6.0)),
    "ScalingBlurBlock": lambda x: x / 5,
    "ScalingBlock": lambda x: x / 5,
    "BNBlurBlock": lambda x: x.clamp(min=0),
    "BlurBlock": lambda x: x,
}
NO_BLUR = {"TanhBlock", "ReLuBlock", "ScalingBlock"}
KERNELS = [(1,), (1, 1), (1, 2, 1), (1, 4, 6, 4, 1)]
PAD_MODES = ["constant", "zero", "reflect", "replicate", "circular"]


def source(index, size, pad_mode):
    """The position that padding copies from, or None for zero."""
    if 0 <= index < size:
        return index
    return {
        "replicate": min(max(index, 0), size - 1),
        "circular": index % size,
        "reflect": -index if index < 0 else 2 * (size - 1) - index,
    }.get(pad_mode)


def blur_matrix(size, kernel, pad_mode):
    """One axis of the blur as a matrix: (size, size), or (size + 1, size) for the growing box."""
    grows = kernel == (1, 1) and pad_mode in ("constant", "zero")
    before = 1 if grows else (len(kernel) - 1) // 2
    matrix = torch.zeros(size + grows, size, dtype=torch.float64)
    for row in range(size + grows):
        for tap, weight in enumerate(kernel):
            if (at := source(row + tap - before, size, pad_mode)) is not None:
                matrix[row, at] += weight / sum(kernel)
    return matrix


def feature_map(seed=3):
    with fixed_randomness("cpu", seed):
        return 8 * torch.randn(2, 3, 6, 5, dtype=torch.float64)


def blurred(x, kernel, pad_mode):
    return blur_matrix(x.shape[2], kernel, pad_mode) @ x @ blur_matrix(x.shape[3], kernel, pad_mode).T


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_and_padding_is_its_matrix(kernel, pad_mode):
    x = feature_map()
    torch.testing.assert_close(blur(3, kernel, pad_mode).double()(x), blurred(x, kernel, pad_mode), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SMOOTHING_BLOCKS)
def test_every_smoothing_block_is_its_formula(name, kernel, pad_mode):
    block = SMOOTHING_BLOCKS[name](3, sfilter=kernel, pad_mode=pad_mode).double().eval()
    x = feature_map()
    normalised = x
    if name.startswith("BN"):
        torch.nn.init.uniform_(block.bn.running_var, 0.5, 2.0)
        normalised = norm({f"bn.{k}": v for k, v in block.bn.state_dict().items()}, "bn", x)
    expected = ACTIVATION[name](normalised)
    if name not in NO_BLUR:
        expected = blurred(expected, kernel, pad_mode)
    # The stored filter is float32 (exact for these kernels, all powers of two); values are below 40.
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_all_smoothing_blocks_are_covered():
    assert set(ACTIVATION) == set(SMOOTHING_BLOCKS)


@pytest.mark.parametrize("name", SMOOTHING_BLOCKS)
def test_every_smoothing_block_works_in_a_network_and_prints(name):
    model = filled("resnet_dnn_smoothing_18", width=4, sblock=name)
    with torch.no_grad():
        assert model(images()).isfinite().all()
    assert name in repr(model)


def test_temperature_and_threshold_bound_the_activations():
    x = torch.full((1, 1, 2, 2), 1e6, dtype=torch.float64)
    for name, option, bound in (
        ("TanhBlock", {"temp": 3.0}, 3.0),
        ("ReLuBlock", {"thr": 2.5}, 2.5),
        ("ReLuBlock", {}, 6.0),
        ("ScalingBlock", {"temp": 2.0}, 5e5),
    ):
        assert SMOOTHING_BLOCKS[name](1, **option)(x).max().item() == bound
    inside = (slice(None), slice(None), 1, 1)
    for name, option, bound in (
        ("TanhBlurBlock", {"temp": 3.0}, 3.0),
        ("ReLuBlurBlock", {"temp": 2.0}, 2.0),
        ("ReLuBlurBlock", {}, 6.0),
        ("SigmoidBlurBlock", {"temp": 3.0}, 6.0),
    ):
        assert SMOOTHING_BLOCKS[name](1, **option)(x)[inside].item() == bound


def test_options_reach_the_smoothing_blocks_of_a_network():
    options = {"temp": 3.0, "thr": 2.0, "sfilter": [1, 2, 1], "pad_mode": "circular"}
    block = on_meta("resnet_dnn_smoothing_18", width=4, **options).smooth3[0]
    assert (block.temp, block.thr, block.blur.pad_mode) == (3.0, 2.0, "circular")
    assert block.blur.filter.shape == (16, 1, 3, 3)


def test_smoothing_blocks_can_be_counted_out_for_plain_names():
    model = on_meta("resnet_dnn_18", width=4, num_sblocks=[0, 2, 0, 1])
    assert [len(getattr(model, f"smooth{i}")) for i in range(1, 5)] == [0, 2, 0, 1]


def test_sizes_with_counted_smoothing_blocks():
    found = sizes(on_meta("resnet_dnn_18", width=4, num_sblocks=(0, 2, 0, 1)), 32, "layer", "smooth")
    assert [found[f"smooth{i}"] for i in range(1, 5)] == [32, 18, 9, 6]


def median(x):
    """The published one: of n values, the floor(n/2)-th largest."""
    n = x.shape[2] * x.shape[3]
    return x.flatten(2).sort(2, descending=True).values[:, :, max(1, n // 2) - 1]


POOL = {
    "GAPBlock": lambda x: x.mean((2, 3)),
    "GMaxPBlock": lambda x: x.flatten(2).max(2).values,
    "GMedPBlock": median,
    "GAPClipBlock": lambda x: 2 * (1 / (1 + torch.exp(-x.mean((2, 3)) / 2)) - 0.5),
}


@pytest.mark.parametrize("name", POOL)
@pytest.mark.parametrize("shape", [(4, 4), (3, 3), (1, 1), (1, 2)])
def test_every_pooling_classifier_is_its_formula(name, shape):
    with fixed_randomness("cpu", 0):
        block = CLASSIFIER_BLOCKS[name](5, 3).double()
        x = torch.randn(2, 5, *shape, dtype=torch.float64)
    expected = linear(block.state_dict(), "dense", POOL[name](x))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-13)


def test_the_normalised_classifier_is_its_formula():
    with fixed_randomness("cpu", 0):
        block = CLASSIFIER_BLOCKS["BNGAPBlock"](5, 3).double().eval()
        torch.nn.init.normal_(block.bn.running_mean)
        x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    state = block.state_dict()
    expected = linear(state, "dense", norm(state, "bn", x).clamp(min=0).mean((2, 3)))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "features"), [("MLPBlock", 5 * 6), ("GAPMLPBlock", 5)])
def test_the_dense_classifiers_are_their_formulas(name, features):
    with fixed_randomness("cpu", 0):
        block = CLASSIFIER_BLOCKS[name](features, 3, 8).double().eval()
        x = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    state, h = block.state_dict(), x.flatten(1) if name == "MLPBlock" else x.mean((2, 3))
    for layer in ("dense1", "dense2"):
        h = linear(state, layer, h).clamp(min=0)
    torch.testing.assert_close(block(x), linear(state, "dense3", h), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CLASSIFIER_BLOCKS)
@pytest.mark.parametrize("network", ["alexnet_dnn", "vgg_mcdo_smoothing_11", "preresnet_dnn_18", "resnet_dnn_50"])
def test_every_classifier_block_works_in_every_family(name, network):
    model = on_meta(network, width=4, hidden=8, cblock=name, num_classes=3).eval()
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 3)


# Width and bad options.


def test_width_scales_every_stage():
    def channels(width):
        return [
            m.out_channels
            for m in on_meta("resnet_dnn_18", width=width).modules()
            if hasattr(m, "kernel_size") and hasattr(m, "out_channels")
        ]

    assert channels(64) == [8 * c for c in channels(8)]
    for name in ("alexnet_dnn", "vgg_dnn_11"):
        convolutions = [
            [m.out_channels for m in on_meta(name, width=w).modules() if isinstance(m, torch.nn.Conv2d)]
            for w in (4, 64)
        ]
        assert convolutions[1] == [16 * c for c in convolutions[0]]


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("resnet_dnn_19", {}, "resnet_dnn_18"),
        ("nothing_like_it", {}, "python -m models list"),
        ("resnet_dnn_18", {"widht": 4}, "widht"),
        ("resnet_dnn_18", {"name": "x"}, "name"),
        ("vgg_dnn_11", {"stem": True}, "stem"),
        ("alexnet_dnn", {"groups": 2}, "groups"),
        ("resnet_dnn_18", {"width": 0}, "width"),
        ("resnet_dnn_18", {"width": "wide"}, "width"),
        ("resnet_dnn_18", {"width": True}, "width"),
        ("resnet_dnn_18", {"width": 4.5}, "width"),
        ("vgg_dnn_11", {"hidden": -1}, "hidden"),
        ("resnet_dnn_18", {"num_classes": 0}, "num_classes"),
        ("resnet_dnn_18", {"num_classes": "ten"}, "num_classes"),
        ("resnet_dnn_18", {"rate": 0.3}, "rate"),
        ("resnet_mcdo_18", {"rate": 1.0}, "rate"),
        ("resnet_mcdo_18", {"rate": -0.1}, "rate"),
        ("resnet_mcdo_18", {"rate": "high"}, "rate"),
        ("resnet_dnn_18", {"stem": "yes"}, "stem"),
        ("resnet_dnn_smoothing_18", {"num_sblocks": [1, 1, 1, 1]}, "num_sblocks"),
        ("resnet_dnn_18", {"num_sblocks": [1, 1]}, "num_sblocks"),
        ("resnet_dnn_18", {"num_sblocks": 1}, "num_sblocks"),
        ("resnet_dnn_18", {"num_sblocks": [1, 1, 1, -1]}, "num_sblocks"),
        ("resnet_dnn_smoothing_18", {"sblock": "NoBlock"}, "TanhBlurBlock"),
        ("resnet_dnn_smoothing_18", {"sblock": 3}, "TanhBlurBlock"),
        ("resnet_dnn_18", {"cblock": "NoBlock"}, "GAPBlock"),
        ("resnet_dnn_smoothing_18", {"temp": 0}, "temp"),
        ("resnet_dnn_smoothing_18", {"temp": "hot"}, "temp"),
        ("resnet_dnn_smoothing_18", {"temp": float("nan")}, "temp"),
        ("resnet_dnn_smoothing_18", {"thr": -1.0}, "thr"),
        ("resnet_dnn_smoothing_18", {"sfilter": 3}, "sfilter"),
        ("resnet_dnn_smoothing_18", {"sfilter": []}, "sfilter"),
        ("resnet_dnn_smoothing_18", {"sfilter": [1, -1]}, "sfilter"),
        ("resnet_dnn_smoothing_18", {"sfilter": "121"}, "sfilter"),
        ("resnet_dnn_smoothing_18", {"pad_mode": "mirror"}, "pad_mode"),
        ("resnet_dnn_18", {"groups": 32}, "depths 18 and 34"),
        ("resnext_dnn_50", {"width": 4}, "width"),
    ],
)
def test_bad_options_are_refused_in_one_sentence_that_names_them(name, options, word):
    with torch.device("meta"), pytest.raises(InputError) as caught:
        get_model(name, **options)
    message = str(caught.value)
    assert word in message
    assert "\n" not in message
    assert message.endswith(".") or message.endswith("?")
