"""The DAG reruns exactly what depends on a change. Plans are Snakemake's own (dry runs) on a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interviewmate_utils.config import ROOT

RULES = ["prepare_data", "prepare_another_corpus", "build_embedded_model", "train_lora", "search_hyperparameters"]
RULES += ["evaluate_models", "audit_claims", "summarise", "site"]
RUNS = ["A", "B", "C", "enhanced"]  # of the profiles


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the repository after `make report`: Snakemake really ran, only the notebooks were copied, not executed."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("interviewmate_utils", "notebooks", "data/raw", "data/models", "reports/published"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    text = re.sub(r'RUN_COMMAND = ".*"', 'RUN_COMMAND = "cp {input.notebook} {output}"', (ROOT / "Snakefile").read_text())
    (folder / "Snakefile").write_text(text.replace('"{PYTHON} -m interviewmate_utils.site {PROFILE}"', '"echo > {output}"'))
    done = snakemake(folder, "--config", "profile=embedded")
    assert done.returncode == 0, done.stderr[-2000:]
    for corpus in ("original", "enhanced"):  # what the notebooks would have left
        prepared = folder / "data" / "processed" / "embedded" / corpus / "prepared.json"
        prepared.parent.mkdir(parents=True)
        prepared.write_text('{"model": "data/models/embedded"}')
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return folder


def snakemake(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", *options]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def plan(folder: Path, profile: str = "embedded") -> str:
    done = snakemake(folder, "-n", "--config", f"profile={profile}")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def planned(folder: Path, profile: str = "embedded") -> set[str]:
    text = plan(folder, profile)
    return {rule for rule in RULES if re.search(rf"^(local)?rule {rule}:", text, re.M)}


def trainings(folder: Path, profile: str = "embedded") -> list[str]:
    """The runs that would be trained, such as A_seed13."""
    return sorted(re.findall(r"^    output: reports/\S+/04_train_lora_(\S+)\.ipynb", plan(folder, profile), re.M))


def rewrite(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text, f"{before!r} is not in {path.name}"
    path.write_text(text.replace(before, after))


def test_nothing_changed_runs_nothing(copy):
    assert planned(copy) == set()


def test_changed_raw_file_reruns_the_corpus_and_what_follows(copy):
    rewrite(copy / "data/raw/interview_qa.jsonl", "gradient", "Gradient")
    assert planned(copy) == {*RULES} - {"build_embedded_model"}


def test_changed_second_file_reruns_the_corpus_that_it_enlarges_and_its_run(copy):
    rewrite(copy / "data/raw/interview_qa_enhanced.jsonl", "gradient", "Gradient")
    assert planned(copy) == {"prepare_another_corpus", "train_lora", "evaluate_models", "summarise", "site"}
    assert trainings(copy) == ["enhanced_seed13", "enhanced_seed14", "enhanced_seed15"]


def test_changed_notebook_reruns_itself_and_what_follows(copy):
    path = copy / "notebooks/06_evaluate_models.ipynb"
    content = json.loads(path.read_text())
    content["cells"][0]["source"] = ["# Another title"]
    path.write_text(json.dumps(content))
    assert planned(copy) == {"evaluate_models", "summarise", "site"}


def test_changed_parameter_reruns_only_the_notebook_that_takes_it(copy):
    rewrite(
        copy / "notebooks/params/profiles/embedded.yaml", "items: 0\n  max_new_tokens: 240", "items: 0\n  max_new_tokens: 200"
    )
    assert planned(copy) == {"evaluate_models", "summarise", "site"}


@pytest.mark.parametrize(
    ("before", "after"),
    [("dropout: 0.05", "dropout: 0.10"), ("learning_rate: 2.0e-4", "learning_rate: 3.0e-4")],  # the profile scales the rate
)
def test_changed_run_file_retrains_that_run_with_each_seed(copy, before, after):
    rewrite(copy / "notebooks/params/runs/A.yaml", before, after)
    assert planned(copy) == {"train_lora", "search_hyperparameters", "evaluate_models", "summarise", "site"}
    assert trainings(copy) == ["A_seed13", "A_seed14", "A_seed15"]


def test_same_rate_written_differently_changes_nothing(copy):
    rewrite(copy / "notebooks/params/runs/A.yaml", "learning_rate: 2.0e-4", "learning_rate: 0.0002")
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "{times: 20}", "{times: 20.0}")
    assert planned(copy) == set()


def test_changed_factor_of_the_profile_retrains_every_run(copy):
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "{times: 20}", "{times: 10}")
    assert planned(copy) == {"train_lora", "search_hyperparameters", "evaluate_models", "summarise", "site"}
    assert trainings(copy) == sorted(f"{run}_seed{seed}" for run in RUNS for seed in (13, 14, 15))


def test_overridden_parameter_in_a_run_file_changes_nothing(copy):
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "{times: 20}", "0.004")
    assert trainings(copy) == sorted(f"{run}_seed{seed}" for run in ("B", "C", "enhanced") for seed in (13, 14, 15))
    rewrite(copy / "notebooks/params/runs/A.yaml", "learning_rate: 2.0e-4", "learning_rate: 3.0e-4")
    assert not any(run.startswith("A_") for run in trainings(copy)), "the profile sets its own learning rate"


def test_new_seed_trains_one_new_job_per_run(copy):
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "seeds: [13, 14, 15]", "seeds: [13, 14, 15, 16]")
    assert planned(copy) == {"train_lora", "evaluate_models", "summarise", "site"}
    assert trainings(copy) == [f"{run}_seed16" for run in RUNS]


def test_new_run_in_the_profile_trains_it_alone(copy):
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "runs: [A, B, C, enhanced]", "runs: [A, B, C, enhanced, dora]")
    assert planned(copy) == {"train_lora", "evaluate_models", "summarise", "site"}
    assert trainings(copy) == ["dora_seed13", "dora_seed14", "dora_seed15"]


def test_run_file_that_no_profile_names_changes_nothing(copy):
    rewrite(copy / "notebooks/params/runs/full.yaml", "epochs: 5.0", "epochs: 6.0")
    assert planned(copy) == set()


def test_missing_report_of_a_corpus_trains_its_run_again(copy):
    (copy / "reports/embedded/01_prepare_data_enhanced.ipynb").unlink()
    assert trainings(copy) == ["enhanced_seed13", "enhanced_seed14", "enhanced_seed15"]
    (copy / "reports/embedded/01_prepare_data.ipynb").unlink()
    assert len(trainings(copy)) == 12


def test_trainings_go_side_by_side_where_the_profile_says_so(copy):
    rewrite(copy / "notebooks/params/runs/A.yaml", "dropout: 0.05", "dropout: 0.10")
    said = [plan(copy).split("rule train_lora:")[1].split("rule ")[0]]
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "  threads: 1", "  threads: 2")
    said.append(plan(copy).split("rule train_lora:")[1].split("rule ")[0])
    assert ["threads: 2" in text for text in said] == [False, True]  # of two cores; one is not mentioned
    assert ["threads: " in text for text in said] == [False, True]


def test_changed_module_reruns_the_notebooks_that_import_it(copy):
    rewrite(copy / "interviewmate_utils/stats/paired.py", "Scores of two systems", "Scores of two Systems")
    assert planned(copy) == {"search_hyperparameters", "evaluate_models", "audit_claims", "summarise", "site"}


def test_what_is_published_anew_is_audited_anew(copy):
    rewrite(copy / "reports/published/embedded.json", '"seed": 13', '"seed": 14')
    assert planned(copy) == {"audit_claims", "site"}


def test_changed_weights_rerun_all_that_reads_them(copy):
    (copy / "data/models/embedded/config.json").write_text((copy / "data/models/embedded/config.json").read_text() + "\n")
    assert planned(copy) == set(RULES) - {"audit_claims"}


def test_missing_report_is_made_again(copy):
    (copy / "reports/embedded/02_build_embedded_model.ipynb").unlink()
    assert planned(copy) == {"build_embedded_model", "summarise", "site"}


def test_changed_search_reruns_the_search_alone(copy):
    rewrite(copy / "notebooks/params/profiles/embedded.yaml", "folds: 3", "folds: 2")
    assert planned(copy) == {"search_hyperparameters", "site"}


def test_make_search_runs_the_longer_search_after_run_a(copy):
    listed = snakemake(
        copy, "-n", "--config", "profile=embedded", "--", "reports/embedded/05_search_hyperparameters_full.ipynb"
    )
    assert listed.returncode == 0, listed.stderr[-2000:]
    assert re.findall(r"^rule (\w+):", listed.stdout + listed.stderr, re.M) == ["search_longer"]
    (copy / "reports/embedded/04_train_lora_A_seed14.ipynb").unlink()
    listed = snakemake(
        copy, "-n", "--config", "profile=embedded", "--", "reports/embedded/05_search_hyperparameters_full.ipynb"
    )
    assert re.findall(r"^rule (\w+):", listed.stdout + listed.stderr, re.M) == ["train_lora", "search_longer"]


def test_another_profile_runs_the_same_notebooks(copy):
    assert planned(copy, "falcon-rw-1b") == set(RULES)
    assert trainings(copy, "falcon-rw-1b") == sorted(f"{run}_seed{seed}" for run in RUNS for seed in (13, 14, 15))


def test_unknown_profile_is_named_with_the_known_ones(copy):
    done = snakemake(copy, "-n", "--config", "profile=falcon")
    assert done.returncode != 0
    assert "no profile 'falcon'" in done.stdout + done.stderr
    assert "embedded, falcon-rw-1b" in done.stdout + done.stderr


def test_notebooks_run_here_unless_an_executor_is_named(copy):
    def commands(*variables):
        return subprocess.run(["make", "-n", "report", *variables], cwd=copy, capture_output=True, text=True, check=False)

    assert "snakemake --cores all " in commands().stdout
    elsewhere = commands("EXECUTOR=slurm").stdout
    assert "snakemake --workflow-profile notebooks/params/executors/slurm.yaml " in elsewhere
    assert "--cores" not in elsewhere
    unknown = commands("EXECUTOR=slrum")
    assert unknown.returncode != 0
    assert "no executor 'slrum'. Known: local slurm." in unknown.stderr


def test_rules_take_all_cores_here_and_a_jobs_own_on_a_cluster(copy, monkeypatch):
    def threads():
        return set(re.findall(r"threads: (\d+)", snakemake(copy, "-n", "--forceall", "--config", "profile=embedded").stdout))

    assert threads() == {"2"}
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert threads() == set(), "one thread goes without saying"


def test_make_without_a_target_lists_the_targets():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("report", "test", "search", "ask", "lab", "site", "wheelhouse", "clean"):
        assert f"make {target}" in listed
