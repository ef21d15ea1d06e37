"""The shared reading copy: executed notebooks of one profile as a static site that opens from a folder, without a network.

    python -m interviewmate_utils.site embedded        # writes reports/embedded/site/index.html and prints its path

Reports are only read. What the models answered is data: it reaches a page as text or through `clean`, never as markup of
its own. A build that fails leaves the previous site in place.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import bleach
import jinja2
import nbformat
from markdown_it import MarkdownIt
from markupsafe import Markup

from . import config, provenance

ASSETS = Path(__file__).parent / "site_assets"
SUMMARY = config.Summarise.stem
MARKDOWN = MarkdownIt("commonmark").enable("table")
ALLOWED = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i kbd li mark
    ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"""
CELL = ["colspan", "rowspan", "scope"]
ATTRIBUTES = {"*": ["class", "title"], "a": ["href"], "details": ["open"], "th": CELL, "td": CELL}
SHOWN = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/plain")  # no scripts, widgets or remote viewers


@dataclass
class Report:
    """One entry of the site: a good report, a failed rerun beside it, or only the latter."""

    stem: str
    title: str
    record: dict = field(default_factory=dict)
    notebook: nbformat.NotebookNode | None = None
    stale: list[str] = field(default_factory=list)
    failed: str = ""

    def notices(self) -> list[tuple[str, str, str]]:
        """(furo's kind of admonition, mark, reason) for everything that is wrong with it."""
        found = []
        if self.failed:
            found.append(("danger", "The last rerun failed" if self.notebook else "Failed, no report", self.failed))
        if self.stale:
            found.append(("warning", "Stale", "Since this report was made: " + "; ".join(self.stale) + "."))
        return found


def clean(html: str) -> str:
    """Markup without anything that can run, load or restyle; what is not allowed shows as text."""
    html = re.sub(r"<style\b.*?</style\s*>", "", html, flags=re.S | re.I)  # pandas brings its own
    return bleach.clean(html, tags=set(ALLOWED.split()), attributes=ATTRIBUTES, protocols={"http", "https", "mailto"})


def admonition(kind: str, title: str, text: str) -> Markup:
    """A furo admonition around text that is not ours; without blank lines, which would end an HTML block of Markdown."""
    lines = Markup("<br>").join(line for line in text.splitlines() if line.strip())
    form = '<div class="admonition {}">\n<p class="admonition-title">{}</p>\n<p>{}</p>\n</div>'
    return Markup(form).format(kind, title, lines)


def heading(notebook: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, re.Match] | None:
    """The first markdown cell with a top heading, and the match of that line."""
    cells = (c for c in notebook.cells if c.cell_type == "markdown")
    return next(((c, m) for c in cells if (m := re.search(r"^#[ \t]+(.+?)[ \t#]*$", c.source, re.M))), None)


def look_at(reports: Path, stem: str) -> Report:
    """Read what is there of one run; what cannot be read is reported as failed, not raised."""
    report, good, failed = Report(stem, stem), reports / f"{stem}.ipynb", reports / f"{stem}.failed.ipynb"
    try:
        if good.exists():
            notebook, report.stale = nbformat.read(good, as_version=4), provenance.changes_since(good)
            report.notebook, report.record = notebook, dict(notebook.metadata.get("interviewmate", {}))
            origin = Path(report.record.get("notebook", stem)).stem
            variant = stem[len(origin) :].strip("_") if stem.startswith(origin) else ""  # which LoRA run
            if top := heading(notebook):
                report.title = top[1][1] + (f" ({variant})" if variant else "")
        if failed.exists():
            report.failed = "the failed copy gives no reason"
            record = provenance.read(failed)
            report.failed, report.record = record.get("failed", report.failed), report.record or record
    except (OSError, ValueError, KeyError) as error:
        report.failed = f"cannot be read: {type(error).__name__}: {error}"
    return report


def clean_output(output: nbformat.NotebookNode) -> None:
    """Leave of a rich output only what can be shown safely; printed text is escaped by Sphinx."""
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = clean(data["text/html"])
    elif "text/markdown" in data:  # not through MyST, whose directives could include files
        data["text/html"] = clean(MARKDOWN.render(data["text/markdown"]))
    if data:
        shown = {kind: data[kind] for kind in SHOWN if kind in data}
        output.data = nbformat.from_dict(shown or {"text/plain": f"[not shown: {', '.join(data)}]"})


def page(report: Report) -> nbformat.NotebookNode:
    """The report as Sphinx gets it: notices below the title, code folded, outputs cleaned."""
    notebook, below = report.notebook, {"danger": "\nBelow is the last good report.", "warning": ""}
    if not heading(notebook):
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {report.title}"))
    cell, match = heading(notebook)
    notices = (admonition(kind, mark, reason + below[kind]) for kind, mark, reason in report.notices())
    cell.source = "\n\n".join([cell.source[: match.start()], f"# {report.title}", *notices, cell.source[match.end() :]])
    section = report.title
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.setdefault("mystnb", {}).setdefault("image", {}).setdefault("alt", f"Figure in: {section}")
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
            for output in cell.outputs:
                clean_output(output)
        elif cell.cell_type == "markdown":
            section = next(iter(re.findall(r"^#+[ \t]+(.+)", cell.source, re.M)), section)
        if "provenance" in cell.metadata.get("tags", []):
            cell.source = f'<div class="provenance">\n{clean(MARKDOWN.render(cell.source))}</div>'
    kept = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info")}  # no widget state
    notebook.metadata = nbformat.from_dict(kept)
    return notebook


def comparison(folder: Path) -> dict:
    """The main result, from the output folder of the summary: results, figure, table, and the names of what is missing."""
    import pandas as pd

    found = {"results": {}, "figure": None, "table": "", "missing": []}
    try:
        found["results"] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found["missing"].append("results.json")
    figures = (folder / f"figures/comparison.{kind}" for kind in ("svg", "png"))
    if not (figure := next((path for path in figures if path.exists()), None)):
        found["missing"].append("figures/comparison.svg")
    try:
        frame = pd.read_parquet(folder / "tables" / "comparison.parquet")
        with pd.option_context("display.max_colwidth", None):  # else long text is cut
            html = frame.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="")
        found["table"] = Markup(html.replace("\n", " "))  # a blank line would end the HTML block
    except (OSError, ValueError):
        found["missing"].append("tables/comparison.parquet")
    return found | {"figure": figure}


def start_page(reports: Path, found: list[Report], result: dict) -> str:
    """Markdown of the start page; its template escapes everything put into it."""
    records = [r.record for r in found if r.record.get("model")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = lambda text: Markup(clean(MARKDOWN.renderInline(text)))
    return environment.get_template("index.md.jinja").render(
        profile=reports.name,
        models={r["model"]: r.get("model_revision") or "no pinned revision" for r in records},
        built=time.strftime("%Y-%m-%d %H:%M"),
        reports=found,
        summary=next((r for r in found if r.stem == SUMMARY), Report(SUMMARY, SUMMARY)),
        admonition=admonition,
        **result,
    )


def build(reports: Path) -> Path:
    """Render the reports of one profile into `site/` beside them and return the start page; swap only a complete site in."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    reports = reports.resolve()
    stems = {p.stem.removesuffix(".failed") for p in reports.glob("[0-9][0-9]_*.ipynb")}
    found = [look_at(reports, stem) for stem in sorted(stems)]
    with tempfile.TemporaryDirectory(dir=reports, prefix=".site-") as folder:
        source, new, old = (Path(folder) / name for name in ("source", "site", "old"))
        source.mkdir()
        result = comparison(reports / SUMMARY)
        (source / "index.md").write_text(start_page(reports, found, result), encoding="utf-8")
        for report in found:
            if report.notebook:
                nbformat.write(page(report), source / f"{report.stem}.ipynb")
        title = f"InterviewMate reports: {reports.name}"
        static = [str(path) for path in (ASSETS / "custom.css", result["figure"]) if path]
        settings = {"project": title, "html_title": title, "html_static_path": static}
        with patch_docutils(), docutils_namespace():
            app = Sphinx(source, ASSETS, new, Path(folder) / "doctrees", "html", settings, status=None, warning=sys.stderr)
            app.build()
        if app.statuscode or not (new / "index.html").exists():
            raise RuntimeError(f"Sphinx ended with status {app.statuscode}; its messages are above")
        if (site := reports / "site").exists():
            site.replace(old)
        try:
            new.replace(site)
        except OSError:
            if old.exists():
                old.replace(site)
            raise
    return site / "index.html"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m interviewmate_utils.site", description="Render one profile's reports.")
    parser.add_argument("profile", help="name of a folder below reports/")
    root = config.ROOT / "reports"
    reports = root / parser.parse_args(argv).profile
    if not reports.is_dir() or reports.parent != root:
        known = ", ".join(sorted({p.parent.name for p in root.glob("*/[0-9][0-9]_*.ipynb")})) or "none yet"
        print(f"{reports}: no reports here. Profiles with reports: {known}; `make report` makes them.", file=sys.stderr)
        return 2
    try:
        print(build(reports))
    except Exception as error:  # whatever Sphinx meets, the reader keeps the old site
        print(f"The site was not built: {type(error).__name__}: {error}. An older one is untouched.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
