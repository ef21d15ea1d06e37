"""The README's results are exactly the published copy, which is what a report wrote."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from interviewmate_utils import publish, results

PUBLISHED = publish.PUBLISHED / "embedded.md"


def test_readme_shows_the_published_block_unchanged():
    assert publish.shown(publish.README.read_text(encoding="utf-8")) == PUBLISHED.read_text(encoding="utf-8").strip()


def test_published_numbers_are_those_of_the_run():
    found = results.Results.model_validate_json((publish.PUBLISHED / "embedded.json").read_text())
    text = PUBLISHED.read_text()
    for system in ("base", "run_A", "run_B", "run_C", "run_enhanced", "retrieval"):
        assert f"| {system.replace('_', ' ')} | {found.metrics[f'{system}_rouge_l_score']:.3f} |" in text
    for line in found.headline.split("\n"):
        assert f"- {line}" in text
    assert found.caveat in text, "the small model's results must be labelled as such"


def test_published_figure_is_there_and_readable():
    ET.parse(publish.PUBLISHED / "embedded.svg")


def test_an_edited_number_in_the_readme_is_noticed():
    readme = publish.README.read_text(encoding="utf-8")
    edited = re.sub(r"(\| run A \| 0\.)\d", r"\g<1>9", readme)
    assert edited != readme
    assert publish.shown(edited) != PUBLISHED.read_text(encoding="utf-8").strip()


def test_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the lines"):
        publish.shown("# A README without marks")


def test_an_outdated_report_is_not_published(tmp_path, monkeypatch, capsys):
    import nbformat

    from interviewmate_utils import config

    report = tmp_path / "reports" / "embedded" / "13_summarise.ipynb"
    report.parent.mkdir(parents=True)
    record = {"notebook": "notebooks/gone.ipynb"}
    nbformat.write(nbformat.v4.new_notebook(metadata={"interviewmate": record}), report)
    monkeypatch.setattr(config, "ROOT", tmp_path)
    assert publish.main(["embedded"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert json.loads((publish.PUBLISHED / "embedded.json").read_text())["profile"] == "embedded"


def test_a_longer_search_is_published_with_its_figures_and_verdict(tmp_path, monkeypatch):
    import nbformat

    report = tmp_path / "reports" / "embedded" / "05_search_hyperparameters_full.ipynb"
    output = report.with_suffix("")
    (output / "figures").mkdir(parents=True)
    (output / "figures" / "ranking.svg").write_text("<svg/>")
    (output / "searched.yaml").write_text("run: searched\nrank: 4\n")
    found = {
        "profile": "embedded",
        "seed": 13,
        "model": "m",
        "notebook": "05",
        "run": "05",
        "caveat": "Small.",
        "headline": "Trial 9 is better.",
        "metrics": {},
    }
    (output / "results.json").write_text(json.dumps(found))
    parameters = {"study": "full", "trials": 12, "folds": 3}
    record = {"parameters": parameters, "machine": "x86_64, Linux", "duration_s": 1234.5}
    nbformat.write(nbformat.v4.new_notebook(metadata={"interviewmate": record}), report)
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path)
    page = publish.search_page("embedded", report)
    for text in (
        "12 trials of 3 folds",
        "**Small.**",
        "- Trial 9 is better.",
        "rank: 4",
        "1234 s",
        "](embedded_full_ranking.svg)",
    ):
        assert text in page
    assert (tmp_path / "embedded_full_ranking.svg").read_text() == "<svg/>"
