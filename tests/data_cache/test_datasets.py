"""Data sets by name: their content, their order, and what happens when files or words are wrong."""

import gzip
import pickle
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy import io as scipy_io

from data_cache import ImageData, InputError, augment, embed, load, normalize, paths
from data_cache.folders import decode_image

needs_debian = pytest.mark.skipif(
    not embed.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
SHA256 = {
    "train": "26b87ac66c30858c497fe0774cee0e1eda770eca200795d46a63b1a1f3af38bc",
    "test": "38813af4f81ef14d9feda5fbadd0c680b1007d6d6c0357e35568d5c32aff63ec",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test, and no network."""

    def unreachable(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def small():
    """Ten distinct odd-sized images with labels 0, 1, 2."""
    images = torch.randint(256, (10, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData.from_arrays(images, torch.arange(10) % 3, name="small", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))


def sentence(error):
    """The message of a caught InputError, which must be one line."""
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


# The embedded Fashion-MNIST


@pytest.mark.parametrize("split", ["train", "test"])
def test_embedded_content_never_changes(split):
    data = load("fashion_mnist", split)
    assert data.sha256() == SHA256[split]
    assert len(data) == 10_000 and data.shape == (3, 32, 32) and data.spec == f"fashion_mnist:{split}"
    assert (data.indices == np.arange(10_000)).all() and data.indices.dtype == np.int64
    assert len(data.classes) == 10 and data.classes[9] == "Ankle boot"
    assert data.labels[:4].tolist() == {"train": [9, 0, 0, 3], "test": [9, 2, 1, 1]}[split]  # as published


@needs_debian
@pytest.mark.parametrize(("split", "part", "count"), [("train", "train", 10_000), ("test", "t10k", 10_000)])
def test_embedded_files_equal_the_published_ones(split, part, count):
    images, labels = embed.read(split)
    # Parsed here by header offsets alone, not by the code under test.
    raw = {
        kind: np.frombuffer(gzip.decompress((embed.DEBIAN / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8)
        for kind in ("images-idx3", "labels-idx1")
    }
    assert (images == raw["images-idx3"][16:].reshape(-1, 28, 28)[:count]).all()
    assert (labels == raw["labels-idx1"][8:][:count]).all()


@needs_debian
def test_full_split_continues_train_and_has_the_published_mean_and_std():
    full, train = load("fashion_mnist", "full"), load("fashion_mnist", "train")
    assert len(full) == 60_000 and torch.bincount(full.labels).tolist() == [6000] * 10
    rows = range(10_000)
    for a, b in zip(full.read(rows), train.read(rows), strict=True):
        assert torch.equal(a, b)
    inner = full.source.images[:, 0, 2:30, 2:30]
    frequency = np.bincount(inner.numpy().ravel(), minlength=256) / inner.numel()
    value = np.arange(256) / 255
    mean = frequency @ value
    std = (frequency @ (value - mean) ** 2) ** 0.5
    assert full.mean == (pytest.approx(mean, abs=5e-5),) * 3
    assert full.std == (pytest.approx(std, abs=5e-5),) * 3


def test_grey_images_are_padded_by_two_and_repeated():
    images, _ = load("fashion_mnist", "test").read([5, 0])
    grey = torch.from_numpy(embed.read("test")[0][[5, 0]])
    assert images.dtype == torch.uint8
    for channel in range(3):
        assert torch.equal(images[:, channel, 2:30, 2:30], grey)
    images[:, :, 2:30, 2:30] = 0
    assert images.sum() == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "longer", "other split"])
def test_damaged_embedded_file_is_refused(damage, cache):
    original = paths.shipped() / "datasets" / "fashion_mnist" / "train.xz"
    data = original.read_bytes()
    wrong = bytearray(data)
    wrong[len(data) // 2] ^= 1
    target = cache / "datasets" / "fashion_mnist" / "train.xz"
    target.parent.mkdir(parents=True)
    target.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "flipped": bytes(wrong),
            "empty": b"",
            "foreign": b"PK\x03\x04" * 100,
            "longer": embed.lzma.compress(bytes(7_900_000)),
            "other split": original.with_name("test.xz").read_bytes(),
        }[damage]
    )
    with pytest.raises(InputError) as error:
        load("fashion_mnist")
    assert str(target) in sentence(error) and "delete it" in sentence(error)


@pytest.mark.parametrize("content", [None, b"\xfd7zXZ\0 and no more"])
def test_missing_or_damaged_file_of_the_checkout_says_git_checkout(content, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "shipped", lambda: tmp_path)
    target = tmp_path / "datasets" / "fashion_mnist" / "train.xz"
    if content is not None:
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
    with pytest.raises(InputError) as error:
        load("fashion_mnist")
    assert f"`git checkout -- {target}`" in sentence(error)


@needs_debian
@pytest.mark.parametrize("split", ["train", "test"])
def test_without_a_checkout_the_same_images_come_from_the_published_files(split, monkeypatch):
    monkeypatch.setattr(paths, "shipped", lambda: None)
    assert load("fashion_mnist", split).sha256() == SHA256[split]


@needs_debian
def test_embed_remakes_the_embedded_content(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "shipped", lambda: tmp_path)
    monkeypatch.setattr(embed, "_FILTERS", [{"id": embed.lzma.FILTER_LZMA2, "preset": 0}])  # fast
    (tmp_path / "datasets" / "fashion_mnist").mkdir(parents=True)
    embed.main([])
    for split in ("train", "test"):
        images, labels = embed.decode((tmp_path / "datasets" / "fashion_mnist" / f"{split}.xz").read_bytes())
        assert embed.content_sha256(images, labels) == embed.SHA256[split]


@pytest.mark.parametrize("arguments", [["--help"], ["a", "b"], ["/no/such/folder"]])
def test_embed_refuses_bad_arguments(arguments):
    with pytest.raises(InputError):
        embed.main(arguments)


# Published sets through torchvision


def write_idx(path, array, compress=False):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") if compress else path.open("wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def tiny_mnist(cache):
    """MNIST's four files as torchvision lays them out, with 6 images each."""
    raw = cache / "datasets" / "MNIST" / "raw"
    images = np.random.default_rng(0).integers(256, size=(6, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(6, dtype=np.uint8))
    return raw, images


def test_mnist_is_read_from_torchvisions_files(tiny_mnist):
    data = load("mnist:test", download=False)
    images, labels = data.read(range(6))
    assert (images[:, 1, 2:30, 2:30].numpy() == tiny_mnist[1]).all()
    assert images.shape == (6, 3, 32, 32) and labels.tolist() == list(range(6)) and labels.dtype == torch.int64
    assert data.classes == tuple("0123456789") and data.mean == (0.1307,) * 3 and data.std == (0.3081,) * 3


def test_truncated_mnist_is_one_sentence(tiny_mnist):
    path = tiny_mnist[0] / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError) as error:
        load("mnist")
    assert str(paths.root() / "datasets") in sentence(error)


@pytest.mark.parametrize(("name", "label_key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_keeps_channels_rows_and_columns_apart(name, label_key, cache, monkeypatch):
    kind = getattr(torchvision.datasets, name.upper())
    folder = cache / "datasets" / kind.base_folder
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    batch = {"data": images.reshape(4, -1), label_key: [3, 1, 0, 2]}
    (folder / "batch").write_bytes(pickle.dumps(batch))
    names = [f"class {i}" for i in range(10)]
    (folder / "meta").write_bytes(pickle.dumps({kind.meta["key"]: names}))
    for what in ("train_list", "test_list"):
        monkeypatch.setattr(kind, what, [["batch", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": kind.meta["key"], "md5": None})
    data = load(name, "test", download=False)
    result, labels = data.read(range(4))
    assert (result.numpy() == images).all() and labels.tolist() == [3, 1, 0, 2]
    assert data.classes == tuple(names)


@pytest.mark.parametrize("split", ["train", "test", "extra"])
def test_svhn_keeps_channels_rows_and_columns_apart(split, cache, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    (cache / "datasets").mkdir(parents=True)
    labels = np.array([[10], [1], [2], [9]], np.uint8)  # the files write 0 as 10
    scipy_io.savemat(cache / "datasets" / "set.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {split: ["", "set.mat", None]})
    result, labels = load("svhn", split, download=False).read(range(4))
    assert (result.numpy() == images).all() and labels.tolist() == [0, 1, 2, 9]


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn:extra"])
def test_absent_set_without_a_network_is_one_sentence_and_quiet(name, download, cache, capsys):
    with pytest.raises(InputError) as error:
        load(name, download=download)
    assert str(cache / "datasets") in sentence(error)
    assert ("network" in sentence(error)) == download
    assert capsys.readouterr().out == ""


def test_full_fashion_mnist_without_debians_package_is_looked_for_in_torchvisions_folder(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "DEBIAN", tmp_path / "absent")
    with pytest.raises(InputError) as error:
        load("fashion_mnist:full")
    assert "torchvision.datasets.FashionMNIST" in sentence(error)
    raw = cache / "datasets" / "FashionMNIST" / "raw"
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((6, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.zeros(6, np.uint8))
    with pytest.raises(InputError, match="other full images than those published"):
        load("fashion_mnist:full")


@needs_debian
def test_full_fashion_mnist_is_the_same_through_torchvisions_folder(cache, tmp_path, monkeypatch):
    raw = cache / "datasets" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in embed.DEBIAN.glob("*.gz"):
        with gzip.open(path) as source, (raw / path.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    monkeypatch.setattr(embed, "DEBIAN", tmp_path / "absent")
    assert len(load("fashion_mnist:full", download=False)) == 60_000  # its sha256 is checked inside


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (0, 28, 28)])
def test_idx_files_give_back_what_was_written(shape, compress, tmp_path):
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    path = tmp_path / ("a.gz" if compress else "a")
    write_idx(path, array, compress)
    result = embed.read_idx(path)
    assert result.shape == shape and (result == array).all()


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "foreign": b"<html>",
        "floats": b"\0\0\x0d\1\0\0\0\0",
        "short header": b"\0\0\x08\3\0\0",
        "short": b"\0\0\x08\1\0\0\0\5abcd",
        "long": b"\0\0\x08\1\0\0\0\5abcdef",
        "huge": b"\0\0\x08\4" + b"\xff" * 16,
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("compress", [True, False])
def test_damaged_idx_file_is_refused(content, compress, tmp_path):
    path = tmp_path / ("a.gz" if compress else "a")
    path.write_bytes(gzip.compress(content[1]) if compress else content[1])
    with pytest.raises(InputError) as error:
        embed.read_idx(path)
    assert str(path) in sentence(error)


def test_truncated_or_foreign_gzip_is_refused(tmp_path):
    path = tmp_path / "a.gz"
    write_idx(path, np.arange(200, dtype=np.uint8), compress=True)
    whole = path.read_bytes()
    for content in (whole[:-9], whole[:40] + b"\0\1\2" + whole[43:], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="a.gz can't be read"):
            embed.read_idx(path)


# Names


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("fashion-mnist", None, ["did you mean 'fashion_mnist'", "cifar10", "folder:PATH"]),
        ("imagenet", None, ["no data set 'imagenet'", "svhn"]),
        ("", None, ["no data set ''"]),
        ("fashion_mnist", "tset", ["did you mean 'test'", "train, test, full"]),
        ("fashion_mnist:", None, ["no split ''"]),
        ("mnist:extra", None, ["no split 'extra'", "train, test"]),
        ("fashion_mnist:test", "train", ["given twice"]),
    ],
)
def test_unknown_names_and_splits_say_what_there_is(name, split, words):
    with pytest.raises(InputError) as error:
        load(name, split)
    for word in words:
        assert word in sentence(error)


def test_split_in_the_name_and_apart_are_the_same():
    assert load("fashion_mnist:test").sha256() == load("fashion_mnist", "test").sha256()
    assert load("fashion_mnist").spec == "fashion_mnist:train"


# ImageData


def test_batches_cover_all_images_in_order_and_the_last_is_short(small):
    batches = small.batches(4)
    assert len(batches) == 3 and [len(y) for _, y in batches] == [4, 4, 2]
    for _ in range(2):
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert torch.equal(x, normalize(small.source.images, small.mean, small.std))
        assert torch.equal(y, small.labels)
    assert next(iter(small.batches(4, dtype=torch.float64)))[0].dtype == torch.float64


@pytest.mark.parametrize(("size", "count"), [(1, 10), (5, 2), (10, 1), (11, 1)])
def test_number_of_batches_is_the_length(size, count, small):
    assert len(small.batches(size)) == len(list(small.batches(size))) == count


def test_augmented_batches_depend_on_the_published_index_not_on_the_batch_or_the_limit(small):
    whole = torch.cat([x for x, _ in small.batches(10, augmentation=(3, 1))])
    expected = normalize(augment(small.source.images, 3, 1, range(10)), small.mean, small.std)
    assert torch.equal(whole, expected)
    assert torch.equal(torch.cat([x for x, _ in small.batches(3, augmentation=(3, 1))]), whole)
    limited = small.limit(4)
    assert torch.equal(torch.cat([x for x, _ in limited.batches(3, augmentation=(3, 1))]), whole[limited.indices])
    assert not torch.equal(torch.cat([x for x, _ in small.batches(10, augmentation=(3, 2))]), whole)


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_limit_takes_evenly_spaced_images(n, small):
    limited = small.limit(n)
    expected = [i * 10 // n for i in range(n)]
    assert limited.indices.tolist() == expected and len(limited) == n
    for a, b in zip(limited.read(range(n)), small.read(expected), strict=True):
        assert torch.equal(a, b)


def test_limit_of_a_limit_keeps_published_positions(small):
    assert small.limit(5).limit(2).indices.tolist() == [0, 4]


def test_limit_above_the_length_changes_nothing_and_below_one_is_refused(small):
    assert small.limit(10) is small and small.limit(1000) is small
    for n in (0, -1):
        with pytest.raises(InputError, match=f"{n} images"):
            small.limit(n)
    with pytest.raises(InputError, match="batch size is 0"):
        small.batches(0)


@pytest.mark.parametrize("positions", [[3, 0], np.array([3, 0], np.uint8), torch.tensor([3, 0]), (3, 0)])
def test_read_takes_any_integers(positions, small):
    images, labels = small.read(positions)
    assert torch.equal(images, small.source.images[[3, 0]]) and labels.tolist() == [0, 0]


def test_read_of_nothing_is_an_empty_batch(small):
    images, labels = small.read([])
    assert images.shape == (0, 3, 5, 7) and images.dtype == torch.uint8 and labels.shape == (0,)


@pytest.mark.parametrize("positions", [[10], [-1], [0.5], [True] * 10, 3, [[1]]])
def test_read_refuses_positions_that_are_none(positions, small):
    with pytest.raises(InputError):
        small.read(positions)


def test_hash_sees_every_part_but_not_the_normalisation(small):
    images, labels = small.source.images, small.labels
    same = {"name": "small", "mean": small.mean, "std": small.std}
    digest = ImageData.from_arrays(images.clone(), labels, **same).sha256()
    assert digest == small.sha256() == small.with_normalization((0, 0, 0), (1, 1, 1)).sha256()
    pixel, label = images.clone(), labels.clone()
    pixel[7, 2, 4, 6] ^= 1
    label[9] = 1
    others = [
        ImageData.from_arrays(pixel, labels, **same),
        ImageData.from_arrays(images, label, **same),
        ImageData.from_arrays(images.transpose(2, 3), labels, **same),
        ImageData.from_arrays(images, labels, **(same | {"name": "other"})),
        ImageData.from_arrays(images, labels, split="test", **same),
        small.limit(9),
    ]
    assert len({digest, *(other.sha256() for other in others)}) == 7


def test_normalization_must_fit_the_channels(small):
    changed = small.with_normalization([0.5] * 3, [0.25] * 3)
    assert changed.mean == (0.5,) * 3 and changed.std == (0.25,) * 3 and small.mean == (0.1, 0.2, 0.3)
    for mean, std in [((0.5,), (1, 1, 1)), ((0, 0, 0), (1, 1, 0)), ((0, 0, float("nan")), (1, 1, 1))]:
        with pytest.raises(InputError):
            small.with_normalization(mean, std)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), [0, 1]),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), [0, 1, 2]),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), []),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0]),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0.0, 1.0]),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, -1]),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(images, labels):
    with pytest.raises(InputError):
        ImageData.from_arrays(images, labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bytes_and_hash(small):
    moved = small.to("cuda")
    assert moved.device.type == "cuda" and moved.sha256() == small.sha256()
    for (x, y), (x_cpu, y_cpu) in zip(
        moved.batches(4, augmentation=(0, 1)), small.batches(4, augmentation=(0, 1)), strict=True
    ):
        assert x.is_cuda and torch.equal(y.cpu(), y_cpu)
        torch.testing.assert_close(x.cpu(), x_cpu)


# Folder trees


def noise(height, width, channels, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Two classes, five images of all kinds and odd sizes, in tree/val."""
    root = tmp_path / "tree" / "val"
    for folder in ("zebra", "ant", ".hidden"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(noise(301, 257, 3)).save(root / "zebra" / "b.JPEG")
    Image.fromarray(noise(40, 333, 4)).save(root / "zebra" / "a.png")
    Image.fromarray(noise(511, 300, 1)).save(root / "ant" / "grey.png")
    palette = Image.fromarray(noise(31, 17, 3)).quantize(16)
    palette.save(root / "ant" / "palette.png", transparency=bytes(range(16)))
    Image.fromarray(noise(1, 1, 3)).save(root / "ant" / "dot.bmp")
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "ant" / "._grey.png").write_bytes(b"resource fork")
    Image.fromarray(noise(9, 9, 3)).save(root / ".hidden" / "x.png")
    return tmp_path / "tree"


@pytest.mark.parametrize("where", [("{}/val", None), ("{}:val", None), ("{}", "val")])
def test_folder_classes_are_sorted_sub_folders(where, tree):
    data = load("folder:" + where[0].format(tree), where[1])
    assert data.classes == ("ant", "zebra") and data.labels.tolist() == [0, 0, 0, 1, 1]
    assert list(data.source.files) == [
        "ant/dot.bmp",
        "ant/grey.png",
        "ant/palette.png",
        "zebra/a.png",
        "zebra/b.JPEG",
    ]
    assert data.shape == (3, 224, 224) and data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
    assert load(data.spec).labels.tolist() == data.labels.tolist()


def test_folder_images_of_every_kind_become_rgb_without_a_warning(tree):
    data = load(f"folder:{tree}:val")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, labels = data.read([4, 0, 1, 2, 3])
    assert images.shape == (5, 3, 224, 224) and images.dtype == torch.uint8 and labels.tolist() == [1, 0, 0, 0, 1]
    assert torch.equal(images[2, 0], images[2, 1])  # grey
    assert images[1].flatten(1).unique(dim=1).shape == (3, 1)  # one pixel, one colour
    assert [len(y) for _, y in data.batches(2)] == [2, 2, 1]
    x, _ = next(iter(data.batches(5)))
    assert torch.equal(x[4], normalize(images[:1], data.mean, data.std)[0])


@pytest.mark.parametrize(
    "size",
    [(256, 256), (224, 500), (301, 257), (257, 301), (40, 333), (299, 3), (1, 1), (640, 479), (255, 1023)],
)
def test_decoding_equals_torchvisions_resize_and_crop(size, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(noise(*size, 3)).save(path)
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(256), torchvision.transforms.CenterCrop(224)]
    )
    expected = np.asarray(transform(Image.open(path)))
    assert (decode_image(path) == expected.transpose(2, 0, 1)).all()


def test_a_thin_image_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "thin.png"
    Image.fromarray(noise(1, 60_000, 1)).save(path)  # resized: 256 x 15 million
    with pytest.raises(InputError) as error:
        decode_image(path)
    assert f"{path} is 60000 x 1" in sentence(error)


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path):
    Image.fromarray(np.full((300, 300), 0x80FF, np.uint16)).save(tmp_path / "deep.png")
    assert (decode_image(tmp_path / "deep.png") == 0x80).all()


def test_folder_hash_follows_names_sizes_and_labels_but_not_the_place(tree, tmp_path):
    digest = load(f"folder:{tree}:val").sha256()
    moved = shutil.copytree(tree, tmp_path / "elsewhere")
    assert load(f"folder:{moved}:val").sha256() == digest
    file = moved / "val" / "zebra" / "b.JPEG"
    with file.open("ab") as stream:
        stream.write(b"\0")
    longer = load(f"folder:{moved}:val").sha256()
    file.rename(file.with_name("c.JPEG"))
    renamed = load(f"folder:{moved}:val").sha256()
    (moved / "val" / "bee").mkdir()
    relabelled = load(f"folder:{moved}:val").sha256()
    assert len({digest, longer, renamed, relabelled}) == 4


def test_folder_limit_stays_balanced(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(noise(8, 8, 3, seed=i)).save(tmp_path / name / f"{i}.png")
    data = load(f"folder:{tmp_path}")
    limited = data.limit(4)
    assert limited.labels.tolist() == [0, 0, 1, 1] and limited.indices.tolist() == [0, 5, 10, 15]
    for a, b in zip(limited.read([1, 3]), data.read([5, 15]), strict=True):
        assert torch.equal(a, b)
    assert data.spec == f"folder:{tmp_path}"


def test_a_colon_in_an_existing_path_is_no_split(tmp_path):
    (tmp_path / "a:b" / "cat").mkdir(parents=True)
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a:b" / "cat" / "x.png")
    data = load(f"folder:{tmp_path}/a:b")
    assert len(data) == 1 and data.split == "" and load(data.spec).sha256() == data.sha256()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", "truncated"])
def test_unreadable_image_names_the_file(content, tree):
    path = tree / "val" / "zebra" / "a.png"
    path.write_bytes(path.read_bytes()[:2000] if content == "truncated" else content)
    data = load(f"folder:{tree}:val")
    data.read([0, 1, 2, 4])
    with pytest.raises(InputError) as error:
        list(data.batches(2))
    assert str(path) in sentence(error)


def test_file_that_vanished_is_named(tree):
    data = load(f"folder:{tree}:val")
    (tree / "val" / "zebra" / "a.png").unlink()
    for use in (data.sha256, lambda: data.read([3])):
        with pytest.raises(InputError, match=r"zebra/a\.png"):
            use()


def test_wrong_folders_are_one_sentence(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, word in [
        ("folder:", "no folder"),
        ("folder:/no/such/place", "/no/such/place"),
        (f"folder:{tree}:train", "train"),
        (f"folder:{tree}\0", "no folder"),
        (f"folder:{'x' * 5000}", "no folder"),
        (f"folder:{tmp_path}/empty", "no sub-folders"),
        (f"folder:{tree}", "val, none with images"),
        (f"folder:{tree}/val/ant/grey.png", "no folder"),
    ]:
        with pytest.raises(InputError) as error:
            load(name)
        assert word in str(error.value)


def test_importing_the_room_loads_no_torch():
    script = (
        "import sys, data_cache; from data_cache import InputError, paths, errors, exit_on_input_error; "
        "assert 'torch' not in sys.modules and 'PIL' not in sys.modules; "
        "names = {'load', 'ImageData', 'augment', 'normalize', 'catalogue', 'augmentation'}; "
        "assert names <= set(dir(data_cache))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(paths.shipped()).parent)
