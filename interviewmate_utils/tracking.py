"""One MLflow run per execution, in a SQLite store beside the reports; FINISHED only if the notebook was.

Tracking never decides whether a notebook succeeded: where the store cannot be written, the run goes on and says so.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import config

STORE = config.ROOT / "reports" / "mlflow.db"


class Tracked:
    """The MLflow run of one execution; `finish` logs its numbers and lets it end FINISHED."""

    def __init__(self, client: Any = None, run_id: str = "", results: Path | None = None) -> None:
        self.client, self.run_id, self.results, self.finished = client, run_id, results, False
        self.opened = time.time()

    def finish(self, record: dict) -> None:
        self.finished = True
        if not self.client:
            return
        with _never_fatal():
            metrics = {k: record[k] for k in ("duration_s", "peak_memory_gb")}
            if self.results and self.results.exists() and self.results.stat().st_mtime >= self.opened:
                values = json.loads(self.results.read_text()).get("metrics", {})
                metrics |= {k: v for k, v in values.items() if isinstance(v, int | float)}
            for name, value in metrics.items():
                self.client.log_metric(self.run_id, name.replace("@", " at "), value)


@contextlib.contextmanager
def _never_fatal() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        print(f"not tracked in {STORE.name}: {type(error).__name__}: {reason}", file=sys.stderr)


def _identity(pid: int) -> str:
    """A process's number and start time, since numbers are used again; empty if it is gone."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"{pid} since {process.create_time():.0f}"
    return ""


@contextlib.contextmanager
def _opened_store() -> Iterator[Any]:
    """A client of the store, for one process at a time: two that create or migrate the tables at once break them."""
    STORE.parent.mkdir(parents=True, exist_ok=True)
    with STORE.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sqlite3.connect(STORE).close()  # fails at once where there can be no store; MLflow would try again for 100 s
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # after the import, which sets it to INFO
        yield MlflowClient(f"sqlite:///{STORE}")


def close_abandoned(client: Any, experiment: str, report: str = "") -> list[str]:
    """End as KILLED every run that says RUNNING although the process that opened it is gone; return their ids.

    Of another machine's processes nothing is known here. Its runs stay open, except one into `report`: whoever asks holds
    that target, so it has ended.
    """
    closed = []
    for run in client.search_runs([experiment], filter_string="attributes.status = 'RUNNING'"):
        tags = {"runner": "", "report": "unknown", "host": platform.node()} | run.data.tags
        ended = not tags["runner"] or _identity(int(tags["runner"].split()[0])) != tags["runner"]
        if tags["report"] == report or (ended and tags["host"] == platform.node()):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_id)
    return closed


@contextlib.contextmanager
def tracked(output: Path, parameters: Any, record: dict) -> Iterator[Tracked]:
    """Open the run of one execution and close it as FINISHED, FAILED or KILLED (interrupted)."""
    run = Tracked()
    with _never_fatal():
        name = record["parameters"].get("profile", "own notebooks")
        with _opened_store() as client:
            found = client.get_experiment_by_name(name)
            artifacts = (STORE.parent / "mlflow").as_uri()
            experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=artifacts)
            close_abandoned(client, experiment, str(output))
        tags = {"runner": _identity(os.getpid()), "host": platform.node(), "report": str(output)}
        told = ("git_commit", "notebook_digest", "package_digest", "lock_digest", "model", "device")
        tags |= {key: str(record[key]) for key in told}
        run_id = client.create_run(experiment, tags=tags, run_name=f"{name}_{output.stem}").info.run_id
        results = parameters.output / "results.json" if isinstance(parameters, config.Parameters) else None
        run = Tracked(client, run_id, results)
        for key, value in record["parameters"].items():
            client.log_param(run_id, key, str(value)[:500])
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
