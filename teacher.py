"""Train one network on CIFAR-100 with cross-entropy: a teacher, or a student alone.

    python teacher.py --arch wrn_40_2
    python teacher.py --arch resnet20 --epoch 3 --milestones 2          a quick look
    python teacher.py --arch resnet20 --dataset synthetic --epoch 3     without any files

Writes experiments/teacher_<arch>/, see engine/run.py. The same command, given again, resumes an interrupted run.
"""

import torch
import torch.nn.functional as F

import dataset
from engine import distributed
from engine.compile import compile_network
from engine.flops import cost_so_far, forward_macs
from engine.meters import correct
from engine.run import Run, make_config, name_suffix
from engine.trainer import Trainer, fit
from models import model_dict
from utils import Parser, add_shared_flags, autocast, check_shared_flags, run_main, set_up


def make_parser():
    parser = Parser(__doc__)
    parser.add_argument("--arch", required=True, choices=model_dict, metavar="NAME", help=", ".join(model_dict))
    add_shared_flags(parser)
    return parser


class TeacherTrainer(Trainer):
    """Trains with cross-entropy. See engine.trainer.Trainer."""

    tag = "train/cls_"

    def __init__(self, model, args, data, autocast):
        super().__init__(model, args, data, autocast)
        self.ddp_model, self.macs = distributed.wrap_ddp(self.model), forward_macs(model)
        if self.compile == "all":
            images = data.train.normalized(data.train.images[: args.batch_size])
            self.ddp_model = compile_network(model, images, autocast, grad=True)
        if self.compile != "all" or self.ddp_model is model:
            self.compile = "none"

    def batches(self, epoch):
        return self.data.train.batches(self.args.batch_size, self.args.seed, epoch)

    def step(self, chosen, offsets, flips):
        images, labels, _ = self.data.train.batch(*distributed.shard((chosen, offsets, flips)))
        with self.autocast():
            logits = self.ddp_model(images)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.update(losses.mean())
        return {"train/cls_loss": losses.detach(), "train/cls_acc": correct(logits, labels)}

    def cost(self, epochs):
        return cost_so_far(self.macs, trained=epochs * len(self.data.train))


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    check_shared_flags(parser, args)
    device, precision = set_up(parser, args)

    config = make_config(parser, args, device, precision, kind="teacher", arch=args.arch)
    run = Run(args, f"teacher_{args.arch}{name_suffix(config, named={'arch'})}", config)
    if run.finished():
        return run.summarize()

    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit)
    data = data.hold_out(args.holdout, args.seed)
    torch.manual_seed(args.seed)
    model = model_dict[args.arch](num_classes=dataset.NUM_CLASSES)
    trainer = TeacherTrainer(model, args, data, autocast(device, run.config["precision"]))
    fit(run, trainer, teacher_acc=None, student_macs=trainer.macs)


if __name__ == "__main__":
    run_main(main)
