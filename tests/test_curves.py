import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.curves import HEIGHT, MAX_PANELS, MAX_POINTS, WIDTH, Curve, Panel, curves_svg, panels_of, ticks

SVG = "{http://www.w3.org/2000/svg}"


def lines(svg):
    """The points of each line of a document."""
    return [
        [tuple(float(part) for part in point.split(",")) for point in line.attrib["points"].split()]
        for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    ]


def test_a_line_goes_where_the_figures_go():
    svg = curves_svg([Panel(title="loss", curves=(Curve(label="loss", points=((1, 4.0), (2, 2.0), (3, 0.0))),))])
    ((first, middle, last),) = lines(svg)
    assert first[0] < middle[0] < last[0]
    assert first[1] < middle[1] < last[1]  # down on the screen
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.1)
    texts = [one.text for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"loss", "step", "0", "4", "1", "3"} <= set(texts)


def test_all_that_is_drawn_lies_inside():
    steps = [{"step": step, "loss": (-1) ** step * 10.0**step, "grad_norm": 1e-9 * step} for step in range(1, 8)]
    svg = curves_svg(panels_of(steps))
    root = ElementTree.fromstring(svg)
    assert (root.attrib["width"], root.attrib["height"]) == (str(2 * WIDTH), str(HEIGHT))
    for points in lines(svg):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_panels_hold_what_was_logged_and_leave_out_the_rest():
    steps = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_loss": 3.0}, {"step": 3, "loss": 1.0}]
    (panel,) = panels_of(steps)
    assert panel.title == "loss"
    assert [(curve.label, curve.points) for curve in panel.curves] == [("loss", ((1, 2.0), (3, 1.0))), ("eval_loss", ((2, 3.0),))]
    everything = dict.fromkeys(
        ("loss", "reward/mean", "rewards/accuracies", "rewards/margins", "entropy", "kl", "grad_norm", "learning_rate"), 1.0
    )
    assert len(panels_of([{"step": 1} | everything])) == MAX_PANELS


def test_a_single_figure_is_a_dot_and_no_figures_are_an_empty_picture():
    svg = curves_svg(panels_of([{"step": 1, "loss": 2.0}]))
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))) == 1
    assert not lines(curves_svg([]))


def test_many_steps_are_averaged():
    steps = [{"step": step, "loss": step % 2} for step in range(10_000)]
    ((*points,),) = lines(curves_svg(panels_of(steps)))
    assert len(points) == MAX_POINTS
    assert len({y for _, y in points}) <= 3  # the noise is gone


def test_a_name_is_text_and_no_markup():
    svg = curves_svg([Panel(title="<b>&", curves=(Curve(label="a<b", points=((1, 1.0),)),))])
    assert "<b>&" in [one.text for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_few_and_enclose_the_range(low, span, most):
    high = low + span
    found = ticks(low, high, most)
    assert 2 <= len(found) <= most + 1
    assert found == sorted(set(found))
    slack = 1e-6 * max(abs(low), abs(high), 1e-6)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack


def test_ticks_are_round():
    assert ticks(0, 1, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.13, 0.17, 5) == [0.13, 0.14, 0.15, 0.16, 0.17]
    assert ticks(2, 2, 4) == [1.0, 1.5, 2.0, 2.5, 3.0]  # a flat line lies in the middle
    assert ticks(0, 0, 2) == [-0.5, 0.0, 0.5]
