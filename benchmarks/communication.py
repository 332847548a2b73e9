"""On paper: what several processes exchange in a step of UNIX, beside what they compute, for the 12 published pairs.

    python benchmarks/communication.py
    python benchmarks/communication.py --processes 8 --teraflops 200

No time is measured here. A step computes its operations (convolutions and linear layers, backward counted as two
forwards) at --teraflops, an equal share in each process. It exchanges the student's gradients, fp32, by a ring (every
process sends them 2 (P - 1) / P times), batch norm's statistics, and the logits and distances of the scored
images; each collective waits at each hop. One process alone replays a graph; several launch their kernels one by one,
each process all of them, which takes as long for any batch: the step's operations are counted, at --launch
microseconds. A step of several takes the longer of computing and launching, and the exchange. "pays from" is the batch
from which that is less than one process takes.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import Ours, Traffic
from cost import forward_macs, training_macs
from dataset import NUM_CLASSES
from models import model_dict
from reporting.published import PAIRS
from utils import Parser, number

LINKS = {"NVLink": (450e9, 3e-6), "25 Gbit/s": (25e9 / 8, 20e-6)}  # bytes a second one way, seconds a hop
BATCH, KEPT = 64, 48
BUCKET = 25e6  # bytes of gradients that DistributedDataParallel sends at once


def sizes(arch):
    """Bytes of a network's gradients, and of its buffers."""
    with torch.device("meta"):
        model = model_dict[arch]()
    tensors = list(model.parameters()), list(model.buffers())
    return [sum(tensor.numel() * tensor.element_size() for tensor in each) for each in tensors]


def launches(pair):
    """Operations of a step, views excepted: about as many kernels."""
    step = Ours(torch.device("cpu"), "UNIX", pair, "bf16", "nothing", images=BATCH)
    with Traffic() as counter:
        step()
    return counter.operations


def exchange(arch, processes, bandwidth, latency):
    """Seconds a step."""
    gradients, buffers = sizes(arch)
    scored = BATCH * (NUM_CLASSES + 1) * 4
    sent = 2 * (processes - 1) / processes * gradients + buffers + scored
    collectives = 2 * -(-gradients // BUCKET) + 1 + 2  # a ring goes round twice; statistics; logits, distances
    return sent / bandwidth + collectives * (processes - 1) * latency


def main():
    parser = Parser(__doc__)
    parser.add_argument("--processes", type=number(int, 2, 1024), default=4)
    parser.add_argument("--teraflops", type=number(float, above=0), default=50.0, help="that a GPU reaches (50)")
    parser.add_argument("--launch", type=number(float, 0), default=5.0, help="microseconds a kernel (5)")
    args = parser.parse_args()
    print(f"{args.processes} processes, {args.teraflops:g} TFLOP/s each, a batch of {BATCH} in all; times in ms\n")
    print(f"{'':24}{'gradients,':>12}{'compute':>18}{'launch':>9}", *(f"{name:>20}" for name in LINKS))
    print(f"{'':24}{'MB':>12}{'one':>10}{'each':>8}{'each':>9}", *(f"{'exchange':>10}{'pays from':>10}" for _ in LINKS))
    for teacher, student in PAIRS:
        macs = training_macs(forward_macs(student), forward_macs(teacher), KEPT, BATCH, backward=2)
        one = 2 * macs / (args.teraflops * 1e12)
        launching = launches(f"{teacher}:{student}") * args.launch * 1e-6
        line = f"{teacher + ' → ' + student:24}{sizes(student)[0] / 1e6:12.1f}{1000 * one:10.2f}"
        line += f"{1000 * one / args.processes:8.2f}{1000 * launching:9.2f}"
        for bandwidth, latency in LINKS.values():
            seconds = exchange(student, args.processes, bandwidth, latency)
            pays = BATCH * max(seconds / (one * (1 - 1 / args.processes)), (launching + seconds) / one)
            line += f"{1000 * seconds:11.2f}{pays:10,.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
