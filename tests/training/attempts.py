"""Trainings in processes of their own, forked from one that has everything imported; some kill themselves on the way.

Reads a list of attempts from stdin, runs one after the other, and prints how the ranks of each ended.
An attempt: out, partial, data, record (folders), spec, compute, ranks, and maybe kill: [where, step]. Ranks
whose nodes share no files have a relative partial, each in a folder of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from trimtab.environment import settle

IMPORTED = (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "peft",
    "transformers.models.llama.modeling_llama",
    "trimtab.training.loop",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lay_trap(where: str, step: int) -> None:
    """`step`: after the optimiser's step; `seal`: before the manifest; `publish`: before the rename; `saved`: after."""
    from trimtab.training import callbacks, checkpoint

    if where == "saved":

        def on_save(self, args, state, control, **kwargs) -> None:
            if state.global_step == step:
                die()

        callbacks.Keep.on_save = on_save
    if where == "seal":
        seal = checkpoint.Checkpoints._seal
        checkpoint.Checkpoints._seal = lambda self, aside, manifest: (
            die() if manifest["step"] == step else seal(self, aside, manifest)
        )
    if where == "publish":
        publish = checkpoint.Checkpoints._publish
        checkpoint.Checkpoints._publish = lambda self, aside, at: die() if at == step else publish(self, aside, at)


def recording(task: dict, rank: int) -> type:
    """The trainer, which writes down the rows of each micro-batch, and may die after a step."""
    from trimtab.training.trainers.labels import LabelTrainer

    class Recording(LabelTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen = {"step": self.state.global_step + 1, "rows": [self.settings.ids[i] for i in inputs["row"].tolist()]}
            with Path(task["record"], f"{rank}.jsonl").open("a") as file:
                file.write(json.dumps({"attempt": task["number"]} | seen) + "\n")
            loss = super().training_step(model, inputs, *args, **kwargs)
            if task.get("kill") == ["step", seen["step"]] and self.accelerator.sync_gradients:
                die()
            return loss

    return Recording


def attempt(task: dict, rank: int) -> None:
    """What one rank does."""
    import torch.distributed as dist

    from trimtab.compute import Compute
    from trimtab.parts import TrainSpec
    from trimtab.stages.train import train
    from trimtab.training import loop

    out, partial = Path(task["out"]), Path(task["partial"])
    if not partial.is_absolute():
        node = out.with_name(f"node{rank}")
        node.mkdir()
        os.chdir(node)
    for folder in (out, Path(task["record"]), partial):
        folder.mkdir(parents=True, exist_ok=True)
    size = task.get("ranks", 1)
    if size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 29500}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in ranks.items()}
        dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=size)
    loop.LabelTrainer = recording(task, rank)
    if "kill" in task:
        lay_trap(*task["kill"])
    compute = Compute.model_validate({"backend": "inline"} | task["compute"])
    places = {"data": Path(task["data"]), "partial": partial}
    places |= {"features": Path(task["features"])} if "features" in task else {}
    metrics = train(TrainSpec.model_validate(task["spec"]), out, compute=compute, **places)
    if rank == 0:
        (out / "metrics.json").write_text(json.dumps(metrics))


def forked(task: dict, rank: int) -> int:
    """The process id of a rank."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        log = os.open(f"{task['out']}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        attempt(task, rank)
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    settle()
    from trimtab.training.zero import build_ops

    build_ops()
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    for number, task in enumerate(json.load(sys.stdin)):
        pids = [forked(task | {"number": number}, rank) for rank in range(task.get("ranks", 1))]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
