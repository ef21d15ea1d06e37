"""One MLflow run per execution, in a SQLite store beside the reports; FINISHED only if the notebook was.

Tracking never decides whether a notebook succeeded: where the store cannot be written, the run goes on and says so.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import config

STORE = config.ROOT / "reports" / "mlflow.db"


class Tracked:
    """The MLflow run of one execution; `finish` logs its numbers and lets it end FINISHED."""

    def __init__(self, client: Any = None, run_id: str = "", results: Path | None = None) -> None:
        self.client, self.run_id, self.results, self.finished = client, run_id, results, False

    def finish(self, record: dict) -> None:
        self.finished = True
        if not self.client:
            return
        metrics = {k: record[k] for k in ("duration_s", "peak_memory_gb")}
        if self.results and self.results.exists():
            values = json.loads(self.results.read_text()).get("metrics", {})
            metrics |= {k: v for k, v in values.items() if isinstance(v, int | float)}
        with _never_fatal():
            for name, value in metrics.items():
                self.client.log_metric(self.run_id, name.replace("@", " at "), value)


@contextlib.contextmanager
def _never_fatal() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"not tracked in {STORE.name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", file=sys.stderr)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def close_abandoned(client: Any, experiment: str) -> list[str]:
    """End as KILLED every run that says RUNNING although the process that opened it is gone; return their ids."""
    closed = []
    for run in client.search_runs([experiment], filter_string="attributes.status = 'RUNNING'"):
        if not _alive(run.data.tags.get("runner_pid", "")):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_id)
    return closed


@contextlib.contextmanager
def tracked(output: Path, parameters: Any, record: dict) -> Iterator[Tracked]:
    """Open the run of one execution and close it as FINISHED, FAILED or KILLED (interrupted)."""
    run = Tracked()
    with _never_fatal():
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient

        STORE.parent.mkdir(exist_ok=True)
        client = MlflowClient(f"sqlite:///{STORE}")
        name = record["parameters"].get("profile", "own notebooks")
        found = client.get_experiment_by_name(name)
        artifacts = (config.ROOT / "reports" / "mlflow").as_uri()
        experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=artifacts)
        close_abandoned(client, experiment)
        tags = {"runner_pid": str(os.getpid()), "report": str(output), "git_commit": record["git_commit"]}
        tags |= {key: str(record[key]) for key in ("notebook_digest", "package_digest", "lock_digest", "model", "device")}
        run_id = client.create_run(experiment, tags=tags, run_name=f"{name}_{output.stem}").info.run_id
        for key, value in record["parameters"].items():
            client.log_param(run_id, key, str(value)[:500])
        results = parameters.output / "results.json" if isinstance(parameters, config.Parameters) else None
        run = Tracked(client, run_id, results)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED" if run.finished else "FAILED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if run.client:
            with _never_fatal():
                run.client.set_terminated(run.run_id, status)
