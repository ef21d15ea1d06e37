"""The house style of the notebooks, and that their text twins say the same."""

import ast
import statistics

import jupytext
import nbformat
import pytest

from interviewmate_utils import config
from interviewmate_utils.parameters import SECRET_NAME
from interviewmate_utils.run import collect_parameters

NOTEBOOKS = sorted(config.NOTEBOOKS.glob("*.ipynb"))
KEEPS_OUTPUTS = {"12_audit_claims"}  # deterministic: its outputs are committed and compared
# of code in the median cell and in all, where it is more: many questions about the same scores; 32 claims of a few lines each
MOST_LINES = {"06_evaluate_models": (8, 175), "07_analyse_errors": (8, 150), "12_audit_claims": (11, 235)}


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return request.param


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def lines(cell):
    return [line for line in cell.source.split("\n") if line.strip()]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 5


def test_name_is_number_verb_object(notebook):
    number, *words = notebook.stem.split("_")
    assert number.isdigit()
    assert len(number) == 2
    assert len(words) >= 1


def test_size_and_share_of_markdown_hold(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    share = sum(c.cell_type == "markdown" for c in cells) / len(cells)
    assert 20 <= len(cells) <= 40, f"{len(cells)} cells"
    assert 0.40 <= share <= 0.55, f"{share:.0%} of the cells are markdown"


def test_code_cells_are_short(notebook):
    sizes = [len(lines(c)) for c in code_cells(notebook)]
    median, total = MOST_LINES.get(notebook.stem, (7, 130))
    assert statistics.median(sizes) <= median, sizes
    assert max(sizes) <= 20, sizes
    assert sum(sizes) <= total, sum(sizes)


def test_logic_lives_in_the_package(notebook):
    tree = ast.parse("\n".join(c.source for c in code_cells(notebook)))
    defined = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) <= 1, f"move to interviewmate_utils: {defined}"


def test_imports_stand_in_the_first_code_cell(notebook):
    first, *others = code_cells(notebook)
    assert "import" in first.source
    for cell in others:
        found = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not found, f"import outside the import cell: {ast.unparse(found[0])}"


def test_parameters_are_few_typed_commented_literals(notebook):
    values = config.parameters_cell(notebook)
    cell = next(c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", []))
    assert 1 <= len(values) <= 15
    for line in lines(cell):
        assert line.split(" = ")[0].count(": ") == 1, f"no type: {line}"
        assert "  # " in line, f"no comment: {line}"


def test_parameters_agree_with_their_class(notebook):
    cls = config.BY_STEM[notebook.stem]
    values = config.parameters_cell(notebook)
    assert set(values) == set(cls.model_fields)
    config.validate(cls, values)


def test_no_parameter_could_hold_a_secret(notebook):
    assert not [name for name in config.parameters_cell(notebook) if SECRET_NAME.search(name)]


def test_opens_with_a_question_and_closes_with_limits(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert cells[0].source.startswith("# ")
    assert "**Question.**" in cells[0].source
    assert any(c.cell_type == "markdown" and c.source.startswith("## Limits") for c in cells[-3:])
    assert "write_results" in "".join(c.source for c in cells[-2:])


def test_no_outputs_are_committed(notebook):
    if notebook.stem in KEEPS_OUTPUTS:
        pytest.skip("outputs of this deterministic notebook are committed and compared strictly")
    for cell in code_cells(notebook):
        assert not cell.outputs
        assert cell.execution_count is None


def test_kernel_is_named_for_papermill(notebook):
    kernel = nbformat.read(notebook, as_version=4).metadata["kernelspec"]
    assert (kernel["name"], kernel["language"]) == ("python3", "python")


def test_text_twin_says_the_same(notebook):
    twin = jupytext.read(notebook.parent / "text" / f"{notebook.stem}.py")
    said = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in twin.cells]
    cells = nbformat.read(notebook, as_version=4).cells
    assert said == [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in cells], (
        f"run: jupytext --sync notebooks/text/{notebook.stem}.py"
    )


def test_no_machine_path_or_install_stands_in_a_notebook(notebook):
    text = notebook.read_text()
    for forbidden in ("/home/", "/Users/", "/root/", "C:\\\\", "pip install", "!pip", "%pip"):
        assert forbidden not in text


PARAMS = config.NOTEBOOKS / "params"
RUNS, PROFILES, CORPORA = (sorted((PARAMS / name).glob("*.yaml")) for name in ("runs", "profiles", "corpora"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_run_file_is_valid_with_every_profile_and_named_after_its_run(path, profile):
    _, p = collect_parameters(config.NOTEBOOKS / "04_train_lora.ipynb", [path, profile], [])
    assert (p.run, p.profile) == (path.stem, profile.stem)
    assert p.corpus == config.ORIGINAL or p.corpus in [file.stem for file in CORPORA]
    collect_parameters(config.NOTEBOOKS / "04_train_lora.ipynb", [path], [])


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_profile_is_valid_for_every_notebook(path):
    for notebook in NOTEBOOKS:
        assert collect_parameters(notebook, [path], [])[1].profile == path.stem


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_profile_evaluates_and_sums_up_the_same_runs_which_have_files(path):
    chosen = [
        collect_parameters(config.NOTEBOOKS / f"{stem}.ipynb", [path], [])[1] for stem in ("06_evaluate_models", "13_summarise")
    ]
    assert (chosen[0].runs, chosen[0].seeds) == (chosen[1].runs, chosen[1].seeds)
    assert set(chosen[0].runs) <= {file.stem for file in RUNS}
    assert len(set(chosen[0].seeds)) == len(chosen[0].seeds) >= 3


def test_runs_are_those_published_and_rates_twenty_times_as_high_on_the_embedded_model():
    attention, everything = ["query_key_value"], ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    names = ("rank", "alpha", "epochs", "batch_size", "target_modules", "corpus")
    published = {
        "A": (2e-4, 8, 16, 5, 4, attention, "original"),
        "B": (1e-4, 4, 8, 5, 4, attention, "original"),
        "C": (5e-5, 2, 4, 5, 4, attention, "original"),
        "enhanced": (5e-4, 8, 16, 2, 8, everything, "enhanced"),
    }
    for run, (rate, *others) in published.items():
        for profile, factor in (("falcon-rw-1b", 1), ("embedded", 20)):
            files = [PARAMS / "runs" / f"{run}.yaml", PARAMS / "profiles" / f"{profile}.yaml"]
            _, p = collect_parameters(config.NOTEBOOKS / "04_train_lora.ipynb", files, [])
            assert p.learning_rate == pytest.approx(rate * factor, rel=1e-12)
            assert [getattr(p, name) for name in names] == others
