"""What a page shows of one recipe: its outcome, how it was made, its data and its curves.

A recipe is a run, or several that differ in nothing but their seed.
"""

from collections import Counter
from functools import partial

import numpy as np
import pandas as pd

from server.comparison.sentences import LEAST_SEEDS
from server.failures import listed
from server.many_clients import MAX_CLIENTS, spread_of_clients
from server.pictures.page import Alarm, Block, DataTable, Drawing, Section
from server.pictures.report_curves import draw_curves
from server.pictures.report_heatmap import HeatMap, draw_heatmap
from server.reporting.grouping import Group
from server.reporting.numbers import METRICS, NOTHING, scalars, spread, three
from server.reporting.protocol import changed_keys, command, sentences
from server.reporting.record import Record


def alarms(group: Group) -> list[Alarm]:
    """What a reader must know first: runs without test scores, missing clients, doubled seeds."""
    found = []
    if words := group.records[0].recipe.faults.in_words():
        found.append(Alarm(f"Simulated trouble (faults in the config): {words}."))
    for record in group.unfinished:
        why = f" ({record.summary['error'].strip()})" if record.summary.get("error") else ""
        found.append(
            Alarm(
                f"Not finished: the status of {record.path.name} (seed {record.seed}) is "
                f"{record.summary.get('status')!r}{why}. It has {len(record.rounds)} of "
                f"{record.recipe.num_rounds} rounds and no test scores."
            )
        )
    for record in group.records:
        missing = record.rounds.get("num_failed", pd.Series(dtype=int))
        aggregated = record.rounds.get("num_clients", pd.Series(dtype=int))
        if (aggregated == 0).any():
            kept = record.rounds["round"][aggregated == 0].astype(int).tolist()
            found.append(
                Alarm(
                    f"Too few clients: {record.path.name} (seed {record.seed}) kept the student as "
                    f"it was in {listed(kept)}, {len(kept)} of {len(missing)} rounds, as more than "
                    "failures.max_fraction of the clients failed or the strategy could not "
                    "aggregate those that were left."
                )
            )
        if missing.any():
            names = ", ".join(record.failures["client"].unique())
            found.append(
                Alarm(
                    f"Clients failed: {record.path.name} (seed {record.seed}) went on without them "
                    f"in {(missing > 0).sum()} of {len(missing)} rounds; students missing: "
                    f"{missing.sum()}, of {names}. failures.csv in the run directory says why."
                )
            )
    if group.doubled:
        names = ", ".join(record.path.name for record in group.doubled)
        found.append(
            Alarm(
                f"Left out: {names}. Another run of the same recipe and seed is shown; repeating a "
                "seed shows no uncertainty."
            )
        )
    return found


def outcome(group: Group) -> Section:
    """Scores on val and test, in words and as tables."""
    heading, runs = "Outcome", group.finished
    blocks: list[Block] = [*alarms(group)]
    if not runs:
        return Section(heading, (*blocks, *_so_far(group)))
    tests = [scalars(run.summary["test"]) for run in runs]
    vals = [scalars(run.summary["val"]) for run in runs]
    blocks += [_in_words(runs), _uncertainty(runs)]
    frame = pd.DataFrame(
        [
            {
                "metric": label,
                "val": spread([values[name] for values in vals]),
                "test": spread([values[name] for values in tests]),
                **(
                    {
                        f"seed {run.seed}": three(values[name])
                        for run, values in zip(runs, tests, strict=True)
                    }
                    if len(runs) > 1
                    else {}
                ),
            }
            for name, label in METRICS.items()
        ]
    )
    several = "mean ± sd over seeds; then test by seed" if len(runs) > 1 else "one run"
    blocks.append(DataTable(frame, f"Scores of the student chosen on val ({several})"))
    blocks.append(DataTable(_sites(runs), "By hospital: balanced accuracy over its classes"))
    if np.isnan([values["ece"] for values in tests]).all():
        blocks.append("The run noted no calibration error (ECE): an older fedkd made it.")
    return Section(heading, tuple(blocks))


def _in_words(runs: list[Record]) -> str:
    tests = [scalars(run.summary["test"]) for run in runs]
    mean = {
        name: float(np.nanmean([v[name] for v in tests] or [np.nan]))
        if not np.isnan([v[name] for v in tests]).all()
        else np.nan
        for name in METRICS
    }
    num = runs[0].summary["test"]["num_images"]
    rounds = ", ".join(f"{run.summary['best_round']}" for run in runs)
    worst = Counter(run.summary["test"]["worst_site"] for run in runs).most_common(1)[0]
    what = "Means over seeds" if len(runs) > 1 else "The student"
    place = f"{worst[0]}" + (f" ({worst[1]} of {len(runs)} seeds)" if len(runs) > 1 else "")
    return (
        f"{what} of round {rounds}, chosen on val, on {num:,} test images: balanced accuracy "
        f"{three(mean['balanced_accuracy'])}, MCC {three(mean['mcc'])}, recall of head, medium and "
        f"tail classes {three(mean['recall_head'])}, {three(mean['recall_medium'])} and "
        f"{three(mean['recall_tail'])}. Worst hospital: {place}, balanced accuracy "
        f"{three(mean['worst_site_balanced_accuracy'])}."
    )


def _uncertainty(runs: list[Record]) -> Block:
    if len(runs) >= LEAST_SEEDS:
        return (
            f"{len(runs)} seeds. Values after ± are standard deviations over seeds (n - 1); bands "
            "and whiskers go from the lowest to the highest seed. They show what the seed changes, "
            "not what other test images would."
        )
    seeds = "One seed" if len(runs) == 1 else f"{len(runs)} seeds"
    return (
        f"{seeds}: this page shows no uncertainty, and no difference to another run can be judged "
        f"by it. Run at least {LEAST_SEEDS} seeds; `fedkd compare` does."
    )


def _so_far(group: Group) -> list[Block]:
    rows = []
    for record in group.records:
        column = f"val_{record.recipe.evaluation.select_on}"
        if record.rounds.empty or record.rounds[column].isna().all():
            continue
        row = record.rounds.iloc[int(np.nanargmax(record.rounds[column]))]
        values = {
            label: three(float(row.get(f"val_{name}", np.nan))) for name, label in METRICS.items()
        }
        rows.append(
            {"seed": str(record.seed), "best round so far": str(int(row["round"])), **values}
        )
    if not rows:
        return ["No round is finished, so there is nothing to show yet."]
    frame = pd.DataFrame(rows).set_index("seed").T.rename_axis("val").reset_index()
    frame.columns = pd.Index(["val", *(f"seed {row['seed']}" for row in rows)])
    return [DataTable(frame, "Val scores of the best round so far")]


def _sites(runs: list[Record]) -> pd.DataFrame:
    images: Counter[str] = Counter()
    for name, matrix in runs[0].confusion_by_site().items():
        images[name] = int(matrix.sum())
    rows = []
    for name in runs[0].summary["test"]["balanced_accuracy_per_site"]:
        row: dict[str, str] = {"hospital": name, "test images": str(images[name])}
        for split in ("val", "test"):
            known = [run.summary[split]["balanced_accuracy_per_site"].get(name) for run in runs]
            row[split] = spread([value for value in known if value is not None])
        rows.append(row)
    return pd.DataFrame(rows)


def protocol(group: Group) -> Section:
    """How the runs were made."""
    record = group.records[0]
    changed = changed_keys(record.recipe)
    blocks: list[Block] = [*sentences(record)]
    if len(group.records) > 1:
        seeds = ", ".join(str(one.seed) for one in group.records)
        blocks.append(f"Repeated with the seeds {seeds}; nothing else differs.")
        changed = changed[changed["key"] != "seed"]
    if changed.empty:
        blocks.append("All keys of the config have their default values.")
    else:
        blocks.append(DataTable(changed, "Keys of the config that are not at their defaults"))
    return Section("Protocol", tuple(blocks))


def data(group: Group) -> Section:
    """Which client has which classes, and what val and test hold."""
    record = group.records[0]
    counts = record.counts
    shares = counts.astype(float)
    shares[counts == 0] = np.nan
    shown = HeatMap(
        values=shares,
        texts=[[f"{count:,}" if count else "0" for count in row] for row in counts],
        rows=[f"{name}" for name in record.summary["clients"]],
        columns=record.class_names,
        row_title="client",
        column_title="class",
        unit="training images (log scale)",
        logarithmic=True,
    )
    blocks: list[Block] = [
        f"Training images of each client and class; hatched: none. All in all {counts.sum():,}, "
        f"largest to smallest class {record.summary['train_imbalance']:.3g} : 1."
    ]
    hashes = {one.summary["partition_hash"] for one in group.records}
    if len(hashes) > 1:
        blocks.append(f"The division differs between seeds; this is the one of seed {record.seed}.")
    if len(counts) <= MAX_CLIENTS:
        blocks.append(Drawing(partial(draw_heatmap, shown), "Training images by client and class"))
    else:
        spread_over = spread_of_clients(pd.DataFrame(counts, columns=list(record.class_names)))
        caption = f"Of {len(counts):,} clients; partition.csv has each"
        blocks.append(DataTable(spread_over.rename_axis("").reset_index(), caption))
    finished = group.finished
    table = finished[0].per_class if finished else pd.DataFrame()
    if table.empty:
        blocks.append("Val and test counts are noted when a run is finished.")
    else:
        columns = {
            "class": "class",
            "group": "group",
            "num_train": "train",
            "num_val": "val",
            "num_test": "test",
        }
        blocks.append(DataTable(table[list(columns)].rename(columns=columns), "Images by split"))
    return Section("Data", tuple(blocks))


def curves(group: Group) -> Section:
    """Scores and losses over the rounds."""
    tables = [record.rounds for record in group.records if not record.rounds.empty]
    if not tables:
        return Section("Over the rounds", ("No round is finished, so there are no curves yet.",))
    chosen = [record.summary["best_round"] for record in group.finished]
    several = (
        " Lines are means over seeds, bands go from the lowest to the highest seed."
        if len(tables) > 1
        else ""
    )
    mark = " Vertical dashes mark the rounds whose students were tested." if chosen else ""
    return Section(
        "Over the rounds",
        (
            f"Scores on val after each round, and mean training losses of its clients.{several}"
            f"{mark}",
            Drawing(partial(draw_curves, tables, chosen), "Val scores and losses over the rounds"),
        ),
    )


def environment(group: Group) -> Section:
    """What tells the runs from others, and how to repeat them."""
    blocks: list[Block] = []
    for record in group.records:
        summary = record.summary
        facts = {
            "run directory": record.path.name,
            "command": command(record),
            "config hash": summary["config_hash"],
            "partition hash": summary["partition_hash"],
            "student sha256 (final)": summary.get("student_sha256", NOTHING),
            "student sha256 (tested)": summary.get("best_student_sha256", NOTHING),
            "versions": ", ".join(f"{k} {v}" for k, v in summary["versions"].items()),
            "engine": summary.get("engine", "not noted"),
            "platform": summary.get("platform", "not noted"),
            "wall clock": f"{summary.get('seconds', 0):,.1f} s",
        }
        blocks.append(
            DataTable(pd.DataFrame(facts.items(), columns=["what", f"seed {record.seed}"]))
        )
    blocks.append(
        "The same config, seed and machine give the same student to the bit; another processor, "
        "number of threads or version of torch may change the last bits."
    )
    return Section("Environment", tuple(blocks))
