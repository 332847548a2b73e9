"""Distil a student from a trained teacher, each batch reduced by uncertainty-aware mixup (UNIX, arXiv 2012.09413).

    python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_16_2
    python student_v0.py --teacher-path ... --student-arch ... --strategy 0 --k 64 --b 64 --w 1000    ordinary KD

Writes experiments/v0_student_<student>_teacher_<teacher>-<ckpt>_strategy..., see run.py, and there counter.npy,
(epochs, 50000) uint8: whether each training image was among the b most uncertain of its batch in an epoch (not with
strategy 0, which knows no uncertainty). The same command, given again, resumes an interrupted run.
"""

import io
import math
import re
from pathlib import Path

import numpy as np
import torch

import dataset
import processes
from cost import COUNTINGS, computation, forward_macs, spent
from evaluation import Evaluator, correct
from loop import Learner, final_test, fit
from losses import FEATURE_LOSSES, OTHER_WEIGHT, check_features, kd_loss, mixed_cross_entropy
from models import CheckpointError, load_model, model_dict, pooled_size
from run import (
    Run,
    arch_in_name,
    describe,
    differences,
    file_sha256,
    find_checkpoint,
    own_name,
    write_file,
    written,
)
from selector import ENTROPY, LEAST_CONFIDENCE, MARGIN, RANDOM, Selector, draw_mixing, uncertainty
from speed import choose_compilation, compiled, frozen
from utils import (
    MANY,
    Parser,
    add_shared_flags,
    check_shared_flags,
    entry,
    number,
    peak_memory,
    planned_steps,
    set_up,
)

# ----------------------------------------------------------------------------------------------------------- flags


def flags():
    parser = Parser(__doc__)
    # fmt: off
    networks = parser.add_argument_group("networks")
    add = networks.add_argument
    add("--teacher-path", type=Path, default=Path("experiments/teacher_resnet32x4"), metavar="DIR",
        help="the teacher's folder, with ckpt/ in it (./experiments/teacher_resnet32x4)")
    add("--teacher-ckpt", default="best", metavar="WORD",
        help="which of its checkpoints: the one whose name holds this word, such as best, last or 240 (best)")
    add("--teacher-arch", choices=model_dict, metavar="NAME",
        help="for a teacher whose checkpoint and folder name do not say it (what they say)")
    add("--student-arch", choices=model_dict, default="resnet8x4", metavar="NAME",
        help=f"(resnet8x4) {', '.join(model_dict)}")

    method = parser.add_argument_group("method (the defaults are the published runs')")
    add = method.add_argument
    add("--strategy", type=int, choices=range(4), default=ENTROPY,
        help="uncertainty: 0 random, 1 least confidence, 2 margin, 3 entropy (3)")
    add("--k", type=number(int, 1, MANY), default=48,
        help="images of a batch that are kept for teacher and student; fewer cost less and teach less (48)")
    add("--b", type=number(int, 1, MANY), default=32,
        help="rank at which mixing reaches half its strength; lower mixes more images (32)")
    add("--w", type=number(float, 0), default=10.0,
        help="steepness of the mixing over the ranks (10, as in every published UNIX run; 1000 is a step at b)")
    add("--T", type=number(float, above=0), default=4.0,
        help="temperature of the distillation loss; higher tells more of the unlikely classes (4)")
    add("--kd-weight", type=number(float, 0), default=1.0,
        help="of the distillation loss (1: the only loss in the published runs)")
    add("--ce-weight", type=number(float, 0), default=0.0,
        help="of the cross-entropy with the mixed labels (0: the published runs learn from the teacher alone)")
    add("--other-distill", choices=FEATURE_LOSSES,
        help=f"a feature loss on top, weighted {OTHER_WEIGHT['AT']} (AT) or {OTHER_WEIGHT['SP']} (SP) (none)")
    add_shared_flags(parser)
    # fmt: on
    return parser


def check_flags(parser, args):
    check_shared_flags(parser, args)
    for flag in ("k", "b"):
        if getattr(args, flag) > args.batch_size:
            parser.error(f"argument --{flag}: {getattr(args, flag)} is more than --batch-size {args.batch_size}")
    several = processes.count()
    if args.k % several:
        parser.error(f"argument --k: {args.k} cannot be shared by {several} processes")
    if args.other_distill == "SP" and several > 1:
        parser.error("argument --other-distill: SP compares over the batch, which several processes do not see whole")
    if not (args.kd_weight or args.ce_weight or args.other_distill):
        parser.error(
            "argument --kd-weight: with 0, --ce-weight 0 and no --other-distill there is nothing to learn from"
        )
    if not re.fullmatch(r"[\w.-]+", args.teacher_ckpt):
        parser.error(f"argument --teacher-ckpt: a word from a checkpoint's name, not {args.teacher_ckpt!r}")


# --------------------------------------------------------------------------------------------------------- teacher


def load_teacher(parser, args):
    """(teacher in eval mode, its checkpoint with "arch", the file's path). Raises CheckpointError."""
    path = find_checkpoint(args.teacher_path, args.teacher_ckpt)
    teacher, checkpoint = load_model(path, args.teacher_arch or arch_in_name(args.teacher_path))
    if args.teacher_arch not in (None, checkpoint["arch"]):
        parser.error(f"argument --teacher-arch: {path} holds {checkpoint['arch']}, not {args.teacher_arch}")
    if checkpoint.get("kind") == "student":
        raise CheckpointError(
            f"{path}: a distilled student, not a teacher; --teacher-path takes a folder of teacher.py"
        )
    classes = checkpoint["num_classes"]
    if classes != dataset.NUM_CLASSES:
        raise CheckpointError(f"{path}: a network of {classes} classes, but {args.dataset} has {dataset.NUM_CLASSES}")
    return teacher, checkpoint, path


def warn_of_seen_holdout(args, teacher_settings):
    """A teacher that trained on the images held out here makes the choice of the best epoch less honest: say so."""
    split = ("dataset", "train_limit", "holdout", "seed")
    teacher_settings = teacher_settings if isinstance(teacher_settings, dict) else {}
    if args.holdout and any(teacher_settings.get(flag) != getattr(args, flag) for flag in split):
        print(
            "warning: the teacher was not trained with the same --holdout, --seed and data: it may have seen images "
            "held out here, and its accuracy on them means little"
        )


# ---------------------------------------------------------------------------------------------------------- method


class Distiller(Learner):
    """The training step: score, select and mix, learn.

    student, teacher: networks on the data's device. cast: see utils.autocast. macs: (student's, teacher's)
    forward_macs. compilation: see speed.choose_compilation. counter_path: where counter.npy goes (see the head of this
    file), None for no counter.
    """

    def __init__(self, student, teacher, args, data, cast, macs, compilation="nothing", counter_path=None):
        super().__init__(student, args)
        self.train, self.cast, self.macs, self.counter_path = data.train, cast, macs, counter_path
        self.selector = Selector(args.k, args.b, args.w, args.strategy, args.batch_size)
        self.scoring, self.learning, self.teacher = student, processes.with_shared_gradients(student), teacher
        if compilation == "all":
            self.scoring = self.learning = compiled(student, {args.batch_size, args.k})
        if compilation != "nothing":
            some = data.train.images[: args.k // processes.count()]
            self.teacher = frozen(teacher, data.train.normalized(some), cast)
        device = data.train.labels.device
        self.counter = torch.zeros(0, data.train_size, dtype=torch.uint8)
        self.counted = torch.zeros(data.train_size, dtype=torch.uint8, device=device)
        # pooled student features of the classes, from the last validation: none yet
        self.centres = torch.full((dataset.NUM_CLASSES, pooled_size(student)), math.nan, device=device)

    def draw(self, epoch):
        args, device = self.args, self.counted.device
        lam, partner = draw_mixing(len(self.train), args.batch_size, np.random.default_rng((args.seed, epoch, 1)))
        batches = self.train.draw(args.batch_size, args.seed, epoch)
        return [
            (*batch, *mixing)
            for batch, *mixing in zip(batches, lam.to(device), partner.to(device).split(args.batch_size))
        ]

    def step(self, chosen, offsets, flips, lam, partner):
        images, labels, indices = self.train.batch(chosen, offsets, flips)
        selection, stats = self.train_on(images, labels, lam, partner)
        self.counted.index_fill_(0, indices[selection.rank[: self.args.b]], 1)
        return stats

    def train_on(self, images, labels, lam, partner):
        """The method, on one batch.

        images: (n, 3, 32, 32) float32. labels: (n,) int64. lam: () and partner: (n,), this step's part of
        draw_mixing. Returns the Selection and {name: (m,) tensor of a statistic of m samples}.

        Of several processes each has the whole batch, scores its share of it, and learns from its share of what all of
        them keep alike.
        """
        # 1. score: the student sees the whole batch, in train mode, without gradient
        scores, raw_logits = None, None
        if self.selector.needs_scores:
            share = processes.share()
            with torch.no_grad(), self.cast():
                raw_features, raw_logits = self.scoring(images[share], is_feat=True)
            raw_logits = processes.gather(raw_logits.float(), len(images))
            raw_distances = processes.gather(self.distances(raw_features[-1], labels[share]), len(images))
            scores = uncertainty(raw_logits, self.selector.strategy)

        # 2. rank, mix, keep k
        selection = self.selector(images, scores, lam, partner, processes.share())
        kept, all_kept = selection.kept, min(self.args.k, len(images))
        dropped = selection.rank[all_kept:][processes.share()]
        k = len(kept)

        # 3. learn from the teacher on what is kept
        with torch.no_grad(), self.cast():
            teacher_features, teacher_logits = self.teacher(selection.images, is_feat=True)
        with self.cast():
            features, logits = self.learning(selection.images, is_feat=True)
        loss = self.args.kd_weight * kd_loss(logits, teacher_logits, self.args.T)
        if self.args.ce_weight:
            mixed = mixed_cross_entropy(logits, labels[kept], labels[selection.partner], selection.mask)
            loss = loss + self.args.ce_weight * mixed
        if self.args.other_distill:
            name = self.args.other_distill
            loss = loss + OTHER_WEIGHT[name] * FEATURE_LOSSES[name](features, teacher_features)
        self.optimizer.zero_grad()
        (loss * processes.weight(k, all_kept)).backward()
        self.optimizer.step()

        # statistics: the student on the raw images where it scored them, else on the kept ones as they were mixed
        stats = {"train/loss": loss.detach().expand(k), "train/acc": correct(logits, labels[kept])}
        for measure, values in confidences(teacher_logits).items():
            stats[f"train/t_{measure}"] = values
        for measure, values in confidences(logits if raw_logits is None else raw_logits).items():
            if raw_logits is None:
                parts = {"select": values, **({"all": values} if self.args.k == self.args.batch_size else {})}
            else:
                parts = {"select": values[kept], "else": values[dropped], "all": values[processes.share()]}
            stats |= {f"train/s_{part}_{measure}": of_part for part, of_part in parts.items()}
        distances = self.distances(features[-1], labels[kept]) if raw_logits is None else raw_distances[kept]
        stats["train/center_dist"] = distances
        return selection, stats

    def distances(self, pooled, labels):
        """(m,) float32: of pooled features, (m, D), to the centres of their labels."""
        return (pooled.detach().float() - self.centres[labels]).norm(dim=1)

    def end_epoch(self, epoch, meters, centres):
        self.centres.copy_(centres)
        self.counter = torch.cat([self.counter, self.counted.cpu()[None]])
        self.counted.zero_()
        self.save_counter()
        drawn = epoch * len(self.train)
        scored = drawn if self.selector.needs_scores else 0
        return spent(*self.macs, epoch * meters.counts["train/t_entropy"], scored, drawn)

    def save_counter(self):
        if self.counter_path is None or processes.rank() > 0:
            return
        buffer = io.BytesIO()
        np.save(buffer, self.counter.numpy())
        write_file(self.counter_path, buffer.getvalue())

    def state(self):
        return {"counter": self.counter, "counted": self.counted, "centres": self.centres}

    def load_state(self, state):
        self.counter = state["counter"]
        self.counted.copy_(state["counted"])
        self.centres.copy_(state["centres"])
        self.save_counter()


def confidences(logits):
    """{"confidence": max p, "margin": p_1 - p_2, "entropy": in nats}, each (n,). logits: (n, C)."""
    logits = logits.detach()
    return {
        "confidence": 1 - uncertainty(logits, LEAST_CONFIDENCE),
        "margin": -uncertainty(logits, MARGIN),
        "entropy": uncertainty(logits, ENTROPY),
    }


# --------------------------------------------------------------------------------------------------------- program


def main(argv=None):
    # flags
    parser = flags()
    args = parser.parse_args(argv)
    check_flags(parser, args)
    device, precision, cast = set_up(parser, args)

    # set-up
    teacher, checkpoint, teacher_file = load_teacher(parser, args)
    teacher_arch = checkpoint["arch"]
    torch.manual_seed(args.seed)
    student = model_dict[args.student_arch](num_classes=dataset.NUM_CLASSES)
    if args.other_distill:
        check_pairing(parser, args.other_distill, student, teacher)
    config = describe(
        args,
        device,
        precision,
        teacher_arch=teacher_arch,
        teacher_file=str(teacher_file),
        teacher_sha256=file_sha256(teacher_file),
    )
    name = run_name(parser, args, teacher_arch)
    run = Run(args.experiments, name, config, "student", args.student_arch, args.fresh)
    if run.finished:
        return run.summarize()
    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit, args.holdout, args.seed)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    student = student.to(device, memory_format=torch.channels_last)
    if args.sync_bn:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(student)
    _, teacher_acc, _ = Evaluator(teacher, data.val, cast)()
    print(f"teacher {teacher_arch} ({teacher_file}): {teacher_acc:.2f} % on the validation images")
    warn_of_seen_holdout(args, checkpoint.get("settings"))
    macs = forward_macs(args.student_arch), forward_macs(teacher_arch)
    print(cost_line(args, *macs))
    run.config["compilation"] = choose_compilation(args.compile, device, planned_steps(args))

    # training
    with run:
        counter_path = run.folder / "counter.npy" if args.strategy != RANDOM else None
        learner = Distiller(student, teacher, args, data, cast, macs, run.config["compilation"], counter_path)
        fit(args, run, data, learner, cast)
        run.finish(
            len(data.train),
            **final_test(run, student, data.test, cast),
            peak_memory_bytes=peak_memory(device),
            teacher_acc=teacher_acc,
            student_macs=macs[0],
            teacher_macs=macs[1],
        )
    run.summarize()


def cost_line(args, fs, ft):
    """What a step will cost beside ordinary distillation, in words."""
    one, two = (
        100 * computation(fs, ft, args.k, args.batch_size, args.strategy != RANDOM, backward)
        for backward in COUNTINGS.values()
    )
    return (
        f"cost: forward {ft / 1e6:.1f} (teacher) and {fs / 1e6:.1f} (student) million multiply-accumulates, ratio "
        f"{ft / fs:.2f}; computation {one:.1f} % of KD's, {two:.1f} % if backward counts as two forwards"
    )


def check_pairing(parser, other_distill, student, teacher):
    """Exits with code 2 where the feature loss cannot pair the two networks."""
    image = torch.zeros(1, 3, dataset.SIZE, dataset.SIZE)
    with torch.no_grad():
        features = [network.eval()(image, is_feat=True)[0] for network in (student, teacher)]
    try:
        check_features(other_distill, *features)
    except ValueError as e:
        parser.error(f"argument --other-distill: {e}")


def run_name(parser, args, teacher_arch):
    """The folder's name: students, teacher and method always, every other setting where it is not the default."""
    teacher = own_name(args.teacher_path).removeprefix("teacher_")
    if not teacher.startswith(teacher_arch):
        teacher = f"{teacher_arch}_{teacher}"
    named = {"teacher_path", "teacher_ckpt", "teacher_arch", "student_arch", "strategy", "k", "b", "w", "seed"}
    return (
        f"v0_student_{args.student_arch}_teacher_{teacher}-{args.teacher_ckpt}_strategy{args.strategy}"
        f"_k{args.k}_b{args.b}_w{written(args.w)}_seed{args.seed}{differences(parser, args, named)}"
    )


if __name__ == "__main__":
    entry(main)
