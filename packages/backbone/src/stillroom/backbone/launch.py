"""How the processes of a run are started: by torchrun, or by SLURM alone. Imports no torch."""

import os
import re


def adopt_slurm() -> None:
    """Describe the tasks of a SLURM step by the variables that torchrun sets, unless it, or somebody else, set them.

    The main process is on the step's first host; its port follows from job and step, or is `MASTER_PORT`. One task
    needs no variables.
    """
    given = os.environ
    if "WORLD_SIZE" in given or "SLURM_PROCID" not in given:
        return
    num_tasks = int(given.get("SLURM_STEP_NUM_TASKS") or given.get("SLURM_NTASKS") or 1)
    if num_tasks == 1:
        return
    job, step = int(given.get("SLURM_JOB_ID", "0")), int(given.get("SLURM_STEP_ID", "0"))
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    per_node = re.match(r"\d+", given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE") or "1")
    given |= {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": per_node[0] if per_node else "1",
        "WORLD_SIZE": str(num_tasks),
        "MASTER_ADDR": given.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": given.get("MASTER_PORT") or str(10_000 + (job * 16 + step) % 20_000),
    }


def first_host(nodes: str) -> str:
    """The first host of SLURM's compressed list: `gpu-[003-010,12],cpu1` is gpu-003."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]
