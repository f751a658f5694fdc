"""The interactive charts show the numbers of the results, and names as text."""

import numpy as np
import pytest
from maps import noise_subject, zoo_net

from analyze import variance
from analyze.charting import Drawn, long_table
from analyze.variance.charts import LABELS, layer_table, measured_values, variances
from analyze.variance.spec import VALUES, Config, Result

NAME = "a <b>bold</b> %{y} name"


def drawn(network: str, name: str, color: str, **options) -> Drawn[Result]:
    return Drawn(variance.compute(noise_subject(zoo_net(network, **options)), Config(passes=2)), name, color)


@pytest.fixture(scope="module")
def plain() -> Drawn[Result]:
    return drawn("resnet_mcdo_18", "plain", "#0072B2")


@pytest.fixture(scope="module")
def smooth() -> Drawn[Result]:
    return drawn("resnet_mcdo_smoothing_18", NAME, "#D55E00")


@pytest.fixture(scope="module")
def deterministic() -> Drawn[Result]:
    return drawn("resnet_dnn_18", "dnn", "#009E73")


def test_each_line_has_the_stored_values_errors_and_names(plain, smooth):
    figure = variances([plain, smooth], VALUES, log=False)
    assert len(figure.data) == 2 * len(VALUES)
    for value, place in ((value, place) for value in VALUES for place in (0, 1)):
        trace, each = figure.data[2 * VALUES.index(value) + place], (plain, smooth)[place]
        assert np.array_equal(trace.y, getattr(each.result, value), equal_nan=True)
        assert np.array_equal(trace.error_y.array, getattr(each.result, f"{value}_stderr"), equal_nan=True)
        assert list(trace.text) == each.result.layer.tolist()
        assert trace.line.color == trace.marker.color == each.color
    assert [axis.title.text for axis in figure.select_yaxes()] == [LABELS[value] for value in VALUES]


def test_layers_stand_where_the_longer_network_has_them(plain, smooth):
    figure = variances([plain, smooth], ["data_variance"])
    names = list(figure.layout.xaxis.ticktext)
    assert names == smooth.result.layer.tolist()
    for trace in figure.data:
        assert [names[int(x)] for x in trace.x] == list(trace.text)


def test_smoothing_and_subsampling_are_marked(plain, smooth):
    figure = variances([plain, smooth], ["data_variance"])
    layers = smooth.result.layer.tolist()
    spans = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [(layers[int(span.x0)], layers[int(span.x1)]) for span in spans] == [
        (f"layer{stage}.1", f"smooth{stage}.0") for stage in (1, 2, 3, 4)
    ]
    lines = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert [line.x0 for line in lines] == [place - 0.5 for place in np.flatnonzero(smooth.result.subsampling)]
    assert [mark.name for mark in figure.layout.shapes if mark.showlegend] == ["smoothing", "subsampling"]
    symbols = dict(zip(layers, figure.data[1].marker.symbol, strict=True))
    assert symbols["smooth1.0"] == "square-open" and symbols["layer1.0"] == "circle"


def test_picked_layers_move_together_and_keep_their_marks(plain, smooth):
    figure = variances([plain, smooth], ["data_variance"], layers=["layer1.1", "smooth1.0", "layer3.0"], log=False)
    assert list(figure.layout.xaxis.ticktext) == ["layer1.1", "smooth1.0", "layer3.0"]
    assert [list(trace.x) for trace in figure.data] == [[0, 2], [0, 1, 2]]
    kept = [smooth.result.layer.tolist().index(name) for name in ("layer1.1", "smooth1.0", "layer3.0")]
    assert np.array_equal(figure.data[1].y, smooth.result.data_variance[kept])
    spans = [(shape.type, shape.x0, shape.x1) for shape in figure.layout.shapes]
    assert spans == [("rect", 0, 1), ("line", 1.5, 1.5)]  # layer3.0 is smaller than what stands before it


def test_other_layers_are_placed_by_relative_depth(smooth):
    other = drawn("vgg_mcdo_smoothing_11", "vgg", "#CC79A7", hidden=8)
    figure = variances([other, smooth], ["data_variance"])
    for trace, each in zip(figure.data, (other, smooth), strict=True):
        assert np.array_equal(trace.x, each.result.depth)
    assert figure.layout.xaxis.ticktext is None and figure.layout.xaxis.title.text == "relative depth"


def test_a_logarithmic_axis_leaves_out_the_zeros_of_deterministic_networks(plain, deterministic):
    figure = variances([plain, deterministic], ["model_variance"])
    assert figure.layout.yaxis.type == "log"
    assert np.isnan(figure.data[1].y).all() and (plain.result.model_variance[0] == 0) == np.isnan(figure.data[0].y[0])
    assert (variances([deterministic], ["model_variance"], log=False).data[0].y == 0).all()


@pytest.mark.parametrize("value", VALUES)
def test_ratios_are_to_the_layer_before_with_a_jackknifes_errors(smooth, value):
    values, errors = measured_values(smooth.result, value, to_layer_before=True)
    stored = getattr(smooth.result, value)
    assert np.isnan(values[0])
    known = stored[:-1] > 0
    assert np.allclose(values[1:][known], stored[1:][known] / stored[:-1][known], rtol=1e-12)
    totals = smooth.result.sums.total[:13, :, VALUES.index(value)]  # an image in each group
    without = totals.sum(axis=0) - totals
    place = smooth.result.layer.tolist().index("smooth2.0")
    left = without[:, place] / without[:, place - 1]
    jackknife = np.sqrt(12 / 13 * ((left - left.mean()) ** 2).sum())
    assert errors[place] == pytest.approx(jackknife, rel=0.15)  # the influence is the jackknife's first order


def test_names_are_text_wherever_they_stand(smooth):
    figure = variances([smooth], ["data_variance"])
    (trace,) = figure.data
    assert trace.name == "a &lt;b&gt;bold&lt;/b&gt; %{y} name"
    assert NAME not in trace.hovertemplate and "%{y}" not in trace.hovertemplate
    assert {row[0] for row in long_table(figure)[1:]} == {NAME}


def test_the_table_holds_all_values_of_the_picked_layers(plain, smooth):
    table = layer_table([plain, smooth], ["layer1.1", "smooth1.0"])
    assert table["model"] == ["plain", NAME, NAME] and table["layer"] == ["layer1.1", "layer1.1", "smooth1.0"]
    place = smooth.result.layer.tolist().index("smooth1.0")
    for value in VALUES:
        assert table[LABELS[value]][2] == getattr(smooth.result, value)[place]
        assert table[f"± {LABELS[value]}"][2] == getattr(smooth.result, f"{value}_stderr")[place]
