"""The command line: what it prints, leaves and returns, and that errors are one line."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread

from clients.factory import OBJECTIVES
from fedkd import config
from fedkd.data.augment import AUGMENTATIONS
from fedkd.data.catalog import DATASETS
from fedkd.losses.factory import LOSSES
from fedkd.models.factory import STUDENTS
from fedkd.partitions import manifest
from fedkd.partitions.divergence import label_divergence
from fedkd.partitions.factory import PARTITIONS
from fedkd.recipe import Recipe
from fedkd.teachers.zoo import TEACHERS
from fedkd.training import TrainingConfig
from server.cli import main
from server.commands.table import COMMANDS as ALL_COMMANDS
from strategies.factory import STRATEGIES

REGISTRIES = [DATASETS, PARTITIONS, AUGMENTATIONS, STUDENTS, TEACHERS, OBJECTIVES, LOSSES,
              STRATEGIES]  # fmt: skip
RECIPE = """
name = "tiny"
num_rounds = 2

[data]
name = "lesions"
size = 16
num_train = 64
num_sites = 2
num_val_per_class = 2
num_test_per_class = 2

[objective]
name = "supervised"
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of two tiny hospitals in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


def python(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)  # noqa: S603


# Help and version


@pytest.mark.parametrize("arguments", [["--help"], [], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = """
import sys
from server.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = {"torch", "flwr", "matplotlib", "numpy", "pandas", "ray", "sklearn", "pydantic"}
print(heavy & set(sys.modules), file=sys.stderr)
sys.exit(code)
"""
    done = python(code, *arguments)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert "fedkd" in done.stdout


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert set(COMMANDS) < set(ALL_COMMANDS)
    assert all(re.search(rf"^ +{name}\s", text, re.MULTILINE) for name in ALL_COMMANDS)


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedkd {version('fedkd')}\n"


# Bad input


def refused(arguments, capsys):
    code = main(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


COMMANDS = ["run", "centralized", "partition", "config", "pretrain"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_recipe_is_one_line_and_code_2(recipe, capsys, command):
    code, out, err = refused([command, "tini.toml"], capsys)
    assert (code, out) == (2, "")
    assert err == "fedkd: there is no config file tini.toml; did you mean tiny.toml?\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_broken_toml_is_one_line_and_code_2(tmp_path, capsys, command):
    path = tmp_path / "a.toml"
    path.write_text("num_rounds = = 3")
    code, out, err = refused([command, str(path)], capsys)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"fedkd: .*a.toml is not valid TOML.*line 1.*\n", err)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("num_round=3", "unknown key num_round .*; did you mean num_rounds?"),
        ("num_rounds=0", "num_rounds is 0 .* the command line; it must be greater than or eq"),
        ("num_rounds", "override 'num_rounds' is not key=value"),
        ("student.name=resnet9", "student.name is 'resnet9' .*'resnet8'"),
        ("engine.device=gpu", "engine.device is 'gpu'; it must be auto, cpu"),
        ("num_clients=3", "num_clients is 3 and partition.name is 'by_site'"),
        ("training.drop_last=true", "clients with too few training images"),
        ("data.num_sites=9999", "num_sites is 9999 but the largest class has only"),
        ("output=tiny.toml", "cannot make the run directory tiny.toml.*choose another output"),
        ("student.init=imagenet", "student.init is 'imagenet' but resnet8 has no ImageNet"),
    ],
)
def test_a_bad_override_is_one_line_and_code_2(recipe, capsys, override, text):
    extra = ["training.batch_size=64"] if "drop_last" in override else []
    code, _, err = refused(["run", recipe, override, *extra], capsys)
    assert code == 2
    (line,) = [line for line in err.splitlines() if not line.startswith("drawing")]
    assert re.match(f"fedkd: .*{text}", line)


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_bad_overrides_of_the_other_commands_are_one_line_and_code_2(recipe, capsys, command):
    if command == "pretrain":
        Path(recipe).write_text("seed = 0\n")
    code, out, err = refused([command, recipe, "sed=3"], capsys)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"fedkd: unknown key sed .*; did you mean seed\?\n", err)


def test_several_errors_are_a_line_each(recipe, capsys):
    code, _, err = refused(["run", recipe, "num_rounds=0", "seed=-1"], capsys)
    assert code == 2
    assert [line[:7] for line in err.splitlines()] == ["fedkd: "] * 2


def test_pretraining_with_too_long_a_warm_up_is_one_line_and_code_2(recipe, capsys):
    Path(recipe).write_text("steps = 3\nwarm_up_steps = 3\n")
    code, _, err = refused(["pretrain", recipe], capsys)
    assert code == 2
    assert err.startswith("fedkd: warm_up_steps is 3; it must be below steps = 3")


@pytest.mark.parametrize("command", ["partition", "pretrain"])
def test_an_output_that_is_a_file_is_one_line_and_code_2(recipe, capsys, command):
    settings = recipe
    if command == "pretrain":
        settings = "p.toml"
        Path(settings).write_text(
            "num_images = 2\nsteps = 1\nwarm_up_steps = 0\nbatch_size = 2\nsource_size = 8\n"
            "view_size = 8\nreading_size = 8\nstatistics_batches = 1\nnum_hidden = 2\n"
        )
    code, _, err = refused([command, settings, "--output", recipe], capsys)
    assert code == 2
    assert "fedkd: " in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train"], "invalid choice: 'train'"),
        (["run"], "the following arguments are required: config"),
        (["run", "a.toml", "--rounds", "3"], "unrecognized arguments: --rounds"),
    ],
)
def test_wrong_usage_is_explained_and_code_2(capsys, arguments, text):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert text in capsys.readouterr().err


# Commands


def test_list_shows_every_name_with_a_line(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for registry in REGISTRIES:
        for name in registry:
            assert any(re.match(rf"  {name}  +\S+", line) for line in lines), name


def test_run_prints_tables_and_leaves_the_run_directory(recipe, capsys):
    assert main(["run", recipe, "name=trial", "output=here"]) == 0
    out, err = capsys.readouterr()
    for text in ("balanced accuracy", "MCC", "macro-F1", "Cohen's kappa", "macro-AUROC",
                 "recall head (", "recall medium (", "recall tail (", "recall MEL (",
                 "balanced accuracy at hospital_0", "of the worst hospital", "training images",
                 "val (16)", "test (16)"):  # fmt: skip
        assert text in out, text
    path = Path(re.search(r"^run directory (.+)$", out, re.MULTILINE)[1])
    assert path.parent == Path("here/trial")
    summary = json.loads((path / "summary.json").read_text())
    assert f"student sha256 {summary['student_sha256']}\n" in out
    assert f"{summary['test']['balanced_accuracy']:.3f}" in out
    assert len(list(path.iterdir())) == 14
    assert f"report {path / 'report.html'}\n" in out
    assert [line for line in err.splitlines() if "loss" in line][-1].startswith("round 2/2")


def test_a_private_run_prints_what_is_known_of_its_privacy(recipe, capsys):
    assert main(["run", recipe, "num_rounds=1", "privacy.name=fixed"]) == 0
    printed = capsys.readouterr().out
    assert "privacy: epsilon is not known at delta 1e-05: the accounting holds for strat" in printed
    assert main(["centralized", recipe, "privacy.name=fixed"]) == 2
    assert "set privacy.name=none" in capsys.readouterr().err


def test_one_client_and_centralized_print_the_same_hash(recipe, capsys):
    hashes = []
    for arguments in (["run", recipe, "num_clients=1"], ["centralized", recipe]):
        assert main(arguments) == 0
        hashes.append(re.search(r"student sha256 (\w{64})", capsys.readouterr().out)[1])
    assert hashes[0] == hashes[1]


def test_partition_prints_the_table_and_writes_picture_csv_and_manifest(recipe, capsys, tmp_path):
    assert main(["partition", recipe, "--output", "out"]) == 0
    out = capsys.readouterr().out
    assert "hospital_0" in out
    assert re.search(r"^partition hash \w{64}$", out, re.MULTILINE)
    names = {".made-by-partition.json", "partition.csv", "partition.json", "partition.png"}
    assert {path.name for path in Path("out").iterdir()} == names
    table = pd.read_csv("out/partition.csv")
    assert table["total"].sum() == 64
    assert imread("out/partition.png").ndim == 3
    assert not (tmp_path / "runs").exists()


def test_partition_prints_divergences_and_what_is_missing_where(recipe, capsys):
    assert main(["partition", recipe, "partition.name=pathological", "num_clients=8"]) == 0
    out = capsys.readouterr().out
    assert "divergence: Jensen-Shannon, in bits, of a client's label distribution" in out
    table = pd.read_csv("runs/tiny/partition.csv").set_index("client")
    counts = table.drop(columns="total")
    divergences = label_divergence(counts.to_numpy())
    for (client, row), value in zip(counts.iterrows(), divergences, strict=True):
        line = re.search(rf"^│ {client} +│ +{value:.3f} │ (.*?) *│$", out, re.MULTILINE)
        assert line[1].split(", ") == list(row.index[row == 0])


def test_the_partition_of_a_run_is_made_again_from_its_file(recipe, capsys):
    made = ["partition.name=dirichlet", "num_clients=3", "seed=4"]
    assert main(["run", recipe, *made, "num_rounds=1"]) == 0
    capsys.readouterr()
    (folder,) = Path("runs/tiny").iterdir()
    written = json.loads((folder / "summary.json").read_text())["partition_hash"]
    again = ["partition.name=file", f"partition.file={folder}/partition.json"]
    assert main(["partition", recipe, *again, "--output", "out"]) == 0
    assert f"partition hash {written}\n" in capsys.readouterr().out
    clients = [json.loads((path / "partition.json").read_text())["clients"]
               for path in (folder, Path("out"))]  # fmt: skip
    assert clients[0] == clients[1]
    sets = [manifest.read(path / "partition.json").data_set for path in (folder, Path("out"))]
    assert sets[0] == sets[1] == config.load(Recipe, recipe).data_set()


def test_a_manifest_of_other_images_is_code_2(recipe, capsys):
    assert main(["partition", recipe, "--output", "out"]) == 0
    capsys.readouterr()
    again = ["partition.name=file", "partition.file=out/partition.json", "data.num_train=60"]
    assert main(["partition", recipe, *again]) == 2
    _, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("fedkd: ")]
    assert len(said) == 1
    assert said[0].startswith("fedkd: out/partition.json is the division of other images: 4 of its")
    assert "Traceback" not in err


def test_partition_without_an_output_goes_beside_the_runs(recipe, capsys):
    assert main(["partition", recipe, "partition.name=iid", "num_clients=3"]) == 0
    assert Path("runs/tiny/partition.csv").is_file()
    assert "client-2" in capsys.readouterr().out


def test_config_prints_a_recipe_that_is_the_one_it_was_given(recipe, capsys):
    assert main(["config", recipe, "seed=3", "training.clip_norm=1.5"]) == 0
    out = capsys.readouterr().out
    Path("printed.toml").write_text(out)
    expected = config.load(Recipe, recipe, ["seed=3", "training.clip_norm=1.5"])
    assert config.load(Recipe, "printed.toml") == expected
    assert all(f"\n{key} = " in out for key in TrainingConfig.model_fields)


def test_pretrain_writes_a_teacher_that_a_run_can_use(recipe, capsys):
    Path("p.toml").write_text(
        'name = "mine"\nnum_images = 40\nsteps = 2\nwarm_up_steps = 1\nbatch_size = 8\n'
        "source_size = 16\nview_size = 16\nreading_size = 16\nstatistics_batches = 1\n"
    )
    assert main(["pretrain", "p.toml", "--output", "teachers"]) == 0
    assert capsys.readouterr().out.strip() == "teachers/mine.safetensors"
    assert Path("teachers/mine.json").is_file()
    teacher = ["teacher.name=pretrained", "teacher.checkpoint=teachers/mine.safetensors"]
    changes = ["objective.name=ekd", "num_rounds=1"]
    assert main(["run", recipe, *teacher, *changes]) == 0


# Failure


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(RuntimeError("disk on fire"), 1, "failed"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_a_failed_client_is_code_1_and_ctrl_c_130(recipe, capsys, monkeypatch, error, code, status):
    def fail(*_):
        raise error

    monkeypatch.setattr("clients.node.train_epochs", lambda *_, **__: fail())
    assert main(["run", recipe]) == code
    out, err = capsys.readouterr()
    assert "run directory" not in out
    if code == 1:
        assert re.search(r"^fedkd: client 0 failed: Traceback", err, re.MULTILINE)
        assert "disk on fire" in err
        assert "client 0 (hospital_0) trained in round 1" in err
    (folder,) = Path("runs/tiny").iterdir()
    if code == 130:
        assert err.endswith(f"fedkd: interrupted in round 1; go on with: fedkd resume {folder}\n")
        assert "Traceback" not in err
    assert json.loads((folder / "summary.json").read_text())["status"] == status


def test_an_unexpected_error_is_a_bug_and_keeps_its_traceback(recipe, monkeypatch):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setitem(ALL_COMMANDS, "list", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


@pytest.mark.realdata
def test_the_partition_of_ham10000_is_by_its_four_sites(realdata, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FEDKD_DATA", str(realdata))
    path = Path(__file__).parents[1] / "configs" / "ham10000_sites.toml"
    assert main(["partition", str(path), "data.size=16", "--output", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "partition.csv")
    assert len(table) == 4
    assert (table["total"] > 0).all()


def test_overrides_may_come_after_an_option(recipe, tmp_path, capsys):
    command = ["partition", str(recipe), "--output", str(tmp_path / "out"), "num_clients=1"]
    assert main([*command, "seed=3"]) == 0
    assert "client-0" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/partition.json").read_text())["seed"] == 3
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--nonsense"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: num_clients=1 --nonsense" in capsys.readouterr().err


def test_a_reader_that_leaves_causes_no_traceback(recipe):
    code = "import sys; from server.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "config", str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
