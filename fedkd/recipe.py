"""The recipe of a federation: everything that decides what is computed, and its defaults."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedkd.aggregation import BY_CLASS, SELECTS, STEPS, PrivacyConfig, StrategyConfig
from fedkd.checkpointing import CheckpointConfig
from fedkd.comparing import CompareConfig
from fedkd.config import Section
from fedkd.data.augment import AugmentationConfig
from fedkd.data.catalog import DataConfig
from fedkd.data.labelled_files import CHANGES_NO_NUMBER
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.data.thinning import LongTailConfig
from fedkd.engine import WHERE, EngineConfig, FailuresConfig
from fedkd.faults import FaultsConfig
from fedkd.fourier.config import CONTROLS, ExploreConfig, PromptConfig
from fedkd.losses.factory import LossConfig, LossName
from fedkd.models.factory import StudentConfig
from fedkd.partitions.factory import PartitionConfig
from fedkd.schedules import ScheduleConfig
from fedkd.shortcuts.marks import ShortcutConfig
from fedkd.teachers.config import TeacherConfig
from fedkd.training import TrainingConfig

# Keys of [data] that say where images lie and how they are read, not which they are.
PLACES = {"images", "csv", "lists", "split_csv", "metadata", "root"} | CHANGES_NO_NUMBER

TrackerName = Literal["tensorboard"]


class ObjectiveConfig(Section):
    """What a client minimises."""

    name: Literal["supervised", "fedprox", "moon", "moco", "ekd", "fopro"] = "fopro"
    """supervised (no teacher), fedprox (supervised, held near the received student), moon
    (supervised, contrasted with the client's previous student), moco (momentum contrast without
    labels, which makes a teacher), ekd (distillation from the plain teacher), fopro (EKD from the
    Fourier-prompted teacher)."""
    loss: LossName = "bsm"
    """Supervised loss of all classifiers; see `fedkd list`. ldam makes them cosine classifiers."""
    lambda_f: float = Field(default=3.0, ge=0)
    """Weight of the distillation term of ekd and fopro. With 0, class scores and class losses are
    those of the supervised loss."""
    ramp_down_after: int | None = Field(default=None, ge=0)
    """After so many rounds lambda_f falls linearly, from its full value in the next round to 0 one
    round after the last. Not given means it does not fall."""
    balanced_distillation: bool = False
    """Class-balanced EKD: in the last fifth of the rounds, weigh the distillation loss of an image
    by its class's effective number of images (losses.beta)."""


class FedProxConfig(Section):
    """Objective fedprox, and strategy fedprox, which adds the same term to any other objective."""

    mu: float = Field(default=0.01, ge=0)
    """Weight of the proximal term mu/2 |w - w_received|^2 over all parameters; 0 is FedAvg."""


class MoonConfig(Section):
    """Objective moon."""

    mu: float = Field(default=1.0, ge=0)
    """Weight of the contrastive term; 0 leaves the supervised loss of moon's student."""
    temperature: float = Field(default=0.5, gt=0)
    """Divides the cosines of the contrastive term."""
    frozen_mode: Literal["eval", "train"] = "eval"
    """Mode of the received and the previous student while they are compared with: eval as in the
    MOON authors' code, train (BatchNorm of the batch) as in Fed-MAS."""


class MoCoConfig(Section):
    """Objective moco: a teacher made by all hospitals, without labels.

    Its classifier stays untrained, so val and test are predicted by nearest neighbours among the
    labelled val images, val by those of other lesions or patients, and clients' own students are
    not evaluated. The teacher that is stored is the student of the round that is best on val.
    """

    queue_size: int = Field(default=512, ge=1)
    """Keys of earlier batches that an image is contrasted with; at most half as many as the client
    has images."""
    momentum: float = Field(default=0.99, ge=0, le=1)
    """Of the encoder that makes the keys: 0 makes them with the student of the step, 1 with the
    one that was received. It starts from the received student in every round."""
    temperature: float = Field(default=0.2, gt=0)
    """Divides the cosines of the contrastive loss."""
    view_size: int | None = Field(default=None, ge=8)
    """Side in px of the random crops that are contrasted; not given means that of the images."""


class EvaluationConfig(Section):
    """Evaluation on the val and test splits."""

    batch_size: int = Field(default=256, ge=1)
    """Images per forward pass."""
    select_on: Literal["balanced_accuracy", "mcc", "macro_f1", "macro_auroc"] = "balanced_accuracy"
    """Val metric by which the round is chosen whose student is tested."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many rounds without a better val score; not given means all rounds are run.
    Schedules still reckon with num_rounds."""
    personalised: bool = True
    """Each client also evaluates its own student, after its training, on its own part of the val
    split: the images of its site, or else a share of each class (within its site, if it is a part
    of one) like its share of the training images. Its class probabilities travel to the server,
    which writes them down. Not with moco, which trains no classifier."""


class Recipe(Section):
    """A federation from data to result; every key has a default."""

    name: str = Field(default="run", pattern=r"^\w[\w.-]*$")
    """Name of the experiment, used for the run's folder: letters, digits, `_`, `.` and `-`."""
    seed: int = Field(default=0, ge=0)
    """Seed of partition, initial student, client sampling and training. The data set has its own,
    so that runs with other seeds see the same images."""
    num_rounds: int = Field(default=10, ge=1, le=1_000_000)
    """Communication rounds, at most a million."""
    num_clients: int | None = Field(default=None, ge=1)
    """Hospitals. 1 puts all training images into one, whatever the partition; not given means
    one for each site with the partition by_site, and as many as they say with by_site_dirichlet
    and file."""
    output: str = "runs"
    """Folder under which every run makes a folder of its own."""
    keep_students_every: int = Field(default=0, ge=0)
    """Keep the global student of every so many rounds, and the initial one as round 0, in the run's
    folder students, for `fedkd spectrum --rounds`; 0 keeps none. No number depends on it."""
    data: DataConfig = LesionsConfig()
    """Images and their splits."""
    long_tail: LongTailConfig = LongTailConfig()
    """Makes the training images long-tailed, whatever the data set: some are left out, before they
    are divided over clients. Val and test stay as they are."""
    shortcut: ShortcutConfig = ShortcutConfig()
    """Marks images of one class as a scanner may, in train, val and test; see `fedkd shortcut`."""
    partition: PartitionConfig = PartitionConfig()
    """Which client has which training images."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of training images."""
    student: StudentConfig = StudentConfig()
    """Network that is trained."""
    teacher: TeacherConfig = TeacherConfig()
    """Network that is distilled from."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Local objective."""
    losses: LossConfig = LossConfig()
    """Settings of the supervised losses."""
    fedprox: FedProxConfig = FedProxConfig()
    """Settings of objective fedprox and of strategy fedprox."""
    moon: MoonConfig = MoonConfig()
    """Settings of moon."""
    moco: MoCoConfig = MoCoConfig()
    """Settings of moco."""
    prompts: PromptConfig = PromptConfig()
    """Fourier prompts of fopro."""
    explore: ExploreConfig = ExploreConfig()
    """How fopro trains its prompt generator."""
    training: TrainingConfig = TrainingConfig()
    """Local training."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate by round."""
    strategy: StrategyConfig = StrategyConfig()
    """Aggregation."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Noise that hides what one client sent."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation and selection."""
    engine: EngineConfig = EngineConfig()
    """Where clients run."""
    failures: FailuresConfig = FailuresConfig()
    """What is done with clients that fail."""
    faults: FaultsConfig = FaultsConfig()
    """Trouble that is simulated, to compare how strategies bear it."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is written to resume from."""
    tracking: tuple[TrackerName, ...] = ()
    """Where rounds are logged as they go, besides the run directory: tensorboard."""
    compare: CompareConfig = CompareConfig()
    """What `fedkd compare` varies."""

    @model_validator(mode="after")
    def _float64_is_not_rounded(self) -> Self:
        if self.engine.mixed_precision != "no" and self.training.dtype == "float64":
            raise ValueError(
                f"engine.mixed_precision is {self.engine.mixed_precision!r} with training.dtype = "
                "'float64', which mixed precision does not round; set engine.mixed_precision = "
                "'no', or training.dtype = 'float32'"
            )
        return self

    @model_validator(mode="after")
    def _moco_reads_no_label(self) -> Self:
        if self.objective.name != "moco":
            return self
        if self.strategy.name in BY_CLASS:
            raise ValueError(
                f"strategy.name is {self.strategy.name!r}, which reads the clients' classes, but "
                "objective.name = 'moco' sends none; choose another strategy, such as fedavg"
            )
        for key, value, allowed, why in (
            ("strategy.exchange", self.strategy.exchange, "all", "one teacher is made by all"),
            ("training.sampling", self.training.sampling, "uniform", "no label is to be read"),
        ):
            if value != allowed:
                raise ValueError(
                    f"{key} is {value!r}, but objective.name = 'moco' takes {allowed!r} only: {why}"
                )
        return self

    @model_validator(mode="after")
    def _controls_learn_nothing(self) -> Self:
        generator = self.prompts.generator
        if self.objective.name != "fopro" or generator not in CONTROLS:
            return self
        for key, value, default, what in (
            ("explore.gamma", self.explore.gamma, 0.0, "explore"),
            ("prompts.shared", self.prompts.shared, "no", "share"),
        ):
            if value != default:
                raise ValueError(
                    f"{key} is {value!r}, but prompts.generator = {generator!r} is a control, "
                    f"which learns nothing and has nothing to {what}; leave {key} out, or choose "
                    "a generator that learns"
                )
        return self

    @model_validator(mode="after")
    def _one_proximal_term(self) -> Self:
        if self.strategy.name == self.objective.name == "fedprox":
            raise ValueError(
                "strategy.name and objective.name are both 'fedprox', which would add the proximal "
                "term twice; choose objective.name = 'supervised', or another strategy, such as "
                "fedavg"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_aggregated(self) -> Self:
        if self.strategy.exchange != "nothing":
            return self
        for key, value, allowed in (
            ("strategy.name", self.strategy.name, "fedavg"),
            ("prompts.shared", self.prompts.shared, "no"),
            ("privacy.name", self.privacy.name, "none"),
        ):
            if value != allowed:
                raise ValueError(
                    f"{key} is {value!r}, but with strategy.exchange = 'nothing' every hospital "
                    f"trains alone and nothing is aggregated; leave {key} out ({allowed!r})"
                )
        return self

    @model_validator(mode="after")
    def _noise_hides_what_travels(self) -> Self:
        if self.privacy.name == "none":
            return self
        if self.strategy.name in STEPS:
            raise ValueError(
                f"strategy.name is {self.strategy.name!r} with privacy.name = "
                f"{self.privacy.name!r}, but Flower's wrapper adds its noise after the server's "
                "own step, where clipping no longer bounds what one client changes; choose "
                "uniform, or set privacy.name = 'none'"
            )
        if self.strategy.name in SELECTS:
            raise ValueError(
                f"strategy.name is {self.strategy.name!r} with privacy.name = "
                f"{self.privacy.name!r}, but noise that reckons with all clients of a round hides "
                "less where only some of them are averaged; choose uniform, or set privacy.name = "
                "'none'"
            )
        if self.failures.policy == "continue":
            raise ValueError(
                f"failures.policy is 'continue' with privacy.name = {self.privacy.name!r}, but "
                "noise that reckons with all clients of a round hides less where one is missing; "
                "choose 'retry' or 'stop', or set privacy.name = 'none'"
            )
        if self.prompts.shared != "no":
            raise ValueError(
                f"prompts.shared is {self.prompts.shared!r} with privacy.name = "
                f"{self.privacy.name!r}, but prompts would travel without noise; set "
                "prompts.shared = 'no'"
            )
        return self

    @model_validator(mode="after")
    def _faults_fit(self) -> Self:
        faults, policy = self.faults, self.failures.policy
        if faults.dropout and policy != "continue":
            raise ValueError(
                f"faults.dropout is {faults.dropout:g}, but failures.policy is {policy!r}, with "
                "which a client that does not answer ends the run; set failures.policy = 'continue'"
            )
        if faults.byzantine and faults.attack == "nan" and policy != "continue":
            raise ValueError(
                f"faults.attack is 'nan', but failures.policy is {policy!r}, with which the first "
                "of these updates ends the run; set failures.policy = 'continue'"
            )
        if faults.byzantine and self.strategy.exchange == "nothing":
            raise ValueError(
                "faults.byzantine is given, but with strategy.exchange = 'nothing' no update is "
                "sent that could be wrong; leave it out"
            )
        if faults.label_noise and self.objective.name == "moco":
            raise ValueError(
                "faults.label_noise is given, but objective.name = 'moco' reads no training label; "
                "leave it out"
            )
        if (faults.joins or faults.leaves) and self.privacy.name != "none":
            raise ValueError(
                f"faults.joins or faults.leaves is given with privacy.name = {self.privacy.name!r},"
                " but noise that reckons with all clients of a round hides less where some are "
                "not there; leave them out, or set privacy.name = 'none'"
            )
        late = {name: first for name, first in faults.joins.items() if first > self.num_rounds}
        if late:
            raise ValueError(
                f"faults.joins has {', '.join(f'{name} = {first}' for name, first in late.items())}"
                f", but num_rounds is {self.num_rounds}: it would never take part; raise "
                "num_rounds, or name an earlier round"
            )
        return self

    @model_validator(mode="after")
    def _views_fit(self) -> Self:
        self.teacher.check_views(
            self.objective.name, self.augmentation.name, self.prompts.kept_views
        )
        return self

    def data_set(self) -> dict[str, Any]:
        """Which training images: sections ``data`` and ``long_tail`` without ``PLACES``.

        Where images are marked, ``shortcut`` as well. Two machines with the same images have the
        same, wherever they keep them.
        """
        data = self.data.model_dump(mode="json", exclude=PLACES)
        values = {"data": data, "long_tail": self.long_tail.model_dump(mode="json")}
        if self.shortcut.is_given:
            values["shortcut"] = self.shortcut.model_dump(mode="json")
        return values

    def hash(self) -> str:
        """SHA-256 over all that can change a number.

        All but names, what is kept and logged, how files are read, where clients run, what a
        comparison varies, and a ``shortcut`` or ``faults`` that do nothing.
        """
        left_out: dict[str, Any] = {
            "name": True,
            "output": True,
            "keep_students_every": True,
            "tracking": True,
            "compare": True,
            "checkpoint": True,
            "data": CHANGES_NO_NUMBER,
            "engine": WHERE,
        }
        values = self.model_dump(mode="json", exclude=left_out)
        # Defaults of the strategy's options are not in its keys, which are None by default.
        values["strategy"] |= self.strategy.options()
        for section in ("shortcut", "faults"):
            if not getattr(self, section).is_given:
                del values[section]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
