"""The report as rows, and the rows as text: for the terminal, as Markdown, CSV and one HTML page."""

import base64
import csv
import io
from pathlib import Path

from engine.flops import forward_macs, relative_cost
from models import model_dict
from reporting import published
from reporting.groups import kd_baseline, relative_to_kd, shared_settings

COLUMNS = {  # of a row: (title, format)
    **{name: (name, "") for name in ("teacher", "student", "setting", "method", "seeds")},
    "best_acc": ("best %", ".2f"),
    "last_acc": ("last %", ".2f"),
    "test_acc_best": ("test %, best epoch", ".2f"),
    "test_acc_last": ("test %, last epoch", ".2f"),
    "published": ("published %", ".2f"),
    "difference": ("difference", "+.2f"),
    "teacher_queries": ("images the teacher saw", ",.0f"),
    "computation": ("computation, % of KD", ".2f"),
    "computation_usual": ("same, backward = 2 forwards", ".2f"),
    "tmac": ("TMAC", ".2f"),
    "time": ("time, % of KD", ".1f"),
    "train_seconds": ("training, s", ".1f"),
}
IN_A_SECTION = list(COLUMNS)[3:]
IN_A_TERMINAL = set(COLUMNS) - {"published", "difference", "computation_usual", "tmac"}
ACCURACIES = [column for column in COLUMNS if "_acc" in column]


def rows(section, groups):
    """[{column: number, text or None}], one for each group of a section; "..._std": over the seeds."""
    return [row(section, name, g, kd_baseline(g, groups)) for name, g in section.named]


def row(section, name, g, kd):
    def computation(ending):  # as the runs have it, else from the operations of `kd`
        own = g.mean(f"computation{ending}")
        return relative_to_kd(g, kd, f"train_macs{ending}") if own is None else 100 * own

    return {
        "teacher": section.teacher,
        "student": section.student,
        "setting": ", ".join(section.settings) or None,
        "method": name,
        "seeds": len(g.runs),
        **{column: g.mean(column) for column in (*ACCURACIES, "teacher_queries", "train_seconds")},
        **{f"{column}_std": g.spread(column) for column in ACCURACIES},
        "published": g.published,
        "difference": g.published and g.mean("best_acc") - g.published,
        "computation": computation(""),
        "computation_usual": computation("_usual"),
        "tmac": g.mean("train_macs") / 1e12,
        "time": relative_to_kd(g, kd, "train_seconds"),
        "command": g.command,
    }


def table(rows, columns):
    """[titles, cells, ...] of strings, without the columns in which nothing stands."""
    columns = [column for column in COLUMNS if column in columns and any(row[column] is not None for row in rows)]
    return [[COLUMNS[column][0] for column in columns], *([cell(row, column) for column in columns] for row in rows)]


def cell(row, column):
    if row[column] is None:
        return ""
    spread = row.get(f"{column}_std")
    return format(row[column], COLUMNS[column][1]) + ("" if spread is None else f" ± {spread:.2f}")


def progress(run):
    """An unfinished run as (folder, "57 of 240", best accuracy so far)."""
    accuracies = run.metrics.get("val/cls_acc", [])
    best = f"{max(accuracies):.2f}" if accuracies else ""
    return str(run.folder), f"{len(accuracies)} of {run.settings['epoch']}", best


def cost_table():
    """Operations of the published pairs, and UNIX's (k 48 of 64) relative to KD's in both countings."""
    table = [("teacher", "student", "Ft, MMAC", "Fs, MMAC", "Ft/Fs", "UNIX, % of KD", "published", "backward = 2")]
    macs = {arch: forward_macs(model_dict[arch]()) for arch in {arch for pair in published.pairs() for arch in pair}}
    for (teacher, student), pair in published.pairs().items():
        ft, fs = macs[teacher], macs[student]
        ours, usual = (100 * relative_cost(fs, ft, 48, 64, backward=backward) for backward in (1, 2))
        figures = (ft / 1e6, fs / 1e6, ft / fs, ours, pair["computation"], usual)
        table.append((teacher, student, *map("{:.2f}".format, figures)))
    return table


# -------------------------------------------------------------------------------------------------------- documents

NOTES = (
    "Accuracies are top-1 in percent, mean ± standard deviation (of the sample) over the seeds. The best epoch is "
    "chosen on the validation images, which without --holdout are the test images, so best is a little optimistic. "
    "Published figures (means of 4 runs, best epoch) stand only beside runs of the published recipe.",
    "Computation is of convolutions and linear layers, relative to ordinary KD of the same pair, counting backward as "
    "one forward pass as the paper does, and as two as is usual. TMAC: 10¹² multiply-accumulates of the whole "
    "training, backward as one forward. Time is measured, and compared only on the same device in the same precision.",
)


def blocks(sections, groups, unfinished, pictures):
    """The report as ("h1" | "h2" | "p" | "table" | "pre" | "picture", content), for either document.

    sections: [(Section, its rows)]. pictures: [(path of a PNG, caption)].
    """
    yield "h1", "Report"
    count, settings = sum(len(g.runs) for g in groups), ", ".join(shared_settings(groups))
    yield "p", f"Finished runs: {count}. Settings of all, beside the published ones: {settings or 'none'}."
    yield from (("p", note) for note in NOTES)
    for section, rows in sections:
        yield "h2", section.title
        yield from (("p", line) for line in teacher_lines(section))
        yield "table", table(rows, IN_A_SECTION)
        yield "p", "To repeat the rows, in order:"
        yield "pre", "\n".join(row["command"] for row in rows)
    if unfinished:
        yield "h2", "Unfinished"
        yield "table", [("run", "epochs done", "best % so far"), *map(progress, unfinished)]
    if pictures:
        yield "h2", "Pictures"
        yield from (("picture", picture) for picture in pictures)


def teacher_lines(section):
    """What is known of the teacher that was distilled from, beside its published accuracy where that compares."""
    distilled = [g for _, g in section.named if g.first.teacher]
    stated = ""
    if any(g.published for g in distilled) and (
        acc := published.pairs()[section.teacher, section.student]["teacher_acc"]
    ):
        stated = f" (published: {acc:.2f} %)"
    for acc in sorted({g.mean("teacher_acc") for g in distilled} - {None}):
        yield f"The teacher, {section.teacher}, has {acc:.2f} % on the validation images{stated}."


def aligned(table):
    """A Markdown table whose columns line up. table: rows of strings, the first one the header."""
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [table[0], ["-" * width for width in widths], *table[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def csv_text(rows):
    """A line a row, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(blocks):
    form = {
        "h1": "# {}".format,
        "h2": "## {}".format,
        "p": str,
        "table": aligned,
        "pre": "```bash\n{}\n```".format,
        "picture": lambda picture: f"![{picture[0].stem}]({picture[0].name})\n\n{picture[1]}",
    }
    return "\n\n".join(form[kind](content) for kind, content in blocks) + "\n"


def page(blocks):
    """One HTML file that needs no other."""
    from jinja2 import Environment, FileSystemLoader  # only here: the terminal's table does not need it

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    return environment.get_template("page.html.jinja").render(blocks=blocks)
