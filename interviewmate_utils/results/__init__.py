"""Write and read what a notebook measured: one results.json per run, its tables as Parquet, its figures beside them."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, field_validator

if TYPE_CHECKING:
    import pandas as pd

UNITS = (
    "_s", "_ms", "_gb", "_tps", "_nats", "_share", "_count", "_words", "_tokens", "_chars", "_steps", "_epochs", "_score",
    "_nats_per_char", "_p", "_d",
)  # fmt: skip


class Results(BaseModel):
    """What one run measured. `metrics` are numbers whose names end in their unit (see UNITS); `notes` are texts."""

    model_config = ConfigDict(extra="forbid")
    notebook: str
    run: str
    profile: str
    seed: int
    model: str = ""
    metrics: dict[str, float | int]
    headline: str = ""
    caveat: str = ""
    tables: list[str] = []
    figures: list[str] = []

    @field_validator("metrics")
    @classmethod
    def _named_and_finite(cls, metrics: dict[str, float | int]) -> dict[str, float | int]:
        for name, value in metrics.items():
            if not name.endswith(UNITS):
                raise ValueError(f"metric '{name}' does not end in a unit; known: {', '.join(UNITS)}")
            if not math.isfinite(value):
                raise ValueError(f"metric '{name}' is {value}; leave out what could not be measured")
        return metrics


def write_table(table: "pd.DataFrame", name: str, output: Path) -> None:
    """Save a table as `output/tables/name.parquet`."""
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{name}.parquet")


def read_table(name: str, output: Path) -> "pd.DataFrame":
    """Read back what `write_table` saved."""
    import pandas as pd

    return pd.read_parquet(output / "tables" / f"{name}.parquet")


def write_results(parameters: Any, metrics: dict[str, float | int], **texts: str) -> Path:
    """Validate and save `results.json` of the run that `parameters` describe; return its path.

    Lists the tables and figures that the run has saved. Raises pydantic.ValidationError for a metric without a unit
    in its name, or one that is not finite.
    """
    output = parameters.output
    content = Results(
        notebook=parameters.stem,
        run=parameters.run_name,
        profile=parameters.profile,
        seed=parameters.seed,
        model=getattr(parameters, "model", ""),
        metrics=metrics,
        tables=sorted(p.name for p in (output / "tables").glob("*.parquet")),
        figures=sorted(p.name for p in (output / "figures").glob("*.svg")),
        **texts,
    )
    path = output / "results.json"
    path.with_suffix(".new").write_text(json.dumps(content.model_dump(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)
    return path


def read_results(output: Path) -> Results:
    """Read and validate `output/results.json`."""
    return Results.model_validate_json((output / "results.json").read_text(encoding="utf-8"))
