"""Settings of engines and of failures, and what they mean for a recipe's hash."""

import pytest

from fedkd import config
from fedkd.engine import ENGINES, WHERE, EngineConfig
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe
from server.engines.factory import make_engine


def built(**engine):
    return config.build(Recipe, {"engine": engine})


def test_a_key_that_the_engine_does_not_read_is_refused():
    with pytest.raises(ConfigError, match=r"engine.address is 'auto', but engine.name is 'inproc"):
        built(address="auto")
    with pytest.raises(ConfigError, match="set engine.name = 'ray' or 'flower', or leave gpus_per"):
        built(gpus_per_worker=0.5)
    assert built(name="ray", address="auto", gpus_per_worker=0.5).engine.address == "auto"


def test_where_clients_run_is_no_part_of_the_hash():
    elsewhere = built(name="ray", num_workers=4, prefetch=0, max_state_mb=1)
    assert elsewhere.hash() == Recipe().hash()


@pytest.mark.parametrize(
    "engine",
    [{"num_threads": 1}, {"mixed_precision": "bfloat16"}, {"compile": True}, {"device": "cpu"},
     {"channels_last": False}],
)  # fmt: skip
def test_what_can_change_a_number_is_part_of_the_hash(engine):
    assert built(**engine).hash() != Recipe().hash()


def test_every_key_that_is_left_out_exists():
    assert set(EngineConfig.model_fields) >= WHERE


def test_the_default_engine_can_be_made_without_ray():
    assert callable(make_engine("inprocess").run)
    assert set(ENGINES) == set(EngineConfig.model_fields["name"].annotation.__args__)
