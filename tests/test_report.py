"""report.py: what it finds, how it names and compares runs, what it writes, and that no file breaks it."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from finished_runs import PAIR, make_run, settings_of
from small_runs import KD

import report
import student_v0
import teacher
from reporting import groups, published, runs
from reporting.tables import values, write_csv, write_page

SHORT = "--epoch 60 --milestones 38"
BAD = [
    None, "", "x", -1, 1e400, 5e-324, float("nan"), "9" * 5000, [], [1], {}, {"a": 1}, True, "{0}", "a\nb\x1b[31m",
    "\ud800", "<script>alert(1)</script>", "$\\bad{$", "=cmd()",
]  # fmt: skip
HOSTILE = "<script>$\\bad{$ \x1b[31m\u202e\ud800\n{}"


@pytest.fixture
def folders(tmp_path):
    """A published pair: KD and UNIX of three seeds, the networks alone, and a run that is not finished."""
    root = tmp_path / "experiments"
    make_run(root / "teacher", "teacher.py --arch vgg13 --seed 1", best_acc=75.0, train_macs=20e12)
    learned = {"teacher_settings": settings_of(root / "teacher")}
    for seed in range(3):
        unix = {"train_macs": 8e12, "train_seconds": 90 + seed, "computation": 0.8, "computation_usual": 0.75}
        kd = {"train_macs": 10e12, "train_seconds": 120 + seed, "computation": 1, "computation_usual": 1}
        both = {"config": learned, "best_acc": 73 + seed / 2}
        make_run(root / f"unix{seed}", f"{PAIR} --seed {seed}", teacher_queries=4800, **unix, **both)
        make_run(root / f"kd{seed}", f"{PAIR} --seed {seed} {KD}", teacher_queries=6400, **kd, **both)
    make_run(root / "alone", "teacher.py --arch vgg8", train_macs=5e12)
    (make_run(root / "begun", f"{PAIR} --T 2") / "result.json").unlink()
    return root


def tables_of(folder):
    return groups.make_tables(runs.find([folder])[0])


def names(folder):
    """{title: names of the rows}"""
    return {table.title: [row.name for row in table.rows] for table in tables_of(folder)}


def printed(out):
    """{name of the row: {title: cell}} of the printed tables, whose columns have to line up."""
    rows = {}
    for block in out.split("## ")[1:]:
        table = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(line) for line in table}) == 1
        titles, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        rows |= {line[0]: dict(zip(titles[1:], line[1:])) for line in lines}
    return rows


def write_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def assert_harmless(text):
    assert all(letter.isprintable() or letter == "\n" for letter in text)


# ----------------------------------------------------------------------------------------------------------- tables


def test_printed_table(folders, capsys):
    report.main([str(folders)])
    out, err = capsys.readouterr()
    titles = ["seeds", "best %", "last %", "published %", "images the teacher saw", "computation relative to KD"]
    titles += ["backward = 2 forwards", "time relative to KD"]
    expected = {
        "teacher": ["1", "75.00", "69.00", "75.38", "0", "200.0%", "100.0%", f"{100 / 1.21:.1f}%"],
        "alone": ["1", "70.00", "69.00", "70.68", "0", "50.0%", "100.0%", f"{100 / 1.21:.1f}%"],
        "KD": ["3", "73.50 ± 0.50", "69.00 ± 0.00", "73.38", "6,400", "100.0%", "100.0%", "100.0%"],
        "UNIX": ["3", "73.50 ± 0.50", "69.00 ± 0.00", "73.55", "4,800", "80.0%", "75.0%", f"{91 / 1.21:.1f}%"],
    }
    assert out.startswith("## vgg13 → vgg8\n")
    assert printed(out) == {name: dict(zip(titles, cells)) for name, cells in expected.items()}
    assert err == f"{folders}/begun: unfinished, passed over\n"


def test_the_page_and_the_csv(folders, tmp_path):
    out = tmp_path / "out"
    report.main([str(folders), "--out", str(out)])
    page = (out / "report.html").read_text()
    loaded = re.findall(r'(?:src|href)="(.{22})', page)
    assert loaded == ["data:image/png;base64,"] * 3 and len(list(out.glob("*.png"))) == 3
    with (out / "report.csv").open(newline="") as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "alone", "KD", "UNIX"]
    expected = {"seeds": 3, "best_acc": 73.5, "best_acc_std": 0.5, "published": 73.55, "time": 91 / 121}
    assert {name: float(rows["UNIX"][name]) for name in expected} == pytest.approx(expected)
    assert rows["alone"]["best_acc_std"] == "" and all(row["command"] in page for row in rows.values())


def test_bundled_results(capsys):
    """Every run is in a table, also those of earlier versions."""
    results = ROOT / "experiments" / "results"
    shown = [run.folder.name for table in tables_of(results) for row in table.rows for run in row.runs]
    assert sorted(shown) == sorted(path.name for path in results.iterdir())
    for run in runs.find([results])[0]:
        program, *flags = shlex.split(run.command)
        {"teacher.py": teacher, "student_v0.py": student_v0}[program].make_parser().parse_args(flags)
    report.main([str(results)])
    out, err = capsys.readouterr()
    (table,) = [block for block in out.split("## ") if block.startswith("resnet20 → resnet8\n")]
    rows = printed("## " + table)
    assert rows["KD, 60 epochs"]["best %"] == "59.20 ± 0.23" and rows["UNIX"]["time relative to KD"] == "" and not err
    assert {"alone", "random, mixed, 60 epochs", "UNIX, 60 epochs, teacher resnet20_plain"} <= rows.keys()


def test_cost_table(capsys):
    report.main(["--cost"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [tuple(line[:2]) for line in lines] == list(published.pairs()) and len(lines) == 12
    for _, _, ft, fs, _, ours, stated, usual in lines:
        assert float(ours) == pytest.approx(float(stated), abs=0.35)
        assert float(usual) == pytest.approx(75 + 100 / (float(ft) / float(fs) + 3), abs=0.02)


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "line, name",
    [
        (KD, "KD"),
        ("", "UNIX"),
        ("--strategy 0", "random, mixed"),
        ("--strategy 0 --b 64 --w 1000", "random, unmixed"),
        ("--strategy 0 --k 64 --b 64", "random, mixed, b 64, k 64"),  # so shallow a mask mixes: no KD
        (f"{KD} --T 2 --other-distill SP", "KD, T 2, with SP"),
        ("--ce-weight 0.5 --strategy 1 --milestones", "UNIX, ce weight 0.5, milestones none, strategy 1"),
        ("--score-every 5 --epoch 1000 --milestones 7", "UNIX, 1,000 epochs, scored every 5 epochs"),
        ("--batch-size 32 --k 32 --b 32 --strategy 0 --w 1000", "KD, batch size 32"),
        ("--precision fp32", "UNIX, fp32"),
        ("--teacher-ckpt 040", "UNIX, teacher vgg13 040"),
    ],
)
def test_a_name_says_what_is_not_published(tmp_path, line, name):
    make_run(tmp_path / "other", f"{PAIR} --gamma 0.2")  # so that nothing is shared
    make_run(tmp_path / "run", f"{PAIR} {line} --seed 4 --gpu-id 2 --save-interval 7 --fresh")
    ((title, found),) = names(tmp_path).items()
    assert title == "vgg13 → vgg8" and set(found) == {name, "UNIX, gamma 0.2"}


def test_a_title_says_what_all_rows_share(tmp_path):
    make_run(tmp_path / "unix", f"{PAIR} {SHORT} --train-limit 5000")
    make_run(tmp_path / "alone60", f"teacher.py --arch vgg8 {SHORT} --train-limit 5000")
    make_run(tmp_path / "else", "teacher.py --arch vgg19")
    assert names(tmp_path) == {"vgg13 → vgg8, 60 epochs, 5,000 images": ["alone", "UNIX"], "vgg19 alone": ["alone"]}
    make_run(tmp_path / "alone240", "teacher.py --arch vgg8 --train-limit 5000")
    make_run(tmp_path / "whole", PAIR)
    make_run(tmp_path / "self", "student_v0.py --teacher-path x/teacher_vgg8 --student-arch vgg8 --train-limit 5000")
    assert names(tmp_path) == {
        "vgg13 → vgg8": ["UNIX"],
        "vgg8 → vgg8, 5,000 images": ["alone", "alone, 60 epochs", "UNIX"],
        "vgg13 → vgg8, 5,000 images": ["alone", "alone, 60 epochs", "UNIX, 60 epochs"],
        "vgg19 alone": ["alone"],
    }


def test_a_network_is_called_the_teacher_only_beside_those_who_learned_from_it(folders):
    pair = ["teacher", "alone", "KD", "UNIX"]
    make_run(folders / "another", f"teacher.py --arch vgg13 {SHORT}")
    assert names(folders) == {"vgg13 → vgg8": pair, "vgg13 alone, 60 epochs": ["alone"]}
    make_run(folders / "seed0", "teacher.py --arch vgg13")  # the same row, though nobody learned from this seed
    assert names(folders) == {"vgg13 → vgg8": pair, "vgg13 alone, 60 epochs": ["alone"]}
    line = "student_v0.py --teacher-path x/unix0 --student-arch resnet8 --teacher-arch vgg8"
    learned = {"teacher_arch": "vgg8", "teacher_settings": settings_of(folders / "unix0")}
    make_run(folders / "next", line, config=learned)  # a distilled teacher has its own table
    assert [found for title, found in names(folders).items() if title.startswith("vgg8 → resnet8")] == [["UNIX"]]


def test_runs_of_other_teachers_or_milestones_are_other_rows(tmp_path):
    make_run(tmp_path / "e", PAIR.replace("teacher_vgg13", "teacher_vgg13_seed1"))
    make_run(tmp_path / "alone", "teacher.py --arch vgg8")
    assert names(tmp_path) == {"vgg13 → vgg8": ["alone", "UNIX"]}  # one teacher needs no name
    make_run(tmp_path / "a", f"{PAIR} --epoch 60 --milestones 30")
    make_run(tmp_path / "b", f"{PAIR} --epoch 60 --milestones 40")
    make_run(tmp_path / "c", PAIR)
    write_config(make_run(tmp_path / "d", f"{PAIR} --seed 1"), teacher_sha256="retrained")
    found = ["alone", "UNIX", "UNIX (2)", "UNIX, teacher vgg13_seed1", "UNIX, 60 epochs", "UNIX, 60 epochs (2)"]
    assert names(tmp_path) == {"vgg13 → vgg8": found}


# --------------------------------------------------------------------------------------- published figures, costs


def test_kd_with_a_cache_is_no_measure_for_others(tmp_path):
    cached = {"train_macs": 4e12, "train_seconds": 40, "computation": 0.4, "computation_usual": 0.5}
    make_run(tmp_path / "cached", f"{PAIR} {KD} --teacher-cache", **cached)
    make_run(tmp_path / "alone", "teacher.py --arch vgg8", train_macs=5e12, train_seconds=60)

    def row(name):
        (table,) = tables_of(tmp_path)
        return next(values(table, row) for row in table.rows if row.name == name)

    assert np.isnan(row("alone")["time"]) and np.isnan(row("alone")["computation"])
    make_run(tmp_path / "kd", f"{PAIR} {KD}", train_macs=10e12, train_seconds=100, computation=1)
    assert row("alone")["time"] == 0.6 and row("alone")["computation"] == 0.5
    assert row("KD, teacher cache")["time"] == 0.4 and row("KD, teacher cache")["computation"] == 0.4


@pytest.mark.parametrize(
    "line, accuracy",
    [
        ("student_v0.py --teacher-path x/teacher_vgg13 --student-arch MobileNetV2 --lr 0.01 --seed 7", 68.09),
        ("student_v0.py --teacher-path x/teacher_vgg13 --student-arch MobileNetV2", np.nan),
        ("student_v0.py --teacher-path x/teacher_vgg19 --student-arch vgg8", np.nan),
        (f"{PAIR} {KD} --precision fp32", 73.38),
        (f"{PAIR} --holdout 100", np.nan),
        (f"{PAIR} --strategy 0", np.nan),
        ("teacher.py --arch resnet56", 73.44),
        ("teacher.py --arch ShuffleV1 --lr 0.01", 70.77),
        ("teacher.py --arch vgg16", np.nan),
    ],
)
def test_a_published_figure_stands_only_beside_the_published_recipe(tmp_path, line, accuracy):
    assert runs.FinishedRun(make_run(tmp_path / "run", line)).published == pytest.approx(accuracy, nan_ok=True)


def test_a_teacher_of_another_recipe_is_not_the_published_one(tmp_path):
    own = settings_of(make_run(tmp_path / "teacher", "teacher.py --arch vgg13"))
    as_published = [own, own | {"seed": 3, "compile": "auto"}, None, ["of another project"]]
    for i, settings in enumerate([*as_published, own | {"epoch": 60}, own | {"train_limit": 9}]):
        run = runs.FinishedRun(make_run(tmp_path / f"{i}", PAIR, config={"teacher_settings": settings}))
        assert run.published == pytest.approx(73.55 if i < len(as_published) else np.nan, nan_ok=True)


def test_costs_are_compared_with_kd_of_as_many_epochs_and_the_same_teacher(tmp_path):
    lines = {
        "kd": (f"{PAIR} {KD}", 10, 200), "kd60": (f"{PAIR} {KD} {SHORT}", 12, 50),
        "alone": ("teacher.py --arch vgg8", 6, 50), "alone60": (f"teacher.py --arch vgg8 {SHORT}", 6, 50),
        "k": (f"{PAIR} --k 40", 5, 100), "unix60": (f"{PAIR} {SHORT}", 5, 100),
        "longer": (f"{PAIR} --epoch 300", 5, 100), "teacher": (PAIR.replace("vgg13", "vgg13_seed1"), 5, 100),
        "another kd": (f"{PAIR} {KD} --T 2", 1, 1),
    }  # fmt: skip
    for name, (line, macs, seconds) in lines.items():
        make_run(tmp_path / name, line, train_macs=macs, train_seconds=seconds)
    (table,) = tables_of(tmp_path)
    found = {row.first.folder.name: values(table, row) for row in table.rows}
    assert (found["alone"]["computation"], found["alone60"]["computation"]) == (0.6, 0.5)
    assert (found["k"]["time"], found["unix60"]["time"]) == (0.5, 2)
    assert np.isnan(found["longer"]["time"]) and np.isnan(found["teacher"]["time"])


def test_times_are_compared_machine_by_machine(tmp_path):
    for seed, (machine, kd_seconds, seconds) in enumerate([("one", 100, 50), ("two", 1000, 700), ("three", None, 9)]):
        make_run(tmp_path / f"{seed}", f"{PAIR} --seed {seed}", config={"device": machine}, train_seconds=seconds)
        if kd_seconds:
            line = f"{PAIR} {KD} --seed {seed}"
            make_run(tmp_path / f"kd{seed}", line, config={"device": machine}, train_seconds=kd_seconds)
    (table,) = tables_of(tmp_path)
    assert values(table, table.rows[-1])["time"] == pytest.approx((0.5 + 0.7) / 2)


# -------------------------------------------------------------------------------------------- commands, what is found


@pytest.mark.parametrize(
    "line", ["teacher.py --arch vgg8 --experiments 'my $HOME' --milestones", f"{PAIR} {KD} --T 2.5"]
)
def test_the_command_repeats_the_runs(tmp_path, line):
    for seed in (0, 3):
        make_run(tmp_path / f"{seed}", f"{line} --seed {seed} --gpu-id={seed} --fresh --debug")
    ((row,),) = (table.rows for table in tables_of(tmp_path))
    script = 'python() { printf "%s\\n" "$#" "$@"; }; ' + row.command
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\n")
    expected = [shlex.split(f"{line} --seed {seed}") for seed in (0, 3)]
    assert words[:-1] == [word for typed in expected for word in (str(len(typed)), *typed)]


def test_command_line(folders, tmp_path, capsys):
    report.main([str(folders / "kd0"), "--out", str(tmp_path / "out"), str(folders / "kd1")])
    assert printed(capsys.readouterr().out)["KD"]["seeds"] == "2"
    for words, message in (([], "name a FOLDER"), (["--out", "", "x"], "argument --out"), ([""], "argument FOLDER")):
        with pytest.raises(SystemExit, match="2"):
            report.main(words)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="none of these folders holds a finished run"):
        report.main([str(folders / "begun")])


def test_head_ends_it_without_an_error():
    command = f"{shlex.quote(sys.executable)} report.py --cost | true"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.stderr == ""


def test_a_run_counts_once_and_one_s_own_goes_before_a_bundled_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "BUNDLED", tmp_path / "bundled")
    for place, accuracy in (("bundled", 60), ("some/where/deep", 61)):
        make_run(tmp_path / place / "run", "teacher.py --arch vgg8", best_acc=accuracy)
    report.main([str(tmp_path), str(tmp_path / "bundled" / "run")])
    out, err = capsys.readouterr()
    assert printed(out)["alone"]["best %"] == "61.00"
    assert err == f"{tmp_path}/bundled/run: same settings and seed as {tmp_path}/some/where/deep/run, passed over\n"


def test_links_are_followed_and_what_cannot_be_read_is_named(tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "scratch" / "run", "teacher.py --arch vgg8")
    (tmp_path / "runs" / "closed").mkdir(parents=True)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "scratch" / "run")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    scandir = os.scandir

    def refuse(path):  # as for a user without the permission; tests may run as root
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report.main([str(tmp_path / "runs"), str(tmp_path / "nowhere")])
    out, err = capsys.readouterr()
    assert printed(out)["alone"]["seeds"] == "1"
    assert [line.split(":")[0] for line in err.splitlines()] == [f"{tmp_path}/runs/closed", f"{tmp_path}/nowhere"]


# ---------------------------------------------------------------------------------------------------- hostile runs


def test_no_value_in_a_file_breaks_the_report(tmp_path, capsys):
    """Each bad value in each field, in a copy of a sound run of its own."""
    make_run(tmp_path / "good", "teacher.py --arch vgg19")
    run = make_run(tmp_path / "student", PAIR, computation=0.8, computation_usual=0.75)
    contents = {name: json.loads((run / name).read_text()) for name in ("config.json", "result.json")}
    fields = [(name, None, key) for name, content in contents.items() for key in content]
    for part in ("effective_settings", "defaults"):
        fields += [("config.json", part, flag) for flag in contents["config.json"][part]]
    for i, (name, part, key) in enumerate(fields):
        for j, bad in enumerate(BAD):
            folder = tmp_path / f"{i}" / f"{j}"
            folder.mkdir(parents=True)
            shutil.copy(run / "metrics.csv", folder)
            changed = json.loads(json.dumps(contents))
            (changed[name][part] if part else changed[name])[key] = bad
            for file, content in changed.items():
                (folder / file).write_text(json.dumps(content))
    report.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert printed(out)["alone"]["best %"] == "70.00" and len(err.splitlines()) > 500
    found = tables_of(tmp_path)
    write_page(found, {}, tmp_path / "report.html")
    write_csv(found, tmp_path / "report.csv")
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.csv").read_text()
    assert_harmless(out + err + page + text)
    assert len(found) > 50 and "alert(1)" in page and "<script>" not in page and "=cmd()" in text
    assert not [cell for row in csv.reader(text.splitlines()) for cell in row if cell.startswith(("=", "@"))]


def test_no_damaged_file_breaks_the_report(tmp_path, capsys):
    make_run(tmp_path / "good", "teacher.py --arch vgg19")
    damage = {
        "config.json": [b"", b"[]", b"{", b"\xff", b"[" * 100_000], "result.json": [b"", b"[]", b"null", b"{}"],
        "metrics.csv": [b"epoch\n1\n", b"epoch,val/cls_acc\n1,x\n", b"epoch,val/cls_acc\n1,nan\n", b"\xff\xfe"],
        "counter.npy": [b"", b"\x93NUMPY", np.array(3), np.zeros((0, 4)), np.array([["a"]]), np.array([[{}]])],
    }  # fmt: skip
    paths = [make_run(tmp_path / "without cost", PAIR, train_seconds=0) / "result.json"]
    for name, contents in damage.items():
        for i, content in enumerate(contents):
            paths.append(make_run(tmp_path / f"{name}{i}", PAIR) / name)
            if isinstance(content, bytes):
                paths[-1].write_bytes(content)
            else:
                np.save(paths[-1], content)
        for make in (os.mkdir, os.mkfifo):
            paths.append(make_run(tmp_path / f"{name} {make.__name__}", PAIR) / name)
            paths[-1].unlink(missing_ok=True)
            make(paths[-1])
    report.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert list(printed(out)) == ["alone"]
    assert sorted(line.split(": ")[0] for line in err.splitlines()) == sorted(str(path.parent) for path in paths)


def test_a_user_s_matplotlib(tmp_path):
    """A notebook's backend, and a matplotlibrc that asks for LaTeX."""
    make_run(tmp_path / "runs" / "$\\bad{$", PAIR, config={"arch": HOSTILE}, images=8)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nonsense\n")
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, ROOT / "report.py", "runs", "--out", "out"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"frontier.png", "curves.png", "selection.png"}
