"""The max-eigenvalue spectrum against dense Hessians of each mini-batch, and its independence of the order of work."""

import gc

import numpy as np
import pytest
import torch
from cases import conv_net, mlp
from torch import nn

from analyze import Subject, hessian
from analyze.hessian import spectrum
from analyze.hessian.spec import Config
from data_cache import ImageData, InputError

OPTIONS = {"parts": ("max-spectrum",), "minibatch": 8, "top": 3, "spectrum_tolerance": 1e-6, "warm_start": True}


def images(n: int = 30, shape: tuple[int, int, int] = (2, 7, 5)) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return ImageData.from_arrays(pixels, torch.randint(0, 3, (n,), generator=generator), name="noise")


def subject(model=conv_net, data: ImageData | None = None, dtype: torch.dtype = torch.float64, **options) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = model().to(dtype)
    return Subject(net, images() if data is None else data, weight_decay=0.1, limit=4, **options)


def dense_eigenvalues(whole: Subject, number: int, size: int) -> np.ndarray:
    """Of the float64 Hessian of one mini-batch's regularised loss, ascending."""
    part = whole.minibatch(number, size)
    (batch,) = part.data
    names, weights = zip(*part.parameters.items(), strict=True)
    sizes = [weight.numel() for weight in weights]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = [p.view_as(w) for p, w in zip(flat.split(sizes), weights, strict=True)]
        data_loss = part.batch_loss(dict(zip(names, pieces, strict=True)), batch, 0, number)
        return data_loss + part.weight_decay / 2 * flat @ flat

    flat = torch.cat([weight.detach().double().reshape(-1) for weight in weights])
    return np.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat).numpy())


@pytest.mark.parametrize("warm_start", [False, True])
def test_each_minibatch_has_the_eigenvalues_of_its_dense_hessian(warm_start):
    whole = subject()
    found = hessian.compute(whole, Config(**OPTIONS | {"warm_start": warm_start}, batches=4)).max_spectrum
    for number in range(4):
        true = dense_eigenvalues(whole, number, 8)
        # tolerance 1e-6 on the residual: the error of an eigenvalue is at most the residual
        assert np.all(np.abs(found.largest[number] - true[:-4:-1]) <= found.largest_residual[number] + 1e-12)
        assert abs(found.smallest[number] - true[0]) <= found.smallest_residual[number] + 1e-12
        assert np.all(found.largest_residual[number] <= 1e-6 * np.abs(true).max())
    assert found.converged.all()
    assert np.all(found.images == 8)


def test_by_magnitude_it_has_the_eigenvalues_farthest_from_zero():
    whole = subject()
    found = hessian.compute(whole, Config(**OPTIONS, batches=3, which="magnitude")).max_spectrum
    for number in range(3):
        true = dense_eigenvalues(whole, number, 8)
        farthest = true[np.argsort(-np.abs(true))][:3]
        assert np.allclose(found.largest[number], farthest, rtol=0, atol=2e-6 * np.abs(true).max())
    assert np.isnan(found.smallest).all()


def test_scalars_are_of_all_ranks():
    found = hessian.compute(subject(), Config(**OPTIONS, batches=3, which="magnitude")).max_spectrum
    assert found.share_below_zero == np.mean(found.largest < 0)
    assert found.mean_positive == found.largest[found.largest > 0].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_minibatches_added_later_give_the_same_bits(dtype):
    config = {**OPTIONS, "spectrum_tolerance": 1e-3}
    at_once = hessian.compute(subject(dtype=dtype), Config(**config, batches=5))
    first = hessian.compute(subject(dtype=dtype), Config(**config, batches=2))
    later = hessian.compute(subject(dtype=dtype), Config(**config, batches=5), previous=first)
    for name in ("batch", "largest", "largest_residual", "smallest", "smallest_residual", "hvps", "loss"):
        assert np.array_equal(getattr(at_once.max_spectrum, name), getattr(later.max_spectrum, name)), name


def test_each_saved_step_has_one_minibatch_more():
    counts = []
    hessian.compute(
        subject(),
        Config(**OPTIONS, batches=3),
        save=lambda r: r.max_spectrum and counts.append(len(r.max_spectrum.batch)),
    )
    assert counts == [1, 2, 3]


def test_an_epoch_visits_each_image_at_most_once_and_the_next_in_another_order():
    data = images(30, (1, 1, 1))
    pixels = torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1, 1)
    data = ImageData.from_arrays(pixels, torch.zeros(30, dtype=torch.int64), classes=("a", "b", "c"))
    whole = Subject(nn.Sequential(nn.Flatten(), nn.Linear(1, 3)).double(), data, limit=2)

    def seen(number: int) -> list[int]:
        ((x, _),) = whole.minibatch(number, 8, augmented=False).data
        return (x.reshape(-1) * 255).round().int().tolist()

    first, second = [[seen(3 * epoch + place) for place in range(3)] for epoch in range(2)]
    assert len({image for batch in first for image in batch}) == 24
    assert first != second
    assert seen(4) == second[1]  # a function of the number alone


def test_augmentation_moves_the_pixels_and_not_the_labels():
    whole = subject()
    ((plain, labels),) = whole.minibatch(0, 8, augmented=False).data
    ((moved, same),) = whole.minibatch(0, 8).data
    assert torch.equal(labels, same)
    assert not torch.equal(plain, moved)


def test_a_loader_s_own_batches_are_taken_as_they_are():
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 6, generator=generator).double(), torch.randint(0, 3, (n,))) for n in (5, 3)]
    torch.manual_seed(0)
    whole = Subject(mlp().double(), batches)
    found = hessian.compute(whole, Config(**OPTIONS, batches=16)).max_spectrum
    assert found.images.tolist() == [5, 3]
    alone = hessian.compute(Subject(whole.model, batches[1:]), Config(parts=("extremes",), largest=3, tolerance=1e-6))
    assert np.allclose(found.largest[1], alone.extremes.largest, rtol=1e-9)


def test_the_guess_does_not_hide_an_eigenvector_that_it_lacks():
    """Mini-batches whose Hessians have disjoint supports: the guess from the first knows nothing of the second."""

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(12, dtype=torch.float64))

        def forward(self, x):
            return (x * self.weight**2).sum(1, keepdim=True)

    scales = torch.arange(1.0, 7.0, dtype=torch.float64)
    nothing = torch.zeros(6, dtype=torch.float64)
    rows = [torch.cat([scales, nothing])[None], torch.cat([nothing, scales])[None]]
    batches = [(row, torch.zeros(1)) for row in rows]
    whole = Subject(Split(), batches, loss=lambda out, y: out.mean())
    found = hessian.compute(whole, Config(**OPTIONS, batches=2)).max_spectrum
    # the Hessian is diag(2 x)
    assert np.allclose(found.largest, [[12, 10, 8]] * 2, rtol=1e-9)


def test_other_data_than_those_in_the_file_are_refused():
    first = hessian.compute(subject(), Config(**OPTIONS, batches=1))
    with pytest.raises(InputError, match="mini-batches in the run file are of noise"):
        hessian.compute(subject(data=images(29)), Config(**OPTIONS, batches=2), previous=first)


def test_nothing_grows_over_fifty_minibatches():
    whole = subject(mlp, images(400, (1, 2, 3)), torch.float32)
    sizes = []

    def live() -> int:
        gc.collect()
        return sum(type(found) is torch.Tensor for found in gc.get_objects())

    for _ in spectrum.grow(whole, Config(**{**OPTIONS, "spectrum_tolerance": 1e-2}, batches=50)):
        sizes.append(live())
    assert len(sizes) == 50
    # after the first, which is kept as the guess, each leaves nothing behind
    assert max(sizes[1:]) == min(sizes[1:])
