"""Distill a student from a trained teacher. Uncertainty-aware mixup (UNIX, arXiv 2012.09413) reduces each batch.

    python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_16_2
    python student_v0.py --teacher-path ... --student-arch ... --strategy 0 --k 64 --b 64 --w 1000    ordinary KD

Writes the folder experiments/v0_student_<student>_teacher_<teacher>-<ckpt>_strategy..., whose files
experiments/README.md lists. The same command, given again, resumes an interrupted run.
"""

import io
import math
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dataset
from engine.compile import compile_network
from engine.device import Precision, setup_backend, to_device
from engine.fit import fit
from engine.flops import cost_in_words, cost_so_far, forward_macs, network_size
from engine.meters import Evaluator, correct
from engine.run import Run, RunError, format_value, make_config, name_suffix
from engine.teacher_cache import TeacherCache
from engine.trainer import Trainer
from losses import FEATURE_LOSSES, kd_loss, mixed_cross_entropy
from models import CheckpointError, arch_from_name, find_checkpoint, load_model, model_dict, pooled_size, teacher_name
from selector import ENTROPY, RANDOM, UNCERTAINTIES, Selector, confidences, draw_mixing, log_softmax, uncertainty
from utils import MAX_INT, TRAIN_SIZE, Parser, add_shared_flags, as_path, bounded, check_shared_flags, run_main, set_up

# ----------------------------------------------------------------------------------------------------------- flags


def make_parser() -> Parser:
    parser = Parser("student_v0.py", __doc__)
    count = bounded(int, 1, MAX_INT)
    # fmt: off
    add = parser.add_argument_group("networks").add_argument
    add("--teacher-path", type=as_path, default=Path("experiments/teacher_resnet32x4"), metavar="PATH",
        help="the teacher's folder, which has ckpt/ in it, or its checkpoint")
    add("--teacher-ckpt", default="best", metavar="WORD",
        help="a word in the name of the checkpoint's file, such as best, last or 240")
    add("--teacher-arch", choices=model_dict, metavar="NAME",
        help="the teacher's network; needed if neither checkpoint nor folder names it, or for a distilled student")
    add("--student-arch", choices=model_dict, default="resnet8x4", metavar="NAME", help=", ".join(model_dict))

    add = parser.add_argument_group("method (the defaults are those of the published runs)").add_argument
    add("--strategy", type=int, choices=[RANDOM, *UNCERTAINTIES], default=ENTROPY,
        help="uncertainty: 0 random, 1 least confidence, 2 margin, 3 entropy")
    add("--k", type=count, default=48, help="images of a batch that teacher and student see; fewer cost less")
    add("--b", type=count, default=32, help="rank at which mixing reaches half its strength; lower mixes more images")
    add("--w", type=bounded(float, 0, 1e6), default=10.0, help="steepness of the mixing over the ranks; 1000 is a step")
    add("--score-every", type=count, default=1, metavar="E",
        help="an extension: score in epochs 1, 1 + E, ... only; between them an image keeps its last score")
    add("--T", type=bounded(float, 0.01, 1e6), default=4.0,
        help="temperature; a higher one tells the student more about the unlikely classes")
    add("--kd-weight", type=bounded(float, 0, 1e6), default=1.0, help="weight of the distillation loss")
    add("--ce-weight", type=bounded(float, 0, 1e6), default=0.0, help="weight of the cross-entropy with mixed labels")
    weights = ", ".join(f"{name} {weight}" for name, (weight, _) in FEATURE_LOSSES.items())
    add("--other-distill", choices=FEATURE_LOSSES, help=f"a feature loss to add, with its published weight: {weights}")
    add_shared_flags(parser)
    parser.add_argument("--teacher-cache", action="store_true",
        help="an extension: store the teacher's logits of every crop and flip of an image in a file beside the teacher "
        "(up to 1.6 GB), so that each is computed once; nothing may be mixed: give the batch size as --b, and --w 1000")
    parser.add_argument("--compile", action="store_true",
        help="compile the teacher and the scoring, which takes a minute and then saves 4 to 10 %% of a step on a CPU")
    # fmt: on
    return parser


def check_flags(parser: Parser, args: Namespace) -> None:
    """Exits with code 2 where flags contradict each other."""
    check_shared_flags(parser, args)
    for flag in ("k", "b"):
        if getattr(args, flag) > args.batch_size:
            parser.error(f"argument --{flag}: {getattr(args, flag)} is more than --batch-size {args.batch_size}")
    if args.score_every > 1 and args.strategy == RANDOM:
        parser.error("argument --score-every: --strategy 0 scores nothing")
    if args.teacher_cache and (args.b < args.batch_size or args.w < 1000):
        parser.error(
            f"argument --teacher-cache: needs --b {args.batch_size} --w 1000, because mixed images are always new"
        )
    if args.teacher_cache and args.other_distill:
        parser.error("argument --teacher-cache: keeps logits only, and --other-distill needs the teacher's features")
    if not (args.kd_weight or args.ce_weight or args.other_distill):
        parser.error("argument --kd-weight: with 0, --ce-weight 0 and no --other-distill nothing is learned")
    if not re.fullmatch(r"[\w.-]+", args.teacher_ckpt):
        parser.error(f"argument --teacher-ckpt: must be a word from a checkpoint's name, not {args.teacher_ckpt!r}")


# -------------------------------------------------------------------------------------------------------- training


class Distiller(Trainer):
    """Trains a student on what the selector makes of each batch.

    teacher: on the data's device and in eval mode. cache: of its logits; with one the steps do not run the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        args: Namespace,
        data: dataset.Data,
        precision: Precision,
        cache: TeacherCache | None = None,
    ):
        super().__init__(student, args, data, precision)
        self.teacher_macs = forward_macs(teacher)
        self.selector = Selector(args.k, args.b, args.w, args.strategy, args.batch_size)
        self.scoring = self.selector.needs_scores  # in this epoch
        self.teacher = teacher
        self.cache = cache
        self.scorer = self.model
        if args.compile:
            images = data.train.normalized(data.train.images[: args.batch_size])
            if not cache:
                self.teacher = compile_network(teacher, images[: args.k], precision, frozen=True)
            if self.scoring:
                self.scorer = compile_network(self.model.train(), images, precision)
        device = data.train.labels.device
        # the classes' mean pooled features by the student, from the last validation; none before the first
        self.centers = torch.full((dataset.NUM_CLASSES, pooled_size(student)), math.nan, device=device)
        self.scores = torch.zeros(data.num_train_images, device=device)  # of each image, when it was last scored
        # whether an image was among the b most uncertain of its batch, in this epoch and in those before (counter.npy)
        self.most_uncertain = torch.zeros(data.num_train_images, dtype=torch.uint8, device=device)
        self.counter = torch.zeros(0, data.num_train_images, dtype=torch.uint8)

    def draw_epoch(self, epoch: int) -> list[tuple[torch.Tensor, ...]]:
        args, train, device = self.args, self.data.train, self.scores.device
        rng = dataset.generator(args.seed, epoch, dataset.MIXING)
        lam, partner = draw_mixing(len(train), args.batch_size, rng)
        lam = lam.to(device)
        batches = train.draw_epoch(args.batch_size, args.seed, epoch)
        columns = [*zip(*batches), lam, partner.to(device).split(args.batch_size)]
        if self.cache:
            lam.zero_()  # --w 1000 leaves the last ranks of a large batch mixed a little
            logits = self.cache(*map(torch.cat, zip(*batches)))
            columns.append(logits.split(args.batch_size))
        return list(zip(*columns))

    def train_epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        scoring = self.selector.needs_scores and (epoch - 1) % self.args.score_every == 0
        if scoring != self.scoring:
            self.scoring = scoring
            self.graphed_step.reset()
        if self.cache:
            bar.set_postfix_str(f"epoch {epoch}/{self.args.epoch}, asking the teacher")
        return super().train_epoch(epoch, bar)

    def step(
        self,
        chosen: torch.Tensor,
        offsets: torch.Tensor,
        flips: torch.Tensor,
        lam: torch.Tensor,
        partner: torch.Tensor,
        cached_logits: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """chosen, offsets, flips: see Split.load_batch. lam, partner: see draw_mixing. cached_logits: (n, 100)."""
        args, autocast = self.args, self.precision.autocast
        images, labels, index = self.data.train.load_batch(chosen, offsets, flips)  # crop, flip, normalize

        # 1. score: the student sees the whole batch, in train mode, without gradient
        if self.scoring:
            with torch.no_grad(), autocast():
                _, raw_logits = self.scorer(images, is_feat=True)
            self.scores[index] = uncertainty(raw_logits, args.strategy)

        # 2. rank, mix, keep k: the most uncertain come first, and the more certain are mixed more
        selection = self.selector(images, self.scores[index], lam, partner)
        self.most_uncertain.index_fill_(0, index[selection.order[: args.b]], 1)

        # 3. distill: teacher and student see the kept images only
        if cached_logits is not None:
            t_logits = cached_logits[selection.kept]
        else:
            with torch.no_grad(), autocast():
                t_features, t_logits = self.teacher(selection.images, is_feat=True)
        with autocast():
            s_features, s_logits = self.model(selection.images, is_feat=True)
        loss = args.kd_weight * kd_loss(s_logits, t_logits, args.T)
        if args.ce_weight:
            ce_loss = mixed_cross_entropy(s_logits, labels[selection.kept], labels[selection.partner], selection.mask)
            loss = loss + args.ce_weight * ce_loss
        if args.other_distill:
            weight, feature_loss = FEATURE_LOSSES[args.other_distill]
            loss = loss + weight * feature_loss(s_features, t_features)
        self.update(loss)

        # 4. log, by rank: the student on all raw images where it scores them, else on the kept mixed ones
        if self.scoring:
            logits = raw_logits[selection.order]
            targets = labels[selection.order]
        else:
            logits = s_logits
            targets = labels[selection.kept]
        k = len(selection.kept)
        stats = {
            "loss": loss.detach().expand(k),  # a value a sample, for Meters
            "acc": correct(logits, targets),
            "center_dist": self.center_dist(s_features[-1], labels[selection.kept]),
        }
        stats |= {f"t_{name}": values for name, values in confidences(log_softmax(t_logits)).items()}
        if self.scoring or not self.selector.needs_scores:  # between two scorings they would be of mixed images
            for name, values in confidences(log_softmax(logits)).items():
                stats[f"s_select_{name}"] = values[:k]
                if self.scoring or args.k == args.batch_size:  # otherwise nothing is known of the others
                    stats |= {f"s_else_{name}": values[k:], f"s_all_{name}": values}
        return {f"train/{name}": values for name, values in stats.items()}

    def center_dist(self, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(m,) float32 distances of pooled features, (m, D), to the centers of their classes."""
        return (pooled.detach().float() - self.centers[labels]).norm(dim=1)

    def end_epoch(self, centers: torch.Tensor) -> None:
        self.centers.copy_(centers)
        if self.selector.needs_scores:
            self.counter = torch.cat([self.counter, self.most_uncertain.cpu()[None]])
        self.most_uncertain.zero_()

    def cost(self, epochs: int) -> dict[str, float]:
        args, n = self.args, len(self.data.train)
        whole, rest = divmod(n, args.batch_size)
        kept = whole * args.k + min(rest, args.k)
        scored_epochs = math.ceil(epochs / args.score_every) if self.selector.needs_scores else 0
        queries = self.cache.queries if self.cache else epochs * kept
        return cost_so_far(self.macs, epochs * kept, scored_epochs * n, self.teacher_macs, queries, epochs * n)

    def state(self) -> dict[str, Any]:
        state = {"counter": self.counter, "centers": self.centers.cpu(), "scores": self.scores.cpu()} | super().state()
        return state | {"queries": self.cache.queries} if self.cache else state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.counter = state["counter"]
        self.centers.copy_(state["centers"])
        self.scores.copy_(state["scores"])
        if self.cache:
            self.cache.queries = state["queries"]

    def files(self) -> dict[str, bytes]:
        if not self.selector.needs_scores:
            return {}
        buffer = io.BytesIO()
        np.save(buffer, self.counter.numpy())
        return {"counter.npy": buffer.getvalue()}


# --------------------------------------------------------------------------------------------------------- program


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    check_flags(parser, args)
    device, precision = set_up(parser, args)

    teacher, checkpoint, path = load_teacher(args)
    torch.manual_seed(args.seed)
    student = model_dict[args.student_arch](num_classes=dataset.NUM_CLASSES)
    identity = network_size(student)
    if args.other_distill:
        weight, feature_loss = FEATURE_LOSSES[args.other_distill]
        check_feature_loss(parser, feature_loss, student, teacher)
        identity["feature_loss_weight"] = weight
    config = make_config(
        parser,
        args,
        argv,
        device,
        precision,
        kind="student",
        arch=args.student_arch,
        identity=identity,
        teacher_arch=checkpoint["arch"],
        teacher_file=str(path),
        teacher_sha256=checkpoint["sha256"],
        teacher_settings=checkpoint.get("settings"),
    )
    run = Run(args, run_name(args, config), config)
    if run.result:
        return run.summarize()

    precision = Precision(run.config["precision"], device.type)
    setup_backend(device, precision)
    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit)
    data = data.hold_out(args.holdout, args.seed)
    teacher = to_device(teacher, device, precision)
    teacher_loss, teacher_acc, _ = Evaluator(teacher, data.val, precision)()
    print(f"teacher {checkpoint['arch']} ({path}): {teacher_acc:.2f} % on the validation images")
    if not math.isfinite(teacher_loss):
        raise RunError(
            f"{path}: the teacher's logits are not finite in {precision.name} on the validation images; "
            "try --precision fp32, or take another checkpoint"
        )
    if args.holdout and not same_split(args, checkpoint.get("settings")):
        print("warning: the teacher had another --holdout, --seed or data, and may have learned the images held out")
    folder = path.parent.parent
    if (folder / "config.json").exists() and not (folder / "result.json").exists():
        print(f"warning: the teacher's training is not finished; {path.name} is of epoch {checkpoint.get('epoch')}")
    cache = None
    if args.teacher_cache:
        file = path.with_name(f"logits_{checkpoint['sha256'][:12]}_{args.dataset}_{precision.name}")
        cache = TeacherCache(file, teacher, data.train, TRAIN_SIZE, precision)
    trainer = Distiller(student, teacher, args, data, precision, cache)
    ft, fs = trainer.teacher_macs, trainer.macs
    forward = f"{ft / 1e6:.1f} (teacher) and {fs / 1e6:.1f} (student) million multiply-accumulates, ratio {ft / fs:.2f}"
    planned = f"the teacher's logits are kept in {cache.path}" if cache else cost_in_words(trainer.cost(args.epoch))
    print(f"cost: forward {forward}; {planned}")
    fit(run, trainer, teacher_acc=teacher_acc, student_macs=fs, teacher_macs=ft)


def load_teacher(args: Namespace) -> tuple[nn.Module, dict[str, Any], Path]:
    """The teacher in eval mode, its checkpoint with "arch" and "sha256", and the file's path.

    Raises CheckpointError.
    """
    try:
        path = find_checkpoint(args.teacher_path, args.teacher_ckpt)
        teacher, checkpoint = load_model(path, args.teacher_arch or arch_from_name(teacher_name(path)[0]))
    except CheckpointError as e:
        raise CheckpointError(f"{e} (see --teacher-path, --teacher-ckpt and --teacher-arch)") from e
    arch, classes = checkpoint["arch"], checkpoint["num_classes"]
    if args.teacher_arch not in (None, arch):
        raise CheckpointError(f"{path}: holds {arch}, not --teacher-arch {args.teacher_arch}")
    if checkpoint.get("kind") == "student" and not args.teacher_arch:
        raise CheckpointError(f"{path}: a distilled student; --teacher-arch {arch} says that it is meant as a teacher")
    if classes != dataset.NUM_CLASSES:
        raise CheckpointError(f"{path}: a network of {classes} classes, but {args.dataset} has {dataset.NUM_CLASSES}")
    return teacher, checkpoint, path


def run_name(args: Namespace, config: dict[str, Any]) -> str:
    """The folder's name: student, teacher and method always, every other setting if it is not the default."""
    teacher, ckpt = teacher_name(Path(config["teacher_file"]))
    teacher = teacher.removeprefix("teacher_")
    if not teacher.startswith(config["teacher_arch"]):
        teacher = f"{config['teacher_arch']}_{teacher}"
    method = f"strategy{args.strategy}_k{args.k}_b{args.b}_w{format_value(args.w)}_seed{args.seed}"
    named = {"teacher_arch", "teacher_sha256", "student_arch", "strategy", "k", "b", "w", "seed"}
    return f"v0_student_{args.student_arch}_teacher_{teacher}-{ckpt}_{method}{name_suffix(config, named)}"


def check_feature_loss(parser: Parser, feature_loss: Any, student: nn.Module, teacher: nn.Module) -> None:
    """Exits with code 2 where the feature loss cannot pair the two networks."""
    image = torch.zeros(1, 3, dataset.SIZE, dataset.SIZE)
    try:
        with torch.no_grad():
            feature_loss(*(network.eval()(image, is_feat=True)[0] for network in (student, teacher)))
    except ValueError as e:
        parser.error(f"argument --other-distill: {e}")


def same_split(args: Namespace, teacher_settings: Any) -> bool:
    """Whether the teacher was trained on the very images that are trained on here."""
    split = ("dataset", "train_limit", "holdout", "seed")
    return isinstance(teacher_settings, dict) and all(teacher_settings.get(f) == getattr(args, f) for f in split)


if __name__ == "__main__":
    run_main(main)
