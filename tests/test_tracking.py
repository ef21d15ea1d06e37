"""One MLflow run per execution, which ends as the execution did; tracking itself never stops one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Workshop, mlflow_runs

from interviewmate_utils import config, tracking

RECORD = {
    "parameters": {"profile": "mine", "seed": 1},
    "git_commit": "none",
    "notebook_digest": "0",
    "package_digest": "0",
    "lock_digest": "0",
    "model": "",
    "device": "cpu",
}
DONE = RECORD | {"duration_s": 1.5, "peak_memory_gb": 0.25}
PARALLEL = f"""
import sys
from pathlib import Path
from interviewmate_utils import tracking
tracking.STORE = Path(sys.argv[1])
with tracking.tracked(Path(sys.argv[2]), None, {RECORD!r}) as run:
    run.finish({DONE!r})
"""


def opened(workshop: Workshop, record: dict = RECORD) -> object:
    parameters = config.validate(config.Parameters, {"profile": "mine", "seed": 1})
    return tracking.tracked(workshop.report, parameters, record)


def test_run_is_finished_only_after_finish(workshop: Workshop) -> None:
    with opened(workshop) as run:
        assert workshop.statuses() == ["RUNNING"]
        run.finish(DONE)
    with opened(workshop):
        pass
    assert workshop.statuses() == ["FINISHED", "FAILED"]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_exception_passes_through_and_ends_the_run(workshop: Workshop, error: type, status: str) -> None:
    with pytest.raises(error), opened(workshop):
        raise error
    assert workshop.statuses() == [status]


def test_run_carries_parameters_tags_and_the_numbers_of_this_run(workshop: Workshop) -> None:
    results = workshop.root / "reports" / "mine" / "results.json"
    with opened(workshop) as run:
        results.write_text(json.dumps({"metrics": {"rouge_l": 0.5, "recall@5": 1, "verdict": "better"}}))
        run.finish(DONE)
    (logged,) = mlflow_runs(workshop.store, f"tags.report = '{workshop.report}'")
    assert logged.data.params == {"profile": "mine", "seed": "1"}
    assert logged.data.tags["device"] == "cpu"
    assert logged.data.metrics == {"duration_s": 1.5, "peak_memory_gb": 0.25, "rouge_l": 0.5, "recall at 5": 1}


def test_results_of_an_earlier_run_are_not_logged_again(workshop: Workshop) -> None:
    results = workshop.root / "reports" / "mine" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text('{"metrics": {"rouge_l": 0.5}}')
    os.utime(results, (time.time() - 60,) * 2)
    with opened(workshop) as run:
        run.finish(DONE)
    (logged,) = mlflow_runs(workshop.store, f"tags.report = '{workshop.report}'")
    assert "rouge_l" not in logged.data.metrics


def test_unreadable_results_do_not_fail_the_run(workshop: Workshop, capsys: pytest.CaptureFixture) -> None:
    with opened(workshop) as run:
        (workshop.root / "reports" / "mine" / "results.json").write_text("{half")
        run.finish(DONE)
    assert "not tracked" in capsys.readouterr().err
    assert workshop.statuses() == ["FINISHED"]


def test_only_runs_whose_process_is_gone_are_closed(workshop: Workshop) -> None:
    gone = subprocess.Popen(["sleep", "300"])
    started = tracking._identity(gone.pid)
    assert started
    gone.kill()
    time.sleep(0.2)
    assert tracking._identity(gone.pid) == ""  # a zombie has ended
    gone.wait()
    with opened(workshop) as run:
        tags = {
            "ended": started,
            "number used again": f"{os.getpid()} since 0",
            "of no one": "",
            "at work": tracking._identity(os.getpid()),
        }
        experiment = run.client.get_run(run.run_id).info.experiment_id
        ids = {k: run.client.create_run(experiment, tags={"runner": v}).info.run_id for k, v in tags.items()}
        closed = tracking.close_abandoned(run.client, experiment)
        statuses = {name: run.client.get_run(run_id).info.status for name, run_id in ids.items()}
        run.client.set_terminated(ids["at work"])
        run.finish(DONE)
    assert statuses == {"ended": "KILLED", "number used again": "KILLED", "of no one": "KILLED", "at work": "RUNNING"}
    assert len(closed) == 3


def test_runs_of_another_machine_stay_open_but_for_that_of_the_held_report(workshop: Workshop) -> None:
    with opened(workshop) as run:
        experiment = run.client.get_run(run.run_id).info.experiment_id
        tags = {"runner": f"{os.getpid()} since 0", "host": "another"}
        ids = {
            name: run.client.create_run(experiment, tags=tags | {"report": name}).info.run_id for name in ("held", "elsewhere")
        }
        assert tracking.close_abandoned(run.client, experiment, "held") == [ids["held"]]
        assert run.client.get_run(ids["elsewhere"]).info.status == "RUNNING"
        run.client.set_terminated(ids["elsewhere"])
        run.finish(DONE)


@pytest.mark.parametrize("fault", ["a folder", "not a database", "below a file"])
def test_unwritable_store_is_said_at_once_and_harms_nothing(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, fault: str
) -> None:
    store = workshop.root / "store"
    store.mkdir() if fault == "a folder" else store.write_text("no database\n" * 100)
    monkeypatch.setattr(tracking, "STORE", store / "mlflow.db" if fault == "below a file" else store)
    started = time.monotonic()
    with opened(workshop) as run:
        run.finish(DONE)
    assert time.monotonic() - started < 10
    assert capsys.readouterr().err.startswith("not tracked in ")


def test_two_first_runs_at_once_are_both_tracked(tmp_path: Path) -> None:
    store = tmp_path / "reports" / "mlflow.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", PARALLEL, str(store), name], stderr=subprocess.PIPE, text=True) for name in "ab"
    ]
    logs = [process.communicate(timeout=120)[1] for process in processes]
    assert logs == ["", ""]
    assert sorted(r.data.tags["report"] for r in mlflow_runs(store, "attributes.status = 'FINISHED'")) == ["a", "b"]
