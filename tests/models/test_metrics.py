"""Metrics are sums over images, and evaluating leaves no trace."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from models import Metrics, get_model
from models.metrics import evaluate
from models.randomness import derived_seed, fixed_randomness


def random_batch(count=200, classes=10, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator)


def with_confidence(*confidences):
    """Log-probabilities over 100 classes whose largest, of class 0, are these."""
    p = torch.tensor(confidences, dtype=torch.float64)
    rest = ((1 - p) / 99)[:, None].expand(-1, 99)
    return torch.cat([p[:, None], rest], dim=1).log()


def test_sums_of_three_images_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
    metrics = Metrics.of(p.log(), torch.tensor([0, 1, 2]))
    losses = [-math.log(0.7), -math.log(0.4), -math.log(0.6)]
    assert metrics.count == 3
    assert metrics.correct == 2
    assert metrics.nll == pytest.approx(sum(losses), rel=1e-14)
    assert metrics.nll_sq == pytest.approx(sum(loss**2 for loss in losses), rel=1e-14)
    assert metrics.mean_nll == pytest.approx(np.mean(losses), rel=1e-14)
    assert metrics.nll_stderr == pytest.approx(np.std(losses, ddof=1) / math.sqrt(3), rel=1e-12)
    assert metrics.accuracy == pytest.approx(2 / 3)
    assert metrics.accuracy_stderr == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 3))
    # Each image alone in its bin: |1 - .7| + |0 - .5| + |1 - .6|, over 3.
    assert metrics.ece == pytest.approx((0.3 + 0.5 + 0.4) / 3, rel=1e-14)


def test_numbers_equal_the_textbook_formulas():
    logits, labels = random_batch()
    metrics = Metrics.of(logits.log_softmax(1), labels)
    p, y = logits.softmax(1).numpy(), labels.numpy()
    losses = -np.log(p[np.arange(len(y)), y])
    confidence, right = p.max(1), p.argmax(1) == y
    ece = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        assert metrics.bin_count[k] == inside.sum()
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.mean_nll == pytest.approx(losses.mean(), rel=1e-12)
    assert metrics.nll_stderr == pytest.approx(losses.std(ddof=1) / math.sqrt(len(y)), rel=1e-9)
    assert metrics.accuracy == right.mean()
    assert metrics.ece == pytest.approx(ece, rel=1e-12)


def test_numbers_equal_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels = random_batch()
    metrics = Metrics.of(logits.log_softmax(1), labels)
    p = logits.softmax(1).numpy()
    assert metrics.mean_nll == pytest.approx(sklearn.log_loss(labels, p, labels=range(10)), rel=1e-9)
    assert metrics.accuracy == sklearn.accuracy_score(labels, p.argmax(1))


def test_confidence_one_counts_in_the_last_bin_and_in_its_confidence():
    # The reference counted such images but added none of their confidence: ECE .01 where it is .99.
    logits = torch.tensor([[1e4, 0.0]]).log_softmax(1)
    metrics = Metrics.of(logits, torch.tensor([1]))
    assert metrics.bin_count.tolist() == [0] * 14 + [1]
    assert metrics.bin_confidence[-1] == 1.0
    assert metrics.ece == 1.0


def test_a_log_probability_rounded_above_zero_counts_as_confidence_one():
    metrics = Metrics.of(torch.tensor([[1e-7, -20.0]]), torch.tensor([0]))
    assert metrics.bin_confidence[-1] == 1.0


@pytest.mark.parametrize("k", range(1, 16))
def test_confidence_exactly_on_an_edge_belongs_to_the_bin_below(k):
    edge = k / 15
    metrics = Metrics.of(with_confidence(edge), torch.tensor([0]))
    assert metrics.bin_count.argmax() == k - 1


@pytest.mark.parametrize("k", range(1, 15))
def test_confidences_beside_an_edge_fall_on_its_two_sides(k):
    metrics = Metrics.of(with_confidence(k / 15 - 1e-12, k / 15 + 1e-12), torch.tensor([0, 0]))
    assert metrics.bin_count[k - 1] == 1
    assert metrics.bin_count[k] == 1


def test_float32_and_bfloat16_are_summed_in_float64():
    logits, labels = random_batch(count=1000)
    for dtype in (torch.float32, torch.bfloat16):
        narrow = logits.log_softmax(1).to(dtype)
        metrics, wide = Metrics.of(narrow, labels), Metrics.of(narrow.double(), labels)
        assert metrics.nll == wide.nll
        assert metrics.nll_sq == wide.nll_sq
        assert metrics.ece == wide.ece


def test_sums_over_uneven_batches_add_up_to_the_whole():
    logits, labels = random_batch(count=103)
    log_p = logits.log_softmax(1)
    whole = Metrics.of(log_p, labels)
    parts = [Metrics.of(a, b) for a, b in zip(log_p.split(20), labels.split(20), strict=True)]
    merged = sum(parts[1:], parts[0])
    assert (merged.count, merged.correct) == (whole.count, whole.correct)
    assert merged.bin_count.tolist() == whole.bin_count.tolist()
    for name in ("mean_nll", "nll_stderr", "accuracy", "accuracy_stderr", "ece"):
        # The order of at most 103 additions differs.
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_negative_log_likelihood_is_finite_where_softmax_underflows():
    logits = torch.tensor([[2000.0, 0.0]])
    assert logits.softmax(1)[0, 1] == 0
    assert Metrics.of(logits.log_softmax(1), torch.tensor([1])).mean_nll == 2000.0


def test_one_image_has_no_spread():
    metrics = Metrics.of(with_confidence(0.5), torch.tensor([0]))
    assert metrics.nll_stderr == 0
    assert metrics.accuracy_stderr == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_shows_in_every_number_made_of_it(bad):
    log_p = torch.tensor([[-bad, -1.0], [-0.1, -3.0]])
    metrics = Metrics.of(log_p, torch.tensor([0, 0]))
    assert not math.isfinite(metrics.mean_nll)
    assert not math.isfinite(metrics.nll_stderr)
    assert math.isnan(metrics.ece) == math.isnan(bad)


def test_the_summary_is_plain_numbers():
    logits, labels = random_batch()
    summary = Metrics.of(logits.log_softmax(1), labels).summary()
    assert list(summary) == ["images", "nll", "nll_stderr", "accuracy", "accuracy_stderr", "ece"]
    assert all(type(value) in (int, float) for value in summary.values())


class Probe(nn.Module):
    """Random logits, dropout that eval mode turns off, and a normalisation with running statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        self.seen.append(self.training or self.norm.training)
        return self.dropout(self.norm(x)) + torch.randn(len(x), 4)


def probe_batches(sizes=(3, 5, 2)):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.arange(n) % 4) for n in sizes]


def test_evaluation_is_in_eval_mode_and_gives_every_mode_back():
    model = Probe().train()
    model.norm.eval()
    running = model.norm.running_mean.clone()
    evaluate(model, probe_batches())
    assert not any(model.seen)
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    assert torch.equal(model.norm.running_mean, running)


def test_evaluation_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    evaluate(Probe(), probe_batches(), passes=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exception_in_the_middle_restores_modes_and_random_state():
    class Fails(Probe):
        def forward(self, x):
            if len(self.seen) == 1:
                raise RuntimeError("boom")
            return super().forward(x)

    model = Fails().train()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="boom"):
        evaluate(model, probe_batches())
    assert model.training
    assert model.norm.training
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_the_images_of_each_batch():
    reported = []
    evaluate(get_model("alexnet_dnn", width=4, hidden=8), image_batches(), progress=reported.append)
    assert reported == [4, 3]


def image_batches():
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 10) for n in (4, 3)]


@pytest.fixture(scope="module")
def mcdo():
    with fixed_randomness("cpu", 0):
        return get_model("resnet_mcdo_18", width=4)


def test_a_seed_decides_all_masks(mcdo):
    first, again = (evaluate(mcdo, image_batches(), passes=3, seed=1) for _ in range(2))
    assert first.nll == again.nll
    assert first.bin_confidence.tolist() == again.bin_confidence.tolist()
    assert evaluate(mcdo, image_batches(), passes=3, seed=2).nll != first.nll


def test_many_passes_average_probabilities_drawn_from_seed_pass_and_batch(mcdo):
    metrics = evaluate(mcdo, image_batches(), passes=20, seed=5)
    mcdo.eval()
    nll = 0.0
    for index, (x, y) in enumerate(image_batches()):
        p = 0
        for number in range(20):
            with torch.no_grad(), fixed_randomness("cpu", 5, number, index):
                p = p + mcdo(x).double().softmax(1) / 20
        nll -= p.gather(1, y[:, None]).log().sum().item()
    # Logits are float32, but the same ones on both sides.
    assert metrics.nll == pytest.approx(nll, rel=1e-12)
    assert metrics.nll != pytest.approx(evaluate(mcdo, image_batches(), passes=1, seed=5).nll, rel=1e-6)


def test_passes_of_a_deterministic_network_change_nothing():
    model = get_model("alexnet_dnn", width=4, hidden=8)
    one, many = (evaluate(model, image_batches(), passes=passes).nll for passes in (1, 20))
    assert one == pytest.approx(many, rel=1e-12)


def test_nan_logits_are_not_hidden():
    class Broken(nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 4)
            logits[0, 0] = math.nan
            return logits

    metrics = evaluate(Broken(), probe_batches(), passes=2)
    assert all(math.isnan(metrics.summary()[name]) for name in ("nll", "nll_stderr", "ece"))


def test_nothing_to_evaluate_is_an_error():
    model = Probe().train()
    with pytest.raises(ValueError, match="no image"):
        evaluate(model, [])
    assert model.training


def test_fixed_randomness_gives_equal_draws_for_equal_counters():
    def draw(*counters):
        with fixed_randomness("cpu", *counters):
            return torch.randn(4).tolist()

    assert draw(3, 1, 4) == draw(3, 1, 4)
    draws = [draw(3, 1, 4), draw(4, 1, 3), draw(3, 1, 5), draw(2, 1, 4)]
    assert len({tuple(d) for d in draws}) == 4


def test_fixed_randomness_gives_the_state_back_also_after_an_exception():
    before = torch.get_rng_state()
    with fixed_randomness("cpu", 1):
        torch.randn(10)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="boom"), fixed_randomness("cpu", 1):
        torch.randn(10)
        raise RuntimeError("boom")
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_randomness_nests():
    with fixed_randomness("cpu", 1):
        torch.randn(2)
        with fixed_randomness("cpu", 2):
            torch.randn(3)
        inner = torch.randn(2)
    with fixed_randomness("cpu", 1):
        torch.randn(2)
        assert torch.equal(torch.randn(2), inner)


def test_derived_seeds_of_a_grid_of_counters_are_distinct():
    seeds = {derived_seed(0, i, j) for i in range(40) for j in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**64 for seed in seeds)
