"""What a run measured is validated, written whole or not at all, and read back as it was."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Workshop
from pydantic import ValidationError

from interviewmate_utils import config, results

GOOD = {"latency_ms": 12.5, "peak_memory_gb": 1.0, "generation_tps": 30.0, "items_count": 46, "run_A_p": 0.03}


@pytest.fixture
def parameters(workshop: Workshop) -> config.Parameters:
    return config.validate(config.Parameters, {"profile": "mine", "seed": 7})


def record(**changes: object) -> dict:
    return {"notebook": "n", "run": "r", "profile": "p", "seed": 1, "metrics": GOOD} | changes


def test_round_trip(parameters: config.Parameters) -> None:
    path = results.write_results(parameters, GOOD, headline="ROUGE-L is 0.2 ± 0.1, “not much”", caveat="small")
    assert path == parameters.output / "results.json"
    found = results.read_results(parameters.output)
    assert found.metrics == GOOD
    assert isinstance(found.metrics["items_count"], int)
    assert (found.profile, found.seed, found.model) == ("mine", 7, "")
    assert found.headline == "ROUGE-L is 0.2 ± 0.1, “not much”"
    assert "±" in path.read_text(encoding="utf-8"), "people read the file too"
    assert json.loads(path.read_text(encoding="utf-8")) == found.model_dump()


def test_numbers_of_numpy_are_numbers(parameters: config.Parameters) -> None:
    metrics = {"a_s": np.float64(0.1), "b_s": np.float32(0.5), "c_count": np.int64(3)}
    results.write_results(parameters, metrics)
    assert results.read_results(parameters.output).metrics == {"a_s": 0.1, "b_s": 0.5, "c_count": 3}


@pytest.mark.parametrize("name", ["latency", "rouge", "memory_mb", "ms", "latency_ms_", "score"])
def test_metric_without_a_unit_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match=f"metric '{name}' does not end in a unit; known: .*_ms"):
        results.Results(**record(metrics={name: 1.0}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValidationError, match=r"metric 'latency_ms' is .*leave out"):
        results.Results(**record(metrics=GOOD | {"latency_ms": value}))


@pytest.mark.parametrize("changes", [{"accuracy": 1}, {"metrics": {"latency_ms": None}}, {"seed": "many"}, {"tables": "one"}])
def test_unknown_fields_and_wrong_types_are_refused(changes: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        results.Results(**record(**changes))


def test_unknown_text_is_refused_and_the_last_results_stay(parameters: config.Parameters) -> None:
    path = results.write_results(parameters, GOOD)
    before = path.read_bytes()
    with pytest.raises(ValidationError, match="headlnie"):
        results.write_results(parameters, GOOD, headlnie="a slip")
    with pytest.raises(ValidationError, match="latency_ms"):
        results.write_results(parameters, {"latency_ms": float("nan")})
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_leaves_the_last_results(parameters: config.Parameters) -> None:
    path = results.write_results(parameters, GOOD)
    before = path.read_bytes()
    (parameters.output / "results.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        results.write_results(parameters, {"latency_ms": 99.0})
    assert path.read_bytes() == before
    assert not path.is_symlink()


def test_readers_see_the_old_file_or_the_new_one(parameters: config.Parameters) -> None:
    path = results.write_results(parameters, GOOD)
    with path.open("rb") as reader:  # opened before the rewrite, read after it
        results.write_results(parameters, GOOD | {"latency_ms": 1.0})
        assert json.load(reader)["metrics"]["latency_ms"] == 12.5
    assert results.read_results(parameters.output).metrics["latency_ms"] == 1.0
    assert [*parameters.output.iterdir()] == [path], "nothing is left beside it"


def test_broken_file_is_refused(parameters: config.Parameters) -> None:
    path = results.write_results(parameters, GOOD)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValidationError):
        results.read_results(parameters.output)


def test_tables_and_figures_are_listed(parameters: config.Parameters) -> None:
    results.write_table(pd.DataFrame({"a": [1]}), "scores", parameters.output)
    results.write_table(pd.DataFrame({"a": [1]}), "answers", parameters.output)
    figures = parameters.output / "figures"
    figures.mkdir()
    for name in ("one.svg", "one.png", "draft.txt"):
        (figures / name).write_text("")
    results.write_results(parameters, GOOD)
    found = results.read_results(parameters.output)
    assert found.tables == ["answers.parquet", "scores.parquet"]
    assert found.figures == ["one.svg"]


def test_table_round_trip(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"x": [0.1, None], "text": ["a\nb", "<i>"], "n": [1, 2]}, index=pd.Index(["base", "run A"], name="system")
    )
    results.write_table(table, "t", tmp_path)
    pd.testing.assert_frame_equal(results.read_table("t", tmp_path), table)
