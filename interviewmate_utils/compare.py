"""Two reports side by side: what differs in parameters, data, versions, scores and figures.

Scores of the same systems on the same questions are compared by the paired verdicts of `stats`, B against A, with Holm over all
of them; other numbers stand side by side. What a run took, and where its files lie, is left out.
"""

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import provenance, results, stats

if TYPE_CHECKING:
    import pandas as pd

# of the provenance record: what two runs of the same thing do not share, and what says the same as another entry
IGNORED = ("started", "duration_s", "peak_memory_gb", "git_commit", "git_dirty", "parameters_digest", "overrides", "notebook")
RUNTIME = ("_s", "_ms", "_gb", "_tps")  # units of what a run took
SCORES = {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "meteor": "METEOR"}
SCORES |= {"meteor_exact_stem": "METEOR without synonyms", "similarity": "similarity", "reference_loss_nats": "loss"}
LOWER_IS_BETTER = ("reference_loss_nats",)


class NotComparable(ValueError):
    """Two reports that have nothing to compare, or should not be; the text says why."""


class Difference(NamedTuple):
    """What differs between two reports of one notebook."""

    stem: str
    settings: "pd.DataFrame"  # parameters, data and versions that differ: columns A and B
    numbers: "pd.DataFrame"  # metrics of results.json: columns A, B and change
    verdicts: "pd.DataFrame | None"  # one row per system and score; None where no question was scored in both
    figures: list[tuple[str, bytes | None, bytes | None]]  # names and PNGs of those that are not the same


def _flat(record: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if prefix or name not in IGNORED:
            flat |= _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _settings(first: dict, second: dict) -> "pd.DataFrame":
    import pandas as pd

    one, other = _flat(first), _flat(second)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    rows = {name: {"A": str(one.get(name, "-")), "B": str(other.get(name, "-"))} for name in names}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["A", "B"])


def _numbers(first: Path, second: Path) -> "pd.DataFrame":
    import pandas as pd

    found = [results.read_results(folder).metrics if (folder / "results.json").exists() else {} for folder in (first, second)]
    names = [name for name in dict.fromkeys([*found[0], *found[1]]) if not name.endswith(RUNTIME)]
    table = pd.DataFrame(
        {side: [of.get(n) for n in names] for side, of in zip("AB", found, strict=True)}, index=names, dtype=float
    )
    return table.assign(change=table.B - table.A)


def _scores(folder: Path) -> "pd.DataFrame":
    """Scores of a report with the text of each question; that, and not its number, says which question it is."""
    scores, asked = results.read_table("scores", folder), results.read_table("answers", folder).question
    return scores.assign(question=scores.item.map(asked))


def _means(scores: "pd.DataFrame", system: str, score: str) -> "pd.Series":
    """Per question, the mean over a system's trainings."""
    import numpy as np

    own = scores[scores.system == system]
    if (bad := own[~np.isfinite(own[score])]).shape[0]:
        raise NotComparable(
            f"{SCORES[score]} of {system} is not finite for {len(bad)} answers, the first to: {bad.question.iloc[0]}"
        )
    return own.groupby("question")[score].mean().sort_index()


def _verdicts(first: Path, second: Path) -> "pd.DataFrame | None":
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    there = [(folder / "tables" / "scores.parquet").exists() for folder in (first, second)]
    if there == [False, False]:
        return None
    if there != [True, True]:
        raise NotComparable(f"{first.name}: scored questions only in {'A' if there[0] else 'B'}")
    tables = [_scores(folder) for folder in (first, second)]
    asked = [set(table.question) for table in tables]
    if asked[0] != asked[1]:
        only = [sorted(a - b) for a, b in (asked, asked[::-1])]
        told = " and ".join(f"{len(o)} only in {side} ({o[0] if o else '-'})" for o, side in zip(only, "AB", strict=True))
        raise NotComparable(f"{first.name} judges other questions: {told}. Compare reports with the same test part")
    rows = []
    for system in [name for name in tables[0].system.unique() if name in set(tables[1].system)]:
        for score in [name for name in SCORES if all(name in t and t[t.system == system][name].notna().any() for t in tables)]:
            a, b = (_means(table, system, score) for table in tables)
            sign = -1 if score in LOWER_IS_BETTER else 1
            try:
                found = stats.compare_paired(sign * a.to_numpy(), sign * b.to_numpy())
            except ValueError as error:
                raise NotComparable(f"{first.name}: {SCORES[score]} of {system}: {error}") from None
            rows.append({"system": system, "score": SCORES[score], "sign": sign, "A": a.mean(), "B": b.mean()} | found)
    if not rows:
        raise NotComparable(f"{first.name}: no system is in both; in A: {', '.join(tables[0].system.unique())}")
    table = pd.DataFrame(rows).assign(p_holm=1.0)
    differ = table.low.ne(0) | table.high.ne(
        0
    )  # what is the same to the last digit is no comparison: it stays out of the family
    if differ.any():
        table.loc[differ, "p_holm"] = multipletests(table.p[differ], method="holm")[1]
    table["verdict"] = [stats.verdict(row.difference, row.p_holm, row.clusters) for row in table.itertuples()]
    return table


def _reports(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such report")
    found = [path] if path.suffix == ".ipynb" else sorted(path.glob("[0-9][0-9]_*.ipynb"))
    return {report.stem: report for report in found if not report.name.endswith(".failed.ipynb")}


def compare(first: Path, second: Path) -> list[Difference]:
    """What differs between two reports or folders of reports, for each notebook that both have.

    Raises NotComparable where nothing is shared, or one side lacks scored questions that the other has; FileNotFoundError.
    """
    sides = [_reports(path) for path in (first, second)]
    single = first.suffix == second.suffix == ".ipynb"
    if single and all(sides):  # two runs of one notebook may be named apart
        notebooks = [provenance.read(path).get("notebook") for path in (first, second)]
        if notebooks[0] != notebooks[1]:
            raise NotComparable(f"{first} is a run of {notebooks[0]}, {second} of {notebooks[1]}")
        sides[1] = {first.stem: second}
    if not (shared := [stem for stem in sides[0] if stem in sides[1]]):
        raise NotComparable(f"{first} and {second} share no report that ran to its end")
    for side, other, name in ((sides[0], sides[1], "B"), (sides[1], sides[0], "A")):
        scored = [stem for stem, path in side.items() if (path.with_suffix("") / "tables" / "scores.parquet").exists()]
        if lost := [stem for stem in scored if stem not in other]:
            raise NotComparable(f"{lost[0]} scores questions, but {name} has no such report")
    return [_difference(stem, sides[0][stem], sides[1][stem]) for stem in shared]


def _difference(stem: str, first: Path, second: Path) -> Difference:
    folders = first.with_suffix(""), second.with_suffix("")
    pictures = []
    for name in sorted({path.name for folder in folders for path in (folder / "figures").glob("*.png")}):
        one, other = (path.read_bytes() if (path := folder / "figures" / name).exists() else None for folder in folders)
        pictures += [(name, one, other)] if one != other else []
    settings = _settings(provenance.read(first), provenance.read(second))
    return Difference(stem, settings, _numbers(*folders), _verdicts(*folders), pictures)


def sentences(differences: list[Difference]) -> list[str]:
    """One sentence for each score that got better or worse beyond chance."""
    told = []
    for one in differences:
        for row in () if one.verdicts is None else one.verdicts.itertuples():
            if row.verdict in ("better", "worse"):
                low, high = sorted((row.sign * row.low, row.sign * row.high))
                change = f"{row.A:.3f} to {row.B:.3f}, difference {row.B - row.A:+.3f} ({low:+.3f} to {high:+.3f})"
                sample = f"n = {row.n}, p (Holm) {row.p_holm:.4f}"
                told.append(f"{one.stem}: {row.system} is {row.verdict} on {row.score}: {change}, {sample}")
    return told


STYLE = """body{font:16px/1.5 system-ui;margin:2em auto;max-width:80em;padding:0 1em}
table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;text-align:left;vertical-align:top
;font-variant-numeric:tabular-nums}
.two{display:flex;gap:1em;flex-wrap:wrap}.two>*{flex:1 1 20em;min-width:0}img{width:100%}"""
COLUMNS = ["system", "score", "A", "B", "difference", "low", "high", "d_z", "p_holm", "n", "verdict"]


def page(differences: list[Difference], names: tuple[str, str]) -> str:
    """One HTML page that needs nothing beside it; texts are escaped, figures embedded."""

    def table(of: "pd.DataFrame", **options: Any) -> str:
        if not len(of):
            return "<p>None.</p>"
        return of.to_html(float_format="{:.4f}".format, na_rep="-", border=0, justify="left", **options)

    def picture(side: str, data: bytes | None) -> str:
        source = (
            f'<img alt="{side}" src="data:image/png;base64,{base64.b64encode(data).decode()}">' if data else "no such figure"
        )
        return f"<div>{side}<br>{source}</div>"

    title = html.escape(f"A: {names[0]}, B: {names[1]}")
    told = [html.escape(line) for line in sentences(differences)] or ["No score differs beyond chance."]
    body = [f"<h1>Two reports</h1><p>{title}</p><ul>{''.join(f'<li>{line}</li>' for line in told)}</ul>"]
    for one in differences:
        body.append(f"<h2>{html.escape(one.stem)}</h2>")
        if one.verdicts is not None:
            body.append(
                "<h3>Scores, paired by question</h3><p>difference: B less A, with its 95 % interval; of the loss, A less B, "
            )
            body.append("so that above zero B is better throughout. Holm over all rows.</p>")
            body.append(table(one.verdicts[COLUMNS], index=False))
        body.append("<h3>Parameters, data and versions that differ</h3>" + table(one.settings))
        body.append("<h3>Numbers that differ</h3>" + table(one.numbers[one.numbers.change.fillna(1) != 0]))
        for name, first, second in one.figures:
            body.append(f"<h3>{html.escape(name)}</h3><div class=two>{picture('A', first)}{picture('B', second)}</div>")
    head = f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f"{head}<style>{STYLE}</style>{''.join(body)}\n"
