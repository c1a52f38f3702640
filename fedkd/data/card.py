"""What is published about a data set: where it comes from, what it may be used for, its counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Download:
    """A file that anybody may download.

    Attributes:
        url: Where from, https; "" where no program may fetch it and a person must.
        path: Where it goes, relative to the folder of all data (``FEDKD_DATA``) or, for a teacher,
            of all teachers (``FEDKD_TEACHERS``).
        sha256: Of the file, as published or as measured on a genuine copy; the first digits, 8 at
            least, where only these are published; None if nobody published one.
        md5: Where the publisher gives only that; its first digits likewise.
        num_bytes: Size; None if unknown.
        unpack: Folder into which an archive is unpacked, relative to the folder of all data; None
            leaves the file as it is.
    """

    url: str
    path: str
    sha256: str | None = None
    md5: str | None = None
    num_bytes: int | None = None
    unpack: str | None = None


@dataclass(frozen=True)
class DataCard:
    """The facts about a data set that its users cite, accept, and check their copy against.

    Attributes:
        title: Full name.
        source: Web page of the data set.
        licence: Name of the licence, and what it forbids.
        citation: What to cite, one entry per paper.
        class_counts: Published number of images of each class, all splits together; empty where
            that hangs on settings.
        site_counts: Published number of images of each hospital, likewise.
        split_counts: Published number of images of train, val and test, where the splits are.
        downloads: Files that need no consent; empty where there are none.
        steps: What to do by hand: where to accept the licence, which files to put where; "" where
            downloads suffice or nothing is needed.
        fixed_splits: Pairs of splits, each in the order train, val, test, that the publisher
            divided and that are used as published: what they have in common is known, and nothing
            that a user could mend.
    """

    title: str
    source: str = ""
    licence: str = ""
    citation: tuple[str, ...] = ()
    class_counts: Mapping[str, int] = field(default_factory=dict)
    site_counts: Mapping[str, int] = field(default_factory=dict)
    split_counts: Mapping[str, int] = field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    steps: str = ""
    fixed_splits: tuple[tuple[str, str], ...] = ()
