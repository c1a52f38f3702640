"""What is shown of clients where there are too many to show each."""

import pandas as pd

MAX_CLIENTS = 30
"""Clients that a table or a picture shows one by one; our choice, about a screen."""


def spread_of_clients(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows ``fewest``, ``median``, ``most`` and ``clients without``, for each column alone.

    Args:
        counts: A row per client, at least one.
    """
    rows = {
        "fewest": counts.min(),
        "median": counts.median().map("{:g}".format),
        "most": counts.max(),
        "clients without": (counts == 0).sum(),
    }
    return pd.DataFrame({name: row.astype(str) for name, row in rows.items()}).T
