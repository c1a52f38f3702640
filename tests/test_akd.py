"""AKD: exploration also seeks what the student does not match, and the safeguard that bounds it."""

import pytest
import torch

from fedkd import seeding
from fedkd.losses.distillation import feature_distillation
from tests.prompt_scene import (
    full_prompts,
    make_explorer,
    make_student,
    natural,
    run,
    target,
    teacher_on,
)


@pytest.fixture(scope="module")
def teacher():
    return teacher_on(natural(512, seed=1))


@pytest.fixture(scope="module")
def student():
    return make_student()


@pytest.fixture(scope="module")
def warm(teacher):
    """State after a warm-up."""
    explorer = make_explorer(teacher)
    run(explorer, target(256, seed=2), 0, 60)
    return explorer.state()


def test_more_gamma_means_more_disagreement(teacher, student, warm):
    # Oracle O12: from one warm start, on held-out images.
    images = target(128, seed=9)
    images_train = target(256, seed=2)
    disagreements = []
    for gamma in (0.0, 1.0, 3.0):
        explorer = make_explorer(teacher, gamma=gamma)
        explorer.load_state(warm)
        run(explorer, images_train, 60, 80, student)
        _, prompted = full_prompts(explorer.generator, images)
        with torch.no_grad():
            loss = feature_distillation(student(images), teacher.features(prompted))
        disagreements.append(float(loss.mean()))
    assert disagreements[0] < disagreements[1] < disagreements[2]


def test_gamma_without_a_projection_is_refused(teacher):
    explorer = make_explorer(teacher, gamma=0.3, warm_up_steps=1)
    images = target(8, seed=2)
    rng = seeding.generator(0, "explore")
    explorer.step(images, rng)  # the warm-up needs none
    with pytest.raises(ValueError, match=r"gamma is 0\.3; the student's projection is needed"):
        explorer.step(images, rng)


def test_the_student_is_asked_only_when_akd_is_in_effect_and_without_gradients(teacher, student):
    calls = []

    def project(images):
        calls.append((images.clone(), torch.is_grad_enabled()))
        return student(images)

    explorer = make_explorer(teacher, gamma=0.3, warm_up_steps=2)
    images = target(8, seed=2)
    rng = seeding.generator(0, "explore")
    logs = [explorer.step(images, rng, project) for _ in range(3)]
    assert [terms["gamma_effective"] for terms in logs] == [0.0, 0.0, 0.3]
    assert [terms.get("disagreement", 0) > 0 for terms in logs] == [False, False, True]
    assert len(calls) == 1
    assert torch.equal(calls[0][0], images)  # un-prompted
    assert not calls[0][1]


def test_gamma_is_halved_while_the_running_prior_exceeds_that_of_clean_images(teacher):
    # The guard alone, with the priors of made-up steps.
    explorer = make_explorer(teacher, gamma=0.8, warm_up_steps=1)
    seen = []
    for prior in (5.0, 5.0, 5.0, 0.0, 0.0, 0.0, -40.0, 0.0, 0.0, 0.0):
        explorer._guard(prior, 4.0)
        seen.append((round(explorer.running_prior, 4), explorer.effective_gamma))
    assert explorer.running_clean_prior == pytest.approx(4.0)
    # Running means by hand: 5, 5, 5, 4.5, 4.05, 3.645, 0.9 * 3.645 - 4 = -0.7195, ...
    assert [mean for mean, _ in seen[:7]] == [5, 5, 5, 4.5, 4.05, 3.645, -0.7195]
    # No halving during the warm-up, then four of them, then back, one doubling a step, to 0.8.
    assert [gamma for _, gamma in seen] == [0.8, 0.4, 0.2, 0.1, 0.05, 0.1, 0.2, 0.4, 0.8, 0.8]


def test_gamma_is_halved_ten_times_at_most(teacher):
    explorer = make_explorer(teacher, gamma=1.0, warm_up_steps=0)
    for _ in range(15):
        explorer._guard(5.0, 4.0)
    assert explorer.effective_gamma == 2**-10
