"""Tables of a study: what its runs scored, by what was varied; and how a table is written."""

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from bidir.atomic import write_text
from bidir.study.intervals import compare, holm, interval_text, mean_interval, p_value, seed_count
from bidir.study.registry import Tables, grid_scores

Maps = tuple[tuple[str, str], ...]
Shown = tuple[pd.DataFrame, pd.DataFrame]  # a table: its cells ready to read, and its numbers
MAP_TITLES = {
    "cam": "CAM", "seed": "propagated CAM", "y_c": r"$Y_c$ (C teaches S)", "y_s": r"$Y_s$ (S teaches C)",
    "branch_c": "Branch-C", "branch_s": "Branch-S", "agreement": "agreement of the branches",
}  # fmt: skip
SHOWN: Maps = (("ms", "cam"), ("ms", "y_c"), ("raw", "branch_c"), ("raw", "branch_s"))  # of a figure, by default
WITH_Y_S: Maps = (*SHOWN[:2], ("raw", "y_s"), *SHOWN[2:])
SIZES = {"< 2 %": 0.02, "2-5 %": 0.05, "5-10 %": 0.1, "10-20 %": 0.2, "> 20 %": 1.0}  # of an object: share of the image
DRAWN = {
    "seeds": "dots: runs, those of a seed joined; dashes: their means with 95 % t-intervals; ",
    "pairs": "each panel with its own scale; small and hollow: seeds; filled: their mean with its 95 % t-interval, "
    "blue where that leaves out 0; ",
    "none": "",
}
ARMS = {("c2s", "par", False): "baseline", ("both", "bsp", True): "full method", ("full", "bsp", True): "upper bound"}
DRAWS = {  # figure -> the grids that it draws
    "fig0": "first_look", "fig3": "interaction", "fig4": "two_by_two variants backgrounds", "fig5": "two_by_two",
    "fig7": "directions two_by_two", "fig8": "", "fig9": "encoders teacher lengths rates crops",
    **dict.fromkeys(("fig1", "fig2", "fig6"), "directions"),
}  # fmt: skip
DIFFERENCES = (
    "Difference of mIoU in points, paired by seed, with the half width of the 95 % t-interval, and p by Holm among the "
    "{} of this table that have three seeds; not resolved: p is above 0.05."
)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """What is written there; where nobody may write, a line says so, and what was to be saved is shown all the same."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"{folder}: cannot be written to; what is shown here is not saved")


def save_table(text: pd.DataFrame, numbers: pd.DataFrame, stem: Path, caption: str) -> None:
    """Write ``text`` (cells ready to read) as Markdown and LaTeX, and ``numbers``, which it shows, as CSV."""
    shared = {"headers": "keys", "showindex": False, "disable_numparse": True}
    markdown, latex = (tabulate(text.reset_index(), tablefmt=kind, **shared) for kind in ("github", "latex_booktabs"))
    latex = latex.replace("±", r"$\pm$").replace("−", "$-$")
    with saving(stem.parent):
        write_text(stem.with_suffix(".md"), f"{markdown}\n\n{caption.strip()}\n")
        write_text(stem.with_suffix(".tex"), f"% {caption.strip()}\n{latex}\n")
        write_text(stem.with_suffix(".csv"), numbers.to_csv(index=False, float_format="%.6g"))


def drawn_runs(figure: Path) -> set[str]:
    """The runs whose numbers stand in a figure's CSV."""
    return set(pd.read_csv(figure.with_suffix(".csv")).filter(like="run_id").stack())


def mean_scores(tables: Tables, grid: str) -> pd.DataFrame:
    """``grid_scores`` of class ``mean``: a row per run, protocol and map, its iou is mIoU. Errors: ``LookupError``."""
    return grid_scores(tables, grid).query("`class` == 'mean'")


def of_maps(scores: pd.DataFrame, maps: Maps) -> pd.DataFrame:
    """The rows of ``scores`` whose (protocol, map) is one of ``maps``."""
    return scores[pd.MultiIndex.from_frame(scores[["protocol", "map"]]).isin(list(maps))]


def short_title(name: str) -> str:
    """A map's title without what is in brackets and without mathematics."""
    return MAP_TITLES[name].split(" (")[0].replace("$", "")


def caption_of(scores: pd.DataFrame, by: list[str], drawn: str = "seeds") -> str:
    """How a caption's first sentence ends: what is ``DRAWN``, the scale of the runs, how many seeds each ``by`` has."""
    scale = scores[["iterations", "batch_size", "crop_size"]].drop_duplicates().to_numpy()
    trained = " or ".join(f"{steps} iterations of {batch} crops of {crop} px" for steps, batch, crop in scale)
    return f"{DRAWN[drawn]}trained for {trained}; {seed_count(scores.groupby(by)['seed'].nunique())}."


def wide_text(numbers: pd.DataFrame, by: list[str], across: str | list[str], signed: bool = False) -> pd.DataFrame:
    """``interval_text`` as a row per group of ``by``, sorted, and a column per value of ``across``."""
    return numbers.assign(text=interval_text(numbers, signed)).pivot(index=by, columns=across, values="text")


def summarise(scores: pd.DataFrame, by: list[str], maps: Maps = SHOWN) -> Shown:
    """Mean mIoU ± half width per ``by`` and map."""
    numbers = mean_interval(scores, [*by, "protocol", "map"], "iou")
    return maps_text(numbers, by, maps), numbers


def maps_text(numbers: pd.DataFrame, by: list[str], maps: Maps, signed: bool = False) -> pd.DataFrame:
    """``interval_text``: a row per group of ``by``, in the order of ``numbers``, a column per map, and the seeds."""
    text = wide_text(numbers, by, ["protocol", "map"], signed)[list(maps)]
    text.columns = [f"{short_title(name)} ({protocol})" for protocol, name in maps]
    seeds = numbers.groupby(by, sort=False)["seeds"].min()
    return text.loc[seeds.index].assign(seeds=seeds)


def save_differences(scores: pd.DataFrame, column: str, pairs: Collection[tuple], maps: Maps, stem: Path) -> Shown:
    """Write ``compare`` of mIoU for those of ``pairs`` whose both values are there. Errors: ``LookupError`` if none."""
    pairs = [pair for pair in pairs if {*pair} <= {*scores[column]}]
    if not pairs:
        raise LookupError(f"of {', '.join(sorted({*scores[column]}))} no two are to be compared; run more of the grid")
    numbers = compare(of_maps(scores, maps), column, pairs, ["protocol", "map"])
    numbers["p"] = holm(p_value(numbers))
    text = numbers.assign(map=numbers["map"].map(short_title), difference=interval_text(numbers, signed=True))
    text["p (Holm)"] = ["" if pd.isna(p) else f"{p:.2g}" for p in numbers["p"]]
    text["reading"] = text["reading"].mask(numbers["p"] > 0.05, "not resolved")
    text = text.set_index((numbers["second"] + " − " + numbers["first"]).rename("comparison"))
    text = text[["protocol", "map", "difference", "seeds", "reading", "p (Holm)"]]
    save_table(text, numbers, stem, DIFFERENCES.format(numbers["p"].count()))
    return text, numbers


def in_words(numbers: pd.DataFrame, maps: Maps = (("raw", "branch_s"),)) -> str:
    """What ``compare`` says of ``maps``: ``both against c2s: Branch-S -1.2 ± 5.8 points (not resolved); ...``."""
    rows, said = of_maps(numbers, maps), {}
    for row, text in zip(rows.itertuples(), interval_text(rows, signed=True), strict=True):
        part = f"{short_title(row.map)} {text} points ({row.reading})"
        said.setdefault(f"{row.second} against {row.first}", []).append(part)
    return "; ".join(f"{pair}: {', '.join(parts)}" for pair, parts in said.items())


def iou_of(counts: pd.DataFrame) -> pd.Series:
    """IoU, 0..1, of each row of pixels hit, true and predicted."""
    return counts["hit"] / (counts["true"] + counts["predicted"] - counts["hit"])


def over_training(tables: Tables, names: list[str]) -> pd.DataFrame:
    """Those of ``names`` over the iterations of grid ``directions``, 0..1; kind val: of some images, final: of all."""
    steps, last = grid_scores(tables, "directions", "per_step"), mean_scores(tables, "directions")
    last = last.assign(name=last["protocol"] + "/" + last["map"], value=last["iou"], step=last["iterations"])
    rows = pd.concat([steps.query("kind == 'val'"), last.assign(kind="final"), steps.query("kind == 'train'")])
    return rows.loc[rows["name"].isin(names), ["supervision", "seed", "run_id", "kind", "name", "step", "value"]]


def teacher_weights(steps: pd.DataFrame, names: list[str], by: list[str]) -> pd.DataFrame:
    """What each teacher says, those of ``names`` that were logged: norm of its weighted loss's gradient on the encoder
    over that of L_cls (pull), cosines of these gradients, weighted loss over L_cls (weight), share of the pixels that
    it labels; ``mean_interval`` of each (0..1) per group of ``by``, which may hold ``until``: the last iteration of
    each quarter of training. ``steps``: rows of ``per_step`` with their runs' settings."""
    until = (-(-4 * steps["step"] // steps["iterations"]) * steps["iterations"] / 4).round().astype(int)
    keys = [*dict.fromkeys([*by, "seed", "step", "lambda_c2s", "lambda_s2c"])]
    wide = steps.assign(until=until).query("kind == 'train'").pivot_table("value", keys, "name").reset_index()
    said = {"c2s_share": "labelled by Y_c", "s2c_share": "foreground in Y_s", "cosine/c2s/s2c": "cosine of c2s and s2c",
            "cosine/cls/c2s": "cosine of cls and c2s", "cosine/cls/s2c": "cosine of cls and s2c"}  # fmt: skip
    for term in ("c2s", "s2c"):
        if term in wide:
            wide[f"weight of {term}"] = wide[f"lambda_{term}"] * wide[term] / wide["cls"]
        if f"gradient/{term}" in wide:
            wide[f"pull of {term}"] = wide[f"gradient/{term}"] / wide["gradient/cls"]
    parts = wide.rename(columns=said).reindex(columns=[*by, "seed", *names]).groupby([*by, "seed"]).mean().reset_index()
    return mean_interval(parts.melt([*by, "seed"], names, "name").dropna(subset="value"), [*by, "name"], "value")


def by_size(pixels: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """IoU over all objects (a class in an image) of each of ``SIZES``, by supervision, seed and run_id, and how many of
    them there are. ``pixels``: rows of ``per_image`` of one map."""
    whole = pixels.groupby(["run_id", "image"])["true"].transform("sum")
    sizes = pd.cut(pixels["true"] / whole, [0, *SIZES.values()], labels=[*SIZES]).astype(object)
    objects = pixels.assign(size=sizes)[(pixels["class"] != "background") & (pixels["true"] > 0)]
    groups = objects.groupby(["supervision", "seed", "run_id", "size"], sort=False)
    sums = groups[["hit", "true", "predicted"]].sum().reset_index()
    counts = objects.loc[objects["run_id"] == objects["run_id"].iloc[0], "size"].value_counts()
    counts = counts[[size for size in SIZES if size in counts]]
    return sums.assign(iou=iou_of(sums)).sort_values("supervision", ascending=False), counts


def first_look(tables: Tables) -> Shown:
    """Grid ``first_look``, a row per arm (column run); ``attrs["scale"]`` of the text says how it was trained."""
    runs = tables["runs"][["run_id", "seconds_per_step", "hardware"]]
    scores = mean_scores(tables, "first_look").merge(runs, on="run_id")
    arms = scores[["supervision", "propagation", "object_aware_decoding"]].apply(tuple, axis=1)
    maps = (SHOWN[0], ("ms", "seed"), *SHOWN[1:])
    numbers = of_maps(scores.assign(run=arms.map(ARMS)).dropna(subset="run"), maps)
    text = wide_text(numbers.assign(mean=numbers["iou"], half_width=float("nan")), ["run"], "map")
    text = text.reindex(ARMS.values()).dropna()[[name for _, name in maps]].rename(columns=short_title)
    text["seconds"] = numbers.groupby("run")["seconds_per_step"].first().map("{:.2f}".format)
    text.attrs["scale"] = f"{numbers['hardware'].iloc[0]}; {caption_of(numbers, ['run'], drawn='none')}"
    return text, numbers[["run", "protocol", "map", "iou", "seed", "run_id", "seconds_per_step"]]
