"""Spoiled tables and manifests, and the commands that read them."""

import shutil
from pathlib import Path

import numpy as np
from fuzz_materials import Case, copy_data
from fuzz_runs import spoiled_run
from fuzz_spoiling import spoil_json, spoil_table


def table(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    """A spoiled table or manifest."""
    kind = rng.choice(
        ["folder", "lists", "ham", "manifest", "report", "site"],
        p=[0.35, 0.12, 0.13, 0.1, 0.2, 0.1],
    )
    if kind == "report":
        return spoiled_run(rng, materials, folder, ["*.csv"])
    if kind == "site":
        return _site(rng, materials, folder)
    copy_data(materials, folder)
    if kind == "folder":
        spoil_table(rng, folder / "table.csv")
        more = rng.choice(["", "data.split_column=", "data.store=stream",
                           "data.classes=['a', 'b']", "data.require_all_sites=false"])  # fmt: skip
        overrides = [str(more)] if more else []
        if rng.random() < 0.3:
            return Case(folder, ["partition", "recipe.toml", "--output", "out", *overrides])
        return Case(folder, ["data", "check", "recipe.toml", *overrides])
    if kind == "lists":
        lists = sorted(folder.glob("*_skin1_0.01.csv"))
        spoil_table(rng, lists[int(rng.integers(0, len(lists)))])
        return Case(folder, ["data", "check", "lists.toml"])
    if kind == "ham":
        spoil_table(rng, folder / "ham.csv")
        return Case(folder, ["data", "check", "ham.toml"])
    shutil.copy(materials / "divided" / "partition.json", folder)
    spoil_json(rng, folder / "partition.json")
    given = ["partition.name=file", "partition.file=partition.json"]
    return Case(folder, ["partition", "recipe.toml", "--output", "out", *given])


def _site(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    from fedkd import config
    from fedkd.errors import FedkdError
    from fedkd.recipe import Recipe
    from fedkd.site import open_site

    whole = sorted((materials / "sites").iterdir())
    hospitals = [path for path in whole if path.name != "server" and (path / "site.json").is_file()]
    shutil.copytree(hospitals[0], folder / "site")
    if rng.random() < 0.5:
        spoil_json(rng, folder / "site" / "site.json")
    else:
        spoil_table(rng, folder / "site" / "labels.csv")

    def call() -> None:
        try:
            open_site(config.build(Recipe, {"data": {"size": 16}}), 0, 2, folder / "site")
        except FedkdError as error:
            raise SystemExit("\n".join(f"fedkd: {x}" for x in str(error).splitlines())) from None

    return Case(folder, ["open_site"], call=call)
