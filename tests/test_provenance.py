"""Where a report comes from, and what has changed since."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from conftest import Workshop, write_notebook

from interviewmate_utils import config, provenance


class Reads(config.Parameters):
    def inputs(self) -> list[Path]:
        return [config.ROOT / "data.txt", config.ROOT / "folder"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name whose modules import each other in every way."""
    sources = {
        "a.py": "def f():\n    from .b import x\n    return x",
        "b.py": "from . import c, not_a_module\nimport numpy",
        "c.py": "if True:\n    import interviewmate_utils.d as d",
        "d.py": "from .e import part",
        "e/__init__.py": "",
        "e/part.py": "from .. import f",
        "f.py": "from . import a",
        "g.py": "",
        "numpy.py": "",
    }
    folder = tmp_path / "package"
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    return folder


def used(package: Path, *cells: str) -> set[str]:
    notebook = write_notebook(package.parent / "n.ipynb", *cells)
    return {str(p.relative_to(package)) for p in provenance.modules_used(notebook)}


def test_modules_are_followed_through_each_other_and_into_functions(package: Path) -> None:
    everything = {"a.py", "b.py", "c.py", "d.py", "e/__init__.py", "e/part.py", "f.py"}
    assert used(package, "from interviewmate_utils.a import f") == everything
    assert used(package, "import pandas", "from interviewmate_utils import g, d") == everything | {"g.py"}


@pytest.mark.parametrize(
    "cell",
    [
        "import interviewmate_utils.g",
        "import interviewmate_utils.g as g, os",
        "from interviewmate_utils import g",
        "from interviewmate_utils.g import x",
        "if True:\n    %matplotlib inline\n    from interviewmate_utils import g",
        "!pip --version\nfrom interviewmate_utils import g",
        "%%time\nfrom interviewmate_utils import g",
    ],
)
def test_every_form_of_import_counts(package: Path, cell: str) -> None:
    assert used(package, cell) == {"g.py"}


def test_foreign_modules_of_the_same_name_do_not_count(package: Path) -> None:
    assert used(package, "import numpy, g\nfrom a import b\n", "# import interviewmate_utils.g") == set()


# --- what has changed since -------------------------------------------------------------------------------------------


@pytest.fixture
def current(workshop: Workshop, package: Path) -> Workshop:
    """A report that was just made (its execution left out: test_run.py has that)."""
    root = workshop.root
    (root / "data.txt").write_text("1")
    (root / "folder").mkdir()
    (root / "folder" / "part").write_text("1")
    notebook = workshop.notebook("from interviewmate_utils import d", "print(1)", parameters="profile = 'x'\nseed = 1")
    parameters = config.validate(Reads, {"profile": "x", "seed": 1})
    record = provenance.collect(notebook, {}, parameters, parameters.inputs())
    report = nbformat.read(notebook, as_version=4)
    provenance.attach(report, record | {"duration_s": 1.0, "peak_memory_gb": 0.1})
    workshop.report.parent.mkdir(parents=True)
    nbformat.write(report, workshop.report)
    return workshop


def test_nothing_has_changed_right_after_the_run(current: Workshop) -> None:
    assert provenance.changes_since(current.report) == []


def edit_notebook(root: Path, change: Callable[[nbformat.NotebookNode], None]) -> None:
    path = root / "notebooks" / "own.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def run_in_an_editor(notebook: nbformat.NotebookNode) -> None:
    notebook.metadata["language_info"] = {"name": "python", "version": "3.13"}
    for cell in notebook.cells:
        cell.id = "new" + cell.id[:8]
        cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="1\n")]
        cell.metadata["collapsed"] = True


def change_source(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[2].source = "print(2)"


def change_tags(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[2].metadata["tags"] = ["skip-execution"]


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (lambda root: edit_notebook(root, change_source), ["notebooks/own.ipynb changed"]),
        (lambda root: edit_notebook(root, change_tags), ["notebooks/own.ipynb changed"]),
        (lambda root: (root / "notebooks" / "own.ipynb").unlink(), ["notebooks/own.ipynb is gone"]),
        (lambda root: (root / "data.txt").write_text("2"), ["data.txt changed"]),
        (lambda root: (root / "data.txt").unlink(), ["data.txt is gone"]),
        (lambda root: (root / "folder" / "new").write_text(""), ["folder changed"]),
        (lambda root: (root / "requirements.lock").write_text("torch==3"), ["requirements.lock changed"]),
        (lambda root: (provenance.PACKAGE / "f.py").write_text("x = 1"), ["code of interviewmate_utils that it uses changed"]),
        (lambda root: edit_notebook(root, run_in_an_editor), []),
        (lambda root: [p.touch() for p in root.rglob("*")], []),
        (lambda root: (provenance.PACKAGE / "g.py").write_text("x = 1"), []),
        (lambda root: (root / "other.txt").write_text("1"), []),
    ],
    ids=[
        "source",
        "tags",
        "notebook-gone",
        "input",
        "input-gone",
        "folder",
        "lock",
        "package",
        "outputs",
        "times",
        "unused-module",
        "other-file",
    ],
)
def test_stale_report_names_what_changed_and_nothing_else(
    current: Workshop, edit: Callable[[Path], object], changes: list[str]
) -> None:
    edit(current.root)
    assert provenance.changes_since(current.report) == changes


def test_report_without_provenance_is_not_current(workshop: Workshop) -> None:
    workshop.last_good_report()
    assert provenance.changes_since(workshop.report) == ["it was not executed under the run contract"]


# --- git and devices --------------------------------------------------------------------------------------------------


def collect(workshop: Workshop, **values: object) -> dict:
    names = {"profile": "x", "seed": 1} | values
    notebook = workshop.notebook("1", parameters="\n".join(f"{k} = {v!r}" for k, v in names.items()))
    return provenance.collect(notebook, values, config.validate(config.parameters_class(notebook), names), [])


def test_git_commit_and_dirty_flag(workshop: Workshop) -> None:
    assert (collect(workshop)["git_commit"], collect(workshop)["git_dirty"]) == ("none", False)

    def git(*arguments: str) -> str:
        command = ["git", "-C", workshop.root, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", "requirements.lock")
    git("commit", "-qm", "a")
    record = collect(workshop)
    assert git("rev-parse", "HEAD").startswith(record["git_commit"])
    assert record["git_dirty"] is False
    workshop.lock.write_text("torch==3\n")
    assert collect(workshop)["git_dirty"] is True


def test_machine_without_git_still_gets_a_record(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(workshop.root))
    assert shutil.which("git") is None
    assert collect(workshop)["git_commit"] == "none"


def test_model_revision_is_pinned_or_a_digest_of_the_folder(workshop: Workshop) -> None:
    record = collect(workshop, model="tiiuae/falcon-rw-1b@e4b9872")
    assert (record["model"], record["model_revision"]) == ("tiiuae/falcon-rw-1b", "e4b9872")
    (workshop.root / "tiny").mkdir()
    (workshop.root / "tiny" / "config.json").write_text("{}")
    record = collect(workshop, model="tiny")
    assert (record["model"], record["model_revision"]) == ("tiny", config.digest(workshop.root / "tiny"))


def test_parameters_digest_follows_the_values(workshop: Workshop) -> None:
    digests = [collect(workshop, rate=rate)["parameters_digest"] for rate in (0.1, 0.2, 0.1)]
    assert digests[0] == digests[2] != digests[1]


def test_auto_device_is_written_as_what_it_became(workshop: Workshop) -> None:
    assert collect(workshop, device="auto")["device"] in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("device", ["auto*2", "auto*2+fsdp", "auto+fsdp", "cuda*4+fsdp", "cpu", "automatic"])
def test_devices_of_a_training_are_written_with_their_number(workshop: Workshop, device: str) -> None:
    became = collect(workshop, device="auto")["device"]
    wanted = device.replace("auto", became) if device != "automatic" else device
    assert collect(workshop, device=device)["device"] == wanted


TRAINING = config.parameters_cell(config.NOTEBOOKS / "04_train_lora.ipynb") | {"profile": "mine"}


@pytest.mark.parametrize("device", ["auto", "cpu", "cpu*2", "cpu*4+fsdp", "auto*2"])
def test_overview_says_what_a_device_became(workshop: Workshop, device: str) -> None:
    parameters = config.TrainLora(**TRAINING | {"device": device, "batch_size": 4})
    shown = provenance.overview(parameters).value
    kind = collect(workshop, device="auto")["device"] if "auto" in device else "cpu"
    assert shown["device"] == f'"{device}" -> {kind}'
    assert shown["variants"] == "[]"


def test_report_of_a_training_names_the_base_that_its_corpus_was_prepared_for(workshop: Workshop) -> None:
    parameters = config.TrainLora(**TRAINING)
    notebook = workshop.notebook("1", name="04_train_lora.ipynb")
    for file, text in (("data/models/tiny/config.json", "{}"), ("data/processed/mine/original/prepared.json", "")):
        (workshop.root / file).parent.mkdir(parents=True)
        (workshop.root / file).write_text(text)
    prepared = workshop.root / "data" / "processed" / "mine" / "original" / "prepared.json"
    digest = config.digest(workshop.root / "data" / "models" / "tiny")
    for model, name, revision in (
        ("data/models/tiny", "data/models/tiny", digest),
        ("owner/large@e4b9872", "owner/large", "e4b9872"),
    ):
        prepared.write_text(json.dumps({"model": model}))
        record = provenance.collect(notebook, {}, parameters, parameters.inputs())
        assert (record["model"], record["model_revision"]) == (name, revision)
        assert f"`{name}` at {revision}" in provenance.box(record | {"duration_s": 1.0, "peak_memory_gb": 1.0})


@pytest.mark.parametrize(("model", "said"), [(config.EMBEDDED_MODEL, True), ("owner/large", False)])
def test_every_report_on_the_embedded_model_says_what_it_is(model, said):
    report = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    notebook = config.NOTEBOOKS / "06_evaluate_models.ipynb"
    parameters = config.EvaluateModels.model_validate(config.parameters_cell(notebook))
    record = provenance.collect(notebook, {}, parameters, []) | {"model": model, "duration_s": 1.0, "peak_memory_gb": 1.0}
    provenance.attach(report, record)
    assert any(config.CAVEAT in cell.source for cell in report.cells) == said
