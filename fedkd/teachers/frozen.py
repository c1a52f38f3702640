"""The teacher: a frozen network that takes pixels and normalises them, and its confidence."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import TeacherError
from fedkd.precision import Precision, run_backbone
from fedkd.teachers.moments import Moments, has_running_moments, measure_moments, record
from fedkd.teachers.moments import running_moments as read_running_moments

HeadKind = Literal["contrastive", "supervised", "none"]


class Observation(NamedTuple):
    """What Fourier prompts learn from in one pass, all differentiable in the pixels.

    Attributes:
        features: Float (batch, D).
        head_output: Of the pre-training head, float (batch, any); None without a head.
        moments: Feature moments of this batch, by the backbone's module names.
    """

    features: Tensor
    head_output: Tensor | None
    moments: dict[str, Moments]


class Teacher(nn.Module):
    """A frozen backbone with its input normalisation and, if kept, its pre-training head.

    Always in eval mode, without gradients to its weights; gradients to its input flow. The given
    modules are frozen in place, not copied.

    Args:
        name: For messages.
        backbone: Maps normalised images (batch, 3, height, width) to features (batch, D).
        num_features: D.
        mean: Subtracted from each channel of the pixels; None means pixels are used as they are.
        std: Divides each channel afterwards; > 0. None together with ``mean``.
        input_size: Side in px to which images are resized, bilinear and with antialiasing when
            they shrink; None means they are used as they come.
        head: Maps ``features[:, head_slice]`` to what ``head_kind`` says.
        head_kind: ``"contrastive"``: embeddings compared by their cosine; ``"supervised"``: class
            logits; ``"none"`` exactly when there is no head.
        head_slice: The features that the head takes; None means all.
        reference: Feature moments of the teacher's own data, by the backbone's module names.
            None means the running ones of its BatchNorm layers, where those are usable now.
        precision: Of the backbone, see :func:`fedkd.precision.run_backbone`. Moments stay as they
            are. Passes with a gradient are in full precision with ``"float16"``: gradients of
            moments, means over up to millions of values, are below its range (our choice; 94 % of
            them were 0 for the embedded teacher's prior on 32 images of 64 px, and none with
            bfloat16).

    Raises:
        ValueError: If arguments contradict each other.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        *,
        num_features: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        input_size: int | None,
        head: nn.Module | None,
        head_kind: HeadKind,
        head_slice: slice | None = None,
        reference: Mapping[str, Moments] | None = None,
        precision: Precision = "full",
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("mean and std must be given together, or neither")
        if (head is None) != (head_kind == "none"):
            raise ValueError(
                f"head_kind is {head_kind!r}; it must be 'none' exactly without a head"
            )
        self.name = name
        self.backbone = backbone
        self.num_features = num_features
        self.input_size = input_size
        self.head = head
        self.head_kind: HeadKind = head_kind
        self.head_slice = head_slice or slice(None)
        self._reference = dict(reference) if reference is not None else None
        self._has_running = has_running_moments(backbone)
        self.precision: Precision = precision
        self.register_buffer("mean", torch.tensor(mean or ()).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or ()).view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked: a teacher's BatchNorm statistics never move."""
        return super().train(False)

    def twin(self) -> Self:
        """The same teacher for another thread: modules of its own over the very same tensors.

        Moments are observed by hooks on modules, and hooks see the passes of every thread.
        """
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        return copy.deepcopy(self, shared)

    def prepare(self, pixels: Tensor) -> Tensor:
        """The backbone's input: pixels, resized and normalised as this teacher wants them."""
        size = self.input_size
        if size is not None and pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(
                pixels,
                size=(size, size),
                mode="bilinear",
                align_corners=False,
                antialias=size < max(pixels.shape[-2:]),
            )
        return (pixels - self.mean) / self.std if self.mean.numel() else pixels

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (batch, D) of pixels (batch, 3, height, width), differentiable in the pixels."""
        prepared = self.prepare(pixels)
        learns = prepared.requires_grad and torch.is_grad_enabled()
        full = self.precision == "float16" and learns
        return run_backbone(self.backbone, prepared, "full" if full else self.precision)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Features (batch, D) as a constant.

        Not under inference mode, which is a little faster: autograd refuses to save its tensors,
        and a loss such as ``(projection * target).sum()`` saves its target for the backward pass.
        """
        return self(pixels)  # type: ignore[no-any-return]

    def observe(self, pixels: Tensor) -> Observation:
        """Features, head output and feature moments of pixels (batch, 3, height, width)."""
        with record(self.backbone) as recording:
            features = self(pixels)
        head_output = None if self.head is None else self.head(features[:, self.head_slice])
        return Observation(features, head_output, recording.moments)

    @property
    def has_reference(self) -> bool:
        """Whether :attr:`reference` is there, given, measured or from BatchNorm."""
        return self._reference is not None or self._has_running

    @property
    def reference(self) -> dict[str, Moments]:
        """Feature moments of the teacher's own data, by the backbone's module names.

        Raises:
            TeacherError: If none were given or measured and BatchNorm has no usable ones.
        """
        if self._reference is not None:
            return self._reference
        if self._has_running:
            return read_running_moments(self.backbone)
        raise TeacherError(
            f"teacher {self.name!r} has no BatchNorm statistics (none, or all 0 and 1 as after "
            "folding), which Fourier prompts need; call teacher.measure_reference(batches) with "
            "some hundred natural images, or use objective.name = 'ekd'"
        )

    def measure_reference(self, batches: Iterable[Tensor]) -> None:
        """Set :attr:`reference` to the moments of these images, over all batches together.

        Args:
            batches: Pixels as the teacher takes them, float (any, 3, height, width), natural
                images; from 32 in all, they rank prompts as true BatchNorm statistics do.

        Raises:
            TeacherError: If there is no image or the backbone has no layer to observe.
        """

        def run(batch: Tensor) -> None:
            self(batch.to(self.mean.device, self.mean.dtype))

        moments = measure_moments(run, self.backbone, batches)
        if not moments:
            raise TeacherError(
                f"nothing could be measured on teacher {self.name!r}: it has no normalisation, "
                "convolution or linear layer, or no image was given; use objective.name = 'ekd'"
            )
        self._reference = moments

    def use_reference(self, moments: Mapping[str, Moments]) -> None:
        """Set :attr:`reference` to moments that were measured before, by module name."""
        self._reference = {
            name: Moments(one.mean.to(self.mean.device), one.var.to(self.mean.device))
            for name, one in moments.items()
        }


def confidence_loss(
    prompted: Observation, clean: Observation, head_kind: HeadKind, temperature: float
) -> Tensor:
    """Scalar in nats, lower where the teacher is more confident of the prompted images.

    A contrastive head has no classes: InfoNCE of each prompted image against the clean ones of the
    batch, so that it is still recognised as itself; 0 for a batch of one. Without a head the same
    on the features (our choice). A supervised head: cross-entropy to its own argmax minus the
    entropy of the batch's mean prediction, both with weight 1 (our choice: together the negative of
    the information between image and class, up to the argmax).

    Args:
        prompted: The teacher on prompted images.
        clean: On the same images without prompts, a constant.
        head_kind: Of the teacher.
        temperature: Of InfoNCE.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018;
    Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (L_oh and L_ie).
    """
    if head_kind == "supervised":
        assert prompted.head_output is not None, "a supervised teacher has a head"
        log_p = prompted.head_output.log_softmax(dim=1)
        one_hot = -log_p.amax(dim=1).mean()
        mean_log_p = log_p.logsumexp(dim=0) - math.log(len(log_p))
        return one_hot + (mean_log_p.exp() * mean_log_p).sum()
    query, key = prompted.features, clean.features
    if prompted.head_output is not None and clean.head_output is not None:
        query, key = prompted.head_output, clean.head_output
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
