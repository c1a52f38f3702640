"""Names of the students that a run keeps by round, in its folder ``students``."""

import re
from pathlib import Path

STUDENTS = "students"


def kept_student(round_number: int) -> str:
    """Where the student after a round lies in the run directory; round 0 is the initial one."""
    return f"{STUDENTS}/round-{round_number:04d}.safetensors"


def kept_rounds(run: Path) -> list[int]:
    """Rounds whose students are there, ascending; none if the run kept none."""
    found = (re.fullmatch(r"round-(\d+)", path.stem) for path in
             (run / STUDENTS).glob("*.safetensors"))  # fmt: skip
    return sorted(int(match[1]) for match in found if match)
