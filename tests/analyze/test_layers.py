"""Layers of any model: found by what runs, named by path, watched without a trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from analyze import Subject
from analyze.calls import observable
from analyze.layers import Layer, feature_maps, find_layers
from data_cache import InputError
from models import get_model
from models.ensemble import Ensemble


def subject(model, *shape, images=3, **options) -> Subject:
    shape = shape or (3, 32, 32)
    x = torch.randn(images, *shape, generator=torch.Generator().manual_seed(1))
    return Subject(model, [(x, torch.zeros(images, dtype=torch.long))], **options)


def built(make, *arguments, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **options).eval()


def images_of(studied: Subject) -> torch.Tensor:
    return next(iter(studied.data))[0]


def maps_of(studied: Subject, layers, number=0, member=0) -> dict[str, torch.Tensor]:
    """Copies of one member's maps by name; checks that outputs are the plain forward pass's."""
    found = {}

    def receive(position, which, maps):
        if which == member:
            found[layers[position].name] = maps.clone()

    x = images_of(studied)
    outputs = feature_maps(studied, layers, x, 0, number, receive)
    assert torch.equal(outputs, plain_outputs(studied, number))
    assert list(found) == [layer.name for layer in layers]
    for layer in layers:
        assert found[layer.name].shape == (len(x), layer.channels, layer.height, layer.width)
    return found


def plain_outputs(studied: Subject, number=0) -> torch.Tensor:
    """Of a forward pass without hooks, and without the fused kernel that rounds differently."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return studied.outputs(images_of(studied), 0, number)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def names(layers, kind=None) -> list[str]:
    return [layer.name for layer in layers if kind in (None, layer.kind)]


def sentence(error) -> str:
    text = str(error.value)
    assert text.count("\n") == 0 and text.endswith(".") and "Traceback" not in text
    return text


# the zoo


def test_zoo_layers_are_blocks_and_smoothing_layers_in_order_of_execution():
    layers = find_layers(subject(built(get_model, "resnet_mcdo_smoothing_18", width=4)))
    expected = ["layer0"]
    for stage in range(1, 5):
        expected += [f"layer{stage}.0", f"layer{stage}.1", f"smooth{stage}.0"]
    assert names(layers) == expected
    assert names(layers, "smoothing") == [f"smooth{stage}.0" for stage in range(1, 5)]
    assert [layer.height for layer in layers] == [32, 32, 32, 33, 17, 17, 18, 9, 9, 10, 5, 5, 6]
    assert [layer.name for layer in layers if layer.subsampling] == ["layer2.0", "layer3.0", "layer4.0"]
    assert [layer.channels for layer in layers] == [4] * 4 + [8] * 3 + [16] * 3 + [32] * 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vgg_dnn_11",
            ["layer0.0", "layer1.1", "layer2.1", "layer2.2", "layer3.1", "layer3.2", "layer4.1", "layer4.2"],
        ),
        ("alexnet_dnn", ["layer0.0", "layer1.1", "layer2.1", "layer2.2", "layer2.3"]),
        ("preresnet_dnn_18", ["layer0"] + [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]),
        ("resnext_dnn_50", ["layer0"] + [f"layer{s}.{b}" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)]),
    ],
)
def test_blocks_of_each_family(name, expected):
    options = {} if name == "resnext_dnn_50" else {"width": 4}
    options |= {"hidden": 8} if name in ("vgg_dnn_11", "alexnet_dnn") else {}
    studied = subject(built(get_model, name, **options))
    layers = find_layers(studied)
    assert names(layers, "block") == names(layers) == expected
    maps_of(studied, layers)


def test_stages_are_chosen_by_their_word():
    studied = subject(built(get_model, "resnet_dnn_smoothing_18", width=4))
    assert names(find_layers(studied, ("stages",)), "stage") == ["layer1", "layer2", "layer3", "layer4"]
    both = find_layers(studied, ("smooth?.0", "stages"))
    assert names(both) == ["layer1", "smooth1.0", "layer2", "smooth2.0", "layer3", "smooth3.0", "layer4", "smooth4.0"]


def test_maps_are_those_of_the_modules():
    studied = subject(built(get_model, "resnet_dnn_smoothing_18", width=4).double(), dtype=torch.float64)
    found = maps_of(studied, find_layers(studied))
    with studied.frozen(0, 0), torch.no_grad():
        x = studied.model.layer0(images_of(studied))
        assert torch.equal(found["layer0"], x)
        for stage in range(1, 5):
            for number, block in enumerate(getattr(studied.model, f"layer{stage}")):
                x = block(x)
                assert torch.equal(found[f"layer{stage}.{number}"], x)
            x = getattr(studied.model, f"smooth{stage}")(x)
            assert torch.equal(found[f"smooth{stage}.0"], x)


def test_dropout_masks_of_a_pass_are_those_of_its_outputs():
    studied = subject(built(get_model, "resnet_mcdo_18", width=4))
    layers = find_layers(studied)
    first, again, other = (maps_of(studied, layers, number) for number in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(first["layer0"], other["layer0"])
    assert not torch.equal(first["layer1.0"], other["layer1.0"])


# other networks

TORCHVISION = {
    # name: (size, layers, some of them); counted in the papers' tables: stem, blocks, transitions, head
    "resnet18": (64, 1 + 8, ["relu", "layer1.0", "layer4.1"]),
    "vgg11_bn": (32, 8 - 0, ["features.2", "features.13"]),
    "densenet121": (64, 1 + 58 + 3, ["features.relu0", "features.denseblock1.denselayer1", "features.transition1"]),
    "mobilenet_v2": (64, 1 + 17 + 1, ["features.0", "features.1", "features.18"]),
    "mobilenet_v3_small": (64, 1 + 11 + 1, ["features.0", "features.1", "features.12"]),
    "efficientnet_b0": (64, 1 + 16 + 1, ["features.1.0", "features.6.3", "features.8"]),
    "convnext_tiny": (64, 1 + 18 + 3, ["features.0", "features.1.0", "features.2", "features.7.2"]),
    "regnet_y_400mf": (64, 1 + 16, ["stem", "trunk_output.block4.block4-5"]),
    "shufflenet_v2_x0_5": (64, 1 + 16 + 1, ["conv1", "stage2.0", "conv5"]),
    "squeezenet1_0": (64, 1 + 8 + 1, ["features.1", "features.3", "classifier.2"]),
    "googlenet": (64, 3 + 9, ["conv1", "inception3a", "inception5b"]),
    "swin_t": (64, 1 + 3 + 2 * 12, ["features.0", "features.1.0+attn", "features.1.0", "features.2"]),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_by_block(name):
    size, count, some = TORCHVISION[name]
    options = {"init_weights": False} if name in ("googlenet", "vgg11_bn") else {}
    studied = subject(built(getattr(torchvision.models, name), weights=None, **options), 3, size, size)
    layers = find_layers(studied)
    assert len(layers) == count
    assert set(some) <= set(names(layers))
    maps_of(studied, layers)


def test_blocks_of_one_position_are_passed_over():
    """At 32 x 32, the last stage of a ResNet-18 with the ImageNet stem has 1 x 1 maps."""
    layers = find_layers(subject(built(torchvision.models.resnet18, weights=None), 3, 32, 32))
    assert names(layers)[-1] == "layer3.1"


TIMM = {
    # name: (options, layers, some of them with kind)
    "resnet18": ({}, 1 + 8, {"act1": "block", "layer1.0": "block"}),
    "vit_tiny_patch16_224": ({"img_size": 64}, 1 + 2 * 12, {"blocks.0+attn": "attention", "blocks.0": "mlp"}),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64}, 1 + 2 * 12, {"blocks.11+attn": "attention"}),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2},
        1 + 3 + 2 * 12,
        {"layers.0.blocks.1+attn": "attention"},
    ),
    "convnext_atto": ({}, 1 + 12 + 3, {"stem": "block", "stages.3.blocks.1": "block"}),
    "mixer_s16_224": ({"img_size": 64}, 1 + 2 * 8, {"blocks.0+mlp_tokens": "mlp", "blocks.0": "mlp"}),
    "poolformer_s12": ({}, 1 + 3 + 2 * 12, {"stages.0.blocks.0+token_mixer": "block", "stages.0.blocks.0": "mlp"}),
}


NO_LAYERS = {
    # name: (options, what looks like a map and is no layer)
    "xcit_nano_12_p16_224": ({}, ["pos_embed"]),
    "cait_xxs24_224": ({"img_size": 64}, ["blocks_token_only.0.attn.k", "blocks_token_only.1.attn.v"]),
    "crossvit_tiny_240": ({"img_size": 240}, ["blocks.0.fusion.0.attn.wk", "blocks.2.fusion.1.attn.wv"]),
}


@pytest.mark.parametrize("name", NO_LAYERS)
def test_position_embeddings_and_the_class_tokens_attention_are_no_layers(name):
    timm = pytest.importorskip("timm")
    options, others = NO_LAYERS[name]
    size = options.get("img_size", 64)
    found = names(find_layers(subject(built(timm.create_model, name, **options), 3, size, size)))
    assert not [name for name in found if name in others] and len(found) > 24


def test_tokens_in_the_order_of_mask_units_are_refused():
    timm = pytest.importorskip("timm")
    hiera = built(timm.create_model, "hiera_tiny_224", img_size=(64, 64), embed_dim=8, stages=(1, 1, 1, 1))
    with pytest.raises(InputError) as caught:
        find_layers(subject(hiera, 3, 64, 64))
    assert "unrolled" in sentence(caught)


class Gated(nn.Module):
    """Blocks inside a module that takes a softmax of its class scores."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3))).softmax(1)


def test_a_softmax_of_class_scores_hides_no_layers():
    for model in (nn.Sequential(Gated()), nn.Sequential(nn.Sequential(Gated().body, nn.Flatten(), nn.Softmax(1)))):
        assert len(find_layers(subject(model, 3, 16, 16))) == 2


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_by_block(name):
    timm = pytest.importorskip("timm")
    options, count, some = TIMM[name]
    studied = subject(built(timm.create_model, name, **options), 3, 64, 64)
    layers = find_layers(studied)
    assert len(layers) == count
    assert some.items() <= {layer.name: layer.kind for layer in layers}.items()
    maps_of(studied, layers)


# transformers


def small_vit(**options):
    model = built(VisionTransformer, 16, 4, 2, 2, 8, 16, num_classes=3, **options).double()
    with torch.no_grad():  # torchvision starts with a head of zeros
        model.heads.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def as_maps(tokens, height, width, prefix):
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, height, width)


def test_vision_transformer_by_attention_and_mlp():
    """The residual stream after each, without the class token."""
    studied = subject(small_vit(), 3, 16, 16, dtype=torch.float64)
    layers = find_layers(studied)
    found, model = maps_of(studied, layers), studied.model
    assert names(layers, "block") == ["conv_proj"]
    assert names(layers, "attention") == [f"encoder.layers.encoder_layer_{i}+self_attention" for i in (0, 1)]
    assert names(layers, "mlp") == [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    with observable(model), studied.frozen(), torch.no_grad():
        tokens = model.conv_proj(images_of(studied)).flatten(2).transpose(1, 2)
        assert torch.equal(found["conv_proj"], as_maps(tokens, 4, 4, 0))
        tokens = torch.cat([model.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + model.encoder.pos_embedding
        for name, block in model.encoder.layers.named_children():
            normed = block.ln_1(tokens)
            tokens = tokens + block.self_attention(normed, normed, normed, need_weights=False)[0]
            torch.testing.assert_close(found[f"encoder.layers.{name}+self_attention"], as_maps(tokens, 4, 4, 1))
            tokens = tokens + block.mlp(block.ln_2(tokens))
            torch.testing.assert_close(found[f"encoder.layers.{name}"], as_maps(tokens, 4, 4, 1))


def test_sub_blocks_alone_by_name():
    studied = subject(small_vit(), 3, 16, 16, dtype=torch.float64)
    layers = find_layers(studied, ("*.mlp", "*self_attention"))
    assert [(layer.name.rpartition(".")[2], layer.kind) for layer in layers[:3]] == [
        ("self_attention", "module"),
        ("encoder_layer_0+self_attention", "attention"),
        ("mlp", "module"),
    ]
    found = maps_of(studied, layers)
    block = "encoder.layers.encoder_layer_0"
    all_maps = maps_of(studied, find_layers(studied, (block, f"{block}[+.]*")))
    torch.testing.assert_close(found[f"{block}.mlp"], all_maps[block] - all_maps[f"{block}+self_attention"])


class Tokens(nn.Module):
    """A transformer of torch's own layers on patches, with tokens before those of the image."""

    def __init__(self, patch, prefix=0, batch_first=True, depth=2):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, patch, patch)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=batch_first, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)
        self.axis = 1 if batch_first else 0

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        x = x if self.axis else x.transpose(0, 1)
        return self.head(self.encoder(x).mean(dim=self.axis))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_of_images_that_are_not_square(prefix, batch_first):
    model = built(Tokens, 4, prefix, batch_first)
    studied = subject(model, 3, 12, 20)
    layers = find_layers(studied)
    assert {(layer.height, layer.width) for layer in layers} == {(3, 5)}
    assert names(layers, "attention") == ["encoder.layers.0+self_attn", "encoder.layers.1+self_attn"]
    found = maps_of(studied, layers)
    outputs = []
    hook = model.encoder.layers[0].register_forward_hook(lambda _, args, output: outputs.append(output))
    plain_outputs(studied)
    hook.remove()
    tokens = outputs[0] if batch_first else outputs[0].transpose(0, 1)
    torch.testing.assert_close(found["encoder.layers.0"], as_maps(tokens, 3, 5, prefix))


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return self.out(torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v)


class Residual(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x) + x


class Transformer(nn.Module):
    """Adds up what the parts of all blocks give in its own code."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Attend(), feed_forward()]) for _ in range(2))

    def forward(self, x):
        for attend, feed in self.layers:
            x = attend(x) + x
            x = feed(x) + x
        return x


class OnPatches(nn.Module):
    """Position embeddings are added too, but that is no residual stream."""

    def __init__(self, encoder):
        super().__init__()
        self.patch, self.encoder, self.head = nn.Conv2d(3, 8, 4, 4), encoder, nn.Linear(8, 3)
        self.position = nn.Parameter(torch.randn(1, 12, 8))

    def forward(self, x):
        return self.head(self.encoder(self.patch(x).flatten(2).transpose(1, 2) + self.position).mean(dim=1))


def feed_forward():
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


@pytest.mark.parametrize("frame", [True, False])
def test_transformers_written_in_other_ways(frame):
    encoder = built(Transformer) if frame else nn.Sequential(*map(Residual, (Attend(), feed_forward())))
    studied = subject(built(OnPatches, encoder), 3, 12, 16)
    layers = find_layers(studied)
    assert {(layer.height, layer.width) for layer in layers} == {(3, 4)}
    assert [layer.kind for layer in layers] == ["block"] + ["attention", "mlp"] * (2 if frame else 1)
    expected = ["encoder+layers.0.0", "encoder+layers.0.1", "encoder+layers.1.0", "encoder"]
    assert names(layers)[1:] == (expected if frame else ["encoder.0", "encoder.1"])
    found, model = list(maps_of(studied, layers).values()), studied.model
    with torch.no_grad():
        tokens = model.patch(images_of(studied)).flatten(2).transpose(1, 2) + model.position
        parts = [part for block in encoder.layers for part in block] if frame else [part.function for part in encoder]
        for part, maps in zip(parts, found[1:], strict=True):
            tokens = tokens + part(tokens)
            torch.testing.assert_close(maps, as_maps(tokens, 3, 4, 0))


def test_fast_path_of_transformers_is_given_back():
    studied = subject(built(Tokens, 4), 3, 16, 16)
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            find_layers(studied)
            assert torch.backends.mha.get_fastpath_enabled() is enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


def test_channels_last_maps_are_told_by_the_layers_before_them():
    """8 channels on 8 x 8 positions: the shape (8, 8, 8) tells nothing."""
    model = built(SwinTransformer, [2, 2], 8, [2, 1], [2, 2], [4, 4], num_classes=3).double()
    studied = subject(model, 3, 16, 16, dtype=torch.float64)
    layers = find_layers(studied)
    assert names(layers)[:3] == ["features.0", "features.1.0+attn", "features.1.0"]
    found = maps_of(studied, layers)
    with studied.frozen(), torch.no_grad():
        x = model.features[0](images_of(studied))
        block = model.features[1][0]
        after = x + block.attn(block.norm1(x))
    assert x.shape[1:] == (8, 8, 8)
    torch.testing.assert_close(found["features.1.0+attn"], after.permute(0, 3, 1, 2))
    convolutional = subject(built(get_model, "resnet_dnn_18", width=8), 3, 8, 8)
    first = find_layers(convolutional)[0]
    torch.testing.assert_close(
        maps_of(convolutional, [first])["layer0"], convolutional.model.layer0(images_of(convolutional)).detach()
    )


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_blocks_that_permute_inside_keep_their_order(library):
    """ConvNeXt with 8 channels on 8 x 8 positions: norms and dense layers there have their channels last."""
    if library == "timm":
        timm = pytest.importorskip("timm")
        sizes = {"dims": (8, 8, 8, 8), "depths": (2, 1, 1, 1)}
        model = built(timm.models.convnext.ConvNeXt, num_classes=3, **sizes).double()
        stem, block = model.stem, model.stages[0].blocks[0]
    else:
        model = built(torchvision.models.ConvNeXt, [CNBlockConfig(8, 8, 2), CNBlockConfig(8, None, 1)]).double()
        stem, block = model.features[0], model.features[1][0]
    studied = subject(model, 3, 32, 32, dtype=torch.float64)
    layers = find_layers(studied)
    assert [(layer.channels, layer.height) for layer in layers][:5] == [(8, 8)] * 3 + [(8, 4)] * 2
    assert {layer.tap.axes for layer in layers} == {"bchw"}
    first, second, *_ = maps_of(studied, layers).values()
    with torch.no_grad():
        torch.testing.assert_close(first, stem(images_of(studied)))
        torch.testing.assert_close(second, block(first))


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.turn = Permuted()

    def forward(self, x):
        return self.turn(self.conv(x)).mean(dim=(1, 2))


class Permuted(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_axes_that_cannot_be_told_are_refused():
    ambiguous, clear = subject(built(Turned), 3, 8, 8), subject(built(Turned), 3, 8, 12)
    with pytest.raises(InputError) as error:
        find_layers(ambiguous, ("turn",))
    assert "channels come first or last" in sentence(error) and "turn" in str(error.value)
    assert names(find_layers(ambiguous, ("*",))) == ["conv"]
    found = maps_of(clear, find_layers(clear, ("turn", "conv")))
    assert torch.equal(found["turn"], found["conv"])


def test_windows_are_no_maps():
    """MaxViT's attention works on (B, windows, positions, C); its blocks give maps."""
    sizes = {"input_size": (32, 32), "stem_channels": 8, "partition_size": 4, "head_dim": 4}
    model = built(torchvision.models.MaxVit, block_channels=[16], block_layers=[1], stochastic_depth_prob=0.0, **sizes)
    studied = subject(model, 3, 32, 32)
    layers = find_layers(studied)
    assert names(layers)[2:] == [
        f"blocks.0.layers.0.layers.{x}" for x in ("MBconv", "window_attention", "grid_attention")
    ]
    with pytest.raises(InputError, match="no feature map"):
        find_layers(studied, ("*window_attention.attn_layer",))


# modules in unusual company


class Reused(nn.Module):
    """One ReLU, in place, for all; and what two modules say besides a map."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.several = Several()
        self.never = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.relu(self.two(self.relu(self.one(x))))
        count, (x, _) = self.several(x)["found"]
        return x.mean(dim=(2, 3)) * count


class Several(nn.Module):
    def forward(self, x):
        return {"found": (torch.tensor(2.0), (x + 1, x[:, :1]))}


def test_reused_modules_and_nested_outputs():
    studied = subject(built(Reused), 3, 6, 7)
    layers = find_layers(studied, ("*",))
    assert names(layers) == ["one", "relu", "two", "relu:2", "several"]
    found, model = maps_of(studied, layers), studied.model
    with torch.no_grad():
        one = model.one(images_of(studied))
        two = model.two(one.relu())
    assert torch.equal(found["one"], one), "the ReLU in place came after"
    assert torch.equal(found["relu"], one.relu())
    assert torch.equal(found["two"], two)
    assert torch.equal(found["relu:2"], two.relu())
    assert torch.equal(found["several"], two.relu() + 1)
    assert names(find_layers(studied)) == ["relu", "several"], "what keeps the size belongs to the convolution before"


def test_wrapped_networks_have_plain_names():
    model = built(get_model, "resnet_dnn_18", width=4)
    plain = find_layers(subject(model))
    wrapped = nn.Sequential(nn.Identity(), torch.compile(copy.deepcopy(model), backend=_refuse))
    for other, prefix in (
        (nn.DataParallel(copy.deepcopy(model)), ""),
        (torch.compile(copy.deepcopy(model), backend=_refuse), ""),
        (torch.compile(nn.DataParallel(copy.deepcopy(model)), backend=_refuse), ""),
        (wrapped, "1."),
    ):
        studied = subject(other)
        layers = find_layers(studied)
        assert names(layers) == [prefix + name for name in names(plain)]
        found = {}
        feature_maps(
            studied, layers, images_of(studied), 0, 0, lambda p, m, maps, found=found: found.setdefault(p, maps)
        )
        expected = maps_of(subject(model), plain)
        assert all(torch.equal(found[p], expected[layer.name]) for p, layer in enumerate(plain))


def _refuse(graph, inputs):
    raise AssertionError("compiled code can't be watched")


def test_watching_leaves_no_trace():
    model = built(Reused)
    model.train()
    studied = subject(model, 3, 6, 6)

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return hooks, [m.training for m in model.modules()], torch.get_rng_state().tolist(), torch.is_grad_enabled()

    def fail(position, member, maps):
        raise KeyboardInterrupt

    unfit = subject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(99, 2)), 3, 6, 6)
    before = state()
    layers = find_layers(studied)
    with pytest.raises(KeyboardInterrupt):
        feature_maps(studied, layers, images_of(studied), 0, 0, fail)
    assert state() == before
    with pytest.raises(InputError):
        find_layers(unfit)
    maps_of(studied, layers)
    assert state() == before


def test_own_hooks_of_the_user_are_kept():
    model = built(get_model, "resnet_dnn_18", width=4)
    model.layer1[0].register_forward_hook(lambda module, args, output: output * 2)
    studied = subject(model)
    layers = find_layers(studied, ("layer1.0",))
    with torch.no_grad():
        assert torch.equal(maps_of(studied, layers)["layer1.0"], model.layer1[0](model.layer0(images_of(studied))))


def test_single_images_and_train_mode():
    studied = subject(built(get_model, "resnet_mcdo_18", width=4), images=1, mode="train")
    layers = find_layers(studied)
    assert len(layers) == 9
    studied = subject(built(get_model, "resnet_mcdo_18", width=4), images=4, mode="train")
    assert find_layers(studied) == layers
    maps_of(studied, layers)


# ensembles


def test_members_of_an_ensemble_are_watched_one_by_one():
    models = [get_model("resnet_dnn_smoothing_18", width=4) for _ in range(2)]
    together = subject(Ensemble(models))
    layers = find_layers(together)
    assert names(layers)[:2] == ["layer0", "layer1.0"]
    for member, model in enumerate(models):
        alone = maps_of(subject(model), layers)
        found = maps_of(together, layers, member=member)
        assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_members_of_different_architecture_are_refused():
    different = Ensemble([get_model("resnet_dnn_18", width=4), get_model("resnet_dnn_smoothing_18", width=4)])
    wider = Ensemble([get_model("resnet_dnn_18", width=4), get_model("resnet_dnn_18", width=8)])
    for model, name in ((different, "layer2.0"), (wider, "layer0")):
        with pytest.raises(InputError) as error:
            find_layers(subject(model))
        assert "members 1 and 2" in sentence(error) and name in str(error.value)


# what can't be done is said


def test_patterns_that_choose_nothing_are_refused():
    studied = subject(built(Reused), 3, 6, 6)
    for pattern, words in {
        "layer*": "no layer is called 'layer*'; there are relu, several, and all modules",
        "never": "never called",
        "stages": "no stages",
        "several:2": "no layer is called",
    }.items():
        with pytest.raises(InputError) as error:
            find_layers(studied, ("one", pattern))
        assert words in sentence(error)
    vectors = subject(built(get_model, "resnet_dnn_18", width=4))
    with pytest.raises(InputError) as error:
        find_layers(vectors, ("classifier*",))
    assert "gives 10 numbers for each image" in sentence(error)
    assert "classifier" not in " ".join(names(find_layers(vectors, ("*",))))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return F.conv2d(x, self.weight).mean(dim=(2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_networks_that_hooks_cannot_see_are_refused():
    scripted = torch.jit.trace(built(get_model, "resnet_dnn_18", width=4), torch.randn(3, 3, 32, 32))
    exported = torch.export.export(built(Reused), (torch.randn(3, 3, 32, 32),)).module()
    for model, word in ((scripted, "TorchScript"), (Functional(), "works by functions"), (exported, "exported graph")):
        with pytest.raises(InputError) as error:
            find_layers(subject(model))
        assert word in sentence(error)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_parts_that_hooks_cannot_see_are_left_out():
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8))
    model = nn.Sequential(scripted, nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    assert names(find_layers(subject(model, 3, 8, 8))) == ["1"]


def test_networks_without_maps_and_data_without_images_are_refused():
    with pytest.raises(InputError) as error:
        find_layers(subject(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))))
    assert "no block" in sentence(error)
    with pytest.raises(InputError) as error:
        find_layers(subject(nn.Linear(5, 3), 5))
    assert "no images" in sentence(error)


class Wayward(nn.Module):
    """Takes another path in the second Monte Carlo pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.skip = False

    def forward(self, x):
        return (self.other if self.skip else self.conv)(x).mean(dim=(2, 3))


def test_layers_that_do_not_run_or_change_size_are_refused():
    studied = subject(Wayward(), 3, 8, 8)
    layers = find_layers(studied)
    assert names(layers) == ["conv"]
    with pytest.raises(InputError) as error:
        feature_maps(studied, layers, torch.randn(2, 3, 9, 8), 0, 0, lambda *_: None)
    assert "4x6x6" in sentence(error) and "(2, 4, 7, 6)" in str(error.value)
    studied.model.skip = True
    with pytest.raises(InputError) as error:
        feature_maps(studied, layers, images_of(studied), 0, 1, lambda *_: None)
    assert "did not run" in sentence(error)
    with pytest.raises(InputError) as error:
        feature_maps(studied, [Layer("mine", "module", False, 1, 2, 2)], images_of(studied), 0, 0, lambda *_: None)
    assert "no layer mine" in sentence(error)
