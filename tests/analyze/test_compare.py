"""Differences of what run files share, and their standard errors."""

import contextlib
import io
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Outcome

from analyze import compare
from analyze.hessian.spec import Blocks, Config, Extremes, MaxSpectrum, Result, Trace
from analyze.results import GROUPS, Difference, Quantity, difference, group_of
from data_cache import InputError


def test_groups_are_image_numbers_modulo_their_count():
    whole = group_of(0, 200)
    assert whole.tolist() == [number % GROUPS for number in range(200)]
    assert np.array_equal(np.concatenate([group_of(0, 130), group_of(130, 70)]), whole)


def grouped(per_image: np.ndarray, error: float | None = None) -> Quantity:
    """The mean over images, with its group means."""
    groups = group_of(0, len(per_image))
    weights = np.bincount(groups, minlength=GROUPS)
    samples = np.bincount(groups, per_image, minlength=GROUPS) / np.maximum(weights, 1)
    return Quantity("mean", float(per_image.mean()), error, np.where(weights, samples, np.nan), weights)


@pytest.mark.parametrize("images", [64, 640, 500, 37])
def test_paired_error_is_that_of_the_mean_of_differences(images):
    """By the definition over groups, in plain NumPy; with one image in each group, the textbook standard error."""
    generator = np.random.default_rng(images)
    common = generator.normal(size=images) * 10
    a, b = (grouped(common + generator.normal(size=images) + shift) for shift in (0.0, 0.5))
    value, error, _ = difference(a, b, paired=True)
    assert value == b.value - a.value
    held = a.weights > 0
    w, d = a.weights[held], (b.samples - a.samples)[held]
    mean = (w * d).sum() / w.sum()
    assert value == pytest.approx(mean, rel=1e-9)
    expected = math.sqrt((w**2 * (d - mean) ** 2).sum() * len(d) / (len(d) - 1)) / w.sum()
    assert error == pytest.approx(expected, rel=1e-9)
    if images <= GROUPS:
        assert error == pytest.approx(d.std(ddof=1) / math.sqrt(images), rel=1e-9)


def test_paired_error_covers_the_spread_of_repeated_experiments():
    """True difference 0.5, over 400 data sets of 640 images: half of the pairs' noise is common and drops out."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        common = generator.normal(size=640) * 10
        a, b = (grouped(common + generator.normal(size=640) + shift) for shift in (0.0, 0.5))
        found.append(difference(a, b, paired=True))
    values, errors, _ = np.array(found).T
    # the spread of 400 values is known to 1 / sqrt(800) = 3.5%; 4 standard deviations of it
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.14)
    assert abs(values.mean() - 0.5) < 4 * errors.mean() / 20


def test_ratios_with_weights_of_their_own_have_the_error_of_the_linearised_ratio():
    """Success among the images that were right, where each model was right on others: by a bootstrap over groups."""
    generator = np.random.default_rng(1)
    count = generator.integers(5, 20, size=(2, GROUPS))
    share = generator.beta(3, 2, size=(2, GROUPS)) * 0.2 + generator.beta(3, 2, size=GROUPS) * 0.8
    pair = [Quantity("rate", float((n * p).sum() / n.sum()), None, p, n) for n, p in zip(count, share, strict=True)]
    value, error, _ = difference(*pair, paired=True)
    rows = generator.integers(0, GROUPS, size=(4000, GROUPS))
    rates = (count * share)[:, rows].sum(2) / count[:, rows].sum(2)
    assert value == pair[1].value - pair[0].value
    assert error == pytest.approx((rates[1] - rates[0]).std(), rel=0.06)  # the bootstrap's own error is 1.1%


def test_unpaired_errors_add_as_of_independent_numbers():
    a, b = Quantity("x", 1.0, 3.0, np.zeros(3)), Quantity("x", 3.0, 4.0, np.ones(3))
    assert difference(a, b, paired=False) == (2.0, 5.0, 2)
    assert difference(a._replace(samples=None), b, paired=True) == (2.0, 5.0, 2)
    assert difference(a._replace(samples=None), b._replace(samples=None), paired=True) == (2.0, 5.0, math.inf)
    value, error, _ = difference(a._replace(error=None), b, paired=False)
    assert value == 2.0 and math.isnan(error)


def test_further_samples_of_one_do_not_count():
    a = Quantity("trace", 2.0, None, np.array([1.0, 2.0, 3.0]))
    b = Quantity("trace", 9.0, None, np.array([2.0, 3.0, 7.0, 24.0]))
    value, error, _ = difference(a, b, paired=True)
    assert value == pytest.approx(2.0)  # of the first three: 4 - 2
    assert error == pytest.approx(np.std([1.0, 1.0, 4.0], ddof=1) / math.sqrt(3))


@pytest.mark.parametrize("samples", [np.array([2.0]), np.array([np.nan, 2.0]), np.array([])])
def test_one_group_has_no_standard_error(samples):
    value, error, _ = difference(Quantity("x", 1.0, None, samples), Quantity("x", 2.0, None, samples), paired=True)
    assert value == 1.0 and math.isnan(error)


def test_equal_results_differ_by_exactly_nothing():
    a = grouped(np.random.default_rng(2).normal(size=100))
    assert difference(a, a, paired=True)[:2] == (0.0, 0.0)


@pytest.mark.parametrize("count", [2, 3, 5, 20, 64])
def test_star_is_as_rare_by_chance_for_few_samples_as_for_many(count):
    """Equal means, 20,000 times: 4.55 % exceed the margin; of two samples and two standard errors, 30 % would."""
    generator = np.random.default_rng(count)
    samples = generator.normal(size=(20_000, 2, count))
    d = samples[:, 1] - samples[:, 0]
    pairs = [[Quantity("x", float(each.mean()), None, each) for each in pair] for pair in samples[:2]]
    for pair, own in zip(pairs, d, strict=False):
        found = difference(*pair, paired=True)
        assert found.freedom == count - 1 and found.error == pytest.approx(own.std(ddof=1) / math.sqrt(count))
    margin = Difference(0.0, 1.0, count - 1).margin
    share = (np.abs(d.mean(1)) > margin * d.std(axis=1, ddof=1) / math.sqrt(count)).mean()
    assert share == pytest.approx(0.0455, abs=4 * math.sqrt(0.0455 / 20_000))


def test_margin_tends_to_two_standard_errors_and_is_unknown_where_they_are():
    assert Difference(1.0, 3.0).margin == pytest.approx(6.0, rel=1e-12)
    assert Difference(1.0, 1.0, 1).margin == pytest.approx(math.tan(math.erf(math.sqrt(2)) * math.pi / 2))  # Cauchy
    assert Difference(6.1, 3.0).is_marked and not Difference(-5.9, 3.0).is_marked
    for found in (Difference(1.0, math.nan), Difference(math.nan, 1.0), Difference(math.inf, 1.0)):
        assert not found.is_marked
        assert compare.Line("x", [], [found]).ratio == -1


def test_groups_without_images_are_no_degrees_of_freedom():
    a = Quantity("x", 1.0, 0.1, np.array([1.0, 2.0, np.nan, 4.0]), np.array([1, 1, 0, 1]))
    assert difference(a, a, paired=True).freedom == difference(a, a, paired=False).freedom == 2


# The command


SUBJECT = {
    "checkpoint": "A.safetensors", "checkpoint_sha256": "a", "model": "resnet_dnn_18", "model_args": {},
    "data": "fashion_mnist:train", "images": 24, "data_sha256": "d", "batch_size": 8, "weight_decay": 0.0,
    "mode": "eval", "seed": 0, "device": "cpu", "dtype": "float32",
}  # fmt: skip
SAMPLES = {"A": [1.0, 2.0, 6.0], "B": [2.0, 2.5, 7.0]}


def result(name: str, *, config: Config | None = None, blocks: int = 0, **subject) -> Result:
    """A Hessian with a trace of three probes, two eigenvalues, a max-eigenvalue spectrum, and blocks."""
    samples = np.array(SAMPLES[name])
    shift = 0.0 if name == "A" else 1.0
    extremes = Extremes(np.array([9.0 + shift, 5.0]), np.array([0.3, 0.1]), np.zeros(0), np.zeros(0), 30, True)
    largest = np.array([[3.0, 2.0], [5.0, -1.0]]) + shift
    spectrum = MaxSpectrum(
        batch=np.arange(2), images=np.array([8, 8]), loss=np.ones(2), largest=largest, largest_residual=largest * 0,
        smallest=np.array([-1.0, -2.0]), smallest_residual=np.zeros(2), hvps=np.array([9, 9]),
        converged=np.array([True, True]), data="images", share_below_zero=0.0, mean_positive=1.0,
    )  # fmt: skip
    layers = None
    if blocks:
        each = np.arange(blocks) + 1.0
        trace = each * 2 + shift * (each == blocks)
        layers = Blocks(
            block=np.array([f"layer{number}" for number in range(blocks)], dtype=object), size=np.full(blocks, 10),
            trace=trace, trace_stderr=each * 0.1, largest=each, largest_residual=each * 0,
            products=np.full(blocks, 5), converged=np.full(blocks, True),
            samples=trace + np.array([[-0.1], [0.1]]), own_samples=np.zeros((0, blocks)),
        )  # fmt: skip
    found = Result(
        parameters=100, loss=0.5, gradient_norm=0.1, noise_floor=1e-7, engine="cached", choice="auto",
        extremes=extremes, trace=Trace(samples.mean(), samples.std(ddof=1) / math.sqrt(3), 0.0, samples),
        max_spectrum=spectrum, blocks=layers,
    )  # fmt: skip
    about = SUBJECT | {"checkpoint": f"{name}.safetensors", "checkpoint_sha256": name} | subject
    return found.of(asdict(config or Config()), about)


def saved(folder: Path, *results: Result) -> list[Path]:
    files = []
    for number, each in enumerate(results):
        files.append(folder / f"run{number}.h5")
        files[-1].unlink(missing_ok=True)
        each.save(files[-1])
    return files


def command(*arguments: object) -> Outcome:
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            compare.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return Outcome(status, out.getvalue(), err.getvalue())


def test_hessians_are_compared_probe_by_probe_and_batch_by_batch(tmp_path):
    [comparison] = compare.compare(saved(tmp_path, result("A"), result("B")))
    assert comparison.analysis == "hessian" and comparison.paired == [True]
    assert [entry.name for entry in comparison.stored] == ["A", "B"]
    lines = {line.name: line for line in comparison.lines}
    d = np.subtract(SAMPLES["B"], SAMPLES["A"])
    assert lines["trace"].differences == [pytest.approx((d.mean(), d.std(ddof=1) / math.sqrt(3), 2))]
    assert lines["max eigenvalue of a batch"].differences == [pytest.approx((1.0, 0.0, 1))]  # each grew by exactly 1
    assert lines["share below zero"].found[0].value == 0.25 and lines["share below zero"].differences[0][0] == -0.25


def test_other_images_or_seeds_are_not_paired(tmp_path):
    a, b = result("A"), result("B", seed=3, data_sha256="e")
    [comparison] = compare.compare(saved(tmp_path, a, b))
    [line] = [line for line in comparison.lines if line.name == "trace"]
    assert comparison.paired == [False]
    assert line.differences == [pytest.approx((b.trace.estimate - a.trace.estimate,
                                               math.hypot(a.trace.stderr, b.trace.stderr), 2))]  # fmt: skip
    assert "other images, seed; standard errors as of independent" in command(*saved(tmp_path, a, b), "--no-plot").out


def test_result_that_does_not_say_what_it_is_of_is_not_paired_with_another(tmp_path):
    nameless = {"data_sha256": None}
    [comparison] = compare.compare(saved(tmp_path, result("A", **nameless), result("B", **nameless)))
    assert comparison.paired == [False]


def test_table_marks_what_differs_by_more_than_two_standard_errors(tmp_path):
    outcome = command(*saved(tmp_path, result("A"), result("B")), "--no-plot")
    assert outcome.status == 0
    lines = {line.split("  ")[1].strip() or line.split()[0]: line for line in outcome.out.splitlines() if "  " in line}
    assert lines["trace"].split("  ")[-1].strip() == "+0.833 ± 0.17 *"
    assert "±" in lines["gradient norm"] or lines["gradient norm"].split()[-3:] == ["0.1", "0.1", "+0"]
    assert "* more than two standard errors" in outcome.out
    assert "the same images, batches and seed; means are compared pairwise" in outcome.out
    same = command(*saved(tmp_path, result("A"), result("A")), "--no-plot")
    assert "*" not in same.out


def test_residuals_are_bounds_and_no_standard_errors(tmp_path):
    """An eigenvalue that is 1 larger, with residuals of 0.3: no error of the difference, no star, and last in rank."""
    files = saved(tmp_path, result("A"), result("B"))
    [comparison] = compare.compare(files)
    [line] = [line for line in comparison.lines if line.name == "largest eigenvalues: 1"]
    [found] = line.differences
    assert found.value == 1.0 and math.isnan(found.error) and not found.is_marked and line.ratio == -1
    out = command(*files, "--no-plot").out
    [row] = [each.split("  ") for each in out.splitlines() if "(± 0.3)" in each]
    assert [cell.strip() for cell in row if cell.strip()] == ["1", "9 (± 0.3)", "10 (± 0.3)", "+1"]
    assert "(±) bound on the error" in out
    quantities = json.loads(command(*files, "--no-plot", "--json").out)["analyses"]["hessian"]["quantities"]
    [told] = [each for each in quantities if each["name"] == "largest eigenvalues: 1"]
    assert told["values"]["A"] == {"value": 9.0, "stderr": None, "bound": 0.3}
    assert told["differences"]["B"] == {"value": 1.0, "stderr": None}


def test_hessians_are_drawn_together(tmp_path):
    from analyze.hessian.figures import figures

    a, b = result("A", blocks=3), result("B", blocks=2)
    drawn = figures(a, [b, replace(b, extremes=None, max_spectrum=None, blocks=None).of({}, b.subject)])
    for name, lines in (("", 2), ("blocks", 2)):
        [legend] = drawn[name].legends
        assert [text.get_text() for text in legend.get_texts()] == ["A", "B"]
        assert drawn[name]._suptitle.get_text() == "24 images of fashion_mnist:train"
        for axes in drawn[name].axes:
            assert len(axes.containers) == lines, name
    mean = drawn["blocks"].axes[0].containers
    assert mean[1].lines[0].get_ydata() == pytest.approx(b.blocks.trace / 10)
    other = figures(a, [result("B", images=48)])[""].legends[0].get_texts()[1].get_text()
    assert other == "B (48 images of fashion_mnist:train)"
    assert not figures(a)[""].legends and "A: 24 images" in figures(a)[""]._suptitle.get_text()


def test_only_results_that_go_with_the_first_are_drawn_beside_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Result, "plot", lambda self, path, others=(): drawn.append(len(others)) or [])
    files = saved(tmp_path, result("A", config=Config(parts=("trace",))), result("B"), result("B", seed=1))
    assert command(*files).status == 0
    monkeypatch.setattr(Result, "incomparable", lambda self, config: "other rings" * (self.subject["seed"] == 1))
    assert command(*files).status == 0 and drawn == [2, 1]


def test_other_paths_of_the_smoothing_operator_are_told(tmp_path):
    files = saved(tmp_path, result("A", smoothing="fused"), result("B", smoothing="eager"), result("B", seed=1))
    notes = json.loads(command(*files, "--no-plot", "--json").out)["analyses"]["hessian"]["notes"]
    [told] = [note for note in notes if "smoothing" in note]
    assert told.startswith("run1 and run0") and "eager and fused" in told


def test_long_headings_show_what_differs_most_unless_all_is_asked_for(tmp_path):
    files = saved(tmp_path, result("A", blocks=40), result("B", blocks=40))
    short, long = (command(*files, "--no-plot", *extra).out for extra in ([], ["--all"]))
    heading = next(number for number, line in enumerate(short.splitlines()) if "trace of a layer" in line)
    shown = short.splitlines()[heading + 1 : heading + 2 + compare.MOST_ROWS]
    assert [line.split()[0] for line in shown[:-2]] == [f"layer{number}" for number in range(compare.MOST_ROWS - 1)]
    assert shown[-2].split()[0] == "layer39" and "*" in shown[-2]  # the one that differs
    assert shown[-1].strip() == "(28 more: --all)"
    assert "more: --all" not in long and long.count("layer17") == 2


def test_of_many_headings_those_are_shown_that_differ_most(tmp_path, monkeypatch):
    def quantities(self):
        shift = self.loss * (np.arange(30) == 20)
        return [Quantity(f"band {band}: layer", 1.0 + shift[band], 0.1) for band in range(30)]

    monkeypatch.setattr(Result, "quantities", quantities)
    files = saved(tmp_path, result("A"), replace(result("B"), loss=5.0).of({}, result("B").subject))
    out = command(*files, "--no-plot").out
    shown = [line.strip() for line in out.splitlines() if line.startswith("  band")]
    assert shown == [f"band {band}" for band in [*range(compare.MOST_HEADINGS - 1), 20]]
    assert "(22 more headings: --all)" in out
    assert command(*files, "--no-plot", "--all").out.count("band") == 30


def test_json_holds_all_numbers(tmp_path):
    files = saved(tmp_path, result("A"), result("B"), result("A", seed=1))
    outcome = command(*files, "--json", "--out", tmp_path / "figures" / "both")
    printed = json.loads(outcome.out)
    found = printed["analyses"]["hessian"]
    assert found["reference"] == "run0" and found["paired"] == {"run1": True, "run2": False}
    [trace] = [quantity for quantity in found["quantities"] if quantity["name"] == "trace"]
    assert trace["values"]["run1"]["value"] == pytest.approx(np.mean(SAMPLES["B"]))
    assert trace["differences"]["run2"]["value"] == 0.0 and trace["differences"]["run2"]["stderr"] > 0
    assert trace["differences"]["run1"]["stderr"] == pytest.approx(1 / 6)
    assert len(found["quantities"]) == 8
    assert printed["figures"] and all(Path(figure).stat().st_size > 1000 for figure in printed["figures"])
    assert printed["figures"][0] == str(tmp_path / "figures" / "both_hessian.png")


def test_figures_are_named_after_the_files(tmp_path):
    outcome = command(*saved(tmp_path, result("A"), result("B")), "--figure-format", "svg")
    assert outcome.status == 0 and (tmp_path / "run0_vs_run1_hessian_max_spectrum.svg").stat().st_size > 1000
    assert f"figure    {tmp_path / 'run0_vs_run1_hessian.svg'}" in outcome.out


def test_options_that_matter_and_unfinished_results_are_named(tmp_path):
    a, b = result("A"), result("B", config=Config(tolerance=1e-4, trace_samples=7, block_error=0.1))
    files = saved(tmp_path, a)
    b.save(tmp_path / "b.h5", complete=False)
    out = command(*files, tmp_path / "b.h5", "--no-plot").out
    assert "differ in options: tolerance 0.001 and 0.0001\n" in out  # more samples and absent blocks change no number
    assert out.count("NOT COMPLETE") == 1


def test_quantities_that_only_further_files_share_are_listed(tmp_path):
    a = replace(result("A"), trace=None).of(asdict(Config()), result("A").subject)
    [comparison] = compare.compare(saved(tmp_path, a, result("B"), result("B", seed=1)))
    [line] = [line for line in comparison.lines if line.name == "trace"]
    assert line.found[0] is None and line.differences == [None, None] and line.ratio == -1


class Judged(Result):
    """A result with a number that means something only beside a reference."""

    def against(self, reference, paired):
        return [Quantity("relative error", self.loss / reference.loss, None)]


def test_numbers_relative_to_the_first_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("analyze.hessian.spec.Result", Judged)
    [comparison] = compare.compare(saved(tmp_path, result("A"), result("B")))
    assert comparison.lines[-1].name == "relative error"
    assert comparison.lines[-1].found == [None, Quantity("relative error", 1.0, None)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run0.h5"], ["two or more"]),
        (["run0.h5", "run1.h5", "./run0.h5"], ["each run file once"]),
        (["run0.h5", "none.h5"], ["none.h5"]),
        (["run0.h5", "text.h5"], ["text.h5", "not an HDF5 file"]),
        (["run0.h5", "empty.h5"], ["run0.h5 holds hessian", "empty.h5 holds none"]),
        (["run0.h5", "run1.h5", "--only", "hessain"], ["hessain", "hessian"]),
        (["run0.h5", "strange.h5"], ["strange.h5", "what it is of"]),
        (["run0.h5", "run1.h5", "--out", "run0.h5/figure"], ["run0.h5"]),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, result("A"), result("B"))
    Path("text.h5").write_text("not HDF5")
    for name, change in (("empty.h5", lambda file: file.pop("hessian")), ("strange.h5", forget)):
        Path(name).write_bytes(Path("run1.h5").read_bytes())
        with h5py.File(name, "a", libver="v108") as file:
            change(file)
    outcome = command(*arguments)
    assert outcome.status == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err


def forget(file: h5py.File) -> None:
    """A subject without most of what `describe` writes."""
    file["hessian"].attrs["subject"] = json.dumps({"images": "many"})


def test_external_links_are_not_followed(tmp_path):
    files = saved(tmp_path, result("A"), result("B"))
    with h5py.File(files[1], "a", libver="v108") as file:
        file["variance"] = h5py.ExternalLink(str(files[0]), "/hessian")
    with pytest.raises(InputError, match="run1.h5"):
        compare.compare(files)


def test_comparing_loads_no_torch(tmp_path):
    script = (
        "import sys\n"
        "from analyze import compare\n"
        "compare.main(sys.argv[1:])\n"
        "print('LOADED', sorted({'torch', 'plotly', 'streamlit'} & set(sys.modules)))"
    )
    files = saved(tmp_path, result("A"), result("B"))
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout and "trace" in done.stdout
