"""The report as rows, and the rows as text: for the terminal, and in one document as Markdown and as HTML."""

import base64
from pathlib import Path

from engine.flops import forward_macs, relative_cost
from models import model_dict
from reporting import published
from reporting.groups import kd_baseline, relative_to_kd

ACCURACIES = ("best_acc", "last_acc", "test_acc_best", "test_acc_last")
COLUMNS = {  # of a row: (title, format)
    **{name: (name, "") for name in ("teacher", "student", "setting", "method", "seeds")},
    "best_acc": ("best %", ".2f"),
    "last_acc": ("last %", ".2f"),
    "test_acc_best": ("test %, best epoch", ".2f"),
    "test_acc_last": ("test %, last epoch", ".2f"),
    "published": ("published %", ".2f"),
    "difference": ("difference", "+.2f"),
    "teacher_acc": ("its teacher %", ".2f"),
    "teacher_queries": ("images the teacher saw", ",.0f"),
    "computation": ("computation, % of KD", ".2f"),
    "computation_usual": ("same, backward = 2 forwards", ".2f"),
    "tmac": ("TMAC", ".2f"),
    "time": ("time, % of KD", ".1f"),
    "train_seconds": ("training, s", ".1f"),
}
IN_A_TERMINAL = set(COLUMNS) - {"published", "difference", "teacher_acc", "computation_usual", "tmac"}


def row(section, name, g):
    """{column: number, text or None} of a group of a section; "..._std": over the seeds."""
    kd, stated = kd_baseline(g, [other for _, other in section.named]), published.accuracy(g.first)

    def computation(ending):  # as the runs have it, else from the operations of `kd`
        own = g.mean(f"computation{ending}")
        return relative_to_kd(g, kd, f"train_macs{ending}") if own is None else 100 * own

    return {
        "teacher": section.teacher,
        "student": section.student,
        "setting": section.setting,
        "method": name,
        "seeds": len(g.runs),
        **{column: g.mean(column) for column in (*ACCURACIES, "teacher_acc", "teacher_queries")},
        **{f"{column}_std": g.spread(column) for column in ACCURACIES},
        "published": stated,
        "difference": stated and g.mean("best_acc") - stated,
        "computation": computation(""),
        "computation_usual": computation("_usual"),
        "tmac": g.mean("train_macs") / 1e12,
        "time": relative_to_kd(g, kd, "train_seconds"),
        "train_seconds": g.mean("train_seconds") if len(g.machines) == 1 else None,
        "command": g.command,
    }


def table(rows, columns=tuple(COLUMNS)[3:]):
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
    done = f"{len(accuracies)} of {run.settings['epoch']}"
    return str(run.folder), done, f"{max(accuracies):.2f}" if accuracies else ""


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


def aligned(table):
    """A Markdown table whose columns line up. table: rows of strings, the first one the header."""
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [table[0], ["-" * width for width in widths], *table[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def document(form, **content):
    """report.jinja in the form of md.jinja or html.jinja, the latter one page that needs no other file."""
    from jinja2 import Environment, FileSystemLoader  # only here: the terminal's table does not need it

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=form == "html", trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"aligned": aligned, "table": table}
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    return environment.get_template("report.jinja").render(**content, form=f"{form}.jinja")
