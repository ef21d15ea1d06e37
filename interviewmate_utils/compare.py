"""Two reports side by side: what differs in parameters, data and versions, and whether a score got worse.

    python -m interviewmate_utils.compare reports/embedded ../other/reports/embedded

A and B are folders of reports (all notebooks of a profile) or single reports (`NAME.ipynb`). Scores of the same systems on
the same items are compared with the paired verdict of `stats`, Holm over all of them; other numbers stand side by side.
Times, memory and paths are left out. Exit code 0: nothing got worse beyond its interval; 1: something did; 2: A and B
cannot be compared.
"""

import argparse
import base64
import html
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import provenance, results, stats

if TYPE_CHECKING:
    import pandas as pd

IGNORED = ("started", "duration_s", "peak_memory_gb", "git_commit", "git_dirty", "parameters_digest", "overrides", "notebook")
RUNTIME = ("_s", "_ms", "_gb", "_tps")  # units of what a run took
SCORES = {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "meteor": "METEOR", "meteor_exact_stem": "METEOR"}
SCORES |= {"similarity": "similarity", "reference_loss_nats": "loss of the reference"}
LOWER_IS_BETTER = {"reference_loss_nats"}


class NotComparable(ValueError):
    """Two reports that have nothing to compare; the text says why."""


@dataclass
class Difference:
    """What differs between two reports of one notebook."""

    stem: str
    settings: "pd.DataFrame"  # what differs, with its value in A and in B
    numbers: "pd.DataFrame"  # metrics of results.json in both
    verdicts: "pd.DataFrame" = field(default=None)  # of paired scores, if there are any
    figures: list[tuple[str, bytes | None, bytes | None]] = field(default_factory=list)


def _flat(record: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if prefix or name not in IGNORED:
            key = f"{prefix}{name}"
            flat |= _flat(value, f"{key}: ") if isinstance(value, dict) else {key: value}
    return flat


def _settings(first: dict, second: dict) -> "pd.DataFrame":
    import pandas as pd

    one, other = _flat(first), _flat(second)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    rows = {name: {"A": one.get(name, "-"), "B": other.get(name, "-")} for name in names}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["A", "B"])


def _numbers(first: Path, second: Path) -> "pd.DataFrame":
    import pandas as pd

    found = [results.read_results(folder).metrics if (folder / "results.json").exists() else {} for folder in (first, second)]
    names = [name for name in dict.fromkeys([*found[0], *found[1]]) if not name.endswith(RUNTIME)]
    table = pd.DataFrame(
        {"A": [found[0].get(n) for n in names], "B": [found[1].get(n) for n in names]}, index=names, dtype=float
    )
    return table.assign(change=table.B - table.A)


def _verdicts(first: Path, second: Path) -> "pd.DataFrame | None":
    """Paired verdicts, B against A, of each score of each system that both have; raises NotComparable for other items."""
    import numpy as np
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    if not all((folder / "tables" / "scores.parquet").exists() for folder in (first, second)):
        return None
    tables = [results.read_table("scores", folder) for folder in (first, second)]
    key = "id" if all("id" in t and t.id.notna().all() for t in tables) else "item"
    if set(tables[0][key]) != set(tables[1][key]):
        only = [sorted(map(str, set(a[key]) - set(b[key]))) for a, b in (tables, tables[::-1])]
        raise NotComparable(
            f"the two reports judge other questions: {len(only[0])} only in A ({', '.join(only[0][:3]) or '-'}), "
            f"{len(only[1])} only in B ({', '.join(only[1][:3]) or '-'}); compare reports with the same test part"
        )
    rows = []
    for system in [name for name in tables[0].system.unique() if name in set(tables[1].system)]:
        for score, label in SCORES.items():
            if score not in tables[0] or score not in tables[1]:
                continue
            sides = [t[t.system == system].groupby(key)[score].mean() for t in tables]
            if sides[0].isna().all() or sides[1].isna().all():
                continue  # retrieval has no loss
            sign = -1 if score in LOWER_IS_BETTER else 1
            found = stats.compare_paired(*(sign * side.sort_index().to_numpy() for side in sides))
            rows.append({"system": system, "score": label, "A": sides[0].mean(), "B": sides[1].mean()} | found)
    if not rows:
        return None
    table = pd.DataFrame(rows)
    table["p_holm"] = multipletests(table.p, method="holm")[1]
    # a difference that is the same to the last digit for every item is no difference
    verdict = np.where(table.difference > 0, "better", "worse")
    table["verdict"] = np.where(table.p_holm < 0.05, verdict, stats.NOT_DISTINGUISHABLE)
    return table.assign(verdict=table.verdict.where(table.n >= stats.FEWEST, stats.TOO_FEW))


def compare(first: Path, second: Path) -> list[Difference]:
    """What differs between two reports or folders of reports. Raises NotComparable, FileNotFoundError."""
    sides = []
    for path in (first, second):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such report")
        reports = [path] if path.suffix == ".ipynb" else sorted(path.glob("[0-9][0-9]_*.ipynb"))
        sides.append({report.stem: report for report in reports if not report.stem.endswith(".failed")})
    if first.suffix == second.suffix == ".ipynb":
        sides[1] = {first.stem: second}  # two runs of one notebook may be named apart
    shared = [stem for stem in sides[0] if stem in sides[1]]
    if not shared:
        raise NotComparable(f"{first} and {second} share no report")
    found = []
    for stem in shared:
        one, other = sides[0][stem], sides[1][stem]
        folders = one.with_suffix(""), other.with_suffix("")
        pictures = sorted({path.name for folder in folders for path in (folder / "figures").glob("*.png")})
        read = [[(f / "figures" / p).read_bytes() if (f / "figures" / p).exists() else None for f in folders] for p in pictures]
        found.append(
            Difference(
                stem,
                _settings(provenance.read(one), provenance.read(other)),
                _numbers(*folders),
                _verdicts(*folders),
                [(name, *both) for name, both in zip(pictures, read, strict=True)],
            )
        )
    return found


def page(differences: list[Difference], names: tuple[str, str]) -> str:
    """One HTML page that needs nothing beside it; texts are escaped, figures embedded."""

    def table(of: "pd.DataFrame", digits: int = 4) -> str:
        return of.to_html(float_format=lambda x: f"{x:.{digits}f}", na_rep="-", border=0, justify="left")

    def picture(data: bytes | None) -> str:
        return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}">' if data else "<p>no such figure</p>"

    body = []
    for one in differences:
        body.append(f"<h2>{html.escape(one.stem)}</h2>")
        if one.verdicts is not None:
            columns = ["system", "score", "A", "B", "difference", "low", "high", "p_holm", "d_z", "n", "verdict"]
            body.append("<h3>Scores, paired by question (difference: B better is positive)</h3>")
            body.append(table(one.verdicts[columns].set_index(["system", "score"])))
        body.append(
            "<h3>Settings, data and versions that differ</h3>" + (table(one.settings) if len(one.settings) else "<p>none</p>")
        )
        moved = one.numbers[one.numbers.change.fillna(1) != 0]
        body.append("<h3>Other numbers that differ</h3>" + (table(moved) if len(moved) else "<p>none</p>"))
        for name, first, second in one.figures:
            if first != second:
                body.append(f"<h3>{html.escape(name)}</h3><div class=two>{picture(first)}{picture(second)}</div>")
    style = "body{font:16px/1.5 system-ui;margin:2em auto;max-width:80em;padding:0 1em}table{border-collapse:collapse;display:block;"
    style += (
        "overflow-x:auto}td,th{padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;text-align:left}.two{display:flex;gap:1em;"
    )
    style += "flex-wrap:wrap}.two>*{flex:1 1 20em;min-width:0;max-width:100%}img{width:100%}"
    title = f"A: {html.escape(names[0])}, B: {html.escape(names[1])}"
    head = f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f"{head}<style>{style}</style><h1>Two reports</h1><p>{title}</p>{''.join(body)}\n"


def main(arguments: list[str] | None = None) -> int:
    """Compare two reports; writes one HTML page and says what got better or worse."""
    parser = argparse.ArgumentParser(prog="python -m interviewmate_utils.compare", description=main.__doc__)
    parser.add_argument("first", type=Path, metavar="A", help="reports/PROFILE, or one executed notebook in it")
    parser.add_argument("second", type=Path, metavar="B", help="the same of the other side")
    parser.add_argument("-o", "--output", type=Path, default=Path("difference.html"), help="page to write")
    chosen = parser.parse_args(arguments)
    try:
        found = compare(chosen.first, chosen.second)
    except (NotComparable, OSError, ValueError) as error:
        print(f"{chosen.first} and {chosen.second} cannot be compared: {error}", file=sys.stderr)
        return 2
    chosen.output.write_text(page(found, (str(chosen.first), str(chosen.second))), encoding="utf-8")
    worse = 0
    for one in found:
        for _, row in (one.verdicts if one.verdicts is not None else []).iterrows() if one.verdicts is not None else []:
            if row.verdict != stats.NOT_DISTINGUISHABLE:
                print(f"{one.stem}: {row.system}, {row.score}: {row.A:.4f} -> {row.B:.4f}, {row.verdict}")
            worse += row.verdict == "worse"
    print(f"{'Worse: ' + str(worse) if worse else 'Nothing got worse beyond its interval'}. {chosen.output}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
