"""run.py: names, folders and files of runs."""

import fcntl
import json

import pytest
import torch

import student_v0
import teacher
from models import CheckpointError
from run import Run, RunError, arch_in_name, differences, find_checkpoint, lock, write_file


def name(program, *flags):
    parser = program.flags()
    if program is teacher:
        return differences(parser, parser.parse_args(["--arch", "resnet8", *flags]), {"arch"})
    return student_v0.run_name(parser, parser.parse_args(flags), "resnet32x4")


def test_default_names_are_the_published_ones():
    assert name(teacher) == ""
    assert name(student_v0) == "v0_student_resnet8x4_teacher_resnet32x4-best_strategy3_k48_b32_w10_seed0"


EFFECTS = (  # every flag that changes a result, with a value that is not its default
    "--epoch 3, --batch-size 128, --lr 0.01, --lr 0.0100001, --momentum 0.8, --weight-decay 1e-4, --gamma 0.2, "
    "--milestones 2, --milestones 1 2, --milestones, --seed 1, --dataset synthetic, --train-limit 100, "
    "--val-limit 100, --holdout 100, --precision fp32, --precision bf16, --tf32, --sync-bn"
)
STUDENT_EFFECTS = (
    "--k 40, --b 16, --w 1000, --w 10.5, --w 10.000001, --strategy 1, --T 2, --kd-weight 0.5, --ce-weight 0.5, "
    "--other-distill AT, --other-distill SP, --teacher-ckpt last, --student-arch resnet8, "
    "--teacher-path teacher_resnet32x4_seed1"
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
    given = {option for action in program.flags()._actions for option in action.option_strings}
    assert given - {"-h", "--help", "--arch", "--teacher-arch"} <= named | without
    for flag, value in (("--save-interval", "7"), ("--data-root", "x"), ("--experiments", "x"), ("--gpu-id", "-1")):
        assert name(program, flag, value) == name(program)


def test_a_switch_is_named_by_itself():
    assert name(teacher, "--tf32", "--sync-bn") == "_tf32_syncbn"


def test_long_names_are_cut_and_stay_apart(tmp_path):
    folders = []
    for end in "ab":
        with Run(tmp_path, "x" * 400 + end, config(), "student", "resnet8") as run:
            folders.append(run.folder)
    assert len(set(folders)) == 2 and all(len(folder.name) == 200 and folder.is_dir() for folder in folders)


def test_a_link_s_own_name_tells(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "teacher_vgg13").symlink_to(tmp_path / "weights")
    assert arch_in_name(tmp_path / "teacher_vgg13") == "vgg13"


@pytest.mark.parametrize(
    "folder, arch",
    [
        ("teacher_wrn_40_2", "wrn_40_2"),
        ("teacher_wrn_40_2/", "wrn_40_2"),
        ("a/b/teacher_resnet8x4_seed1", "resnet8x4"),
        ("teacher_resnet8_epoch3_milestones2", "resnet8"),
        ("vgg13", "vgg13"),
        ("teacher_vgg131", None),
        ("my_teacher", None),
    ],
)
def test_arch_in_name(tmp_path, monkeypatch, folder, arch):
    path = tmp_path / folder
    path.mkdir(parents=True)
    assert arch_in_name(path) == arch
    monkeypatch.chdir(path)
    assert arch_in_name(type(path)(".")) == arch


def test_find_checkpoint(tmp_path):
    (tmp_path / "ckpt").mkdir()
    with pytest.raises(CheckpointError, match="there are: none at all"):
        find_checkpoint(tmp_path, "best")
    for stem in ("best", "best_old", "040", "140", "240"):
        (tmp_path / "ckpt" / f"{stem}.pth").touch()
    assert find_checkpoint(tmp_path, "best").name == "best.pth"
    assert find_checkpoint(tmp_path, "240").name == find_checkpoint(tmp_path, "240.pth").name == "240.pth"
    assert find_checkpoint(tmp_path, "old").name == "best_old.pth"
    with pytest.raises(CheckpointError, match="several: 040, 140, 240"):
        find_checkpoint(tmp_path, "40")
    with pytest.raises(CheckpointError, match="none; there are: 040"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "nowhere", "best")


def config(**settings):
    base = {"epoch": 2, "lr": 0.1, "save_interval": 40, "milestones": []}
    return {"settings": {**base, **settings}, "precision": "fp32", "teacher_sha256": "a"}


def open_run(folder, settings, **more):
    with Run(folder.parent, folder.name, settings, "student", "resnet8", **more):
        pass


def test_a_folder_is_not_shared_by_runs_of_other_settings(tmp_path):
    open_run(tmp_path / "run", config())
    open_run(tmp_path / "run", config(save_interval=1))  # changes no result
    for other in (config(lr=0.2), {**config(), "precision": "bf16"}, {**config(), "teacher_sha256": "b"}):
        with pytest.raises(RunError, match=r"holds a run with .* --fresh"):
            open_run(tmp_path / "run", other)
    open_run(tmp_path / "run", config(lr=0.2), fresh=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["lr"] == 0.2
    (aside,) = (path for path in tmp_path.iterdir() if path.name != "run")
    assert json.loads((aside / "config.json").read_text())["settings"]["lr"] == 0.1


def test_a_downloaded_teacher_is_not_overwritten(tmp_path):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "best.pth").write_bytes(b"precious")
    with pytest.raises(RunError, match="another origin"):
        open_run(tmp_path, config())
    assert (tmp_path / "ckpt" / "best.pth").read_bytes() == b"precious"


@pytest.mark.parametrize("result", ["{}", "[]", "{", '{"best_acc": 1}'])
def test_a_damaged_result_is_no_result(tmp_path, result):
    open_run(tmp_path / "run", config())
    (tmp_path / "run" / "result.json").write_text(result)
    with Run(tmp_path, "run", config(), "student", "resnet8") as run:
        assert run.result is None and not run.finished


def test_a_foreign_last_checkpoint_is_not_taken_for_a_state(tmp_path):
    (tmp_path / "ckpt").mkdir()
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "ckpt" / "student_last.pth")
    with (
        pytest.raises(RunError, match="another origin"),
        Run(tmp_path.parent, tmp_path.name, config(), "student", "resnet8") as run,
    ):
        run.restore(None, None)


def test_a_damaged_state_never_takes_the_sound_one_s_place(tmp_path):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        with Run(tmp_path, "run", config(), "student", "resnet8") as run:
            run.restore(model, optimizer)
            run.save(model, optimizer, {})
            run.save(model, optimizer, {})
            folder = run.folder / "ckpt"
            (folder / "student_last.pth").write_bytes(b"damaged")
    with Run(tmp_path, "run", config(), "student", "resnet8") as run:
        assert run.restore(model, optimizer)["begun"] is None
        assert (folder / "student_previous.pth").stat().st_size > 100 and not (folder / "student_last.pth").exists()


def test_a_folder_moved_aside_while_waiting_for_its_lock_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    flock = fcntl.flock

    def moved_meanwhile(file, how):
        flock(file, how)
        (tmp_path / "run").rename(tmp_path / "aside")
        (tmp_path / "run").mkdir()

    monkeypatch.setattr(fcntl, "flock", moved_meanwhile)
    with pytest.raises(RunError, match="in use"):
        lock(tmp_path / "run")


def test_which_checkpoints_are_kept(tmp_path):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    settings = config(epoch=7, save_interval=3, milestones=[4])
    with Run(tmp_path, "run", settings, "teacher", "resnet8") as run:
        run.restore(model, optimizer)
        for acc in (1, 5, 2, 5, 3, 4, 2):
            model.weight.data.fill_(len(run.rows))
            run.end_epoch(model, optimizer, {"val/cls_acc": acc, "train_seconds": 1.0, "val_seconds": 0.5}, {})
        run.finish(10, teacher_queries=0, train_macs=1)
    names = sorted(path.name for path in (tmp_path / "run" / "ckpt").iterdir())
    assert names == ["003.pth", "004.pth", "006.pth", "007.pth", "best.pth", "last.pth"]
    best = torch.load(tmp_path / "run" / "ckpt" / "best.pth", weights_only=True)
    assert (best["epoch"], best["acc"], best["arch"]) == (2, 5, "resnet8") and best["state_dict"]["weight"].item() == 1
    assert run.result == {
        "best_acc": 5, "best_epoch": 2, "last_acc": 2, "epochs": 7, "train_seconds": 7, "val_seconds": 3.5,
        "images_per_second": 10, "startup_seconds": None, "teacher_queries": 0, "train_macs": 1,
    }  # fmt: skip


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_file(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
