"""Verdicts from tables: each rule on tables made to hold, to fail, and to say too little."""

import pandas as pd
import pytest
from test_claims_training import FAR, curves, training

from leaklearn.files import REPOSITORY
from leaklearn.report.claims import judge, read_tables, summarise_verdicts
from leaklearn.report.paper import STATEMENTS, statement
from leaklearn.report.rules_leakage import closed_form, leaked_share

IDS = [*(f"C{i}" for i in range(1, 11)), *(f"P{i}" for i in range(1, 8))]


def leakage(dataset="mnist5k", seeds=3, shift=0.0, factors=(4, 2, 1), steps=1):
    expected = {4: 0.779, 2: 0.607, 1: 0.368}
    rows = [
        {
            "dataset": dataset,
            "seed": seed,
            "attack": "loki",
            "protocol": "fedsgd" if steps == 1 else "fedavg",
            "fc_factor": factor,
            "clients": 60,
            "images_per_client": 64,
            "local_steps": steps,
            "leak_rate": expected[factor] + shift + 0.001 * (seed - 1),
            "expected_leak_rate": expected[factor],
        }
        for factor in factors
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def verdict(findings):
    assert len(findings) == 1
    return findings[0].verdict


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.id)
def test_the_figure_of_a_claim_is_drawn_by_its_notebook(statement):
    source = REPOSITORY.notebook(statement.notebook).read_text(encoding="utf-8")
    assert f'\\"{statement.figure}\\"' in source


def test_every_claim_and_number_has_a_verdict_without_any_result():
    claims = judge({})
    assert list(claims["claim"]) == IDS
    assert set(claims["verdict"]) == {"not run"}
    assert all(row.notebook in row.why for row in claims.itertuples())  # the notebook that will test it is named
    counts = summarise_verdicts(claims).set_index("verdict")["claims"]
    assert counts[counts > 0].to_dict() == {"not run": 17}


def test_the_papers_numbers_are_those_we_know():
    told = {each.id: each.paper for each in STATEMENTS}
    assert told["P1"].startswith("72.76 %")
    assert told["P3"].startswith("93.16 %")
    assert told["P6"].startswith("78.93 / 76.61 / 75.15 %")
    assert list(told) == IDS


def test_leak_rates_against_the_closed_form():
    assert verdict(closed_form(leakage())) == "reproduced"
    assert verdict(closed_form(leakage(shift=0.015))) == "reproduced"
    assert verdict(closed_form(leakage(shift=0.019))) == "partly"  # the interval reaches beyond 2 points
    assert verdict(closed_form(leakage(shift=0.025))) == "not reproduced"
    assert verdict(closed_form(leakage(seeds=1))) == "partly"
    assert verdict(closed_form(leakage(seeds=1, shift=0.06))) == "not reproduced"
    mixed = pd.concat([leakage(factors=[4, 1]), leakage(factors=[2], shift=-0.045)])
    found = closed_form(mixed)[0]
    assert found.verdict == "partly"
    assert found.measured == pytest.approx(-4.5)
    assert "2 of 3 settings within 2 points" in found.why
    assert "largest gap at loki with fedsgd, factor 2" in found.why


def test_the_clients_standard_error_makes_the_interval():
    few = leakage().assign(standard_error=0.02)  # 1.96 * 2 / sqrt(3): more than 2 points
    assert verdict(closed_form(few)) == "partly"
    many = leakage(shift=0.01).assign(standard_error=0.005)
    found = closed_form(many)[0]
    assert found.verdict == "reproduced"
    assert found.high - found.measured == pytest.approx(1.96 * 0.5 / 3**0.5)


def test_a_bias_of_all_gaps_is_told_and_what_the_bins_explain():
    table = leakage(shift=-0.016)
    found = closed_form(table.assign(expected_in_bins=table["expected_leak_rate"] - 0.014))[0]
    assert "all 3 gaps are negative, -1.6 points on average, -0.2 beside the closed form for the masses" in found.why
    mixed = pd.concat([leakage(factors=[4], shift=0.01), leakage(factors=[2], shift=-0.01)])
    assert "1 of 2 gaps are negative" in closed_form(mixed)[0].why


def test_bins_of_ours_are_told_of_and_decide_nothing():
    ours = leakage(shift=-0.3).assign(attack="loki_kernel")
    found = closed_form(pd.concat([leakage(), ours]))[0]
    assert found.verdict == "reproduced"
    assert "bins of ours: largest gap -30.0" in found.why
    assert verdict(closed_form(ours)) == "not run"
    alone = {each.detail: each.measured for each in leaked_share(leakage("cifar10"), statement("P6").value)}
    both = leaked_share(pd.concat([leakage("cifar10"), ours.assign(dataset="cifar10")]), statement("P6").value)
    assert {each.detail: each.measured for each in both} == alone
    peeled = leakage("cifar10").assign(attack="peeled_bins", leak_rate=0.993)
    beside = leaked_share(pd.concat([leakage("cifar10"), peeled]), statement("P6").value)
    assert {each.detail: each.measured for each in beside} == alone
    assert all(each.why.endswith("bins of several measurements (ours): 99.30 %") for each in beside)


def test_attacks_without_a_closed_form_are_left_out():
    trap = leakage(shift=-0.3).assign(attack="trap_weights", expected_leak_rate=float("nan"))
    assert verdict(closed_form(pd.concat([leakage(), trap]))) == "reproduced"
    assert verdict(closed_form(trap)) == "not run"


def test_the_leaked_share_beside_p6():
    both = pd.concat([leakage("cifar10"), leakage("cifar10", steps=8)])
    found = {each.detail: each for each in leaked_share(both, statement("P6").value)}
    assert found["FC size 4"].verdict == "reproduced"
    assert found["FC size 2"].verdict == "not reproduced"
    assert "several local steps" in found["FC size 4"].why
    assert "doubtful" in found["FC size 4"].paper
    other = {each.detail: each for each in leaked_share(leakage("mnist5k"), statement("P6").value)}
    assert other["FC size 4"].verdict == "not comparable"
    assert "the paper's number is for CIFAR-10" in other["FC size 4"].why


def test_each_data_set_has_its_row_and_the_weakest_counts():
    names = ("mnist5k", "cifar10")
    table = pd.concat([training("mnist5k", **FAR), training("cifar10", **{**FAR, "fedavg": 0.99})])
    claims = judge({"training": table, "rounds": pd.concat(map(curves, names))})
    rows = claims[claims["claim"] == "C1"].set_index("dataset")["verdict"]
    assert rows.to_dict() == {"mnist5k": "reproduced", "cifar10": "not reproduced"}
    counts = summarise_verdicts(claims[claims["claim"] == "C1"]).set_index("verdict")["claims"]
    assert counts["not reproduced"] == 1
    assert counts.sum() == 1


def test_a_table_without_its_columns_is_not_run_and_says_so():
    claims = judge({"training": training(**FAR).drop(columns="accuracy"), "rounds": curves()}).set_index("claim")
    assert claims.loc["C1", "verdict"] == "not run"
    assert "lacks accuracy" in claims.loc["C1", "why"]


def test_tables_are_read_from_the_outputs_of_a_preset(tmp_path):
    from leaklearn.files import Paths

    folder = tmp_path / "outputs" / "laptop" / "03_training"
    folder.mkdir(parents=True)
    training(**FAR).to_csv(folder / "training.csv", index=False)
    assert set(read_tables("laptop", Paths(tmp_path))) == {"training"}
    assert read_tables("paper", Paths(tmp_path)) == {}


def test_settings_too_small_to_tell_two_points_are_left_out():
    small = leakage(shift=0.09, factors=(4,)).assign(clients=1)  # 192 images over three seeds
    large = leakage(factors=(4, 2))
    assert verdict(closed_form(pd.concat([large, small]))) == "reproduced"
    assert verdict(closed_form(small)) == "not run"
    assert verdict(closed_form(pd.concat([large, leakage(shift=0.04, factors=(1,))]))) == "partly"
