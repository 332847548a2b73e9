"""The order of a run's epochs: train, validate, save; and the result at the end."""

import math
import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from engine.device import peak_memory
from engine.meters import Evaluator
from engine.run import Run
from engine.trainer import Trainer, learning_rate
from models import read_checkpoint


def fit(run: Run, trainer: Trainer, **result: Any) -> None:
    """Train until --epoch from wherever the run stands, and write its result.

    result: entries of result.json besides the usual ones. Raises RunError where training diverges.
    """
    args, data = trainer.args, trainer.data
    images = len(data.train)
    evaluate = Evaluator(trainer.model, data.val, trainer.precision)
    with run:
        run.restore(trainer)
        first = run.epoch + 1
        start = time.monotonic()
        with tqdm(
            total=args.epoch * images,
            initial=run.epoch * images,
            unit="img",
            unit_scale=True,
            disable=None,  # where the output is not a terminal
            leave=False,
            dynamic_ncols=True,
            smoothing=0.02,
            mininterval=0.5,
        ) as bar:
            for epoch in range(first, args.epoch + 1):
                begin = time.monotonic()
                means = trainer.train_epoch(epoch, bar)
                end = time.monotonic()
                val_loss, val_acc, centers = evaluate()
                trainer.end_epoch(centers)
                row = {
                    **{name: mean for name, mean in means.items() if not math.isnan(mean)},  # no centers in epoch 1
                    "val/cls_loss": val_loss,
                    "val/cls_acc": val_acc,
                    **{f"cost/{name}": value for name, value in trainer.cost(epoch).items()},
                    "lr": learning_rate(args, epoch),
                    "train_seconds": end - begin,
                    "val_seconds": time.monotonic() - end,
                }
                run.end_epoch(trainer, row)
                seconds_left = (time.monotonic() - start) / (epoch - first + 1) * (args.epoch - epoch)
                bar.write(
                    f"epoch {epoch:3d}/{args.epoch}  "
                    f"train loss {row[f'{trainer.tag}loss']:.3f} acc {row[f'{trainer.tag}acc']:5.2f} %  "
                    f"val loss {val_loss:.3f} acc {val_acc:5.2f} % (best {run.best['val/cls_acc']:.2f})  "
                    f"{images / row['train_seconds']:.0f} img/s  eta {timedelta(seconds=round(seconds_left))}",
                    file=sys.stdout,
                )
        result |= {**final_test(run, trainer), "peak_memory_bytes": peak_memory(data.train.labels.device)}
        run.finish(images, **result)
    run.summarize()


def final_test(run: Run, trainer: Trainer) -> dict[str, float]:
    """With a holdout the one look at the test images: {"test_acc_best": ..., "test_acc_last": ...}, else nothing.

    The network holds the last weights before, the best ones after.
    """
    if trainer.data.test is None:
        return {}
    evaluate = Evaluator(trainer.model, trainer.data.test, trainer.precision)
    _, last, _ = evaluate()
    trainer.model.load_state_dict(read_checkpoint(run.checkpoint("best"))["state_dict"])
    _, best, _ = evaluate()
    return {"test_acc_best": best, "test_acc_last": last}
