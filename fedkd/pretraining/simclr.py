"""SimCLR with the decoupled contrastive loss: two views of an image agree, others do not."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.models.small_resnet import SmallResNet


def decoupled_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of a batch of pairs, without the positive pair in the denominator.

    For view i with partner j: -s_ij / T + log sum over k not in {i, j} of exp(s_ik / T), s the
    cosine similarity; mean over all 2 * batch views.

    Args:
        first: Projections of the first views, float (batch, dim), batch >= 2.
        second: Projections of the second views, row by row of the same images.
        temperature: T > 0.

    Returns:
        Scalar.
    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020; Yeh et al., "Decoupled Contrastive Learning", ECCV 2022 (eq. 6).
    """
    batch = len(first)
    views = F.normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    positive = torch.cat([similarity.diagonal(batch), similarity.diagonal(-batch)])
    # Neither a view itself nor its partner counts among the others.
    same_image = torch.eye(batch, dtype=torch.bool, device=views.device).repeat(2, 2)
    others = similarity.masked_fill(same_image, -math.inf).logsumexp(dim=1)
    return (others - positive).mean()


def random_views(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One random view of each image: crop, flip, small turn, colours; a single resampling.

    Crop (8 to 100 % of the area, aspect 3/4 to 4/3), flip and turn (up to 20 degrees) are one
    affine grid; brightness, contrast, saturation, tint and grey are one 3x4 matrix per image. All
    ranges are our choice.

    Args:
        images: Float (batch, 3, height, width) in [0, 1].
        size: Side of the views in px.
        generator: CPU generator, whatever the device of the images: draws are the same everywhere.

    Returns:
        Float (batch, 3, size, size) in [0, 1].
    """
    crops = _crops(len(images), generator).to(images.device)
    views = F.grid_sample(
        images,
        F.affine_grid(crops, [len(images), 3, size, size], False),
        padding_mode="reflection",
        align_corners=False,
    )
    return _recolour(views, generator)


def _uniform(num: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(num, generator=generator)


def _crops(num: int, generator: torch.Generator) -> Tensor:
    """Affine matrices (num, 2, 3) in the coordinates of affine_grid."""
    area = _uniform(num, 0.08, 1.0, generator)
    aspect = torch.exp(_uniform(num, math.log(3 / 4), math.log(4 / 3), generator))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    centre_x = (1 - width) * _uniform(num, -1, 1, generator)
    centre_y = (1 - height) * _uniform(num, -1, 1, generator)
    angle = math.radians(20) * _uniform(num, -1, 1, generator)
    flip = torch.where(torch.rand(num, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([flip * width * cos, -height * sin, centre_x], dim=1)
    bottom = torch.stack([flip * width * sin, height * cos, centre_y], dim=1)
    return torch.stack([top, bottom], dim=1)


def _recolour(views: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation (up to 40 %), tint (20 %); grey for one image in five."""
    num = len(views)
    brightness, contrast, saturation = (
        (1 + 0.4 * _uniform(num, -1, 1, generator)).view(-1, 1, 1) for _ in range(3)
    )
    tint = 1 + 0.2 * (2 * torch.rand((num, 3, 1), generator=generator) - 1)
    grey = (torch.rand((num, 1, 1), generator=generator) < 0.2).float()
    saturation = saturation * (1 - grey)
    weights = torch.tensor([0.299, 0.587, 0.114])
    # (num, 3, 3): pull channels towards their grey value, then scale.
    luma = weights.expand(3, 3)
    mix = saturation * torch.eye(3) + (1 - saturation) * luma
    mix = contrast * brightness * mix * (1 + (tint - 1) * (1 - grey))
    mix, luma = mix.to(views.device), luma.to(views.device)
    mean = views.mean((2, 3)).unsqueeze(2)
    offset = ((1 - contrast) * brightness).to(views.device) * (luma @ mean)
    # b: image, o: output channel, c: input channel, h, w: pixel
    return (torch.einsum("boc,bchw->bohw", mix, views) + offset.unsqueeze(3)).clamp(0, 1)


def deepest_features(backbone: nn.Module, views: Tensor, bfloat16: bool) -> Tensor:
    """What a contrastive head is trained on: the features of the last stage alone, float32.

    Args:
        backbone: Maps normalised images to features.
        views: Normalised, float (batch, 3, height, width).
        bfloat16: Run the backbone in mixed precision.

    Returns:
        Float (batch, num_features of the last stage).
    """
    views = views.to(memory_format=torch.channels_last)
    # 2.2 times as fast on a CPU with AVX-512 BF16; may be slower on one without.
    with torch.autocast(views.device.type, torch.bfloat16, enabled=bfloat16):
        if isinstance(backbone, SmallResNet):
            return backbone.pooled_stages(views)[-1].float()
        features: Tensor = backbone(views)
    return features.float()


class SimCLR(nn.Module):
    """Backbone and head that learn to tell the two views of an image from all others of a batch.

    Args:
        backbone: Maps normalised images to features.
        head: Maps the deepest of them to embeddings.
        temperature: Of the loss, > 0.
        bfloat16: Run the backbone in mixed precision.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, temperature: float, bfloat16: bool
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.temperature, self.mixed = temperature, bfloat16

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch of pairs of normalised views, a scalar."""
        both = deepest_features(self.backbone, torch.cat([first, second]), self.mixed)
        first, second = self.head(both).chunk(2)
        return decoupled_nt_xent(first, second, self.temperature)
