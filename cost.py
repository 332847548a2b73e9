"""What a run computes, in multiply-accumulates of convolutions and linear layers, as the paper counts (section 4.1).

A sample costs Fs to score, Ft + (1 + c) Fs to distil and (1 + c) Fs to train alone, where Ft and Fs are a forward pass
of teacher and student, and c is what a backward pass counts as: one forward in the paper, two usually.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import model_dict

COUNTINGS = {"": 1, "_usual": 2}  # ending of a figure's name: forward passes that a backward pass counts as


def forward_macs(arch):
    """Multiply-accumulates of one forward pass of a (3, 32, 32) image. Needs no weights and computes nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model_dict[arch]().eval()(torch.empty(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def training_macs(student, teacher=0, trained=0, scored=0, backward=1):
    """Multiply-accumulates of training on `trained` images and scoring `scored`.

    student, teacher: forward_macs of each (no teacher: 0). backward: forward passes that a backward pass counts as.
    """
    return trained * (teacher + (1 + backward) * student) + scored * student


def computation(student, teacher, k, n, scores=True, backward=1):
    """Cost of a batch of n of which k are kept, relative to ordinary distillation of all n.

    student, teacher, backward: as above. scores: whether the student scores the batch first.
    """
    spent = training_macs(student, teacher, k, n if scores else 0, backward)
    return spent / training_macs(student, teacher, n, backward=backward)


def spent(student, teacher=0, trained=0, scored=0, drawn=0):
    """The figures of a run so far, in both countings, as its log and its result name them.

    student, teacher, trained, scored: as above. drawn: images that ordinary distillation had trained on by now.
    """
    figures = {"teacher_queries": trained if teacher else 0}
    for ending, backward in COUNTINGS.items():
        macs = training_macs(student, teacher, trained, scored, backward)
        figures[f"train_macs{ending}"] = macs
        if teacher:
            figures[f"computation{ending}"] = macs / training_macs(student, teacher, drawn, backward=backward)
    return figures
