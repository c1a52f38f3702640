"""What is published about the data sets made of ISIC 2019 images and published lists.

Hashes and counts of the lists were measured on genuine copies of fold 1; FoPro-KD has four folds
more, whose hashes nobody published. The addresses name a commit, so the files behind them stay.
"""

from fedkd.data.card import DataCard, Download

SOURCE = "https://challenge.isic-archive.com/data/#2019"
LICENCE = "CC BY-NC 4.0: no commercial use"
CITATION = (
    "Tschandl et al., Sci. Data 5:180161, 2018 (HAM10000)",
    "Combalia et al., arXiv 1908.02288, 2019 (BCN20000)",
    "Codella et al., arXiv 1710.05006, 2018",
)
STEPS = f"""\
1. Read the terms of use at {SOURCE} ({LICENCE}; cite the papers).
2. Download ISIC_2019_Training_Input.zip ("ISIC 2019: Training", about 9 GB) there.
3. Unpack its 25,331 images, so that you have
     $FEDKD_DATA/isic2019/images/ISIC_0000000.jpg ...
   or set data.images to the folder where they are."""

_FED_MAS = (
    "https://raw.githubusercontent.com/xmed-lab/Fed-MAS/"
    "b656e7df1fac0a42596aca43432118ce2a5238bc/data/Flamby_isic/"
)
_FOPRO_KD = (
    "https://raw.githubusercontent.com/xmed-lab/FoPro-KD/"
    "fd66cae333007e3113dfefcefea49827e1634aae/data/ham2019/"
)

_SHA256 = {
    "train_flamby_isic_fl_0_1": "198947e569fcc412b0677554671abe05640a2eb82d6ad5633a8fcb172be4adef",
    "val_flamby_isic_fl_0_1": "bb1e9408de5c075f9e1b554a92537f059dc6ad57c627a3c5566909edbd4ce8cc",
    "train_flamby_isic_fl_1_1": "2531906bf22d3e8d752c51e3a890c9a0c7293414f82bedf06e166870c5709fe7",
    "val_flamby_isic_fl_1_1": "c8223594a2bed3b0c135a6505e765ab8fb8635b7ef10e5641854263187c80ca2",
    "train_flamby_isic_fl_2_1": "686380ab65e207fe69925ec7ca9980294167d354e05ecb7edc63a0c3134be544",
    "val_flamby_isic_fl_2_1": "f8df01a5c542b0eea733272ee80adad21d654c145652b8220ab571bfc0c96ee7",
    "train_flamby_isic_fl_3_1": "417021fd966f71679dd3b7303987b6690d8cd99f1002161c878e514d922f18fb",
    "val_flamby_isic_fl_3_1": "d1b94b538cd93f2cf27cd76fff5c07f05b65cf719ba7c9ae1ed9ab4739fafed4",
    "train_flamby_isic_fl_4_1": "57ab0b4c06d1f988181b03efaf5225e23a07d9855fcb4bce827d3cb2df2fe7da",
    "val_flamby_isic_fl_4_1": "27719d57a926cc103db80e8cfb433d82d98cd3a7ebd81761ca726c7742e9a477",
    "train_flamby_isic_fl_5_1": "cdd63c13b81103a99425a5cf919f5a3dc4ae441e957ef7095dcd524069e8b145",
    "val_flamby_isic_fl_5_1": "51f131ff1d4878bb86d5cf06bddb5bce7cc712d5566f7afcf2f68b1bb08a4fc3",
    "train_skin1_0.01": "df6862048a64c3c1a144a1012fbc399fc00c8bcc02d52f8d0ea6109424407212",
    "val_skin1_0.01": "61e64e0c7ed2f1bf9153ae32eeec6a70f3e602341e20ba3e46cf41bb67c4299d",
    "test_skin1_0.01": "4eb92814b88505c6df77704632480438e9ee8c9998c6a48d587ab2061aae7780",
    "train_skin1_0.005": "f3b3dbc0d7b8249f43727ff335e8cb1fc3dbdeb4372282a0288cf36197ea3b83",
    "val_skin1_0.005": "e4f7cb564ac2af14b60f1b94a3dd90ba0d83946a9b08c144c45c38a5236d4249",
    "test_skin1_0.005": "389ba46876a8bcb87cca4a25fc2919b199d6ca43fd364cbdbb7a458853062d18",
    "train_skin1_0.002": "1a3ca239813ef02e0af52773f544683ae67ed79300779731d29a369415661c8f",
    "val_skin1_0.002": "e633cf730417a8964e7c6981fc684cf4a53a835de548dea27f543d1d04fdaeca",
    "test_skin1_0.002": "ede7f682955354dcf5f67ba34ca87db911bac036c7e2ca969bbe9e4dcda31174",
}


def _lists(url: str, folder: str, names: list[str]) -> tuple[Download, ...]:
    return tuple(
        Download(f"{url}{name}.csv", f"{folder}/{name}.csv", sha256=_SHA256.get(name))
        for name in names
    )


FED_ISIC2019 = DataCard(
    title="Fed-ISIC2019, ISIC 2019 at its six centres",
    source=SOURCE,
    licence=LICENCE,
    citation=(
        "Ogier du Terrail et al., FLamby, NeurIPS 2022",
        "Elbatel et al., Fed-MAS, DeCaF @ MICCAI 2023",
        *CITATION,
    ),
    downloads=_lists(
        _FED_MAS,
        "splits/fed_isic2019",
        [f"{kind}_flamby_isic_fl_{center}_1" for center in range(6) for kind in ("train", "val")],
    ),
    steps=STEPS,
    # Val is carved out of train here, so what it shares with test is theirs too.
    fixed_splits=(("train", "test"), ("val", "test")),
)

CENTER_COUNTS = (
    (2857, 4206, 2809, 737, 1138, 124, 111, 431),
    (24, 3720, 2, 0, 124, 30, 54, 0),
    (680, 1832, 211, 21, 475, 51, 82, 11),
    (342, 803, 296, 109, 490, 30, 3, 186),
    (215, 415, 0, 0, 189, 0, 0, 0),
    (67, 350, 5, 0, 10, 4, 3, 0),
)
"""Images of each centre and class (in the order of ISIC 2019) in the Fed-MAS lists, fold 1."""

ISIC_LT = DataCard(
    title="ISIC-LT, ISIC 2019 made long-tailed",
    source=SOURCE,
    licence=LICENCE,
    citation=("Elbatel et al., FoPro-KD, IEEE TMI 2024 (arXiv 2305.17421)", *CITATION),
    downloads=_lists(
        _FOPRO_KD,
        "splits/isic_lt",
        [
            f"{split}_skin{fold}_{factor}"
            for fold in range(1, 6)
            for factor in ("0.01", "0.005", "0.002")
            for split in ("train", "val", "test")
        ],
    ),
    steps=STEPS,
    fixed_splits=(("train", "val"), ("train", "test"), ("val", "test")),
)

LT_COUNTS = {
    0.01: (12875, 4522, 3323, 1938, 867, 628, 253, 239),
    0.005: (12875, 4522, 2983, 1479, 773, 442, 253, 214),
    0.002: (12875, 4522, 2330, 1047, 519, 302, 212, 175),
}
"""Images of each class, from NV to DF, in the FoPro-KD lists of fold 1, by imbalance factor."""
