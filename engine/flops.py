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


def training_macs(
    student: float, trained: int, scored: float = 0, teacher: float = 0, queries: int = 0, backward: int = 1
) -> float:
    """Multiply-accumulates of training on `trained` images and scoring `scored`, of which the teacher sees `queries`.

    student, teacher: forward_macs of each. backward: forward passes that a backward pass counts as.
    """
    return queries * teacher + (trained * (1 + backward) + scored) * student


def relative_cost(student: float, teacher: float, k: int, n: int, scored: float = 1.0, backward: int = 1) -> float:
    """Cost of a batch of n of which k are kept, relative to ordinary distillation of all n.

    student, teacher, backward: as above. scored: the share of batches that the student scores first.
    """
    cost = training_macs(student, k, n * scored, teacher, k, backward)
    return cost / training_macs(student, n, 0, teacher, n, backward)


def cost_so_far(
    student: float, trained: int, scored: float = 0, teacher: float = 0, queries: int = 0, seen: int = 0
) -> dict[str, float]:
    """A run's figures up to now, in both countings, under the names that logs and result.json use.

    seen: images that ordinary distillation would have trained on. The others: as above.
    """
    figures = {"teacher_queries": queries}
    for suffix, backward in COUNTINGS.items():
        macs = training_macs(student, trained, scored, teacher, queries, backward)
        figures[f"train_macs{suffix}"] = macs
        if teacher:
            figures[f"computation{suffix}"] = macs / training_macs(student, seen, 0, teacher, seen, backward)
    return figures


def cost_in_words(figures: dict[str, float]) -> str:
    """The computation of a distillation. figures: of cost_so_far."""
    paper, usual = (100 * figures[f"computation{suffix}"] for suffix in COUNTINGS)
    return f"computation {paper:.1f} % of KD's, {usual:.1f} % if a backward pass counts as two forward passes"
