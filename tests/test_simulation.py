"""``simulate``: reproducibility, what goes in, what comes out, and what is left untouched."""

import copy

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import nn

from clients.node import Node
from fedkd.data.images import LabelledImages
from fedkd.errors import ConfigError
from fedkd.models import states
from server import Observer, simulate, simulation

AKD = {"gamma": 0.3, "warm_up_steps": 1, "steps_per_round": 2}


def sha(run):
    return run.summary["student_sha256"]


# Reproducibility


def test_two_runs_of_one_config_end_with_equal_bits_and_another_seed_with_others(run, tmp_path):
    first, second = (run(output=tmp_path / name) for name in "ab")
    assert sha(first) == sha(second)
    assert first.summary["test"] == second.summary["test"]
    for name in ("rounds.csv", "clients.csv"):
        one, two = (pd.read_csv(r.path / name).drop(columns="seconds") for r in (first, second))
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    other = run(seed=1)
    assert sha(other) != sha(first)


def test_the_global_random_generators_have_no_say_and_are_left_alone(run):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = run(num_rounds=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert sha(run(num_rounds=1)) == sha(first)


def test_another_objective_loss_or_strategy_gives_another_student(run):
    runs = [
        run(num_rounds=1, objective={"name": "ekd"}),
        run(num_rounds=1),
        run(num_rounds=1, objective={"loss": "ce"}),
        run(num_rounds=1, strategy={"name": "mas"}),
    ]
    assert len({sha(r) for r in runs}) == len(runs)


# What a run leaves untouched


def test_the_given_teacher_and_initial_student_are_left_as_they_were(
    make_recipe, hospitals, teacher
):
    source = simulate(make_recipe(seed=7, num_rounds=1), **hospitals, teacher=teacher).student
    initial = copy.deepcopy(source).double().train()
    given = teacher.double().train()
    before = [states.sha256(module.state_dict()) for module in (given, initial)]
    simulate(
        make_recipe(explore=AKD), **hospitals, teacher=given, initial_student=initial
    )  # fmt: skip
    assert [states.sha256(module.state_dict()) for module in (given, initial)] == before
    for module in (given, initial):
        assert all(part.training for part in module.modules())
        assert all(p.requires_grad and p.dtype == torch.float64 for p in module.parameters())
        assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in given.modules())


@pytest.mark.parametrize("objective", ["ekd", "fopro"])
def test_the_teacher_of_a_run_keeps_every_bit(run, monkeypatch, objective):
    opened = []

    def open_and_keep(*args, **kwargs):
        experiment = open_experiment(*args, **kwargs)
        teacher = experiment.teacher_of(0)
        opened.append((teacher, states.sha256(teacher.state_dict())))
        return experiment

    open_experiment = simulation.open_experiment
    monkeypatch.setattr(simulation, "open_experiment", open_and_keep)
    run(objective={"name": objective}, explore=AKD)
    ((teacher, before),) = opened
    assert states.sha256(teacher.state_dict()) == before
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_a_run_begins_with_the_given_student_as_module_or_state(make_recipe, hospitals):
    recipe = make_recipe(objective={"name": "supervised"}, num_rounds=1)
    source = simulate(make_recipe(objective={"name": "supervised"}, seed=5), **hospitals).student
    plain = simulate(recipe, **hospitals)
    as_module = simulate(recipe, **hospitals, initial_student=source)
    as_state = simulate(recipe, **hospitals, initial_student=source.state_dict())
    assert sha(as_module) == sha(as_state) != sha(plain)


def test_the_final_student_is_the_hashed_one_in_eval_mode(run):
    result = run(num_rounds=1)
    assert states.sha256(result.student.state_dict()) == sha(result)
    assert not any(module.training for module in result.student.modules())
    assert result.path is None


def test_num_threads_holds_during_the_run_and_is_put_back(run):
    seen = []

    class Reader(Observer):
        def round_started(self, round_number):
            seen.append(torch.get_num_threads())

    run(num_rounds=1, engine={"num_threads": 2}, observers=[Reader()])
    assert (seen, torch.get_num_threads()) == ([2], 1)


# What goes in


def test_a_config_may_be_a_recipe_a_dict_or_a_file(make_recipe, hospitals, tmp_path):
    values = {"num_rounds": 1, "objective": {"name": "supervised"}, "training": {"batch_size": 8}}
    path = tmp_path / "a.toml"
    path.write_text(
        'num_rounds = 1\n[objective]\nname = "supervised"\n[training]\nbatch_size = 8\n'
    )
    recipe = make_recipe(
        num_rounds=1,
        objective={"name": "supervised"},
        training={"batch_size": 8, "learning_rate": 3e-4},
        prompts={"latent_dim": 64},
        explore={"warm_up_steps": 60, "steps_per_round": 5, "batch_size": 32},
    )
    runs = [simulate(config, **hospitals) for config in (values, path, str(path), recipe)]
    assert len({sha(r) for r in runs}) == 1
    assert len({r.summary["config_hash"] for r in runs}) == 1


def test_a_dict_with_an_unknown_key_names_the_nearest(hospitals):
    with pytest.raises(ConfigError, match="unknown key num_round in the given config; did you"):
        simulate({"num_round": 3}, **hospitals)


def test_data_of_the_recipe_are_used_where_none_are_given(make_recipe, teacher):
    data = {"name": "lesions", "size": 16, "num_train": 40, "num_sites": 2,
            "num_val_per_class": 1, "num_test_per_class": 2}  # fmt: skip
    result = simulate(make_recipe(data=data, num_rounds=1), teacher=teacher)
    assert result.summary["clients"] == ["hospital_0", "hospital_1"]
    assert result.summary["test"]["num_images"] == 16


def test_float_images_reach_teacher_and_student_as_they_are(make_recipe, hospitals, teacher):
    """Pixels / 255 and no normalisation are the same run as uint8 images with none."""

    def as_floats(images):
        return LabelledImages(
            (images.images / 255.0).astype("float32"), images.labels, images.class_names,
            images.sites, images.site_names, images.ids,
        )  # fmt: skip

    recipe = make_recipe(student={"normalize": "none"})
    floats = {
        "sites": [as_floats(site) for site in hospitals["sites"]],
        "val": as_floats(hospitals["val"]),
        "test": as_floats(hospitals["test"]),
    }
    first = simulate(recipe, **hospitals, teacher=teacher)
    assert sha(simulate(recipe, **floats, teacher=teacher)) == sha(first)
    assert sha(simulate(make_recipe(), **floats, teacher=teacher)) == sha(first)


# Shared prompts


@pytest.mark.parametrize("share", ["no", "by_examples", "by_strategy"])
def test_generators_of_clients_differ_unless_shared_and_travel_only_then(
    make_recipe, hospitals, teacher, monkeypatch, tmp_path, share
):
    received, kept = {}, {}
    train = Node.train

    def watch(self, partition_id, arrays, state, round_number, *rest, **options):
        names = [name for name in arrays if name.startswith("prompts/")]
        received[round_number, partition_id] = {name: arrays[name].clone() for name in names}
        reply, new = train(self, partition_id, arrays, state, round_number, *rest, **options)
        kept[round_number, partition_id] = {
            name: tensor for name, tensor in new["objective"].items() if "generator" in name
        }
        return reply, new

    monkeypatch.setattr(Node, "train", watch)
    recipe = make_recipe(prompts={"shared": share})
    result = simulate(recipe, **hospitals, teacher=teacher, output=tmp_path)
    generators = {states.sha256(kept[2, client]) for client in range(3)}
    assert len(generators) == 3, "their images and draws differ"
    if share == "no":
        assert not any(received.values())
    else:
        # In round 2 all begin with the average of what round 1 left, weighed by images.
        weights = dict(zip(range(3), [11 / 26, 9 / 26, 6 / 26], strict=True))
        for name, tensor in received[2, 0].items():
            own = name.replace("prompts/", "generator.")
            mean = sum(weight * kept[1, client][own] for client, weight in weights.items())
            torch.testing.assert_close(tensor, mean)
            assert all(torch.equal(received[2, client][name], tensor) for client in range(3))
        assert len(received[2, 0]) == len(kept[1, 0]) > 0
    with safe_open(result.path / "student.safetensors", "pt") as file:
        assert not any(name.startswith("prompts/") for name in file.keys())  # noqa: SIM118


def test_sharing_the_prompts_changes_the_students(run):
    assert sha(run(num_rounds=2)) != sha(run(num_rounds=2, prompts={"shared": "by_strategy"}))


# Columns


def test_the_tables_of_fopro_have_the_prior_and_the_terms_of_exploration(run):
    result = run(explore=AKD)
    logged = {"prior", "prior_clean", "explore_prior", "explore_confidence", "explore_diversity",
              "explore_out_of_range", "explore_disagreement"}  # fmt: skip
    assert logged <= set(result.clients.columns)
    assert logged <= set(result.rounds.columns)
    assert result.clients[sorted(logged)].notna().all(axis=None)
    means = result.clients.groupby("round")["prior"].mean()
    assert result.rounds["prior"].tolist() == pytest.approx(means.tolist(), rel=1e-12)
    assert (result.clients["explore_disagreement"] > 0).all()
    plain = run(num_rounds=1, objective={"name": "ekd"})
    assert not [name for name in plain.clients if "prior" in name or "explore" in name]


def test_a_rounds_loss_is_the_mean_over_all_images_of_all_clients(run):
    result = run()
    for number, rows in result.clients.groupby("round"):
        pooled = (rows["loss"] * rows["num_seen"]).sum() / rows["num_seen"].sum()
        row = result.rounds.set_index("round").loc[number]
        assert row["train_loss"] == pytest.approx(pooled, rel=1e-12)
        assert row["num_seen"] == rows["num_seen"].sum() == 26
        parts = rows["loss_supervised"] + rows["loss_projected"] + 3.0 * rows["loss_distillation"]
        assert rows["loss"].tolist() == pytest.approx(parts.tolist(), rel=1e-5)
    assert result.clients.groupby("round")["weight"].sum().tolist() == pytest.approx([1, 1])


def test_the_prior_falls_while_the_generator_explores(run):
    result = run(num_rounds=4, explore={"warm_up_steps": 20, "steps_per_round": 10})
    first, *_, last = result.rounds["prior"]
    assert last < first
    assert last < 0.5 * result.rounds["prior_clean"].iloc[-1]
    clean = result.clients.groupby("partition_id")["prior_clean"].nunique()
    assert (clean == 1).all(), "the same images in every round"


def test_a_teacher_without_batchnorm_can_prompt(make_recipe, hospitals):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, 2)

        def forward(self, x):
            return self.conv(x).relu().mean((2, 3))

    torch.manual_seed(0)
    recipe = make_recipe(teacher={"reference_images": 32}, num_rounds=1)
    result = simulate(recipe, **hospitals, teacher=Plain())
    assert result.rounds["prior"].notna().all()
