# SPDX-License-Identifier: Apache-2.0
"""The report as parsed HTML: well formed, self-contained, escaped, accessible, and with the right figures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from secateur.evaluation import results as notes
from secateur.evaluation.report import report
from secateur.evaluation.results import Answered, Evaluation, Overlay, Percentiles
from tests.evaluation.made import evaluation, overlays

VOID = {"meta", "br", "img", "hr", "input", "link"}
LIMIT = 2_000_000


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return the text of this element and its descendants, with single spaces."""
        return " ".join(" ".join([*self.words, *(child.text for child in self.children)]).split())

    def __iter__(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child

    def all(self, tag: str) -> list[Element]:
        return [e for e in self if e.tag == tag]


class Tree(HTMLParser):
    """Parser that raises if a tag is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], [e.tag for e in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].words.append(data)


def tree(found: Evaluation, shown: list[Overlay] | None = None) -> Element:
    return Tree(report(found, shown or [])).root


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation()


@pytest.fixture(scope="module")
def text(found: Evaluation) -> str:
    return report(found, overlays(found))


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return Tree(text).root


def test_the_page_is_one_file_without_scripts(text: str, page: Element) -> None:
    assert text.startswith("<!doctype html>") and not page.all("script")
    assert not re.search(r"https?://|url\(|@import|<link|<iframe|javascript:", text)
    handlers = [name for e in page for name in e.attributes if name.startswith("on")]
    assert not handlers
    targets = [e.attributes[name] for e in page for name in ("href", "src") if name in e.attributes]
    assert targets and all(t.startswith(("#", "data:image/png;base64,")) for t in targets)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_reference_has_one(page: Element) -> None:
    ids = [e.attributes["id"] for e in page if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert {e.attributes["href"][1:] for e in page if e.attributes.get("href", "").startswith("#")} <= set(ids)


def test_every_figure_has_a_description(page: Element) -> None:
    figures = page.all("figure")
    assert len(figures) == 1 + 15 + 45 * 4 + 1
    for figure in figures:
        (picture,) = (e for e in figure.all("svg") if e.attributes.get("role") == "img")
        assert [child.tag for child in picture.children[:2]] == ["title", "desc"]
        assert picture.children[0].text and picture.children[1].text
    assert all("aria-hidden" in e.attributes or e.all("title") for e in page.all("svg"))


def test_headings_and_table_headers(page: Element) -> None:
    levels = [int(e.tag[1]) for e in page if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert page.all("th") and all(e.attributes.get("scope") for e in page.all("th"))
    assert page.all("html")[0].attributes["lang"] == "en"


def rows(page: Element) -> dict[str, list[str]]:
    """Return the cells of the main table by schedule."""
    found = {}
    for row in page.all("table")[0].all("tr"):
        if cells := row.all("td"):
            found[row.all("th")[0].text] = [cell.text for cell in cells]
    return found


def test_the_table_has_the_figures(page: Element, found: Evaluation) -> None:
    table = rows(page)
    assert set(table) == {s.name for s in found.schedules}
    one = next(s for s in found.schedules if s.name == "btp-78")
    assert one.score == pytest.approx(0.9282, abs=1e-4) and one.ttft_ms.p50 == pytest.approx(10.3, abs=0.05)
    assert table["btp-78"] == [
        *("78.0", "31.7", "0.22", "92.8", "97.4", "95.4 to 98.4"),
        *("61", "17", "< 0.001", "72.8", "–", "10.3", "12.1", "0.26"),
    ]
    assert table["full"][6:11] == ["–"] * 5


def test_the_split_is_always_in_percent() -> None:
    found = dataclasses.replace(evaluation(["btp", "downsample"], [0.5]), full_marks=2800.0, metric="perception")
    ours = found.schedules[1]
    assert ours.split is not None and ours.split.hard.score is not None
    page = tree(found)
    assert rows(page)["btp-50"][9] == f"{100 * ours.split.hard.score:.1f}"
    assert rows(page)["btp-50"][3] == f"{ours.score:.1f}"
    assert "VTC split, %" in [e.text for e in page.all("th")]


def test_notes_on_what_the_figures_do_not_include(page: Element, found: Evaluation) -> None:
    for said in (
        "The gates themselves are not included, nor is the encoder, where a smaller image saves much.",
        "In brackets, where the schedule reports it",
        "This bundle cuts the decoder into 5 segments because some schedule needs it",
        "makes the encoder return received.-2 for the gates that read it: every schedule pays for that, including ",
        "Compare schedules here with each other, not with other bundles.",
        "nearest one in tokens, within 15 %: downsample-94 (8.6 tokens)",
        "Questions about one image are resampled together.",
        "Python code between the graphs",
    ):
        assert said in page.text, said
    assert rows(page)["alvts-78"][2] == "0.22 (0.44)"
    alone = dataclasses.replace(evaluation(["btp"], [0.5]), segments=1, encoder_scores=())
    words = tree(alone).text
    assert not any(word in words for word in ("This bundle cuts", "In brackets", "within 15 %:", "images of"))
    sizes = ("96x96", "144x96")
    assert notes.sizes_note(sizes) in tree(dataclasses.replace(alone, image_sizes=sizes)).text


def test_the_best_of_each_budget_is_bold(page: Element) -> None:
    groups = page.all("table")[0].all("tbody")
    assert len(groups) == 4 and not groups[0].all("strong")
    for group, name in zip(groups[1:], ("btp-78", "btp-89", "btp-94"), strict=True):
        bold = {row.all("th")[0].text for row in group.all("tr") if row.all("td") and row.all("td")[3].all("strong")}
        assert bold == {name}


def test_the_head_has_the_facts_of_the_run(page: Element, found: Evaluation) -> None:
    head = page.all("header")[0].text
    for fact in ("demo-compare", found.command, "1,200, seed 7", "50 timed", "Some CPU", "9.9", "fp32", "12 × 12"):
        assert fact in head


def test_equal_input_gives_equal_bytes(found: Evaluation, text: str) -> None:
    assert report(found, overlays(found)) == text


HOSTILE = "<script>alert(\"1\")</script> & 'two' <b> {{ 7 * 7 }} {% if %}"


def test_everything_from_the_data_is_escaped() -> None:
    found = evaluation(["btp", "random"])
    schedules = tuple(
        dataclasses.replace(s, name=s.name + HOSTILE, groups={HOSTILE: 0.5}, method=s.method + HOSTILE)
        if s.method == "btp"
        else s
        for s in found.schedules
    )
    names = ("task", "metric", "bundle", "model", "target", "dtype", "backend", "command")
    found = dataclasses.replace(
        found,
        schedules=schedules,
        machine={HOSTILE: HOSTILE},
        **dict.fromkeys(names, HOSTILE),  # type: ignore[arg-type]
    )
    (shown,) = overlays(found, count=1)
    said = {name: dataclasses.replace(a, text=HOSTILE) for name, a in shown.answers.items()}
    page = tree(found, [dataclasses.replace(shown, question=HOSTILE, expected=HOSTILE, answers=said)])
    assert not page.all("script")
    seen = " ".join(HOSTILE.split())
    assert page.text.count(seen) > 30 and seen in page.all("title")[0].text
    assert seen in page.all("figcaption")[0].text and "btp-78" + seen in rows(page)


def undefined(found: Evaluation) -> Evaluation:
    """Return an evaluation without right answers, and with every optional value undefined."""
    nothing: dict[str, object] = {
        "score": 0.0,
        "score_interval": (0.0, 0.0),
        "retention": None,
        "retention_interval": None,
    }
    bare: dict[str, object] = {
        "mcnemar": None,
        "split": None,
        "groups": {},
        "metrics": {},
        "ttft_ms": Percentiles(0, 0),
        "stage_ms": {},
    }
    return dataclasses.replace(
        found,
        schedules=tuple(dataclasses.replace(s, **nothing, **bare) for s in found.schedules),  # type: ignore[arg-type]
    )


def some_kinds(found: Evaluation) -> Evaluation:
    first, *others = found.schedules
    return dataclasses.replace(found, schedules=(dataclasses.replace(first, groups={"only full": 0.5}), *others))


CASES = {
    "full alone": evaluation([]),
    "one schedule": evaluation(["btp"], [0.5]),
    "controls alone": evaluation(["random", "downsample"]),
    "thirty methods": evaluation([f"method{i}" for i in range(30)]),
    "all dropped": evaluation(["vtw", "btp"], [1.0, 0.9]),
    "undefined": undefined(evaluation(["btp", "random"])),
    "undefined full": undefined(evaluation([])),
    "other marks": dataclasses.replace(evaluation(["btp"]), full_marks=2800.0, metric="perception"),
    "some kinds": some_kinds(evaluation(["btp"], [0.5])),
    "not square": evaluation(["btp"], [0.5], (6, 9)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_unusual_evaluations(case: str) -> None:
    found = CASES[case]
    for shown in ([], overlays(found, count=1)):
        page = tree(found, shown)
        assert set(rows(page)) == {s.name for s in found.schedules}
        words = page.text + " ".join(value for e in page for value in e.attributes.values() if len(value) < 5000)
        assert not re.search(r"\b(nan|inf|None|True|False)\b", words)


def test_an_answer_may_be_half_right() -> None:
    found = evaluation(["btp"], [0.5])
    (shown,) = overlays(found, count=1)
    halves = {"full": Answered("a", 1.0, (), ()), "btp-50": dataclasses.replace(shown.answers["btp-50"], score=0.3)}
    page = tree(found, [dataclasses.replace(shown, answers=halves)])
    (caption,) = (e.text for e in page.all("figcaption"))
    assert "30.0 % right" in caption and "expected green" in caption


def test_only_some_of_many_gates_are_shown_with_a_note(page: Element) -> None:
    (alvts,) = (e for e in page.all("details") if e.all("summary")[0].text.startswith("alvts"))
    captions = [e.text for e in alvts.all("figure")[0].all("text")]
    assert [c.partition(":")[0] for c in captions] == ["144 tokens", "layer 0", "layer 7", "layer 15"]
    assert "The first, the middle and the last of 16 gates are shown." in alvts.text


def test_the_largest_page_stays_small() -> None:
    """46 schedules, 4 noisy photographs, 576 tokens of which a random half is kept: hardly compressible."""
    found = evaluation(compressions=(0.45, 0.5, 0.55), grid=(24, 24))
    assert len(found.schedules) == 46
    assert len(report(found, overlays(found, pixels=336)).encode()) < LIMIT
