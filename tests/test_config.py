"""Parameters: what a notebook's cell, a YAML file and the classes of `config` say, and what they refuse."""

from pathlib import Path

import pytest
from conftest import Workshop, write_notebook

from interviewmate_utils import config, run
from interviewmate_utils.config import ParameterError

NOTEBOOKS = [p for p in sorted(config.NOTEBOOKS.glob("*.ipynb")) if p.stem in config.BY_STEM]
PARAMETER_FILES = [
    p for p in sorted((config.NOTEBOOKS / "params").rglob("*.yaml")) if p.parent.name != "executors"
]  # Snakemake's own
TRAIN = {
    "profile": "mine",
    "seed": 13,
    "run": "A",
    "corpus": "original",
    "device": "cpu",
    "variants": [],
    "rank": 8,
    "alpha": 16,
    "dropout": 0.05,
    "target_modules": ["query_key_value"],
    "learning_rate": 2e-4,
    "weight_decay": 0.0,
    "epochs": 5,
    "batch_size": 4,
    "warmup_steps": 50,
}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_cell_and_class_agree(notebook: Path) -> None:
    cell = config.parameters_cell(notebook)
    assert set(cell) == set(config.BY_STEM[notebook.stem].model_fields)
    assert len(cell) <= 15
    config.validate(config.BY_STEM[notebook.stem], cell)


@pytest.mark.parametrize("file", PARAMETER_FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_parameter_file_gives_valid_parameters(file: Path) -> None:
    fits = 0
    for notebook in NOTEBOOKS:
        values = config.read_parameters(file, notebook.stem)
        if set(values) <= set(config.parameters_cell(notebook)):  # a run file is for one notebook, a profile for all
            run.collect_parameters(notebook, [file], [])
            fits += 1
    assert fits


# --- values -----------------------------------------------------------------------------------------------------------


def test_parameters_validate_and_stay_as_they_are() -> None:
    parameters = config.validate(config.TrainLora, TRAIN)
    assert parameters.run_name == "04_train_lora_A_seed13"
    assert parameters.learning_rate == 2e-4
    with pytest.raises(ValueError, match="frozen"):
        parameters.rank = 4


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ParameterError) as error:
        config.validate(config.TrainLora, TRAIN | {"rank": 0, "dropout": "high"})
    assert str(error.value).splitlines() == [
        "rank = 0 (int): Input should be greater than or equal to 1",
        "dropout = 'high' (str): Input should be a valid number",
    ]


def test_missing_parameter_is_named() -> None:
    with pytest.raises(ParameterError, match=r"^rank: missing$"):
        config.validate(config.TrainLora, {k: v for k, v in TRAIN.items() if k != "rank"})


def test_from_cell_takes_only_its_own_names() -> None:
    assert config.TrainLora.from_cell(TRAIN | {"__name__": "x", "helper": print}).rank == 8


@pytest.mark.parametrize("name", ["max_new_tokens", "key_points", "keyboard", "monkey", "tokenizer", "near_duplicate"])
def test_ordinary_names_are_not_taken_for_secrets(name: str) -> None:
    with pytest.raises(ParameterError, match="unknown parameter"):
        config.validate(config.TrainLora, {name: 1})


@pytest.mark.parametrize(
    "model", ["hf-internal-testing/tiny-random-gpt2", "sk-interview-questions", "data/models/sk-long-folder"]
)
def test_ordinary_values_are_not_taken_for_secrets(model: str) -> None:
    values = config.parameters_cell(config.NOTEBOOKS / "06_evaluate_models.ipynb") | {"model": model}
    assert config.validate(config.EvaluateModels, values).model == model


# --- what trains, and with what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "hardware"),
    [
        ("auto", ("auto", 1, False)),
        ("mps", ("mps", 1, False)),
        ("cpu*2", ("cpu", 2, False)),
        ("cuda*4+fsdp", ("cuda", 4, True)),
        ("cuda+fsdp", ("cuda", 1, True)),
        ("auto*1", ("auto", 1, False)),
    ],
)
def test_device_says_kind_processes_and_sharding(device: str, hardware: tuple) -> None:
    assert config.validate(config.TrainLora, TRAIN | {"device": device}).hardware == hardware


@pytest.mark.parametrize(
    "device",
    [
        "tpu",
        "cuda*0",
        "cuda*",
        "cuda*-2",
        "cuda*1.5",
        "cuda*04",
        "cpu*2+fdsp",
        "cuda+fsdp*4",
        "cuda:1",
        "CUDA",
        " cpu",
        "cpu\n",
        "",
    ],
)
def test_unknown_device_is_explained_with_what_is_allowed(device: str) -> None:
    with pytest.raises(ParameterError) as error:
        config.validate(config.TrainLora, TRAIN | {"device": device})
    allowed = (
        "allowed: auto, cpu, cuda or mps; 'cuda*4' trains in four processes, 'cuda*4+fsdp' shards the weights over them, too"
    )
    assert str(error.value) == f"device = {device!r} (str): {allowed}"


def test_processes_share_a_batch_evenly() -> None:
    assert config.validate(config.TrainLora, TRAIN | {"device": "cpu*4"}).batch_size == 4
    for device, processes in (("cuda*3", 3), ("cpu*8+fsdp", 8)):
        with pytest.raises(ParameterError, match=rf"batch_size = 4 cannot be shared by {processes} processes$"):
            config.validate(config.TrainLora, TRAIN | {"device": device})


@pytest.mark.parametrize(
    "variants",
    [
        [],
        *([name] for name in ("rslora", "dora", "pissa", "olora", "adalora", "4bit", "full", "checkpointing")),
        ["dora", "rslora", "4bit", "checkpointing"],
        ["pissa", "rslora", "checkpointing"],
        ["adalora", "rslora", "checkpointing"],
        ["full", "checkpointing"],
    ],
    ids="+".join,
)
def test_variants_that_go_together_are_taken(variants: list[str]) -> None:
    assert config.validate(config.TrainLora, TRAIN | {"variants": variants}).variants == variants


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        (["full", "dora"], "full and dora cannot be combined"),
        (["dora", "full"], "full and dora cannot be combined"),
        (["rslora", "full"], "full and rslora cannot be combined"),
        (["full", "4bit"], "full and 4bit cannot be combined"),
        (["full", "adalora"], "full and adalora cannot be combined"),
        (["full", "pissa"], "full and pissa cannot be combined"),
        (["adalora", "dora"], "adalora and dora cannot be combined"),
        (["adalora", "olora"], "adalora and olora cannot be combined"),
        (["olora", "pissa"], "pissa and olora cannot be combined"),
        (["pissa", "dora"], "dora and pissa cannot be combined"),
        (["dora", "olora"], "dora and olora cannot be combined"),
        (["4bit", "pissa"], "pissa and 4bit cannot be combined"),
    ],
)
def test_variants_that_exclude_each_other_are_named(variants: list[str], expected: str) -> None:
    with pytest.raises(ParameterError) as error:
        config.validate(config.TrainLora, TRAIN | {"variants": variants})
    assert str(error.value).startswith(f"variants = {variants!r} (list): ")
    assert str(error.value).endswith(expected)


def test_unknown_variant_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ParameterError, match=r"^variants\.1 = 'dorra' \(str\): Input should be 'dora', 'rslora', 'pissa', "
    ) as error:
        config.validate(config.TrainLora, TRAIN | {"variants": ["rslora", "dorra"]})
    assert str(error.value).endswith("'olora', 'adalora', '4bit', 'full' or 'checkpointing'")


def test_base_of_a_training_is_the_model_of_its_corpus(workshop: Workshop) -> None:
    p = config.validate(config.TrainLora, TRAIN | {"corpus": "larger"})
    folder = workshop.root / "data" / "processed" / "mine" / "larger"
    assert (p.processed, p.model, p.inputs()) == (folder, "", [folder])
    assert p.trained == workshop.root / "reports" / "mine" / "04_train_lora_A_seed13" / "trained"
    folder.mkdir(parents=True)
    (folder / "prepared.json").write_text('{"model": "owner/name@revision"}')
    assert (p.model, p.inputs()) == ("owner/name@revision", [folder])
    (folder / "prepared.json").write_text('{"model": "data/models/tiny"}')
    assert (p.model, p.inputs()) == ("data/models/tiny", [folder, workshop.root / "data" / "models" / "tiny"])


def test_evaluation_and_summary_read_each_run_with_each_seed(workshop: Workshop) -> None:
    several = {"profile": "mine", "runs": ["A", "B"], "seeds": [13, 14]}
    values = config.parameters_cell(Path(__file__).parents[1] / "notebooks" / "06_evaluate_models.ipynb") | several
    reports = workshop.root / "reports" / "mine"
    trained = [f"04_train_lora_{run}_seed{seed}" for run in "AB" for seed in (13, 14)]
    assert config.validate(config.EvaluateModels, values).inputs()[-4:] == [reports / name / "trained" for name in trained]
    read = config.validate(config.Summarise, several | {"seed": 1}).inputs()
    for name in trained:
        assert reports / name / "results.json" in read
        assert reports / name / "tables" / "history.parquet" in read


@pytest.mark.parametrize(
    ("seeds", "expected"), [([], "at least 1 item"), ([-1], "greater than or equal to 0"), (13, "valid list")]
)
def test_wrong_seeds_are_explained(seeds: object, expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        config.validate(config.Summarise, {"profile": "mine", "seed": 13, "runs": ["A"], "seeds": seeds})


# --- the parameters cell ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a = 1\nb = a", 2),
        ("a = len('x')", 1),
        ("a = f'{1}'", 1),
        ("a = {[]: 1}", 1),
        ("a, b = 1, 2", 1),
        ("a = b = 1", 1),
        ("a: int", 1),
        ("a = 1\na += 1", 2),
        ("import os", 1),
        ("print(1)", 1),
    ],
)
def test_parameters_cell_holds_only_literals(tmp_path: Path, source: str, line: int) -> None:
    notebook = write_notebook(tmp_path / "own.ipynb", parameters=source)
    with pytest.raises(
        ParameterError, match=f"own.ipynb, parameters cell, line {line}: only `name: type = literal` is allowed"
    ):
        config.parameters_cell(notebook)


def test_parameters_cell_with_broken_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"own.ipynb, parameters cell, line 2: "):
        config.parameters_cell(write_notebook(tmp_path / "own.ipynb", parameters="a = 1\nb = ("))


def test_exactly_one_parameters_cell_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="0 cells are tagged"):
        config.parameters_cell(write_notebook(tmp_path / "own.ipynb", "1"))


def test_file_that_is_no_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.ipynb").write_text("{half a not")
    with pytest.raises(ParameterError, match=r"own\.ipynb: not a notebook"):
        config.parameters_cell(tmp_path / "own.ipynb")


def test_own_notebook_is_checked_against_its_defaults(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "own.ipynb", parameters="n: int = 1\nrate: float = 0.5\nlabel: str | None = None")
    cls = config.parameters_class(notebook)
    assert config.validate(cls, {"rate": 1e-3, "label": "x"}).model_dump() == {"n": 1, "rate": 1e-3, "label": "x"}
    with pytest.raises(ParameterError, match=r"n = '2' \(str\)"):
        config.validate(cls, {"n": "2"})
    with pytest.raises(ParameterError, match="did you mean 'rate'"):
        config.validate(cls, {"rat": 1})


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1e5", 1e5),
        ("-3E+2", -300.0),
        (".5e-3", 5e-4),
        ("2.0e-4", 2e-4),
        ("0.1", 0.1),
        ("8", 8),
        ("true", True),
        ("A_seed13", "A_seed13"),
        ("'2e-4'", "2e-4"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("[1e-4, dense]", [1e-4, "dense"]),
    ],
)
def test_yaml_numbers_are_those_of_python(text: str, value: object) -> None:
    parsed = config.parse_yaml(text, "here")
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.fixture
def profile(workshop: Workshop) -> Path:
    workshop.notebook("1", name="own.ipynb")
    file = workshop.root / "embedded.yaml"
    file.write_text(
        "shared: {profile: mine, model: data/models/tiny, encoder: minilm}\n"
        "04_train_lora: {learning_rate: 2e-4, model: data/models/other}\n13_summarise:\nown:\n  n: 2\n"
    )
    return file


def test_profile_gives_each_notebook_its_section_over_what_it_knows_of_shared(profile: Path) -> None:
    assert config.read_parameters(profile, "04_train_lora") == {
        "profile": "mine",
        "model": "data/models/other",
        "learning_rate": 2e-4,
    }
    assert config.read_parameters(profile, "01_prepare_data").keys() == {"profile", "model", "encoder"}
    assert config.read_parameters(profile, "13_summarise") == {"profile": "mine"}


def test_profile_may_have_a_section_for_a_notebook_of_ones_own(profile: Path) -> None:
    assert config.read_parameters(profile, "own") == {"n": 2}


def test_section_of_the_workflow_is_for_no_notebook(profile: Path) -> None:
    before = config.read_parameters(profile, "04_train_lora")
    profile.write_text(profile.read_text() + "workflow: {threads: 1}\n")
    assert config.read_parameters(profile, "04_train_lora") == before


def test_run_file_gives_all_its_names(workshop: Workshop) -> None:
    file = workshop.root / "A.yaml"
    file.write_text("run: A\nlearning_rate: 2e-4\nunheard_of: 1\n")
    assert config.read_parameters(file, "04_train_lora") == {"run": "A", "learning_rate": 2e-4, "unheard_of": 1}
    file.write_text("learning_rate: {times: 20}\n")
    assert config.read_parameters(file, "04_train_lora") == {"learning_rate": {"times": 20}}
    file.write_text("# nothing yet\n")
    assert config.read_parameters(file, "04_train_lora") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("04_train_lroa: {rank: 8}", "unknown section '04_train_lroa'; did you mean '04_train_lora'?"),
        ("shard: {rank: 8}", "unknown section 'shard'; did you mean 'shared'?"),
        ("xyz: {rank: 8}", "unknown section 'xyz'; known: 01_prepare_data, 02_"),
        ("shared: {rnak: 8}", "shared parameter 'rnak' is known to no notebook"),
        ("shared: 5", "A.yaml: shared: expected `name: value` lines"),
        ("shared: {seed: 1}\n04_train_lora: [1]", "A.yaml: 04_train_lora: expected `name: value` lines"),
        ("- rank\n- 8", "A.yaml: expected `name: value` lines"),
        ("on: 8", "A.yaml: expected `name: value` lines"),
        ("rank: [8", "A.yaml: not valid YAML, line 1, column 9"),
        ("rank: !!python/object:os.system 8", "A.yaml: not valid YAML, line 1"),
    ],
)
def test_wrong_yaml_file_is_explained(workshop: Workshop, text: str, expected: str) -> None:
    (workshop.root / "A.yaml").write_text(text)
    with pytest.raises(ParameterError) as error:
        config.read_parameters(workshop.root / "A.yaml", "04_train_lora")
    assert expected in str(error.value)


def test_missing_yaml_file_is_named_with_those_there_are(profile: Path) -> None:
    with pytest.raises(ParameterError, match=r"embeded\.yaml: no such file; in that folder: embedded$"):
        config.read_parameters(profile.with_name("embeded.yaml"), "04_train_lora")


def test_unreadable_yaml_file_is_named(profile: Path) -> None:
    with pytest.raises(ParameterError, match="not readable"):
        config.read_parameters(profile.parent, "04_train_lora")
    profile.write_bytes(b"run: \xff\xfe")
    with pytest.raises(ParameterError, match=r"embedded\.yaml: not readable"):
        config.read_parameters(profile, "04_train_lora")


# --- digests ----------------------------------------------------------------------------------------------------------


def test_digest_follows_names_and_contents_but_not_times_or_what_readers_leave(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    assert config.digest(folder / "a") == "absent"
    (folder / "a").write_text("1")
    first = config.digest(folder)
    (folder / "a").touch()
    (folder / "cache-0123.arrow").write_text("left by datasets")
    assert config.digest(folder) == first
    (folder / "a").rename(folder / "b")
    second = config.digest(folder)
    (folder / "b").write_text("2")
    assert len({first, second, config.digest(folder), config.digest(folder / "b")}) == 4
