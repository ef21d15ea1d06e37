"""The order of the notebooks: one rule each, and nothing else knows it. `make report` calls this."""

import os
import re
from pathlib import Path

import yaml

from interviewmate_utils import provenance
from interviewmate_utils.config import ORIGINAL, ROOT
from interviewmate_utils.run import collect_parameters

PROFILE = config.get("profile", "embedded")
PROFILE_FILE = f"notebooks/params/profiles/{PROFILE}.yaml"
OUT = f"reports/{PROFILE}"
if not Path(PROFILE_FILE).exists():
    known = ", ".join(sorted(p.stem for p in Path(PROFILE_FILE).parent.glob("*.yaml")))
    sys.exit(f"There is no profile '{PROFILE}'. Known: {known}. A profile is one file in notebooks/params/profiles/.")
CONTENT = yaml.safe_load(Path(PROFILE_FILE).read_text())
SHARED = CONTENT["shared"]
RUNS = [f"{run}_seed{seed}" for run in SHARED["runs"] for seed in SHARED["seeds"]]
RUN_COMMAND = "OMP_NUM_THREADS={threads} {PYTHON} -m interviewmate_utils.warm run {input.notebook} -o {output} {params.files}"
PYTHON = sys.executable
THREADS = int(os.environ.get("SLURM_CPUS_PER_TASK") or workflow.resource_settings.cores or 4)  # a job's, or this machine's
SMALL_THREADS = CONTENT.get("workflow", {}).get("threads", THREADS)


def files(stem, run=None):
    """The -f and -p options of a notebook: first the run's or corpus's file, then the profile, whose own values win.

    A search's file comes after the profile, since it says more.
    """
    if stem == "05_search_hyperparameters" and run:
        return f"-f {PROFILE_FILE} -f notebooks/params/searches/{run}.yaml"
    folder = "corpora" if stem == "01_prepare_data" else "runs"
    options = f"-f notebooks/params/{folder}/{run.split('_seed')[0]}.yaml " if run else ""
    options += f"-f {PROFILE_FILE}"
    return options + (f" -p seed {run.split('_seed')[1]}" if "_seed" in (run or "") else "")


def resolved(stem, run=None):
    """All parameters after files and defaults: a change in them, and only in them, makes a rerun."""
    words = files(stem, run).split()
    paths = [Path(words[i + 1]) for i, word in enumerate(words) if word == "-f"]
    pairs = [(words[i + 1], words[i + 2]) for i, word in enumerate(words) if word == "-p"]
    return collect_parameters(Path(f"notebooks/{stem}.ipynb"), paths, pairs)[1]


def made_of(stem, run=None):
    """What a report depends on besides other reports: package modules, lock file, raw data, tracked weights.

    Trainings learn from their prepared corpus which weights are their base, and that corpus's report depends on them. Named
    here, they would join the inputs once there is a corpus, and that change would train everything again.
    """
    read = [] if stem in ("04_train_lora", "05_search_hyperparameters") else resolved(stem, run).inputs()
    kept = [p for p in read if p.is_relative_to(ROOT / "data") or p.is_relative_to(ROOT / "reports/published")]
    tracked = [p for p in kept if "processed" not in p.parts]
    found = [file for path in tracked for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    found += provenance.modules_used(Path(f"notebooks/{stem}.ipynb"))
    return [str(p.relative_to(ROOT)) for p in found] + ["requirements.lock"]


def prepared(corpus):
    """The report that prepares a corpus of this profile."""
    return f"{OUT}/01_prepare_data{'' if corpus == ORIGINAL else f'_{corpus}'}.ipynb"


REPORTS = [f"{OUT}/{stem}.ipynb" for stem in ("01_prepare_data", "02_build_embedded_model")]
REPORTS += [f"{OUT}/{stem}.ipynb" for stem in ("05_search_hyperparameters", "06_evaluate_models", "07_analyse_errors")]
REPORTS += [f"{OUT}/{stem}.ipynb" for stem in ("12_audit_claims", "13_summarise")]
REPORTS += [prepared(path.stem) for path in sorted(Path("notebooks/params/corpora").glob("*.yaml"))]
REPORTS += [f"{OUT}/04_train_lora_{run}.ipynb" for run in RUNS]


rule report:  # names every report, so that a deleted one is made again although the site is newer
    input:
        REPORTS,
        f"{OUT}/site/index.html",


rule site:
    input:
        REPORTS,
        "interviewmate_utils/site.py",
    output:
        f"{OUT}/site/index.html",
    shell:
        "{PYTHON} -m interviewmate_utils.site {PROFILE}"


rule prepare_data:
    input:
        made_of("01_prepare_data"),
        notebook="notebooks/01_prepare_data.ipynb",
    params:
        files=files("01_prepare_data"),
        values=str(resolved("01_prepare_data")),
    output:
        update(f"{OUT}/01_prepare_data.ipynb"),
    priority: 100  # trainings wait for it; it takes all cores, so it must outweigh as many trainings
    threads: THREADS
    shell:
        RUN_COMMAND


rule prepare_another_corpus:
    input:
        lambda wildcards: made_of("01_prepare_data", wildcards.corpus),
        notebook="notebooks/01_prepare_data.ipynb",
    params:
        files=lambda wildcards: files("01_prepare_data", wildcards.corpus),
        values=lambda wildcards: str(resolved("01_prepare_data", wildcards.corpus)),
    output:
        update(OUT + "/01_prepare_data_{corpus}.ipynb"),
    priority: 100  # trainings wait for it; it takes all cores, so it must outweigh as many trainings
    threads: THREADS
    shell:
        RUN_COMMAND


rule build_embedded_model:
    input:
        made_of("02_build_embedded_model"),
        notebook="notebooks/02_build_embedded_model.ipynb",
    params:
        files=files("02_build_embedded_model"),
        values=str(resolved("02_build_embedded_model")),
    output:
        update(f"{OUT}/02_build_embedded_model.ipynb"),
    threads: SMALL_THREADS  # with no priority: fills the core that the last training leaves free
    shell:
        RUN_COMMAND


rule train_lora:
    input:
        lambda wildcards: made_of("04_train_lora", wildcards.run),
        lambda wildcards: prepared(resolved("04_train_lora", wildcards.run).corpus),
        notebook="notebooks/04_train_lora.ipynb",
    params:
        files=lambda wildcards: files("04_train_lora", wildcards.run),
        values=lambda wildcards: str(resolved("04_train_lora", wildcards.run)),
    output:
        update(OUT + "/04_train_lora_{run}.ipynb"),
    priority: 1
    threads: SMALL_THREADS
    shell:
        RUN_COMMAND


def searched_on(study=None):
    """The reports that a search needs: its corpus, and run A with the seeds of its verdict."""
    p = resolved("05_search_hyperparameters", study)
    return [prepared(p.corpus), *(f"{OUT}/04_train_lora_A_seed{seed}.ipynb" for seed in p.verdict_seeds)]


rule search_hyperparameters:  # the short search
    input:
        made_of("05_search_hyperparameters"),
        searched_on(),
        notebook="notebooks/05_search_hyperparameters.ipynb",
    params:
        files=files("05_search_hyperparameters"),
        values=str(resolved("05_search_hyperparameters")),
        first=str(resolved("04_train_lora", "A")),  # what the search compares with, as the profile scales it
    output:
        update(f"{OUT}/05_search_hyperparameters.ipynb"),
    threads: THREADS
    shell:
        RUN_COMMAND


rule search_longer:  # `make search`; a report of its own, which `make report` neither makes nor needs
    input:
        lambda wildcards: made_of("05_search_hyperparameters", wildcards.study),
        lambda wildcards: searched_on(wildcards.study),
        notebook="notebooks/05_search_hyperparameters.ipynb",
    params:
        files=lambda wildcards: files("05_search_hyperparameters", wildcards.study),
        values=lambda wildcards: str(resolved("05_search_hyperparameters", wildcards.study)),
        first=str(resolved("04_train_lora", "A")),
    output:
        update(OUT + "/05_search_hyperparameters_{study}.ipynb"),
    threads: THREADS
    shell:
        RUN_COMMAND


rule evaluate_models:
    input:
        made_of("06_evaluate_models"),
        f"{OUT}/01_prepare_data.ipynb",
        expand(OUT + "/04_train_lora_{run}.ipynb", run=RUNS),
        notebook="notebooks/06_evaluate_models.ipynb",
    params:
        files=files("06_evaluate_models"),
        values=str(resolved("06_evaluate_models")),
    output:
        update(f"{OUT}/06_evaluate_models.ipynb"),
    threads: THREADS
    shell:
        RUN_COMMAND


rule analyse_errors:
    input:
        made_of("07_analyse_errors"),
        f"{OUT}/06_evaluate_models.ipynb",
        notebook="notebooks/07_analyse_errors.ipynb",
    params:
        files=files("07_analyse_errors"),
        values=str(resolved("07_analyse_errors")),
    output:
        update(f"{OUT}/07_analyse_errors.ipynb"),
    threads: THREADS
    shell:
        RUN_COMMAND


rule audit_claims:
    input:
        made_of("12_audit_claims"),
        notebook="notebooks/12_audit_claims.ipynb",
    params:
        files=files("12_audit_claims"),
        values=str(resolved("12_audit_claims")),
    output:
        update(f"{OUT}/12_audit_claims.ipynb"),
    threads: SMALL_THREADS
    shell:
        RUN_COMMAND


rule summarise:
    input:
        made_of("13_summarise"),
        f"{OUT}/02_build_embedded_model.ipynb",
        f"{OUT}/06_evaluate_models.ipynb",
        notebook="notebooks/13_summarise.ipynb",
    params:
        files=files("13_summarise"),
        values=str(resolved("13_summarise")),
    output:
        update(f"{OUT}/13_summarise.ipynb"),
    threads: THREADS
    shell:
        RUN_COMMAND
