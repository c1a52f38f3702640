"""The command ``fedkd``: parses arguments, runs a command, prints errors as one line.

Only light modules are imported here; a command's own module is imported when it is called.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TypeAlias

from fedkd.errors import ClientFailure, FedkdError, plain
from server.signals import Terminated, interruptible

PROGRAM = "fedkd"
USER_ERROR = 2
FAILED = 1
INTERRUPTED = 130
TERMINATED = 143

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Federated knowledge distillation for long-tailed medical images.",
        epilog="Example: fedkd run configs/quickstart.toml strategy.name=mas num_rounds=20",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in (
        ("run", "run a federation and leave a run directory"),
        ("centralized", "train the same method on the pooled images, without a federation"),
        ("compare", "compare strategies and other settings over seeds, cell by cell"),
        ("partition", "show which hospital has which classes, as a table and a picture"),
        ("config", "print every key of the resolved recipe, with its meaning"),
        ("pretrain", "make a teacher from your own images or procedural ones, offline"),
    ):
        command = _add(commands, name, text)
        command.add_argument("config", help="recipe, a TOML file")
        _add_overrides(command, "config values to change, such as training.learning_rate=0.001")
        if name in ("run", "centralized"):
            command.add_argument(
                "--resume",
                action="store_true",
                help="go on with the newest unfinished run of this very recipe, if there is one",
            )
        if name in ("partition", "pretrain"):
            command.add_argument("--output", help="folder for the files (default: see the command)")
        if name == "partition":
            command.add_argument(
                "--sites",
                metavar="FOLDER",
                help="write what each hospital, and the server, would have on its own disk, to "
                "rehearse a federation of real sites: an empty folder, or none yet",
            )
    resume = _add(commands, "resume", "go on with an interrupted run, to the same bits")
    resume.add_argument("run", metavar="RUN", help="its run directory")
    _add_overrides(resume, "where it goes on, such as engine.name=ray or engine.num_workers=4")
    _add_shortcut(commands)
    _add_probe(commands)
    _add_spectrum(commands)
    _add_evaluate(commands)
    _add_prompts(commands)
    _add_report(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_data(commands)
    _add_teachers(commands)
    commands.add_parser("list", help="list data sets, students, teachers, strategies and the rest")
    return parser


def _add(commands: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:])


def _add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def _add_shortcut(commands: Subparsers) -> None:
    text = "does a federation learn a scanner's mark: train and test over degradations and folds"
    shortcut = _add(commands, "shortcut", text)
    shortcut.add_argument("config", help="recipe with a section [shortcut], a TOML file")
    _add_overrides(shortcut, "config values to change, such as shortcut.class=nv")
    shortcut.add_argument(
        "--degradations",
        default="0,0.25,0.5,0.75,1",
        metavar="D,D,...",
        help="shares of the class's images that get the mark (default: %(default)s)",
    )
    shortcut.add_argument(
        "--folds", type=int, default=3, metavar="K", help="folds (default: %(default)s)"
    )
    shortcut.add_argument(
        "--output", help="folder for runs and files (default: NAME-shortcut in the recipe's output)"
    )


def _add_probe(commands: Subparsers) -> None:
    text = "is a teacher worth distilling from for these images: kNN, linear probe, a picture"
    probe = _add(commands, "probe", text)
    probe.add_argument(
        "teacher", metavar="TEACHER", help="its name, or a file that `fedkd pretrain` wrote"
    )
    probe.add_argument(
        "dataset", metavar="NAME | CONFIG", help="a data set's name, or a recipe (a TOML file)"
    )
    _add_overrides(probe, "config values to change, such as data.size=97 or teacher.input_size=97")
    probe.add_argument(
        "--test", action="store_true", help="score the test split as well: once, at the end"
    )
    probe.add_argument("--output", help="folder for the files (default: in the recipe's output)")


def _add_spectrum(commands: Subparsers) -> None:
    text = "which spatial frequencies networks respond to: curves, heat maps, band shares"
    spectrum = _add(commands, "spectrum", text)
    spectrum.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run directory (its best student; RUN:teacher its teacher, RUN:initial its student "
        "before training), a teacher's name, or a file that `fedkd pretrain` wrote; config values "
        "to change, such as data.size=64, may follow",
    )
    spectrum.add_argument(
        "--data",
        metavar="NAME | CONFIG",
        help="a data set's name, or a recipe (default: the recipe of the first run)",
    )
    spectrum.add_argument(
        "--by", choices=("class", "hospital"), help="a row for each class or hospital"
    )
    spectrum.add_argument(
        "--split", choices=("val", "train", "test"), default="val", help="default: val"
    )
    spectrum.add_argument(
        "--images",
        type=int,
        default=256,
        metavar="N",
        help="at most so many images, drawn at random; with --by of each group (default: 256)",
    )
    spectrum.add_argument(
        "--score",
        choices=("ce", "top", "features"),
        help="whose gradient: cross-entropy of the true label (default for students alone), "
        "largest logit, or random projections of the features (default otherwise)",
    )
    spectrum.add_argument(
        "--rounds",
        action="store_true",
        help="a row for each round whose student was kept (keep_students_every)",
    )
    spectrum.add_argument("--output", help="folder for the files (default: in the recipe's output)")
    spectrum.set_defaults(overrides=[])


def _add_evaluate(commands: Subparsers) -> None:
    text = "score a run's student on one of its splits, or on other images of the same classes"
    evaluate = _add(commands, "evaluate", text)
    evaluate.add_argument("run", metavar="RUN", help="a run directory")
    _add_overrides(evaluate, "settings of --data, such as data.size=64")
    evaluate.add_argument(
        "--split",
        choices=("val", "test", "train"),
        help="which images (default: val, with --data test)",
    )
    evaluate.add_argument(
        "--student",
        default="best",
        metavar="best | last | round:N | FILE",
        help="whose predictions (default: best, the one chosen on val)",
    )
    evaluate.add_argument(
        "--data",
        metavar="NAME | CONFIG",
        help="other images, for external validation: a data set's name, or a recipe",
    )
    evaluate.add_argument("--output", help="folder for the files (default: in RUN/evaluations)")


def _add_prompts(commands: Subparsers) -> None:
    text = "look at the Fourier prompts of a run's hospitals: a page of pictures, and numbers"
    prompts = _add(commands, "prompts", text)
    prompts.add_argument("run", metavar="RUN", help="a run directory, of the objective fopro")
    prompts.add_argument(
        "--split",
        choices=("train", "val"),
        default="train",
        help="whose images are prompted: the hospital's own ones of train (default) or val",
    )
    prompts.add_argument(
        "--images",
        type=_positive,
        default=3,
        metavar="N",
        help="images to show of each hospital: of its largest class, then of its rarest "
        "(default: 3)",
    )
    prompts.add_argument(
        "--seed",
        type=_not_negative,
        metavar="S",
        help="which images and which prompts are drawn (default: the run's seed)",
    )
    prompts.add_argument("--output", help="folder for the files (default: RUN/prompts)")


def _add_report(commands: Subparsers) -> None:
    text = "write one page of a run, of several runs or of a comparison, and its numbers as files"
    report = _add(commands, "report", text)
    report.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, finished or not (several are set side by side), or the folder of "
        "one comparison",
    )
    report.add_argument(
        "--output",
        help="folder for the page (default: the run's or the comparison's own; of several runs "
        "`report` in the folder that holds them all)",
    )


def _add_predict(commands: Subparsers) -> None:
    text = "class probabilities of image files by the student of a run, as CSV"
    predict = _add(commands, "predict", text)
    predict.add_argument("run", metavar="RUN", help="a run directory; its images are not needed")
    predict.add_argument(
        "images", nargs="+", metavar="IMAGES", help="image files, and folders that hold some"
    )
    _add_student(predict)
    predict.add_argument("--output", metavar="FILE", help="write the CSV there (default: stdout)")


def _add_export(commands: Subparsers) -> None:
    text = "write the student of a run as one file that needs no fedkd, with a model card"
    export = _add(commands, "export", text)
    export.add_argument("run", metavar="RUN", help="a run directory; its images are not needed")
    export.add_argument(
        "--format",
        choices=("onnx", "torchscript", "safetensors"),
        required=True,
        help="of the file",
    )
    _add_student(export)
    export.add_argument(
        "--output", metavar="FILE", help="the file (default: in the folder export of RUN)"
    )


def _add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--student",
        default="best",
        metavar="best | last | round:N | FILE",
        help="the one chosen on val (default), the final one, one that keep_students_every kept, "
        "or a file of weights",
    )


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(lowest: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {lowest} on")
    return int(text)


def _add_data(commands: Subparsers) -> None:
    text = "list data sets, fetch one, or check one"
    data = _add(commands, "data", text)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="what there is: images, classes, licence, whether it is here")
    for name, what, text in (
        ("fetch", "NAME", "download it to FEDKD_DATA, or say how to get it"),
        ("check", "NAME | CONFIG", "decode and count everything, and look for leaks"),
    ):
        action = _add(actions, name, text)
        action.add_argument(
            "source",
            metavar=what,
            help="a data set's name" + (", or a recipe (a TOML file)" if name == "check" else ""),
        )
        more = "; with a recipe any of its keys, such as data.size=64" if name == "check" else ""
        _add_overrides(action, f"settings of the data set, such as size=64{more}")


def _add_teachers(commands: Subparsers) -> None:
    text = "list teachers, fetch one, check one, or print its card"
    teachers = _add(commands, "teachers", text)
    actions = teachers.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="what there is: network, method, licence, whether it is here")
    for name, what, text in (
        ("fetch", "NAME", "download its weights to FEDKD_TEACHERS, or say how to get them"),
        ("check", "NAME | FILE", "check its file, open it strictly, and say what it is"),
        ("card", "NAME | FILE", "print all that is known of it"),
    ):
        action = _add(actions, name, text)
        action.add_argument(
            "source",
            metavar=what,
            help="a teacher's name, timm:<model> included"
            + (", or a file that `fedkd pretrain` wrote" if "FILE" in what else ""),
        )
        if name == "check":
            _add_overrides(action, "settings of the teacher, such as checkpoint=weights.pth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 is success, 1 a client that failed, 2 something for the user to mend, 130 Ctrl-C, 143 SIGTERM.
    At a second Ctrl-C or SIGTERM the process is killed by it at once.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no more of a list of arguments once an option has come between.
    if rest and (not hasattr(options, "overrides") or any(a.startswith("-") for a in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    if options.version:
        print(f"{PROGRAM} {version('fedkd')}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    try:
        with interruptible():
            import_module("server.commands.table").COMMANDS[options.command](options)
            sys.stdout.flush()
    except ClientFailure as error:
        print(f"{PROGRAM}: {plain(str(error))}", file=sys.stderr)
        return FAILED
    except FedkdError as error:
        for line in str(error).splitlines():
            print(f"{PROGRAM}: {plain(line)}", file=sys.stderr)
        return USER_ERROR
    except (MemoryError, RuntimeError) as error:
        # What torch raises where it gets no memory has no type of its own on the CPU.
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        cause = next(iter(str(error).splitlines()), "Python gives no size")
        print(
            f"{PROGRAM}: there is not enough memory for this ({cause}); use fewer or smaller "
            "images, a smaller batch or network, or a machine with more",
            file=sys.stderr,
        )
        return USER_ERROR
    except BrokenPipeError:
        # Who read the output has gone, as `head` does; Python is not to complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt as error:
        is_sigterm = isinstance(error, Terminated)
        how = "terminated" if is_sigterm else "interrupted"
        # The notes say where, and how to go on.
        print(*(f"{PROGRAM}: {how}", *getattr(error, "__notes__", ())), file=sys.stderr)
        return TERMINATED if is_sigterm else INTERRUPTED
    return 0
