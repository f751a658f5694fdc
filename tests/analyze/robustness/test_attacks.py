"""FGSM and PGD against closed forms of linear networks, and in their ball at every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, minimize
from torch import nn

from analyze import Subject
from analyze.frequencies import magnitude
from analyze.robustness import attacks
from analyze.robustness.attacks import Attack, Ball, slope
from analyze.robustness.predictions import Predictor
from analyze.robustness.spec import Config
from data_cache import InputError
from models.ensemble import Ensemble
from models.layers import MCDropout

SHAPE = (2, 7, 6)


def pixels(count: int = 12, shape=SHAPE, *, low=0.0, high=1.0, dtype=torch.float64, edges=False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    values = low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    if edges:  # a third each black, white and between
        values = ((values - 0.5) * 3 + 0.5).clamp(0, 1)
    return values.to(dtype)


def linear(classes: int = 2, dtype=torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), classes)).to(dtype)


def conv_net(shape=SHAPE, dtype=torch.float32, rate: float | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropout = [] if rate is None else [MCDropout(rate)]
        net = nn.Sequential(
            nn.Conv2d(shape[0], 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            *dropout,
            nn.Conv2d(6, 4, 3, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(3),
        ).to(dtype)
        net.eval()(torch.zeros(1, *shape, dtype=dtype))
        return net


def predictor(model: nn.Module, x: torch.Tensor, labels=None, *, batch=8, passes=3, **options) -> Predictor:
    """Labels: what the network itself says, unless given."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        said = model.eval()(x).argmax(1)
    y = said if labels is None else labels
    return Predictor(Subject(model, list(zip(x.split(batch), y.split(batch), strict=True)), **options), passes)


def run(found: Predictor, **options):
    """The result of one attack, norm and bound, or of several."""
    given = {"attacks": ("pgd",), "norms": ("linf",), **options}
    return list(attacks.grow(found, Config(**given)))[-1]


def attacked(found: Predictor, kind: str, norm: str, epsilon: float, **options) -> torch.Tensor:
    """The pixels of all images."""
    attack = Attack(found, Config(**options))
    return torch.cat([getattr(attack, kind)(p, attack.ball(p, norm, epsilon))[0] for p in found.pictures()])


def all_labels(found: Predictor) -> torch.Tensor:
    return torch.cat([p.labels for p in found.pictures()])


def margins(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Of the label's logit over the other's, in NumPy."""
    weight, bias = (p.detach().numpy() for p in model[1].parameters())
    z = x.reshape(len(x), -1).numpy() @ weight.T + bias
    rows = np.arange(len(x))
    return z[rows, y.numpy()] - z[rows, 1 - y.numpy()]


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_attacks_on_a_linear_network_take_the_dual_norm_off_its_margin(kind, norm, dual):
    model, x, epsilon = linear(), pixels(low=0.4, high=0.6), 0.05
    found = predictor(model, x)
    y = all_labels(found)
    weight = model[1].weight.detach().numpy()
    least = margins(model, x, y) - epsilon * np.linalg.norm(weight[0] - weight[1], dual)
    reached = margins(model, attacked(found, kind, norm, epsilon, random_start=False), y)
    assert np.allclose(reached, least, rtol=0, atol=1e-12)  # sums of 84 numbers around 0.1 in float64


def test_pgd_finds_the_least_margin_from_a_random_start_in_linf():
    model, x, epsilon = linear(), pixels(low=0.4, high=0.6), 0.05
    found = predictor(model, x)
    y = all_labels(found)
    weight = model[1].weight.detach().numpy()
    least = margins(model, x, y) - epsilon * np.abs(weight[0] - weight[1]).sum()
    assert np.allclose(margins(model, attacked(found, "pgd", "linf", epsilon), y), least, rtol=0, atol=1e-12)


def test_pgd_turns_towards_the_least_margin_from_a_random_start_in_l2():
    model, x, epsilon, steps = linear(), pixels(low=0.4, high=0.6), 0.05, 10
    found = predictor(model, x)
    y = all_labels(found)
    weight = model[1].weight.detach().numpy()
    most = epsilon * np.linalg.norm(weight[0] - weight[1])
    cosine = -0.4  # of a random start to the gradient: N(0, 1/84), so this is 3.7 deviations away
    for _ in range(steps):  # a step of 2.5 / steps and back onto the sphere
        along, across = cosine + 2.5 / steps, np.sqrt(1 - cosine**2)
        cosine = along / np.hypot(along, across)
    taken = margins(model, x, y) - margins(model, attacked(found, "pgd", "l2", epsilon, pgd_steps=steps), y)
    assert np.all(taken <= most * (1 + 1e-12) + 1e-12)
    assert np.all(taken >= most * cosine)
    assert cosine > 0.9


def test_the_furthest_point_of_ball_and_box_is_the_one_that_root_finding_finds():
    x, gradient = pixels(6, (1, 2, 4), edges=True), torch.randn(6, 1, 2, 4, dtype=torch.float64)

    def clipped(t: float, image: int) -> np.ndarray:
        centre = x[image].numpy().ravel()
        return np.clip(t * gradient[image].numpy().ravel(), -centre, 1 - centre)

    def excess(t: float, image: int, epsilon: float) -> float:
        return np.linalg.norm(clipped(t, image)) - epsilon

    for epsilon in (0.05, 0.6, 50.0):  # the last holds the whole box
        found = Ball(x, "l2", epsilon).furthest(gradient).reshape(6, -1).numpy()
        for image, d in enumerate(found):
            inside = excess(1e9, image, epsilon) <= 0
            t = 1e9 if inside else brentq(excess, 0, 1e9, args=(image, epsilon), xtol=1e-15)
            assert np.allclose(d, clipped(t, image), rtol=0, atol=1e-9)
            assert np.linalg.norm(d) <= epsilon * (1 + 1e-12)


def test_projection_is_the_nearest_point_of_ball_and_box():
    x, far = pixels(5, (1, 2, 3), edges=True), 0.5 * torch.randn(5, 1, 2, 3, dtype=torch.float64)
    for epsilon in (0.1, 0.5, 9.0):
        found = Ball(x, "l2", epsilon).project(far).reshape(5, -1).numpy()
        for d, centre, target in zip(found, x.reshape(5, -1).numpy(), far.reshape(5, -1).numpy(), strict=True):
            best = minimize(
                lambda v, target=target: ((v - target) ** 2).sum(),
                np.zeros(6),
                jac=lambda v, target=target: 2 * (v - target),
                bounds=list(zip(-centre, 1 - centre, strict=True)),
                constraints={"type": "ineq", "fun": lambda v, e=epsilon: e**2 - v @ v, "jac": lambda v: -2 * v},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            ).x
            assert np.linalg.norm(d - target) <= np.linalg.norm(best - target) + 1e-7  # what SLSQP reaches
            assert np.linalg.norm(d) <= epsilon * (1 + 1e-12)
            assert np.all((centre + d >= -1e-15) & (centre + d <= 1 + 1e-15))


class Recorder(nn.Module):
    """A network that keeps what it was given."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.network(x)


@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 8, 8), (3, 5, 9)])
@pytest.mark.parametrize("norm, epsilon", [("linf", 8 / 255), ("linf", 0.3), ("l2", 0.7), ("l2", 3.0)])
def test_pgd_never_leaves_the_ball_around_the_image_as_it_is(norm, epsilon, shape):
    model = Recorder(conv_net(shape))
    x = pixels(8, shape, dtype=torch.float32, edges=True)
    found = predictor(model, x)
    assert found.clean
    model.seen.clear()
    attacked(found, "pgd", norm, epsilon, pgd_steps=20, pgd_step=5.0)
    assert len(model.seen) == 21
    for seen in model.seen:
        assert seen.min() >= 0
        assert seen.max() <= 1
        d = (seen.double() - x.double()).flatten(1).numpy()
        if norm == "linf":  # x' is rounded to float32 once, by at most half its last digit
            assert np.abs(d).max() <= np.float32(epsilon) + np.spacing(np.float32(1)) / 2
        else:
            assert np.linalg.norm(d, axis=1).max() <= epsilon * (1 + 1e-6)
    assert not torch.equal(model.seen[0], x)
    assert not torch.equal(model.seen[1], model.seen[0])


def test_a_step_without_bounds_in_its_way_goes_its_length():
    ball = Ball(pixels(3, low=0.5, high=0.5), "l2", 1.0)
    gradient = torch.randn(3, *SHAPE, dtype=torch.float64)
    assert np.allclose(ball.direction(gradient).flatten(1).norm(dim=1), 1, rtol=0, atol=1e-12)
    assert torch.equal(Ball(ball.centre, "linf", 1.0).direction(gradient), gradient.sign())


@pytest.mark.parametrize("rate", [None, 0.3])
def test_a_bound_of_zero_is_the_image_as_it_is_to_the_bit(rate):
    found = predictor(conv_net(rate=rate), pixels(dtype=torch.float32, edges=True))
    clean = found.clean_outcome().metrics
    zero = {"epsilons_linf": (0.0,), "epsilons_l2": (0.0,)}
    result = run(found, attacks=("fgsm", "pgd"), norms=("linf", "l2"), **zero)
    assert result.accuracy.tolist() == [clean.accuracy] * 4
    assert result.nll.tolist() == [clean.mean_nll] * 4
    assert result.ece.tolist() == [clean.ece] * 4
    assert not result.linf.any()
    assert not result.success_rate.any()


def test_attacks_grow_stronger_with_bound_and_steps():
    found = predictor(conv_net(), pixels(40, dtype=torch.float32))
    result = run(found, attacks=("fgsm", "pgd"), epsilons_linf=(0.0, 0.05, 0.1, 0.2), attack_images=0)
    pgd = result.accuracy[result.attack == "pgd"]
    assert pgd[0] == 1
    assert np.all(np.diff(pgd) < 0)
    assert np.all(pgd <= result.accuracy[result.attack == "fgsm"])
    assert np.all(np.diff(result.nll[result.attack == "pgd"]) > 0)
    few, many = (run(found, epsilons_linf=(0.1,), pgd_steps=steps) for steps in (2, 40))
    assert many.nll[0] > few.nll[0]
    assert many.accuracy[0] <= few.accuracy[0]


def test_success_rate_is_of_the_images_that_were_right():
    x = pixels(30, dtype=torch.float32)
    labels = torch.arange(30) % 3
    found = predictor(conv_net(), x, labels)
    result = run(found, epsilons_linf=(0.03,))
    right = int(found.clean_outcome().metrics.correct)
    assert 0 < right < 30
    # under PGD an image that is wrong as it is stays wrong
    assert result.accuracy[0] * 30 == pytest.approx(right * (1 - result.success_rate[0]), abs=1e-9)
    assert 0 < result.success_rate[0] < 1
    assert result.clean_accuracy == right / 30
    assert result.group_correct.sum() == pytest.approx(result.accuracy[0] * 30)
    assert result.group_clean_correct.sum() == right


def test_norms_of_perturbations_are_their_bounds_inside_the_box():
    found = predictor(linear(3), pixels(low=0.4, high=0.6))
    result = run(found, attacks=("fgsm",), norms=("linf", "l2"), epsilons_linf=(0.01,), epsilons_l2=(0.02,))
    assert result.norm.tolist() == ["linf", "l2"]
    values = np.prod(SHAPE)
    assert result.linf[0] == pytest.approx(0.01, rel=1e-12)
    assert result.l2[0] == pytest.approx(0.01 * np.sqrt(values), rel=1e-12)
    assert result.l2[1] == pytest.approx(0.02, rel=1e-12)
    assert not result.outside.any()


def test_the_network_is_left_as_it_was():
    model = conv_net(rate=0.3)
    found = predictor(model, pixels(dtype=torch.float32))
    model.train()
    model[0].weight.requires_grad_(False)
    model[1].bias.grad = torch.ones(6)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    run(found, attacks=("fgsm", "pgd"), epsilons_linf=(0.1,))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["1.bias"]
    assert torch.equal(model[1].bias.grad, torch.ones(6))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), drawn)


class Blind(nn.Module):
    """Sees images through a step function: right, and without a gradient."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(int(np.prod(SHAPE)), 3).double()

    def forward(self, x):
        return self.head(x.flatten(1).round())


class Cornered(nn.Module):
    """Has an infinite slope at black pixels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(int(np.prod(SHAPE)), 3).double()

    def forward(self, x):
        return self.head(x.flatten(1).sqrt())


def test_images_without_a_gradient_are_counted_and_left_alone():
    found = predictor(Blind(), pixels())
    for kind in ("fgsm", "pgd"):
        for norm in ("linf", "l2"):
            moved = attacked(found, kind, norm, 0.1, random_start=False)
            assert torch.equal(moved, pixels())
    result = run(found, epsilons_linf=(0.1,), random_start=False)
    assert result.no_gradient[0] == 1
    assert result.accuracy[0] == result.clean_accuracy


def test_images_whose_gradient_is_not_finite_are_counted_and_left_alone():
    x = pixels(8, low=0.2)
    x[3, 0, 0, 0] = 0.0
    found = predictor(Cornered(), x)
    moved = attacked(found, "fgsm", "linf", 0.1)
    assert [i for i in range(8) if torch.equal(moved[i], x[i])] == [3]
    assert run(found, attacks=("fgsm",), epsilons_linf=(0.1,)).no_gradient[0] == 1 / 8
    assert np.isfinite(run(found, epsilons_linf=(0.1,)).nll).all()


@pytest.mark.parametrize("rings", ["square", "radial"])
@pytest.mark.parametrize("norm, epsilon", [("linf", 0.1), ("l2", 0.8)])
@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 8, 9)])
def test_band_limited_perturbations_lie_in_the_band_and_in_the_ball(kind, norm, epsilon, rings, shape):
    low, high = 0.3, 0.7
    x = pixels(8, shape, dtype=torch.float32, edges=True)
    found = predictor(conv_net(shape), x)
    options = {"attack_band": (low, high), "rings": rings}
    d = (attacked(found, kind, norm, epsilon, **options) - x).double().numpy()
    assert np.abs(d).max() > 0.01
    power = np.abs(np.fft.fft2(d)) ** 2
    far = magnitude(*shape[1:], rings)
    outside = power[..., (far < low) | (far >= high)].sum((1, 2)) / power.sum((1, 2, 3))
    assert np.sqrt(outside.max()) < 1e-6  # float32: x + d is rounded by 3e-8 at 1, d is above 1e-1
    length = np.abs(d).max((1, 2, 3)) if norm == "linf" else np.linalg.norm(d.reshape(8, -1), axis=1)
    assert length.max() <= epsilon * (1 + 1e-6)
    bounds = {"epsilons_linf": (epsilon,), "epsilons_l2": (epsilon,)}
    result = run(found, attacks=(kind,), norms=(norm,), **bounds, **options)
    assert result.outside[0] == np.mean((x.double().numpy() + d < 0) | (x.double().numpy() + d > 1)) > 0


def test_a_band_limited_attack_in_l2_is_the_best_of_its_band_on_a_linear_network():
    model, x, epsilon = linear(), pixels(low=0.4, high=0.6), 0.05
    found = predictor(model, x)
    y = all_labels(found)
    weight = model[1].weight.detach().numpy()
    mask = (magnitude(*SHAPE[1:], "square") >= 0.3) & (magnitude(*SHAPE[1:], "square") < 0.8)
    seen = np.fft.ifft2(mask * np.fft.fft2((weight[0] - weight[1]).reshape(SHAPE))).real
    least = margins(model, x, y) - epsilon * np.linalg.norm(seen)
    for kind in ("fgsm", "pgd"):
        d = attacked(found, kind, "l2", epsilon, attack_band=(0.3, 0.8), random_start=False)
        assert np.allclose(margins(model, d, y), least, rtol=0, atol=1e-12)


def test_a_band_without_frequencies_is_refused():
    found = predictor(conv_net(), pixels(dtype=torch.float32))
    with pytest.raises(InputError, match="attack_band 0.01 0.02 holds no frequency of images of 7 x 6 pixels"):
        run(found, attack_band=(0.01, 0.02))


@pytest.mark.parametrize("kind", ["dropout", "ensemble"])
def test_the_slope_is_that_of_the_mean_probability(kind):
    if kind == "ensemble":
        torch.manual_seed(0)
        model = Ensemble([conv_net(dtype=torch.float64) for _ in range(2)])
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
    else:
        model = conv_net(dtype=torch.float64, rate=0.4)
    x, labels = pixels(3), torch.tensor([0, 2, 1])
    numbers = [5, 6, 7] if kind == "dropout" else [0]
    subject = predictor(model, x, labels).subject
    found = slope(subject, x, labels, 0, numbers)

    def nll(at: torch.Tensor) -> np.ndarray:
        p = np.mean([F.softmax(subject.outputs(at, 0, number), 1).numpy() for number in numbers], axis=0)
        return -np.log(p[np.arange(3), labels])

    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        along = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        true = (nll(x + 1e-5 * along) - nll(x - 1e-5 * along)) / 2e-5
        # central differences: error h^2 f''' + 1e-16 / h, some 1e-10
        assert np.allclose((found.gradient * along).sum((1, 2, 3)), true, rtol=0, atol=1e-8)
    assert np.allclose(-found.log_probability[range(3), labels], nll(x), rtol=0, atol=1e-12)


def test_attacks_see_other_masks_than_those_that_judge_them(monkeypatch):
    found = predictor(conv_net(rate=0.3), pixels(8, dtype=torch.float32), passes=4)
    assert found.clean
    seen, outputs = [], Subject.outputs

    def spy(self, x, index, number=0, model=None, **options):
        seen.append(number)
        return outputs(self, x, index, number, model, **options)

    monkeypatch.setattr(Subject, "outputs", spy)
    attacked(found, "pgd", "linf", 0.1, pgd_steps=3, attack_passes=2)
    assert seen == [4, 5, 6, 7, 8, 9]


def test_pgd_of_a_random_network_is_not_the_step_whose_masks_did_worst():
    """Masks move this network's margin more than the attack, whose optimum on the mean of them is known."""
    model, x, epsilon = linear(), pixels(60, low=0.4, high=0.6), 0.01
    random = nn.Sequential(MCDropout(0.5), *model)
    labels = all_labels(predictor(model, x))
    found = predictor(random, x, labels, passes=1)
    taken = margins(model, x, labels) - margins(model, attacked(found, "pgd", "linf", epsilon, attack_passes=4), labels)
    weight = model[1].weight.detach().numpy()
    most = epsilon * np.abs(weight[0] - weight[1]).sum()
    # at each of 10 steps of a quarter of the bound, 1 in 16 pixels is masked in all 4 passes and stays
    assert taken.mean() > 0.97 * most
    assert taken.min() > 0.9 * most


def test_resumed_attacks_have_the_same_bits():
    options = {"attacks": ("fgsm", "pgd"), "norms": ("linf", "l2"), "epsilons_linf": (0.05, 0.1), "pgd_steps": 3}
    config, model, x = Config(**options), conv_net(rate=0.3), pixels(20, dtype=torch.float32)
    whole = list(attacks.grow(predictor(model, x), config))
    resumed = list(attacks.grow(predictor(model, x), config, whole[2]))
    assert len(whole) == 8
    assert len(resumed) == 5
    for name in whole[-1].__dataclass_fields__:
        assert np.array_equal(getattr(whole[-1], name), getattr(resumed[-1], name)), name
    assert attacks.is_complete(whole[-1], config)
    assert not attacks.is_complete(whole[2], config)


def test_the_batch_size_changes_rounding_only():
    x = pixels(20, dtype=torch.float32)
    few, many = (attacked(predictor(conv_net(), x, batch=size), "pgd", "l2", 0.3) for size in (3, 20))
    # the start is a function of the image's number; ten steps amplify the rounding of one (1e-7)
    assert (few - many).abs().max() < 1e-4
    other = attacked(predictor(conv_net(), x, seed=1), "pgd", "l2", 0.3, pgd_steps=1)
    assert (other - attacked(predictor(conv_net(), x), "pgd", "l2", 0.3, pgd_steps=1)).abs().max() > 1e-3


def test_images_that_were_normalised_unsaid_are_refused():
    found = predictor(conv_net(), pixels(low=-2, high=2, dtype=torch.float32))
    with pytest.raises(InputError, match="pixels go from -2 to 2, not 0 to 1: tell Subject the normalization"):
        run(found)


def test_normalised_images_are_attacked_in_pixels():
    class Denormalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return self.inner(x * 0.5 + 0.25)

    x = pixels(low=0.4, high=0.6)
    plain = predictor(linear(), x)
    normalised = predictor(Denormalising(), (x - 0.25) / 0.5, all_labels(plain), normalization=([0.25] * 2, [0.5] * 2))
    for norm in ("linf", "l2"):
        both = [attacked(found, "pgd", norm, 0.05) for found in (plain, normalised)]
        assert np.allclose(*both, rtol=0, atol=1e-12)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = linear(3)

    def forward(self, x):
        return self.head(x.detach())


def test_a_network_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="the model has no gradient with respect to its images"):
        run(predictor(Detached(), pixels()))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"epsilons_linf": (-0.1,)}, "epsilons_linf must be numbers from 0 up"),
        ({"epsilons_l2": ()}, "epsilons_l2 is empty"),
        ({"attacks": ()}, "attacks is empty"),
        ({"pgd_steps": 0}, "pgd_steps must be at least 1"),
        ({"pgd_step": 0.0}, "pgd_step must be a number above 0"),
        ({"attack_band": (0.5, 0.2)}, "attack_band is two numbers"),
        ({"attack_band": (0.5,)}, "attack_band is two numbers"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Config(**options)
