"""Copy a profile's comparison into `reports/published/` and into the README, and beside it its longer search: `make publish`.

The README shows no number that was typed: its table is `reports/published/<profile>.md`, and a test holds the two together.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from . import config, provenance, results

PUBLISHED = config.ROOT / "reports" / "published"
README = config.ROOT / "README.md"
MARKS = ("<!-- results: made by `make publish`, do not edit -->", "<!-- end of results -->")


def block(profile: str) -> str:
    """The Markdown that the README shows for `profile`: figure, table, verdict, caveat and where it comes from."""
    summary = config.ROOT / "reports" / profile / config.Summarise.stem
    found = results.read_results(summary)
    table = results.read_table("comparison", summary).fillna("-")
    rows = [list(map(str, row)) for row in table.itertuples(index=False)]
    lines = ["| " + " | ".join(row) + " |" for row in [list(table), ["---"] * len(table.columns), *rows]]
    record = provenance.read(summary.with_suffix(".ipynb"))
    origin = f"Profile `{profile}`, model `{found.model or record['model'] or 'data/models/embedded'}`, {record['machine']}."
    origin += f" A run is the mean over its training seeds {', '.join(map(str, record['parameters']['seeds']))}."
    figure = f"![ROUGE-L of each system with its 95 % interval](reports/published/{profile}.svg)"
    return "\n\n".join(
        [
            figure,
            "\n".join(lines),
            "\n".join(f"- {line}" for line in found.headline.split("\n")),
            f"**{found.caveat}**" if found.caveat else "",
            origin,
        ]
    ).strip()


def search_page(profile: str, report: Path) -> str:
    """What a longer search (`make search`) found, as Markdown: the verdict, its figures and the best trial as a run file."""
    output, record = report.with_suffix(""), provenance.read(report)
    found, p = results.read_results(output), record["parameters"]
    lines = [f"# Search '{p['study']}': {p['trials']} trials of {p['folds']} folds, profile {profile}"]
    lines += [f"**{found.caveat}**"] if found.caveat else []
    lines += [f"- {line}" for line in found.headline.split("\n") if line]
    figures = sorted((output / "figures").glob("*.svg"))
    lines += [f"![{figure.stem}]({profile}_{p['study']}_{figure.name})" for figure in figures]
    lines += ["The best trial as a run:", f"```yaml\n{(output / 'searched.yaml').read_text().strip()}\n```"]
    for figure in figures:
        shutil.copy(figure, PUBLISHED / f"{profile}_{p['study']}_{figure.name}")
    return "\n\n".join(lines) + f"\n\n{record['machine']}, {record['duration_s']:.0f} s.\n"


def shown(readme: str) -> str:
    """The results block that stands in the README's text; raises ValueError if its marks are gone."""
    found = re.search(re.escape(MARKS[0]) + r"\n(.*?)\n" + re.escape(MARKS[1]), readme, re.S)
    if not found:
        raise ValueError(f"{README.name} lacks the lines {MARKS[0]!r} and {MARKS[1]!r}")
    return found[1].strip()


def main(argv: list[str] | None = None) -> int:
    profile = (argv or sys.argv[1:] or ["embedded"])[0]
    report = config.ROOT / "reports" / profile / f"{config.Summarise.stem}.ipynb"
    if not report.exists():
        print(f"Profile '{profile}' has no summary yet. Run: make report PROFILE={profile}", file=sys.stderr)
        return 2
    for made_from in sorted(report.parent.glob("[0-9]*.ipynb")):
        if made_from.name.endswith(".failed.ipynb") or made_from.stem == config.AuditClaims.stem:
            continue  # the audit reads what was published: it is behind after every publication, and nothing of it is published
        if reasons := provenance.changes_since(made_from):
            print(f"Not published: {made_from.name} is out of date ({'; '.join(reasons)}). Run: make report", file=sys.stderr)
            return 1
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    source, text = report.with_suffix(""), block(profile)
    shutil.copy(source / "figures" / "comparison.svg", PUBLISHED / f"{profile}.svg")
    (PUBLISHED / f"{profile}.md").write_text(text + "\n", encoding="utf-8")
    summary = json.loads((source / "results.json").read_text())
    (PUBLISHED / f"{profile}.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    searches = sorted(report.parent.glob(f"{config.SearchHyperparameters.stem}_*.ipynb"))
    for search in (path for path in searches if not path.name.endswith(".failed.ipynb")):
        (PUBLISHED / f"{profile}_{search.stem}.md").write_text(search_page(profile, search), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(readme.replace(shown(readme), text), encoding="utf-8")
    print(f"Published {profile}: {PUBLISHED.relative_to(config.ROOT)}/{profile}.md, .svg, .json and the README's table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
