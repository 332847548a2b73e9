"""Finished runs as the paper's table and as pictures: what each reached, and what it cost.

    python report.py experiments                     a short table
    python report.py experiments --out report        also report.html, report.md, report.csv and pictures there
    python report.py --cost                          what the published pairs cost, without training

Takes folders of runs, or folders that hold such. Runs that differ in the seed alone are one row, as mean ± standard
deviation of the sample.
"""

import argparse
import sys
from pathlib import Path

from engine.run import write_file
from reporting import tables
from reporting.groups import group, sections
from reporting.results import find
from utils import run_main


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, metavar="FOLDER", help="folders of runs, or folders that hold such")
    add("--out", type=Path, metavar="DIR", help="write the whole report there (only a table is printed)")
    add("--data-root", type=Path, metavar="DIR", help="where cifar-100-python/ lies, for pictures (what each run says)")
    add("--cost", action="store_true", help="print what the published pairs cost, without training anything")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.cost:
        return print(tables.aligned(tables.cost_table()))
    if not args.folders:
        parser.error("which FOLDER? or --cost")
    runs, passed_over = find(args.folders)
    for line in passed_over:
        print(line, file=sys.stderr)
    groups, unfinished = group(runs), [run for run in runs if run.result is None]
    if groups:
        found = sections(groups)
        rows = [tables.rows(section, groups) for section in found]
        every_row = [row for of_section in rows for row in of_section]
        print(tables.aligned(tables.table(every_row, tables.IN_A_TERMINAL)))
    for folder, done, best in map(tables.progress, unfinished):
        print(f"unfinished: {folder}, epoch {done}" + (f", best {best} % so far" if best else ""))
    if not groups:
        sys.exit("error: none of these folders holds a finished run")
    if args.out:
        from reporting import figures  # only here: the table needs no matplotlib

        args.out.mkdir(parents=True, exist_ok=True)
        pictures = figures.draw(found, groups, args.out, args.data_root)
        blocks = list(tables.blocks(zip(found, rows), groups, unfinished, pictures))
        write_file(args.out / "report.csv", tables.csv_text(every_row).encode())
        write_file(args.out / "report.md", tables.markdown(blocks).encode())
        write_file(args.out / "report.html", tables.page(blocks).encode())
        print(f"written: {args.out / 'report.html'}, with report.md, report.csv and {len(pictures)} pictures beside it")


if __name__ == "__main__":
    run_main(main)
