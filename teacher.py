"""Train one network on CIFAR-100 with cross-entropy: a teacher, or a student alone.

    python teacher.py --arch wrn_40_2
    python teacher.py --arch resnet20 --epoch 3 --milestones 2          a quick look
    python teacher.py --arch resnet20 --dataset synthetic --epoch 3     without any files

Writes the folder experiments/teacher_<arch>/, whose files experiments/README.md lists. The same command, given again,
resumes an interrupted run.
"""

import sys

import torch
import torch.nn.functional as F

import dataset
from engine.device import Precision, setup_backend
from engine.fit import fit
from engine.flops import cost_so_far, network_size
from engine.meters import correct
from engine.run import Run, make_config, name_suffix
from engine.trainer import Trainer
from models import model_dict
from utils import Parser, add_shared_flags, check_shared_flags, run_main, set_up


def make_parser() -> Parser:
    parser = Parser("teacher.py", __doc__)
    parser.add_argument("--arch", required=True, choices=model_dict, metavar="NAME", help=", ".join(model_dict))
    add_shared_flags(parser)
    return parser


class TeacherTrainer(Trainer):
    """Trains with cross-entropy."""

    tag = "train/cls_"

    def draw_epoch(self, epoch: int) -> list[tuple[torch.Tensor, ...]]:
        return self.data.train.draw_epoch(self.args.batch_size, self.args.seed, epoch)

    def step(self, chosen: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor) -> dict[str, torch.Tensor]:
        images, labels, _ = self.data.train.load_batch(chosen, offsets, flips)
        with self.precision.autocast():
            logits = self.model(images)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.update(losses.mean())
        return {"train/cls_loss": losses.detach(), "train/cls_acc": correct(logits, labels)}

    def cost(self, epochs: int) -> dict[str, float]:
        return cost_so_far(self.macs, trained=epochs * len(self.data.train))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    check_shared_flags(parser, args)
    device, precision = set_up(parser, args)

    torch.manual_seed(args.seed)
    model = model_dict[args.arch](num_classes=dataset.NUM_CLASSES)
    identity = network_size(model)
    config = make_config(parser, args, argv, device, precision, kind="teacher", arch=args.arch, identity=identity)
    run = Run(args, f"teacher_{args.arch}{name_suffix(config, named={'arch'})}", config)
    if run.result:
        return run.summarize()

    precision = Precision(run.config["precision"], device.type)
    setup_backend(device, precision)
    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit)
    data = data.hold_out(args.holdout, args.seed)
    trainer = TeacherTrainer(model, args, data, precision)
    fit(run, trainer, teacher_acc=None, student_macs=trainer.macs)


if __name__ == "__main__":
    run_main(main)
