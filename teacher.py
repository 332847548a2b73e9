"""Train one network on CIFAR-100 with cross-entropy: a teacher, or a student alone.

    python teacher.py --arch wrn_40_2
    python teacher.py --arch resnet20 --epoch 3 --milestones 2          a quick look
    python teacher.py --arch resnet20 --dataset synthetic --epoch 3     without any files

Writes experiments/teacher_<arch>/, see run.py. The same command, given again, resumes an interrupted run.
"""

import time

import torch
import torch.nn.functional as F

import dataset
from cost import forward_macs, training_macs
from models import model_dict
from run import Run, describe, differences
from utils import (
    Meters,
    Parser,
    Progress,
    add_shared_flags,
    autocast,
    check_shared_flags,
    choose_device,
    choose_precision,
    correct,
    entry,
    evaluate,
    final_test,
    learning_rate,
)


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
    device = choose_device(parser, args.gpu_id)
    precision = choose_precision(args.precision, device)
    cast = autocast(device, precision)

    # set-up
    data = dataset.load(args.dataset, args.data_root, device, args.train_limit, args.val_limit, args.holdout, args.seed)
    torch.manual_seed(args.seed)
    model = model_dict[args.arch](num_classes=dataset.NUM_CLASSES).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
    run = Run(
        args.experiments / f"teacher_{args.arch}{differences(parser, args, named={'arch'})}",
        describe(args, device, precision),
        "teacher",
        args.arch,
        args.fresh,
    )
    if run.finished:
        return run.summarize()
    run.restore(model, optimizer)

    # training
    progress = Progress("train/cls_", args.epoch, len(data.train), len(run.rows))
    for epoch in range(len(run.rows) + 1, args.epoch + 1):
        start = time.monotonic()
        optimizer.param_groups[0]["lr"] = learning_rate(args, epoch)
        model.train()
        meters = Meters()
        for images, labels, _ in data.train.training_batches(args.batch_size, args.seed, epoch):
            with cast():
                logits = model(images)
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            meters.add("train/cls_loss", losses)
            meters.add("train/cls_acc", correct(logits, labels))
            progress.step(len(images), meters)
        row = meters.means()
        trained = time.monotonic()
        row["val/cls_loss"], row["val/cls_acc"], _ = evaluate(model, data.val, cast)
        row |= {
            "lr": learning_rate(args, epoch),
            "train_seconds": trained - start,
            "val_seconds": time.monotonic() - trained,
        }
        run.end_epoch(model, optimizer, row)
        progress.epoch(row, run.best["val/cls_acc"])
    progress.close()

    # result
    macs = forward_macs(args.arch)
    run.finish(
        len(data.train),
        **final_test(run, model, data.test, cast),
        student_macs=macs,
        train_macs=training_macs(macs, trained=len(data.train) * args.epoch),
    )
    run.summarize()


if __name__ == "__main__":
    entry(main)
