"""Which landscapes may be put together, and what is kept of each."""

from dataclasses import replace

import numpy as np
import pytest
from surfaces import IMAGES, surface

from analyze.landscape.merge import merge
from analyze.landscape.spec import Prescan
from data_cache import InputError

NINE = np.linspace(0, 2, 9)


def part(images: str, data: str = "fashion_mnist:train", **changes):
    """A landscape of the set of images with this hash."""
    result = surface(points=(5, 5))
    about = {**result.subject, "data": data, "data_sha256": images, "batch_size": 128, "model_args": {}}
    return replace(result, **changes).of(result.config, about)


def test_limits_of_one_split_share_images_and_do_not_add_up():
    halves = part("a", "fashion_mnist:train"), part("b", "fashion_mnist:test")
    merged = merge(halves)
    assert merged.subject["images"] == 2 * IMAGES and (merged.count == 2 * IMAGES).all()
    for other in (part("c", "fashion_mnist:train"), part("c", "fashion_mnist:test")):
        for pair in ((merged, other), (other, merged), (halves[0], replaced(other, halves[0]))):
            with pytest.raises(InputError, match="images of fashion_mnist:t.*nothing adds up"):
                merge(pair)


def replaced(other, like):
    """The same images under the name of the split of another landscape."""
    return other.of(other.config, {**other.subject, "data": like.subject["data"]})


@pytest.mark.parametrize("name", ["user data", "arrays"])
def test_disjoint_images_from_python_add_up_though_they_have_no_names(name):
    merged = merge([part("a", name), part("b", name), part("c", name)])
    assert merged.subject["images"] == 3 * IMAGES
    with pytest.raises(InputError, match="in common"):
        merge([merged, part("c", name)])


def test_recomputed_batchnorm_is_of_other_networks_where_images_differ():
    parts = [part(name, "user data", arithmetic="float32, as it is, BatchNorm recomputed") for name in "ab"]
    with pytest.raises(InputError, match="BatchNorm was recomputed from other images"):
        merge(parts)
    frames = [replace(parts[0], frame=np.array([f]), stochastic=True) for f in (0, 1)]
    merged = merge([frame.of(parts[0].config, parts[0].subject) for frame in frames])
    assert merged.frame.tolist() == [0, 1]


def test_the_prescan_of_some_of_the_images_is_not_that_of_all():
    scan = Prescan(NINE, NINE, NINE, NINE, 2.3, 1.1)
    assert merge([part("a", "user data", prescan=scan), part("b", "user data", prescan=scan)]).prescan is None


def test_directions_are_kept_if_any_of_both_has_them():
    kept = part("a", "user data")
    bare = part("b", "user data", direction_x={}, direction_y={})
    for pair in ((kept, bare), (bare, kept)):
        merged = merge(pair)
        for axis in ("direction_x", "direction_y"):
            np.testing.assert_array_equal(getattr(merged, axis)["weight"], getattr(kept, axis)["weight"])
        assert merged.config["keep_directions"]
    assert not merge([bare, replaced_hash(bare)]).config["keep_directions"]


def replaced_hash(result):
    return result.of(result.config, {**result.subject, "data_sha256": "other"})
