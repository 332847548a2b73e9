"""Distill a student from a trained teacher, each batch reduced by uncertainty-aware mixup (UNIX, arXiv 2012.09413).

    python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_16_2
    python student_v0.py --teacher-path ... --student-arch ... --strategy 0 --k 64 --b 64 --w 1000    ordinary KD

Writes experiments/v0_student_<student>_teacher_<teacher>-<ckpt>_strategy..., see engine/run.py, and there counter.npy,
(epochs, 50000) uint8: whether each training image was among the b most uncertain of its batch in an epoch (not with
strategy 0, which scores nothing). The same command, given again, resumes an interrupted run.
"""

import hashlib
import io
import math
import re
from pathlib import Path

import numpy as np
import torch

import dataset
from engine import distributed
from engine.compile import compile_network, freeze, place
from engine.flops import cost_in_words, cost_so_far, forward_macs
from engine.meters import Evaluator, correct
from engine.run import Run, arch_from_name, find_checkpoint, format_value, make_config, name_suffix, teacher_name
from engine.trainer import Trainer, fit
from losses import FEATURE_LOSSES, kd_loss, mixed_cross_entropy
from models import CheckpointError, load_model, model_dict, pooled_size
from selector import ENTROPY, RANDOM, UNCERTAINTIES, Selector, confidences, draw_mixing, log_softmax, uncertainty
from utils import MANY, Parser, add_shared_flags, as_path, autocast, check_shared_flags, number, run_main, set_up

# ----------------------------------------------------------------------------------------------------------- flags


def make_parser():
    parser, count = Parser(__doc__), number(int, 1, MANY)
    # fmt: off
    add = parser.add_argument_group("networks").add_argument
    add("--teacher-path", type=as_path, default=Path("experiments/teacher_resnet32x4"), metavar="PATH",
        help="the teacher's folder, with ckpt/ in it, or its checkpoint (./experiments/teacher_resnet32x4)")
    add("--teacher-ckpt", default="best", metavar="WORD",
        help="which checkpoint of the folder: the one whose name holds this word, such as best, last or 240 (best)")
    add("--teacher-arch", choices=model_dict, metavar="NAME",
        help="for a teacher whose checkpoint and folder do not say it, or one that is itself a distilled student")
    add("--student-arch", choices=model_dict, default="resnet8x4", metavar="NAME",
        help=f"(resnet8x4) {', '.join(model_dict)}")

    add = parser.add_argument_group("method (the defaults are the published runs')").add_argument
    add("--strategy", type=int, choices=[RANDOM, *UNCERTAINTIES], default=ENTROPY,
        help="uncertainty: 0 random, 1 least confidence, 2 margin, 3 entropy (3)")
    add("--k", type=count, default=48, help="images of a batch that teacher and student get; fewer cost less (48)")
    add("--b", type=count, default=32, help="rank where mixing reaches half its strength; lower mixes more images (32)")
    add("--w", type=number(float, 0), default=10.0, help="steepness of the mixing over the ranks; 1000: a step (10)")
    add("--score-every", type=count, default=1, metavar="E",
        help="score in epochs 1, 1 + E, ... only; in between an image has its last score, which costs less (1: always)")
    add("--T", type=number(float, 0.01), default=4.0, help="temperature; higher tells more of the unlikely classes (4)")
    add("--kd-weight", type=number(float, 0), default=1.0, help="of the distillation loss (1: alone, as published)")
    add("--ce-weight", type=number(float, 0), default=0.0, help="of the cross-entropy with the mixed labels (0)")
    weights = ", ".join(f"{name} {weight}" for name, (weight, _) in FEATURE_LOSSES.items())
    add("--other-distill", choices=FEATURE_LOSSES, help=f"a feature loss on top, by its published weight: {weights}")
    add_shared_flags(parser)
    # fmt: on
    return parser


def check_flags(parser, args):
    check_shared_flags(parser, args)
    for flag in ("k", "b"):
        if getattr(args, flag) > args.batch_size:
            parser.error(f"argument --{flag}: {getattr(args, flag)} is more than --batch-size {args.batch_size}")
    if args.k % distributed.world_size():
        parser.error(f"argument --k: {args.k} is not divisible by {distributed.world_size()} processes")
    if args.other_distill == "SP" and distributed.world_size() > 1:
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
            student.train()  # what is compiled is compiled for that
            self.teacher = freeze(teacher, images[: args.k // distributed.world_size()], autocast)
        if self.teacher is teacher:
            self.compile = "none"
        if self.compile == "all":
            self.ddp_student = compile_network(student, images[: args.k], autocast, grad=True, is_feat=True)
            if self.ddp_student is student:
                self.compile = "forward"
        if self.compile != "none" and self.scoring:
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
            self.scores[index] = uncertainty(raw_logits, args.strategy)

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
            ce_loss = mixed_cross_entropy(s_logits, labels[mine.kept], labels[mine.partner], mine.mask)
            loss = loss + args.ce_weight * ce_loss
        if args.other_distill:
            weight, feature_loss = FEATURE_LOSSES[args.other_distill]
            loss = loss + weight * feature_loss(s_features, t_features)
        self.update(loss)

        # 4. log, by rank: the student on all raw images where it scores them, else on the kept mixed ones
        if self.scoring:
            features, logits, targets = raw_features[-1][mine.rank], raw_logits[mine.rank], labels[mine.rank]
        else:
            features, logits, targets = s_features[-1], s_logits, labels[mine.kept]
        k = len(mine.kept)
        stats = {"loss": loss.detach().expand(k), "acc": correct(logits, targets)}  # a value a sample, for Meters
        stats |= {f"t_{name}": values for name, values in confidences(log_softmax(t_logits)).items()}
        if self.scoring or not self.selector.needs_scores:  # between two scorings they would be of mixed images
            stats["center_dist"] = self.center_dist(features[:k], targets[:k])
            for name, values in confidences(log_softmax(logits)).items():
                stats[f"s_select_{name}"] = values[:k]
                if self.scoring or args.k == args.batch_size:  # otherwise nothing is known of the others
                    stats |= {f"s_else_{name}": values[k:], f"s_all_{name}": values}
        return {f"train/{name}": values for name, values in stats.items()}

    def center_dist(self, pooled, labels):
        """(m,) float32 distances of pooled features, (m, D), to the centers of their classes."""
        return (pooled.detach().float() - self.centers[labels]).norm(dim=1)

    def end_epoch(self, centers):
        self.centers.copy_(centers)
        if self.selector.needs_scores:
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
    if args.other_distill:
        check_feature_loss(parser, FEATURE_LOSSES[args.other_distill][1], student, teacher)
    told = {"kind": "student", "arch": args.student_arch, "teacher_arch": checkpoint["arch"], "teacher_file": str(path)}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    config = make_config(parser, args, device, precision, **told, teacher_sha256=sha256)
    run = Run(args, run_name(args, config), config)
    if run.finished():
        return run.summarize()

    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit)
    data = data.hold_out(args.holdout, args.seed)
    cast = autocast(device, run.config["precision"])
    teacher = place(teacher, device, cast)
    _, teacher_acc, _ = Evaluator(teacher, data.val, cast)()
    print(f"teacher {checkpoint['arch']} ({path}): {teacher_acc:.2f} % on the validation images")
    if args.holdout and not same_split(args, checkpoint.get("settings")):
        print("warning: the teacher was not trained with the same --holdout, --seed, data; it may know our holdout")
    trainer = Distiller(student, teacher, args, data, cast)
    ft, fs = trainer.teacher_macs, trainer.student_macs
    forward = f"{ft / 1e6:.1f} (teacher) and {fs / 1e6:.1f} (student) million multiply-accumulates, ratio {ft / fs:.2f}"
    print(f"cost: forward {forward}; {cost_in_words(trainer.cost(args.epoch))}")
    fit(run, trainer, teacher_acc=teacher_acc, student_macs=fs, teacher_macs=ft)


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
    method = f"strategy{args.strategy}_k{args.k}_b{args.b}_w{format_value(args.w)}_seed{args.seed}"
    named = {"teacher_arch", "teacher_sha256", "student_arch", "strategy", "k", "b", "w", "seed"}
    return f"v0_student_{args.student_arch}_teacher_{teacher}-{ckpt}_{method}{name_suffix(config, named)}"


def check_feature_loss(parser, feature_loss, student, teacher):
    """Exits with code 2 where the feature loss cannot pair the two networks."""
    image = torch.zeros(1, 3, dataset.SIZE, dataset.SIZE)
    try:
        with torch.no_grad():
            feature_loss(*(network.eval()(image, is_feat=True)[0] for network in (student, teacher)))
    except ValueError as e:
        parser.error(f"argument --other-distill: {e}")


def same_split(args, teacher_settings):
    """Whether the teacher was trained on the very images that are trained on here."""
    split = ("dataset", "train_limit", "holdout", "seed")
    return isinstance(teacher_settings, dict) and all(teacher_settings.get(f) == getattr(args, f) for f in split)


if __name__ == "__main__":
    run_main(main)
