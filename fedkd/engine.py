"""Where clients run, and what is done with those that fail: settings, and what they allow."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedkd.config import Section

EngineName = Literal["inprocess", "ray", "flower"]

ENGINES: dict[EngineName, str] = {
    "inprocess": "in this process, one after another or on threads; nothing to start",
    "ray": "on Ray workers, of this machine or of a cluster that is there already",
    "flower": "in Flower's simulation runtime; `flwr run` takes the same app to real sites",
}

# Keys of [engine] that say where and how fast, never what: every engine gives the same bits.
WHERE = {"name", "address", "num_workers", "gpus_per_worker", "prefetch", "max_state_mb"}


class EngineConfig(Section):
    """Where clients run."""

    name: EngineName = "inprocess"
    """inprocess: in this process, through a Flower Grid; nothing to start. ray: on Ray workers.
    flower: in Flower's simulation runtime. All give the same student, to the bit, with the same
    `num_threads`."""
    address: str | None = None
    """Of a Ray cluster: auto (the one of this machine), ray://host:10001 or host:6379. Not given
    means that Ray is started on this machine for the run, and ended with it. For ray."""
    num_workers: int | None = Field(default=None, ge=1, le=10_000)
    """Clients that train at the same time: threads with inprocess (not given means 1), processes
    with ray and flower (not given means one for each `num_threads` cores, or as many as share the
    GPUs, at most the clients of a round)."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs that each worker is given, a fraction where several share one: 0.25 puts four workers on
    a GPU. Not given means all GPUs divided by `num_workers`. For ray and flower."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1 ..."""
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch for each client that trains; not given means torch's own choice, and
    with several workers the cores divided by them. It can change the last bits."""
    mixed_precision: Literal["no", "bfloat16"] = "no"
    """bfloat16: backbones of students, and of teachers whose teacher.precision is full, run under
    autocast; weights, heads, losses, Fourier transforms and sums stay float32, and so does what is
    saved. Changes numbers. Not with training.dtype = float64."""
    channels_last: bool = True
    """Memory layout of students, whose convolutions bring batches into it. Can change the last
    bits."""
    compile: bool = False
    """torch.compile for the backbone that a process trains its clients' students with: minutes at
    the start of every process, faster steps on a GPU. Needs a C++ compiler. Can change the last
    bits."""
    prefetch: int = Field(default=2, ge=0, le=64)
    """Batches that are read, pinned and sent ahead to a GPU while it computes; 0 reads each when
    its turn comes. Without effect on a CPU."""
    max_state_mb: int = Field(default=4096, ge=0)
    """Memory for what clients keep between rounds (optimiser, previous student ...), in MB = 10^6
    bytes; beyond it the states that have waited longest go to files, and come back when their
    client's turn comes. With ray it is Ray that does so, by its object store's size."""

    @model_validator(mode="after")
    def _keys_belong_to_the_engine(self) -> Self:
        for key, value, engines in (
            ("address", self.address, ("ray",)),
            ("gpus_per_worker", self.gpus_per_worker, ("ray", "flower")),
        ):
            if value is not None and self.name not in engines:
                raise ValueError(
                    f"engine.{key} is {value!r}, but engine.name is {self.name!r}, which has no "
                    f"use for it; set engine.name = {' or '.join(map(repr, engines))}, or leave "
                    f"{key} out"
                )
        return self


class FailuresConfig(Section):
    """What is done when a client raises, dies or does not answer in time."""

    policy: Literal["stop", "continue", "retry"] = "stop"
    """stop: the run ends with the client's error. continue: the round is aggregated without it,
    also where its reply may not be used (values that are not finite, wrong shapes ...).
    retry: it is asked again, elsewhere where there is an elsewhere; if that does not help, the run
    ends."""
    retries: int = Field(default=2, ge=1, le=100)
    """With retry: how often a client is asked again in a round."""
    max_fraction: float = Field(default=0.5, gt=0, lt=1)
    """With continue: the largest fraction of a round's clients that may fail. A round beyond it
    keeps the student as it was; the run goes on, and ends with exit code 1."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds after which a client that has not answered counts as failed; not given waits as long
    as its worker or site lives. For ray and flower: what runs in this process cannot be left."""
    max_update_norm: float | None = Field(default=None, gt=0)
    """Largest Euclidean norm of a client's update, over all parameters, what is shared of prompts
    included and BatchNorm's statistics not; a reply beyond it is refused, and the client counts as
    failed. Not given refuses none for its size."""
