"""Processes of this machine, as /proc has them."""

import time
from pathlib import Path


def descendants(pid):
    """All processes that descend from one: ``{process id: command line}``.

    But for Python's own tracker of resources, which lives as long as the process that needed it.
    """
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(folder.name))
    found, todo = {}, [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found[child] = command_line(child)
            todo.append(child)
    return {own: line for own, line in found.items() if "resource_tracker" not in line}


def command_line(pid):
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def workers_of(pid):
    """Process ids of the Ray workers among the descendants."""
    return [own for own, line in descendants(pid).items() if line.startswith("ray::Worker")]


def still_there(pids, within_s):
    """Those of the processes that do not end in this time."""
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if command_line(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
