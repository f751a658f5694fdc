"""The command's figure is offered under a chart where it shows the chart's quantity, and nowhere else."""

import importlib

import pytest
from pages import page
from run_files import WITH, WITHOUT

from apps.chart import figure_names

BOTH = [WITHOUT, WITH]
CASES = [
    ("fourier", BOTH, {}, {"fourier_amplitudes": ""}),
    ("fourier", BOTH, {"fourier_amplitude": "log_amplitude"}, {"fourier_amplitudes": None}),
    ("fourier", BOTH, {"fourier_part": "Power"}, {"fourier_powers": None}),
    ("fourier", BOTH, {"fourier_part": "Power", "fourier_power": "model_noise_power"}, {"fourier_powers": "noise"}),
    ("fourier", BOTH, {"fourier_part": "Over depth"}, {"fourier_over_depth": ""}),
    *(("fourier", BOTH, {"fourier_part": "Over depth", "fourier_depth": value}, {"fourier_over_depth": paper})
      for value, paper in (("power_share", None), ("noise_share", "noise"), ("noise", None), ("dead_share", None))),
    ("fourier", [WITHOUT], {"fourier_part": "Over depth", "fourier_depth": "noise_share"}, {}),
    ("fourier", BOTH, {"fourier_part": "Frequency plane"}, {"fourier_planes": None}),
    ("fourier", [WITH], {"fourier_part": "Frequency plane"}, {"fourier_planes": "spectra"}),
    ("variance", BOTH, {}, {"variance_by_depth": ""}),
    ("variance", BOTH, {"variance_source": "data"}, {"variance_by_depth": ""}),
    ("variance", BOTH, {"variance_ratio": True}, {"variance_by_depth": None}),
    ("variance", BOTH, {"variance_spread": "standard deviation"}, {"variance_by_depth": None}),
    ("hessian", BOTH, {}, {"hessian_spectrum": ""}),
    ("hessian", BOTH, {"hessian_width": 10.0}, {"hessian_spectrum": None}),
    ("hessian", BOTH, {"hessian_part": "Trace"}, {"hessian_trace": None}),
    ("hessian", BOTH, {"hessian_part": "Mini-batches"}, {"hessian_max_spectrum": "max_spectrum"}),
    ("hessian", BOTH, {"hessian_part": "Mini-batches", "hessian_which": "smallest"}, {"hessian_max_spectrum": None}),
    ("hessian", BOTH, {"hessian_part": "Layers"}, {"hessian_blocks": "blocks", "hessian_bits": None}),
    ("hessian", [WITH], {"hessian_part": "Layers"}, {"hessian_blocks": "blocks", "hessian_bits": "blocks"}),
    ("robustness", BOTH, {}, {"robustness_noise": "", "robustness_half": ""}),
    ("robustness", BOTH, {"robustness_noise_value": "nll"}, {"robustness_noise": None, "robustness_half": ""}),
    ("robustness", BOTH, {"robustness_manner": "over strengths"}, {"robustness_noise": None, "robustness_half": ""}),
    ("robustness", BOTH, {"robustness_manner": "all strengths"}, {"robustness_noise": None, "robustness_half": ""}),
    ("robustness", [WITH], {"robustness_manner": "all strengths"}, {"robustness_noise": "", "robustness_half": ""}),
    ("robustness", BOTH, {"robustness_part": "Fourier heat map"},
     {"robustness_heat_maps": "heat_map", "robustness_difference": "heat_map"}),
    ("robustness", BOTH, {"robustness_part": "Fourier heat map", "robustness_wave_value": "flip_rate"},
     {"robustness_heat_maps": None, "robustness_difference": None}),
    ("robustness", [WITH], {"robustness_part": "Fourier heat map", "robustness_wave_value": "flip_rate"},
     {"robustness_heat_maps": "heat_map"}),
    ("robustness", BOTH, {"robustness_part": "Attacks"}, {"robustness_attacks": "attacks"}),
    ("robustness", BOTH, {"robustness_part": "Attacks", "robustness_attack_value": "l2"}, {"robustness_attacks": None}),
    ("robustness", BOTH, {"robustness_part": "Corruptions"},
     {"robustness_corruptions": "corruptions", "robustness_severities": None}),
    ("robustness", BOTH, {"robustness_part": "Corruptions", "robustness_severity": 3},
     {"robustness_corruptions": None, "robustness_severities": None}),
    ("robustness", BOTH, {"robustness_part": "Corruptions", "robustness_corruption_value": "ece"},
     {"robustness_corruptions": None, "robustness_severities": None}),
]  # fmt: skip


@pytest.mark.parametrize(("view", "chosen", "settings", "expected"), CASES)
def test_figures_of_another_quantity_are_not_offered(made, monkeypatch, view, chosen, settings, expected):
    module, offered = importlib.import_module(f"apps.views.{view}"), {}
    draw = module.show_chart

    def recorded(figure, of, key, *, paper="", **options):
        offered[key] = paper
        assert paper is None or paper in figure_names([each.result for each in of])
        return draw(figure, of, key, paper=paper, **options)

    monkeypatch.setattr(module, "show_chart", recorded)
    test = page(view, made, chosen, **settings)
    assert not test.exception and offered == expected
