"""Data sets, each delivered as :class:`fedkd.data.images.Splits`."""
