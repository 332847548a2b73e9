"""What a run computes, in multiply-accumulates of convolutions and linear layers, as the paper counts (table 3).

Counting backward as one forward, a sample costs Fs to score, Ft + 2 Fs to distil and 2 Fs to train alone, where Ft and
Fs are a forward pass of teacher and student.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import model_dict


def forward_macs(arch):
    """Multiply-accumulates of one forward pass of a (3, 32, 32) image. Needs no weights and computes nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model_dict[arch]().eval()(torch.empty(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def training_macs(student, teacher=0, trained=0, scored=0):
    """Multiply-accumulates of training on `trained` images and scoring `scored` more.

    student, teacher: forward_macs of each (no teacher: 0).
    """
    return trained * (teacher + 2 * student) + scored * student
