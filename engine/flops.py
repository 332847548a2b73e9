"""What a run computes, in multiply-accumulates of convolutions and linear layers, as the paper counts (section 4.1).

A sample costs Fs to score, Ft + (1 + c) Fs to distill and (1 + c) Fs to train alone, where Ft and Fs are a forward
pass of teacher and student, and c is what a backward pass counts as: one forward in the paper, two usually.
"""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

COUNTINGS = {"": 1, "_usual": 2}  # suffix of a figure's name: forward passes that a backward pass counts as


def forward_macs(model: nn.Module) -> int:
    """Multiply-accumulates of one forward pass of a (3, 32, 32) image. Runs a copy on the meta device."""
    model = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() // 2


def network_size(model: nn.Module) -> dict[str, int]:
    """What tells two networks of one name apart."""
    return {"parameters": sum(weights.numel() for weights in model.parameters()), "macs": forward_macs(model)}


def cost_so_far(
    student: float, trained: int, scored: float = 0, teacher: float = 0, queries: int = 0, seen: int = 0
) -> dict[str, float]:
    """A run's figures up to now, in both countings, under the names that logs and result.json use.

    student, teacher: forward_macs of each. trained, scored: images that the student trained on and scored. queries:
    images that the teacher saw. seen: images that ordinary distillation would have trained on.
    """
    figures = {"teacher_queries": queries}
    for suffix, backward in COUNTINGS.items():
        macs = queries * teacher + (trained * (1 + backward) + scored) * student
        figures[f"train_macs{suffix}"] = macs
        if teacher:
            figures[f"computation{suffix}"] = macs / (seen * (teacher + (1 + backward) * student))
    return figures


def cost_in_words(figures: dict[str, float]) -> str:
    """The computation of a distillation. figures: of cost_so_far."""
    paper, usual = (100 * figures[f"computation{suffix}"] for suffix in COUNTINGS)
    return f"computation {paper:.1f} % of KD's, {usual:.1f} % if a backward pass counts as two forward passes"
