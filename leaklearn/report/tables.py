"""Result tables as a reader sees them: seeds folded into a mean with its interval, numbers short, long tables cut."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from leaklearn.evaluation.statistics import interval

# Columns that hold measurements; every other column but `seed` is part of the setting that was measured.
MEASURES = {
    "accuracy",
    "accuracy_of_federation",
    "accuracy_of_leak",
    "cost",
    "days_for_50k",
    "estimated_seconds",
    "expected_leak_rate",
    "false_positive_rate",
    "false_positives",
    "images",
    "label_accuracy",
    "leak_rate",
    "leaked",
    "leaked_images",
    "peak_mib",
    "psnr",
    "refusing",
    "seconds",
    "seconds_per_client_iteration",
    "seconds_per_image",
    "seconds_per_iteration",
    "seconds_to_psnr",
    "ssim",
}
LONGEST = 40


@dataclass(frozen=True)
class Table:
    """A table ready to be shown: texts, which columns are numbers, what all rows share, how many are left out."""

    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    same: str = ""
    left_out: int = 0


def shown(frame: pd.DataFrame, longest: int = LONGEST) -> Table:
    """Texts of a frame, its seeds folded, settings that never vary told once, cut to `longest` rows."""
    folded = over_seeds(frame)
    settings = [name for name in folded if name not in MEASURES] if len(folded) > 1 else []
    same = [name for name in settings if folded[name].nunique(dropna=False) == 1]
    told = ", ".join(f"{_words(name)} {short(folded[name].iloc[0])}" for name in same)
    folded = folded.drop(columns=same) if len(same) < folded.shape[1] else folded
    numeric = [column in MEASURES or pd.api.types.is_numeric_dtype(frame.get(column)) for column in folded]
    cut = folded.head(longest)
    rows = [[short(value) for value in row] for row in cut.itertuples(index=False)]
    return Table([_words(column) for column in folded], rows, numeric, told, len(folded) - len(cut))


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Fold the rows of each setting into one of texts `mean [low, high]`, with the number of seeds.

    The interval is the 95 % t-interval over rows; a measurement that does not vary is shown as it is. A frame without a
    `seed` column, or without measurements, comes back unchanged.
    """
    measures = [column for column in frame if column in MEASURES]
    settings = [column for column in frame if column not in MEASURES and column != "seed"]
    if "seed" not in frame or not measures or not settings:
        return frame
    rows = []
    for setting, group in frame.groupby(settings, sort=False, dropna=False):
        cells = dict(zip(settings, setting, strict=True))
        cells |= {measure: mean_with_interval(group[measure]) for measure in measures}
        rows.append({**cells, "seeds": group["seed"].nunique()})
    return pd.DataFrame(rows)


def mean_with_interval(values: pd.Series) -> str:
    """`mean [low, high]`, or the mean alone of equal values or of one value."""
    values = values.dropna()
    if values.nunique() < 2:
        return short(values.mean())
    found = interval(values)
    return f"{short(found.mean)} [{short(found.low)}, {short(found.high)}]"


def short(value: object) -> str:
    """A value as text: three decimals for a fraction, a dash for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "–"
    if not isinstance(value, float) or value.is_integer():
        return f"{value:g}" if isinstance(value, float) else str(value)
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def spread(values: Iterable[float], scale: float = 100, digits: int = 1) -> str:
    """`mean ± half the 95 % interval` over seeds, times `scale`; the mean alone of one value or of equal ones."""
    found = interval(values)
    half = f"{scale * (found.high - found.low) / 2:.{digits}f}"
    return f"{scale * found.mean:.{digits}f}" + (f" ± {half}" if half != "nan" and float(half) else "")


def row(table: pd.DataFrame, measure: str, scale: float = 100, digits: int = 1, **settings: object) -> str:
    """`spread` of a measure where the columns have these values; several values of the last column give `a / b / c`.

    Raises
    ------
    KeyError
        If nothing has been measured there.
    """
    *_, (last, values) = settings.items()
    for name, value in list(settings.items())[:-1]:
        table = table[table[name] == value]
    texts = []
    for value in values if isinstance(values, list) else [values]:
        found = table.loc[table[last] == value, measure].dropna()
        if found.empty:
            raise KeyError(f"{measure} at {settings | {last: value}}")
        texts.append(spread(found, scale, digits))
    return " / ".join(texts)
