"""What a page shows of the predictions and of the traffic of one recipe."""

from functools import partial

import numpy as np
import pandas as pd

from fedkd.data.images import Integers
from fedkd.metrics import recall_per_class
from server.many_clients import MAX_CLIENTS
from server.pictures.page import Block, DataTable, Drawing, Section
from server.pictures.report_bars import draw_recall, draw_reliability
from server.pictures.report_curves import draw_traffic
from server.pictures.report_heatmap import HeatMap, draw_heatmap, printable
from server.reporting.grouping import Group
from server.reporting.numbers import spread
from server.reporting.record import Record

_MAX_TEXTS = 150
_NO_TEST = "There are no test scores, as no run is finished."


def confusion(group: Group) -> Section:
    """Which classes are taken for which, over all seeds."""
    heading, runs = "Confusion matrix", group.finished
    if not runs:
        return Section(heading, (_NO_TEST,))
    names = runs[0].class_names
    matrix = sum(np.asarray(run.summary["test"]["confusion"], np.int64) for run in runs)
    assert isinstance(matrix, np.ndarray)
    total = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    shown = HeatMap(
        values=shares,
        texts=[[str(count) for count in row] for row in matrix],
        rows=names,
        columns=names,
        row_title="true class",
        column_title="predicted class",
        unit="share of the true class",
        highest=1.0,
    )
    summed = f", summed over {len(runs)} seeds" if len(runs) > 1 else ""
    return Section(
        heading,
        (
            f"Test images{summed}. Numbers are images, shades are shares of the row; rows without "
            "images are hatched.",
            Drawing(partial(draw_heatmap, shown), "Confusion matrix of the test images"),
        ),
    )


def recall(group: Group) -> Section:
    """Recall of head, medium and tail, and of each class."""
    heading, runs = "Head, medium and tail", group.finished
    if not runs:
        return Section(heading, (_NO_TEST,))
    table = runs[0].per_class
    by_group = {
        name: [_number(run.summary["test"]["recall"][name]) for run in runs]
        for name in runs[0].summary["test"]["recall"]
    }
    by_class = {
        name: [_number(run.summary["test"]["recall_per_class"][name]) for run in runs]
        for name in runs[0].class_names
    }
    order = table.sort_values("num_train", ascending=False, kind="stable")
    classes = list(zip(order["class"], order["group"], order["num_train"].astype(int), strict=True))
    frame = pd.DataFrame(
        {
            "class": order["class"],
            "group": order["group"],
            "training images": order["num_train"],
            "test images": order["num_test"],
            "test recall": [spread(by_class[name]) for name in order["class"]],
        }
    )
    whiskers = (
        " Bars are means over seeds, whiskers go from the lowest to the highest seed."
        if len(runs) > 1
        else ""
    )
    return Section(
        heading,
        (
            f"Mean test recall of the classes of each group, and recall of each class.{whiskers}",
            Drawing(
                partial(draw_recall, by_group, classes, by_class),
                "Test recall of head, medium and tail classes, and of each class",
            ),
            DataTable(frame),
        ),
    )


def sites(group: Group) -> Section:
    """Recall of each class at each hospital."""
    heading, runs = "Hospitals and classes", group.finished
    parts = [run.confusion_by_site() for run in runs]
    if not parts or not all(parts):
        text = "predictions_test.csv is missing, so there is no table by hospital."
        return Section(heading, (_NO_TEST if not runs else text,))
    names = list(parts[0])
    matrices: list[Integers] = [
        np.sum([part[name] for part in parts if name in part], axis=0) for name in names
    ]
    values = np.stack([recall_per_class(matrix) for matrix in matrices])
    found = [matrix.diagonal() for matrix in matrices]
    total = [matrix.sum(axis=1) for matrix in matrices]
    shown = HeatMap(
        values=values,
        texts=[
            [f"{v:.2f}\n{f}/{t}" if t else "" for v, f, t in zip(*row, strict=True)]
            for row in zip(values, found, total, strict=True)
        ],
        rows=names,
        columns=runs[0].class_names,
        row_title="hospital",
        column_title="class",
        unit="test recall",
        highest=1.0,
    )
    summed = f" (summed over {len(runs)} seeds)" if len(runs) > 1 else ""
    return Section(
        heading,
        (
            f"Test recall of each class at each hospital, below it found and all images{summed}; "
            "hatched: the hospital has no test image of the class. Cells of few images say little.",
            Drawing(partial(draw_heatmap, shown), "Test recall by hospital and class"),
        ),
    )


def calibration(group: Group) -> Section:
    """Whether the student is as sure as it is right."""
    heading = "Calibration"
    runs = [run for run in group.finished if run.summary["test"].get("reliability")]
    if not runs:
        text = "The run noted no reliability bins (an older fedkd made it), so none are drawn."
        return Section(heading, (_NO_TEST if not group.finished else text,))
    bins = [run.summary["test"]["reliability"] for run in runs]
    images = np.array([one["num_images"] for one in bins])
    total = images.sum(axis=0)
    pooled = []
    for name in ("confidence", "accuracy"):
        means = np.array([[_number(v) for v in one[name]] for one in bins])
        summed = np.nansum(means * images, axis=0)
        pooled.append(np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0))
    ece = spread([_number(run.summary["test"].get("ece")) for run in runs])
    words = f" Bins hold the predictions of all {len(runs)} seeds." if len(runs) > 1 else ""
    return Section(
        heading,
        (
            f"Expected calibration error on test: {ece}. Bars show how often the student is right "
            "among predictions of a confidence; on the dashed line it would be as sure as it is "
            f"right. The error is biased upwards where bins have few images.{words}",
            Drawing(
                partial(draw_reliability, pooled[0].tolist(), pooled[1].tolist(), total.tolist()),
                "Reliability diagram: accuracy over confidence",
            ),
        ),
    )


def weights(group: Group) -> Section:
    """What the server gave each client's student for a weight, round by round."""
    heading, record = "Aggregation weights", _first_with_clients(group)
    if record is None:
        return Section(heading, ("No round is finished, so there are no weights yet.",))
    names = record.summary["clients"]
    if len(names) == 1:
        return Section(heading, ("There is one client, so nothing was aggregated.",))
    if record.recipe.strategy.exchange == "nothing":
        return Section(heading, ("Nothing travelled, so nothing was aggregated.",))
    if len(names) > MAX_CLIENTS:
        text = (
            f"There are {len(names):,} clients: clients.csv has the weight of each in each round."
        )
        return Section(heading, (text,))
    wide = record.clients.pivot_table(index="partition_id", columns="round", values="weight")
    wide = wide.reindex(index=range(len(names)))
    size = record.counts.sum(axis=1)
    share = size / size.sum()
    few = wide.size <= _MAX_TEXTS
    values = wide.to_numpy(np.float64)
    shown = HeatMap(
        values=values,
        texts=[[f"{v:.2f}" if np.isfinite(v) else "" for v in row] for row in values]
        if few
        else (),
        rows=[
            f"{printable(name, 14)} ({part:.1%})" for name, part in zip(names, share, strict=True)
        ],
        columns=[str(number) for number in wide.columns],
        row_title="client",
        column_title="round",
        unit="weight",
    )
    only = f" Of the run with seed {record.seed}." if len(group.records) > 1 else ""
    return Section(
        heading,
        (
            f"Weight of each client's student in the aggregate, brackets: its share of training "
            f"images; hatched: it did not train in the round.{only}",
            Drawing(partial(draw_heatmap, shown), "Aggregation weights by client and round"),
        ),
    )


def traffic(group: Group) -> Section:
    """What travelled and what it took."""
    heading, record = "Communication and compute", _first_with_clients(group)
    if record is None:
        return Section(heading, ("No round is finished, so nothing was counted yet.",))
    rounds = [one.rounds for one in group.records if not one.rounds.empty]
    seconds = [
        one.clients.groupby("round")["seconds"].sum().reset_index()
        for one in group.records
        if not one.clients.empty
    ]
    counted = "bytes_down" in record.rounds
    columns = {"bytes_down": "MB down", "bytes_up": "MB up"} if counted else {}
    table = record.clients.groupby("partition_id", sort=True)
    frame = pd.DataFrame({"client": table["client"].first(), "rounds": table.size()})
    for column, label in columns.items():
        frame[label] = [f"{value / 1e6:,.3f}" for value in table[column].sum()]
    frame["images seen"] = [f"{value:,}" for value in table["num_seen"].sum()]
    frame["client seconds"] = [f"{value:,.1f}" for value in table["seconds"].sum()]
    blocks: list[Block] = []
    if counted:
        down, up = (record.rounds[name].sum() / 1e6 for name in ("bytes_down", "bytes_up"))
        blocks.append(
            f"In all {down:,.3f} MB went down to the clients and {up:,.3f} MB came up from them "
            f"in {len(record.rounds)} rounds (seed {record.seed}; 1 MB = 10^6 bytes). Counted is "
            "the payload of training messages: the bytes of all tensors and, upwards, 8 for each "
            "number of the metrics, before the transport adds its own."
        )
    else:
        blocks.append("The run noted no bytes (an older fedkd made it).")
    blocks.append(
        f"Client seconds are the clients' own time, {record.clients['seconds'].sum():,.1f} s in "
        f"all, for {int(record.clients['num_seen'].sum()):,} images seen (each once per epoch); "
        "they depend on the machine and on what else it does."
    )
    blocks.append(
        Drawing(
            partial(draw_traffic, rounds, seconds), "Megabytes and client seconds of each round"
        )
    )
    if len(frame) <= MAX_CLIENTS:
        blocks.append(DataTable(frame, f"By client (seed {record.seed})"))
    else:
        blocks.append(f"{len(frame):,} clients took part; clients.csv has each.")
    return Section(heading, tuple(blocks))


def _first_with_clients(group: Group) -> Record | None:
    return next((one for one in group.records if not one.clients.empty), None)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
