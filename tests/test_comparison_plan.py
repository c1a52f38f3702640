import re

import pytest

from fedkd import config
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe
from server.comparison.plan import plan


def make(compare=None, **values):
    return config.build(Recipe, {"name": "x", **values, "compare": compare or {}})


def arms(compare=None, **values):
    return list(plan(make(compare, **values)).arms)


def refused(compare, **values):
    with pytest.raises(ConfigError) as caught:
        plan(make(compare, **values))
    return str(caught.value)


def test_fedavg_local_and_pooled_are_always_in_once():
    assert arms() == ["fedavg", "local", "pooled"]
    assert arms({"strategies": ["mas"]}) == ["fedavg", "mas", "local", "pooled"]
    assert arms({"strategies": ["mas", {"name": "fedavg"}]}) == ["mas", "fedavg", "local", "pooled"]
    assert arms({"strategies": ["mas"], "baselines": ["local"]}) == ["fedavg", "mas", "local"]


def test_without_strategies_that_of_the_recipe_is_compared():
    own = {"strategy": {"name": "fedtrimmedavg", "trim": 0.1}}
    found = plan(make({}, **own))
    assert found.arms == ("fedavg", "fedtrimmedavg", "local", "pooled")
    assert found.cells[1].recipe.strategy.trim == 0.1


def test_a_variant_of_fedavg_does_not_stand_for_fedavg():
    found = arms({"strategies": [{"name": "fedavg", "exchange": "backbone"}]})
    assert found == ["fedavg", "fedavg (exchange backbone)", "local", "pooled"]


def test_the_reference_is_added_and_named_by_its_label():
    found = plan(make({"reference": "fedadam"}))
    assert found.arms == ("fedadam", "fedavg", "local", "pooled")
    assert found.reference == "fedadam"
    trimmed = {"name": "fedtrimmedavg", "trim": 0.25}
    found = plan(make({"reference": "fedtrimmedavg", "strategies": [trimmed]}))
    assert found.reference == "fedtrimmedavg (trim 0.25)"
    assert found.arms == ("fedavg", "fedtrimmedavg (trim 0.25)", "local", "pooled")


def test_a_reference_with_two_meanings_is_refused_unless_it_is_a_label():
    strategies = [{"name": "fedtrimmedavg", "trim": trim} for trim in (0.1, 0.25)]
    text = refused({"reference": "fedtrimmedavg", "strategies": strategies})
    assert text == (
        "compare.reference is 'fedtrimmedavg', of which compare.strategies has several; name one "
        "of them as it is labelled: 'fedtrimmedavg (trim 0.1)' or 'fedtrimmedavg (trim 0.25)'"
    )
    label = "fedtrimmedavg (trim 0.25)"
    assert plan(make({"reference": label, "strategies": strategies})).reference == label


def test_a_reference_that_is_no_strategy_is_refused():
    assert refused({"reference": "fedag", "strategies": ["mas"]}) == (
        "compare.reference is 'fedag'; it must be a strategy, or one of compare.strategies as it "
        "is labelled: 'fedavg', 'mas'"
    )


def test_the_reference_arm_is_that_of_the_first_values_of_other_axes():
    found = plan(make({"strategies": ["mas"], "objectives": ["supervised", "ekd"]}))
    assert found.reference == "fedavg · supervised"


def test_another_strategy_keeps_sampling_and_exchange_alone():
    recipe = make(
        {"strategies": ["fedadam", {"trim": 0.4}, {"name": "mas", "exchange": "all"}]},
        strategy={
            "name": "fedtrimmedavg",
            "trim": 0.3,
            "fraction_train": 0.5,
            "exchange": "backbone",
        },
    )
    by_arm = {cell.arm: cell.recipe.strategy for cell in plan(recipe).cells}
    adam = by_arm["fedadam"]
    assert (adam.fraction_train, adam.exchange, adam.trim) == (0.5, "backbone", None)
    assert by_arm["fedtrimmedavg (trim 0.4)"].trim == 0.4
    assert by_arm["mas (exchange all)"].exchange == "all"
    assert by_arm["local"].exchange == "nothing"
    assert by_arm["local"].fraction_train == 0.5


def test_another_partition_forgets_the_options_of_the_first():
    recipe = make(
        {"partitions": ["iid", {"name": "dirichlet", "alpha": 0.1}]},
        num_clients=4,
        partition={"name": "file", "file": "p.json", "keep_groups": False},
    )
    found = {
        cell.setting: cell.recipe.partition for cell in plan(recipe).cells if cell.arm[0] == "f"
    }
    assert list(found) == ["iid", "dirichlet (alpha 0.1)"]
    assert found["iid"].file == ""
    assert not found["iid"].keep_groups
    assert found["dirichlet (alpha 0.1)"].alpha == 0.1


def test_another_teacher_forgets_checkpoint_and_clients():
    recipe = make(
        {"teachers": ["default", "resnet18_imagenet_v1"]},
        teacher={"name": "pretrained", "checkpoint": "t.safetensors", "precision": "bfloat16"},
        objective={"name": "ekd"},
    )
    cells = plan(recipe).cells
    assert {cell.recipe.teacher.checkpoint for cell in cells} == {""}
    assert {cell.recipe.teacher.precision for cell in cells} == {"bfloat16"}


def test_axes_of_data_make_settings_and_all_others_arms():
    found = plan(
        make(
            {
                "imbalance_factors": [10, 100],
                "axes": {"training.local_epochs": [1, 2], "num_clients": [2, 3]},
                "baselines": ["local"],
            },
            partition={"name": "iid"},
        )
    )
    assert found.settings == (
        "imbalance 10, num clients 2",
        "imbalance 10, num clients 3",
        "imbalance 100, num clients 2",
        "imbalance 100, num clients 3",
    )
    assert found.arms == (
        "fedavg · local epochs 1",
        "fedavg · local epochs 2",
        "local · local epochs 1",
        "local · local epochs 2",
    )
    last = found.cells[-1].recipe
    assert last.long_tail.imbalance_factor == 100
    assert (last.num_clients, last.training.local_epochs, last.seed) == (3, 2, 2)


def test_an_axis_of_one_value_is_applied_and_not_named():
    found = plan(make({"objectives": [{"name": "supervised", "loss": "ce"}]}))
    assert found.arms == ("fedavg", "local", "pooled")
    assert {cell.recipe.objective.loss for cell in found.cells} == {"ce"}


def test_keys_with_the_same_ending_are_named_in_full():
    axes = {"fedprox.mu": [0.1, 1], "moon.mu": [1, 5]}
    found = arms({"axes": axes, "baselines": []})
    assert found[0] == "fedavg · fedprox.mu 0.1 · moon.mu 1"


def test_another_data_set_starts_its_section_afresh():
    recipe = make({"axes": {"data.name": ["lesions", "ham10000"]}}, data={"num_sites": 3})
    assert plan(recipe).settings == ("lesions", "ham10000")


def test_pooled_is_one_run_for_all_partitions_and_shown_in_each_setting():
    found = plan(make({"partitions": ["iid", "shards"], "seeds": [5]}, num_clients=3))
    pooled = [cell for cell in found.cells if cell.arm == "pooled"]
    assert [cell.setting for cell in pooled] == ["iid", "shards"]
    assert pooled[0].key == pooled[1].key
    assert pooled[0].recipe == pooled[1].recipe
    assert (pooled[0].mode, pooled[0].recipe.num_clients) == ("centralized", 1)
    assert len(found.cells) == 6
    assert len(found.runs) == 5


def test_a_baseline_is_not_repeated_for_values_that_mean_nothing_to_it():
    axes = {"privacy.noise_multiplier": [0.1, 1], "strategy.fraction_train": [0.5, 1]}
    recipe = make({"axes": axes, "objectives": ["supervised", "ekd"]}, privacy={"name": "fixed"})
    found = [arm for arm in arms_of(recipe) if not arm.startswith("fedavg")]
    assert found == [
        "local · supervised · fraction train 0.5",
        "local · supervised · fraction train 1",
        "local · ekd · fraction train 0.5",
        "local · ekd · fraction train 1",
        "pooled · supervised",
        "pooled · ekd",
    ]
    assert {c.recipe.privacy.name for c in plan(recipe).cells if c.arm[0] in "lp"} == {"none"}


def arms_of(recipe):
    return list(plan(recipe).arms)


def test_cells_go_seed_by_seed_with_one_thread():
    found = plan(make({"seeds": [3, 1]})).cells
    assert [cell.seed for cell in found] == [3, 3, 3, 1, 1, 1]
    assert {cell.recipe.engine.num_threads for cell in found} == {1}
    assert {c.recipe.engine.num_threads for c in plan(make(engine={"num_threads": 2})).cells} == {2}


def test_a_cell_is_the_recipe_itself_where_nothing_varies():
    recipe = make({"strategies": ["mas"], "seeds": [0]}, engine={"num_threads": 1})
    by_arm = {cell.arm: cell.recipe for cell in plan(recipe).cells}
    assert by_arm["fedavg"].hash() == recipe.hash()
    mas = make(engine={"num_threads": 1}, strategy={"name": "mas"})
    assert by_arm["mas"].hash() == mas.hash()
    assert by_arm["local"].evaluation.personalised == recipe.evaluation.personalised


def test_names_of_folders_are_safe_and_told_apart():
    loud = [{"name": "fedadam", "tau": tau} for tau in (1e-3, 2e-3)]
    found = plan(make({"strategies": loud, "objectives": ["supervised", "ekd"], "seeds": [0]}))
    names = [cell.recipe.name for cell in found.cells]
    assert names[2] == "fedadam-tau-0.001-supervised-seed0"
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,140}", name) for name in names)
    paths = [{"name": "file", "file": f"{'x' * 200}{end}"} for end in "ab"]
    long = [c.recipe.name for c in plan(make({"partitions": paths, "seeds": [0]})).cells]
    assert len(set(long)) == 5  # pooled is one for both
    assert max(map(len, long)) <= 140


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_are_given_once_each(seeds):
    assert refused({"seeds": seeds}) == (
        f"compare.seeds is {seeds}; it must be whole numbers from 0 on, each once, and at least "
        "one; three or more show an uncertainty"
    )


def test_all_wrong_cells_are_named_in_one_error():
    bad = {"name": "fedtrimmedavg", "trim": 0.7}
    text = refused({"strategies": [bad, "fedsgd"], "objectives": ["supervised", "ekd"]})
    first, second = text.splitlines()
    assert first == (
        "cell fedtrimmedavg (trim 0.7) · supervised (and 1 more): strategy.trim is 0.7 in "
        "[compare]; it must be less than 0.5"
    )
    assert second.startswith(
        "cell fedsgd · supervised (and 1 more): strategy.name is 'fedsgd' in [compare]; it must be"
    )


def test_an_unknown_key_is_refused_with_the_nearest():
    text = refused({"axes": {"training.local_epoch": [1, 2]}})
    assert text == (
        "cell fedavg · local epoch 1 (and 5 more): unknown key training.local_epoch in [compare]; "
        "did you mean training.local_epochs?"
    )


def test_a_baseline_that_cannot_be_says_how_to_leave_it_out():
    text = refused({"objectives": ["moco"]})
    assert text == (
        "cell local: strategy.exchange is 'nothing', but objective.name = 'moco' takes 'all' only: "
        "one teacher is made by all (in [compare]); compare.baselines can leave it out"
    )


def test_the_same_strategy_twice_is_refused():
    text = refused({"strategies": ["mas", {"name": "mas"}]})
    assert text == "cell mas: is the same recipe as another; name each once"


def test_the_same_setting_under_two_names_is_refused():
    partitions = [{"name": "dirichlet", "alpha": alpha} for alpha in (0.1, 10.0)]
    text = refused({"partitions": partitions, "axes": {"partition.alpha": [1.0]}}, num_clients=2)
    assert text == (
        "cell dirichlet (alpha 10), fedavg (and 1 more): is the same recipe as in dirichlet (alpha "
        "0.1); name each setting once"
    )


def test_an_axis_that_changes_no_number_is_refused():
    text = refused({"axes": {"keep_students_every": [0, 1]}, "baselines": []})
    assert text == (
        "cell fedavg · keep students every 1: is the same recipe as another; name each once"
    )


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("seed", "give seeds in compare.seeds"),
        ("strategy.name", "give strategies in compare.strategies"),
        ("compare.workers", "a comparison does not vary itself"),
    ],
)
def test_axes_that_have_their_own_key_are_refused(key, advice):
    assert refused({"axes": {key: [1, 2]}}) == f'compare.axes has "{key}"; {advice}'


def test_an_empty_axis_is_refused():
    text = refused({"axes": {"num_rounds": []}})
    assert text == 'compare.axes."num_rounds" is empty; give its values, or leave it out'


def test_local_shares_no_prompts_whatever_the_others_share():
    recipe = make(objective={"name": "fopro"}, prompts={"shared": "by_examples"})
    shared = {cell.arm: cell.recipe.prompts.shared for cell in plan(recipe).cells}
    assert shared["fedavg"] == "by_examples"
    assert shared["local"] == "no"


def test_processes_of_a_comparison_do_not_each_start_workers_of_their_own():
    with pytest.raises(ConfigError) as error:
        plan(make({"workers": 2}, engine={"name": "ray"}))
    assert str(error.value) == (
        "engine.name is 'ray' with compare.workers = 2, but each of these processes would start "
        "workers of its own for the same cores; set compare.workers = 1, or engine.name = "
        "'inprocess'"
    )
    assert plan(make({"workers": 1}, engine={"name": "ray"})).cells
