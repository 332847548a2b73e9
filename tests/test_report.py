"""report.py and reporting/ but for its figures, on run folders."""

import csv
import html.parser
import json
import re
import shlex
import shutil
import subprocess
import time
from statistics import mean, stdev

import numpy as np
import pytest
from finished_runs import make_run
from test_flops import PUBLISHED

import report
from engine.run import cpu_name
from reporting import groups, published, results

KD = "--strategy 0 --k 64 --b 64 --w 1000"
PAIR = "--teacher-path experiments/teacher_vgg13 --student-arch vgg8"


@pytest.fixture
def folders(tmp_path):
    """A published pair: KD and UNIX of three seeds, the networks alone; an unfinished, a broken and a foreign run."""
    root = tmp_path / "experiments"
    for seed in range(3):
        unix = {"train_macs": 8e12, "train_seconds": 90 + seed, "computation": 0.8, "computation_usual": 0.75}
        kd = {"train_macs": 10e12, "train_seconds": 120 + seed, "computation": 1.0, "computation_usual": 1.0}
        more = {"teacher_acc": 75.0, "best_acc": 73 + seed / 2}
        seeded = f"{PAIR} --seed {seed}"
        make_run(
            root / f"unix{seed}", "student_v0.py", seeded, "vgg13", images=64, teacher_queries=4800, **unix, **more
        )
        make_run(root / f"kd{seed}", "student_v0.py", f"{seeded} {KD}", "vgg13", teacher_queries=6400, **kd, **more)
    make_run(root / "alone", "teacher.py", "--arch vgg8", train_macs=5e12)
    make_run(root / "teacher", "teacher.py", "--arch vgg13", best_acc=75.0, train_macs=20e12)
    make_run(root / "unfinished", "student_v0.py", f"{PAIR} --T 2", "vgg13", epochs=57, finished=False)
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    (root / "foreign" / "ckpt").mkdir(parents=True)
    (root / "notes").mkdir()
    return root


def groups_of(*folders):
    return groups.group(results.find(folders)[0])


def seeds_of(group):
    return [run.seed for run in group.runs]


def the_group(folder, program, line, teacher_arch=None, **more):
    make_run(folder, program, line, teacher_arch, **more)
    (group,) = groups_of(folder)
    return group


def printed_cells(out):
    """{(teacher, student, method): the row's other cells} of the printed table, which has to be aligned."""
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {tuple(line[:3]): line[3:] for line in lines[2:]}


# ----------------------------------------------------------------------------------------------------------- tables


def test_printed_table(folders, capsys):
    report.main([str(folders)])
    out, err = capsys.readouterr()
    spread, pair = f"73.50 ± {stdev([73, 73.5, 74]):.2f}", ("vgg13", "vgg8")
    assert printed_cells(out) == {
        (*pair, "teacher"): ["1", "75.00", "69.00", "0", "", "", "100.0"],
        (*pair, "alone"): ["1", "70.00", "69.00", "0", "50.00", f"{100 * 100 / 121:.1f}", "100.0"],
        (*pair, "KD"): ["3", spread, "69.00 ± 0.00", "6,400", "100.00", "100.0", "121.0"],
        (*pair, "UNIX"): ["3", spread, "69.00 ± 0.00", "4,800", "80.00", f"{100 * 91 / 121:.1f}", "91.0"],
    }
    assert [line.split(":")[0] for line in err.splitlines()] == [f"{folders}/broken", f"{folders}/foreign"]
    accuracies = np.loadtxt(folders / "unfinished" / "metrics.csv", delimiter=",", skiprows=1)[:, 1]
    assert f"unfinished: {folders}/unfinished, epoch 57 of 240, best {accuracies.max():.2f} % so far" in out


def test_written_tables(folders, tmp_path):
    out = tmp_path / "out"
    report.main([str(folders), "--out", str(out)])
    with (out / "report.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "alone", "KD", "UNIX"]
    unix, best = rows["UNIX"], [73, 73.5, 74]
    expected = {
        "seeds": 3, "best_acc": mean(best), "best_acc_std": stdev(best), "last_acc": 69, "last_acc_std": 0,
        "published": 73.55, "difference": mean(best) - 73.55, "computation": 80, "computation_usual": 75, "tmac": 8,
        "time": 100 * 91 / 121, "train_seconds": 91,
    }  # fmt: skip
    assert {name: float(unix[name]) for name in expected} == pytest.approx(expected)
    assert [float(rows[name]["published"]) for name in rows] == [75.38, 70.68, 73.38, 73.55]
    assert (rows["alone"]["computation"], rows["alone"]["computation_usual"]) == ("50.0", "")
    text = (out / "report.md").read_text()
    assert "\n## vgg13 → vgg8\n" in text
    assert f"Finished runs: 8, on {cpu_name()}, bf16. Settings of all, beside the published ones: none." in text
    line = next(line for line in text.splitlines() if line.startswith("| UNIX"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "UNIX", "3", "73.50 ± 0.50", "69.00 ± 0.00", "73.55", "-0.05", "75.00", "4,800", "80.00", "75.00", "8.00",
        "75.2", "91.0",
    ]  # fmt: skip
    assert "57 of 240" in text
    for row in rows.values():
        assert row["command"] in text


def test_published_figures_agree_with_the_ones_of_the_cost_test():
    assert {" ".join(pair): row["computation"] for pair, row in published.pairs().items()} == PUBLISHED


def test_cost_table(capsys):
    report.main(["--cost"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert {f"{row[0]} {row[1]}" for row in rows} == set(PUBLISHED)
    for teacher_arch, student, ft, fs, _, ours, stated, usual in rows:
        assert float(ours) == pytest.approx(PUBLISHED[f"{teacher_arch} {student}"], abs=0.35)
        assert float(stated) == PUBLISHED[f"{teacher_arch} {student}"]
        kd = 64 * (float(ft) + 3 * float(fs))
        assert float(usual) == pytest.approx(100 * (48 / 64 + 64 * float(fs) / kd), abs=0.02)


# --------------------------------------------------------------------------------------------- methods and settings


@pytest.mark.parametrize(
    "line, name",
    [
        (KD, "KD"),
        ("", "UNIX"),
        ("--strategy 0 --k 64 --b 32 --w 1000", "random, k 64, w 1000"),
        ("--strategy 0 --k 64 --b 64", "random, k 64, b 64"),  # so shallow a mask mixes: no KD
        (f"{KD} --T 2 --other-distill SP", "KD, T 2, other_distill SP"),
        ("--ce-weight 0.5 --strategy 1 --milestones", "UNIX, strategy 1, ce_weight 0.5, milestones none"),
        ("--lr 0.01", "UNIX, lr 0.01"),
        ("--score-every 5", "UNIX, score_every 5"),
        ("--batch-size 32 --k 32 --b 32 --strategy 0 --w 1000", "KD, batch_size 32"),
        ("--sync-bn", "UNIX, sync_bn True"),
    ],
)
def test_methods_and_settings_are_told_apart(tmp_path, line, name):
    group = the_group(tmp_path / "run", "student_v0.py", f"{PAIR} {line}", "vgg13")
    assert ", ".join([group.first.method, *group.settings]) == name
    assert (published.accuracy(group.first) is not None) == (name in ("KD", "UNIX"))


@pytest.mark.parametrize(
    "line, teacher_arch, accuracy",
    [
        ("--teacher-path x/teacher_vgg13/ --student-arch MobileNetV2 --lr 0.01 --seed 7", "vgg13", 68.09),
        ("--teacher-path x/teacher_vgg13_seed2 --student-arch MobileNetV2 --lr 0.01", "vgg13", 68.09),
        ("--teacher-path x/teacher_vgg13 --student-arch MobileNetV2", "vgg13", None),
        ("--teacher-path x/teacher_vgg13_epoch3 --student-arch vgg8", "vgg13", None),
        ("--teacher-path x/teacher_vgg13 --student-arch vgg8 --teacher-ckpt 040", "vgg13", None),
        ("--teacher-path x/teacher_vgg13 --student-arch vgg8 --holdout 100", "vgg13", None),
        ("--teacher-path x/teacher_vgg13 --student-arch vgg8 --dataset synthetic", "vgg13", None),
        ("--teacher-path x/teacher_vgg19 --student-arch vgg8", "vgg19", None),
        (f"--teacher-path x/teacher_vgg16 --student-arch vgg8 --save-interval 7 --gpu-id 2 {KD}", "vgg16", 72.10),
    ],
)
def test_published_figure_only_beside_the_published_recipe(tmp_path, line, teacher_arch, accuracy):
    group = the_group(tmp_path / "run", "student_v0.py", line, teacher_arch)
    assert published.accuracy(group.first) == accuracy


def test_published_figures_of_networks_alone(tmp_path):
    for line, accuracy in (
        ("--arch resnet56", 73.44), ("--arch resnet20", 69.63), ("--arch ShuffleV1 --lr 0.01", 70.77),
        ("--arch ShuffleV1", None), ("--arch vgg16", None), ("--arch resnet110", None), ("--arch vgg8 --epoch 3", None),
    ):  # fmt: skip
        group = the_group(tmp_path / line.replace(" ", ""), "teacher.py", line)
        assert published.accuracy(group.first) == accuracy, line


def test_grouping_over_seeds_only(folders):
    make_run(folders / "k", "student_v0.py", f"{PAIR} --k 40", "vgg13")
    make_run(folders / "elsewhere", "student_v0.py", f"{PAIR} --seed 9 --gpu-id 3 --save-interval 9", "vgg13")
    seeds = {(g.first.method, g.first.settings.get("k"), g.first.network): seeds_of(g) for g in groups_of(folders)}
    assert seeds == {
        ("alone", None, "vgg13"): [0], ("alone", None, "vgg8"): [0], ("KD", 64, "vgg8"): [0, 1, 2],
        ("UNIX", 48, "vgg8"): [0, 1, 2, 9], ("UNIX", 40, "vgg8"): [0],
    }  # fmt: skip


def test_precisions_are_told_apart_where_they_were_given(folders):
    config = json.loads((folders / "kd1" / "config.json").read_text())
    (folders / "kd1" / "config.json").write_text(json.dumps({**config, "precision": "fp32"}))  # what auto chose
    make_run(folders / "given", "student_v0.py", f"{PAIR} {KD} --seed 3 --precision fp32", "vgg13")
    found = [g for g in groups_of(folders) if g.first.method == "KD"]
    assert [(g.settings, seeds_of(g)) for g in found] == [([], [0, 1, 2]), (["precision fp32"], [3])]
    assert len(found[0].machines) == 2  # so their seconds do not compare


def test_a_run_from_before_a_flag_has_its_default(folders):
    config = json.loads((folders / "unix0" / "config.json").read_text())
    for part in ("settings", "defaults", "effective_settings"):
        del config[part]["score_every"]
    (folders / "unix0" / "config.json").write_text(json.dumps(config))
    make_run(folders / "stale", "student_v0.py", f"{PAIR} --score-every 5", "vgg13")
    found = [g for g in groups_of(folders) if g.first.method == "UNIX"]
    assert [(g.settings, seeds_of(g)) for g in found] == [([], [0, 1, 2]), (["score_every 5"], [0])]


def test_a_section_holds_a_pair_of_whatever_number_of_epochs(folders):
    make_run(folders / "short", "student_v0.py", f"{PAIR} {KD} --epoch 45 --milestones 28", "vgg13")
    make_run(folders / "small", "student_v0.py", f"{PAIR} --train-limit 100", "vgg13")
    make_run(folders / "other", "teacher.py", "--arch vgg8 --batch-size 32", None)
    make_run(folders / "self", "student_v0.py", "--teacher-path teacher_vgg8 --student-arch vgg8", "vgg8")
    found = {section.title: [name for name, _ in section.named] for section in groups.sections(groups_of(folders))}
    assert found == {
        "vgg13 → vgg8": ["teacher", "alone", "KD", "KD, epoch 45, milestones 28", "UNIX"],
        "vgg13 → vgg8, train_limit 100": ["UNIX"],
        "vgg8 → vgg8": ["alone", "UNIX"],
        "Networks alone": ["vgg8 alone, batch_size 32"],
    }


def test_a_section_s_title_says_only_what_all_of_it_shares(tmp_path):
    short = "--epoch 60 --milestones 38"
    make_run(tmp_path / "unix", "student_v0.py", f"{PAIR} {short}", "vgg13")
    make_run(tmp_path / "alone60", "teacher.py", f"--arch vgg8 {short}")
    make_run(tmp_path / "else", "teacher.py", "--arch vgg19")
    (section, _) = groups.sections(groups_of(tmp_path))
    assert section.title == "vgg13 → vgg8, epoch 60, milestones 38"
    assert [name for name, _ in section.named] == ["alone", "UNIX"]
    make_run(tmp_path / "alone240", "teacher.py", "--arch vgg8")
    (section, _) = groups.sections(groups_of(tmp_path))
    names = ["alone", "alone, epoch 60, milestones 38", "UNIX, epoch 60, milestones 38"]
    assert (section.title, [name for name, _ in section.named]) == ("vgg13 → vgg8", names)


def test_runs_of_several_processes_are_told_apart(folders):
    """Batch norm sees another share of a batch."""
    config = json.loads((folders / "unix1" / "config.json").read_text())
    (folders / "unix1" / "config.json").write_text(json.dumps({**config, "world_size": 4}))
    found = {tuple(g.settings): g for g in groups_of(folders) if g.first.method == "UNIX"}
    assert {settings: seeds_of(g) for settings, g in found.items()} == {(): [0, 2], ("4 processes",): [1]}
    several = found["4 processes",]
    assert groups.relative_to_kd(several, groups.kd_baseline(several, groups_of(folders)), "train_seconds") is None
    assert several.command == f"torchrun --nproc-per-node=4 student_v0.py {PAIR} --seed 1"
    assert published.accuracy(several.first) is None


def test_runs_of_different_teachers_are_told_apart(folders):
    config = json.loads((folders / "kd1" / "config.json").read_text())
    config["effective_settings"]["teacher_sha256"] = config["teacher_sha256"] = "0123456789"
    (folders / "kd1" / "config.json").write_text(json.dumps(config))
    found = [g for g in groups_of(folders) if g.first.method == "KD"]
    assert {g.settings[-1]: seeds_of(g) for g in found} == {"teacher of exper": [0, 2], "teacher 01234567": [1]}
    assert [groups.kd_baseline(g, groups_of(folders)).first.folder for g in found] == [g.first.folder for g in found]


def test_cost_is_compared_with_kd_of_the_same_teacher_task_and_machine(folders, tmp_path):
    def compared(name, line, teacher_arch="vgg13", column="train_macs"):
        make_run(tmp_path / name / "run", "student_v0.py", line, teacher_arch, train_macs=8e12)
        found = groups_of(folders, tmp_path / name)
        (group,) = [g for g in found if g.runs[0].folder.parent.name == name]
        return groups.relative_to_kd(group, groups.kd_baseline(group, found), column)

    assert compared("k", f"{PAIR} --k 40") == 80
    assert compared("T", f"{PAIR} --T 2") == 80  # no KD of these losses: the published one
    assert compared("longer", f"{PAIR} --epoch 300") is None
    assert compared("other", PAIR.replace("vgg13", "vgg16"), "vgg16") is None
    assert compared("time", f"{PAIR} --k 41", column="train_seconds") == pytest.approx(100 * 100 / 121)
    config = json.loads((folders / "kd0" / "config.json").read_text())
    (folders / "kd0" / "config.json").write_text(json.dumps({**config, "device": "another"}))
    assert compared("machine", f"{PAIR} --k 42", column="train_seconds") == pytest.approx(100 * 100 / 121.5)
    make_run(folders / "kd_sp", "student_v0.py", f"{PAIR} {KD} --other-distill SP", "vgg13", train_macs=16e12)
    assert compared("sp", f"{PAIR} --other-distill SP") == 50
    assert compared("plain", f"{PAIR} --k 43") == 80


def test_a_student_alone_is_compared_with_kd_of_each_pair_s_teacher(tmp_path, capsys):
    make_run(tmp_path / "alone", "teacher.py", "--arch vgg8", train_macs=3e12)
    for teacher, cost in (("vgg13", 6e12), ("ResNet50", 30e12)):
        line = f"--teacher-path teacher_{teacher} --student-arch vgg8 {KD}"
        make_run(tmp_path / teacher, "student_v0.py", line, teacher, train_macs=cost)
    report.main([str(tmp_path), "--out", str(tmp_path / "out")])
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        found = {row["teacher"]: float(row["computation"]) for row in csv.DictReader(file) if row["method"] == "alone"}
    assert found == {"vgg13": 50, "ResNet50": 10}


# --------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "program, line, teacher_arch",
    [
        ("teacher.py", "--arch MobileNetV2 --lr 0.01 --milestones --weight-decay 1e-05", None),
        ("teacher.py", "--arch vgg8 --experiments 'my runs/$HOME' --train-limit 100 --precision fp32", None),
        ("teacher.py", "--arch vgg8 --sync-bn --experiments runs-1.0", None),
        ("student_v0.py", PAIR, "vgg13"),
        ("student_v0.py", f"{PAIR} {KD} --T 2.5 --milestones 3 4 --epoch 5 --teacher-ckpt 040", "vgg13"),
        ("student_v0.py", f"{PAIR} --other-distill AT --holdout 5000 --teacher-arch vgg13 --data-root ~/d", "vgg13"),
    ],
)
def test_command_repeats_the_runs(tmp_path, program, line, teacher_arch):
    for seed in (0, 3):
        make_run(tmp_path / f"run{seed}", program, f"{line} --seed {seed} --gpu-id {seed} --fresh", teacher_arch)
    (group,) = groups_of(tmp_path)
    script = 'python() { printf "%s\\n" "$#" "$@"; }; ' + group.command
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\n")
    for seed in (0, 3):
        count = int(words.pop(0))
        assert words[:count] == [program, *shlex.split(line), "--seed", str(seed)]
        words = words[count:]


def test_command_of_one_seed(tmp_path):
    group = the_group(tmp_path / "run", "teacher.py", "--arch vgg8 --seed=4 --debug")
    assert group.command == "python teacher.py --arch vgg8 --seed 4"


# ---------------------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("content", ["[]", "{}", '{"best_acc": 1}', "null", "{", '{"best_acc": "x"}', "\xff"])
@pytest.mark.parametrize("file", ["result.json", "config.json"])
def test_foreign_and_damaged_folders_are_named_and_passed_over(folders, file, content, capsys):
    (folders / "kd0" / file).write_bytes(content.encode("latin-1"))
    report.main([str(folders / "kd0"), str(folders / "kd1"), str(folders / "nowhere"), str(folders / "notes")])
    out, err = capsys.readouterr()
    assert printed_cells(out)["vgg13", "vgg8", "KD"][0] == "1"
    passed_over = {line.split(":")[0] for line in err.splitlines()}
    assert passed_over == {str(folders / name) for name in ("kd0", "nowhere", "notes")}


def test_a_folder_that_cannot_be_read_is_passed_over(folders, capsys):
    (folders / "kd0" / "result.json").unlink()
    (folders / "kd0" / "result.json").mkdir()  # reading it fails as where permission is missing
    report.main([str(folders)])
    out, err = capsys.readouterr()
    assert printed_cells(out)["vgg13", "vgg8", "KD"][0] == "2" and f"{folders / 'kd0'}: " in err


def test_a_run_counts_once(folders, capsys):
    shutil.copytree(folders / "unix0", folders / "unix0.20260101-000000")
    (folders.parent / "link").symlink_to(folders)
    report.main([str(folders), str(folders / "unix1"), str(folders.parent / "link")])
    out, err = capsys.readouterr()
    assert printed_cells(out)["vgg13", "vgg8", "UNIX"][0] == "3"
    assert f"unix0.20260101-000000: same settings and seed as {folders / 'unix0'}" in err
    assert len(err.splitlines()) == len(("broken", "foreign", "the copy"))


def test_one_s_own_run_counts_before_the_published_one(tmp_path, capsys):
    for place, accuracy in (("a_results", 60), ("", 61)):
        make_run(tmp_path / place / "teacher_vgg8", "teacher.py", "--arch vgg8", best_acc=accuracy)
    report.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert "61.00" in out and "60.00" not in out
    assert f"{tmp_path / 'a_results' / 'teacher_vgg8'}: same settings and seed as {tmp_path / 'teacher_vgg8'}" in err


def test_damaged_metrics_and_counter_cost_only_their_pictures(folders, tmp_path):
    for name in ("unix0", "unix1", "unix2"):
        (folders / name / "metrics.csv").write_text("epoch,val/cls_acc\n1,x\n")
        (folders / name / "counter.npy").write_bytes(b"\x93NUMPY")
    out = tmp_path / "out"
    report.main([str(folders), "--out", str(out)])
    assert {path.stem for path in out.glob("*.png")} == {"computation", "seconds", "curves"}
    assert "| UNIX" in (out / "report.md").read_text()


def test_no_finished_run(folders, capsys):
    with pytest.raises(SystemExit, match="none of these"):
        report.main([str(folders / "unfinished"), str(folders / "broken")])
    with pytest.raises(SystemExit) as e:
        report.main([])
    assert e.value.code == 2


# --------------------------------------------------------------------------------------------------------- the page


class Links(html.parser.HTMLParser):
    """What a page would load or run."""

    def __init__(self):
        super().__init__()
        self.loaded, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone(folders, tmp_path):
    config = json.loads((folders / "unfinished" / "config.json").read_text())
    (folders / "<b>&").mkdir()
    (folders / "<b>&" / "config.json").write_text(json.dumps({**config, "settings": {**config["settings"], "seed": 5}}))
    out = tmp_path / "out"
    report.main([str(folders), "--out", str(out)])
    page, links = (out / "report.html").read_text(), Links()
    links.feed(page)
    assert links.loaded and all(value.startswith("data:image/png;base64,") for value in links.loaded)
    assert not {"script", "link", "iframe", "b"} & set(links.tags) and not re.search(r"@import|url\(", page)
    assert links.tags.count("img") == len(list(out.glob("*.png"))) == len(list(out.glob("*.svg"))) == 5
    text = "".join(links.text)
    assert "<b>&" in text and "vgg13 → vgg8" in text and "73.50 ± 0.50" in text
    for group in groups_of(folders):
        assert group.command in text


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_the_page_opens_in_a_browser(folders, tmp_path):
    out, profile = tmp_path / "out", tmp_path / "profile"
    report.main([str(folders), "--out", str(out)])
    page = (out / "report.html").read_text()
    probe = "<script>document.title = [...document.images].map(i => i.complete && i.naturalWidth > 300)</script>"
    (out / "probed.html").write_text(page.replace("</body>", f"{probe}</body>"))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom", (out / "probed.html").as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "<title>true,true,true,true,true</title>" in dom
    assert dom.count("<tr>") == page.count("<tr>") == 5 + 2


# ------------------------------------------------------------------------------------------------------------ speed


def test_a_hundred_runs_of_240_epochs_are_fast(tmp_path):
    root = tmp_path / "experiments"
    for pair in PUBLISHED:
        teacher_arch, student = pair.split()
        for seed in range(4):
            line = f"--teacher-path teacher_{teacher_arch} --student-arch {student} --seed {seed}"
            make_run(root / f"{pair} unix {seed}", "student_v0.py", line, teacher_arch, 240, images=50_000)
            make_run(root / f"{pair} kd {seed}", "student_v0.py", f"{line} {KD}", teacher_arch, 240)
    for arch in ("vgg8", "vgg13", "resnet20", "resnet56"):
        make_run(root / arch, "teacher.py", f"--arch {arch}", None, 240)
    start = time.process_time()  # of this process alone, however busy the machine
    report.main([str(root), "--out", str(tmp_path / "out")])
    assert time.process_time() - start < 15  # some 7 s
    with (tmp_path / "out" / "report.csv").open() as file:
        assert sum(int(row["seeds"]) for row in csv.DictReader(file) if re.match("KD|UNIX", row["method"])) == 96
