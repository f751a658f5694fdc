"""What the papers say of the Hessian's largest eigenvalues, on the shipped networks."""

import numpy as np
import pytest

from analyze import Subject
from analyze.hessian import spectrum
from analyze.hessian.spec import Config


def largest(name: str) -> np.ndarray:
    """Of four mini-batches of 32 augmented training images, the same for every network, weight decay included."""
    config = Config(minibatch=32, batches=4, top=1, which="magnitude", spectrum_tolerance=5e-2)
    *_, found = spectrum.grow(Subject.load(name, device="cpu"), config)
    assert found.converged.all()
    return found.largest[:, 0]


@pytest.fixture(scope="module")
def gap() -> np.ndarray:
    return largest("resnet_mcdo_18")


def test_an_mlp_classifier_has_larger_eigenvalues_than_global_average_pooling(gap):
    assert largest("resnet_mcdo_18_mlp").mean() > gap.mean()


@pytest.mark.xfail(strict=True, reason="at width 16, on 10 000 images of Fashion-MNIST, smoothing raises them")
def test_spatial_smoothing_lowers_the_largest_eigenvalues(gap):
    assert largest("resnet_mcdo_smoothing_18").mean() < gap.mean()
