"""Which tensors travel, and that those which do not are the client's own."""

import pytest
import torch

from clients.node import BEST_LOCAL, LOCAL, Node
from fedkd.errors import DataError
from fedkd.experiment import open_experiment
from fedkd.models.exchange import local_names
from fedkd.models.factory import StudentConfig, build_student
from tests.conftest import draw_images
from tests.test_centralized import sha

HEADS = {
    "all": set(),
    "backbone": {"p_free", "fc", "fc_free"},
    "without_projector": {"p_free"},
    "without_classifier": {"fc", "fc_free"},
}
PARTIAL = ["backbone", "without_projector", "without_classifier", "without_batchnorm"]


def student(**heads):
    return build_student(
        StudentConfig(name="resnet8"), num_classes=3, seed=0, **{"num_teacher_features": 5, **heads}
    )


@pytest.mark.parametrize(("exchange", "expected"), HEADS.items())
def test_heads_stay_by_their_names(exchange, expected):
    network = student()
    assert {name.split(".")[0] for name in local_names(network, exchange)} == expected
    whole = {name for name in network.state_dict() if name.split(".")[0] in expected}
    assert local_names(network, exchange) == whole


def test_moons_projector_is_a_projector():
    network = student(num_teacher_features=None, contrastive=True)
    names = local_names(network, "without_projector")
    assert names == {"p1.weight", "p1.bias", "p2.weight", "p2.bias"}


def test_fedbn_keeps_all_of_every_batchnorm_and_nothing_else():
    network = student()
    norms = [
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)
    ]
    keys = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{name}.{key}" for name in norms for key in keys}
    assert local_names(network, "without_batchnorm") == expected
    assert "p_free.1.running_mean" in expected


@pytest.fixture
def open_node(make_recipe, hospitals, tiny_teacher):
    def make(exchange, **changes):
        recipe = make_recipe(strategy={"exchange": exchange}, objective={"name": "ekd"}, **changes)
        return Node(open_experiment(recipe, **hospitals, teacher=tiny_teacher))

    return make


@pytest.mark.parametrize("exchange", PARTIAL)
def test_local_tensors_do_not_travel_and_come_back_in_the_next_round(open_node, exchange):
    node = open_node(exchange)
    own = local_names(node.experiment.build_student(), exchange)
    arrays = node.initial_arrays()
    assert not own & set(arrays)
    reply, state = node.train(0, arrays, {}, 1)
    assert set(state[LOCAL]) == own
    assert set(reply.arrays) == set(arrays)
    initial = node.experiment.build_student().state_dict()
    assert any(not torch.equal(state[LOCAL][name], initial[name]) for name in own)
    # Another client does not see them, whatever was trained before in this process.
    again, again_state = node.train(1, arrays, {}, 1)
    fresh, fresh_state = open_node(exchange).train(1, arrays, {}, 1)
    assert all(torch.equal(again.arrays[name], fresh.arrays[name]) for name in arrays)
    assert all(torch.equal(again_state[LOCAL][name], fresh_state[LOCAL][name]) for name in own)
    # What was trained in round 1 is where round 2 begins: with the server's other tensors as they
    # were, training is that of the student which the client had itself.
    second, _ = node.train(0, reply.arrays, state, 2)
    whole, _ = open_node("all").train(
        0, {**reply.arrays, **state[LOCAL]}, {**state, LOCAL: {}, BEST_LOCAL: {}}, 2
    )
    assert all(torch.equal(second.arrays[name], whole.arrays[name]) for name in arrays)


def test_a_client_remembers_its_tensors_as_of_the_best_round(open_node):
    node = open_node("without_classifier", num_rounds=3)
    arrays = node.initial_arrays()
    _, first = node.train(0, arrays, {}, 1)
    # Round 1 is the best when round 2 is trained, and no longer when round 3 is.
    _, second = node.train(0, arrays, first, 2, best_round=1)
    _, third = node.train(0, arrays, second, 3, best_round=2)

    def has(state, expected):
        return all(torch.equal(state[name], expected[name]) for name in expected)

    assert has(second[BEST_LOCAL], first[LOCAL])
    assert has(third[BEST_LOCAL], second[LOCAL])
    assert not has(third[BEST_LOCAL], first[LOCAL])
    kept, _ = (node._local_as_of(number, third) for number in (2, 3))
    assert has(kept, second[LOCAL])
    assert has(node._local_as_of(3, third), third[LOCAL])
    # A client that has not trained since has its last tensors for every later round.
    assert has(node._local_as_of(9, third), third[LOCAL])


# A local projector changes predictions only through later rounds; the others at once.
@pytest.mark.parametrize("exchange", ["backbone", "without_classifier", "without_batchnorm"])
def test_predictions_come_from_the_client_that_owns_the_image(run, exchange):
    config = {"strategy": {"exchange": exchange}, "objective": {"name": "ekd"}}
    result = run(num_rounds=3, **config)
    probabilities = result.board.test_probabilities
    assert probabilities.shape == (14, 4)
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    # One global student would predict otherwise: three hospitals have three.
    plain = run(num_rounds=3, objective={"name": "ekd"})
    assert not (probabilities == plain.board.test_probabilities).all()
    assert sha(result) != sha(plain)


@pytest.mark.parametrize("exchange", PARTIAL)
@pytest.mark.parametrize("centralized", [False, True])
def test_with_one_client_it_does_not_matter_what_travels(run, exchange, centralized):
    config = {"objective": {"name": "ekd"}, "num_rounds": 3, "num_clients": 1}
    partial = run(strategy={"exchange": exchange}, centralized=centralized, **config)
    whole = run(**config)
    assert partial.summary["test"] == whole.summary["test"]
    assert partial.summary["best_round"] == whole.summary["best_round"]
    for name, tensor in whole.student.state_dict().items():
        if name not in local_names(whole.student, exchange):
            assert torch.equal(partial.student.state_dict()[name], tensor), name


def test_every_held_out_image_needs_a_client(opened, hospitals):
    elsewhere = draw_images("far", [0, 1], [3, 3], ("north", "south", "west", "far"))
    with pytest.raises(DataError, match="2 val images belong to no client.*site 'far'.*exchange"):
        opened({"val": elsewhere}, strategy={"exchange": "backbone"})
    assert opened({"val": elsewhere}).held_out_rows["val"][0].size == 0


def test_a_local_projector_that_no_prediction_reads_needs_no_owner_of_an_image(run, opened):
    exchange = {"exchange": "without_projector"}
    assert not opened(strategy=exchange, objective={"name": "ekd"}).predicts_locally
    assert opened(strategy=exchange, objective={"name": "moon"}).predicts_locally
    one = {"strategy": exchange, "objective": {"name": "supervised"}}
    assert sha(run(**one)) == sha(run(objective={"name": "supervised"}))
