"""Adversarial attacks: FGSM and PGD, bounded in the largest pixel or the Euclidean norm, of all frequencies or a few.

Perturbations are in pixels scaled to [0, 1], before normalisation. They follow the gradient of the negative
log-likelihood of the mean probability over Monte Carlo passes; those passes are others than the ones that judge the
attack, and others at each step, so that an attack on a random network is on its expectation and not on the masks
that it will be judged with (Athalye et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.frequencies import Rings, band_mask
from analyze.results import Progress, silent
from analyze.robustness.predictions import Outcome, Pictures, Predictor, binomial_stderr
from analyze.robustness.spec import Adversarial, Config
from analyze.subject import Subject
from data_cache import InputError

Item = tuple[str, str, float]
"""Attack, norm and bound: a row of `Adversarial`."""
_TAG = 44


@dataclass(frozen=True)
class Ball:
    r"""The perturbations that an attack may make of a batch of images.

    .. math:: \|d\|_\infty \le \epsilon \ \text{or} \ \|d\|_2 \le \epsilon, \qquad \text{and} \qquad
              0 \le x + d \le 1 \quad \text{or} \quad d = \mathrm{irfft2}(M \cdot \mathrm{rfft2}(d))

    with x the image as it is, whatever was added before. With a band M, what leaves [0, 1] is not cut off, which
    would put energy outside of the band.
    """

    centre: Tensor
    """(B, C, H, W) the images as they are."""
    norm: Literal["linf", "l2"]
    epsilon: float
    mask: Tensor | None = None
    """(H, W // 2 + 1) bins of `rfft2` that a perturbation may have; None: all, and pixels stay in [0, 1]."""

    def furthest(self, gradient: Tensor) -> Tensor:
        """The d in the ball with the largest <gradient, d>; with a band and linf, one that is large."""
        if self.mask is not None:
            return self.epsilon * self.direction(gradient)
        if self.norm == "linf":
            return self.project(self.epsilon * gradient.sign())
        return _fill(gradient, *self._limits, self.epsilon, longest=torch.inf)

    def direction(self, gradient: Tensor) -> Tensor:
        """A step of length 1, (B, C, H, W): along the signs of the gradient (linf), or along the gradient (l2)."""
        gradient = self._filtered(gradient)
        return self._unit(self._filtered(gradient.sign()) if self.norm == "linf" else gradient)

    def project(self, d: Tensor) -> Tensor:
        """The point of the ball that is nearest to d, with a band and linf on the way to 0."""
        if self.mask is not None:
            return d * (self.epsilon / self._length(d).clamp(min=1e-30)).clamp(max=1.0).to(d.dtype)
        if self.norm == "linf":
            return d.clamp(*self._limits)
        return _fill(d, *self._limits, self.epsilon, longest=1.0)

    def random(self, generators: Sequence[np.random.Generator]) -> Tensor:
        """A random point for each image: uniform in the ball of the norm, then projected into [0, 1] or of the band."""
        shape = tuple(self.centre.shape[1:])
        drawn = [g.uniform(-1, 1, shape) if self.norm == "linf" else g.standard_normal(shape) for g in generators]
        radii = torch.tensor([g.random() ** (1 / np.prod(shape)) for g in generators])
        field = torch.from_numpy(np.stack(drawn)).to(self.centre)
        if self.norm == "l2" or self.mask is not None:
            field = self._unit(self._filtered(field)) * radii.to(field)[:, None, None, None]
        return self.project(self.epsilon * field)

    def moved(self, d: Tensor) -> Tensor:
        """The pixels x + d; rounding does not take them out of [0, 1]."""
        if self.mask is not None:
            return self.centre + d
        return torch.clamp(self.centre + d, self.centre.clamp(max=0.0), self.centre.clamp(min=1.0))

    @cached_property
    def _limits(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest d of each pixel that stays in [0, 1], and within epsilon."""
        return -self.centre.clamp(0.0, self.epsilon), (1 - self.centre).clamp(0.0, self.epsilon)

    def _filtered(self, d: Tensor) -> Tensor:
        if self.mask is None:
            return d
        return torch.fft.irfft2(torch.fft.rfft2(d) * self.mask, s=tuple(d.shape[2:]))

    def _unit(self, d: Tensor) -> Tensor:
        length = self._length(d)
        return torch.where(length > 0, d / length.clamp(min=1e-300), 0.0).to(d.dtype)

    def _length(self, d: Tensor) -> Tensor:
        """(B, 1, 1, 1) in float64."""
        order = torch.inf if self.norm == "linf" else 2
        return torch.linalg.vector_norm(d, order, dim=(1, 2, 3), keepdim=True, dtype=torch.float64)


def _fill(d: Tensor, low: Tensor, high: Tensor, epsilon: float, longest: float) -> Tensor:
    """clip(t d, low, high) with t as large as its Euclidean norm stays within epsilon, at most `longest`.

    For `longest` 1 it is the nearest point to d in the ball and the box, without that bound the furthest along d.
    Pixels at their limit let others go further: each round finds the t for those, until no more of them meet theirs.
    """
    limit = torch.where(d > 0, high, low)
    squares, limits = d.double() ** 2, limit.double() ** 2
    held = torch.zeros_like(d, dtype=torch.bool)
    t = torch.zeros_like(squares[:, :1, :1, :1])
    while True:
        free = torch.where(held, 0.0, squares).sum((1, 2, 3), keepdim=True)
        left = (epsilon**2 - torch.where(held, limits, 0.0).sum((1, 2, 3), keepdim=True)).clamp(min=0.0)
        t = torch.where(free > 0, (left / free).sqrt(), t).clamp(max=longest)
        over = held | (t**2 * squares > limits)
        if torch.equal(over, held):
            return torch.where(held, limit, (t * d).to(d.dtype))
        held = over


class Slope(NamedTuple):
    """What a batch of pixels gives an attacker."""

    log_probability: Tensor
    """(B, classes) of the mean over passes, float64."""
    gradient: Tensor
    """(B, C, H, W) of each image's negative log-likelihood; 0 for an image where it is not finite."""


def slope(subject: Subject, pixels: Tensor, labels: Tensor, index: int, numbers: Sequence[int]) -> Slope:
    r"""Gradient of the negative log-likelihood of the mean probability over Monte Carlo passes, in pixels.

    .. math:: -\nabla \log \frac{1}{K} \sum_k p_k = -\frac{\sum_k p_k \nabla \log p_k}{\sum_k p_k}

    of the label's probability p; one pass's graph is held at a time. No parameter gets a gradient.

    Args:
        subject: The model.
        pixels: (B, C, H, W) before normalisation; of a network whose images don't influence each other.
        labels: (B,).
        index: Which batch it is.
        numbers: The K passes.

    Raises:
        InputError: The model has no gradient with respect to its images.
    """
    members, weight = [], torch.zeros(len(labels), dtype=torch.float64, device=pixels.device)
    peak, total = torch.full_like(weight, -torch.inf), torch.zeros_like(pixels)
    for number in numbers:
        log_probability, own, gradient = _one_slope(subject, pixels, labels, index, number)
        members.append(log_probability)
        highest = torch.maximum(peak, own)
        before, now = (peak - highest).exp(), (own - highest).exp()  # probabilities, scaled so that none underflows
        total = total * _each(before, total) + gradient * _each(now, total)
        weight, peak = weight * before + now, highest
    mean = torch.logsumexp(torch.stack(members), dim=0) - np.log(len(numbers))
    gradient = -total / _each(weight, total)
    finite = gradient.isfinite().all(dim=1, keepdim=True).all(dim=2, keepdim=True).all(dim=3, keepdim=True)
    return Slope(mean, torch.where(finite, gradient, 0.0))


def _each(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype)[:, None, None, None]


def _one_slope(
    subject: Subject, pixels: Tensor, labels: Tensor, index: int, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one pass: log-probabilities (B, classes), those of the labels (B,), and their gradients."""
    with subject.frozen(number, index):
        variable = pixels.detach().requires_grad_()
        output = subject.outputs(subject.normalized(variable), index, number, gradient=True)
        log_probability = torch.log_softmax(output.double(), dim=1)
        own = log_probability.gather(1, labels[:, None]).squeeze(1)
        try:
            (gradient,) = torch.autograd.grad(own.sum(), variable, materialize_grads=True)
        except RuntimeError as error:
            raise InputError(
                f"the model has no gradient with respect to its images, so they can't be attacked: {error}"
            ) from error
    return log_probability.detach(), own.detach(), gradient


class Attack:
    """Attacks on a predictor's images as a config describes them.

    FGSM is the one step of Goodfellow et al. 2015 (in the L2 ball, along the gradient), whatever it does: the
    furthest point of the ball that the gradient points to. PGD (Madry et al. 2018) projects each step onto the ball
    around the image as it is. Of a network without randomness it keeps for each image the worst of the image as it
    is, the start and all steps: a wrong one before a right one, then the highest negative log-likelihood. So an image
    that is wrong as it is stays wrong, and more steps along the same way are never weaker. Of a network with
    randomness it keeps the last step: the worst would be the one whose masks happened to do worst.

    Raises:
        InputError: No frequency of the images lies in the config's band.
    """

    def __init__(self, predictor: Predictor, config: Config):
        self.predictor, self.config = predictor, config
        self.subject = predictor.subject
        self.passes = self.subject.passes(config.attack_passes)
        self.mask = None
        if config.attack_band:
            self.mask = _mask(*predictor.shape[1:], *config.attack_band, config.rings).to(self.subject.device)

    def ball(self, pictures: Pictures, norm: str, epsilon: float) -> Ball:
        """The perturbations of a batch that the config allows."""
        return Ball(pictures.pixels, norm, epsilon, self.mask)  # type: ignore[arg-type]

    def fgsm(self, pictures: Pictures, ball: Ball) -> tuple[Tensor, Tensor]:
        """The attacked pixels, and for which images (B,) there was no gradient."""
        gradient = slope(self.subject, pictures.pixels, pictures.labels, pictures.index, self._numbers(0)).gradient
        return ball.moved(ball.furthest(gradient)), _blind(gradient)

    def pgd(self, pictures: Pictures, ball: Ball) -> tuple[Tensor, Tensor]:
        """The same after the config's steps."""
        config, index, labels = self.config, pictures.index, pictures.labels
        length = config.pgd_step * ball.epsilon / config.pgd_steps
        d = ball.random(self._generators(pictures)) if config.random_start else torch.zeros_like(pictures.pixels)
        random = self.subject.stochastic
        worst = None if random else _Worst(pictures.pixels, self.predictor.clean[index].to(labels.device), labels)
        blind = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for step in range(config.pgd_steps):
            pixels = ball.moved(d)
            found = slope(self.subject, pixels, labels, index, self._numbers(step))
            if worst is not None:
                worst.offer(pixels, found.log_probability)
            blind = _blind(found.gradient) if step == 0 else blind
            d = ball.project(d + length * ball.direction(found.gradient))
        pixels = ball.moved(d)
        if worst is None:
            return pixels, blind
        worst.offer(pixels, self.predictor.log_probability(pictures, pixels))
        return worst.pixels, blind

    def _numbers(self, step: int) -> Sequence[int]:
        """The Monte Carlo passes that a step may see: not those that judge it."""
        if not self.subject.stochastic:
            return range(1)
        first = self.predictor.passes + step * self.passes
        return range(first, first + self.passes)

    def _generators(self, pictures: Pictures) -> list[np.random.Generator]:
        return [np.random.default_rng((self.subject.seed, _TAG, int(number))) for number in pictures.numbers]


class _Worst:
    """For each image, the worst of all versions so far."""

    def __init__(self, pixels: Tensor, log_probability: Tensor, labels: Tensor):
        self.pixels, self._labels = pixels, labels
        self._wrong, self._nll = self._judge(log_probability)

    def offer(self, pixels: Tensor, log_probability: Tensor) -> None:
        """Keep these pixels of the images for which they are worse."""
        wrong, nll = self._judge(log_probability)
        worse = (wrong & ~self._wrong) | ((wrong == self._wrong) & (nll > self._nll))
        self.pixels = torch.where(worse[:, None, None, None], pixels, self.pixels)
        self._wrong, self._nll = torch.where(worse, wrong, self._wrong), torch.where(worse, nll, self._nll)

    def _judge(self, log_probability: Tensor) -> tuple[Tensor, Tensor]:
        return log_probability.argmax(dim=1) != self._labels, -log_probability.gather(1, self._labels[:, None])[:, 0]


class Attacked(NamedTuple):
    """Sums over images for one attack, norm and bound."""

    outcome: Outcome
    beaten: int
    """Images that were right as they are, and now are wrong."""
    linf: float
    l2: float
    outside: int
    """Pixel values outside [0, 1]."""
    blind: int
    """Images without a gradient at the first step."""


def grow(
    predictor: Predictor,
    config: Config,
    done: Adversarial | None = None,
    *,
    world: World = ALONE,
    progress: Progress = silent,
) -> Iterator[Adversarial]:
    """The results so far, with one attack, norm and bound more at a time; ranks take them from a shared queue.

    Args:
        predictor: Of the images to attack.
        config: Attacks, norms, bounds, band.
        done: What is there already, of the same images and options.
        world: The ranks that share the work; rank 0 yields.
        progress: Called after each batch and row.

    Raises:
        InputError: The images are not in [0, 1], the model has no gradient, or the band holds no frequency.
    """
    rows = {} if done is None else _rows_of(done)
    attack = Attack(predictor, config)
    clean = predictor.clean_outcome()
    todo = [item for item in _wanted(config) if item not in rows]
    total = len(rows) + len(todo)

    def work(item: Item) -> Attacked:
        parts = []
        for pictures in predictor.pictures():
            parts.append(_attacked(attack, pictures, item))
            progress("attacks", len(rows), total, f"{_label(item)}, image {pictures.numbers[-1] + 1}")
        return Attacked(*(sum(column[1:], column[0]) for column in zip(*parts, strict=True)))

    for item, attacked in world.share_out(todo, work):
        rows[item] = _scores(attacked, predictor, clean)
        progress("attacks", len(rows), total, f"{_label(item)}: accuracy {rows[item]['accuracy']:.3f}")
        yield _adversarial_of(rows, predictor, clean)


def is_complete(done: Adversarial | None, config: Config) -> bool:
    """Whether each attack was made in each norm with each bound."""
    return done is not None and set(_wanted(config)) <= set(_items_of(done))


def _wanted(config: Config) -> list[Item]:
    epsilons = {"linf": config.epsilons_linf, "l2": config.epsilons_l2}
    items = [(a, norm, float(e)) for a in config.attacks for norm in config.norms for e in epsilons[norm]]
    return list(dict.fromkeys(items))


def _label(item: Item) -> str:
    attack, norm, epsilon = item
    return f"{attack} {norm} {epsilon:.3g}"


def _attacked(attack: Attack, pictures: Pictures, item: Item) -> Attacked:
    """One batch."""
    kind, norm, epsilon = item
    ball = attack.ball(pictures, norm, epsilon)
    pixels, blind = (attack.fgsm if kind == "fgsm" else attack.pgd)(pictures, ball)
    log_probability = attack.predictor.log_probability(pictures, pixels)
    labels = pictures.labels.cpu()
    right = attack.predictor.clean[pictures.index].argmax(dim=1) == labels
    d = (pixels - pictures.pixels).double().flatten(1)
    return Attacked(
        outcome=attack.predictor.compared(pictures, log_probability),
        beaten=int((right & (log_probability.argmax(dim=1).cpu() != labels)).sum()),
        linf=float(d.abs().amax(dim=1).sum()),
        l2=float(torch.linalg.vector_norm(d, dim=1).sum()),
        outside=0 if ball.mask is None else int(((pixels < 0) | (pixels > 1)).sum()),
        blind=int(blind.sum()),
    )


def _blind(gradient: Tensor) -> Tensor:
    return ~gradient.flatten(1).any(dim=1)


def _mask(height: int, width: int, low: float, high: float, rings: Rings) -> Tensor:
    mask = torch.from_numpy(band_mask(height, width, low, high, rings, half=True))
    if not mask.any():
        raise InputError(f"attack_band {low:g} {high:g} holds no frequency of images of {height} x {width} pixels.")
    return mask


_SCORES = ("accuracy", "accuracy_stderr", "nll", "nll_stderr", "ece", "group_correct", "group_nll")
_ROW = (*_SCORES, "success_rate", "success_rate_stderr", "linf", "l2", "outside", "no_gradient")


def _scores(attacked: Attacked, predictor: Predictor, clean: Outcome) -> dict[str, float | np.ndarray]:
    """A row of `Adversarial`."""
    scores, images = attacked.outcome.scores(), predictor.images
    right = clean.metrics.correct
    success = attacked.beaten / right if right else np.nan
    return {
        **{name: scores[name] for name in _SCORES},
        "success_rate": success,
        "success_rate_stderr": binomial_stderr(success, max(right, 1)),
        "linf": attacked.linf / images,
        "l2": attacked.l2 / images,
        "outside": attacked.outside / (images * int(np.prod(predictor.shape))),
        "no_gradient": attacked.blind / images,
    }


def _items_of(done: Adversarial) -> list[Item]:
    return list(zip(done.attack.tolist(), done.norm.tolist(), done.epsilon.tolist(), strict=True))


def _rows_of(done: Adversarial) -> dict[Item, dict[str, float | np.ndarray]]:
    items = _items_of(done)
    return {item: {name: getattr(done, name)[row] for name in _ROW} for row, item in enumerate(items)}


def _adversarial_of(
    rows: dict[Item, dict[str, float | np.ndarray]], predictor: Predictor, clean: Outcome
) -> Adversarial:
    items = sorted(rows, key=lambda item: (item[0], item[1] != "linf", item[2]))
    attack, norm, epsilon = zip(*items, strict=True)
    return Adversarial(
        attack=np.array(attack),
        norm=np.array(norm),
        epsilon=np.array(epsilon),
        images=predictor.images,
        clean_accuracy=clean.metrics.accuracy,
        clean_accuracy_stderr=clean.metrics.accuracy_stderr,
        clean_nll=clean.metrics.mean_nll,
        group_images=predictor.group_images(),
        group_clean_correct=clean.group_correct,
        **{name: np.array([rows[item][name] for item in items]) for name in _ROW},
    )
