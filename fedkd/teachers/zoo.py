"""Known teachers, each with its card; names such as ``timm:<model>`` stand for whole libraries."""

import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

import torchvision

from fedkd.data.card import Download
from fedkd.errors import DependencyError, TeacherError
from fedkd.models.factory import IMAGENET_MEAN, IMAGENET_STD
from fedkd.teachers.card import TeacherCard

WEIGHTS = Path(__file__).parent / "weights"
LIBRARIES = ("timm:", "torchvision:")
"""Beginnings of names that stand for any model of a library."""
PRETRAINED = "pretrained"
"""Name of a teacher that `fedkd pretrain` wrote to ``teacher.checkpoint``."""

_META = "https://dl.fbaipublicfiles.com"
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LVD = "LVD-142M, 142 M curated images of the web, without labels"
_IMAGENET = "ImageNet-1k, 1.28 M photographs"


def _transformer(
    name: str,
    architecture: str,
    num_features: int,
    download: Download,
    **facts: Any,
) -> TeacherCard:
    """A vision transformer that timm builds, with the authors' or timm's file."""
    values: dict[str, Any] = {
        "head": "none",
        "input_size": 224,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "extra": "timm",
        **facts,
    }
    return TeacherCard(
        name=name,
        architecture=architecture,
        layout="timm",
        num_features=num_features,
        download=download,
        **values,
    )


def _dinov2(
    size: str, architecture: str, num_features: int, sha256: str, num_bytes: int
) -> TeacherCard:
    name = f"dinov2_vit{size}14"
    file = f"{name}_pretrain.pth"
    return _transformer(
        name,
        architecture,
        num_features,
        Download(f"{_META}/dinov2/{name}/{file}", file, sha256, num_bytes=num_bytes),
        method="DINOv2, self-supervised, distilled from ViT-g/14",
        data=_LVD,
        licence="Apache-2.0",
        source="https://github.com/facebookresearch/dinov2",
        citation="Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023",
    )


def _clip(patch: int, revision: str, sha256: str, num_bytes: int) -> TeacherCard:
    name, model = f"clip_vitb{patch}", f"vit_base_patch{patch}_clip_224.openai"
    return _transformer(
        name,
        f"vit_base_patch{patch}_clip_quickgelu_224",
        768,
        Download(
            f"https://huggingface.co/timm/{model}/resolve/{revision}/open_clip_model.safetensors",
            f"{name}.safetensors",
            sha256,
            num_bytes=num_bytes,
        ),
        head="contrastive",
        mean=_CLIP_MEAN,
        std=_CLIP_STD,
        method="CLIP, image encoder trained with captions",
        data="WIT-400M, 400 M pairs of image and caption from the web",
        licence="MIT",
        source="https://github.com/openai/CLIP",
        citation="Radford et al., Learning Transferable Visual Models From Natural Language "
        "Supervision, ICML 2021",
    )


def _imagenet(
    name: str, architecture: str, version: str, sha256: str, num_bytes: int
) -> TeacherCard:
    """Of torchvision, under its true name: two versions of one network are two teachers."""
    weights = torchvision.models.get_model_weights(architecture)[version]
    network = {"resnet18": 512, "resnet50": 2048, "efficientnet_b0": 1280}
    return TeacherCard(
        name=name,
        architecture=architecture,
        layout="torchvision",
        num_features=network[architecture],
        head="supervised",
        input_size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        method=f"supervised, torchvision's {version}",
        data=f"{_IMAGENET}, with labels",
        licence="BSD-3-Clause (code); ImageNet's terms of use may hold for the weights",
        source="https://pytorch.org/vision/stable/models.html",
        download=Download(weights.url, weights.url.rpartition("/")[2], sha256, num_bytes=num_bytes),
    )


CARDS: dict[str, TeacherCard] = {
    card.name: card
    for card in (
        TeacherCard(
            name="default",
            architecture="resnet10",
            layout="fedkd",
            num_features=480,
            head="contrastive",
            input_size=None,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            method="SimCLR with the decoupled contrastive loss",
            data="12000 procedural dead leaves images, no data set",
            licence="Apache-2.0",
            source="shipped with fedkd; remade by `fedkd pretrain configs/pretrain_default.toml`",
        ),
        TeacherCard(
            name="moco_v2_r50",
            architecture="resnet50",
            layout="moco_v2",
            num_features=2048,
            head="contrastive",
            input_size=224,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            method="MoCo v2, self-supervised, 800 epochs",
            data=f"{_IMAGENET}, without labels",
            licence="CC BY-NC 4.0",
            source="https://github.com/facebookresearch/moco",
            citation="Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020",
            download=Download(
                f"{_META}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
                "moco_v2_800ep_pretrain.pth.tar",
                md5="a04e12f8",
            ),
        ),
        _dinov2(
            "s",
            "vit_small_patch14_dinov2.lvd142m",
            384,
            "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
            88_283_115,
        ),
        _dinov2(
            "b",
            "vit_base_patch14_dinov2.lvd142m",
            768,
            "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
            346_378_731,
        ),
        _transformer(
            "dino_vits16",
            "vit_small_patch16_224.dino",
            384,
            Download(
                f"{_META}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
                "dino_deitsmall16_pretrain.pth",
            ),
            method="DINO, self-supervised, 800 epochs",
            data=f"{_IMAGENET}, without labels",
            licence="Apache-2.0",
            source="https://github.com/facebookresearch/dino",
            citation="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, "
            "ICCV 2021",
        ),
        _clip(
            32,
            "a6f597a30f7b82c51704746581f9a4e41421e878",
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
            605_143_284,
        ),
        _clip(
            16,
            "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
            "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
            598_516_980,
        ),
        TeacherCard(
            name="radimagenet_r50",
            architecture="resnet50",
            layout="radimagenet",
            num_features=2048,
            head="none",
            input_size=224,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            method="supervised, 165 radiological findings",
            data="RadImageNet, 1.35 M images of CT, MRI and ultrasound",
            licence="MIT (repository); the images themselves need an agreement",
            source="https://github.com/BMEII-AI/RadImageNet",
            citation="Mei et al., RadImageNet: An Open Radiologic Deep Learning Research Dataset "
            "for Effective Transfer Learning, Radiology: Artificial Intelligence 2022",
            download=Download(
                "",
                "radimagenet_r50.pt",
                "08629f7e7bd3e29b8ee9522ca3f65ce4d010a7ddf74f0ea3c7e3f3d0bbab0734",
            ),
            steps="download RadImageNet_pytorch.zip as the repository's README says (a browser is "
            "needed), unpack it, and put its ResNet50.pt there as radimagenet_r50.pt",
        ),
        _imagenet(
            "resnet18_imagenet_v1",
            "resnet18",
            "IMAGENET1K_V1",
            "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
            46_830_571,
        ),
        _imagenet(
            "resnet50_imagenet_v1",
            "resnet50",
            "IMAGENET1K_V1",
            "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
            102_530_333,
        ),
        _imagenet(
            "resnet50_imagenet_v2",
            "resnet50",
            "IMAGENET1K_V2",
            "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
            102_540_417,
        ),
        _imagenet(
            "efficientnet_b0_imagenet_v1",
            "efficientnet_b0",
            "IMAGENET1K_V1",
            "7f5810bc96def8f7552d5b7e68d53c4786f81167d28291b21c0d90e1fca14934",
            21_444_401,
        ),
    )
}

TEACHERS: dict[str, str] = {
    **{name: f"{one.architecture}: {one.method}" for name, one in CARDS.items()},
    PRETRAINED: "a file that `fedkd pretrain` wrote (teacher.checkpoint)",
    "timm:<model>": "any model of timm (extra timm)",
    "torchvision:<model>": "any classifier of torchvision (teacher.checkpoint)",
}


def known(name: str) -> bool:
    """Whether a teacher may have this name; models of libraries are not looked up."""
    return name in CARDS or name == PRETRAINED or name.startswith(LIBRARIES)


def card_of(name: str) -> TeacherCard:
    """The card of a teacher, made from the library's own facts for a model of a library.

    Raises:
        TeacherError: No such teacher, or no such model in the library.
        DependencyError: The library is an extra that is not installed.
    """
    if name in CARDS:
        return CARDS[name]
    library, _, model = name.partition(":")
    make = {"timm": _of_timm, "torchvision": _of_torchvision}.get(library)
    if make is None:
        raise TeacherError(f"{name!r} is no known teacher; there are {', '.join(TEACHERS)}")
    return make(name, model)


def timm_module() -> Any:
    """timm; DependencyError if it is not installed."""
    try:
        return import_module("timm")
    except ModuleNotFoundError:
        raise DependencyError(
            "the teacher is a model of timm, which is not installed; pip install 'fedkd[timm]'"
        ) from None


def _of_timm(name: str, model: str) -> TeacherCard:
    timm = timm_module()
    if not timm.is_model(model):
        raise _unknown(name, model, timm.list_models(), "timm")
    facts = timm.get_pretrained_cfg(model)
    file = facts.hf_hub_filename or "model.safetensors"
    url = f"https://huggingface.co/{facts.hf_hub_id}/resolve/main/{file}"
    return TeacherCard(
        name=name,
        architecture=model,
        layout="timm",
        num_features=None,
        head="none",
        input_size=facts.input_size[-1],
        mean=facts.mean,
        std=facts.std,
        method=facts.tag or "not said",
        data="see the source",
        licence=facts.license or "not said",
        source=f"https://huggingface.co/{facts.hf_hub_id}" if facts.hf_hub_id else "",
        download=Download(url, f"{model}{Path(file).suffix}") if facts.hf_hub_id else None,
        extra="timm",
    )


def _of_torchvision(name: str, model: str) -> TeacherCard:
    models = torchvision.models.list_models(module=torchvision.models)
    if model not in models:
        raise _unknown(name, model, models, "torchvision")
    transforms = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    return TeacherCard(
        name=name,
        architecture=model,
        layout="torchvision",
        num_features=None,
        head="supervised",
        input_size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        method="yours",
        data="yours",
        licence="yours",
        source="https://pytorch.org/vision/stable/models.html",
        steps="name the file in teacher.checkpoint",
    )


def _unknown(name: str, model: str, models: list[str], library: str) -> TeacherError:
    near = difflib.get_close_matches(model, models, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "its documentation lists them"
    return TeacherError(f"teacher.name is {name!r}, but {library} has no model {model!r}; {hint}")
