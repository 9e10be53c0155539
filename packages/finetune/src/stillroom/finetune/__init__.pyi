from .cli import FineTuneCli
from .config import FineTuneConfig
from .lifecycle import Prepared, Task, finetune, resume

__all__ = ["FineTuneCli", "FineTuneConfig", "Prepared", "Task", "finetune", "resume"]
