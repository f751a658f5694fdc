"""Model and data variance against NumPy on all maps at once, and where they are known in closed form."""

import gc
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from maps import all_maps, noise_subject, spread, zoo_net
from ranks import run_ranks
from torch import nn

from analyze import Subject, variance
from analyze.distributed import joined
from analyze.variance.compute import is_complete
from analyze.variance.spec import VALUES, Config, Result
from data_cache import InputError
from models.ensemble import Ensemble
from models.layers import MCDropout

NUMBERS = [*VALUES, *(f"{name}_stderr" for name in VALUES)]


def expected(maps: np.ndarray, members: int = 1) -> dict[str, float]:
    """From (S * members, B, C, H, W) float64 maps, straight from the definition."""
    model = spread(maps, members).mean(axis=(1, 2, 3))
    data = maps.reshape(*maps.shape[:3], -1).var(axis=3, ddof=1).mean(axis=(0, 2))
    found = {}
    for name, each in zip(VALUES, (model, data, np.sqrt(model), np.sqrt(data)), strict=True):
        found[name] = each.mean()
        found[f"{name}_stderr"] = each.std(ddof=1) / np.sqrt(len(each))
    return found


def assert_is_numpys(result: Result, maps: dict[str, np.ndarray], rtol: float, members: int = 1) -> None:
    for place, name in enumerate(result.layer):
        for key, value in expected(maps[name], members).items():
            assert getattr(result, key)[place] == pytest.approx(value, rel=rtol, abs=1e-12), (name, key)


@pytest.mark.parametrize("name", ["resnet_mcdo_18", "resnet_mcdo_smoothing_18", "vgg_mcdo_smoothing_11"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 17, 22)])
def test_both_variances_are_numpys(name, shape):
    size = {"hidden": 8} if name.startswith("vgg") else {}
    subject = noise_subject(zoo_net(name, **size), shape=shape)
    result = variance.compute(subject, Config(passes=3))
    large = result.height * result.width > 1
    assert large.sum() >= 8 and (result.model_variance[2:] > 0).all()
    maps = all_maps(subject, result.layer[large], passes=3)
    for place in np.flatnonzero(large):
        for key, value in expected(maps[result.layer[place]]).items():
            # float32 differences and squares of up to 16*33*33 numbers; standard errors lose digits to the mean
            rtol = 1e-4 if key.endswith("stderr") else 1e-5
            assert getattr(result, key)[place] == pytest.approx(value, rel=rtol, abs=1e-9), (result.layer[place], key)
    assert np.isnan(result.data_variance[~large]).all()
    assert (result.images, result.all_images, result.batches, result.passes) == (13, 13, 3, 3)


def test_in_double_precision_they_are_numpys_to_rounding():
    subject = noise_subject(zoo_net("resnet_mcdo_18").double())
    result = variance.compute(subject, Config(passes=4))
    assert_is_numpys(result, all_maps(subject, result.layer, passes=4), rtol=1e-10)


@pytest.mark.parametrize("name", ["resnet_dnn_18", "resnet_dnn_smoothing_18"])
def test_a_deterministic_network_has_exactly_no_model_variance(name):
    result = variance.compute(noise_subject(zoo_net(name)), Config(passes=5))
    assert result.passes == 1
    for key in NUMBERS:
        if key.startswith("model"):
            assert (getattr(result, key) == 0).all()
    assert (result.data_variance > 0).all()


def test_layers_before_any_randomness_have_exactly_none():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), MCDropout(0.5), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(288, 2)
    )
    result = variance.compute(noise_subject(model), Config(passes=3, layers=("0", "1", "3")))
    assert (result.model_variance[:2] == 0).all() and result.model_variance[2] > 0


def test_one_pass_of_a_random_network_says_nothing_of_its_variance():
    result = variance.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=1))
    assert np.isnan(result.model_variance).all() and np.isfinite(result.data_variance).all()


@pytest.mark.parametrize(("name", "passes"), [("resnet_dnn_18", 1), ("resnet_mcdo_18", 2)])
def test_members_of_an_ensemble_are_realisations(name, passes):
    subject = noise_subject(Ensemble([zoo_net(name, seed) for seed in range(3)]))
    result = variance.compute(subject, Config(passes=2))
    assert (result.members, result.passes) == (3, passes)
    assert_is_numpys(result, all_maps(subject, result.layer, passes), rtol=1e-4, members=3)


class Shifted(nn.Module):
    """One map: a constant of the member, and dropout noise around it."""

    def __init__(self, shift: float):
        super().__init__()
        self.shift = nn.Conv2d(1, 1, 1)
        nn.init.zeros_(self.shift.weight)
        nn.init.constant_(self.shift.bias, shift)
        self.noise, self.sum, self.head = MCDropout(0.2), nn.Identity(), nn.Linear(256, 2)

    def forward(self, x):
        return self.head(self.sum(self.shift(x) + self.noise(torch.ones_like(x))).flatten(1))


def test_more_passes_of_random_members_find_the_same_variance():
    """Of members drawn at random: pooled, realisations of one member would count as independent of each other."""
    shifts = np.array([0.0, 1.0, 3.0])
    subject = noise_subject(Ensemble([Shifted(shift) for shift in shifts]), sizes=(20, 20), shape=(1, 16, 16))
    truth = shifts.var(ddof=1) + 0.2 / 0.8  # dropout at rate p of ones has the variance p / (1 - p)
    for passes in (1, 2, 5, 20):
        result = variance.compute(subject, Config(passes=passes, layers=("sum",)))
        assert result.passes == passes
        # 20 passes of 3 members at 256 positions of 40 images
        assert abs(result.model_variance[0] - truth) < 4 * result.model_variance_stderr[0] < 0.06 * truth


def test_randomness_that_does_not_reach_the_outputs_is_seen():
    """A saturated end, or one that is no number, makes all outputs the same."""
    conv, end = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 2)
    for what, value in (("saturated", 1e4), ("no number", np.nan)):
        nn.init.constant_(end.bias, value)
        model = nn.Sequential(conv, MCDropout(0.5), nn.Flatten(), end, nn.Hardtanh())
        result = variance.compute(noise_subject(model), Config(passes=3, layers=("0", "1")))
        assert result.passes == 3 and result.model_variance[0] == 0 < result.model_variance[1], what
        once = variance.compute(noise_subject(model), Config(passes=1, layers=("0", "1")))
        assert np.isnan(once.model_variance).all(), what


def test_large_maps_lose_no_digits():
    """Sums over 224x224 positions of maps far from 0, where adding one by one in float32 is off by 1e-6 and more."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Softplus(), MCDropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    subject = noise_subject(model, sizes=(2,), shape=(3, 224, 224))
    result = variance.compute(subject, Config(passes=2, layers=("1", "2")))
    found = expected(all_maps(subject, ["2"], 2)["2"])
    for name in ("model_variance", "data_variance", "model_std", "data_std"):
        assert getattr(result, name)[1] == pytest.approx(found[name], rel=1e-6), name


def test_sums_of_other_layers_than_the_result_has_are_refused():
    result = variance.compute(noise_subject(zoo_net("resnet_dnn_18"), sizes=(2,)))
    sums = result.sums
    for other in (
        replace(sums, images=sums.images[:, :2], total=sums.total[:, :2], squares=sums.squares[:2]),
        replace(sums, total=sums.total[..., :1], squares=sums.squares[:, :1]),
        replace(sums, images=sums.images[:5], total=sums.total[:5]),
    ):
        with pytest.raises(InputError, match="holds sums of shape"):
            replace(result, sums=other)


def test_a_large_mean_costs_no_digits():
    """x = 1000 + dropout noise of 1 % of that: naive float32 sums of squares would have no digit right."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1), MCDropout(1e-4), nn.Flatten(), nn.Linear(256, 2))
    nn.init.constant_(model[0].weight, 0.01)
    nn.init.constant_(model[0].bias, 1000.0)
    subject = noise_subject(model)
    result = variance.compute(subject, Config(passes=6, layers=("0", "1")))
    maps = all_maps(subject, ["0", "1"], passes=6)
    # the maps themselves are float32, so that the oracle sees the same numbers; 6e-5 is one ulp of 1000
    assert result.data_variance[0] == pytest.approx(expected(maps["0"])["data_variance"], rel=1e-4)
    assert result.model_variance[1] == pytest.approx(expected(maps["1"])["model_variance"], rel=1e-5)


def blurred(model_noise: bool) -> Result:
    """White noise of variance 1, over positions or over passes, before and after a 2x2 box."""
    first = nn.Conv2d(1, 1, 1)
    nn.init.ones_(first.weight)
    nn.init.zeros_(first.bias)
    random = MCDropout(0.5) if model_noise else nn.Identity()
    model = nn.Sequential(first, random, nn.AvgPool2d(2, stride=1), nn.Flatten(), nn.Linear(63 * 63, 2))
    images = torch.ones(24, 1, 64, 64)
    if not model_noise:
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    subject = Subject(model, list(zip(images.split(8), torch.zeros(24, dtype=torch.int64).split(8), strict=True)))
    return variance.compute(subject, Config(passes=4, layers=("0", "1", "2") if model_noise else ("0", "2")))


@pytest.mark.parametrize(("model_noise", "name"), [(True, "model_variance"), (False, "data_variance")])
def test_a_box_of_two_by_two_leaves_a_quarter_of_the_variance_of_white_noise(model_noise, name):
    result = blurred(model_noise)
    before, after = getattr(result, name)[-2:]
    errors = getattr(result, f"{name}_stderr")[-2:]
    assert before == pytest.approx(1.0, abs=4 * errors[0])  # dropout at rate 1/2 of ones has the variance 1 too
    assert after == pytest.approx(0.25, abs=4 * errors[1])
    assert errors.max() < 0.01


def test_batch_size_changes_rounding_only():
    model = zoo_net("resnet_dnn_smoothing_18")
    results = [variance.compute(noise_subject(model, sizes=sizes)) for sizes in ([13], [5, 5, 3], [1] * 13)]
    for other in results[1:]:
        for key in NUMBERS:
            # float32 maps whose convolutions are summed in another order
            assert np.allclose(getattr(other, key), getattr(results[0], key), rtol=2e-5, atol=1e-9), key


def test_a_resume_in_the_middle_changes_no_bit(tmp_path):
    subject = noise_subject(zoo_net("resnet_mcdo_18"))
    saved = []
    whole = variance.compute(subject, Config(passes=3), save=saved.append)
    assert [result.images for result in saved] == [5, 10, 13]
    for result in saved[:-1]:
        result.save(tmp_path / "run.h5", complete=False)
        stored = Result.read(tmp_path / "run.h5")
        assert not is_complete(stored, Config(passes=3))
        later = variance.compute(subject, Config(passes=3), previous=stored)
        for key in NUMBERS:
            assert np.array_equal(getattr(later, key), getattr(whole, key)), key
    assert is_complete(whole, Config(passes=3))
    assert variance.compute(subject, Config(passes=3), previous=whole).images == 13


def in_rank(path) -> None:
    with joined("cpu") as world:
        result = variance.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2), world=world)
        if world.rank == 0:
            result.save(path)


def test_two_ranks_find_the_same_bits(tmp_path):
    ranks = run_ranks(2, in_rank, tmp_path / "run.h5")
    assert [rank.status for rank in ranks] == [0, 0], ranks
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    try:
        alone = variance.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2))
    finally:
        torch.set_num_threads(threads)
    shared = Result.read(tmp_path / "run.h5")
    for key in NUMBERS:
        assert np.array_equal(getattr(shared, key), getattr(alone, key)), key


def test_nothing_grows_with_images_or_passes():
    subject = noise_subject(zoo_net("resnet_mcdo_18"), sizes=[2] * 5)
    live = []

    def count(result) -> None:
        if result.batches in (2, 5):
            gc.collect()
            live.append(sum(type(found) is torch.Tensor for found in gc.get_objects()))

    for passes in (2, 4):
        variance.compute(subject, Config(passes=passes, layers=("layer1.*",)), save=count)
    assert live[0] == live[1] == live[2] == live[3]


def test_the_subject_is_left_as_it_was():
    subject = noise_subject(zoo_net("resnet_mcdo_18"))
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    variance.compute(subject, Config(passes=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert not any(module._forward_hooks for module in subject.model.modules())


@pytest.mark.parametrize("options", [{"passes": 0}, {"passes": -2}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="passes must be at least 1"):
        Config(**options)


def test_rows_say_what_smoothing_does():
    result = variance.compute(noise_subject(zoo_net("resnet_mcdo_smoothing_18")), Config(passes=2))
    rows = {row.quantity: row for row in result.rows()}
    row = rows["model variance across smooth2.0"]
    names = result.layer.tolist()
    place = names.index("smooth2.0")
    assert row.value == pytest.approx(result.model_variance[place] / result.model_variance[place - 1], rel=1e-12)
    assert row.error > 0 and row.remark == f"times that of {names[place - 1]}"
    assert len(result.tables()[0].splitlines()) == 1 + len(names)


def test_quantities_have_the_samples_that_their_means_come_from():
    result = variance.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2))
    quantities = {quantity.name: quantity for quantity in result.quantities()}
    found = quantities["model variance: layer2.1"]
    assert found.value == result.model_variance[result.layer.tolist().index("layer2.1")]
    assert found.weights.sum() == 13
    held = found.weights > 0
    assert np.average(found.samples[held], weights=found.weights[held]) == pytest.approx(found.value, rel=1e-12)


def test_figures_overlay_models_and_leave_out_what_is_nothing():
    dnn = variance.compute(noise_subject(zoo_net("resnet_dnn_18")))
    mcdo = variance.compute(noise_subject(zoo_net("resnet_mcdo_smoothing_18")), Config(passes=2))
    from analyze.variance.figures import figures

    assert [axes.get_ylabel() for axes in figures(dnn)[""].axes] == ["data variance"]
    both = figures(dnn, [mcdo])[""].axes
    assert [axes.get_ylabel() for axes in both] == ["model variance", "data variance"]
    names = [label.get_text() for label in both[-1].get_xticklabels()]
    assert names == mcdo.layer.tolist()  # which has all layers of the other
    line = next(line for line in both[1].lines if len(line.get_xdata()) == len(dnn.layer))
    assert [names[int(x)] for x in line.get_xdata()] == dnn.layer.tolist()


def test_a_figure_of_several_networks_is_titled_by_their_images():
    from analyze.variance.figures import figures

    found = variance.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2))
    about = {"model": "a", "checkpoint": "a.safetensors", "images": 2, "data": "noise"}
    first, second = found.of({}, about), found.of({}, about | {"checkpoint": "b.safetensors", "images": 3})
    assert figures(first)[""].get_suptitle() == "a: 2 images of noise"
    figure = figures(first, [second])[""]
    assert figure.get_suptitle() == "2 images of noise"
    assert [text.get_text() for text in figure.axes[0].get_legend().texts][:2] == ["a", "b (3 images of noise)"]


def test_the_command_writes_run_file_table_and_figure(command, tiny_checkpoint, tmp_path):
    out = tmp_path / "run.h5"
    arguments = [
        "--ckpt",
        tiny_checkpoint,
        "--limit",
        "20",
        "--batch-size",
        "8",
        "--passes",
        "2",
        "--quiet",
        "--out",
        out,
    ]
    first = command(*arguments, name="variance")
    assert first.status == 0 and "model variance across smooth1.0" in first.out, first.err
    assert (tmp_path / "run_variance.png").stat().st_size > 10_000
    again = command(*arguments, name="variance")
    assert "already in the run file" in again.out
    assert Result.read(out).images == 20


def test_results_can_be_read_and_drawn_without_torch():
    code = "import sys, analyze.variance.spec, analyze.variance.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
