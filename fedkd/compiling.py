"""torch.compile for students: once per process, tried out before any client trains."""

import itertools
import logging
import time

import torch
from torch import Tensor

from fedkd.errors import ConfigError
from fedkd.models.student import Student
from fedkd.precision import run_backbone

logger = logging.getLogger(__name__)

# Images of the batches that are tried: torch has other code for fewer than 16 on a CPU. No number
# of channels equals them: where one does, torch compiles for that size alone.
_SIZES = (33, 7)


def compile_student(student: Student, pixels: Tensor) -> None:
    """Compile the student's backbone in place; nothing else about the student changes.

    Passes in train mode, with their gradient, and in eval mode without: both are compiled now, by
    each process in the same order, for batches of any size but one, for which torch adds a version
    when it meets it. Names of tensors stay as they are, as ``nn.Module.compile`` wraps
    nothing; copies of the student are not compiled. Heads are a few products, and stay as they are.

    Args:
        student: With the device, dtype, layout and precision in which it will be used.
        pixels: Of one image in the size of all, (1, 3, height, width), on the student's device.

    Raises:
        ConfigError: There is no compiler, or it fails.
    """
    logger.info(
        "compiling the student (engine.compile); it takes from half a minute to some minutes, less "
        "where torch's cache has it"
    )
    started = time.perf_counter()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    was_training = student.training
    try:
        student.backbone.compile()
        for training, size in itertools.product((True, False), _SIZES):
            batch = pixels.repeat(size, 1, 1, 1)
            # https://docs.pytorch.org/docs/stable/compile/programming_model.dynamic_shapes.html
            torch._dynamo.mark_dynamic(batch, 0)
            student.train(training)
            with torch.set_grad_enabled(training):
                features = run_backbone(student.backbone, batch, student.precision)
            if training:
                features.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # compilers raise whatever they like
        lines = [line for line in str(error).splitlines() if line.strip()]
        # torch's own first line names only the part that failed.
        reason = next((line for line in lines if not line.startswith("backend=")), repr(error))
        raise ConfigError(
            f"engine.compile is true, but torch cannot compile the student: {reason[:300]}; "
            "install what is missing (on a CPU a C++ compiler), or set engine.compile=false"
        ) from error
    # BatchNorm has seen a batch that belongs to nobody.
    student.load_state_dict(before)
    student.zero_grad(set_to_none=True)
    student.train(was_training)
    logger.info("compiled the student in %.0f s", time.perf_counter() - started)
