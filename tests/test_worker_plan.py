"""How many workers there are, and what each is given."""

import pytest

from fedkd.engine import EngineConfig
from fedkd.errors import ConfigError
from server.engines.worker_plan import Plan, make_plan


def plan(cores=8.0, gpus=0.0, cohort=6, on_gpu=None, ours=True, **engine):
    config = EngineConfig(name="ray", **engine)
    on_gpu = gpus > 0 if on_gpu is None else on_gpu
    return make_plan(config, cores, gpus, cohort, on_gpu=on_gpu, ours=ours)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Plan(6, 1, 1, 0)),
        ({"cohort": 20}, Plan(8, 1, 1, 0)),
        ({"num_threads": 2}, Plan(4, 2, 2, 0)),
        ({"num_threads": 16}, Plan(1, 16, 8, 0)),
        ({"num_workers": 2}, Plan(2, 4, 4, 0)),
        ({"num_workers": 3}, Plan(3, 2, 2, 0)),
        ({"num_workers": 16}, Plan(16, 1, 0.5, 0)),
        ({"gpus": 1}, Plan(1, 8, 8, 1)),
        ({"gpus": 4}, Plan(4, 2, 2, 1)),
        ({"gpus": 1, "num_workers": 4}, Plan(4, 2, 2, 0.25)),
        ({"gpus": 2, "num_workers": 3}, Plan(3, 2, 2, 0.5)),
        ({"gpus": 1, "num_workers": 3}, Plan(3, 2, 2, 0.3333)),
        ({"gpus": 4, "num_workers": 2}, Plan(2, 4, 4, 1)),
        ({"gpus": 1, "gpus_per_worker": 0.25}, Plan(4, 2, 2, 0.25)),
        ({"gpus": 1, "gpus_per_worker": 0.1}, Plan(6, 1, 1, 0.1)),
        ({"gpus": 4, "gpus_per_worker": 2}, Plan(2, 4, 4, 2)),
        ({"gpus": 1, "on_gpu": False}, Plan(6, 1, 1, 0)),
    ],
)
def test_a_plan_fills_the_machine_and_no_more(asked, expected):
    assert plan(**asked) == expected


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"on_gpu": True}, "this process has a GPU, but Ray has none"),
        ({"gpus": 1, "gpus_per_worker": 0}, "engine.gpus_per_worker is 0, but clients train on a"),
        ({"gpus_per_worker": 0.5}, "is 0.5, but clients train on the CPU"),
        ({"gpus": 4, "gpus_per_worker": 1.5}, "is 1.5; it must be a part of one GPU"),
        (
            {"gpus": 1, "gpus_per_worker": 0.4, "num_workers": 3},
            "3 workers with engine.gpus_per_worker = 0.4 need more than the 1 GPUs that Ray has, "
            "where 2 fit",
        ),
        ({"gpus": 1, "gpus_per_worker": 2}, "where 0 fit"),
        (
            {"num_workers": 5, "num_threads": 2, "ours": False},
            "5 workers of 2 CPU threads need 10 CPUs, but Ray has 8; lower",
        ),
    ],
)
def test_what_does_not_fit_is_refused(asked, text):
    with pytest.raises(ConfigError, match=text):
        plan(**asked)


def test_workers_that_share_cores_are_told_of(caplog):
    plan(num_workers=16)
    assert "16 workers with 1 CPU threads each share 8 cores" in caplog.text
    caplog.clear()
    plan(num_workers=8)
    assert caplog.text == ""
