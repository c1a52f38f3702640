import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef

from fedkd.models import states
from fedkd.prediction import predict
from server.evaluation import on_the_server, report_test, score, validate


@pytest.fixture
def student(opened):
    """A student whose BatchNorm statistics are not those of a fresh one."""
    experiment = opened()
    network = experiment.build_student()
    with torch.no_grad():
        network(experiment.loader(0).pixels(np.arange(11)))
    return network


def test_probabilities_are_the_softmax_of_the_classifier_without_prior(opened, student):
    experiment = opened()
    images = experiment.splits.val
    probabilities = predict(student, experiment.held_out_loader("val"), 5)
    assert probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(12), rel=1e-12)
    with torch.no_grad():
        logits = student.eval()(torch.from_numpy(images.images).float() / 255).logits
    expected = logits.double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_the_batch_size_does_not_matter(opened, student, batch_size):
    loader = opened().held_out_loader("val")
    one = predict(student, loader, 12)
    np.testing.assert_allclose(predict(student, loader, batch_size), one, rtol=1e-4)


def test_no_image_gives_no_row(opened, student):
    loader = opened().held_out_loader("val")
    loader.indices = loader.indices[:0]
    assert predict(student, loader, 12).shape == (0, 4)


def test_evaluation_leaves_the_student_as_it_was(opened, student):
    before = states.sha256(student.state_dict())
    predict(student.train(), opened().held_out_loader("val"), 5)
    assert states.sha256(student.state_dict()) == before


def test_val_and_test_are_scored_on_their_own_images(opened, student):
    experiment = opened()
    arrays, predicting = student.state_dict(), on_the_server(experiment)
    val = validate(experiment, predicting, arrays, 1)
    test, probabilities = report_test(experiment, predicting, arrays, 1)
    assert (val.num_images, test.num_images) == (12, 14)
    for result, name in ((val, "val"), (test, "test")):
        split = getattr(experiment.splits, name)
        predicted = predict(student, experiment.held_out_loader(name), 256).argmax(axis=1)
        assert result.balanced_accuracy == pytest.approx(
            balanced_accuracy_score(split.labels, predicted)
        )
        assert result.mcc == pytest.approx(matthews_corrcoef(split.labels, predicted))
    assert np.array_equal(probabilities, predict(student, experiment.held_out_loader("test"), 256))


def test_groups_sites_and_classes_have_their_names(opened):
    experiment = opened()
    images = experiment.splits.val
    result = score(experiment, "val", np.eye(4)[images.labels])
    assert result.recall_per_class == dict.fromkeys("abcd", 1.0)
    assert result.recall == {"head": 1.0, "medium": 1.0, "tail": 1.0}
    assert result.balanced_accuracy_per_site == dict.fromkeys(("north", "south", "west"), 1.0)


def test_tail_recall_is_that_of_the_classes_rare_in_training(opened):
    experiment = opened()
    tail = experiment.groups()["tail"]
    images = experiment.splits.val
    wrong = np.where(np.isin(images.labels, tail), 0, images.labels)
    result = score(experiment, "val", np.eye(4)[wrong])
    assert result.recall["tail"] == 0
    assert result.recall["head"] == result.recall["medium"] == 1


def test_a_site_without_images_in_a_split_is_undefined_and_never_the_worst(opened):
    images = opened().splits.val
    images = dataclasses.replace(images, sites=np.minimum(images.sites, 1))
    result = score(opened({"val": images}), "val", np.eye(4)[(images.labels + 1) % 4])
    assert np.isnan(result.balanced_accuracy_per_site["west"])
    assert result.worst_site == "north"


def test_float64_students_are_evaluated_in_float64(opened):
    experiment = opened(training={"dtype": "float64"})
    probabilities = predict(experiment.build_student(), experiment.held_out_loader("val"), 256)
    assert not np.array_equal(probabilities, probabilities.astype(np.float32))
