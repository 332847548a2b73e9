"""Kill and damage a small run at random, resume it until it is done, and compare it bit by bit with one left alone.

    python benchmarks/faults.py --rounds 30 --seed 0    random faults
    python benchmarks/faults.py --each                   each kind of fault once, at its worst moment

A round: the distillation of a resnet8 on synthetic data is started, killed after a random time by SIGKILL, SIGTERM or
SIGINT, and with even odds a random file of its folder is truncated, altered or deleted; this up to four times, then it
runs to its end. Weights, optimizer, best checkpoint, counter, metrics, TensorBoard and result have to be those of the
undisturbed run (times excepted).
"""

import argparse
import csv
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import loop
import student_v0
import teacher
from utils import entry

QUICK = (
    "--dataset synthetic --train-limit 136 --val-limit 100 --epoch 4 --milestones 3 --batch-size 16 "
    "--gpu-id -1 --precision fp32"
)
DISTIL = "--student-arch resnet8 --k 12 --b 8"
STEPS = 9  # of an epoch


def start(main, flags, log, before=lambda: None):
    """Fork a process that runs main(flags) as the program would, its output in `log`. Returns its pid.

    Forking spares the seconds that importing torch takes. before: called in the process first.
    """
    pid = os.fork()
    if pid:
        return pid
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    sys.argv = ["student_v0.py", *flags]
    code = 1
    try:
        before()
        entry(lambda: main(flags))
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        else:
            code = e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid):
    """The exit code of a process as a shell gives it: 128 + signal where one killed it."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def damage(path, rng):
    """Truncate, alter or delete a file. Returns which."""
    size = path.stat().st_size
    how = rng.choice(["truncated", "altered", "deleted"])
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, rng.randrange(max(size, 1)))
    else:
        content = bytearray(path.read_bytes())
        for _ in range(8):
            if content:
                content[rng.randrange(len(content))] ^= 1 + rng.randrange(255)
        path.write_bytes(content)
    return how


# ------------------------------------------------------------------------------------------------------- comparing


def flatten(content, name=""):
    """{path in the structure: numpy array or plain value} of nested dicts, lists and tensors."""
    if isinstance(content, dict):
        return {k: v for key, entry in content.items() for k, v in flatten(entry, f"{name}/{key}").items()}
    if isinstance(content, (list, tuple)):
        return {k: v for i, entry in enumerate(content) for k, v in flatten(entry, f"{name}/{i}").items()}
    return {name: content.numpy() if torch.is_tensor(content) else content}


def scalars(folder):
    """[(tag, epoch, value), ...] of a run's TensorBoard files, in order; read by their own record format."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "events").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


def outcome(folder):
    """Everything that a finished run leaves and that has to repeat, flat."""
    states = {name: torch.load(folder / "ckpt" / f"student_{name}.pth", weights_only=True) for name in ("last", "best")}
    with (folder / "metrics.csv").open() as f:
        metrics = list(csv.DictReader(f))
    counter = folder / "counter.npy"
    content = {
        **states,
        "metrics": metrics,
        "counter": torch.from_numpy(np.load(counter)) if counter.exists() else None,
        "result": json.loads((folder / "result.json").read_text()),
        "events": scalars(folder),
    }
    timed = ("seconds", "images_per_second", "peak_memory", "checksum", "experiments")
    return {name: value for name, value in flatten(content).items() if not any(word in name for word in timed)}


def differences(one, other):
    """Names under which two outcomes differ in a bit."""
    names = [name for name in one if name not in other] + [name for name in other if name not in one]
    same = [name for name in one if name in other]
    return names + [name for name in same if np.asarray(one[name]).tobytes() != np.asarray(other[name]).tobytes()]


# ---------------------------------------------------------------------------------------------------------- rounds


class Bench:
    """A teacher, and the undisturbed run that every round is compared with, in a folder of their own."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        main_flags = ["--arch", "resnet8", *QUICK.split(), "--experiments", str(folder)]
        assert wait(start(teacher.main, main_flags, self.log)) == 0, self.log.read_text()
        (self.teacher,) = folder.glob("teacher_*")
        begin = time.monotonic()
        self.reference = folder / "undisturbed"
        assert self.run(self.reference) == 0, self.log.read_text()
        self.seconds = time.monotonic() - begin
        self.expected = outcome(self.run_folder(self.reference))

    def start(self, experiments, before=lambda: None):
        flags = ["--teacher-path", str(self.teacher), *DISTIL.split(), *QUICK.split()]
        return start(student_v0.main, [*flags, "--experiments", str(experiments)], self.log, before)

    def run(self, experiments, before=lambda: None):
        """Run to the end, or to whatever `before` brings about. Returns the exit code."""
        return wait(self.start(experiments, before))

    def run_folder(self, experiments):
        (folder,) = experiments.glob("v0_*")
        return folder

    def differences(self, experiments):
        return differences(self.expected, outcome(self.run_folder(experiments)))

    def random_round(self, experiments, rng):
        """One round. Returns (kills by signal name, damages, names that differ)."""
        kills, damages = {}, 0
        for _ in range(rng.randint(1, 4)):
            pid = self.start(experiments)
            time.sleep(rng.uniform(0, self.seconds / 2))
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            os.kill(pid, number)
            code = wait(pid)
            if code == 0:  # it was done before
                continue
            assert code == 128 + number, f"exit code {code} after {number.name}\n{self.log.read_text()}"
            kills[number.name] = kills.get(number.name, 0) + 1
            files = [path for path in experiments.rglob("*") if path.is_file() and path.name != ".lock"]
            if files and rng.random() < 0.5:
                path = rng.choice(sorted(files))
                how = damage(path, rng)
                with self.log.open("a") as log:
                    print(f"[{how} {path.name}]", file=log)
                damages += 1
        code = self.run(experiments)
        assert code == 0, f"exit code {code}\n{self.log.read_text()}"
        return kills, damages, self.differences(experiments)


# ------------------------------------------------------------------------------------------------ each kind, once


def at_step(n, act):
    """A `before` that does act() in the run's n-th training step, counted over the epochs from 1."""

    def before():
        step, count = student_v0.Distiller.step, iter(range(1, 1000))

        def counting(self, *args):
            stats = step(self, *args)
            if next(count) == n:
                act(stats)
            return stats

        student_v0.Distiller.step = counting

    return before


def at_write(n, act):
    """A `before` that does act() in place of the n-th replacing of a file."""

    def before():
        replace, count = Path.replace, iter(range(1, 1000))
        Path.replace = lambda path, target: act(None) if next(count) == n else replace(path, target)

    return before


def at_validation(n, act):
    """A `before` that does act() in the n-th validation, the teacher's before training counted."""

    def before():
        evaluate, count = loop.Evaluator.__call__, iter(range(1, 1000))

        def counting(self):
            if next(count) == n:
                act(None)
            return evaluate(self)

        loop.Evaluator.__call__ = counting

    return before


def send(*numbers):
    def act(_):
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def send_again(number):
    """The second one late enough to be meant as such."""

    def act(_):
        os.kill(os.getpid(), number)
        time.sleep(1.1)
        os.kill(os.getpid(), number)

    return act


def fill_disk(_):
    """From here on the kernel refuses files of more than 100 kB; a state has ten times that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def not_a_number(stats):
    stats["train/loss"] = stats["train/loss"] * float("nan")


def ruin_weights(_):
    """What an overflowing update does behind a loss that was finite."""
    learner = next(o for o in gc.get_objects() if isinstance(o, student_v0.Distiller))
    next(learner.model.parameters()).data.fill_(float("nan"))


def close_stderr(_):
    """Whoever read the program's messages is gone, as `tee` is after Ctrl-C."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    os.kill(os.getpid(), signal.SIGTERM)


TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
INTERRUPTIONS = {  # kind: (before, exit code, words that the program says)
    "SIGTERM in a step": (at_step(STEPS + 4, send(TERM)), 143, "stopped by SIGTERM in epoch 2 after step 4, saved"),
    "SIGINT in a step": (at_step(STEPS + 4, send(INT)), 130, "stopped by SIGINT in epoch 2 after step 4, saved"),
    "SIGTERM in the first step": (at_step(1, send(TERM)), 143, "in epoch 1 after step 1, saved"),
    "SIGTERM in an epoch's last step": (at_step(2 * STEPS, send(TERM)), 143, "in epoch 2 after step 9, saved"),
    "SIGTERM in validation": (at_validation(3, send(TERM)), 143, "stopped by SIGTERM after epoch 2, saved"),
    "SIGINT twice": (at_step(STEPS + 4, send_again(INT)), 130, "once more stops at once"),
    "SIGTERM by two ways": (at_step(STEPS + 4, send(TERM, TERM)), 143, "by SIGTERM in epoch 2 after step 4, saved"),
    "SIGKILL in a step": (at_step(2 * STEPS + 4, send(KILL)), 137, ""),
    **{f"SIGKILL at file {n}": (at_write(n, send(KILL)), 137, "") for n in range(1, 12)},
    "disk full": (at_step(STEPS + 4, fill_disk), 1, ".pth could not be written (File too large); what was saved"),
    "weights not finite": (at_step(2 * STEPS, ruin_weights), 1, "weights are no longer finite in epoch 2: stopped"),
    "stderr gone": (at_step(STEPS + 4, close_stderr), 143, ""),
    "loss not finite": (at_step(STEPS + 4, not_a_number), 1, "the loss was not finite in epoch 2, step 4: stopped"),
}


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def alter(path):
    """One bit, in the middle: of a state, in its weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {  # kind: (what is done to which files, words that the program says when it resumes)
    f"{how.__name__} {files}": (how, files, words)
    for how, files, words in [
        (truncate, "ckpt/student_last.pth", "going back to the state before"),
        (alter, "ckpt/student_last.pth", "going back to the state before"),
        (Path.unlink, "ckpt/student_last.pth", "resuming"),
        (truncate, "ckpt/student_last.pth ckpt/student_previous.pth", "no sound state is left, starting over"),
        (alter, "ckpt/student_best.pth", "resuming"),
        (Path.unlink, "ckpt/student_best.pth counter.npy metrics.csv", "resuming"),
        (truncate, "counter.npy metrics.csv", "resuming"),
        (truncate, "config.json", "is damaged, written anew"),
    ]
}


def each(bench):
    """{kind: (exit codes of the faulty and the resumed run, what both said, names that differ)} of every kind."""
    rounds = {kind: (before, None) for kind, (before, _, _) in INTERRUPTIONS.items()}
    for kind, (how, files, _) in DAMAGES.items():
        rounds[kind] = (at_step(3 * STEPS + 4, send(KILL)), (how, files))
    for kind, (before, harm) in rounds.items():
        experiments = bench.folder / kind.replace("/", " ")
        bench.log.write_text("")
        codes = [bench.run(experiments, before)]
        said = bench.log.read_text()
        if harm:
            for file in harm[1].split():
                harm[0](bench.run_folder(experiments) / file)
            bench.log.write_text("")
        codes.append(bench.run(experiments))
        yield kind, codes, bench.log.read_text() if harm else said, bench.differences(experiments)

    experiments = bench.folder / "second process"
    bench.log.write_text("")
    first = bench.start(experiments, at_step(STEPS + 4, send(signal.SIGSTOP)))
    os.waitpid(first, os.WUNTRACED)
    codes = [bench.run(experiments)]
    os.kill(first, KILL)
    wait(first)
    codes.append(bench.run(experiments))
    yield "second process", codes, bench.log.read_text(), bench.differences(experiments)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", action="store_true")
    args = parser.parse_args()
    rng, kills, damages, different = random.Random(args.seed), {}, 0, 0
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    bench = Bench(folder)
    if args.each:
        for kind, codes, said, names in each(bench):
            print(json.dumps({"kind": kind, "codes": codes, "said": said, "differences": names}), flush=True)
        return shutil.rmtree(folder)
    for i in range(args.rounds):
        experiments = folder / f"round{i}"
        round_kills, round_damages, names = bench.random_round(experiments, rng)
        for name, count in round_kills.items():
            kills[name] = kills.get(name, 0) + count
        damages += round_damages
        different += bool(names)
        print(f"round {i + 1}: kills {round_kills}, damages {round_damages}, differences {names[:5]}", flush=True)
        if not names:
            shutil.rmtree(experiments)
    print(f"{args.rounds} rounds, kills {kills}, {damages} damages, {different} rounds that differ")
    if different:
        sys.exit(f"see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
