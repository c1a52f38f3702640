"""The engine ``flower``: Flower's simulation runtime, called from this process."""

import os

import pytest
import torch

from fedkd.errors import ConfigError
from server.engines import flower
from server.engines.flower import workers_of
from server.scoreboard import Observer

ON_FLOWER = {"name": "flower", "num_threads": 1, "num_workers": 2}


class Listener(Observer):
    def __init__(self):
        self.heard = []

    def client_progress(self, partition_id, what, done, total):
        self.heard.append((partition_id, what, done, total))


@pytest.mark.ray
def test_flower_gives_the_same_student_as_inprocess_with_images_and_teacher_of_the_caller(run):
    changes = {"num_rounds": 3, "objective": {"name": "fopro"}}
    here = run(**changes, engine={"num_threads": 1})
    listener = Listener()
    there = run(**changes, engine=ON_FLOWER, observers=[listener])
    assert there.summary["student_sha256"] == here.summary["student_sha256"]
    assert there.summary["test"] == here.summary["test"]
    trained = {(0, "trained", 11, 11), (1, "trained", 9, 9), (2, "trained", 6, 6)}
    assert len(listener.heard) == 9
    assert set(listener.heard) == trained


def test_workers_share_cores_clients_and_gpus(opened, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))

    def workers(**engine):
        return workers_of(opened(engine={"name": "flower", **engine}))

    assert workers() == (3, 2, 0.0)  # no more than clients
    assert workers(num_threads=4) == (2, 4, 0.0)
    assert workers(num_threads=16) == (1, 16, 0.0)
    assert workers(num_workers=5) == (5, 1, 0.0)
    with pytest.raises(ConfigError) as error:
        workers(num_workers=2, gpus_per_worker=0.5)
    assert str(error.value) == (
        "engine.num_workers is 2 and engine.gpus_per_worker 0.5, but there are 0 GPUs to use; "
        "lower one of them"
    )


def test_workers_share_gpus(opened, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def workers(**engine):
        experiment = opened(engine={"name": "flower", **engine})
        object.__setattr__(experiment, "device", torch.device("cuda"))
        return workers_of(experiment)

    assert workers() == (2, 4, 1.0)
    assert workers(num_workers=3) == (3, 2, 2 / 3)
    assert workers(gpus_per_worker=0.5) == (3, 2, 0.5)
    with pytest.raises(ConfigError, match="num_workers is 3 and engine.gpus_per_worker 1"):
        workers(num_workers=3, gpus_per_worker=1)


def test_what_flower_says_when_it_ends_alone_is_told(opened, tmp_path, monkeypatch):
    def breaks(*_, **__):
        raise RuntimeError("crashed") from ValueError("ActorPool is empty")

    monkeypatch.setattr(flower, "run_simulation", breaks)
    with pytest.raises(flower.FedkdError) as error:
        flower.run(lambda grid, context: None, flower.Clients(opened(engine=ON_FLOWER)))
    assert str(error.value) == (
        "Flower's simulation runtime ended: ValueError('ActorPool is empty')"
    )
