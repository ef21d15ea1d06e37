"""The site: what a reader finds, that answers stay data, and that it works from a folder without a network."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from interviewmate_utils import config, provenance, run, site, tracking

STEMS = ["01_prepare_data", "04_train_lora_A_seed13", "06_evaluate_models", "13_summarise"]
SCRIPT = "<script>document.title='owned'</script>"
HOSTILE = (
    f"{SCRIPT}<img src=x onerror=\"document.title='owned'\"><a href=\"javascript:document.title='owned'\">link</a>"
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>"
    "<details open ontoggle=\"document.title='owned'\"><summary>s</summary></details>"
    "<style>body {display: none}</style><svg onload=\"document.title='owned'\"></svg>"
)
SOURCE = f"""
import pandas as pd
from IPython.display import HTML, Javascript, Markdown, display
hostile = {HOSTILE!r}
print("printed", hostile)
display(pd.DataFrame({{"answer": [hostile], **{{f"quite_wide_column_{{i}}": [i / 3] for i in range(30)}}}}))
display(HTML("<b class='kept'>raw</b> " + hostile))
fence = "```{{raw}} html\\n" + hostile + "\\n```"
display(Markdown("marked **bold**\\n\\n" + hostile + "\\n\\n" + fence + "\\n\\n[x](javascript:alert)"))
display(Javascript("document.title = 'owned'"))
print("zymurgy " + "unbroken" * 60)
"""


def save(cells: list, path: Path) -> Path:
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def fake_report(source: Path, report: Path, parameters: object) -> dict:
    """A report with an honest record, as a run leaves it, without the four seconds of a kernel."""
    notebook = nbformat.read(source, as_version=4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count, cell.outputs = 1, [new_output("stream", text="done\n")]
    record = provenance.collect(source, {}, parameters, []) | {"duration_s": 12.3, "peak_memory_gb": 0.5}
    provenance.attach(notebook, record)
    nbformat.write(notebook, report)
    return record


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Current, stale, rerun failed, only failed, half-written and unreadable reports of one profile."""
    root = tmp_path_factory.mktemp("house")
    folder = root / "reports" / "tiny"
    folder.mkdir(parents=True)
    parameters = new_code_cell("rank: int = 8  # `|` <b>bold</b>", metadata={"tags": ["parameters"]})

    first = [new_markdown_cell("# Prepare the *data*\n\nWhat is here."), parameters, new_code_cell(SOURCE)]
    notebook = save(first, root / "notebooks" / "own.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "STORE", root / "mlflow.db")
        overrides, values = run.collect_parameters(notebook, [], [("rank", "4")])
        run.run_notebook(notebook, folder / "01_prepare_data.ipynb", overrides, values, [], timeout_s=120)

    sources, records = {}, {}
    for stem, name in zip(STEMS[1:], ["04_train_lora", *STEMS[2:]], strict=True):
        cells = [new_markdown_cell(f"# Title of {name[:2]}\n\n## Part"), parameters, new_code_cell("pass")]
        sources[stem] = save(cells, root / "notebooks" / f"{name}.ipynb")
        records[stem] = fake_report(sources[stem], folder / f"{stem}.ipynb", values)
    save([new_markdown_cell("# Other"), parameters], sources["04_train_lora_A_seed13"])  # now its report is stale

    reason = f"ValueError: {SCRIPT}\n\nNaN"
    for stem in ("06_evaluate_models", "07_analyse_errors"):
        draft = shutil.copy(sources[STEMS[2]], root / "draft.ipynb")
        provenance.mark_failed(draft, folder / f"{stem}.failed.ipynb", records[STEMS[2]], reason)
    (folder / ".09_generate_questions.tmp.ipynb").write_text("half")
    (folder / "10_compare_ner.ipynb").write_text("{not JSON")

    summary = folder / "13_summarise"
    (summary / "tables").mkdir(parents=True)
    (summary / "figures").mkdir()
    rows = {"system": ["base", f"tuned {SCRIPT}"], "rouge_l": [0.08712, 0.12], "interval": ["0.07 to 0.10", None]}
    pd.DataFrame(rows).to_parquet(summary / "tables" / "comparison.parquet")
    (summary / "figures" / "comparison.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="1400" height="500"><path d="M0 0h700v500" fill="#0072b2"/></svg>'
    )
    text = {"headline": "Tuned beats base by 0.033 <0.01, 0.05>.", "caveat": "This model shows the method, not a coach."}
    (summary / "results.json").write_text(json.dumps(text))
    return folder


@pytest.fixture(scope="module")
def start(reports: Path) -> Path:
    before, began = config.digest(reports), time.monotonic()
    built = site.build(reports)
    assert time.monotonic() - began < 30
    shutil.move(reports / "site", reports.parent / "site")
    assert config.digest(reports) == before, "building changed a report"
    shutil.move(reports.parent / "site", reports / "site")
    return built


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if not executable:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield running
        running.close()


@pytest.fixture
def tab(browser):
    """A fresh page that fails the test on any request beyond the folder and on any script error."""
    page = browser.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert requests
    assert not [url for url in requests if not url.startswith(("file://", "data:"))]
    assert not errors


def test_one_page_for_each_readable_report(start: Path):
    pages = {p.stem for p in start.parent.glob("[0-9]*.html")}
    assert pages == set(STEMS)
    for stem in STEMS:
        assert "Provenance" in (start.parent / f"{stem}.html").read_text()


def test_build_is_quiet_about_good_reports(reports: Path, start: Path, capfd: pytest.CaptureFixture):
    site.build(reports)
    assert "WARNING" not in capfd.readouterr().err


def test_no_page_loads_from_the_network(start: Path):
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//", re.I)
    for page in start.parent.rglob("*.html"):
        assert not loads.search(page.read_text()), page
    for sheet in start.parent.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_start_page_tells_the_result_and_every_state(start: Path, tab):
    tab.goto(start.as_uri())
    text = tab.locator("article").inner_text()
    for expected in (
        "InterviewMate reports: tiny",
        "Tuned beats base by 0.033 <0.01, 0.05>.",
        "This model shows the method, not a coach.",
        f"tuned {SCRIPT}",
        "0.087",
        "Title of 04 (A_seed13)",
        "04_train_lora.ipynb changed",
        f"The last rerun failed: ValueError: {SCRIPT} NaN",
        f"Failed, no report: ValueError: {SCRIPT} NaN",
        "10_compare_ner",
        "cannot be read: NotJSONError",
        "took 12 s",
    ):
        assert expected in text
    assert "0.08712" not in text
    assert ".09" not in text
    assert tab.evaluate("document.querySelector('img.figure').naturalWidth") == 1400
    assert tab.title() == "InterviewMate reports: tiny"


def test_warnings_stand_on_top_of_the_page(start: Path, tab):
    tab.goto((start.parent / "04_train_lora_A_seed13.html").as_uri())
    assert "04_train_lora.ipynb changed" in tab.locator("h1 + .admonition.warning").inner_text()
    tab.goto((start.parent / "06_evaluate_models.html").as_uri())
    notice = tab.locator("h1 + .admonition.danger").inner_text()
    assert SCRIPT in notice
    assert "Below is the last good report." in notice
    assert tab.title().startswith("Title of 06")
    tab.goto((start.parent / "01_prepare_data.html").as_uri())
    assert tab.locator("h1 + .admonition").count() == 0


def test_answers_show_as_text_and_never_run(start: Path, tab):
    tab.goto((start.parent / "01_prepare_data.html").as_uri())
    tab.wait_for_timeout(300)
    assert "owned" not in tab.title()
    outputs = tab.locator(".cell_output")
    shown = " ".join(outputs.all_inner_texts())
    assert shown.count(SCRIPT) >= 4, "print, DataFrame, HTML and Markdown each show it"
    assert outputs.locator("b.kept").count() == 1
    assert outputs.locator("table.dataframe").count() == 1
    assert outputs.locator("strong", has_text="bold").count() == 1
    inert = "el => [...el.attributes].some(a => a.name.startsWith('on') || /^\\s*(javascript|data):/i.test(a.value))"
    assert not tab.evaluate(f"[...document.querySelectorAll('article *')].some({inert})")
    assert tab.locator("article :is(script, iframe, object, embed, style)").count() == 0
    for link in outputs.locator("a", has_text="link").all():
        link.click()
    assert "owned" not in tab.title()
    assert "rank = 4" in tab.locator(".provenance").inner_text()


def test_click_through_to_each_report_and_back(start: Path, tab):
    tab.goto(start.as_uri())
    for number in range(len(STEMS)):
        tab.locator(".reports a").nth(number).click()
        assert tab.url.endswith(f"{STEMS[number]}.html")
        tab.locator("a.sidebar-brand").click()
        assert tab.url.endswith("index.html")


def test_code_is_folded_and_opens(start: Path, tab):
    tab.goto((start.parent / "01_prepare_data.html").as_uri())
    code = tab.locator(".cell_input", has_text="zymurgy")
    assert not code.is_visible()
    tab.locator("details.hide", has=code).locator("summary").click()
    assert code.is_visible()


def test_search_finds_a_word_from_an_output(start: Path, tab):
    tab.goto(start.as_uri())
    tab.locator("input[name=q]").first.fill("zymurgy")
    tab.locator("input[name=q]").first.press("Enter")
    result = tab.locator("#search-results li a").first
    assert "Prepare" in result.inner_text()
    result.click()
    assert "01_prepare_data.html" in tab.url


def test_no_page_scrolls_sideways_on_a_phone(start: Path, tab):
    tab.set_viewport_size({"width": 390, "height": 844})
    for name in ["index", "search", *STEMS]:
        tab.goto((start.parent / f"{name}.html").as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        tab.evaluate("window.scrollTo(500, 0)")
        assert tab.evaluate("[window.scrollX, document.documentElement.scrollWidth]") == [0, 390], name
    tab.goto((start.parent / "01_prepare_data.html").as_uri())
    box = "(el => el.scrollWidth > el.clientWidth)(document.querySelector('table.dataframe').closest('.output'))"
    assert tab.evaluate(box), "the wide table scrolls in its own box"


def test_failed_build_leaves_the_old_site(reports: Path, start: Path, monkeypatch: pytest.MonkeyPatch):
    before = config.digest(start.parent)
    monkeypatch.setattr("sphinx.builders.html.StandaloneHTMLBuilder.finish", lambda self: 1 / 0)
    with pytest.raises(Exception, match="division"):
        site.build(reports)
    assert config.digest(start.parent) == before
    assert not list(reports.glob(".site-*"))


def test_without_summary_the_start_page_says_what_is_missing(tmp_path: Path, reports: Path):
    shutil.copy(reports / "06_evaluate_models.ipynb", tmp_path)
    text = site.build(tmp_path).read_text()
    assert "Missing from the results of 13_summarise: results.json, figures/comparison.svg, tables/comparison.parquet." in text
    assert 'href="06_evaluate_models.html"' in text
    (tmp_path / "06_evaluate_models.ipynb").unlink()
    assert "No notebook has been run" in site.build(tmp_path).read_text()


def test_command_line_prints_the_start_page_last(reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(config, "ROOT", reports.parents[1])
    assert site.main(["tiny"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(reports / "site" / "index.html")
    assert site.main(["tinny"]) == 2
    assert "Profiles with reports: tiny" in capsys.readouterr().err


def test_import_is_light():
    import subprocess

    code = "import sys, interviewmate_utils.site; print([m for m in ('torch', 'sphinx', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
