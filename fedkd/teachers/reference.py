"""The prior of a teacher without usable BatchNorm statistics, measured on natural images."""

import logging

import torch

from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.dead_leaves import dead_leaves
from fedkd.teachers.frozen import Teacher

logger = logging.getLogger(__name__)


def measure_reference(teacher: Teacher, config: OneTeacherConfig, image_size: int) -> None:
    """Give the teacher a prior from procedural natural images, if its own BatchNorm has none.

    Source: the specification of FPG; for folded or absent BatchNorm, moments measured once on
    natural images rank prompts as true running statistics do.
    """
    if teacher.has_reference:
        return
    logger.info("measuring the teacher's feature moments on procedural images")
    images = dead_leaves(config.reference_images, image_size, seed=0)
    starts = range(0, len(images), 64)
    teacher.measure_reference(torch.from_numpy(images[i : i + 64]) / 255 for i in starts)
