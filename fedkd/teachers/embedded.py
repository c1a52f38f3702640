"""Where the embedded teacher's weights lie: in this package, or in fedkd as it is installed.

A Flower app is sent to the sites as source files; weights are not among them. A bundle that runs at
a site takes them from the fedkd that is installed there, and their hash is checked by the bundle's
own card.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from fedkd.teachers import zoo

NAME = "default.safetensors"


def embedded_weights() -> Path:
    """The file of the weights: the package's own, else the first that is installed.

    If there is none, the path where the package's own belongs.
    """
    own = zoo.WEIGHTS / NAME
    return next((path for path in (own, *_installed()) if path.is_file()), own)


def _installed() -> Iterator[Path]:
    """Where fedkd may be installed besides: on the path of imports, or editable in its folder."""
    inside = Path("fedkd", "teachers", "weights", NAME)
    for entry in sys.path:
        yield Path(entry) / inside
    try:
        text = distribution("fedkd").read_text("direct_url.json")
    except PackageNotFoundError:
        return
    if text:
        url = urlparse(json.loads(text)["url"])
        if url.scheme == "file":
            yield Path(unquote(url.path)) / inside
