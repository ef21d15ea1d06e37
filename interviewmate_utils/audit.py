"""Published figures beside what follows from them: one row per claim, none left out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = {True: "consistent", False: "inconsistent", None: "not reproducible from what is stated"}


def rounds_to(computed: float, stated: float, to: float) -> bool:
    """Whether `computed`, rounded to a multiple of `to`, is what was stated: 2.466 rounds to 2.5 by 0.1, not by 0.01."""
    return abs(computed - stated) <= to / 2 * (1 + 1e-9)


class Audit:
    """The claims of a YAML file, and what was found of each."""

    def __init__(self, path: Path) -> None:
        import yaml

        self.claims = {claim["id"]: claim for claim in yaml.safe_load(path.read_text(encoding="utf-8"))}
        self.rows: dict[str, dict[str, str]] = {}

    def stated(self, number: str) -> dict[str, Any]:
        """The numbers of a claim, as published."""
        return self.claims[number]["stated"]

    def judge(self, number: str, agrees: bool | None, ours: str, why: str) -> None:
        """Record a claim's verdict: True it follows from what is stated, False it does not, None it cannot be told."""
        self.rows[number] = {"ours": ours, "verdict": VERDICTS[None if agrees is None else bool(agrees)], "why": why}

    def table(self, *numbers: str) -> "pd.DataFrame":
        """One row per claim in the order of the file; of those named, or of all. Raises ValueError for one not judged."""
        import pandas as pd

        wanted = numbers or tuple(self.claims)
        if missing := [number for number in wanted if number not in self.rows]:
            raise ValueError(f"claims without a verdict: {', '.join(missing)}")
        rows = [{k: self.claims[n][k] for k in ("document", "claim")} | self.rows[n] for n in wanted]
        return pd.DataFrame(rows, index=pd.Index(wanted, name="claim no."))

    def show(self, *numbers: str) -> Any:
        """The table as one to read; see `table`."""
        from . import plots

        return plots.show_texts(self.table(*numbers).reset_index(), ["claim no.", "claim", "ours", "verdict", "why"])
