"""Paths anchored at the repository root, and the typed parameters of each notebook, which validate themselves.

A notebook's `parameters` cell declares names and defaults; the class here of the same name declares types and ranges.
`tests/test_config.py` holds the two together.
"""

import contextlib
import difflib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from .parameters import ParameterError, one_line, parameters_cell, parse_yaml, validate

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
EMBEDDED_MODEL = "data/models/embedded"
CAVEAT = (
    "A model this small shows the method, not a coach: it was pretrained on docstrings, has a few million parameters, and "
    "its answers are often wrong. No number here is Falcon-RW-1B's."
)  # goes wherever a result of the embedded model is shown
QUESTIONS, JUDGED, TERMS = "data/raw/interview_qa.jsonl", "data/raw/judged_answers.jsonl", "data/raw/technical_terms.txt"
TRIAL_RECORD = "data/models/trial_recipe/training.json"  # what the tracked weights are compared with

TRAINED = "trained"  # in the folder of a training run: its weights
PREPARED = "prepared.json"  # in the folder of a prepared corpus: whose tokens these are
ORIGINAL = "original"  # the corpus that every comparison is judged on

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]

_LEFT_BY_READERS = ("cache-*.arrow", "*.lock")  # datasets puts these into a folder that it only reads


class Parameters(BaseModel):
    """What every notebook takes: the profile, which names the folders that it reads and writes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    stem: ClassVar[str] = ""
    profile: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @classmethod
    def from_cell(cls, namespace: Mapping[str, Any]) -> Self:
        """Validate the values that the `parameters` cell (and an injected one after it) left in `globals()`."""
        return validate(cls, {name: namespace[name] for name in cls.model_fields if name in namespace})

    @property
    def run_name(self) -> str:
        """Name of this run's folder and report below `reports/<profile>/`."""
        return self.stem

    @property
    def output(self) -> Path:
        """Folder for results.json, figures and tables; created on first use."""
        folder = ROOT / "reports" / self.profile / self.run_name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def processed(self) -> Path:
        """Folder of the prepared corpus."""
        return processed_folder(self.profile)

    def inputs(self) -> list[Path]:
        """Files and folders that the notebook reads: hashed into the provenance, and required to exist before a run."""
        return []

    def sibling(self, run_name: str) -> Path:
        """Output folder of another run of the same profile."""
        return ROOT / "reports" / self.profile / run_name

    def weights_of(self, run: str, seed: int) -> Path:
        """Folder of the trained weights of one run and seed."""
        return self.sibling(f"{TrainLora.stem}_{run}_seed{seed}") / TRAINED


class PrepareData(Parameters):
    stem: ClassVar[str] = "01_prepare_data"
    corpus: Name
    raw_file: str
    extra_file: str
    question_column: str
    answer_column: str
    stratify_by: str
    strict: bool
    model: str
    max_length: Annotated[int, Field(ge=16, le=32768)]
    encoder: str
    near_duplicate: Annotated[float, Field(gt=0.5, le=1)]
    validation_share: Share
    test_share: Share

    @property
    def run_name(self) -> str:
        return self.stem if self.corpus == ORIGINAL else f"{self.stem}_{self.corpus}"

    @property
    def processed(self) -> Path:
        return processed_folder(self.profile, self.corpus)

    def inputs(self) -> list[Path]:
        files = [ROOT / name for name in (self.raw_file, self.extra_file) if name]
        return files + local_model_files(self.model)


class BuildEmbeddedModel(Parameters):
    stem: ClassVar[str] = "02_build_embedded_model"
    build_dir: str
    packages: Annotated[list[str], Field(min_length=1)]
    held_out: Annotated[list[str], Field(min_length=1)]
    held_out_documents: Annotated[int, Field(ge=0)]
    vocab_size: Annotated[int, Field(ge=300, le=65536)]
    hidden: Annotated[int, Field(ge=16, le=4096)]
    layers: Annotated[int, Field(ge=1, le=64)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    steps: Count
    batch: Count
    muon_lr: Annotated[float, Field(gt=0, lt=1)]
    average_from: Annotated[float, Field(ge=0, lt=1)]

    def inputs(self) -> list[Path]:
        read = (EMBEDDED_MODEL, TRIAL_RECORD)
        return [ROOT / name for name in read if not (self.build_dir and name.startswith(self.build_dir))]


# What may differ from plain LoRA; peft's names, but for `full` (all weights, no adapter) and `checkpointing`, which
# computes activations anew in the backward pass to save memory
Variant = Literal["dora", "rslora", "pissa", "olora", "adalora", "4bit", "full", "checkpointing"]


class Hardware(NamedTuple):
    """What a `device` parameter of a training says: `cuda*4+fsdp` is four CUDA devices with weights sharded over them."""

    kind: str
    processes: int
    fsdp: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        found = re.fullmatch(r"(auto|cpu|cuda|mps)(?:\*([1-9]\d*))?(\+fsdp)?", text)
        if not found:
            allowed = (
                "auto, cpu, cuda or mps; 'cuda*4' trains in four processes, 'cuda*4+fsdp' shards the weights over them, too"
            )
            raise ValueError(f"allowed: {allowed}")
        return cls(found[1], int(found[2] or 1), bool(found[3]))


class _OnPrepared(Parameters):
    """A notebook that trains on one prepared corpus, whose model is its base."""

    @property
    def processed(self) -> Path:
        return processed_folder(self.profile, self.corpus)

    @property
    def model(self) -> str:
        """The base: the model whose tokens the prepared corpus holds; empty before there is one."""
        return prepared_for(self.processed)

    def inputs(self) -> list[Path]:
        if self.model or not self.processed.exists():
            return [self.processed, *(local_model_files(self.model) if self.model else [])]
        return [self.processed, self.processed / PREPARED]  # a corpus of before, which must be prepared again


class TrainLora(_OnPrepared):
    stem: ClassVar[str] = "04_train_lora"
    run: Name
    corpus: Name
    device: str
    variants: list[Variant]
    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Annotated[int, Field(ge=1, le=4096)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[str], Field(min_length=1)]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    epochs: Annotated[float, Field(gt=0, le=1000)]
    batch_size: Count
    warmup_steps: Annotated[int, Field(ge=0)]

    @field_validator("device")
    @classmethod
    def _is_hardware(cls, device: str) -> str:
        Hardware.parse(device)
        return device

    @field_validator("variants")
    @classmethod
    def _go_together(cls, variants: list[str]) -> list[str]:
        # DoRA's magnitudes get lost when a PiSSA or OLoRA adapter is converted, and PiSSA cannot start from 4 bits
        kinds = ("full", "adalora", "dora", "pissa", "olora")
        for group in (kinds, ("full", "rslora"), ("full", "4bit"), ("pissa", "4bit")):
            if len(chosen := [name for name in group if name in variants]) > 1:
                raise ValueError(f"{' and '.join(chosen)} cannot be combined")
        return variants

    @model_validator(mode="after")
    def _can_be_spread(self) -> Self:
        # these read or change whole matrices, of which a process then holds a part
        if self.hardware.fsdp and (whole := [name for name in ("adalora", "4bit", "pissa", "olora") if name in self.variants]):
            raise ValueError(f"variants: {whole[0]} cannot be sharded; train it with a device without '+fsdp'")
        if self.batch_size % self.hardware.processes:
            raise ValueError(f"batch_size = {self.batch_size} cannot be shared by {self.hardware.processes} processes")
        return self

    @property
    def hardware(self) -> Hardware:
        return Hardware.parse(self.device)

    @property
    def run_name(self) -> str:
        return f"{self.stem}_{self.run}_seed{self.seed}"

    @property
    def trained(self) -> Path:
        """Folder of the trained weights."""
        return self.output / TRAINED


class SearchHyperparameters(_OnPrepared):
    stem: ClassVar[str] = "05_search_hyperparameters"
    study: Name
    corpus: Name
    device: Device
    trials: Annotated[int, Field(ge=1, le=10_000)]
    folds: Annotated[int, Field(ge=2, le=20)]
    epochs: Annotated[float, Field(gt=0, le=1000)]
    learning_rates: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=2, max_length=2)]
    max_new_tokens: Count
    repetition_penalty: Annotated[float, Field(ge=1, le=2)]
    storage: str
    processes: Annotated[int, Field(ge=1, le=64)]
    prune: bool
    verdict_seeds: list[Annotated[int, Field(ge=0, lt=2**32)]]

    @field_validator("learning_rates")
    @classmethod
    def _is_a_range(cls, rates: list[float]) -> list[float]:
        if rates[0] >= rates[1]:
            raise ValueError("the lowest rate comes first, then the highest")
        return rates

    @field_validator("storage")
    @classmethod
    def _tells_no_password(cls, storage: str) -> str:
        if re.match(r"[^/]*//[^/@]*:[^$/@][^/@]*@", storage):
            raise ValueError("a report stores its parameters: write $NAME for the password, and set NAME in the environment")
        return storage

    @model_validator(mode="after")
    def _compares_with_run_a(self) -> Self:
        if self.verdict_seeds and self.corpus != ORIGINAL:
            raise ValueError(
                f"verdict_seeds: the verdict compares with run A, which learns from '{ORIGINAL}'; after a search on "
                f"'{self.corpus}' it would compare corpora, too. Leave verdict_seeds empty there"
            )
        return self

    @property
    def run_name(self) -> str:
        return self.stem if self.study == "short" else f"{self.stem}_{self.study}"

    def inputs(self) -> list[Path]:
        read = [*super().inputs(), NOTEBOOKS / "params/runs/A.yaml"]
        return read + [self.weights_of("A", seed) for seed in self.verdict_seeds]


class EvaluateModels(Parameters):
    stem: ClassVar[str] = "06_evaluate_models"
    model: str
    device: Device
    runs: Annotated[list[Name], Field(min_length=1)]
    seeds: Seeds
    encoder: str
    items: Annotated[int, Field(ge=0)]
    shots: Annotated[int, Field(ge=0, le=16)]
    max_new_tokens: Count
    batch_size: Count
    repetition_penalty: Annotated[float, Field(ge=1, le=2)]
    resamples: Annotated[int, Field(ge=100)]

    def inputs(self) -> list[Path]:
        trained = [self.weights_of(run, seed) for run in self.runs for seed in self.seeds]
        return [self.processed, *local_model_files(self.model), *(ROOT / name for name in (JUDGED, QUESTIONS, TERMS)), *trained]


class AnalyseErrors(Parameters):
    stem: ClassVar[str] = "07_analyse_errors"
    encoder: str
    examples: Count
    resamples: Annotated[int, Field(ge=100)]

    def inputs(self) -> list[Path]:
        told = self.sibling(EvaluateModels.stem) / "tables" / "answers.parquet"
        return [self.processed, told, *(ROOT / name for name in (JUDGED, QUESTIONS, TERMS))]


class Summarise(Parameters):
    stem: ClassVar[str] = "13_summarise"
    runs: list[Name]
    seeds: Seeds

    def inputs(self) -> list[Path]:
        trained = [f"{TrainLora.stem}_{run}_seed{seed}" for run in self.runs for seed in self.seeds]
        stems = [PrepareData.stem, BuildEmbeddedModel.stem, *trained, EvaluateModels.stem]
        names = ("summary", "means", "verdicts", "seeds")
        tables = [self.sibling(EvaluateModels.stem) / "tables" / f"{name}.parquet" for name in names]
        tables += [self.sibling(run) / "tables" / "history.parquet" for run in trained]
        return [self.sibling(stem) / "results.json" for stem in stems] + tables


class AuditClaims(Parameters):
    stem: ClassVar[str] = "12_audit_claims"
    claims: Annotated[str, Field(min_length=1)]
    measured: Annotated[str, Field(min_length=1)]

    def inputs(self) -> list[Path]:
        return [ROOT / name for name in (self.claims, self.measured, QUESTIONS, TERMS)]


BY_STEM = {
    cls.stem: cls
    for cls in (
        PrepareData,
        BuildEmbeddedModel,
        TrainLora,
        SearchHyperparameters,
        EvaluateModels,
        AnalyseErrors,
        AuditClaims,
        Summarise,
    )
}


def processed_folder(profile: str, corpus: str = ORIGINAL) -> Path:
    """Where `01_prepare_data` puts a corpus of a profile."""
    return ROOT / "data" / "processed" / profile / corpus


def prepared_for(processed: Path) -> str:
    """The model whose tokenizer made a prepared corpus; empty if there is no such corpus (yet)."""
    path = processed / PREPARED
    return json.loads(path.read_text(encoding="utf-8"))["model"] if path.exists() else ""


def local_model_files(model: str) -> list[Path]:
    """The folder of a model kept in the repository; nothing for a Hugging Face id, whose revision is its identity."""
    return [ROOT / model] if (ROOT / model).is_dir() or model.startswith(("data/", "reports/", "./", "/")) else []


def made_by(path: Path) -> str:
    """Stem of the notebook that writes `path`, an input of another; empty for what no notebook makes."""
    if path.is_relative_to(ROOT / EMBEDDED_MODEL) or path == ROOT / TRIAL_RECORD:
        return BuildEmbeddedModel.stem
    if path.is_relative_to(ROOT / "data" / "processed"):
        return PrepareData.stem
    run_name = path.relative_to(ROOT / "reports").parts[1:2] if path.is_relative_to(ROOT / "reports") else ()
    return next((stem for stem in BY_STEM if run_name and run_name[0].startswith(stem)), "")


def parameters_class(notebook: Path) -> type[BaseModel]:
    """The class that checks this notebook's parameters; for a notebook of the user's own, one made from its defaults."""
    if known := BY_STEM.get(notebook.stem):
        return known
    fields = {name: (Any if value is None else type(value), value) for name, value in parameters_cell(notebook).items()}
    return create_model(notebook.stem, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _named(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value or {}, dict) or not all(isinstance(key, str) for key in value or {}):
        raise ParameterError(f"{where}: expected `name: value` lines")
    return value or {}


def is_factor(value: Any) -> bool:
    """Whether a parameter file says `{times: 20}`: a factor for what an earlier file or the notebook says."""
    return isinstance(value, dict) and value.keys() == {"times"}


def read_parameters(path: Path, stem: str) -> dict[str, Any]:
    """Parameters for notebook `stem` from a YAML file.

    A flat file (a run) gives all its keys. A profile has sections: `shared`, of which a notebook takes the names it
    knows, and one per notebook stem, of which it takes everything; `workflow` is the Snakefile's own.
    """
    try:
        content = _named(parse_yaml(path.read_text(encoding="utf-8"), str(path)), str(path))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ParameterError(f"{path}: no such file; in that folder: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not readable: {one_line(error)}") from None
    sections = {p.stem for p in NOTEBOOKS.glob("*.ipynb")} | set(BY_STEM) | {"shared", "workflow", stem}
    if all(is_factor(value) or not isinstance(value, dict) for value in content.values()) and sections.isdisjoint(content):
        return content
    if unknown := [key for key in content if key not in sections]:
        near = difflib.get_close_matches(unknown[0], sections, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(sections))}"
        raise ParameterError(f"{path}: unknown section '{unknown[0]}'{hint}")
    known = {s: cls.model_fields for s, cls in BY_STEM.items()}
    shared = _named(content.get("shared"), f"{path}: shared")
    if lost := [name for name in shared if not any(name in fields for fields in known.values())]:
        raise ParameterError(f"{path}: shared parameter '{lost[0]}' is known to no notebook")
    return {k: v for k, v in shared.items() if k in known.get(stem, {})} | _named(content.get(stem), f"{path}: {stem}")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A draft folder to write into, which then takes the place of `folder` at once.

    A reader never meets half of it, a failed or killed writer leaves the old one, and what a kill between the two renames
    left behind is put back first.
    """
    draft, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    yield draft
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of a file, or of a folder's file names and contents; 'absent' if there is none."""
    if not path.exists():
        return "absent"
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if path.is_dir() and any(file.match(pattern) for pattern in _LEFT_BY_READERS):
            continue
        total.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def digest_of(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
