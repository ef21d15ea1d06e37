"""Statistics of scores on few items: paired comparisons, families of them, power, spread, on scipy and statsmodels."""

from .family import NOT_DISTINGUISHABLE, TOO_FEW, by_group, chance_of_best, p_text, sentence, verdict, verdicts
from .mixed import mixed_model, spread
from .paired import FEWEST, compare_paired, mean_interval, mean_intervals, standard_error, studentised_interval
from .power import items_needed, power, smallest_detectable_effect

__all__ = [
    "FEWEST", "NOT_DISTINGUISHABLE", "TOO_FEW", "by_group", "chance_of_best", "compare_paired", "items_needed", "mean_interval",
    "mean_intervals", "mixed_model", "p_text", "power", "sentence", "smallest_detectable_effect", "spread", "standard_error",
    "studentised_interval", "verdict", "verdicts",
]  # fmt: skip
