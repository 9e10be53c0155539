"""How the processes of a run are started: by torchrun, or by SLURM alone. Imports no torch."""

import os
import re

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What describes a process of a run to torch; torchrun sets them, and others whose names begin with TORCHELASTIC_."""


def adopt_slurm() -> None:
    """Describe the tasks of a SLURM step by the variables that torchrun sets, unless it, or somebody else, set them.

    The main process is on the step's first host; its port follows from job and step, or is `MASTER_PORT`. One task
    needs no variables; nor does a batch script, whose SLURM_NTASKS counts the tasks that a step may have.
    """
    given = os.environ
    num_tasks = int(given.get("SLURM_STEP_NUM_TASKS") or 1)  # set by srun, for each task of the step
    if "WORLD_SIZE" in given or "SLURM_PROCID" not in given or num_tasks == 1:
        return
    job, step = int(given.get("SLURM_JOB_ID", "0")), int(given.get("SLURM_STEP_ID", "0"))
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    per_node = re.match(r"\d+", given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE") or "1")
    given |= {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": str(num_tasks),
        "LOCAL_WORLD_SIZE": per_node[0] if per_node else "1",
        "MASTER_ADDR": given.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": given.get("MASTER_PORT") or str(10_000 + (job * 16 + step) % 20_000),
    }


def first_host(nodes: str) -> str:
    """The first host of SLURM's compressed list: `gpu-[003-010,12],cpu1` is gpu-003."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]
