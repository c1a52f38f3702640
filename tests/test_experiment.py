"""Opening an experiment: images, clients, teacher and students of a recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.data.images import GroupBounds, LabelledImages
from fedkd.errors import StudentError
from fedkd.experiment import open_data, open_experiment
from fedkd.models import states
from fedkd.partitions.factory import partition
from fedkd.teachers.frozen import Teacher

LESIONS = {"name": "lesions", "size": 16, "num_train": 60, "num_sites": 2,
           "num_val_per_class": 1, "num_test_per_class": 1}  # fmt: skip


def test_each_hospital_has_its_own_images_in_one_store(opened, hospitals):
    experiment = opened()
    assert experiment.num_clients == 3
    assert experiment.partition.client_names == ("north", "south", "west")
    for number, site in enumerate(hospitals["sites"]):
        loader = experiment.loader(number)
        assert loader.data is experiment.splits.train
        assert np.array_equal(loader.data.images[loader.indices], site.images)
        assert np.array_equal(loader.labels, site.labels)
        assert set(loader.data.sites[loader.indices]) == {number}
    assert len(set(experiment.splits.train.ids)) == len(experiment.splits.train)


def test_one_client_pools_the_given_hospitals(opened, hospitals):
    experiment = opened(num_clients=1)
    assert experiment.partition.client_names == ("all",)
    assert len(experiment.loader(0)) == sum(len(site) for site in hospitals["sites"])


def test_hospitals_without_a_name_get_a_number(opened, hospitals):
    sites = [replace(site, site_names=("all",)) for site in hospitals["sites"]]
    assert opened({"sites": sites}).partition.client_names == ("site-0", "site-1", "site-2")


def test_hospitals_cut_from_one_store_are_named_after_their_own_site(opened, hospitals):
    store = hospitals["val"]
    sites = [store.subset(np.flatnonzero(store.sites == number)) for number in range(3)]
    assert opened({"sites": sites}).partition.client_names == ("north", "south", "west")


def test_the_data_and_the_partition_are_those_of_the_recipe(make_recipe, tiny_teacher):
    recipe = make_recipe(data=LESIONS, partition={"name": "dirichlet", "min_examples": 4},
                         num_clients=3, seed=5)  # fmt: skip
    experiment = open_experiment(recipe, teacher=tiny_teacher)
    train = experiment.splits.train
    same = partition(recipe.partition, train, 3, seed=5)
    assert experiment.partition.hash == same.hash
    splits, divided = open_data(recipe)
    assert divided.hash == same.hash
    assert np.array_equal(splits.test.images, experiment.splits.test.images)


def test_another_seed_divides_other_images_but_sees_the_same(make_recipe):
    changes = {"data": LESIONS, "partition": {"name": "iid"}, "num_clients": 3}
    (first, one), (second, two) = (open_data(make_recipe(**changes, seed=s)) for s in (0, 1))
    assert np.array_equal(first.train.images, second.train.images)
    assert one.hash != two.hash


def test_head_medium_and_tail_divide_all_classes(opened):
    groups = opened().groups()
    assert list(groups) == ["head", "medium", "tail"]
    assert sorted(np.concatenate(list(groups.values()))) == [0, 1, 2, 3]
    assert 0 in groups["head"]
    assert 2 in groups["tail"], "3 images of 26"


def test_published_bounds_count_the_images_of_all_three_splits(opened):
    experiment = opened()
    counts = [split.class_counts().tolist() for split in
              (experiment.splits.train, experiment.splits.val, experiment.splits.test)]  # fmt: skip
    assert counts == [[13, 6, 3, 4], [3, 3, 3, 3], [4, 3, 3, 4]]
    bounds = GroupBounds(tail_below=10, head_above=12)
    bounded = replace(experiment, splits=replace(experiment.splits, bounds=bounds))
    groups = {name: classes.tolist() for name, classes in bounded.groups().items()}
    assert groups == {"head": [0], "medium": [1, 3], "tail": [2]}


def test_supervised_runs_without_a_teacher_even_if_one_is_given(opened):
    experiment = opened(objective={"name": "supervised"})
    assert experiment.teachers == ()
    assert experiment.build_student().p_free is None


def test_the_given_teacher_is_copied_frozen_and_in_the_dtype_of_the_run(opened, tiny_teacher):
    experiment = opened(training={"dtype": "float64"})
    teacher = experiment.teacher_of(0)
    assert teacher.backbone is not tiny_teacher
    assert teacher.num_features == 10
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {p.dtype for p in teacher.parameters()} == {torch.float64}
    assert {p.dtype for p in experiment.build_student().parameters()} == {torch.float64}
    assert {p.dtype for p in tiny_teacher.parameters()} == {torch.float32}
    pixels = experiment.loader(0).pixels(np.arange(3))
    expected = tiny_teacher(pixels.float()).double()
    torch.testing.assert_close(teacher.features(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_given_teacher_object_keeps_its_normalisation_and_head(opened, teacher):
    head = nn.Linear(10, 4)
    given = Teacher("mine", teacher, num_features=10, mean=(0.5,) * 3, std=(0.2,) * 3,
                    input_size=20, head=head, head_kind="contrastive")  # fmt: skip
    used = opened(teacher=given).teacher_of(1)
    assert used is not given
    assert (used.name, used.input_size, used.head_kind) == ("mine", 20, "contrastive")
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(used.features(pixels), given.features(pixels))


def test_a_teacher_without_batchnorm_gets_measured_moments_for_prompts_only(opened):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    changes = {"teacher": Flat()}
    assert not opened(**changes, objective={"name": "ekd"}).teacher_of(0).has_reference
    experiment = open_experiment(opened().recipe.model_copy(), **_data(opened), teacher=Flat())
    assert experiment.teacher_of(0).has_reference
    assert all(
        moments.mean.isfinite().all() for moments in experiment.teacher_of(0).reference.values()
    )


def _data(opened):
    splits = opened().splits
    return {"sites": [splits.train], "val": splits.val, "test": splits.test}


def test_every_student_of_an_experiment_begins_with_the_same_bits(opened):
    experiment = opened()
    first, second = experiment.build_student(), experiment.build_student()
    assert first is not second
    assert states.sha256(first.state_dict()) == states.sha256(second.state_dict())
    other = opened(seed=1).build_student()
    assert states.sha256(other.state_dict()) != states.sha256(first.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_arrive_unrounded(opened, dtype):
    source = opened().build_student().double()
    with torch.no_grad():
        source.fc.weight += torch.pi * 1e-9
    experiment = opened(initial_student=source, training={"dtype": dtype})
    weight = experiment.build_student().fc.weight
    assert weight.dtype == getattr(torch, dtype)
    assert torch.equal(weight, source.fc.weight.to(weight.dtype))


def test_initial_weights_that_do_not_fit_are_listed(opened):
    experiment = opened(initial_student={"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(StudentError, match=r"the initial student does not fit: \d+ problem"):
        experiment.build_student()


def test_a_student_starts_from_a_teacher_whatever_the_objective_if_it_is_its_network(opened):
    experiment = opened(objective={"name": "supervised"}, student={"init": "teacher"})
    assert experiment.teachers == ()
    with pytest.raises(StudentError, match="are different architectures; choose the same one"):
        experiment.build_student()


def test_nothing_is_drawn_or_read_for_data_that_are_given(opened, monkeypatch):
    monkeypatch.setattr("fedkd.experiment.load_splits", lambda _: pytest.fail("it was"))
    opened()


def test_labelled_images_of_the_store_name_hospital_and_image(opened, hospitals):
    train = opened().splits.train
    assert isinstance(train, LabelledImages)
    assert train.ids[:2] == ("0/0", "0/1")
    assert train.ids[-1] == "2/5"
