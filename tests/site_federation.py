"""A federation whose hospitals open their own folders, in one process, as Flower would run it."""

from pathlib import Path

from flwr.app import Context, RecordDict

from clients import app as client_app
from clients.app import ContextMemory, make_app
from fedkd import config
from fedkd.data.site_writing import write_sites
from fedkd.experiment import open_data
from fedkd.recipe import Recipe
from server.app import app as server_app
from server.engines.inprocess import InProcessGrid

SMALL = {
    "name": "sites",
    "num_rounds": 2,
    "num_clients": 3,
    "data": {
        "name": "lesions",
        "size": 16,
        "num_train": 90,
        "imbalance_factor": 8,
        "num_val_per_class": 4,
        "num_test_per_class": 3,
        "num_sites": 3,
    },
    "partition": {"name": "by_site"},
    "training": {"batch_size": 8, "learning_rate": 2e-3},
    "prompts": {"latent_dim": 6},
    "explore": {"warm_up_steps": 2, "steps_per_round": 1, "batch_size": 4},
    "student": {"name": "resnet8"},
    "engine": {"num_threads": 1},
}


def recipe_with(**changes):
    values = {key: dict(v) if isinstance(v, dict) else v for key, v in SMALL.items()}
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    return config.build(Recipe, values)


def write_folders(recipe, folder):
    """The folders of the hospitals, by partition id, and the server's."""
    splits, divided = open_data(recipe)
    *sites, server = write_sites(folder, splits, divided, recipe.seed, recipe.data_set())
    return sites, server


class Recorder(InProcessGrid):
    """Keeps every message that goes to a hospital, and what every answer held when it came."""

    def __init__(self, app, num_clients):
        super().__init__(app, num_clients)
        self.sent, self.told = [], []

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.told += [_held(reply.content) for reply in replies if not reply.has_error()]
        return replies


def _held(content):
    """Plain copies: strategies empty a reply while they sum it."""
    return {
        "arrays": {
            name: {key: tuple(array.shape) for key, array in record.items()}
            for name, record in content.array_records.items()
        },
        "metrics": {name: dict(record) for name, record in content.metric_records.items()},
        "words": {name: dict(record) for name, record in content.config_records.items()},
    }


def make_grid(path, sites):
    """Each node as a SuperNode with a data-path of its own; None has none."""
    grid = Recorder(make_app(client_app._node_of_run, ContextMemory()), len(sites))
    for context, folder in zip(grid._contexts.values(), sites, strict=True):
        del context.node_config["num-partitions"]
        if folder is not None:
            context.node_config["data-path"] = str(folder)
        context.run_config["config"] = str(path)
    return grid


def run_sites(recipe, path: Path, sites, server):
    """Run the ServerApp over hospitals; returns the Grid."""
    path.write_text(config.dump(recipe))
    grid = make_grid(path, sites)
    run_config = {"config": str(path), "server-data": str(server)}
    server_app(grid, Context(1, 0, {}, RecordDict(), run_config))
    return grid
