"""``strategy.exchange = "nothing"``: every hospital trains alone, and its own images test it."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clients.node import Node
from fedkd.errors import ConfigError, DataError
from fedkd.prediction import predict
from server import simulate
from server.opened_run import open_run
from tests.conftest import SITES

ALONE = {"strategy": {"exchange": "nothing"}, "objective": {"name": "supervised"}}
FORGETFUL = {"training": {"keep_optimizer_state": False}}


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        (1, {"objective": {"name": "supervised"}}),
        (2, {"objective": {"name": "supervised"}, **FORGETFUL}),
        (1, {"objective": {"name": "moon"}}),
        (0, {"objective": {"name": "ekd"}}),
        (1, {"objective": {"name": "fopro"}}),
    ],
)
def test_a_hospital_ends_as_if_there_were_no_other(
    make_recipe, hospitals, teacher, tmp_path, first, changes
):
    # Draws hang on a client's number, so the hospital that is compared comes first.
    order = [first, *(number for number in range(3) if number != first)]
    sites = [hospitals["sites"][number] for number in order]
    together = simulate(
        make_recipe(num_rounds=2, strategy={"exchange": "nothing"}, **changes),
        **{**hospitals, "sites": sites},
        teacher=teacher,
        output=tmp_path / "together",
    )
    alone = simulate(
        make_recipe(num_rounds=2, keep_students_every=1, **changes),
        **{**hospitals, "sites": sites[:1]},
        teacher=teacher,
        centralized=True,
        output=tmp_path / "alone",
    )
    own = load_file(together.path / "students" / "client-0.safetensors")
    best = together.summary["best_round"]
    expected = load_file(alone.path / "students" / f"round-{best:04d}.safetensors")
    assert set(own) == set(expected)
    assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_nothing_travels_but_numbers(opened, run):
    node = Node(opened(**ALONE))
    assert node.initial_arrays() == {}
    reply, _ = node.train(0, {}, {}, 1)
    assert reply.arrays == {}
    result = run(**ALONE)
    assert (result.rounds["bytes_down"] == 0).all()
    # What comes up are losses, counts per class and predictions: 8 bytes each, no tensor.
    numbers = [len(v) if isinstance(v, list) else 1 for v in reply.metrics.values()]
    first = result.clients.query("round == 1 and partition_id == 0")
    assert first["bytes_up"].tolist() == [8 * sum(numbers)]


def test_every_image_is_predicted_by_its_own_hospital_and_the_best_round_is_of_all(
    run, opened, tmp_path
):
    result = run(num_rounds=4, output=tmp_path, **ALONE)
    experiment = opened(num_rounds=4, **ALONE)
    loader, sites = experiment.held_out_loader("test"), experiment.splits.test.sites
    network = experiment.build_student()
    for number in range(len(SITES)):
        path = result.path / "students" / f"client-{number}.safetensors"
        network.load_state_dict(load_file(path))
        own = sites == number
        assert own.any()
        np.testing.assert_allclose(
            result.board.test_probabilities[own], predict(network, loader, 256)[own], rtol=1e-5
        )
    # Every hospital trains in every round, so its own student is the one that predicts val.
    scores = result.rounds["val_balanced_accuracy"]
    assert scores.tolist() == result.rounds["own_val_balanced_accuracy"].tolist()
    assert result.summary["best_round"] == 1 + int(np.argmax(scores))


def test_what_is_stored_of_no_global_student_says_so(make_recipe, hospitals, tmp_path):
    result = simulate(make_recipe(**ALONE), **hospitals, output=tmp_path)
    assert load_file(result.path / "best_student.safetensors") == {}
    opened = open_run(result.path)
    experiment = result.board.experiment
    with pytest.raises(DataError) as caught:
        opened.student(experiment)
    assert str(caught.value) == (
        f"{result.path}/best_student.safetensors holds no student: with strategy.exchange = "
        "'nothing' every hospital trained its own, and none is global; each is in "
        f"{result.path}/students/client-<number>.safetensors, as it was tested"
    )
    own = opened.student(experiment, "students/client-2.safetensors")
    assert not own.training
    initial = experiment.build_student().state_dict()
    assert not torch.equal(own.state_dict()["fc.weight"], initial["fc.weight"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"strategy": {"name": "mas"}}, "strategy.name is 'mas'"),
        ({"prompts": {"shared": "by_examples"}}, "prompts.shared is 'by_examples'"),
        ({"privacy": {"name": "fixed"}}, "privacy.name is 'fixed'"),
    ],
)
def test_what_needs_an_aggregate_is_refused(make_recipe, changes, key):
    strategy = {"exchange": "nothing", **changes.pop("strategy", {})}
    with pytest.raises(ConfigError) as caught:
        make_recipe(strategy=strategy, **changes)
    name = key.split(" ")[0]
    assert f"{key}, but with strategy.exchange = 'nothing' every hospital trains alone and " in str(
        caught.value
    )
    assert f"leave {name} out" in str(caught.value)
