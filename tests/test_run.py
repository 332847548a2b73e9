"""engine/run.py and engine/files.py: names, folders and files of runs; what makes two runs the same run."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from small_runs import scalars

import engine.run
import student_v0
import teacher
from engine.files import lock, read_json, write_file
from engine.run import EventLog, Run, RunError, git_commit, make_config, name_suffix

CPU = torch.device("cpu")

# ----------------------------------------------------------------------------------------------------------- names


def config_of(program, *flags):
    """The configuration that a command line makes."""
    parser = program.make_parser()
    words = ["--arch", "resnet8", *flags] if program is teacher else flags
    more = {"kind": "teacher", "arch": "resnet8", "identity": {}}
    args = parser.parse_args(words)
    if program is student_v0:
        file = args.teacher_path / "ckpt" / f"{args.teacher_ckpt}.pth"
        more |= {"teacher_arch": "resnet32x4", "teacher_file": str(file), "teacher_sha256": "of the file"}
    return args, make_config(parser, args, words, CPU, "fp32", **more)


def name(program, *flags):
    args, config = config_of(program, *flags)
    return name_suffix(config, {"arch"}) if program is teacher else student_v0.run_name(args, config)


def test_default_names_are_the_published_ones():
    assert name(teacher) == ""
    assert name(student_v0) == "v0_student_resnet8x4_teacher_resnet32x4-best_strategy3_k48_b32_w10_seed0"


EFFECTS = (  # every flag that changes a result, with a value that is not its default
    "--epoch 3, --batch-size 128, --lr 0.01, --lr 0.0100001, --momentum 0.8, --weight-decay 1e-4, --gamma 0.2, "
    "--milestones 2, --milestones 1 2, --milestones, --seed 1, --dataset synthetic, --train-limit 100, "
    "--val-limit 100, --holdout 100, --precision fp32, --precision bf16, --precision tf32"
)
STUDENT_EFFECTS = (
    "--k 40, --b 16, --w 1000, --w 10.5, --w 10.000001, --strategy 1, --T 2, --kd-weight 0.5, --ce-weight 0.5, "
    "--score-every 5, --other-distill AT, --other-distill SP, --teacher-ckpt last, --student-arch resnet8, "
    "--teacher-path teacher_resnet32x4_seed1, --teacher-cache"
)


@pytest.mark.parametrize("program, effects", [(teacher, EFFECTS), (student_v0, f"{EFFECTS}, {STUDENT_EFFECTS}")])
def test_no_two_settings_share_a_name(program, effects):
    names = [name(program), *(name(program, *flags.split()) for flags in effects.split(", "))]
    assert len(set(names)) == len(names)
    assert not any("/" in n for n in names)


@pytest.mark.parametrize("program", [teacher, student_v0])
def test_every_flag_is_either_without_effect_or_in_the_name(program):
    """A flag added later must be put on one side or the other."""
    named = {flags.split()[0] for flags in f"{EFFECTS}, {STUDENT_EFFECTS}".split(", ")}
    without = {"--save-interval", "--gpu-id", "--data-root", "--experiments", "--fresh", "--debug", "--compile"}
    given = {option for action in program.make_parser()._actions for option in action.option_strings}
    assert given - {"-h", "--help", "--arch", "--teacher-arch"} <= named | without
    for flag, value in (("--save-interval", "7"), ("--data-root", "x"), ("--experiments", "x"), ("--gpu-id", "-1")):
        assert name(program, flag, value) == name(program)


def test_long_names_are_cut_and_stay_apart(tmp_path):
    folders = [opened(tmp_path / ("x" * 400 + end)).folder for end in "ab"]
    assert len(set(folders)) == 2 and all(len(folder.name) == 200 and folder.is_dir() for folder in folders)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_this_code(tmp_path, monkeypatch):
    """A copy of the code within another repository has none."""
    monkeypatch.setattr(engine.run, "ROOT", tmp_path)
    assert git_commit() is None
    command = "git init -q && git -c user.name=x -c user.email=x commit -qm x --allow-empty && git rev-parse HEAD"
    head = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert head.startswith(git_commit())
    monkeypatch.setattr(engine.run, "ROOT", tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


# ---------------------------------------------------------------------------------------------------- the same run


def config(**settings):
    base = {"epoch": 2, "lr": 0.1, "save_interval": 40, "milestones": []}
    settings = base | settings
    return {
        "kind": "student", "arch": "resnet8", "precision": "fp32", "device": "here", "versions": [{"commit": "a"}],
        "settings": settings, "defaults": base, "identity": {},
        "effective_settings": {name: value for name, value in settings.items() if name != "save_interval"},
    }  # fmt: skip


def run_in(folder, own_config=None, fresh=False):
    return Run(Namespace(experiments=folder.parent, fresh=fresh), folder.name, own_config or config())


def opened(folder, own_config=None, fresh=False):
    """A Run whose folder has been made."""
    with run_in(folder, own_config, fresh) as run:
        return run


class Trained:
    """Stands in for a trainer. Its weight is the number of the epoch."""

    tag = "train/"

    def __init__(self, own_config=None):
        self.args = Namespace(**(own_config or config())["settings"])
        self.model = torch.nn.Linear(1, 1)

    def state(self):
        return {"momentum": []}

    def load_state(self, state):
        assert state == {"momentum": []}

    def files(self):
        return {"counter.npy": b"counted"}


def train(folder, accuracies, own_config=None, finish=True):
    """A run of these validation accuracies."""
    trainer = Trained(own_config)
    with run_in(folder, own_config) as run:
        run.restore(trainer)
        for acc in accuracies:
            trainer.model.weight.data.fill_(run.epoch + 1)
            row = {"train/loss": 1.0, "val/cls_acc": acc, "train_seconds": 1.0, "val_seconds": 0.5}
            run.end_epoch(trainer, row)
        if finish:
            run.finish(10, teacher_queries=0, train_macs=1)
    return run


def test_a_folder_is_not_shared_by_runs_of_other_settings(tmp_path):
    folder = tmp_path / "run"
    opened(folder)
    opened(folder, config(save_interval=1))  # changes no result
    for other in (config(lr=0.2), config(milestones=[1])):
        with pytest.raises(RunError, match=r"holds a run with .*; --fresh moves it aside"):
            run_in(folder, other)
    opened(folder, config(lr=0.2), fresh=True)
    assert read_json(folder / "config.json")["settings"]["lr"] == 0.2
    (backup,) = tmp_path.glob("run.*")
    assert read_json(backup / "config.json")["settings"]["lr"] == 0.1


def test_a_setting_that_an_earlier_version_did_not_know_has_its_default(tmp_path):
    opened(tmp_path / "run")
    new = config()
    new["defaults"]["new"] = 1
    new["effective_settings"]["new"] = 1
    opened(tmp_path / "run", new)
    new["effective_settings"]["new"] = 2
    with pytest.raises(RunError, match="new 1, not 2"):
        run_in(tmp_path / "run", new)


def test_a_resumed_run_keeps_its_precision_and_lists_devices_and_versions(tmp_path):
    opened(tmp_path / "run")
    for device, commit in (("there", "a"), ("here", "b"), ("there", "b")):
        now = {"precision": "bf16", "device": device, "versions": [{"commit": commit}]}
        opened(tmp_path / "run", config() | now)
    saved = read_json(tmp_path / "run" / "config.json")
    assert saved["precision"] == "fp32" and saved["device"] == "here, then there"
    assert saved["versions"] == [{"commit": "a"}, {"commit": "b"}]


@pytest.mark.parametrize("finished", [True, False])
def test_changed_code_is_noted(tmp_path, capsys, finished):
    before, now = ({**config(), "versions": [{"code": version, "commit": version}]} for version in "ab")
    train(tmp_path / "run", [1, 2] if finished else [1], before, finish=finished)
    run = run_in(tmp_path / "run", now)
    if finished:
        run.summarize()
    else:
        with run:
            run.restore(Trained())
    assert "note: since this run began, code a is now b; --fresh trains anew\n" in capsys.readouterr().out


@pytest.mark.parametrize("fresh, goes_on", [(False, "after epoch 1"), (True, "without --fresh from the start")])
def test_a_stopped_run_says_how_it_goes_on(tmp_path, fresh, goes_on):
    train(tmp_path / "run", [1], finish=False)
    with pytest.raises(KeyboardInterrupt, match=f"^{goes_on}$"), run_in(tmp_path / "run", fresh=fresh) as run:
        run.restore(Trained())
        raise KeyboardInterrupt


@pytest.mark.parametrize("flags", ["", "--epoch 60 --milestones 38 45 53 --seed 1"])
def test_a_finished_run_of_an_earlier_version_is_summarized(tmp_path, capsys, flags):
    """A teacher of experiments/results, by its own command."""
    words = ["--arch", "resnet8", *flags.split(), "--gpu-id", "-1"]
    folder = f"teacher_resnet8{name(teacher, *words)}"
    shutil.copytree(ROOT / "experiments" / "results" / folder, tmp_path / folder)
    best = json.loads((tmp_path / folder / "result.json").read_text())["best_acc"]
    teacher.main([*words, "--experiments", str(tmp_path)])
    out = capsys.readouterr().out
    assert f"{folder}: best {best:.2f} %" in out and "best.pth is missing" in out


# ------------------------------------------------------------------------------------------------------ what it leaves


def test_which_files_are_kept(tmp_path, capsys):
    settings = {**config(epoch=7, save_interval=3, milestones=[4]), "kind": "teacher"}
    run = train(tmp_path / "run", [1, 5, 2, 5, 3, 4, 2], settings)
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "ckpt").iterdir())
    assert checkpoints == ["003.pth", "004.pth", "006.pth", "007.pth", "best.pth", "last.pth"]
    best = torch.load(run.checkpoint("best"), weights_only=True)
    assert (best["epoch"], best["acc"], best["arch"]) == (2, 5, "resnet8") and best["state_dict"]["weight"].item() == 2
    assert run.result == {
        "best_acc": 5, "best_epoch": 2, "last_acc": 2, "epochs": 7, "train_seconds": 7, "val_seconds": 3.5,
        "images_per_second": 10, "teacher_queries": 0, "train_macs": 1,
    }  # fmt: skip
    assert read_json(tmp_path / "run" / "result.json") == run.result
    assert (tmp_path / "run" / "counter.npy").read_bytes() == b"counted"

    run.checkpoint("best").unlink()
    again = run_in(tmp_path / "run", settings)
    assert again.result == run.result
    again.summarize()
    assert f"warning: {run.checkpoint('best')} is missing; --fresh trains anew\n" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", ["loss", "weight"])
def test_what_is_not_finite_is_not_saved(tmp_path, spoil):
    train(tmp_path / "run", [1], finish=False)
    saved = (tmp_path / "run" / "ckpt" / "student_last.pth").read_bytes()
    trainer = Trained()
    row = {"val/cls_acc": 1.0} | ({} if spoil == "loss" else {"train/loss": 1.0})  # a loss that is nan is in no row
    with run_in(tmp_path / "run") as run:
        run.restore(trainer)
        trainer.model.weight.data.fill_(float("inf") if spoil == "weight" else 1.0)
        with pytest.raises(RunError, match=r"not finite in epoch 2: stopped, .* keeps the state before; try a smaller"):
            run.end_epoch(trainer, row)
    assert (tmp_path / "run" / "ckpt" / "student_last.pth").read_bytes() == saved


def test_tensorboard_shows_each_epoch_once(tmp_path):
    """A run that was interrupted after epoch 3, of which epoch 2 is saved, goes on."""
    for first, epochs in ((0, [1, 2, 3]), (2, [2, 3, 4])):
        log = EventLog(tmp_path / "events", first)
        for epoch in epochs:
            log.add({"epoch": epoch, "val/cls_acc": 10.0 * first + epoch, "lr": 1.0})
    assert len(list((tmp_path / "events").iterdir())) == 2
    assert scalars(tmp_path) == {"val/cls_acc": [(1, 1.0), (2, 22.0), (3, 23.0), (4, 24.0)]}


def test_a_log_that_cannot_be_written_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine.run.EventsWriter, "flush", full)
    assert train(tmp_path / "run", [1, 2]).result["epochs"] == 2
    expected = f"warning: TensorBoard's log in {tmp_path / 'run' / 'events'} ends here (No space left on device)\n"
    assert capsys.readouterr().out == expected


# ------------------------------------------------------------------------------------------------------- not its own


@pytest.mark.parametrize("saved", [{"rows": [], "trainer": {"scaler": {}}}, {}])
def test_other_weights_are_not_taken_for_a_state(tmp_path, saved):
    """Those of another origin, and the state of an unfinished run of an earlier version."""
    path = tmp_path / "ckpt" / "student_last.pth"
    path.parent.mkdir()
    torch.save({"state_dict": {"weight": torch.ones(1, 1)}, **saved}, path)
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"checkpoints without a config\.json; --fresh moves"):
        run_in(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    with run_in(tmp_path) as run, pytest.raises(RunError, match="no state to resume from; --fresh moves"):
        run.restore(Trained())
    assert path.read_bytes() == before


@pytest.mark.parametrize("result", ["{}", "[]", "{", '{"best_acc": 1}'])
def test_a_damaged_result_is_no_result(tmp_path, result):
    opened(tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(result)
    assert run_in(tmp_path / "run").result is None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for parent in ("link", "file"):
        with pytest.raises(RunError, match=f"run cannot be made: {tmp_path / parent} is not a folder that may be"):
            run_in(tmp_path / parent / "run")


def test_a_run_that_another_process_finished_meanwhile_is_not_trained(tmp_path):
    slow = run_in(tmp_path / "run")
    train(tmp_path / "run", [1, 2])
    with pytest.raises(RunError, match=r"another process has worked in .* meanwhile; give the command again"), slow:
        pass
    lock(tmp_path / "run").close()
    assert run_in(tmp_path / "run").result


# ------------------------------------------------------------------------------------------------------------- files


def test_a_lock_names_its_holder(tmp_path):
    with lock(tmp_path), pytest.raises(BlockingIOError, match=rf"in use by another process \(pid {os.getpid()} on "):
        lock(tmp_path)
    lock(tmp_path).close()


def test_without_locks_a_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    opened(tmp_path / "run")
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'run' / '.lock'}: No locks available; ") and err.count("\n") == 1


@pytest.mark.parametrize("folders", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, folders):
    """Some file systems cannot sync a folder, which does no harm."""
    write_file(tmp_path / "x", b"old")

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    if folders:
        write_file(tmp_path / "x", b"new")
    else:
        with pytest.raises(OSError, match=r"x could not be written \(Input/output error\); what was saved before"):
            write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == (b"new" if folders else b"old")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["x"]
