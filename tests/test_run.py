"""The run contract, clause by clause, with real kernels and a real MLflow store."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import Workshop, mlflow_runs, opened_workshop, write_notebook

from interviewmate_utils import kernel, provenance, run, tracking

TRAIN = """\
profile: str = "mine"  # folders
seed: int = 13  # for all
run: str = "A"  # name
corpus: str = "original"  # which
device: str = "cpu"  # where
variants: list = []  # of LoRA
rank: int = 8  # of LoRA
alpha: int = 16  # of LoRA
dropout: float = 0.05  # of LoRA
target_modules: list = ["query_key_value"]  # where LoRA goes
learning_rate: float = 1e-3  # peak
weight_decay: float = 0.0  # of AdamW
epochs: float = 1.0  # passes
batch_size: int = 4  # examples per step
warmup_steps: int = 5  # steps
"""
TRAIN_FOLDER = "reports/mine/04_train_lora_A_seed13"


def training_notebook(workshop: Workshop, *cells: str) -> Path:
    """A notebook that takes the parameters of `config.TrainLora`, with its inputs in place."""
    base = '{"model": "data/models/tiny"}'
    for name, text in (("data/processed/mine/original/prepared.json", base), ("data/models/tiny/config.json", "{}")):
        (workshop.root / name).parent.mkdir(parents=True)
        (workshop.root / name).write_text(text)
    return workshop.notebook(*cells or ("open('ran', 'w')",), name="04_train_lora.ipynb", parameters=TRAIN)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- before a kernel starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "learning_rte",
            "0.1",
            ["learning_rte = 0.1", "unknown", "did you mean 'learning_rate'?", "known: profile, seed, run"],
        ),
        ("rank", "eight", ["rank = 'eight' (str)", "valid integer"]),
        ("rank", "8.5", ["rank = 8.5 (float)", "valid integer"]),
        ("rank", "true", ["rank = True (bool)", "valid integer"]),
        ("learning_rate", "'2e-4'", ["learning_rate = '2e-4' (str)", "valid number"]),
        ("target_modules", "dense", ["target_modules = 'dense' (str)", "valid list"]),
        ("rank", "0", ["rank = 0", "greater than or equal to 1"]),
        ("dropout", "1.0", ["dropout = 1.0", "less than 1"]),
        ("learning_rate", "-0.0002", ["learning_rate = -0.0002", "greater than 0"]),
        ("learning_rate", ".nan", ["learning_rate = nan"]),
        ("device", "tpu", ["device = 'tpu' (str): allowed: auto, cpu, cuda or mps;", "'cuda*4+fsdp' shards the weights"]),
        ("device", "cuda*0", ["device = 'cuda*0' (str): allowed: ", "'cuda*4' trains in four processes"]),
        ("device", "cpu*2+fdsp", ["device = 'cpu*2+fdsp' (str): allowed: ", "'cuda*4+fsdp' shards the weights"]),
        ("device", "cpu*3", ["batch_size = 4 cannot be shared by 3 processes"]),
        ("batch_size", "0", ["batch_size = 0", "greater than or equal to 1"]),
        ("variants", "[full, dora]", ["variants = ['full', 'dora']", "full and dora cannot be combined"]),
        ("variants", "[lora]", ["variants.0 = 'lora' (str)", "'dora', 'rslora', 'pissa', 'olora', 'adalora', '4bit', 'full'"]),
        ("variants", "dora", ["variants = 'dora' (str)", "valid list"]),
        ("micro_batch", "2", ["micro_batch = 2: unknown parameter", "known: profile,"]),
        ("run", "../A", ["run = '../A'", "pattern"]),
        ("corpus", "../../other", ["corpus = '../../other'", "pattern"]),
        ("rank", "[1,", ["-p rank", "not valid YAML"]),
    ],
)
def test_wrong_parameter_is_explained_before_anything_is_written(
    workshop: Workshop, capsys: pytest.CaptureFixture, name: str, value: str, expected: list[str]
) -> None:
    notebook = training_notebook(workshop)
    before = workshop.files()
    assert workshop.run(notebook, "-p", name, value) == 2
    message = capsys.readouterr().err
    assert [words for words in expected if words not in message] == [], message
    assert workshop.files() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hf_token", "abcdefgh"),
        ("api_key", "abcdefgh"),
        ("apikey", "abcdefgh"),
        ("db_password", "abcdefgh"),
        ("client_secret_2", "abcdefgh"),
        ("hf_token", "[abcdefgh,"),
        ("corpus", "hf_abcdefgh1234567890"),
        ("corpus", "https://user:hf_abcdefgh1234567890@host/model"),
        ("target_modules", "[dense, sk-abcdefgh1234567890]"),
        ("unheard_of", "ghp_abcdefgh1234567890"),
        ("rank", "AKIAabcdefgh12345678"),
    ],
)
def test_secret_is_refused_and_never_echoed(workshop: Workshop, capsys: pytest.CaptureFixture, name: str, value: str) -> None:
    notebook = training_notebook(workshop)
    before = workshop.files()
    assert workshop.run(notebook, "-p", name, value) == 2
    captured = capsys.readouterr()
    assert name in captured.err
    assert "secret" in captured.err or "not valid YAML" in captured.err
    assert "abcdefgh" not in captured.err + captured.out
    assert workshop.files() == before


def test_secret_in_a_broken_file_is_not_echoed(workshop: Workshop, capsys: pytest.CaptureFixture) -> None:
    notebook, file = training_notebook(workshop), workshop.root / "A.yaml"
    file.write_text("rank: 8\nhf_token: [abcdefgh\nalpha: 1: 2")
    assert workshop.run(notebook, "-f", file) == 2
    message = capsys.readouterr().err
    assert "A.yaml: not valid YAML, line 3" in message
    assert "abcdefgh" not in message


# --- a later file scales what an earlier one says ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "later", "name", "value"),
    [
        ("learning_rate: 2e-4", "learning_rate: {times: 20}", "learning_rate", 0.004),  # not 0.0040000000000000001
        ("learning_rate: 5e-5", "04_train_lora:\n  learning_rate:\n    times: 20", "learning_rate", 0.001),
        ("rank: 4", "learning_rate: {times: 0.5}", "learning_rate", 5e-4),  # of the notebook's own 1e-3
        ("learning_rate: {times: 3}", "learning_rate: {times: 2}", "learning_rate", 6e-3),
        ("learning_rate: {times: 3}", "learning_rate: 1e-4", "learning_rate", 1e-4),
        ("epochs: 3", "epochs: {times: 2}", "epochs", 6.0),
        ("batch_size: 4", "batch_size: {times: 2}", "batch_size", 8),
    ],
)
def test_factor_scales_the_value_before_it(workshop: Workshop, first: str, later: str, name: str, value: float) -> None:
    files = [workshop.root / "A.yaml", workshop.root / "profile.yaml"]
    for file, text in zip(files, (first, later), strict=True):
        file.write_text(text)
    notebook = training_notebook(workshop)
    overrides, parameters = run.collect_parameters(notebook, files, [])
    assert overrides[name] == getattr(parameters, name) == value
    assert run.collect_parameters(notebook, files, [(name, "0.5" if name == "learning_rate" else "1")])[0][name] in (0.5, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("device: {times: 20}", "profile.yaml: device: {times: ...} multiplies a number by a number, not str by int"),
        ("target_modules: {times: 2}", "not list by int"),
        ("learning_rate: {times: twenty}", "not float by str"),
        ("learning_rate: {times: true}", "not float by bool"),
        ("learning_rate: {times: }", "not float by NoneType"),
        ("learning_rate: {times: sk-abcdefgh1234567890}", "not float by str"),
        ("learning_rate: {times: .nan}", "learning_rate = nan (float)"),
        ("learning_rate: {times: -1}", "learning_rate = -0.001 (float): Input should be greater than 0"),
        ("rank: {times: 0.3}", "rank = 2.4 (float): Input should be a valid integer"),
        ("04_train_lora: {learning_rate: {time: 20}}", "learning_rate = {'time': 20} (dict): Input should be a valid number"),
        ("learning_rte: {times: 20}", "unknown parameter; did you mean 'learning_rate'?"),
        ("hf_token: {times: abcdefgh}", "hf_token: looks like a secret"),
    ],
)
def test_wrong_factor_is_explained(workshop: Workshop, capsys: pytest.CaptureFixture, text: str, expected: str) -> None:
    notebook, file = training_notebook(workshop), workshop.root / "profile.yaml"
    file.write_text(text)
    assert workshop.run(notebook, "-f", file) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "abcdefgh" not in message


@pytest.mark.parametrize(
    ("missing", "maker"),
    [
        ("data/processed/mine/original", "run 01_prepare_data with profile 'mine' first"),
        ("data/processed/mine/original/prepared.json", "run 01_prepare_data with profile 'mine' first"),
        ("data/models/embedded", "run 02_build_embedded_model with profile 'mine' first"),
        ("reports/mine/02_build_embedded_model/best", "run 02_build_embedded_model with profile 'mine' first"),
        ("data/models/nowhere", "no notebook makes it"),
    ],
)
def test_missing_input_is_named_with_the_notebook_that_makes_it(
    workshop: Workshop, capsys: pytest.CaptureFixture, missing: str, maker: str
) -> None:
    notebook = workshop.notebook("1", name="04_train_lora.ipynb", parameters=TRAIN)
    folder = workshop.root / "data/processed/mine/original"
    if missing != "data/processed/mine/original":
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text("a corpus")
    if "processed" not in missing:
        (folder / "prepared.json").write_text(json.dumps({"model": missing}))
    before = workshop.files()
    assert workshop.run(notebook) == 2
    message = capsys.readouterr().err
    assert f"missing input: {missing}; {maker}" in message
    assert workshop.files() == before


def test_missing_notebook_is_named_with_those_there_are(workshop: Workshop, capsys: pytest.CaptureFixture) -> None:
    notebook = workshop.notebook("1", name="own.ipynb")
    assert workshop.run(notebook.with_name("onw.ipynb")) == 2
    assert "no such notebook; there are own.ipynb" in capsys.readouterr().err


def test_report_never_replaces_its_own_notebook(workshop: Workshop, capsys: pytest.CaptureFixture) -> None:
    notebook = workshop.notebook("1")
    before = workshop.files()
    workshop.report = notebook.parent / "x" / ".." / notebook.name
    (notebook.parent / "x").mkdir()
    assert workshop.run(notebook) == 2
    assert "would replace its own notebook" in capsys.readouterr().err
    workshop.report = workshop.root / "reports"
    assert workshop.run(notebook) == 2
    assert "ends in .ipynb" in capsys.readouterr().err
    assert workshop.files() == before


# --- a run that succeeds ----------------------------------------------------------------------------------------------

GOOD_CELLS = (
    "from interviewmate_utils.config import TrainLora",
    "# Where values arrive",
    "P = TrainLora.from_cell(globals())\nprint([P.rank, P.learning_rate, P.epochs, P.target_modules])",
    f"from pathlib import Path\nfolder = Path({TRAIN_FOLDER!r})\nfolder.mkdir(parents=True, exist_ok=True)\n"
    '(folder / "results.json").write_text(\'{"metrics": {"loss_nats": 1.5, "note": "none"}}\')',
    "import os\nprint(os.environ['PYTHONHASHSEED'], Path.cwd())",
)


@dataclass
class Good:
    root: Path
    report: nbformat.NotebookNode
    log: str
    runs: list
    failed_before: bool
    failed_after: bool
    hidden: list[str]

    @property
    def text(self) -> str:
        return "".join(o.get("text", "") for c in self.report.cells if c.cell_type == "code" for o in c.outputs)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Good:
    """One good run, looked at by many tests: a notebook with its real class, a profile, a run file and `-p` values."""
    root = tmp_path_factory.mktemp("good")
    with opened_workshop(root, store) as workshop, pytest.MonkeyPatch.context() as patch:
        workshop.lock.write_text("torch==2.13.0\n")
        notebook = training_notebook(workshop, *GOOD_CELLS)
        profile, own = root / "profile.yaml", root / "A.yaml"
        profile.write_text("shared:\n  profile: mine\n  encoder: for others\n04_train_lora:\n  rank: 2\n  epochs: 5e-1\n")
        own.write_text("rank: 4\nlearning_rate: 1e-4\n")
        for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
            subprocess.run(["git", "-C", str(root), *command], check=True)
        notebook.write_text(notebook.read_text() + "\n")  # a change that is not committed
        failed = write_notebook(workshop.failed, "# an older failure")
        failed_before = failed.exists()
        log = (root / "log").open("w+")
        patch.setattr("sys.stderr", log)
        code = workshop.run(
            notebook, "-f", profile, "-f", own, "-p", "learning_rate", "2e-4", "-p", "target_modules", "[dense]"
        )
        log.seek(0)
        text = log.read()
        assert code == 0, text
        hidden = [p.name for p in workshop.report.parent.glob(".*.ipynb")]
        report = nbformat.read(workshop.report, as_version=4)
        runs = mlflow_runs(store, f"tags.report = '{workshop.report}'")
        return Good(root, report, text, runs, failed_before, failed.exists(), hidden)


def test_injected_parameters_take_effect_with_their_types(good: Good) -> None:
    assert "[4, 0.0002, 0.5, ['dense']]" in good.text  # file over profile, -p over file; exponents are floats in all three


def test_processes_side_by_side_share_the_threads_whoever_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake sets MKL's own variable for a job, which wins over the one for OpenMP."""
    for threads, each in ((4, 2), (2, 1), (1, 1)):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(name, str(threads))
        code = "import torch; print(torch.get_num_threads(), torch.__config__.parallel_info())"
        command = [sys.executable, "-c", code]
        said = subprocess.run(command, env=kernel.environment_of_each(2), capture_output=True, text=True, check=True).stdout
        assert said.split()[0] == str(each)
        assert "mkl_get_max_threads" not in said or f"mkl_get_max_threads() : {each}\n" in said


def test_kernel_runs_at_the_repository_root_with_its_environment(good: Good) -> None:
    assert f"0 {good.root}" in good.text


def test_success_removes_an_older_failed_copy_and_the_draft(good: Good) -> None:
    assert good.failed_before
    assert not good.failed_after
    assert good.hidden == []


def test_metadata_carries_the_provenance(good: Good) -> None:
    record = good.report.metadata["interviewmate"]
    for key in ("notebook_digest", "package_digest", "parameters_digest", "lock_digest", "model_revision"):
        assert len(record[key]) == 16, key
        int(record[key], 16)
    assert set(record["inputs"]) == {"data/processed/mine/original", "data/models/tiny"}
    assert all(len(digest) == 16 for digest in record["inputs"].values())
    assert record["notebook"] == "notebooks/04_train_lora.ipynb"
    assert record["parameters"]["learning_rate"] == 2e-4
    assert record["overrides"]["rank"] == 4
    assert len(record["git_commit"]) == 12
    assert record["git_dirty"] is True
    assert (record["model"], record["device"]) == ("data/models/tiny", "cpu")
    assert set(record["versions"]) == set(provenance.VERSIONS)
    assert record["duration_s"] > 0
    assert record["peak_memory_gb"] > 0.01


def test_provenance_cell_shows_all_of_it(good: Good) -> None:
    (cell,) = [c for c in good.report.cells if "provenance" in c.metadata.get("tags", [])]
    assert cell.cell_type == "markdown"
    record = good.report.metadata["interviewmate"]
    shown = [record[k] for k in ("notebook_digest", "package_digest", "parameters_digest", "lock_digest", "git_commit")]
    shown += ["with uncommitted changes", record["model_revision"], "data/models/tiny", "device cpu", "learning_rate = 0.0002"]
    shown += [*record["inputs"].values(), *(f"{k} {v}" for k, v in record["versions"].items())]
    shown += [f"{record['duration_s']} s", f"{record['peak_memory_gb']} GB", record["started"], "Python 3"]
    assert [text for text in shown if text not in cell.source] == []


def test_success_is_finished_in_mlflow_with_parameters_and_numbers(good: Good) -> None:
    (run,) = good.runs
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.0002"
    assert run.data.metrics.keys() == {"duration_s", "peak_memory_gb", "loss_nats"}


def test_progress_in_a_log_names_notebook_section_and_time(good: Good) -> None:
    lines = [line.split() for line in good.log.splitlines()]
    assert [line[0] for line in lines] == ["report", "report"]
    assert [" ".join(line[2:]) for line in lines] == ["Where values arrive", "done"]


# --- a run that fails -------------------------------------------------------------------------------------------------

FAILURES = {
    "exception": ("raise ValueError('broken <b>on</b> purpose')", "ValueError: broken <b>on</b> purpose"),
    "sys_exit_0": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "killed_kernel": (
        "import os, signal, subprocess\nopen('child', 'w').write(str(subprocess.Popen(['sleep', '300']).pid))\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        "kernel killed by SIGKILL; most likely out of memory",
    ),
    "os_exit_0": ("import os\nos._exit(0)", "kernel died with exit code 0"),
    "time_out": ("import time\ntime.sleep(300)", "time-out: stopped after 6 s"),
    "skipped_cell": ("", "cell 3 never ran"),
}


@dataclass
class Failure:
    kind: str
    reason: str
    root: Path
    code: int
    seconds: float
    before: bytes
    after: bytes
    failed: nbformat.NotebookNode
    statuses: list[str]
    names: set[str]


@pytest.fixture(scope="module", params=FAILURES)
def failure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Failure]:
    """One run that fails in the given way, over a last good report."""
    cell, reason = FAILURES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    with opened_workshop(root, store) as workshop:
        last = workshop.notebook("open('ran', 'w')", cell, "open('went_on', 'w')")
        notebook = nbformat.read(last, as_version=4)
        for number, code_cell in enumerate(notebook.cells, 1):
            code_cell.execution_count = number  # as saved by an editor after an earlier run
        if request.param == "skipped_cell":
            notebook.cells[2] = nbformat.v4.new_code_cell("1 + 1", metadata={"tags": ["skip-execution"]})
        nbformat.write(notebook, last)
        before, started = workshop.last_good_report(), time.monotonic()
        code = workshop.run(last, "--timeout", "6" if request.param == "time_out" else "120")
        yield Failure(
            kind=request.param,
            reason=reason,
            root=root,
            code=code,
            seconds=time.monotonic() - started,
            before=before,
            after=workshop.report.read_bytes(),
            failed=nbformat.read(workshop.failed, as_version=4),
            statuses=workshop.statuses(),
            names={p.name for p in workshop.report.parent.iterdir()},
        )


def test_failure_has_an_exit_code(failure: Failure) -> None:
    assert failure.code == 1


def test_failure_leaves_last_report_untouched(failure: Failure) -> None:
    assert failure.after == failure.before
    assert failure.names == {"report.ipynb", "report.failed.ipynb", ".report.lock"}


def test_failed_copy_says_why_on_top_and_in_metadata(failure: Failure) -> None:
    top = failure.failed.cells[0]
    assert top.cell_type == "markdown"
    assert top.source.startswith(f"# FAILED: {failure.reason.replace('<', '&lt;').replace('>', '&gt;')}")
    assert failure.reason in failure.failed.metadata["interviewmate"]["failed"]
    assert failure.failed.metadata["interviewmate"]["notebook"] == "notebooks/own.ipynb"


def test_failure_is_failed_in_mlflow(failure: Failure) -> None:
    assert failure.statuses == ["FAILED"]


def test_failure_stops_the_notebook_and_the_waiting(failure: Failure) -> None:
    assert (failure.root / "went_on").exists() == (failure.kind == "skipped_cell")
    assert failure.seconds < 60


@pytest.mark.parametrize("failure", ["killed_kernel"], indirect=True)
def test_killed_kernel_takes_what_it_started_with_it(failure: Failure) -> None:
    assert not alive(int((failure.root / "child").read_text()))


@pytest.fixture
def small_disk(workshop: Workshop) -> Iterator[Path]:
    """A disk of 128 KB for the report."""
    folder = workshop.root / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a full disk needs a small one, and mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_leaves_last_report_untouched_and_says_why(
    workshop: Workshop, small_disk: Path, capsys: pytest.CaptureFixture
) -> None:
    workshop.report, workshop.failed = small_disk / "report.ipynb", small_disk / "report.failed.ipynb"
    before = workshop.last_good_report()
    assert workshop.run(workshop.notebook("print('x' * 1_000_000)")) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert workshop.report.read_bytes() == before
    failed = nbformat.read(workshop.failed, as_version=4)
    assert "No space left on device" in failed.cells[0].source
    assert "No space left on device" in failed.metadata["interviewmate"]["failed"]
    assert sorted(p.name for p in small_disk.iterdir()) == [".report.lock", "report.failed.ipynb", "report.ipynb"]
    assert workshop.statuses() == ["FAILED"]


def test_unwritable_mlflow_store_does_not_fail_the_notebook(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "STORE", workshop.root)  # a folder, which no database can be
    assert workshop.run(workshop.notebook("1 + 1")) == 0
    assert "not tracked" in capsys.readouterr().err
    assert provenance.read(workshop.report)["duration_s"] < 60


# --- several runs -----------------------------------------------------------------------------------------------------

WAITING = """\
import os, time
from pathlib import Path
Path("pid.tmp").write_text(str(os.getpid()))
Path("pid.tmp").rename("pid")
while not Path("go").exists():
    time.sleep(0.1)
"""


def test_second_run_into_one_target_is_turned_away_and_the_first_finishes(
    workshop: Workshop, capsys: pytest.CaptureFixture
) -> None:
    before = workshop.last_good_report()
    first = workshop.start(workshop.notebook(WAITING))
    try:
        wait_for((workshop.root / "pid").exists)
        assert workshop.run(workshop.notebook("open('second', 'w')", name="second.ipynb")) == 3
        message = capsys.readouterr().err
        assert f"process {first.pid} since" in message
        assert "nothing was run" in message
        assert not (workshop.root / "second").exists()
        assert workshop.report.read_bytes() == before
    finally:
        (workshop.root / "go").touch()
        _, log = first.communicate(timeout=60)
    assert first.returncode == 0, log
    assert provenance.read(workshop.report)["notebook"] == "notebooks/own.ipynb"
    assert workshop.statuses() == ["FINISHED"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_runner_leaves_last_report_untouched_no_kernel_and_a_free_target(
    workshop: Workshop, how: signal.Signals
) -> None:
    before, notebook = workshop.last_good_report(), workshop.notebook(WAITING)
    runner = workshop.start(notebook)
    wait_for((workshop.root / "pid").exists)
    kernel = int((workshop.root / "pid").read_text())
    assert alive(kernel)
    runner.send_signal(how)
    runner.communicate(timeout=30)
    assert workshop.report.read_bytes() == before
    wait_for(lambda: not alive(kernel), 15)
    if how == signal.SIGKILL:
        assert workshop.statuses() == ["RUNNING"]
    else:
        assert runner.returncode == 130
        assert not workshop.report.with_name(".report.tmp.ipynb").exists()
    (workshop.root / "go").touch()
    assert workshop.run(notebook) == 0
    assert workshop.statuses() == ["KILLED", "FINISHED"]
    assert json.loads(workshop.report.read_text())["metadata"]["interviewmate"]["duration_s"] > 0
    assert not workshop.report.with_name(".report.tmp.ipynb").exists()
