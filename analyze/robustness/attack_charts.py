"""The interactive charts of adversarial attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.chart_parts import line
from analyze.charting import Drawn, new_chart, text
from analyze.robustness.charts import columns, part_about, value_axis, with_errors
from analyze.robustness.spec import Adversarial, Result, attacked_band
from analyze.robustness.tables import epsilon_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

ATTACKS = {
    "accuracy": "accuracy",
    "nll": "negative log-likelihood (nats)",
    "success_rate": "success rate of the attack",
    "ece": "expected calibration error",
    "l2": "mean Euclidean norm",
    "linf": "mean largest change of a pixel",
}
"""What `attacks` shows."""

_BOUNDS = {"linf": "bound on a pixel's change (1/255)", "l2": "bound on the Euclidean norm"}


def attacks(drawn: Sequence[Drawn[Result]], value: str = "accuracy") -> go.Figure | None:
    """One of `ATTACKS` over the bound, a panel for each norm, from no attack on; None without any attack.

    Args:
        drawn: Comparable results with attacks.
        value: Which quantity.
    """
    held = [each for each in drawn if len(_attacked(each).epsilon)]
    norms = list(dict.fromkeys(str(norm) for each in held for norm in _attacked(each).norm))
    if not norms:
        return None
    figure = new_chart(420, 1, len(norms), shared_yaxes="all", horizontal_spacing=0.05)
    told: set[str] = set()
    for column, norm in enumerate(norms, start=1):
        for each in held:
            for attack, dash in (("pgd", "solid"), ("fgsm", "dash")):
                curve = _attack_curve(each, value, norm, attack)
                if curve is not None:
                    curve.update(
                        line_dash=dash, cliponaxis=False, showlegend=curve.name not in told, legendgroup=curve.name
                    )
                    told.add(curve.name)
                    figure.add_trace(curve, row=1, col=column)
        title = _BOUNDS.get(norm, f"bound on {text(norm)}")
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    value_axis(figure, value)
    figure.update_yaxes(title_text=ATTACKS[value], col=1)
    return figure


def _attack_curve(each: Drawn[Result], value: str, norm: str, attack: str) -> Any:
    found = _attacked(each)
    rows = np.flatnonzero((found.norm == norm) & (found.attack == attack))
    rows = rows[np.argsort(found.epsilon[rows])]
    if not len(rows):
        return None
    values, errors = with_errors(found, value)
    epsilon, values, errors = found.epsilon[rows] * (255 if norm == "linf" else 1), values[rows], errors[rows]
    named = [f"{attack}, epsilon {epsilon_name(norm, bound)}" for bound in found.epsilon[rows]]
    if hasattr(found, f"clean_{value}"):
        clean_error = getattr(found, f"clean_{value}_stderr", np.nan)
        epsilon, values = np.append(0.0, epsilon), np.append(getattr(found, f"clean_{value}"), values)
        errors, named = np.append(clean_error, errors), ["no attack", *named]
    return line(epsilon, values, errors, f"{each.name}, {attack}", each.color, "%{text}", named)


def attack_table(drawn: Sequence[Drawn[Result]]) -> dict[str, list[Any]]:
    """All attacks as columns by heading, a row for each model and attack."""
    rows = []
    for each in drawn:
        found = _attacked(each)
        for row, (attack, norm, epsilon) in enumerate(zip(found.attack, found.norm, found.epsilon, strict=True)):
            told: list[Any] = [each.name, str(attack), str(norm), epsilon_name(str(norm), epsilon)]
            for value in ATTACKS:
                values, errors = with_errors(found, value)
                told += [float(values[row]), float(errors[row])]
            rows.append([*told, float(found.outside[row]), float(found.no_gradient[row])])
    measured = [heading for label in ATTACKS.values() for heading in (label, f"± {label}")]
    further = ["share of pixels outside [0, 1]", "share of images without gradient"]
    table = columns(["model", "attack", "norm", "bound", *measured, *further], rows)
    return {heading: told for heading, told in table.items() if not _is_empty(told)}


def about(drawn: Sequence[Drawn[Result]]) -> str:
    """Of what the attacks are, in a sentence."""
    band = attacked_band(drawn[0].result.config).removeprefix(", ")
    return f"{part_about(drawn, 'adversarial')}" + (f" Perturbations {band} alone." if band else "")


def _is_empty(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, float) and np.isnan(value) for value in values)


def _attacked(each: Drawn[Result]) -> Adversarial:
    assert each.result.adversarial is not None
    return each.result.adversarial
