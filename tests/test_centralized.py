"""One client is centralized training, to the bit, whatever the method and its options."""

import pytest

from clients.factory import OBJECTIVES
from server import simulate

AKD = {"gamma": 0.3, "warm_up_steps": 1, "steps_per_round": 2}
BANK = {"kept_views": 2, "renew_every": 2}

VARIANTS = {
    "gamma is above 0": {"explore": AKD},
    "gamma is above 0 and the prompts are shared": {
        "prompts": {"shared": "by_strategy"},
        "explore": AKD,
    },
    "views are kept": {"prompts": BANK, "teacher": {"views": "dihedral"}, "explore": AKD},
    "views of a control are kept": {
        "prompts": {**BANK, "generator": "amplitude_mix"},
        "augmentation": {"name": "none"},
    },
    "prompts mix amplitudes": {"prompts": {"form": "mix"}},
    "one prompt serves a batch": {"prompts": {"per": "batch"}},
    "prompts keep brightness": {"prompts": {"keep_dc": True}},
    "in float64": {"training": {"dtype": "float64", "optimizer": "adamw"}},
    "last batches are dropped": {"training": {"drop_last": True, "local_epochs": 2}},
    "images are drawn uniformly, with shuffling": {"training": {"optimizer": "sgd"}},
    "the loss is re-weighted": {"objective": {"name": "ekd", "loss": "ldam"}, "num_rounds": 3},
    "the learning rate falls and the distillation ramps down": {
        "schedule": {"name": "cosine"},
        "objective": {"name": "ekd", "ramp_down_after": 1, "balanced_distillation": True},
    },
    "the optimiser starts afresh": {"training": {"keep_optimizer_state": False}},
    "BatchNorm stays local": {"strategy": {"exchange": "without_batchnorm"}},
    "there is no momentum": {"training": {"optimizer": "sgd", "momentum": 0.0}},
    "weights decay and gradients are clipped": {
        "training": {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.5}
    },
}

NOTHING_ALONE = {
    "the prompts are shared": {"prompts": {"shared": "by_strategy"}},
    "the prompts are shared by images": {"prompts": {"shared": "by_examples"}},
    "students are weighed by mas": {"strategy": {"name": "mas"}},
    "students are weighed by mas_inv": {"strategy": {"name": "mas_inv"}},
    "students are weighed by mas_drw": {"strategy": {"name": "mas_drw"}},
    "a fraction of the clients is sampled": {"strategy": {"fraction_train": 0.1}},
}


def sha(run):
    return run.summary["student_sha256"]


@pytest.fixture(scope="module")
def plain(make_recipe, hospitals, tiny_teacher):
    """Hash of three centralized rounds of the tiny recipe as it is."""
    return sha(
        simulate(make_recipe(num_rounds=3), **hospitals, teacher=tiny_teacher, centralized=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_one_client_equals_centralized_training_to_the_bit(run, objective, optimizer, dtype):
    sampling = "uniform" if objective == "moco" else "balanced"
    config = {
        "objective": {"name": objective},
        "training": {"optimizer": optimizer, "dtype": dtype, "sampling": sampling},
        "augmentation": {"name": "dihedral_jitter"},
    }
    federated = run(num_rounds=3, num_clients=1, **config)
    centralized = run(num_rounds=3, centralized=True, **config)
    assert sha(federated) == sha(centralized)
    assert federated.summary["test"] == centralized.summary["test"]
    assert federated.summary["best_student_sha256"] == centralized.summary["best_student_sha256"]


@pytest.mark.parametrize("what", list(VARIANTS))
def test_one_client_equals_centralized_training_also_when(run, plain, what):
    changes = {"num_rounds": 3, **VARIANTS[what]}
    federated = run(num_clients=1, **changes)
    centralized = run(centralized=True, **changes)
    assert sha(federated) == sha(centralized) != plain
    assert federated.summary["test"] == centralized.summary["test"]


@pytest.mark.parametrize("what", list(NOTHING_ALONE))
def test_what_concerns_several_clients_changes_no_bit_of_a_single_one(run, plain, what):
    assert sha(run(num_rounds=3, num_clients=1, **NOTHING_ALONE[what])) == plain


def test_one_client_has_all_images_of_all_hospitals(run, hospitals):
    rounds = run(num_rounds=1, num_clients=1).rounds
    assert rounds["num_seen"].tolist() == [sum(len(site) for site in hospitals["sites"])]
