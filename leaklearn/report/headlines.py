"""One sentence on each notebook: what it measured, in the numbers of its own tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from leaklearn.files import read_json
from leaklearn.report.claims import weakest_verdicts
from leaklearn.report.rules import VERDICTS
from leaklearn.report.tables import row, spread


def headline(notebook: str, folder: Path) -> str:
    """The sentence on the results in `folder`, in Markdown.

    Parameters
    ----------
    notebook : str
        Name of the notebook, such as ``"03_training_on_leaked_data"``.
    folder : Path
        Its results: `outputs/<preset>/<notebook>`.

    Raises
    ------
    ValueError
        If there is no sentence for this notebook, or its results lack a table, column or setting that is told of.
    """
    if notebook not in HEADLINES:
        raise ValueError(f"no headline is known for {notebook!r}; choose one of {', '.join(HEADLINES)}")
    try:
        return HEADLINES[notebook](folder)
    except (KeyError, FileNotFoundError) as error:
        what = error.filename if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"the results of {notebook} lack {what}: run it with the laptop preset") from error


def _csv(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


def _falling(values: pd.Series) -> list:
    return sorted(values.dropna().unique().tolist(), reverse=True)


def _listed(values: Iterable[float]) -> str:
    return " / ".join(f"{value:,g}" for value in values)


def _large(value: float) -> str:
    return f"{value:,.0f}" if value < 1e5 else f"{value / 1e6:.1f} million"


def _overview(folder: Path) -> str:
    found = read_json(folder / "metrics.json")
    return (
        f"{100 * found['leak_rate']:.0f} % of {found['clean_images']:,} images leak; trained on them "
        f"{100 * found['accuracy_leak']:.1f} %, on all {100 * found['accuracy_clean']:.1f} % (one seed)"
    )


def _inversion(folder: Path) -> str:
    quality, cost = _csv(folder, "gi_quality"), _csv(folder, "gi_cost")
    sizes = [size for size in (1, 4, 16, 100) if (quality["batch_size"] == size).any()]
    smooth, kinked = (
        row(quality, "psnr", 1, model=model, attack="fast", batch_size=sizes)
        for model in ("convnet-gelu", "convnet-relu")
    )
    days = cost.groupby(["model", "attack"])["days_for_50k"].mean()
    prices = [
        f"{days[model, 'inverting_gradients']:.3g} days as published, {days[model, 'fast']:.2g} by `fast` ({model})"
        for model in days.index.unique("model")
        if (model, "fast") in days.index and (model, "inverting_gradients") in days.index
    ]
    return (
        f"ConvNet with GELU, batch size {_listed(sizes)}: **{smooth} dB**; with ReLU {kinked}. 50,000 images on this "
        f"processor: {'; '.join(prices)}"
    )


def _linear(folder: Path) -> str:
    leaks, rounds, spear = (_csv(folder, name) for name in ("lll_leakage", "adaptive", "passive"))
    one = leaks[leaks["protocol"] == "fedsgd"]
    factors = _falling(one["fc_factor"])
    rates = row(one, "leak_rate", attack="robbing_the_fed", fc_factor=factors)
    law = row(one, "expected_leak_rate", attack="robbing_the_fed", fc_factor=factors)
    local = leaks[(leaks["protocol"] == "fedavg") & (leaks["images_per_client"] == one["images_per_client"].max())]
    steps = int(local["local_steps"].max())
    some = [factor for factor in factors if ((local["fc_factor"] == factor) & (local["attack"] == "loki")).any()]
    loki = row(local, "leak_rate", attack="loki", local_steps=steps, fc_factor=some)
    same = rounds[(rounds["bins"] == "adaptive") & (rounds["draw"] == "same")]
    moved = row(same, "leak_rate", fc_factor=1, round=[1, 2, 3])
    exact = spear.groupby(["attack", "batch_size"])["exact"].mean()
    return (
        f"one step at factor {_listed(factors)}: {rates} % (closed form {law}); LOKI, {steps} local steps, at "
        f"{_listed(some)}: {loki} %. Bins that move, factor 1, rounds 1 / 2 / 3: **{moved} %**. SPEAR reads an honest "
        f"layer exactly up to batch size {exact[exact > 0.99].index.get_level_values('batch_size').max()}"
    )


def _training(folder: Path) -> str:
    table, same = _csv(folder, "training"), _csv(folder, "same_images")
    fed, gi, lll, central = (
        row(table, "accuracy", digits=2, source=name) for name in ("fedavg", "gi", "lll", "centralised")
    )
    images = table.loc[table["source"] == "gi", "images"].mean()
    return (
        f"{fed} % federated, **{gi} % GI** ({images:,.0f} images; the same ones clean "
        f"{spread(same['accuracy'], digits=2)} %), **{lll} % LLL**, {central} % centralised"
    )


def _fedavg(folder: Path) -> str:
    table, rounds = _csv(folder, "fedavg"), _csv(folder, "rounds")
    once = table[table["local_epochs"] == 1]
    loki = once[once["attack"] == "loki"]
    steps = sorted(loki["local_steps"].unique())
    other = once[once["attack"] != "loki"]
    fewer = sorted(other["local_steps"].unique())
    first, last = (rounds[rounds["round"] == number] for number in (1, rounds["round"].max()))
    return (
        f"LOKI leaks {row(loki, 'leak_rate', local_steps=steps)} % at {_listed(steps)} local steps (closed form "
        f"{row(loki, 'expected_leak_rate', local_steps=steps)}); gradient inversion falls: "
        f"{row(other, 'psnr', 1, local_steps=fewer)} dB at {_listed(fewer)}. After round 1 the attacker's model is at "
        f"{100 * first['leaked'].mean():.0f} %, the federation at {100 * first['federated'].mean():.0f} %; after "
        f"{last['round'].iloc[0]} rounds that is at {100 * last['federated'].mean():.1f} %"
    )


def _semi_supervised(folder: Path) -> str:
    table = _csv(folder, "semi_supervised")
    counts = sorted(table.loc[table["method"] == "comatch", "labels_per_class"].dropna().unique())
    alone, fix, co = (
        row(table, "accuracy", method=method, labels_per_class=counts)
        for method in ("labelled_only", "fixmatch", "comatch")
    )
    return (
        f"{_listed(counts)} labels a class: {alone} % labelled images alone, **{fix} %** FixMatch, **{co} %** CoMatch; "
        f"all labels {row(table, 'accuracy', method='all_labels')} %"
    )


def _initialisation(folder: Path) -> str:
    table = _csv(folder, "initialisation")
    sizes = sorted(table.loc[table["start"] == "scratch", "leaked_images"].unique())
    sizes = [size for size in sizes if size]
    scratch, start = (row(table, "accuracy", start=name, leaked_images=sizes) for name in ("scratch", "fedavg"))
    itself = row(table, "accuracy", start="fedavg", leaked_images=0)
    return (
        f"{_listed(sizes)} images: {scratch} % from scratch, **{start} %** from the federated model, which has "
        f"{itself} % itself"
    )


def _quality(folder: Path) -> str:
    table, ranks = _csv(folder, "quality_groups"), _csv(folder, "rank_correlation")
    table = table[table["measure"] == "psnr"]
    right = table[table["labels"] == "right"]
    groups = sorted(name for name in right["group"].astype(str).unique() if name.isdigit())
    right = right.assign(group=right["group"].astype(str))
    wrong = table[(table["labels"] == "wrong") & table["group"].astype(str).isin(groups)]
    by_rank = ranks.groupby("measure")["correlation"].mean()
    return (
        f"groups at {row(right, 'psnr', 1, group=groups)} dB train to {row(right, 'accuracy', group=groups)} %, "
        f"worth {row(right, 'equivalent_images', 1, 0, group=groups)} clean images; wrong labels: at most "
        f"{100 * wrong.groupby('group')['accuracy'].mean().max():.0f} %. Rank correlation with worth: "
        f"PSNR {by_rank['psnr']:.2f}, SSIM {by_rank['ssim']:.2f}"
    )


def _trends(folder: Path) -> str:
    effects = _csv(folder, "effects").set_index("factor")
    told = {"batch_size": "batch size", "repeated_labels": "the same class twice", "training_stage": "trained before"}
    half = (effects["high"] - effects["low"]) / 2
    changes = [f"{text} {effects.loc[name, 'change_db']:+.1f} ± {half[name]:.1f}" for name, text in told.items()]
    trends = _csv(folder, "quality_trends")
    shifts = trends[trends["factor"] == "bin_mismatch"].assign(value=lambda rows: rows["value"].astype(float))
    amounts = sorted(shifts["value"].unique())
    return (
        f"gradient inversion, dB from the least to the most: {', '.join(changes)}. Bins shifted by {_listed(amounts)} "
        f"standard deviations: leak rate {row(shifts, 'leak_rate', digits=0, value=amounts)} %"
    )


def _matching(folder: Path) -> str:
    table = _csv(folder, "label_matching")
    base = row(table[table["varied"] == "base"], "label_accuracy", method="combined")
    blind = table[(table["varied"] == "without") & (table["value"] == "skip and buffers")]
    trained = table[table["method"].isin(["matched", "true_labels", "comatch"]) & (table["protocol"] == "fedsgd")]
    matched, true, co = (row(trained, "accuracy", method=name) for name in ("matched", "true_labels", "comatch"))
    return (
        f"**{base} %** of the leaked images get their own label; {row(blind, 'label_accuracy', method='combined')} % "
        f"where neither a skip nor buffers carry them on. Trained on matched labels {matched} %, on true ones "
        f"{true} %, CoMatch {co} %"
    )


def _non_iid(folder: Path) -> str:
    table = _csv(folder, "non_iid")
    alphas = _falling(table["alpha"])
    fed, lll = (table[table["source"] == source] for source in ("fedavg", "lll"))
    inverted = row(table, "psnr", 1, source="gi", alpha=alphas)
    return (
        f"alpha {_listed(alphas)}: LLL leaks {row(lll, 'leak_rate', alpha=alphas)} % and is worth "
        f"{row(lll, 'accuracy', alpha=alphas)} %; gradient inversion {inverted} dB; the federation falls: "
        f"{row(fed, 'accuracy', alpha=alphas)} %"
    )


def _defences(folder: Path) -> str:
    table, crossings = _csv(folder, "defences"), _csv(folder, "crossings")
    crossed = crossings[crossings["side"] == "crosses"].groupby("attack")["epsilon"].median()
    names = {"loki": "LOKI", "robbing_the_fed": "Robbing the Fed", "fast": "gradient inversion"}
    falls = [f"{names[attack]}'s at ε = {_large(value)}" for attack, value in crossed.items()]
    sums = table[table["defence"] == "secure_aggregation"]
    return (
        f"a leak's worth falls below the federation's accuracy: {', '.join(falls)}. In a sum over clients LOKI still "
        f"leaks {row(sums, 'leak_rate', attack='loki')} %, Robbing the Fed "
        f"{row(sums, 'leak_rate', attack='robbing_the_fed')} %"
    )


def _report(folder: Path) -> str:
    claims = _csv(folder, "claims")
    weakest = weakest_verdicts(claims[claims["claim"].str.startswith("C")])
    groups = [(verdict, weakest.index[weakest == verdict]) for verdict in VERDICTS]
    return "; ".join(f"{', '.join(names)} {verdict}" for verdict, names in groups if len(names))


HEADLINES: dict[str, Callable[[Path], str]] = {
    "00_overview": _overview,
    "01_gradient_inversion": _inversion,
    "02_linear_layer_leakage": _linear,
    "03_training_on_leaked_data": _training,
    "04_fedavg": _fedavg,
    "05_semi_supervised": _semi_supervised,
    "06_federated_initialisation": _initialisation,
    "07_reconstruction_quality": _quality,
    "08_quality_trends": _trends,
    "09_label_matching": _matching,
    "10_non_iid": _non_iid,
    "11_defences": _defences,
    "90_report": _report,
}
"""What is told of each notebook."""
