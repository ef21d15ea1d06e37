"""Shows answers with what was found in them."""

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def highlighted(text: str, passages: Sequence[str]) -> str:
    """A text as HTML, escaped, with the `passages` that occur in it in `<mark>`, whatever their case.

    Of a passage of up to three words every place is marked, of a longer one the first, or the end where the text ends with it.
    """
    spans: list[list[int]] = []
    for passage in filter(str.strip, passages):
        places = [match.span() for match in re.finditer(re.escape(passage), text, re.IGNORECASE)]
        if len(passage.split()) > 3:
            end = len(text.rstrip())
            places = [(end - len(passage), end)] if text.rstrip().endswith(passage) else places[:1]
        spans += map(list, places)
    joined: list[list[int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    end, parts = 0, []
    for first, last in joined:
        parts += [escape(text[end:first]), "<mark>", escape(text[first:last]), "</mark>"]
        end = last
    return "".join([*parts, escape(text[end:])])


def show_marked(table: "pd.DataFrame") -> Any:
    """The answers of a table (columns error, question, answer, evidence, reference), each under its error, for reading."""
    from IPython.display import HTML

    parts = [
        f"<div class=marked><h4>{escape(row.error)}</h4><p><b>{escape(row.question)}</b></p>"
        f"<p>{highlighted(row.answer, row.evidence)}</p>"
        f"<details><summary>Reference</summary><p>{escape(row.reference)}</p></details></div>"
        for row in table.itertuples()
    ]
    return HTML("".join(parts).replace("\n", "<br>"))
