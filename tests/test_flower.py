"""The engine ``flower``: Flower's simulation runtime, called from this process."""

import pytest

from server.engines import flower
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


def test_what_flower_says_when_it_ends_alone_is_told(opened, tmp_path, monkeypatch):
    def breaks(*_, **__):
        raise RuntimeError("crashed") from ValueError("ActorPool is empty")

    monkeypatch.setattr(flower, "run_simulation", breaks)
    with pytest.raises(flower.FedkdError) as error:
        flower.run(lambda grid, context: None, flower.Clients(opened(engine=ON_FLOWER)))
    assert str(error.value) == (
        "Flower's simulation runtime ended: ValueError('ActorPool is empty')"
    )
