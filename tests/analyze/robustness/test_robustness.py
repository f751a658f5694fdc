"""The whole analysis: parts together, resumed, shared by ranks, from the command line, and as numbers to compare."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from ranks import run_ranks
from robustness_cases import TINY, network, subject
from torch import nn

from analyze import compare, robustness
from analyze.distributed import joined
from analyze.results import Quantity, difference
from analyze.robustness.compute import is_complete
from analyze.robustness.spec import Config, Result, noise_name
from data_cache import InputError
from models import Ensemble

PARTS = ("frequency-noise", "heat-map", "adversarial", "corruptions")
FLAGS = [
    "--limit", "12", "--batch-size", "8", "--passes", "2", "--sigmas", "0.1", "0.4", "--bands", "3", "--quiet",
    "--heat-map-images", "4", "--heat-map-cycles", "1", "--attacks", "fgsm", "--epsilons-linf", "0.01",
    "--epsilons-l2", "0.5", "--attack-images", "4", "--corruptions", "contrast", "fog", "--severities", "1", "3",
    "--corruption-images", "4",
]  # fmt: skip


def same(a: Result, b: Result) -> bool:
    def equal(x: object, y: object) -> bool:
        if dataclasses.is_dataclass(x):
            return all(equal(getattr(x, f.name), getattr(y, f.name)) for f in dataclasses.fields(x))
        return np.array_equal(x, y, equal_nan=np.asarray(x).dtype.kind == "f")

    return equal(a, b)


def test_killed_run_resumes_bit_equal_at_any_step():
    config = Config(**TINY)
    steps = []
    whole = robustness.compute(subject(), config, save=steps.append)
    assert is_complete(whole, config) and not any(is_complete(step, config) for step in steps[:-1])
    assert len(steps) == 1 + 2 * 4 + len(np.unique(whole.heat_map.frequency_y)) + 2 + 2
    for stop in (0, 3, 10, 15, len(steps) - 2):
        assert same(robustness.compute(subject(), config, previous=steps[stop]), whole), stop


def test_parts_alone_are_the_same_bits_as_together():
    whole = robustness.compute(subject(), Config(**TINY))
    done = Result()
    for part in reversed(PARTS):
        done = robustness.compute(subject(), Config(**TINY, parts=(part,)), previous=done)
        assert getattr(done, part.replace("-", "_")) is not None
    assert same(done, whole)


def test_clean_numbers_are_those_of_plain_evaluation():
    each = subject()
    clean = robustness.compute(each, Config(**TINY, parts=("heat-map",))).clean
    probabilities, labels = [], []
    for index, (x, y) in enumerate(each.data):
        passes = [each.outputs(x, index, number).double().softmax(1) for number in range(2)]
        probabilities.append(sum(passes) / 2)
        labels.append(y)
    p, y = torch.cat(probabilities).numpy(), torch.cat(labels).numpy()
    assert (clean.images, clean.classes, clean.passes) == (20, 4, 2)
    assert clean.accuracy == (p.argmax(1) == y).mean()
    # float32: the pixels are brought from their normalised form and back
    assert np.isclose(clean.nll, -np.log(p[np.arange(20), y]).mean(), rtol=1e-5)
    assert clean.group_images.sum() == 20 and clean.group_correct.sum() == (p.argmax(1) == y).sum()
    assert np.isclose(clean.group_nll.sum() / 20, clean.nll)


def test_the_model_is_left_as_it_was():
    each = subject()
    each.model.train()
    before = {name: tensor.clone() for name, tensor in each.model.state_dict().items()}
    state = torch.random.get_rng_state()
    robustness.compute(each, Config(**TINY))
    assert each.model.training and all(p.grad is None and p.requires_grad for p in each.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in each.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_deep_ensemble_is_judged_by_its_mean_probability():
    members = [network(seed, rate=0.0) for seed in (0, 1)]
    each = subject(Ensemble(members))
    found = robustness.compute(each, Config(**TINY))
    x, y = (torch.cat(column) for column in zip(*each.data, strict=True))
    p = sum(member(x).double().softmax(1) for member in members).detach().numpy() / 2
    assert found.clean.passes == 1
    assert np.isclose(found.clean.nll, -np.log(p[np.arange(20), y]).mean(), rtol=1e-5)


def compute_in_ranks(path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        result = robustness.compute(subject(), Config(**TINY), world=world)
        if world.rank == 0:
            result.save(path)


def test_two_ranks_give_the_same_bits_as_one(tmp_path):
    path = tmp_path / "ranks.h5"
    ended = run_ranks(2, compute_in_ranks, path)
    assert [rank.status for rank in ended] == [0, 0], ended
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = robustness.compute(subject(), Config(**TINY))
    finally:
        torch.set_num_threads(threads)
    assert same(Result.read(path), alone)


def test_a_result_round_trips_through_its_file(tmp_path):
    found = robustness.compute(subject(), Config(**TINY))
    found.save(tmp_path / "run.h5")
    assert same(Result.read(tmp_path / "run.h5"), found)


def test_the_command_computes_resumes_and_prints(command, tiny_checkpoint, tmp_path):
    out = tmp_path / "tiny.h5"
    first = command(
        "--ckpt", tiny_checkpoint, "--out", out, *FLAGS, "--parts", "heat-map", "--no-plot", name="robustness"
    )
    assert first.status == 0, first.err
    assert "of fashion_mnist:test" in first.out
    whole = command("--ckpt", tiny_checkpoint, "--out", out, *FLAGS, "--json", name="robustness")
    assert whole.status == 0, whole.err
    content = json.loads(whole.out)
    assert set(content["robustness"]) == {"clean", "frequency_noise", "heat_map", "adversarial", "corruptions"}
    assert [path.rsplit("_robustness", 1)[1] for path in content["figures"]] == [
        ".png", "_heat_map.png", "_attacks.png", "_corruptions.png",
    ]  # fmt: skip
    again = command("--ckpt", tiny_checkpoint, "--out", out, *FLAGS, "--no-plot", name="robustness")
    assert "already in the run file" in again.out
    for text in ("accuracy under noise of one band", "0.333-0.667 pi", "under attack", "fog"):
        assert text in again.out
    refused = command("--ckpt", tiny_checkpoint, "--out", out, *FLAGS, "--heat-map-sigma", "0.2", name="robustness")
    assert refused.status == 2 and "heat_map_sigma" in refused.err and "Traceback" not in refused.err


def test_neither_spec_nor_figures_nor_tables_load_torch():
    modules = ("spec", "figures", "tables", "sigma_half", "corruption_errors")
    code = (
        "import sys\n"
        + "".join(f"import analyze.robustness.{name}\n" for name in modules)
        + "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"parts": ()}, "parts is empty"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"bands": 0}, "bands must be at least 1"),
        ({"sigmas": ()}, "sigmas"),
        ({"sigmas": (0.1, 0.1)}, "sigmas"),
        ({"sigmas": (0.0, 0.1)}, "sigmas"),
        ({"sigmas": (np.nan,)}, "sigmas"),
        ({"sigmas": (np.inf,)}, "sigmas"),
        ({"heat_map_sigma": 0.0}, "heat_map_sigma"),
        ({"heat_map_sigma": np.nan}, "heat_map_sigma"),
        ({"heat_map_images": -1}, "heat_map_images"),
        ({"heat_map_cycles": -1}, "heat_map_cycles"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Config(**options)


def test_numbers_to_compare_have_names_of_their_own_and_samples_that_add_up():
    config = Config(**TINY)
    found = robustness.compute(subject(), config)
    quantities = found.quantities()
    names = [quantity.name for quantity in quantities]
    assert len(set(names)) == len(names)
    assert "accuracy under noise of 0.4: 0.5-0.75 pi" in names
    assert "accuracy under fgsm linf, 6 images: epsilon 4/255" in names
    for quantity in quantities:
        assert np.isfinite(quantity.value)
        if quantity.weights is not None:
            held = quantity.weights > 0
            mean = np.average(quantity.samples[held], weights=quantity.weights[held])
            assert np.isclose(mean, quantity.value, rtol=1e-9, atol=1e-12), quantity.name
            assert np.isnan(quantity.samples[~held]).all()
    strong = [quantity for quantity in quantities if "half" in quantity.name]
    for quantity in strong:
        assert np.isclose(np.nanmean(quantity.samples), quantity.value)


def test_a_result_differs_from_itself_by_nothing():
    found = robustness.compute(subject(), Config(**TINY))
    for quantity in found.quantities():
        value, error, _ = difference(quantity, quantity, paired=True)
        assert value == 0 and (error == 0 or np.isnan(error))


def test_paired_differences_are_those_over_images():
    """With fewer images than groups, each image is a group: the textbook paired standard error."""
    results = [
        robustness.compute(subject(network(seed)), Config(**TINY, parts=("frequency-noise",))) for seed in (0, 1)
    ]
    assert results[0].pairing() == results[1].pairing()
    name = "nll under noise of 0.4: 0.5-0.75 pi"
    pair: list[Quantity] = [next(q for q in result.quantities() if q.name == name) for result in results]
    noise = [result.frequency_noise for result in results]
    per_image = [each.group_nll[1, 2, :20] for each in noise]
    value, error, _ = difference(*pair, paired=True)
    assert np.isclose(value, (per_image[1] - per_image[0]).mean())
    assert np.isclose(error, (per_image[1] - per_image[0]).std(ddof=1) / np.sqrt(20))


def test_corruption_errors_are_relative_to_a_reference():
    results = [robustness.compute(subject(network(seed)), Config(**TINY, parts=("corruptions",))) for seed in (0, 1)]
    found = {quantity.name: quantity.value for quantity in results[1].against(results[0], paired=True)}
    errors = [1 - result.corruptions.accuracy[0] for result in results]
    assert np.isclose(found["corruption error (%): contrast"], 100 * errors[1].sum() / errors[0].sum())
    assert found["mean corruption error (%)"] == found["corruption error (%): contrast"]
    assert results[1].against(Result(), paired=True) == []


def test_other_noise_has_other_names():
    assert noise_name(dataclasses.asdict(Config())) == ""
    assert noise_name(dataclasses.asdict(Config(norm="psd", rings="radial", clip=True))) == ", psd, radial, clipped"
    assert noise_name(dataclasses.asdict(Config(definition="park2022", norm="rms"))) == ", park2022"


def test_what_a_later_part_lacks_is_refused_before_the_first(tmp_path):
    for options in ({"attack_band": (0.01, 0.02)}, {"cifar_c": str(tmp_path)}):
        steps = []
        with pytest.raises(InputError, match="holds no frequency|there is no file"):
            robustness.compute(subject(), Config(**TINY | options), save=steps.append)
        assert steps == []


def test_only_the_same_attacks_are_compared():
    names, configs = {}, {"usual": {}, "longer": {"pgd_steps": 3}, "band": {"attack_band": (0.2, 0.8)}}
    for key, options in configs.items():
        config = Config(**TINY | {"attacks": ("fgsm", "pgd")} | options, parts=("adversarial",))
        result = robustness.compute(subject(), config)
        names[key] = {quantity.name for quantity in result.quantities() if "under" in quantity.name}
        for other, others in configs.items():
            reason = result.incomparable(Config(**TINY | others, parts=("adversarial", "corruptions")))
            assert (reason == "") == (key == other)
    assert result.incomparable(Config(**TINY)) == "its attack_band differ"
    assert "accuracy under pgd linf, 6 images, pgd_steps 3: epsilon 4/255" in names["longer"]
    assert {name.split()[2] for name in names["usual"] & names["longer"]} == {"fgsm"}
    assert not names["band"] & (names["usual"] | names["longer"])


def test_the_table_of_attacks_tells_of_pixels_outside_and_of_missing_gradients():
    config = Config(**TINY | {"attack_band": (0.2, 0.8)}, parts=("adversarial",))
    [table] = robustness.compute(subject(), config).tables()
    assert "outside [0, 1]" in table and "no gradient" not in table and table.splitlines()[2].endswith(" %")
    [plain] = robustness.compute(subject(), Config(**TINY, parts=("adversarial",))).tables()
    assert "outside" not in plain
    blind = nn.Sequential(nn.Flatten(), Rounded(), nn.Linear(216, 4))
    [table] = robustness.compute(subject(blind), Config(**TINY, parts=("adversarial",))).tables()
    assert "no gradient" in table and table.splitlines()[2].endswith("100 %")


class Rounded(nn.Module):
    def forward(self, x):
        return x.round()


def test_parts_whose_groups_disagree_are_refused(tmp_path):
    found = robustness.compute(subject(), Config(**TINY, parts=("frequency-noise",)))
    found.save(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "a", libver="v108") as file:
        noise = file["robustness/frequency_noise"]
        for name in ("group_correct", "group_nll", "group_flips"):
            stored = noise[name][..., :5]
            del noise[name]
            noise[name] = stored
    with pytest.raises(InputError, match="64 groups, but those with frequency noise in 5"):
        compare.compare([tmp_path / "run.h5", shutil.copy(tmp_path / "run.h5", tmp_path / "copy.h5")])


def test_rows_say_the_worst_of_each_part():
    found = robustness.compute(subject(), Config(**TINY))
    rows = {row.quantity: row for row in found.rows()}
    noise = found.frequency_noise
    assert rows["accuracy, noise of 0.4"].value == np.nanmin(noise.accuracy[1])
    assert rows["accuracy"].value == found.clean.accuracy
    assert rows["largest error of the heat map"].value == found.heat_map.error.max()
    assert rows["accuracy, fgsm linf"].value == found.adversarial.accuracy[0]
    assert rows["accuracy, corrupted"].value == found.corruptions.accuracy.mean()
    for row in rows.values():
        assert isinstance(row.value, (int, float))


def test_the_mirrored_map_of_a_partial_run_can_be_tabulated():
    steps = []
    robustness.compute(subject(), Config(**TINY), save=steps.append)
    for step in steps:
        assert step.rows() and step.tables() is not None and step.quantities()


def test_attacks_within_a_band_are_told_from_others_in_table_and_figure():
    def said(**options):
        found = robustness.compute(subject(), Config(**TINY | {"parts": ("adversarial",)} | options))
        drawn = importlib.import_module("analyze.robustness.figures").figures(found)["attacks"]
        rows = "".join(row.remark for row in found.rows())
        return [rows, "".join(found.tables()), drawn.get_suptitle()]

    assert all("within 0.5-1 pi" in text for text in said(attack_band=(0.5, 1.0)))
    assert not any("within" in text for text in said())
