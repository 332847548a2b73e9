"""Train one network on CIFAR-100 with cross-entropy: a teacher, or a student alone.

    python teacher.py --arch wrn_40_2
    python teacher.py --arch resnet20 --epoch 3 --milestones 2          a quick look
    python teacher.py --arch resnet20 --dataset synthetic --epoch 3     without any files

Writes experiments/teacher_<arch>/, see run.py. The same command, given again, resumes an interrupted run.
"""

import torch
import torch.nn.functional as F

import dataset
import processes
from cost import forward_macs, spent
from evaluation import correct
from loop import Learner, final_test, fit
from models import model_dict
from run import Run, describe, differences
from speed import choose_compilation, compiled
from utils import (
    Parser,
    add_shared_flags,
    check_shared_flags,
    entry,
    peak_memory,
    planned_steps,
    set_up,
)


class Classifier(Learner):
    """The training step: cross-entropy with the labels.

    model: a network on the data's device. cast: see utils.autocast. macs: its forward_macs. compilation: see
    speed.choose_compilation.
    """

    tag = "train/cls_"

    def __init__(self, model, args, data, cast, macs, compilation="nothing"):
        super().__init__(model, args)
        self.train, self.cast, self.macs = data.train, cast, macs
        self.network = processes.with_shared_gradients(model)
        if compilation == "all":
            self.network = compiled(model, {args.batch_size})

    def draw(self, epoch):
        return self.train.draw(self.args.batch_size, self.args.seed, epoch)

    def step(self, chosen, offsets, flips):
        n, share = len(chosen), processes.share()
        images, labels, _ = self.train.batch(chosen[share], offsets[share], flips[share])
        with self.cast():
            logits = self.network(images)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.optimizer.zero_grad()
        (losses.mean() * processes.weight(len(images), n)).backward()
        self.optimizer.step()
        return {"train/cls_loss": losses.detach(), "train/cls_acc": correct(logits, labels)}

    def end_epoch(self, epoch, meters, centres):
        return spent(self.macs, trained=epoch * meters.counts["train/cls_loss"])


def flags():
    parser = Parser(__doc__)
    parser.add_argument("--arch", required=True, choices=model_dict, metavar="NAME", help=", ".join(model_dict))
    add_shared_flags(parser)
    return parser


def main(argv=None):
    # flags
    parser = flags()
    args = parser.parse_args(argv)
    check_shared_flags(parser, args)
    device, precision, cast = set_up(parser, args)

    # set-up
    name = f"teacher_{args.arch}{differences(parser, args, named={'arch'})}"
    run = Run(args.experiments, name, describe(args, device, precision), "teacher", args.arch, args.fresh)
    if run.finished:
        return run.summarize()
    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit, args.holdout, args.seed)
    torch.manual_seed(args.seed)
    model = model_dict[args.arch](num_classes=dataset.NUM_CLASSES).to(device, memory_format=torch.channels_last)
    if args.sync_bn:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    run.config["compilation"] = choose_compilation(args.compile, device, planned_steps(args))

    # training
    with run:
        learner = Classifier(model, args, data, cast, forward_macs(args.arch), run.config["compilation"])
        fit(args, run, data, learner, cast)
        run.finish(
            len(data.train),
            **final_test(run, model, data.test, cast),
            peak_memory_bytes=peak_memory(device),
            teacher_acc=None,
            student_macs=learner.macs,
        )
    run.summarize()


if __name__ == "__main__":
    entry(main)
