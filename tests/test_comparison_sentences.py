"""What a comparison says in words, and that it claims no more than its numbers."""

import re

import pytest

from server.comparison.sentences import p_text, points, separable
from server.comparison.statistics import analyse
from tests.comparison_cells import cells_of, drawn, few

BASE = [0.50, 0.52, 0.48, 0.51, 0.49]


def shifted(by, noise):
    return [one + by + extra for one, extra in zip(BASE, noise, strict=True)]


NOISE = (0.002, -0.001, 0.001, -0.002, 0.0)
WILD = (0.05, -0.04, 0.03, -0.05, 0.02)
BASELINES = {"local": shifted(-0.2, NOISE), "pooled": shifted(0.1, NOISE[::-1])}


def said(scores, reference="fedavg", **options):
    return analyse(cells_of(scores), reference, **options)


def test_nothing_separable_is_said_with_the_smallest_p():
    found = said({"fedavg": BASE, "krum": shifted(0.012, WILD), **BASELINES}).sentences
    row = said({"fedavg": BASE, "krum": shifted(0.012, WILD), **BASELINES}).differences.iloc[0]
    # mean 1.2 + 0.2, by hand (5 - 4 + 3 - 5 + 2) / 5 = 0.2
    assert found[0] == (
        "No strategy is separable from fedavg in balanced accuracy at 5 seeds (smallest corrected "
        f"p {p_text(row['p_holm'])}, krum +1.4 points [{points(row['low'], True)}, "
        f"{points(row['high'], True)}])."
    )


def test_what_is_separable_is_said_with_sign_size_interval_and_p():
    scores = {
        "fedavg": BASE, "good": shifted(0.05, NOISE), "bad": shifted(-0.03, NOISE),
        "same": shifted(0.0, WILD),
    }  # fmt: skip
    first = said(scores).sentences[0]
    # sd of NOISE 0.15811 points, times 2.7764 / sqrt 5: half an interval of 0.196
    assert first == (
        "Separable from fedavg in balanced accuracy at 5 seeds, corrected for 3 comparisons: good "
        "+5.0 points [+4.8, +5.2], corrected p <0.001; bad -3.0 points [-3.2, -2.8], corrected p "
        "<0.001. The other strategy is not: neither a difference nor the lack of one is shown."
    )


def test_two_pairs_separate_nothing_however_small_p():
    found = said({"fedavg": [0.5, 0.6], "krum": [0.7, 0.800001]})
    assert (found.differences["p_holm"] < 0.05).all()
    assert not separable(found.differences).any()
    assert "No strategy is separable" in found.sentences[0]
    assert found.alarms[0].startswith("This comparison shows no uncertainty: it has 2 pairs per")


def test_one_seed_says_that_it_shows_no_uncertainty_and_tests_nothing():
    found = said({"fedavg": [0.5], "krum": [0.9], "local": [0.1], "pooled": [0.95]})
    assert found.alarms == [
        "This comparison shows no uncertainty: it has 1 pair per comparison at most (1 seed "
        "planned), and 3 are the least. Differences between arms may be those of seeds."
    ]
    assert found.sentences[0] == "Nothing could be tested against fedavg: no arm has 2 pairs."
    assert not any("eparable" in text or "[" in text for text in found.sentences)


def test_the_order_of_pooled_local_and_the_best_is_said_as_an_order():
    scores = {"fedavg": BASE, "krum": shifted(0.05, NOISE), **BASELINES}
    assert (
        "By mean balanced accuracy, in points: pooled 60.0, krum (highest mean of 2 strategies) "
        "55.0, local 30.0; the highest of several means is flattered by being picked. This is an "
        "order of means, not a test."
    ) in said(scores).sentences


def test_the_detectable_difference_is_the_median_half_width():
    scores = {"fedavg": BASE, "a": shifted(0, NOISE), "b": shifted(0, [10 * n for n in NOISE]),
              "c": shifted(0, [100 * n for n in NOISE])}  # fmt: skip
    # half widths 0.196, 1.963, 19.63 points
    text = next(one for one in said(scores).sentences if "would not have been" in one)
    assert "a mean difference to fedavg below about 2.0 points of balanced accuracy" in text


def test_wilcoxon_without_power_is_an_alarm_and_names_the_pairs_needed():
    scores = {"fedavg": BASE, "krum": shifted(0.05, NOISE), **BASELINES}
    alarm = said(scores, test="wilcoxon").alarms[0]
    # 2^-4 = 0.0625, times 3 = 0.1875; 3 * 2^(1-7) = 0.047 is the first below 0.05
    assert "no p-value below 0.062 with 5 pairs, 0.19 after correction for 3" in alarm
    assert "it cannot reach 0.05, whatever the differences. 7 pairs could" in alarm
    many = {arm: values + [one + 0.001 for one in values] for arm, values in scores.items()}
    assert said(many, test="wilcoxon").alarms == []
    assert said(scores).alarms == []


def test_cells_that_are_not_there_are_named():
    found = said({"fedavg": BASE, "krum": [0.5, None, 0.5, 0.6, 0.4], **BASELINES})
    assert found.alarms == [
        "1 of 20 cells is not finished, and their pairs are left out: krum, seed 1 (failed: "
        "ValueError: no luck)."
    ]
    assert "at 4 seeds" in found.sentences[0]


def test_an_arm_without_pairs_is_named_beside_the_others():
    scores = {"fedavg": BASE, "krum": shifted(0, WILD), "bulyan": [None] * 5, **BASELINES}
    assert said(scores).sentences[0].endswith(" Not tested for want of 2 pairs: bulyan.")


def test_absent_baselines_are_an_alarm():
    assert said({"fedavg": BASE, "pooled": BASE}).alarms == [
        "Not in this comparison: local. Without both baselines nobody can tell whether federation "
        "helps at all, or what it costs."
    ]


def test_an_arm_that_is_the_reference_under_another_name_is_pointed_out():
    found = said({"fedavg": BASE, "fedprox": list(BASE), "krum": shifted(0, WILD)}).sentences
    assert "The same balanced accuracy as fedavg at every seed: fedprox." in found


def test_every_setting_speaks_for_itself():
    found = analyse(few(drawn(3, 5, settings=("a", "b"))), "fedavg").sentences
    heads = [text.partition(":")[0] for text in found]
    assert heads.count("a") == heads.count("b") >= 6
    assert sum("corrected for all comparisons" in text for text in found) == 1


@pytest.mark.parametrize("gain", [0.0, 0.01, 0.03, 0.1])
def test_no_sentence_calls_separable_what_the_table_does_not(gain):
    found = analyse(few(drawn(6, 4, gain=gain)), "fedavg")
    rows = found.differences[found.differences["metric"] == "balanced_accuracy"]
    sure = set(rows.loc[rows["p_holm"] < 0.05, "arm"])
    head = "Separable from fedavg in balanced accuracy at"
    told = " ".join(text for text in found.sentences if text.startswith(head))
    assert set(re.findall(r"(\w+) [+-]\d+\.\d points", told)) == sure


def test_ranks_speak_of_what_they_are():
    text = analyse(few(drawn(4, 5, gain=0.2)), "fedavg").sentences[-1]
    assert text.startswith("Average ranks in balanced accuracy over 5 complete blocks (1 is best)")
    assert "no independent data sets" in text
    short = analyse(few(drawn(4, 3)), "fedavg").sentences[-1]
    assert short == (
        "No critical difference of ranks in balanced accuracy: too few complete blocks of setting "
        "and seed: 3 (at least 5 are needed)."
    )


def test_numbers_are_printed_as_they_are_meant():
    assert points(-0.0004, True) == "+0.0"
    assert (points(0.0123, True), points(-0.5), points(float("nan"))) == ("+1.2", "-50.0", "-")
    assert [p_text(one) for one in (0.0004, 0.0123, 0.21, 1.0)] == [
        "<0.001", "0.012", "0.21", "1.00",
    ]  # fmt: skip
    assert p_text(float("nan")) == "-"


def test_a_baseline_is_one_beside_other_axes_too():
    names = ("fedavg", "mas", "krum", "local", "pooled")
    levels = (BASE, shifted(0.01, WILD), shifted(0.02, WILD), shifted(-0.2, NOISE), BASE)
    scores = {
        f"{name} · {objective}": values
        for name, values in zip(names, levels, strict=True)
        for objective in ("supervised", "ekd")
    }
    found = said(scores, reference="fedavg · supervised")
    kinds = found.differences.set_index("arm")["kind"]
    assert kinds["local · ekd"] == kinds["pooled · supervised"] == "baseline"
    assert kinds["mas · ekd"] == "strategy"
    assert not any("local" in arm for arm in found.ranks["balanced_accuracy"].average.index)
    assert not [text for text in found.alarms if "Not in this comparison" in text]
