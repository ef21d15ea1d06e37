"""Figures look alike everywhere and are the same file for the same data; texts in tables stay texts."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from interviewmate_utils import config, plots

SYSTEMS = ("base", "few-shot base", "retrieval", "run A", "run B", "run C", "run enhanced")
RUNS = ("run searched", *(f"run {file.stem}" for file in sorted((config.NOTEBOOKS / "params" / "runs").glob("*.yaml"))))
PARTS = ("train", "validation", "test")
MEANS = pd.DataFrame({"mean": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.2, 0.25]}, index=["base", "run A"])
DRAW = """
import sys; from pathlib import Path
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
from interviewmate_utils import plots
figure, axes = plt.subplots()
axes.plot([1, 2, 3], [3, 1, 2], label="a", clip_on=True); axes.legend(); axes.set_xlabel("steps")
plots.save(figure, "line", Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def own_settings():
    with mpl.rc_context(), pd.option_context("display.max_colwidth", 50):
        yield
    plt.close("all")


class Cells(HTMLParser):
    """Texts of the cells as a browser would show them, and every tag met."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.cells, self.inside = set(), [], False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.inside = True
        elif tag == "br":
            self.cells[-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, text: str) -> None:
        if self.inside:
            self.cells[-1] += text


def line() -> plt.Figure:
    figure, axes = plt.subplots()
    plots.interval_bars(MEANS, "mean", "low", "high", "ROUGE-L F1", axes)
    return figure


def test_published_colours_stay() -> None:
    # reports already published use these: a change makes an old figure and a new one disagree
    expected = {"base": "#7F7F7F", "retrieval": "#E69F00", "run A": "#0072B2", "run B": "#009E73", "run C": "#CC79A7"}
    expected |= {"run enhanced": "#D55E00", "train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
    assert {name: plots.colour(name) for name in expected} == expected


@pytest.mark.parametrize("group", [SYSTEMS, PARTS, RUNS], ids=["systems", "parts", "runs"])
def test_colours_within_a_figure_are_unique(group: tuple) -> None:
    assert len({plots.colour(name) for name in group}) == len(group)
    assert len({*plots.PALETTE, *plots.OTHERS}) == len(plots.PALETTE) + len(plots.OTHERS)


def test_any_name_has_a_colour_that_lasts() -> None:
    for name in ("falcon", "", "é", "run Z"):
        assert plots.colour(name) in plots.OTHERS
    code = "from interviewmate_utils import plots; print(plots.colour('falcon'))"
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert found == {plots.colour("falcon") + "\n"}


def test_save_writes_both_formats(tmp_path: Path) -> None:
    plots.save(line(), "bars", tmp_path)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["bars.png", "bars.svg"]
    assert (tmp_path / "figures/bars.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figures/bars.svg").read_text()
    assert "<svg" in svg
    assert "dc:date" not in svg


@pytest.mark.parametrize("prepare", [plots.setup, lambda: None])
def test_same_figure_same_file(tmp_path: Path, prepare) -> None:
    prepare()
    for folder in ("one", "two"):
        plots.save(line(), "bars", tmp_path / folder)
    one, two = ((tmp_path / f / "figures/bars.svg").read_bytes() for f in ("one", "two"))
    assert one == two
    changed = line()
    changed.axes[0].set_xlabel("other")
    plots.save(changed, "bars", tmp_path / "two")
    assert (tmp_path / "two/figures/bars.svg").read_bytes() != one


def test_same_figure_same_file_in_another_process(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / folder)], check=True)
    one, two = ((tmp_path / f / "figures/line.svg").read_bytes() for f in ("one", "two"))
    assert one == two


def test_interval_bars_show_the_numbers(tmp_path: Path) -> None:
    axes = line().axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["base", "run A"]
    assert axes.get_ylim() == (1.5, -0.5), "the first row is on top"
    assert axes.get_xlabel() == "ROUGE-L F1"
    bars = axes.containers
    assert [mpl.colors.to_hex(b.lines[0].get_color()).upper() for b in bars] == ["#7F7F7F", "#0072B2"]
    ends = [b.lines[2][0].get_segments()[0][:, 0].tolist() for b in bars]
    assert ends == [pytest.approx([0.05, 0.2]), pytest.approx([0.1, 0.25])]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '<img src=x onerror="alert(1)">',
        "a < b && c > d",
        "&lt;b&gt; stays as written",
        "two\nlines",
        r"print('\n') keeps its backslash",
        "long " * 200 + "end",
    ],
)
def test_texts_are_shown_as_written(text: str) -> None:
    plots.setup()
    html = plots.show_texts(pd.DataFrame({"answer": [text], "left out": ["x"], "n": [1]}), ["answer", "n"]).data
    shown = Cells(html)
    assert shown.cells == ["answer", "n", text, "1"]
    assert shown.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}


def test_column_names_are_texts_too() -> None:
    html = plots.show_texts(pd.DataFrame({"<script>": ["x"]}), ["<script>"]).data
    assert Cells(html).cells == ["<script>", "x"]
    assert "<script>" not in html


def test_items_are_folded_away_and_escaped() -> None:
    table = pd.DataFrame({"question": ["Is 1 < 2?", "Why?"], "run A": ["<script>alert(1)</script>\nyes", "so"]})
    shown = plots.show_items(table, "question").data
    assert shown.count("<details") == 2
    assert "1. Is 1 &lt; 2?" in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<br>yes" in shown
    assert "<script" not in shown


def test_groups_are_drawn_with_their_counts_and_without_an_interval_where_there_is_none() -> None:
    table = pd.DataFrame({
        "label": "subfield", "group": ["a", "a", "b", "b"], "system": ["run A", "run B"] * 2, "n": [20, 20, 5, 5],
        "difference": [0.1, 0.2, 0.0, -0.1], "low": [0.05, 0.1, None, None], "high": [0.2, 0.3, None, None],
    })  # fmt: skip
    table[["low", "high"]] = table[["low", "high"]].astype(float)
    _, axes = plt.subplots()
    plots.group_differences(table, "subfield", axes)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a (20)", "b (5)"]
    assert axes.get_legend_handles_labels()[1] == ["run A", "run B"]
    dots = [line for line in axes.lines if line.get_marker() in ("o", "x") and len(line.get_xdata()) == 1]
    assert sorted((float(dot.get_xdata()[0]), dot.get_marker()) for dot in dots) == [
        (-0.1, "x"),
        (0.0, "x"),
        (0.1, "o"),
        (0.2, "o"),
    ]
