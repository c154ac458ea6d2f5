"""Result tables: which columns are keys, seeds folded into a mean with its interval, numbers short, long tables cut.

A table has one row a measurement. Its keys (settings: what was measured) are declared when it is written,
`run.table(frame, name, by=[...])`, and stand in `provenance.json`; nothing here knows a column by name. All other
columns but `seed` are measurements, and what a reader sees is folded over seeds by exactly these keys.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.report.names import measure, size_of_test_set

LONGEST = 40


@dataclass(frozen=True)
class Table:
    """A table ready to be shown: texts, which columns are numbers, what all rows share, how many are left out."""

    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    same: str = ""
    left_out: int = 0


def check_keys(frame: pd.DataFrame, by: Sequence[str]) -> None:
    """See that the keys, with the seed where there is one, tell every row from every other.

    Raises
    ------
    ValueError
        If a key is no column, the seed is among the keys, or two rows have the same keys and seed: an interval over
        them would mix settings that no key tells apart.
    """
    missing = [name for name in by if name not in frame]
    if missing:
        raise ValueError(f"keys {missing} are no columns; the table has {', '.join(map(str, frame.columns))}")
    if "seed" in by:
        raise ValueError("the seed is no key: it is what means and intervals are taken over")
    told = [*by, "seed"] if "seed" in frame else list(by)
    twice = frame[frame.duplicated(told, keep=False)] if told else frame.iloc[1:]
    if len(twice):
        example = ", ".join(f"{name}={twice[name].iloc[0]}" for name in told)
        apart = [name for name in frame if name not in told and twice[name].nunique(dropna=False) > 1]
        raise ValueError(
            f"{len(twice)} rows have the keys of another, such as {example or 'none'}: add the column to `by` that "
            f"tells them apart (one of {', '.join(map(str, apart)) or 'none: they are equal'})"
        )


def shown(frame: pd.DataFrame, by: Sequence[str] | None, longest: int = LONGEST) -> Table:
    """Texts of a frame, its seeds folded by its keys, keys that never vary told once, cut to `longest` rows.

    Without keys (None: none were declared) nothing is folded.
    """
    folded = frame if by is None else over_seeds(frame, by)
    keys = [name for name in [*(by or []), "seeds"] if name in folded]
    same = [name for name in keys if len(folded) > 1 and folded[name].nunique(dropna=False) == 1]
    told = ", ".join(f"{_words(name)} {short(folded[name].iloc[0])}" for name in same)
    folded = folded.drop(columns=same) if len(same) < folded.shape[1] else folded
    numeric = [column == "seeds" or pd.api.types.is_numeric_dtype(frame.get(column)) for column in folded]
    cut = folded.head(longest)
    rows = [[short(value) for value in row] for row in cut.itertuples(index=False)]
    return Table([_words(column) for column in folded], rows, numeric, told, len(folded) - len(cut))


def over_seeds(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Fold the rows of each key into one of texts `mean [low, high]`, with the number of seeds.

    The interval is the 95 % one of `leaklearn.evaluation.interval` (of accuracies with the sampling of the test set)
    and stays in the measure's range; a measurement that does not vary is shown as it is, a text that does as all its
    values. A frame without a `seed` column, or without keys, comes back unchanged.
    """
    measures = [column for column in frame if column not in by and column != "seed"]
    if "seed" not in frame or not by:
        return frame
    rows = []
    for setting, group in frame.groupby(list(by), sort=False, dropna=False):
        cells = dict(zip(by, setting, strict=True))
        for column in measures:
            if pd.api.types.is_numeric_dtype(group[column]) and not pd.api.types.is_bool_dtype(group[column]):
                cells[column] = mean_with_interval(group[column], column, cells.get("dataset"))
            else:
                cells[column] = " / ".join(dict.fromkeys(short(value) for value in group[column]))
        rows.append({**cells, "seeds": group["seed"].nunique()})
    return pd.DataFrame(rows)


def fold(values: Iterable[float], column: str, dataset: object = None) -> Interval:
    """Mean and 95 % interval of a measured column over seeds, in its range.

    Test accuracies (columns `accuracy...`) count the sampling of the data set's test images as well.
    """
    sampled = size_of_test_set(dataset) if column.startswith("accuracy") else None
    return interval(values, bounds=measure(column).bounds, test_images=sampled)


def mean_with_interval(values: pd.Series, column: str, dataset: object = None) -> str:
    """`mean [low, high]`, or the mean alone of one value, or where both ends read as the mean does."""
    values = values.dropna()
    if values.empty:
        return short(float("nan"))
    found = fold(values, column, dataset)
    mean, low, high = short(found.mean), short(found.low), short(found.high)
    return mean if found.low != found.low or mean == low == high else f"{mean} [{low}, {high}]"


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


def spread(values: Iterable[float], column: str = "", digits: int = 1, dataset: object = None) -> str:
    """`mean ± half the 95 % interval` over seeds, shares in percent; the mean alone of one value or of equal ones.

    Where the interval is lopsided in the digits told, as where the measure's range cuts it, its ends are told instead:
    `98.0 [95.1, 100.0]`.
    """
    found = fold(values, column, dataset)
    found = found.scaled(100) if measure(column).unit == "%" else found
    if found.low != found.low or not float(f"{found.high - found.low:.{digits}f}"):
        return f"{found.mean:.{digits}f}"
    if abs((found.high - found.mean) - (found.mean - found.low)) >= 10**-digits:
        return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{found.mean:.{digits}f} ± {(found.high - found.low) / 2:.{digits}f}"


def told(table: pd.DataFrame, column: str, digits: int = 1, **keys: object) -> str:
    """`spread` of a measured column where the keys have these values, for headlines.

    Several values of a key, as a list, give `a / b / c`; a value that has not been measured a dash.
    """
    listed = next((name for name, value in keys.items() if isinstance(value, list)), None)
    if listed is not None:
        return " / ".join(told(table, column, digits, **{**keys, listed: value}) for value in keys[listed])
    for name, value in keys.items():
        table = table[table[name] == value]
    values = table[column].dropna()
    dataset = table["dataset"].iloc[0] if len(values) and "dataset" in table else None
    return spread(values, column, digits, dataset) if len(values) else "–"


def listed(values: Iterable[float]) -> str:
    """Numbers as `4 / 2 / 1`."""
    return " / ".join(f"{value:,g}" for value in values)
