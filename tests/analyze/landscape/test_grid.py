"""The sums at a point, against closed forms and the subject's own passes."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, conv_net
from torch import nn

from analyze import Subject
from analyze.landscape.directions import Direction, checkpoint_direction, random_direction
from analyze.landscape.grid import Evaluator, coarse_to_fine
from analyze.landscape.network import QuickNetwork, Twin
from analyze.landscape.spec import SUMS
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
        model = get_model(name, 10, width=4)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.bias, 0, 0.2)
        return model, [(torch.randn(n, 3, size, size), torch.randint(0, 10, (n,))) for n in sizes]

    model, data = seeded(make)
    return Subject(model, data, **options)


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


def test_cut_runs_what_comes_before_the_first_dropout_once():
    subject = zoo_subject("resnet_mcdo_18", sizes=(3,))
    quick = QuickNetwork(Twin(subject, []))
    runs = []
    stem = quick._split.submod_0.register_forward_hook(lambda *_: runs.append("before"))
    rest = quick._split.submod_1.register_forward_hook(lambda *_: runs.append("after"))
    with quick.twin.subject.frozen(0):
        quick.outputs(next(iter(subject.data))[0], [[None] * len(quick.dropouts)] * 4)
    stem.remove(), rest.remove()
    assert runs == ["before", *["after"] * 4]


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
    monkeypatch.setattr("analyze.landscape.network.MASK_BYTES", 3000)
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

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 50), nn.Linear(50, 3)

    def forward(self, x):
        return self.second(F.dropout(torch.relu(self.first(x)), 0.5))


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


@pytest.mark.parametrize(
    ("model", "shape"),
    [(WithBranch, (4,)), (FunctionalDropout, (4,)), (ReadTwice, (3, 6, 5))],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_networks_that_no_graph_or_fold_fits_are_computed_as_they_are(model, shape):
    network = seeded(model)
    data = seeded(lambda: [(torch.randn(n, *shape), torch.randint(0, 3, (n,))) for n in (40, 7)])
    subject = Subject(network, data)
    x, y = plane(subject)
    evaluator = Evaluator(subject, x, y)
    sums = evaluator.evaluate(0.3, -0.2, [0, 1])
    for frame in (0, 1):
        expected = plain_sums(at(subject, (0.3, x), (-0.2, y)), frame)
        np.testing.assert_allclose(sums.nll_sum[frame], expected[1], rtol=1e-5)
    assert "folded" not in evaluator.arithmetic


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


@pytest.mark.parametrize("engine", ENGINES)
def test_interpolation_ends_at_the_other_checkpoint(engine):
    subject = zoo_subject("resnet_mcdo_18")
    other = seeded(lambda: get_model("resnet_mcdo_18", 10, width=4))
    with torch.no_grad():
        other.layer0[1].running_mean += 0.3
    axis = checkpoint_direction(subject, other)
    sums = Evaluator(subject, axis, engine=engine).evaluate(1.0, 0.0, [0])
    there = copy.copy(subject)
    there.model = other
    np.testing.assert_allclose(sums.nll_sum[0], plain_sums(there, 0)[1], rtol=1e-5)


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
