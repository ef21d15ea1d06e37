"""Every claim is judged, the demonstrations count rightly, and the committed outputs of the audit are those of its code."""

import io
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml

from interviewmate_utils import audit, config

NOTEBOOK = config.NOTEBOOKS / "12_audit_claims.ipynb"
RENEW = "PYTHONWARNINGS=ignore .venv/bin/jupyter nbconvert --execute --inplace notebooks/12_audit_claims.ipynb"
CLAIMS = config.ROOT / "data/raw/published_claims.yaml"


def strictly(notebook) -> subprocess.CompletedProcess:
    """`pytest --nbval`: executes a notebook and compares every output with the one it holds."""
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-o", "addopts=", "-p", "no:cacheprovider", str(notebook)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}  # what libraries warn of is no output of ours
    return subprocess.run(
        command, cwd=config.NOTEBOOKS, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_committed_outputs_are_those_of_the_code() -> None:
    done = strictly(NOTEBOOK)
    assert done.returncode == 0, f"run: {RENEW}\n{done.stdout[-3000:]}"


def test_an_edited_output_is_noticed(tmp_path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = notebook.cells[: next(i for i, c in enumerate(notebook.cells) if "found.show" in c.source) + 1]
    output = notebook.cells[-1].outputs[-1].data
    assert "1,572,864" in output["text/html"]
    output["text/html"] = output["text/html"].replace("1,572,864", "1,572,865")
    nbformat.write(notebook, edited := tmp_path / NOTEBOOK.name)
    done = strictly(edited)
    assert done.returncode == 1
    assert "1,572,865" in done.stdout


def test_every_claim_has_its_figures_and_reason_and_a_verdict_in_the_committed_table() -> None:
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    assert len({claim["id"] for claim in claims}) == len(claims) == 32
    for claim in claims:
        assert set(claim) == {"id", "document", "claim", "stated", "why"}
        assert len(claim["why"].split()) >= 5, claim["id"]
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code" and c.source == "found.show()"]
    (table,) = pd.read_html(
        io.StringIO(cells[0].outputs[0].data["text/html"]), dtype_backend="pyarrow", converters={"claim no.": str}
    )
    assert list(table["claim no."]) == [claim["id"] for claim in claims]
    assert set(table.verdict) == set(audit.VERDICTS.values())
    assert (table.ours.str.len() > 5).all()


def test_a_claim_without_a_verdict_is_named() -> None:
    found = audit.Audit(CLAIMS)
    found.judge("3", True, "ours")
    with pytest.raises(ValueError, match="without a verdict: 4"):
        found.table("3", "4")


@pytest.mark.parametrize(
    ("computed", "stated", "to", "agree"),
    [
        (2.466, 2.5, 0.1, True),
        (2.466, 2.5, 0.01, False),
        (69.87, 69.9, 0.1, True),
        (0.25, 0.2, 0.1, True),
        (0.251, 0.2, 0.1, False),
    ],
)
def test_rounding(computed, stated, to, agree) -> None:
    assert audit.rounds_to(computed, stated, to) is agree


RULE = next(claim["stated"] for claim in yaml.safe_load(CLAIMS.read_text(encoding="utf-8")) if claim["id"] == "25")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 5.0),
        ("One. Two.", 6.0),
        ("word " * 150, 8.0),
        ("strategy " + "word " * 150 + ". .", 9.3),
        ("optimization strategy implementation architecture demonstrated proven expertise " + "word " * 150 + ". .", 10.0),
    ],
)
def test_quality_score_by_hand(text, score) -> None:
    assert audit.quality_score(text, RULE, "technical") == pytest.approx(score)


def test_templates_are_recognised_and_unseen_ones_are_not() -> None:
    kinds = {"a": ["alpha beta {}", "gamma delta {}"], "b": ["epsilon zeta {}", "gamma delta eta {}"]}
    found = audit.accuracy_by_split(kinds, [f"filling{i}" for i in range(30)], seed=0)
    assert found["random half"] > 0.95
    assert found["unseen templates"] == 0.5  # no word of the test was ever seen: one class for all


TAGGED = audit.tag_terms(
    ["We tune a random forest. No trees here.", "Random forest, random forest!"], ["forest", "random forest"]
)


def test_terms_are_tagged_longest_first() -> None:
    words = TAGGED.groupby("sentence").apply(lambda s: list(zip(s.word, s.label, strict=True)), include_groups=False)
    assert words[0] == [("we", "O"), ("tune", "O"), ("a", "O"), ("random", "B"), ("forest", "I"), (".", "O")]
    assert words[1] == [("no", "O"), ("trees", "O"), ("here", "O"), (".", "O")]
    assert [label for _, label in words[2]] == ["B", "I", "O", "B", "I", "O"]


def test_scores_of_tags_by_hand() -> None:
    right = TAGGED.label
    assert set(audit.score_tags(TAGGED, right, 10).values()) == {1.0}
    nothing = audit.score_tags(TAGGED, pd.Series("O", TAGGED.index), 10)
    assert nothing == {"tokens and padding": 24 / 30, "tokens": 10 / 16, "whole entities": 0.0}
    half = right.mask(TAGGED.word == "forest", "O")  # every entity one word short
    assert audit.score_tags(TAGGED, half, 10)["whole entities"] == 0.0
    one = right.where(TAGGED.sentence == 0, "O")  # one of three found, none invented
    assert audit.score_tags(TAGGED, one, 10)["whole entities"] == pytest.approx(2 * 1 / (1 + 3))
    torn = pd.Series(["O", "O", "O", "B", "O", "I", *["O"] * 10], TAGGED.index)  # B . I is not the entity B I
    assert audit.score_tags(TAGGED, torn, 10)["whole entities"] == 0.0


def test_the_table_names_no_person_and_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|work)/", text)
