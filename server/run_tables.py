"""Tables of a run directory: the partition, scores by class, predictions."""

import numpy as np
import pandas as pd

from fedkd.data.images import LabelledImages
from fedkd.partition import Partition
from fedkd.prediction import Probabilities
from server.scoreboard import Scoreboard


def partition_table(train: LabelledImages, divided: Partition) -> pd.DataFrame:
    """Training images per client (rows) and class (columns)."""
    counts = divided.counts(train.labels, train.num_classes)
    table = pd.DataFrame(counts, columns=list(train.class_names))
    table.insert(0, "client", list(divided.client_names))
    table["total"] = counts.sum(axis=1)
    return table


def per_class_table(board: Scoreboard) -> pd.DataFrame:
    """A row per class: its group, images per split, recall on val and test."""
    assert board.best_val is not None, "the run is not finished"
    assert board.test is not None, "the run is not finished"
    splits = board.experiment.splits
    group = {int(c): name for name, rows in board.experiment.groups().items() for c in rows}
    return pd.DataFrame(
        {
            "class": list(splits.train.class_names),
            "group": [group[number] for number in range(splits.train.num_classes)],
            "num_train": splits.train.class_counts(),
            "num_val": splits.val.class_counts(),
            "num_test": splits.test.class_counts(),
            "val_recall": list(board.best_val.recall_per_class.values()),
            "test_recall": list(board.test.recall_per_class.values()),
        }
    )


def predictions_table(images: LabelledImages, probabilities: Probabilities) -> pd.DataFrame:
    """A row per image: id, lesion or patient, site, label, prediction, class probabilities."""
    names = np.asarray(images.class_names)
    table = pd.DataFrame(
        {
            "id": list(images.ids),
            "group": list(images.groups),
            "site": np.asarray(images.site_names)[images.sites],
            "label": names[images.labels],
            "prediction": names[probabilities.argmax(axis=1)],
        }
    )
    columns = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in names])
    return pd.concat([table, columns], axis=1)


def own_predictions_table(board: Scoreboard) -> pd.DataFrame:
    """The same for val, as each client's own student predicts the client's own part of it.

    These are the students after the local training of the round that is best on val, or of the
    last round before it in which the client trained.
    """
    experiment = board.experiment
    tables = []
    for number, probabilities in sorted(board.best_own.items()):
        images = experiment.splits.val.subset(experiment.held_out_rows["val"][number])
        table = predictions_table(images, probabilities)
        table.insert(0, "client", experiment.partition.client_names[number])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
