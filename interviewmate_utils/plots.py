"""One look for every figure: colour-blind-safe palette, the same system in the same colour everywhere, labels with units."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart by people with any of the common colour-vision deficiencies
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Tol's muted scheme (2021), for the further runs, of which no figure shows many
OTHERS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")
DIFFICULTY = {"easy": 1, "medium": 2, "hard": 3}  # every other group by its name
FIXED = {"base": "#7F7F7F", "retrieval": "#E69F00", "run A": "#0072B2", "run B": "#009E73", "run C": "#CC79A7"}
FIXED |= {"few-shot base": "#000000", "run enhanced": "#D55E00", "train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
FIXED |= dict(zip((f"run {name}" for name in ("full", "dora", "rslora", "pissa", "olora")), OTHERS, strict=False))
FIXED |= dict(zip(("run adalora", "run searched", "run checkpointing", "run qlora"), OTHERS[5:], strict=True))


def colour(name: str) -> str:
    """The colour of a system or a part of the corpus; names not fixed above get one that depends on the name alone.

    The trials of a search are all black: there are more of them than colours, and none appears anywhere else.
    """
    if name.startswith("trial "):
        return PALETTE[-1]
    return FIXED.get(name) or OTHERS[sum(map(ord, name)) % len(OTHERS)]


def setup() -> None:
    """Apply the theme; call once, in the notebook's set-up cell."""
    import matplotlib as mpl
    import pandas as pd
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook", palette=list(PALETTE), font_scale=0.9)
    mpl.rcParams |= {
        "figure.figsize": (8, 3.6),
        "figure.dpi": 110,
        "savefig.dpi": 150,
        "figure.constrained_layout.use": True,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
    }
    pd.set_option("display.precision", 3, "display.max_colwidth", 110, "display.max_rows", 60)


def save(figure: "Figure", name: str, output: Path) -> None:
    """Keep a figure as `output/figures/name.svg` and `.png`; the same figure gives the same SVG, byte for byte."""
    import matplotlib as mpl

    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "interviewmate"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png")


def _either_side(value: float, low: float, high: float) -> list[list[float]]:
    """Lengths of an interval to the left and right of a value, for `errorbar`; a BCa interval need not hold the mean."""
    return [[max(0.0, value - low)], [max(0.0, high - value)]] if low == low else [[low], [high]]


def interval_bars(table: "pd.DataFrame", value: str, low: str, high: str, label: str, axes: "Axes") -> None:
    """One dot with its interval per row of `table`, whose index names the systems, best known colour first."""
    for place, (name, row) in enumerate(table.iterrows()):
        axes.errorbar(
            row[value],
            place,
            xerr=_either_side(row[value], row[low], row[high]),
            fmt="o",
            color=colour(str(name)),
            capsize=4,
            markersize=8,
            lw=2,
        )
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)


def group_differences(table: "pd.DataFrame", label: str, axes: "Axes") -> None:
    """Differences of several systems by group (`stats.by_group`, rows of one `label`): a dot each, with its interval."""
    table = table[table.label == label]
    groups = sorted(dict.fromkeys(table.group), key=lambda group: DIFFICULTY.get(group, 0))
    systems = [*dict.fromkeys(table.system)]
    for row in table.itertuples():
        place = groups.index(row.group) + 0.7 * ((systems.index(row.system) + 0.5) / len(systems) - 0.5)
        axes.errorbar(row.difference, place, xerr=_either_side(row.difference, row.low, row.high),
                      fmt="o" if row.low == row.low else "x", color=colour(row.system), capsize=2, markersize=5,
                      label=row.system if row.group == groups[0] else None)  # fmt: skip
    counts = table.drop_duplicates("group").set_index("group").n[groups]
    axes.set_yticks(range(len(groups)), [f"{group} ({count})" for group, count in zip(groups, counts, strict=True)])
    axes.set(ylim=(len(groups) - 0.5, -0.5), title=label.replace("_", " "))
    axes.axvline(0, color=colour("base"), ls="--")
    axes.grid(axis="y", visible=False)


def tried(
    table: "pd.DataFrame", names: Sequence[str], space: Mapping[str, Any], value: str, limits: tuple, marker: str, axes: "Axes"
) -> Any:
    """Trials of a search as points over the first two of `names`, coloured by `value`, a third written beside; returns what a
    colour bar needs.

    An axis shows all that was allowed, as Optuna's distributions in `space` say: a range, on a log scale, or choices.
    """
    places = []
    for name, letter in zip(names[:2], "xy", strict=True):
        allowed, axis = space[name], {"x": axes.set_xscale, "y": axes.set_yscale}[letter]
        if hasattr(allowed, "choices"):
            places.append([allowed.choices.index(one) for one in table[name]])
            axes.set(**{f"{letter}ticks": range(len(allowed.choices)), f"{letter}lim": (-0.5, len(allowed.choices) - 0.5)})
            axes.set(**{f"{letter}ticklabels": [f"{choice:g}" for choice in allowed.choices]})
        else:
            places.append(list(table[name]))
            axis("log")
            axes.set(**{f"{letter}lim": (allowed.low / 1.2, allowed.high * 1.2)})
            if isinstance(allowed.low, int):  # a few whole numbers; powers of ten would hardly show any
                doubled = [allowed.low * 2**k for k in range(16) if allowed.low * 2**k <= allowed.high]
                axes.set(**{f"{letter}ticks": doubled, f"{letter}ticklabels": doubled})
                getattr(axes, f"{letter}axis").minorticks_off()
    for x, y, *third in zip(*places, *(table[name] for name in names[2:]), strict=True):
        axes.annotate(" ".join(f"{one:g}" for one in third), (x, y), (7, 3), textcoords="offset points")
    look = {"vmin": limits[0], "vmax": limits[1], "cmap": "cividis", "edgecolors": "black", "zorder": 3}
    return axes.scatter(*places, c=table[value].astype(float), marker=marker, s=80, **look)


def show_items(table: "pd.DataFrame", title: str) -> Any:
    """Every row of texts folded away under its `title` column, to be opened for reading; texts are escaped."""
    from IPython.display import HTML

    parts = []
    for number, (_, row) in enumerate(table.iterrows(), 1):
        told = "".join(f"<dt><b>{escape(str(n))}</b></dt><dd>{escape(str(t))}</dd>" for n, t in row.drop(title).items())
        parts.append(f"<details class=item><summary>{number}. {escape(str(row[title]))}</summary><dl>{told}</dl></details>")
    return HTML("".join(parts).replace("\n", "<br>"))


def show_texts(table: "pd.DataFrame", columns: Sequence[str]) -> Any:
    """Texts side by side, wrapped; they are escaped, so that HTML in an answer shows as text."""
    from IPython.display import HTML

    show = [lambda text: escape(str(text)).replace("\n", "<br>")] * len(columns)  # to_html writes a line break as \\n
    texts = table[list(columns)].rename(columns=escape)
    return HTML(texts.to_html(escape=False, formatters=show, index=False, classes="texts", border=0))
