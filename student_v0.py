"""Distill a student from a trained teacher, each batch reduced by uncertainty-aware mixup (UNIX, arXiv 2012.09413).

    python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_16_2
    python student_v0.py --teacher-path ... --student-arch ... --strategy 0 --k 64 --b 64 --w 1000    ordinary KD

Writes experiments/v0_student_<student>_teacher_<teacher>-<ckpt>_strategy..., see engine/run.py, and there counter.npy,
(epochs, 50000) uint8: whether each training image was among the b most uncertain of its batch in an epoch (not with
strategy 0, which scores nothing). The same command, given again, resumes an interrupted run.
"""

import io
import math
import re
from pathlib import Path

import numpy as np
import torch

import dataset
from engine import distributed
from engine.compile import compile_network, freeze, place
from engine.flops import COUNTINGS, cost_so_far, forward_macs, relative_cost
from engine.meters import Evaluator, correct
from engine.run import (
    Run,
    arch_from_name,
    file_sha256,
    find_checkpoint,
    format_value,
    make_config,
    name_suffix,
    teacher_name,
)
from engine.trainer import Trainer, fit
from losses import FEATURE_LOSSES, kd_loss, mixed_cross_entropy
from models import CheckpointError, load_model, model_dict, pooled_size
from selector import ENTROPY, RANDOM, UNCERTAINTIES, Selector, confidences, draw_mixing, log_softmax
from utils import MANY, Parser, add_shared_flags, as_path, autocast, check_shared_flags, number, run_main, set_up

# ----------------------------------------------------------------------------------------------------------- flags


def make_parser():
    parser = Parser(__doc__)
    # fmt: off
    networks = parser.add_argument_group("networks")
    add = networks.add_argument
    add("--teacher-path", type=as_path, default=Path("experiments/teacher_resnet32x4"), metavar="PATH",
        help="the teacher's folder, with ckpt/ in it, or its checkpoint (./experiments/teacher_resnet32x4)")
    add("--teacher-ckpt", default="best", metavar="WORD",
        help="which checkpoint of the folder: the one whose name holds this word, such as best, last or 240 (best)")
    add("--teacher-arch", choices=model_dict, metavar="NAME",
        help="for a teacher whose checkpoint and folder do not say it, or one that is itself a distilled student")
    add("--student-arch", choices=model_dict, default="resnet8x4", metavar="NAME",
        help=f"(resnet8x4) {', '.join(model_dict)}")

    method = parser.add_argument_group("method (the defaults are the published runs')")
    add = method.add_argument
    add("--strategy", type=int, choices=[RANDOM, *UNCERTAINTIES], default=ENTROPY,
        help="uncertainty: 0 random, 1 least confidence, 2 margin, 3 entropy (3)")
    add("--k", type=number(int, 1, MANY), default=48,
        help="images of a batch that are kept for teacher and student; fewer cost less and teach less (48)")
    add("--b", type=number(int, 1, MANY), default=32,
        help="rank at which mixing reaches half its strength; lower mixes more images (32)")
    add("--w", type=number(float, 0), default=10.0,
        help="steepness of the mixing over the ranks (10, as in every published UNIX run; 1000 is a step at b)")
    add("--score-every", type=number(int, 1, MANY), default=1, metavar="E",
        help="score in epochs 1, 1 + E, ... only; in between an image has its last score, which costs less (1: always)")
    add("--T", type=number(float, 0.01), default=4.0,
        help="temperature of the distillation loss; higher tells more of the unlikely classes (4)")
    add("--kd-weight", type=number(float, 0), default=1.0,
        help="of the distillation loss (1: the only loss in the published runs)")
    add("--ce-weight", type=number(float, 0), default=0.0,
        help="of the cross-entropy with the mixed labels (0: the published runs learn from the teacher alone)")
    add("--other-distill", choices=FEATURE_LOSSES,
        help="a feature loss on top, with its published weight: "
        + ", ".join(f"{name} {weight}" for name, (weight, _) in FEATURE_LOSSES.items()) + " (none)")
    add_shared_flags(parser)
    # fmt: on
    return parser


def check_flags(parser, args):
    check_shared_flags(parser, args)
    for flag in ("k", "b"):
        if getattr(args, flag) > args.batch_size:
            parser.error(f"argument --{flag}: {getattr(args, flag)} is more than --batch-size {args.batch_size}")
    world_size = distributed.world_size()
    if args.k % world_size:
        parser.error(f"argument --k: {args.k} does not divide by {world_size} processes")
    if args.other_distill == "SP" and world_size > 1:
        parser.error("argument --other-distill: SP compares over the batch, of which each process sees a part")
    if args.score_every > 1 and args.strategy == RANDOM:
        parser.error("argument --score-every: --strategy 0 scores nothing")
    if not (args.kd_weight or args.ce_weight or args.other_distill):
        parser.error("argument --kd-weight: with 0, --ce-weight 0 and no --other-distill nothing is learned")
    if not re.fullmatch(r"[\w.-]+", args.teacher_ckpt):
        parser.error(f"argument --teacher-ckpt: a word from a checkpoint's name, not {args.teacher_ckpt!r}")


# -------------------------------------------------------------------------------------------------------- training


class Distiller(Trainer):
    """Trains a student on what the selector makes of each batch. See engine.trainer.Trainer.

    student, teacher: networks, the teacher on the data's device and in eval mode.
    """

    def __init__(self, student, teacher, args, data, autocast):
        super().__init__(student, args, data, autocast)
        self.student, self.teacher = self.model, teacher  # the student as it scores
        self.ddp_student = distributed.wrap_ddp(self.model)  # and as it trains
        self.student_macs, self.teacher_macs = forward_macs(student), forward_macs(teacher)
        self.selector = Selector(args.k, args.b, args.w, args.strategy, args.batch_size)
        self.scoring = self.selector.needs_scores  # in this epoch
        images = data.train.normalized(data.train.images[: args.batch_size])
        if self.compile != "none":
            self.teacher = freeze(teacher, images[: args.k // distributed.world_size()], autocast)
        if self.teacher is teacher:
            self.compile = "none"
        if self.compile == "all":
            self.ddp_student = compile_network(student.train(), images[: args.k], autocast, grad=True, is_feat=True)
            if self.ddp_student is student:
                self.compile = "teacher"
            elif self.scoring:
                self.student = compile_network(student, images, autocast, is_feat=True)
        device = data.train.labels.device
        # mean pooled features of the classes by the student, from the last validation; none before the first
        self.centers = torch.full((dataset.NUM_CLASSES, pooled_size(student)), math.nan, device=device)
        self.scores = torch.zeros(data.train_size, device=device)  # of each image, when it was last scored
        # whether an image was among the b most uncertain of its batch, in this epoch and in those before (counter.npy)
        self.most_uncertain = torch.zeros(data.train_size, dtype=torch.uint8, device=device)
        self.counter = torch.zeros(0, data.train_size, dtype=torch.uint8)

    def begin_epoch(self, epoch):
        self.scoring = self.selector.needs_scores and (epoch - 1) % self.args.score_every == 0
        return (*super().begin_epoch(epoch), self.scoring)

    def batches(self, epoch):
        args, train, device = self.args, self.data.train, self.scores.device
        lam, partner = draw_mixing(len(train), args.batch_size, dataset.generator(args.seed, epoch, dataset.MIXING))
        mixing = zip(lam.to(device), partner.to(device).split(args.batch_size))
        return [(*batch, *mix) for batch, mix in zip(train.batches(args.batch_size, args.seed, epoch), mixing)]

    def step(self, chosen, offsets, flips, lam, partner):
        """chosen, offsets, flips: see Split.batch. lam: (), partner: (n,), see draw_mixing."""
        args = self.args
        images, labels, index = self.data.train.batch(chosen, offsets, flips)  # crop, flip, normalize

        # 1. score: the student sees the whole batch, in train mode, without gradient
        if self.scoring:
            with torch.no_grad(), self.autocast():
                raw_features, raw_logits = self.student(images, is_feat=True)
            raw_log_p = log_softmax(raw_logits)
            self.scores[index] = UNCERTAINTIES[args.strategy](raw_log_p)

        # 2. rank, mix, keep k: the most uncertain come first; the surer an image, the more of its partner is in it
        selection = self.selector(images, self.scores[index], lam, partner)
        self.most_uncertain.index_fill_(0, index[selection.rank[: args.b]], 1)
        mine = distributed.shard(selection)  # one process: all of it

        # 3. distill: teacher and student see the kept images only
        with torch.no_grad(), self.autocast():
            t_features, t_logits = self.teacher(mine.images, is_feat=True)
        with self.autocast():
            s_features, s_logits = self.ddp_student(mine.images, is_feat=True)
        loss = args.kd_weight * kd_loss(s_logits, t_logits, args.T)
        if args.ce_weight:
            cross_entropy = mixed_cross_entropy(s_logits, labels[mine.kept], labels[mine.partner], mine.mask)
            loss = loss + args.ce_weight * cross_entropy
        if args.other_distill:
            weight, feature_loss = FEATURE_LOSSES[args.other_distill]
            loss = loss + weight * feature_loss(s_features, t_features)
        self.update(loss)

        # 4. log: the student on the raw images if it scores them, on the kept ones if it never does
        stats = {"train/loss": loss.detach().expand(len(mine.kept))}  # a value a sample, as Meters weights it
        stats |= {f"train/t_{name}": values for name, values in confidences(log_softmax(t_logits)).items()}
        measures, groups = {}, {}
        if self.scoring:
            stats["train/acc"] = correct(raw_logits, labels)[mine.rank]
            stats["train/center_dist"] = self.center_dist(raw_features[-1], labels)[mine.kept]
            kept, measures = len(mine.kept), confidences(raw_log_p[mine.rank])
            groups = {"s_select": slice(kept), "s_else": slice(kept, None), "s_all": slice(None)}
        else:
            stats["train/acc"] = correct(s_logits, labels[mine.kept])
        if not self.selector.needs_scores:
            stats["train/center_dist"] = self.center_dist(s_features[-1], labels[mine.kept])
            measures = confidences(log_softmax(s_logits))
            groups = dict.fromkeys(("s_select", "s_all") if args.k == args.batch_size else ("s_select",), slice(None))
        for group, rows in groups.items():
            stats |= {f"train/{group}_{name}": values[rows] for name, values in measures.items()}
        return stats

    def center_dist(self, pooled, labels):
        """(m,) float32 distances of pooled features, (m, D), to the centers of their classes."""
        return (pooled.detach().float() - self.centers[labels]).norm(dim=1)

    def end_epoch(self, centers):
        self.centers.copy_(centers)
        self.counter = torch.cat([self.counter, self.most_uncertain.cpu()[None]])
        self.most_uncertain.zero_()

    def cost(self, epochs):
        args, n = self.args, len(self.data.train)
        whole, rest = divmod(n, args.batch_size)
        kept = whole * args.k + min(rest, args.k)
        scored_epochs = math.ceil(epochs / args.score_every) if self.selector.needs_scores else 0
        return cost_so_far(self.student_macs, self.teacher_macs, epochs * kept, scored_epochs * n, epochs * n)

    def state(self):
        own = {name: getattr(self, name) for name in ("counter", "most_uncertain", "centers", "scores")}
        return super().state() | own

    def load_state(self, state):
        super().load_state(state)
        self.counter = state["counter"]
        for name in ("most_uncertain", "centers", "scores"):
            getattr(self, name).copy_(state[name])

    def files(self):
        if not self.selector.needs_scores:
            return {}
        buffer = io.BytesIO()
        np.save(buffer, self.counter.numpy())
        return {"counter.npy": buffer.getvalue()}


# --------------------------------------------------------------------------------------------------------- program


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    check_flags(parser, args)
    device, precision = set_up(parser, args)

    teacher, checkpoint, path = load_teacher(args)
    torch.manual_seed(args.seed)
    student = model_dict[args.student_arch](num_classes=dataset.NUM_CLASSES)
    check_feature_loss(parser, args, student, teacher)
    teacher_config = {
        "teacher_arch": checkpoint["arch"],
        "teacher_file": str(path),
        "teacher_sha256": file_sha256(path),
    }
    config = make_config(parser, args, device, precision, kind="student", arch=args.student_arch, **teacher_config)
    run = Run(args, run_name(args, config), config)
    if run.finished():
        return run.summarize()

    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit)
    data = data.hold_out(args.holdout, args.seed)
    cast = autocast(device, run.config["precision"])
    teacher = place(teacher, device, cast)
    _, teacher_acc, _ = Evaluator(teacher, data.val, cast)()
    print(f"teacher {checkpoint['arch']} ({path}): {teacher_acc:.2f} % on the validation images")
    warn_of_seen_holdout(args, checkpoint.get("settings"))
    trainer = Distiller(student, teacher, args, data, cast)
    print(cost_line(args, trainer.student_macs, trainer.teacher_macs))
    fit(run, trainer, teacher_acc=teacher_acc, student_macs=trainer.student_macs, teacher_macs=trainer.teacher_macs)


def load_teacher(args):
    """(the teacher in eval mode, its checkpoint with "arch", the file's path). Raises CheckpointError."""
    path = find_checkpoint(args.teacher_path, args.teacher_ckpt)
    teacher, checkpoint = load_model(path, args.teacher_arch or arch_from_name(teacher_name(path)[0]))
    arch, classes = checkpoint["arch"], checkpoint["num_classes"]
    if args.teacher_arch not in (None, arch):
        raise CheckpointError(f"{path}: holds {arch}, not --teacher-arch {args.teacher_arch}")
    if checkpoint.get("kind") == "student" and not args.teacher_arch:
        raise CheckpointError(f"{path}: a distilled student; --teacher-arch {arch} says that it is meant as a teacher")
    if classes != dataset.NUM_CLASSES:
        raise CheckpointError(f"{path}: a network of {classes} classes, but {args.dataset} has {dataset.NUM_CLASSES}")
    return teacher, checkpoint, path


def run_name(args, config):
    """The folder's name: student, teacher and method always, every other setting if it is not the default."""
    teacher, ckpt = teacher_name(Path(config["teacher_file"]))
    teacher = teacher.removeprefix("teacher_")
    if not teacher.startswith(config["teacher_arch"]):
        teacher = f"{config['teacher_arch']}_{teacher}"
    if not args.teacher_path.is_file():
        ckpt = args.teacher_ckpt
    named = {"teacher_arch", "teacher_sha256", "student_arch", "strategy", "k", "b", "w", "seed"}
    return (
        f"v0_student_{args.student_arch}_teacher_{teacher}-{ckpt}_strategy{args.strategy}_k{args.k}_b{args.b}"
        f"_w{format_value(args.w)}_seed{args.seed}{name_suffix(config, named)}"
    )


def check_feature_loss(parser, args, student, teacher):
    """Exits with code 2 where the feature loss cannot pair the two networks."""
    if not args.other_distill:
        return
    image = torch.zeros(1, 3, dataset.SIZE, dataset.SIZE)
    with torch.no_grad():
        features = [network.eval()(image, is_feat=True)[0] for network in (student, teacher)]
    try:
        FEATURE_LOSSES[args.other_distill][1](*features)
    except ValueError as e:
        parser.error(f"argument --other-distill: {e}")


def warn_of_seen_holdout(args, teacher_settings):
    """A teacher that trained on the images held out here makes the choice of the best epoch less honest."""
    split = ("dataset", "train_limit", "holdout", "seed")
    teacher_settings = teacher_settings if isinstance(teacher_settings, dict) else {}
    if args.holdout and any(teacher_settings.get(flag) != getattr(args, flag) for flag in split):
        print(
            "warning: the teacher was not trained with the same --holdout, --seed and data: it may have seen images "
            "held out here, and its accuracy on them means little"
        )


def cost_line(args, student_macs, teacher_macs):
    """What a step costs beside ordinary distillation, in words."""
    scored = 0 if args.strategy == RANDOM else 1 / args.score_every
    paper, usual = (
        100 * relative_cost(student_macs, teacher_macs, args.k, args.batch_size, scored, backward)
        for backward in COUNTINGS.values()
    )
    return (
        f"cost: forward {teacher_macs / 1e6:.1f} (teacher) and {student_macs / 1e6:.1f} (student) million "
        f"multiply-accumulates, ratio {teacher_macs / student_macs:.2f}; computation {paper:.1f} % of KD's, "
        f"{usual:.1f} % if backward counts as two forwards"
    )


if __name__ == "__main__":
    run_main(main)
