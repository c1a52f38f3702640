"""Tables as LaTeX, for papers: booktabs, every text escaped."""

import pandas as pd

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


def escape(text: str) -> str:
    """The text as LaTeX sets it literally, on one line."""
    return " ".join(text.split()).translate(_ESCAPES)


def to_latex(frame: pd.DataFrame, caption: str) -> str:
    r"""A table environment; needs ``\usepackage{booktabs}``.

    Args:
        frame: Texts and numbers, shown as ``str``; the first column stands left, the others right.
        caption: Plain text.
    """
    lines = [
        " & ".join(escape(str(cell)) for cell in row) + r" \\"
        for row in (list(frame.columns), *frame.to_numpy(object).tolist())
    ]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    columns = "l" + "r" * (frame.shape[1] - 1)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{escape(caption)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n"
    )
