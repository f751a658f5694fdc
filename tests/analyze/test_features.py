"""Sums over images, and the walk over batches, passes and members."""

import numpy as np
import pytest
import torch
from maps import noise_subject, zoo_net
from torch import nn

from analyze.features import pieces, side_by_side, squared_norm, walk
from analyze.layered import change, ratio
from analyze.layers import find_layers
from analyze.moments import Moments
from analyze.results import GROUPS
from models.ensemble import Ensemble


def values(images: int = 150) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, size=(images, 2, 4))


def test_mean_and_standard_error_are_numpys_however_the_images_are_split():
    found = values()
    for sizes in ([150], [64, 64, 22], [1, 149], [50, 99, 1]):
        starts = np.cumsum([0, *sizes[:-1]])
        parts = [Moments.of(found[a : a + n], a) for a, n in zip(starts.tolist(), sizes, strict=True)]
        total = sum(parts[1:], parts[0])
        # float64 sums of 150 numbers near 3
        assert np.allclose(total.mean, found.mean(0), rtol=1e-13)
        assert np.allclose(total.stderr, found.std(0, ddof=1) / np.sqrt(150), rtol=1e-12)
        for group in range(GROUPS):
            assert np.allclose(total.samples[group], found[group::GROUPS].mean(0), rtol=1e-13)
            assert (total.images[group] == len(found[group::GROUPS])).all()


def test_images_without_values_and_values_that_a_layer_lacks_are_left_out():
    found = values(10)
    found[:, 0, 3] = np.nan
    counted = np.ones((10, 2), dtype=bool)
    counted[4, 1] = False
    found[4, 1] = np.nan
    moments = Moments.of(found, 0, counted)
    assert moments.count.tolist() == [10, 9]
    rest = np.delete(found[:, 1], 4, axis=0)
    assert np.allclose(moments.mean[1], rest.mean(0))
    assert np.allclose(moments.stderr[1], rest.std(0, ddof=1) / 3)
    assert np.isnan(moments.mean[0, 3]) and np.isfinite(moments.mean[0, :3]).all()
    assert np.isnan(moments.samples[4, 1]).all()


def test_what_is_no_number_stays_so():
    found = values(10)
    found[3, 0, 0] = np.nan
    found[3, 0, 1] = np.inf
    moments = Moments.of(found, 0)
    assert np.isnan(moments.mean[0, 0]) and np.isinf(moments.mean[0, 1])
    assert np.isfinite(moments.mean[1]).all()


def test_one_image_has_no_standard_error():
    moments = Moments.of(values(1), 0)
    assert np.isfinite(moments.mean).all() and np.isnan(moments.stderr).all()


def test_errors_of_ratios_and_changes_are_those_of_repeated_experiments():
    """The spread over 400 experiments of 128 images in which b is a function of a and noise."""
    rng = np.random.default_rng(0)
    ratios, changes = [], []
    for _ in range(400):
        a = rng.gamma(4.0, size=128)
        b = 0.4 * a * rng.normal(1.0, 0.1, size=128)
        moments = Moments.of(np.stack([a, b], axis=1)[..., None], 0)
        ratios.append(ratio(moments.total[:, 0, 0], moments.total[:, 1, 0]))
        changes.append(change(moments, 0, 0, 1))
    for found, truth in ((np.array(ratios), 0.4), (np.array(changes), -2.4)):
        spread = found[:, 0].std(ddof=1)
        assert abs(found[:, 0].mean() - truth) < 4 * spread / 20
        # a standard deviation from 400 has a relative error of 3.5 %, from 64 groups 9 % each, averaged here
        assert np.isclose(np.sqrt((found[:, 1] ** 2).mean()), spread, rtol=0.15)


@pytest.mark.parametrize("dim", [(1, 2, 3), (2, 3)])
def test_sums_of_squares_of_large_maps_lose_no_digits(dim):
    maps = 1 + torch.rand(2, 2, 224, 224, generator=torch.Generator().manual_seed(0))
    exact = maps.double().square().sum(dim)
    assert ((squared_norm(maps, dim) / exact - 1).abs() < 3e-7).all()  # added up one by one: 1e-6 and more
    assert not ((torch.linalg.vector_norm(maps, dim=dim).double().square() / exact - 1).abs() < 3e-7).all()


def test_a_ratio_to_nothing_is_none():
    assert np.isnan(ratio(np.zeros(4), np.ones(4))).all()


class Recorder:
    """Which realisations came, with the sum of each."""

    def __init__(self, images, log):
        self.images, self.log = images, log

    def add(self, position, maps):
        self.log.append((self.images, position, maps.sum().item()))

    def sums(self, first):
        return np.array([first, self.images])


def test_realisations_come_pass_by_pass_and_member_by_member():
    nets = [zoo_net("resnet_mcdo_18", seed) for seed in (0, 1)]
    subject = noise_subject(Ensemble(nets), sizes=(4, 2))
    layers = find_layers(subject, ("layer2.0",))
    log, stands = [], []
    for stand in walk(subject, layers, 2, lambda images: Recorder(images, log)):
        stands.append(stand)
    expected = []
    for index, (x, _) in enumerate(subject.data):
        for number in range(2):
            sums = []
            hooks = [
                net.layer2[0].register_forward_hook(lambda m, i, o, sums=sums: sums.append(o.sum().item()))
                for net in nets
            ]
            subject.outputs(x, index, number)
            for hook in hooks:
                hook.remove()
            expected += [(len(x), 0, found) for found in sums]
    assert log == expected
    assert [(stand.batches, stand.images) for stand in stands] == [(1, 4), (2, 6)]
    assert stands[-1].sums.tolist() == [0 + 4, 4 + 2]


def test_a_walk_goes_on_where_it_stands():
    subject = noise_subject(zoo_net("resnet_dnn_18"), sizes=(2, 2, 1))
    layers = find_layers(subject, ("layer1.0",))
    stands = list(walk(subject, layers, 1, lambda images: Recorder(images, [])))
    rest = list(walk(subject, layers, 1, lambda images: Recorder(images, []), stand=stands[0]))
    assert [(s.batches, s.images, s.sums.tolist()) for s in rest] == [
        (s.batches, s.images, s.sums.tolist()) for s in stands[1:]
    ]


def test_progress_counts_passes():
    subject = noise_subject(zoo_net("resnet_mcdo_18"), sizes=(2, 1))
    seen = []
    layers = find_layers(subject, ("layer1.0",))
    walk_ = walk(subject, layers, 3, lambda images: Recorder(images, []), progress=lambda *told: seen.append(told[1:3]))
    assert len(list(walk_)) == 2
    assert seen == [(done, 6) for done in range(7)]


@pytest.mark.parametrize("shape", [(7, 3, 300, 300), (64, 16, 9, 9), (1, 1, 1, 1)])
def test_pieces_are_all_images_once(shape):
    maps = torch.zeros(shape)
    rows = torch.cat([torch.arange(shape[0])[piece] for piece in pieces(maps)])
    assert rows.tolist() == list(range(shape[0]))


def test_layers_of_different_length_stand_side_by_side():
    found = side_by_side([torch.ones(2, 3), torch.zeros(2, 1)])
    assert np.array_equal(found[0], [[1, 1, 1], [0, np.nan, np.nan]], equal_nan=True)


def test_half_precision_maps_are_measured_in_single():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16 * 16, 3)).to(torch.bfloat16)
    subject = noise_subject(model, sizes=(2,))
    dtypes = []

    class Dtypes(Recorder):
        def add(self, position, maps):
            dtypes.append((maps.dtype, maps.is_contiguous()))

    list(walk(subject, find_layers(subject, ("0",)), 1, lambda images: Dtypes(images, [])))
    assert dtypes == [(torch.float32, True)]
