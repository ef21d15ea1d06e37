"""Shared by the tests of the run contract: a small repository of its own, so that nothing is written into this one.
Shared by the tests of the data: the raw files, the datasheet, and public question lists where they are at hand."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
import pytest

from interviewmate_utils import config, provenance, run, similarity, tracking
from interviewmate_utils.rows import read_rows

RAW = config.ROOT / "data" / "raw"
FOREIGN = config.ROOT.parent / "shared" / "data" / "qa"
DATASHEET = (config.ROOT / "data" / "README.md").read_text(encoding="utf-8")
foreign_data = pytest.mark.skipif(not FOREIGN.exists(), reason="../shared/data is not beside this checkout")
KERNELSPEC = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
DRIVER = """
import signal, sys
from pathlib import Path
from interviewmate_utils import config, provenance, run, tracking
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
config.ROOT, provenance.LOCK, tracking.STORE = map(Path, sys.argv[1:4])
sys.exit(run.main(sys.argv[4:]))
"""


def read_raw(name: str) -> list[dict]:
    return [json.loads(line) for line in (RAW / name).read_text(encoding="utf-8").splitlines()]


def at_fault(wrong: Iterable[dict]) -> list[str]:
    return [row["id"] for row in wrong]


def sequences(text: str, size: int) -> set[tuple[str, ...]]:
    """All runs of `size` words, without case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(size)), strict=False))


@pytest.fixture(scope="session")
def corpus() -> list[dict]:
    """The 302 questions of the first file."""
    rows, problems = read_rows(RAW / "interview_qa.jsonl", "question", "answer")
    assert problems == []
    return rows


@pytest.fixture(scope="session")
def encoder():
    return similarity.load_encoder("embedded-minilm")


@pytest.fixture(scope="session")
def foreign() -> list[dict]:
    return [json.loads(line) for path in sorted(FOREIGN.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def foreign_sequences(foreign: list[dict]) -> set[tuple[str, ...]]:
    """All runs of twelve words in the public answers."""
    theirs = set().union(*(sequences(row["answer"], 12) for row in foreign))
    assert len(theirs) > 10_000
    return theirs


def write_notebook(path: Path, *cells: str, parameters: str | None = None) -> Path:
    """A notebook of code cells (markdown where a cell starts with `#`), with a parameters cell first if one is given."""
    notebook = nbformat.v4.new_notebook(metadata=KERNELSPEC)
    if parameters is not None:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for cell in cells:
        make = nbformat.v4.new_markdown_cell if cell.startswith("# ") else nbformat.v4.new_code_cell
        notebook.cells.append(make(cell))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


class Workshop:
    """An empty repository: notebooks run in it, tracked in `store`."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root, self.store, self.lock = root, store, root / "requirements.lock"
        self.report = root / "reports" / "mine" / "report.ipynb"
        self.failed = self.report.with_name("report.failed.ipynb")

    def notebook(self, *cells: str, name: str = "own.ipynb", parameters: str = "n: int = 1  # a number") -> Path:
        return write_notebook(self.root / "notebooks" / name, *cells, parameters=parameters)

    def last_good_report(self) -> bytes:
        """Put a report at the target and return its bytes."""
        write_notebook(self.report, "# The last good report", "1 + 1")
        return self.report.read_bytes()

    def run(self, notebook: Path, *arguments: object) -> int:
        return run.main([str(notebook), "-o", str(self.report), *map(str, arguments)])

    def start(self, notebook: Path, *arguments: object) -> subprocess.Popen:
        """The same in a process of its own."""
        command = [sys.executable, "-c", DRIVER, self.root, self.lock, self.store, notebook, "-o", self.report, *arguments]
        return subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)

    def statuses(self) -> list[str]:
        """How the MLflow runs of the report ended, oldest first."""
        return [r.info.status for r in reversed(mlflow_runs(self.store, f"tags.report = '{self.report}'"))]

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(self.root.rglob("*")) if p.is_file()}


def mlflow_runs(store: Path, query: str) -> list:
    """MLflow runs in the store that match, latest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    return client.search_runs([e.experiment_id for e in client.search_experiments()], query, order_by=["start_time DESC"])


@contextlib.contextmanager
def opened_workshop(root: Path, store: Path) -> Iterator[Workshop]:
    """Let the package take `root` for the repository meanwhile."""
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        workshop = Workshop(root, store)
        patch.setattr(config, "ROOT", root)
        patch.setattr(config, "NOTEBOOKS", root / "notebooks")
        patch.setattr(provenance, "LOCK", workshop.lock)
        patch.setattr(tracking, "STORE", store)
        yield workshop
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all tests: making its tables takes two seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def workshop(tmp_path: Path, store: Path) -> Iterator[Workshop]:
    with opened_workshop(tmp_path / "repository", store) as opened:
        opened.root.mkdir()
        opened.lock.write_text("torch==2.13.0\n")
        yield opened


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the module's `template`, a small repository, which the package takes for the repository meanwhile."""
    monkeypatch.setattr(config, "ROOT", tmp_path / "root")
    return Path(shutil.copytree(template, tmp_path / "root"))
