"""Plots: drawn for both colour schemes, the same bits every time, and what they show."""

from typing import Any

from matplotlib.figure import Figure

from sslmed_dist.report import plots
from sslmed_dist.report.plots import DARK, LIGHT, Curve, Dot


def axes_of(draw: plots.Draw) -> Any:
    axes = Figure().subplots()
    draw(axes, LIGHT)
    return axes


def captured(monkeypatch: Any, make: Any) -> Any:
    """The axes that a plot function draws, without the PNG."""
    found: list[plots.Draw] = []
    with monkeypatch.context() as patch:
        patch.setattr(plots, "plot", lambda draw, size: found.append(draw))
        make()
    return axes_of(found[0])


def test_a_plot_is_two_pngs_and_repeats_bit_for_bit() -> None:
    lines = [Curve("north", (([0, 1], [3.0, 2.0]),))]
    light, dark = plots.curves(lines, "step")
    assert light.startswith(b"\x89PNG") and dark.startswith(b"\x89PNG") and light != dark
    assert plots.curves(lines, "step") == (light, dark)
    assert b"matplotlib" not in light.lower()
    assert LIGHT.colour("#0072B2") == "#0072B2" != DARK.colour("#0072B2")


def test_forest_plot_shows_every_arm_of_every_site_from_top_to_bottom(monkeypatch: Any) -> None:
    dots = [Dot("local only", "local", 70.0, 65.0, 75.0), Dot("federated", "federated", None, None, None)]
    axes = captured(monkeypatch, lambda: plots.forest({"North": dots, "South": dots[:1]}, zero=True))
    labels = [(label.get_text(), label.get_fontweight()) for label in axes.get_yticklabels()]
    assert labels == [
        ("North", "bold"), ("local only", "normal"), ("federated", "normal"),
        ("South", "bold"), ("local only", "normal"),
    ]  # fmt: skip
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [text.get_text() for text in axes.texts] == ["no value"]
    assert [70.0] in [list(line.get_xdata()) for line in axes.lines]
    assert [65.0, 75.0] in [list(line.get_xdata()) for line in axes.lines]


def test_runs_that_share_x_get_a_mean(monkeypatch: Any) -> None:
    shared = Curve("site", (([0, 1], [1.0, 2.0]), ([0, 1], [3.0, 4.0])))
    axes = captured(monkeypatch, lambda: plots.curves([shared], "round"))
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]]
    apart = Curve("site", (([0, 1], [1.0, 2.0]), ([0, 2], [3.0, 4.0])))
    axes = captured(monkeypatch, lambda: plots.curves([apart], "round"))
    assert len(axes.lines) == 2 and axes.get_xlabel() == "round"


def test_histograms_have_one_density_each_and_leave_out_the_empty(monkeypatch: Any) -> None:
    counts = {"near": (0, 0, 3, 1), "far": (0, 4, 0, 0), "none": (0, 0, 0, 0)}
    axes = captured(monkeypatch, lambda: plots.histograms((-1.0, -0.5, 0.0, 0.5, 1.0), counts, "cosine"))
    outlines = {patch.get_label(): patch.get_data() for patch in axes.patches if not patch.get_fill()}
    assert {name: list(data.values) for name, data in outlines.items()} == {
        "near": [0.0, 0.0, 1.5, 0.5], "far": [0.0, 2.0, 0.0, 0.0]
    }  # fmt: skip
    assert axes.get_xlim() == (-0.5, 1.0) and axes.get_xlabel() == "cosine"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["near", "far"]
