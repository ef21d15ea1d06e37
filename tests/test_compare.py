"""Two reports: what differs is named, what is the same is not, and the exit code says whether a score got worse."""

import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from interviewmate_utils import compare, results
from interviewmate_utils.results.__main__ import main

RECORD = {
    "notebook": "notebooks/06_evaluate_models.ipynb", "parameters": {"seed": 13, "items": 0}, "inputs": {"data/x": "aa"},
    "versions": {"torch": "2.13.0"}, "started": "2026-01-01", "duration_s": 5.0, "git_commit": "abc", "peak_memory_gb": 1.0,
}  # fmt: skip
ITEMS = 46


def scores(shift: float = 0.0, items: int = ITEMS, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = rng.beta(6, 40, items)
    rows = [("base", 0, base), ("run A", 13, base + 0.05), ("run A", 14, base + 0.05 + 0.01 * rng.standard_normal(items))]
    tables = []
    for system, k, values in rows:
        moved = values + (shift + 0.01 * rng.standard_normal(items) if system == "run A" and shift else 0.0)
        table = pd.DataFrame({"rougeL": moved, "similarity": moved, "reference_loss_nats": 5 - moved})
        tables.append(table.assign(system=system, seed=k, item=range(items)))
    return pd.concat(tables, ignore_index=True)


QUESTIONS = [f"What is {i}?" for i in range(ITEMS)]


def report(folder, table: pd.DataFrame, metrics: dict | None = None, figure: bytes = b"png", questions=QUESTIONS, **changes):
    """A report as the run contract leaves it."""
    path = folder / "06_evaluate_models.ipynb"
    (output := path.with_suffix("")).mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(metadata={"interviewmate": RECORD | changes}), path)
    results.write_table(table, "scores", output)
    results.write_table(pd.DataFrame({"question": questions}), "answers", output)
    content = {"notebook": "06", "run": "06", "profile": "p", "seed": 13, "metrics": metrics or {"a_score": 0.5, "took_s": 3.0}}
    (output / "results.json").write_text(json.dumps(content))
    (output / "figures").mkdir()
    (output / "figures" / "items.png").write_bytes(figure)
    return folder


def diff(tmp_path, first, second) -> tuple[int, str]:
    page = tmp_path / "page.html"
    return main(["diff", str(first), str(second), "-o", str(page)]), page.read_text() if page.exists() else ""


def test_the_same_report_at_another_time_differs_in_nothing(tmp_path, capsys) -> None:
    first = report(tmp_path / "a", scores())
    second = report(
        tmp_path / "b",
        scores(),
        {"a_score": 0.5, "took_s": 9.0},
        started="later",
        duration_s=9.0,
        git_commit="def",
        peak_memory_gb=2.0,
    )
    code, page = diff(tmp_path, first, second)
    assert code == 0
    assert "None of 6 scores got worse" in capsys.readouterr().out
    (one,) = compare.compare(first, second)
    assert one.settings.empty
    assert (one.numbers.change == 0).all()
    assert one.figures == []
    assert set(one.verdicts.verdict) == {"not distinguishable"}
    assert page.count("<p>None.</p>") == 2


def test_what_differs_is_named(tmp_path) -> None:
    first = report(tmp_path / "a", scores())
    changed = {"parameters": {"seed": 14, "items": 0}, "inputs": {"data/x": "bb"}, "versions": {"torch": "2.14.0"}}
    second = report(tmp_path / "b", scores(), {"a_score": 0.25, "b_score": 1.0}, b"other", **changed)
    (one,) = compare.compare(first, second)
    assert dict(one.settings.A) == {"parameters: seed": "13", "inputs: data/x": "aa", "versions: torch": "2.13.0"}
    assert dict(one.settings.B) == {"parameters: seed": "14", "inputs: data/x": "bb", "versions: torch": "2.14.0"}
    assert one.numbers.change["a_score"] == -0.25
    assert np.isnan(one.numbers.A["b_score"])
    assert [name for name, _, _ in one.figures] == ["items.png"]


@pytest.mark.parametrize(("shift", "code", "verdict"), [(-0.05, 1, "worse"), (0.05, 0, "better")])
def test_exit_code_says_whether_a_score_got_worse(tmp_path, capsys, shift, code, verdict) -> None:
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores(shift))
    assert diff(tmp_path, first, second)[0] == code
    lines = [line for line in capsys.readouterr().out.split("\n") if line.startswith("06")]
    assert [re.findall(r"run A is (\w+) on ([\w-]+)", line)[0] for line in lines] == [
        (verdict, "ROUGE-L"), (verdict, "similarity"), (verdict, "loss"),
    ]  # fmt: skip
    for line in lines:  # the interval stands in the score's own direction
        difference, low, high = map(float, re.search(r"difference (\S+) \((\S+) to (\S+)\)", line).groups())
        assert low <= difference <= high
        assert np.sign(difference) == np.sign(shift) * (-1 if "loss" in line else 1)


def test_a_small_change_is_within_chance(tmp_path) -> None:
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores(-0.001))
    assert diff(tmp_path, first, second)[0] == 0


def test_few_questions_get_no_verdict(tmp_path, capsys) -> None:
    first = report(tmp_path / "a", scores(items=9), questions=QUESTIONS[:9])
    second = report(tmp_path / "b", scores(-0.05, items=9), questions=QUESTIONS[:9])
    assert set(compare.compare(first, second)[0].verdicts.verdict) == {"no verdict"}
    assert diff(tmp_path, first, second)[0] == 0
    assert "6 have too few questions" in capsys.readouterr().out


def test_other_questions_are_refused_and_named(tmp_path, capsys) -> None:
    other = [*QUESTIONS[:3], "Who?", *QUESTIONS[4:]]
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores(), questions=other)
    assert diff(tmp_path, first, second) == (2, "")
    assert "1 only in A (What is 3?) and 1 only in B (Who?)" in capsys.readouterr().err


def test_the_same_questions_in_another_order_are_paired(tmp_path) -> None:
    first = report(tmp_path / "a", scores())
    turned = scores().assign(item=lambda table: ITEMS - 1 - table["item"])
    second = report(tmp_path / "b", turned, questions=QUESTIONS[::-1])
    (one,) = compare.compare(first, second)
    assert (one.verdicts.difference == 0).all()
    assert (one.verdicts.p_holm == 1).all()


def test_scores_that_are_not_numbers_are_refused(tmp_path, capsys) -> None:
    broken = scores()
    broken.loc[(broken.item == 3) & (broken.seed == 14), "rougeL"] = np.nan  # in one of two trainings
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", broken)
    assert diff(tmp_path, first, second)[0] == 2
    assert "ROUGE-L of run A is not finite for 1 answers, the first to: What is 3?" in capsys.readouterr().err


def test_reports_that_share_nothing_or_are_missing(tmp_path, capsys) -> None:
    first = report(tmp_path / "a", scores())
    (tmp_path / "b").mkdir()
    assert diff(tmp_path, first, tmp_path / "b")[0] == 2
    assert "share no report" in capsys.readouterr().err
    assert diff(tmp_path, first, tmp_path / "c")[0] == 2
    assert "no such report" in capsys.readouterr().err


def test_two_runs_of_one_notebook_may_be_named_apart(tmp_path) -> None:
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores())
    other = second / "06_mine.ipynb"
    (second / "06_evaluate_models.ipynb").rename(other)
    (second / "06_evaluate_models").rename(second / "06_mine")
    (one,) = compare.compare(first / "06_evaluate_models.ipynb", other)
    assert len(one.verdicts) == 6


def test_what_only_one_side_has_scored_is_not_passed_over(tmp_path, capsys) -> None:
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores())
    for folder in (first, second):
        nbformat.write(nbformat.v4.new_notebook(), folder / "01_prepare_data.ipynb")
    failed = second / "06_evaluate_models.failed.ipynb"
    (second / "06_evaluate_models.ipynb").rename(failed)
    assert diff(tmp_path, first, second)[0] == 2
    assert "06_evaluate_models scores questions, but B has no such report" in capsys.readouterr().err
    assert diff(tmp_path, first / "06_evaluate_models.ipynb", failed)[0] == 2


def test_runs_of_two_notebooks_are_not_compared(tmp_path, capsys) -> None:
    first, second = (
        report(tmp_path / "a", scores()),
        report(tmp_path / "b", scores(), notebook="notebooks/01_prepare_data.ipynb"),
    )
    assert diff(tmp_path, *(folder / "06_evaluate_models.ipynb" for folder in (first, second)))[0] == 2
    assert "of notebooks/01_prepare_data.ipynb" in capsys.readouterr().err


def test_a_broken_report_is_not_a_worse_one(tmp_path, capsys) -> None:
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores())
    (second / "06_evaluate_models" / "results.json").write_text("{")
    assert diff(tmp_path, first, second)[0] == 2
    assert "Not compared" in capsys.readouterr().err


def test_a_failed_report_is_left_out(tmp_path) -> None:
    first, second = report(tmp_path / "a", scores()), report(tmp_path / "b", scores())
    for folder in (first, second):
        nbformat.write(nbformat.v4.new_notebook(), folder / "07_analyse_errors.failed.ipynb")
    assert [one.stem for one in compare.compare(first, second)] == ["06_evaluate_models"]


def test_texts_are_escaped(tmp_path) -> None:
    first = report(tmp_path / "a", scores())
    second = report(tmp_path / "b", scores(), parameters={"seed": "<script>alert(1)</script>"})
    assert "<script>" not in diff(tmp_path, first, second)[1]
