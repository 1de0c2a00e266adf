# SPDX-License-Identifier: Apache-2.0
"""Positions in the charts, compared schedules, and veiled patches."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from secateur.evaluation.report.budgets import BudgetGroup, best, budgets, stages
from secateur.evaluation.report.curves import curves
from secateur.evaluation.report.kept import veil
from secateur.evaluation.report.series import all_series
from secateur.evaluation.results import GateLine
from secateur.report import formats
from secateur.report.charts import Scale, halvings, place_labels, ticks
from secateur.report.formats import milliseconds
from tests.evaluation.made import METHODS, evaluation, result

heights = st.lists(st.floats(-50, 450, allow_nan=False), min_size=1, max_size=20)


@given(heights)
def test_labels_move_as_little_as_possible(wanted: list[float]) -> None:
    """The oracle is a bounded isotonic regression of the wanted positions minus the gaps."""
    gap, low, high = 17.0, 0.0, 400.0
    places = place_labels(wanted, gap, low, high)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    steps = gap * np.arange(len(wanted))
    oracle = IsotonicRegression(y_min=low, y_max=high - steps[-1]).fit_transform(steps, np.array(wanted)[order] - steps)
    assert np.array(places)[order] == pytest.approx(oracle + steps, abs=1e-6)


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="3 labels"):
        place_labels([1, 2, 3], 10, 0, 15)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 6 or span < 1e-2
    assert all(low - 1e-6 <= t <= low + span + 1e-6 for t in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[:1])


def test_scales_and_halvings() -> None:
    scale = Scale(64, 4, 0, 400, log=True)
    assert [scale(v) for v in (64, 32, 4)] == pytest.approx([0, 100, 400])
    assert halvings(8, 36) == [8, 12, 16, 24, 32]
    assert halvings(8, 600) == [8, 16, 32, 64, 128, 256, 512]


def test_budgets_hold_every_schedule_once_and_controls_join() -> None:
    found = evaluation(["btp", "fopru"], [0.78, 0.89])
    odd = result("downsample-75", "downsample", 25.0, 144, 0.1)  # of 31.7 and 15.8 tokens, the first is nearer
    grouped = budgets(dataclasses.replace(found, schedules=(*found.schedules, odd)))
    assert [[s.name for s in b.schedules] for b in grouped] == [
        ["btp-78", "fopru-78", "downsample-75"],
        ["btp-89", "fopru-89"],
    ]
    assert grouped[0].tokens == pytest.approx(31.68)


def test_best_shares_what_the_table_shows_as_equal() -> None:
    three = [result(n, "btp", 30.0, 144, score) for n, score in (("a", 0.9001), ("b", 0.9004), ("c", 0.8))]
    assert {(n, c) for n, c in best(three) if c == "score"} == {("a", "score"), ("b", "score")}
    assert not {c for _, c in best(three)} & {"ttft"}  # all are equal, so none is best


def test_a_schedule_with_more_tokens_is_not_best() -> None:
    sizes = (("a", 30.0, 0.7), ("b", 31.4, 0.8), ("c", 33.0, 0.9), ("d", 30.0, 0.7))
    budget = BudgetGroup(30.0, tuple(result(n, "btp", tokens, 144, score) for n, tokens, score in sizes))
    assert [s.name for s in budget.rivals] == ["a", "b", "d"]  # of 30.7, the median, 5 % more is 32.2
    assert ("b", "score") in best(budget.rivals)


def test_no_two_methods_look_alike() -> None:
    series = all_series(evaluation([f"m{i}" for i in range(40)] + list(METHODS[-3:]), [0.5]))
    assert len({(s.look, s.marker) for s in series}) == 43
    assert [s.label for s in series if s.control] == ["random", "stride", "downsample"]
    colourless = {(s.marker, "hollow" in s.look) for s in series[:15]}
    assert len(colourless) == 15  # different in black and white too


def test_other_positions_are_another_line() -> None:
    found = evaluation(["btp"], [0.5])
    moved = dataclasses.replace(found.schedules[1], name="c", positions="compact")
    both = dataclasses.replace(found, schedules=(*found.schedules, moved))
    assert [s.label for s in all_series(both)] == ["btp", "btp (compact)"]


def test_other_options_of_the_same_size_are_another_line() -> None:
    names = ("v2drop-22", "v2drop-row-22", "v2drop-11", "v2drop-row-11")
    made = [result(n, "v2drop", 30.0 if n.endswith("22") else 15.0, 144, 0.5) for n in names]
    alone = dataclasses.replace(evaluation(["btp"]), schedules=(evaluation([]).schedules[0], *made))
    lines = {s.label: [p.name for p in s.schedules] for s in all_series(alone)}
    assert lines == {"v2drop": ["v2drop-22", "v2drop-11"], "v2drop-row": ["v2drop-row-22", "v2drop-row-11"]}
    named = [dataclasses.replace(s, name=n) for s, n in zip((made[0], made[2]), ("mild", "strong"), strict=True)]
    one = dataclasses.replace(alone, schedules=(alone.schedules[0], *named))
    assert [s.label for s in all_series(one)] == ["v2drop"]


def test_seeds_of_a_control_share_a_point() -> None:
    found = evaluation(["random"], [0.5, 0.75])
    again = dataclasses.replace(found.schedules[1], name="random-50.1", score=0.5)
    (series,) = all_series(dataclasses.replace(found, schedules=(*found.schedules, again)))
    assert len(series.schedules) == 3
    (_, first), (tokens, second) = series.points
    assert first == pytest.approx((0.5 + found.schedules[1].score) / 2)
    assert (tokens, second) == (36, found.schedules[2].score)


def places(picture: str, css: str) -> list[tuple[float, float]]:
    """Return the positions of the markers of one look."""
    found = re.findall(rf'class="mark {css}" d="[^"]*" transform="translate\(([\d.]+) ([\d.]+)\)"', picture)
    return [(float(x), float(y)) for x, y in found]


def test_positions_in_the_curves() -> None:
    found = evaluation()
    series = all_series(found)
    drawn = curves(found, series)
    assert len(drawn.each) == len(series) == 15
    marks = places(drawn.every, series[0].look)
    assert len(marks) == 4  # three budgets and the label
    (x0, y0), (x1, y1), (x2, y2) = marks[:3]
    assert x0 < x1 < x2 and y0 < y1 < y2  # fewer tokens to the right, lower scores below
    halving = (x1 - x0) / (x2 - x1)  # 31.7 to 15.8 is one halving, 15.8 to 8.6 less
    assert halving == pytest.approx(np.log(0.22 / 0.11) / np.log(0.11 / 0.06), rel=0.02)
    names = [float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)">', drawn.every)]
    assert len(names) == 15 and min(np.diff(sorted(names))) >= 16.9
    assert sum('id="all-curves"' in picture for picture in drawn.each) == 1


def test_few_methods_show_their_intervals_in_one_chart() -> None:
    found = evaluation(["btp", "random"])
    drawn = curves(found, all_series(found))
    assert not drawn.each and drawn.every.count('class="whisker') == 6


def test_stages_sum_up_segments_and_gates() -> None:
    found = stages(result("btp-50", "btp", 72.0, 144, 0.9))
    assert found == pytest.approx(
        {"preprocess": 0.5, "vision": 4, "projector": 0.5, "embed": 0.1, "segments": 10, "gates": 0.6}
    )
    small = stages(result("downsample-50", "downsample", 72.0, 144, 0.9))
    assert small["vision"] == pytest.approx(2) and small["gates"] == 0
    encoder = stages(result("visionzip-50", "visionzip", 72.0, 144, 0.9))
    assert encoder["vision"] == 4 and encoder["gates"] == pytest.approx(0.2)


def test_stages_add_up_to_the_first_token() -> None:
    """Graphs and preprocessing count once: "encode" and "prefill" are sums of other entries."""
    for schedule in evaluation().schedules:
        assert sum(stages(schedule).values()) == pytest.approx(schedule.ttft_ms.p50 / 1.02)


def test_a_gate_after_a_smaller_image_counts_as_a_gate() -> None:
    small = result("downsample-50", "downsample", 72.0, 144, 0.9)
    pruned = dataclasses.replace(
        small,
        gates=(*small.gates, GateLine(3, "prune", 9)),
        stage_ms={"downsample-50.0": 2.0, "downsample-50.1": 0.3, "encode": 9.0},
    )
    assert stages(pruned)["vision"] == 2 and stages(pruned)["gates"] == pytest.approx(0.3)


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_the_veil_covers_what_was_dropped(rows: int, columns: int, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.integers(0, rows * columns - 1)))
    covered, x, y = set(), 0, 0
    for command, first, second in re.findall(r"([Mmh])(\d+)(?: (\d+))?", veil(kept, (rows, columns))):
        if command == "M":
            x, y = int(first), int(second)
        elif command == "m":
            x += int(first)
        else:
            covered |= {y * columns + x + i for i in range(int(first))}
            x += int(first)
    assert covered == set(range(rows * columns)) - kept


def test_formats() -> None:
    assert formats.score(0.9342) == "93.4" and formats.score(1520.25, 2800) == "1,520.2" and formats.score(None) == "–"
    assert formats.interval((0.5, 0.625)) == "50.0 to 62.5" and formats.interval(None) == "–"
    assert formats.probability(0.0004) == "< 0.001" and formats.probability(0.0312) == "0.031"
    assert milliseconds(1234.56) == "1,234.6" and formats.megabytes(1_180_000) == "1.18"
    assert formats.headed("CIDEr") == "CIDEr" and formats.headed("accuracy") == "Accuracy"
    assert formats.unit(1) == "%" and formats.unit(2800) == "of 2,800"
