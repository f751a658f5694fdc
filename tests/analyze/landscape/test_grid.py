"""The sums at a point, against closed forms and the subject's own passes."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, conv_net
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import FrozenBatchNorm2d

from analyze import Subject
from analyze.landscape.directions import Direction, checkpoint_direction, random_direction
from analyze.landscape.grid import Evaluator, coarse_to_fine
from analyze.landscape.masks import Mask
from analyze.landscape.spec import SUMS
from analyze.landscape.twin import Twin
from data_cache import InputError
from models import get_model
from models.layers import MCDropout
from models.metrics import Metrics

CLASSIFIERS = [case for case in CASES if not case.regression]
ENGINES = ["plain", "fast"]


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def zoo_subject(name="resnet_mcdo_smoothing_18", sizes=(5, 5, 3), size=16, **options) -> Subject:
    def make():
        model = get_model(name, 10, width=4, **({"hidden": 32} if "vgg" in name else {}))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.bias, 0, 0.2)
        return model, [(torch.randn(n, 3, size, size), torch.randint(0, 10, (n,))) for n in sizes]

    model, data = seeded(make)
    return Subject(model, data, **options)


def seeded_apart(model):
    """Another checkpoint of the network, all of whose tensors differ."""

    def change(tensor):
        return tensor.abs().sqrt() + 0.1 * torch.rand(tensor.shape) if tensor.is_floating_point() else tensor

    other = copy.deepcopy(model)
    state = seeded(lambda: {name: change(tensor) for name, tensor in model.state_dict().items()})
    other.load_state_dict({n: t - t.mean() if n.endswith("weight") and t.dim() > 1 else t for n, t in state.items()})
    return other


def plane(subject):
    return random_direction(subject, "filter", "x"), random_direction(subject, "filter", "y")


def plain_sums(subject, frame):
    """Of an evaluation that knows nothing of grids."""
    total = None
    for index, (x, y) in enumerate(subject.data):
        metrics = Metrics.of(subject.log_probability(x, index, 1) if frame == 0 else _pass(subject, x, index, frame), y)
        total = metrics if total is None else total + metrics
    return [np.asarray(getattr(total, name), dtype=float) for name in vars(total)]


def _pass(subject, x, index, frame):
    return torch.log_softmax(subject.outputs(x, index, frame).double(), dim=1)


def at(subject, *steps):
    """A subject whose model has been moved: w0 + sum of c * d."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for coordinate, direction in steps:
            for name, tensor in model.named_parameters():
                if name in direction.tensors:
                    tensor += coordinate * direction.tensors[name]
    other = copy.copy(subject)
    other.model = model
    return other


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["resnet_dnn_18", "resnet_mcdo_18", "resnet_mcdo_smoothing_18", "vgg_mcdo_11"])
def test_center_is_the_plain_evaluation_to_the_last_bit(name, engine):
    subject = zoo_subject(name, **({"size": 32} if "vgg" in name else {}))
    evaluator = Evaluator(subject, *plane(subject), engine=engine)
    sums = evaluator.evaluate(0.0, 0.0, [0, 1])
    for frame in (0, 1):
        for got, expected in zip(sums, plain_sums(subject, frame), strict=True):
            assert np.array_equal(got[frame], expected)


@pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: case.name)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("engine", ENGINES)
def test_points_are_evaluations_of_moved_copies(case, mode, engine):
    subject = case.build(mode=mode)
    x, y = plane(subject)
    evaluator = Evaluator(subject, x, y, engine=engine)
    for a, b in ((0.3, 0.0), (0.0, -0.7), (-1.1, 0.4)):
        sums = evaluator.evaluate(a, b, [0, 2])
        for place, frame in enumerate((0, 2)):
            for got, expected in zip(sums, plain_sums(at(subject, (a, x), (b, y)), frame), strict=True):
                np.testing.assert_allclose(got[place], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet_dnn_18", "resnet_mcdo_18", "resnet_mcdo_smoothing_18", "preresnet_mcdo_18"])
def test_quick_network_equals_the_plain_one(name):
    """Folding, layout and the cut change rounding alone: 1e-5 in the mean NLL, in float32."""
    subject = zoo_subject(name)
    quick, plain = (Evaluator(subject, *plane(subject), engine=engine) for engine in ("fast", "plain"))
    assert "channels last" in quick.arithmetic and "norms folded" in quick.arithmetic
    assert ("shared" in quick.arithmetic) == ("mcdo" in name)
    for point in ((0.5, 0.0), (0.2, -0.4)):
        a, b = (each.evaluate(*point, [0, 3]) for each in (quick, plain))
        np.testing.assert_allclose(a.nll_sum / a.count, b.nll_sum / b.count, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(a.count, b.count)


def runs_of_each_side(evaluator, frames):
    """In which order the sides of the cut are computed for one batch."""
    split, runs = evaluator._quick._split, []
    hooks = [
        getattr(split, f"submod_{side}").register_forward_hook(lambda *_, side=side: runs.append(side))
        for side in (0, 1)
    ]
    evaluator.evaluate(0.1, 0.1, range(frames))
    for hook in hooks:
        hook.remove()
    return runs


def test_cut_runs_what_comes_before_the_first_dropout_once():
    subject = zoo_subject("resnet_mcdo_18", sizes=(3,))
    assert runs_of_each_side(Evaluator(subject, *plane(subject)), 4) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("noise", ["frame", "point"])
@pytest.mark.parametrize("engine", ENGINES)
def test_masks_of_a_frame_do_not_depend_on_what_is_computed_with_it(noise, engine):
    subject = zoo_subject()
    axes = plane(subject)
    together = Evaluator(subject, *axes, noise=noise, engine=engine).evaluate(0.1, 0.2, [0, 1, 2, 5], 7)
    evaluator = Evaluator(subject, *axes, noise=noise, engine=engine)
    evaluator.evaluate(0.4, 0.4, [5, 3], 2)
    for place, frame in enumerate((0, 1, 2, 5)):
        alone = evaluator.evaluate(0.1, 0.2, [frame], 7)
        for got, expected in zip(alone, together, strict=True):
            assert np.array_equal(got[0], expected[place])
    assert len(set(together.nll_sum)) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_noise_by_point_draws_other_masks_at_each_point_and_by_frame_the_same(engine):
    subject = zoo_subject()
    for noise, same in (("frame", True), ("point", False)):
        evaluator = Evaluator(subject, *plane(subject), noise=noise, engine=engine)
        first, second = (evaluator.evaluate(0.1, 0.0, [0], point).nll_sum for point in (0, 1))
        assert np.array_equal(first, second) == same
        assert np.array_equal(first, evaluator.evaluate(0.1, 0.0, [0], 0).nll_sum)


def test_masks_that_find_no_room_are_drawn_again(monkeypatch):
    subject = zoo_subject()
    kept = Evaluator(subject, *plane(subject))
    monkeypatch.setattr("analyze.landscape.masks.MASK_BYTES", 3000)
    drawn = Evaluator(subject, *plane(subject))
    for point in ((0.1, 0.2), (0.3, 0.1)):
        a, b = (each.evaluate(*point, [0, 1]) for each in (kept, drawn))
        assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    assert 0 < len(drawn._masks._kept) < len(kept._masks._kept)


class WithBranch(nn.Module):
    """Its path depends on the data, so that no graph can be made of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return F.dropout(self.layer(x) if x.sum() > 0 else self.layer(-x), 0.5)


class FunctionalDropout(nn.Module):
    """Its graph does not show which of its parts are random."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.first, self.second, self.rate = nn.Linear(4, 50), nn.Linear(50, 3), rate

    def forward(self, x):
        return self.second(F.dropout(torch.relu(self.first(x)), self.rate))


class ReadTwice(nn.Module):
    """A convolution whose output is normalised, and used as it is too; and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norm, self.twice = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop = MCDropout(0.4)

    def forward(self, x):
        x = self.first(x)
        x = self.norm(x) + x
        x = self.twice(self.second(self.twice(self.second(x))))
        return self.drop(self.drop(x)).mean(dim=(2, 3))


class WritesInPlace(nn.Module):
    """What comes before the dropout is written over by what comes after it; perhaps no graph shows it."""

    def __init__(self, shown=True):
        super().__init__()
        self.shown = shown
        self.first, self.second, self.drop = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), MCDropout(0.4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        total = x.add_(self.drop(x))
        x = total if self.shown else x
        return self.second(x).mean(dim=(2, 3))


class Broadcasts(nn.Module):
    """A sum that is larger than either of its terms."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.drop = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, (1, 3)), MCDropout(0.4)

    def forward(self, x):
        x = self.first(x).mean(dim=2, keepdim=True) + self.second(x)
        return torch.relu(self.drop(self.second(x[:, :3]) + self.first(F.pad(x[:, :3], (0, 0, 1, 1))))).mean(dim=(2, 3))


class Tokens(nn.Module):
    """Dropout of all images' tokens in one row, and of tokens first."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(4, 6), nn.Linear(6, 3), MCDropout(0.4)

    def forward(self, x):
        x = self.drop(torch.relu(self.first(x.flatten(0, 1)))).unflatten(0, (-1, 5))
        return self.second(self.drop(x.transpose(0, 1))).mean(dim=0)


class AcrossImages(nn.Module):
    """An image's output depends on the others of its batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(dim=0))


class OwnList(nn.Module):
    """It normalises what `parameters` gives, which a graph takes for constants."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.randn(16, 3))])

    def forward(self, x):
        first, second = (weight / weight.norm() for weight in self.parameters())
        return 10 * torch.relu(x @ first) @ second


class Scaled(nn.Module):
    """A buffer that is no module's own business."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)
        self.register_buffer("scale", torch.randn(16))

    def forward(self, x):
        return self.second(torch.relu(self.first(x)) * torch.exp(self.scale))


def normed(convolution, norm):
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def vision_transformer():
    return VisionTransformer(8, 4, 1, 2, 8, 16, dropout=0.1, attention_dropout=0.1, num_classes=3)


def volumes():
    return nn.Sequential(
        nn.Conv3d(2, 3, 2),
        nn.BatchNorm3d(3),
        nn.ReLU(),
        MCDropout(0.2),
        nn.Conv3d(3, 3, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
    )


def sequences():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(True),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(20, 3),
        nn.BatchNorm1d(3),
    )


def channels_dropped():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def torchvision_resnet():
    return TorchvisionResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)


NETWORKS = {  # factory, shape of an image, mode, what `arithmetic` says
    "a path by the data": (WithBranch, (4,), "eval", "as it is"),
    "functional dropout": (FunctionalDropout, (4,), "eval", "as it is"),
    "functional dropout that hardly drops": (lambda: FunctionalDropout(1e-9), (4,), "eval", "as it is"),
    "dropout of channels": (channels_dropped, (3, 6, 5), "train", "as it is"),
    "dropout of attention": (vision_transformer, (3, 8, 8), "train", "as it is"),
    "vision transformer": (vision_transformer, (3, 8, 8), "eval", "channels last"),
    "read twice": (ReadTwice, (3, 6, 5), "eval", "channels last, shared up to the first dropout"),
    "written in place": (WritesInPlace, (3, 6, 5), "eval", "channels last, shared up to the first dropout"),
    "written in place unseen": (lambda: WritesInPlace(False), (3, 6, 5), "eval", "as it is"),
    "sums that broadcast": (Broadcasts, (3, 6, 5), "eval", "channels last, shared up to the first dropout"),
    "dropout of tokens": (Tokens, (5, 4), "eval", "channels last, shared up to the first dropout"),
    "across images": (AcrossImages, (4,), "eval", "channels last"),
    "3-D": (volumes, (2, 4, 3, 5), "eval", "channels last, 1 norms folded, shared up to the first dropout"),
    "1-D": (sequences, (2, 7), "eval", "channels last, 1 norms folded"),
    "1-D in train mode": (sequences, (2, 7), "train", "channels last, shared up to the first dropout"),
    "weights by norm and direction": (
        lambda: normed(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)),
        (3, 6, 5),
        "eval",
        "channels last",
    ),
    "weights by largest singular value": (
        lambda: normed(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)),
        (3, 6, 5),
        "eval",
        "channels last",
    ),
    "its list of parameters": (OwnList, (4,), "eval", "as it is"),
    "torchvision": (torchvision_resnet, (3, 16, 16), "eval", "channels last, 12 norms folded"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds_are_computed_right(name, monkeypatch):
    """In parts of 8 images where the quick network takes them; what it can't do is done as it is."""
    monkeypatch.setattr("analyze.landscape.grid.PART_BYTES", 1)
    make, shape, mode, words = NETWORKS[name]
    network = seeded(make)
    data = seeded(lambda: [(torch.randn(n, *shape), torch.randint(0, 3, (n,))) for n in (20, 7)])
    subject = Subject(network, data, mode=mode, dtype=torch.float64)
    x, y = plane(subject)
    evaluator = Evaluator(subject, x, y)
    assert evaluator.arithmetic == f"float64, {words}"
    sums = evaluator.evaluate(0.3, -0.2, [0, 3])
    for place, frame in enumerate((0, 3)):
        expected = plain_sums(at(subject, (0.3, x), (-0.2, y)), frame)
        np.testing.assert_allclose(sums.nll_sum[place], expected[1], rtol=1e-9)


CARRYING = {
    "a buffer": (Scaled, (4,)),
    "frozen norms": (lambda: normed(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8)), (3, 6, 5)),
}


@pytest.mark.parametrize("name", CARRYING)
@pytest.mark.parametrize("engine", ENGINES)
def test_buffers_of_all_kinds_move_to_the_other_checkpoint(name, engine):
    make, shape = CARRYING[name]
    network = seeded(make)
    other = seeded_apart(network)
    data = seeded(lambda: [(torch.randn(20, *shape), torch.randint(0, 3, (20,)))])
    subject, there = (Subject(each, data, dtype=torch.float64) for each in (network, other))
    evaluator = Evaluator(subject, checkpoint_direction(subject, other), engine=engine)
    assert engine == "plain" or "channels last" in evaluator.arithmetic
    np.testing.assert_allclose(evaluator.evaluate(1.0, 0.0, [0]).nll_sum[0], plain_sums(there, 0)[1], rtol=1e-12)


def test_quick_network_that_is_right_at_the_checkpoint_alone_is_not_taken(monkeypatch):
    """Whatever the reason, such as here that it does not follow a move."""
    subject = zoo_subject("resnet_dnn_18", sizes=(5,))
    axes = plane(subject)
    assert "channels last" in Evaluator(subject, *axes).arithmetic
    monkeypatch.setattr("analyze.landscape.network._Fold.update", cached_once())
    evaluator = Evaluator(subject, *axes)
    assert "folded" not in evaluator.arithmetic
    expected = plain_sums(at(subject, (0.5, axes[0]), (-0.5, axes[1])), 0)
    np.testing.assert_allclose(evaluator.evaluate(0.5, -0.5, [0]).nll_sum[0], expected[1], rtol=1e-5)


def cached_once():
    """An update that holds on to what it found first."""
    from analyze.landscape.network import _Fold

    update, done = _Fold.update, set()

    def first_only(self):
        if id(self.folded) not in done:
            done.add(id(self.folded))
            update(self)

    return first_only


def test_evaluator_is_made_where_the_network_fails_away_from_the_checkpoint():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("own", self.layer.weight.detach().clone())

        def forward(self, x):
            torch._assert(torch.equal(self.layer.weight, self.own), "only there")
            return self.layer(x)

    data = seeded(lambda: [(torch.randn(5, 4), torch.randint(0, 3, (5,)))])
    subject = Subject(seeded(Narrow), data)
    evaluator = Evaluator(subject, *plane(subject))
    assert evaluator.evaluate(0.0, 0.0, [0]).count == [5]
    with pytest.raises(InputError, match="only there"):
        evaluator.evaluate(0.1, 0.0, [0])


def test_model_that_can_not_be_copied_is_refused_with_a_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(weight_norm(nn.Linear(4, 3)))
    subject = Subject(model, seeded(lambda: [(torch.randn(5, 4), torch.randint(0, 3, (5,)))]))
    with pytest.raises(InputError, match=r"can't be copied.*parametrizations.*\.$"):
        Evaluator(subject, *plane(subject))


@pytest.mark.parametrize("engine", ENGINES)
def test_labels_that_are_no_classes_are_left_to_the_loss(engine):
    """Also where only a later batch has them: ignored ones, and others that the loss refuses."""
    model, images = seeded(lambda: nn.Linear(4, 3)), seeded(lambda: torch.randn(6, 4))
    good, ignored, wrong = (torch.tensor(each) for each in ([0, 1, 2, 0], [1, -100], [0, 5]))
    subject = Subject(model, [(images[:4], good), (images[4:], ignored)])
    x, y = plane(subject)
    sums = Evaluator(subject, x, y, engine=engine).evaluate(0.5, 0.0, [0])
    with torch.no_grad():
        moved = at(subject, (0.5, x)).model
        expected = 4 * F.cross_entropy(moved(images[:4]), good) + 2 * F.cross_entropy(moved(images[4:5]), ignored[:1])
    np.testing.assert_allclose(sums.nll_sum[0], expected.item(), rtol=1e-5)
    assert np.isnan(sums.correct[0])
    subject = Subject(model, [(images[:4], good), (images[4:], wrong)])
    with pytest.raises(InputError, match="the loss failed"):
        Evaluator(subject, x, y, engine=engine).evaluate(0.5, 0.0, [0])


def test_what_a_network_overwrites_is_computed_again():
    data = seeded(lambda: [(torch.randn(5, 3, 6, 5), torch.randint(0, 3, (5,)))])
    subject = Subject(seeded(WritesInPlace), data)
    assert runs_of_each_side(Evaluator(subject, *plane(subject)), 3) == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("size", [(9, 3, 7, 5), (9, 5), (9, 2, 3), (9, 2, 3, 3, 1)])
def test_rows_of_packed_masks_are_those_that_were_drawn(size):
    drawn = seeded(lambda: torch.rand(size) > 0.5)
    mask, packed = Mask(drawn), Mask(drawn)
    packed.pack()
    for rows in (slice(None), slice(0, 4), slice(3, 8), slice(8, 16)):
        for each in (mask, packed):
            assert torch.equal(each.rows(rows), drawn[rows].to(torch.uint8))


def test_network_that_takes_images_one_by_one_is_computed_in_parts(monkeypatch):
    """Parts change rounding alone, whatever is left over for the last one."""
    subject = zoo_subject("resnet_mcdo_smoothing_18", sizes=(19, 8, 3), dtype=torch.float64)
    whole = Evaluator(subject, *plane(subject))
    monkeypatch.setattr("analyze.landscape.grid.PART_BYTES", 1)
    parts = Evaluator(subject, *plane(subject))
    assert runs_of_each_side(whole, 2) == [0, 1, 1] * 3
    assert runs_of_each_side(parts, 2) == [0, 1, 1] * 5
    for got, expected in zip(*(each.evaluate(0.3, 0.1, [0, 1]) for each in (parts, whole)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_points_do_not_depend_on_their_order(engine, recompute):
    """To the last bit, along another checkpoint whose buffers move too."""
    subject = zoo_subject("resnet_mcdo_18", sizes=(5, 3))
    axes = checkpoint_direction(subject, seeded_apart(subject.model)), random_direction(subject, "filter", "y")
    points = [(1.0, 0.0), (0.0, 0.0), (-0.3, 0.5), (0.4, -0.2)]
    found = []
    for order in (points, points[::-1]):
        evaluator = Evaluator(subject, *axes, engine=engine, recompute=recompute)
        found.append({point: evaluator.evaluate(*point, [1, 0], 3) for point in order})
    for point in points:
        assert all(np.array_equal(a, b) for a, b in zip(*(each[point] for each in found), strict=True))


def test_nll_is_finite_where_softmax_underflows():
    """Logits of 0 and -2000: the probability is 0 in any precision, its logarithm -2000."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1000.0]]))
    subject = Subject(model, [(torch.tensor([[-2.0]]), torch.tensor([1]))])
    axis = Direction.of(subject, {"weight": torch.tensor([[0.0], [500.0]])}, kind="random", norm="none")
    for x in (0.0, 1.0):
        assert Evaluator(subject, axis).evaluate(x, 0.0, [0]).nll_sum == [2000 + 1000 * x]


def test_ece_is_right_at_confidence_one():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1000.0]]))
    x, y = torch.ones(8, 1), torch.tensor([1] * 6 + [0] * 2)
    subject = Subject(model, [(x, y)])
    axis = Direction.of(subject, {"weight": torch.ones(2, 1)}, kind="random", norm="none")
    sums = Evaluator(subject, axis).evaluate(1.0, 0.0, [0])
    assert (sums.bin_count[0, -1], sums.bin_confidence[0, -1], sums.bin_correct[0, -1]) == (8, 8, 6)
    assert np.abs(sums.bin_correct - sums.bin_confidence).sum() / 8 == 0.25


def test_squared_norm_is_that_of_the_moved_weights():
    subject = zoo_subject("resnet_dnn_18")
    x, y = plane(subject)
    evaluator = Evaluator(subject, x, y)
    for a, b in ((0.0, 0.0), (0.7, -0.2), (3.0, 5.0)):
        weights = {name: p.detach().double() for name, p in subject.parameters.items()}
        for coordinate, direction in ((a, x), (b, y)):
            for name, step in direction.tensors.items():
                weights[name] = weights[name] + coordinate * step.double()
        expected = sum((w**2).sum().item() for w in weights.values())
        np.testing.assert_allclose(evaluator.squared_norm(a, b), expected, rtol=1e-12)


def test_uneven_last_batch_counts_by_its_images():
    subject = zoo_subject("resnet_dnn_18", sizes=(5, 5, 1))
    whole = Subject(subject.model, [tuple(torch.cat(parts) for parts in zip(*subject.data, strict=True))])
    axes = plane(subject)
    a, b = (Evaluator(each, *axes).evaluate(0.4, 0.1, [0]) for each in (subject, whole))
    for name, p, q in zip(SUMS, a, b, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-5, err_msg=name)  # float32 in other batches
    assert a.count == [11]


def everything(subject):
    """All that an evaluation could leave changed."""
    state = {name: value.clone() for name, value in subject.model.state_dict().items()}
    modes = [module.training for module in subject.model.modules()]
    grads = [p.requires_grad for p in subject.model.parameters()]
    return state, modes, grads, torch.get_rng_state(), torch.backends.cudnn.deterministic, torch.is_grad_enabled()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_model_is_left_as_it_was_whatever_happens(fails, recompute, engine):
    subject = zoo_subject()
    subject.model.train()
    subject.model.layer1[0].eval()
    before = everything(subject)
    evaluator = Evaluator(subject, *plane(subject), recompute=recompute, engine=engine)
    for module in [
        *evaluator._plain.model.modules(),
        *(evaluator._quick.twin.model.modules() if evaluator._quick else []),
    ]:
        if fails and isinstance(module, nn.Linear):
            module.register_forward_hook(_failing)
    if fails:
        with pytest.raises(InputError, match="no luck"):
            evaluator.evaluate(0.1, 0.1, [0, 1])
    else:
        evaluator.evaluate(0.1, 0.1, [0, 1])
    after = everything(subject)
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert before[1:3] == after[1:3] and before[4:] == after[4:]
    assert torch.equal(before[3], after[3])


def _failing(*_):
    raise RuntimeError("no luck")


def test_recomputed_statistics_are_those_of_all_images_at_once():
    """Of the first norm; uneven batches weigh by their images."""
    model = seeded(conv_net).double()
    data = seeded(lambda: [(torch.randn(n, 2, 7, 5).double(), torch.randint(0, 3, (n,))) for n in (4, 4, 3)])
    subject = Subject(model, data)
    x, _ = plane(subject)
    moved = at(subject, (0.8, x)).model
    maps = moved[0](torch.cat([images for images, _ in data])).detach()
    twin = Twin(subject, [x.tensors])
    twin.move(0.8)
    twin.recompute_statistics(list(subject.data), [(0, index) for index in range(3)])
    np.testing.assert_allclose(twin.model[1].running_mean, maps.mean(dim=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(twin.model[1].running_var, maps.var(dim=(0, 2, 3)), rtol=1e-12)
    twin.move(0.8)  # the checkpoint's own again
    assert torch.equal(twin.model[1].running_mean, model[1].running_mean)

    moved[1].running_mean, moved[1].running_var = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3))
    other = copy.copy(subject)
    other.model = moved
    for engine in ENGINES:
        sums = Evaluator(subject, x, recompute=True, engine=engine).evaluate(0.8, 0.0, [1])
        np.testing.assert_allclose(sums.nll_sum[0], plain_sums(other, 1)[1], rtol=1e-10)


def test_recomputing_is_refused_where_there_is_nothing_to_recompute():
    subject = zoo_subject(mode="train")
    with pytest.raises(InputError, match="train mode"):
        Evaluator(subject, *plane(subject), recompute=True)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("engine", ENGINES)
def test_interpolation_ends_at_the_other_checkpoint(engine, dtype, rounding):
    """With its BatchNorm statistics and parameters that are not studied, which the norm does not count."""
    subject = zoo_subject("resnet_mcdo_18", sizes=(5, 3), dtype=dtype)
    subject.model.layer0[0].weight.requires_grad_(False)
    other = seeded_apart(subject.model)
    evaluator = Evaluator(subject, checkpoint_direction(subject, other), engine=engine)
    assert engine == "plain" or "folded" in evaluator.arithmetic
    there = copy.copy(subject)
    there.model = other
    studied = sum((other.get_parameter(name).double() ** 2).sum().item() for name in subject.parameters)
    np.testing.assert_allclose(evaluator.squared_norm(1.0), studied, rtol=rounding)
    for frame in (0, 1):
        sums = evaluator.evaluate(1.0, 0.0, [frame])
        np.testing.assert_allclose(sums.nll_sum[0], plain_sums(there, frame)[1], rtol=rounding)


def test_lower_precision_is_measured_against_full():
    subject = zoo_subject("resnet_dnn_18")
    evaluator = Evaluator(subject, *plane(subject), precision="bfloat16")
    points = [(0.0, 0.0), (0.5, 0.5)]
    plain = Evaluator(subject, *plane(subject), engine="plain")
    found = [
        abs(evaluator.evaluate(*point, [0]).nll_sum[0] - plain.evaluate(*point, [0]).nll_sum[0]) / 13
        for point in points
    ]
    assert 1e-7 < evaluator.deviation(points, 0) < 0.5
    assert math.isclose(evaluator.deviation(points, 0), max(found), rel_tol=1e-6)
    assert "bfloat16" in evaluator.arithmetic
    assert np.isnan(plain.deviation(points, 0))


def test_deviation_is_that_of_the_points_that_can_be_computed():
    """Not of those that overflow; and of none where all do."""
    subject = zoo_subject("resnet_dnn_18", sizes=(5,))
    evaluator = Evaluator(subject, *plane(subject), precision="bfloat16")
    finite = evaluator.deviation([(0.5, 0.5)], 0)
    assert finite > 0 and evaluator.deviation([(1e38, 0.0), (0.5, 0.5), (0.0, 1e38)], 0) == finite
    assert np.isnan(evaluator.deviation([(1e38, 0.0)], 0))


@pytest.mark.parametrize(("precision", "dtype"), [("tf32", torch.float32), ("bfloat16", torch.float64)])
def test_precision_that_does_not_fit_is_refused(precision, dtype):
    subject = CASES[0].build(dtype)
    with pytest.raises(InputError, match=precision):
        Evaluator(subject, *plane(subject), precision=precision)


@pytest.mark.parametrize("shape", [(21, 21), (1, 21), (4, 7), (2, 2), (1, 2)])
def test_order_of_points_is_coarse_to_fine(shape):
    order = coarse_to_fine(*shape)
    assert sorted(order) == [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    corners = {(row, column) for row in (0, shape[0] - 1) for column in (0, shape[1] - 1)}
    assert set(order[: len(corners)]) == corners
    if shape == (21, 21):
        for count, gap in ((9, 10), (25, 5), (81, 3)):  # how far a point can be from the nearest one, in steps
            done = np.array(order[:count])
            far = np.abs(np.array(order)[:, None] - done).max(axis=2).min(axis=1)
            assert far.max() <= gap / 2 + 0.5
