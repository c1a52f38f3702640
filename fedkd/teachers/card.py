"""What is published about a teacher: its network, its pre-training, its licence, its file."""

from dataclasses import dataclass
from typing import Literal

from fedkd.data.card import Download
from fedkd.teachers.frozen import HeadKind

Channels = tuple[float, float, float]
Layout = Literal["fedkd", "moco_v2", "radimagenet", "torchvision", "timm"]


@dataclass(frozen=True)
class TeacherCard:
    """The facts about a teacher that its users choose by, cite, and check their file against.

    Attributes:
        name: As in ``teacher.name``.
        architecture: Name of the network in the library that builds it.
        layout: How the file names its tensors: fedkd's own, the MoCo or RadImageNet authors',
            torchvision's, or what timm reads.
        num_features: Width of the features; None where only the opened network knows.
        head: What the pre-training head gives, where the file has one.
        input_size: Side in px at which the authors evaluate it, to which images are resized by
            default; None means that they are used as they come.
        mean: Channel means of the input normalisation, of pixels in [0, 1].
        std: Channel deviations.
        method: Pre-training method.
        data: What it was pre-trained on.
        licence: Of the weights.
        source: Web page.
        citation: What to cite.
        download: The file, its place relative to the folder of teachers (``FEDKD_TEACHERS``),
            without an address where a program may not fetch it; None where nobody publishes one.
        steps: How to get the file by hand; "" where the download suffices.
        extra: Extra of fedkd that it needs; "" if none.
    """

    name: str
    architecture: str
    layout: Layout
    num_features: int | None
    head: HeadKind
    input_size: int | None
    mean: Channels
    std: Channels
    method: str
    data: str
    licence: str
    source: str
    citation: str = ""
    download: Download | None = None
    steps: str = ""
    extra: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether `fedkd teachers fetch` can bring the file."""
        return self.download is not None and bool(self.download.url)
