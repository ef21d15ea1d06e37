"""For `pytest --nbval`: kernels that say what those of the run contract say, no more."""

import os

from interviewmate_utils.kernel import KERNEL_ENVIRONMENT

os.environ |= {name: KERNEL_ENVIRONMENT[name] for name in ("PYTHONWARNINGS", "PYTHONHASHSEED", "TOKENIZERS_PARALLELISM")}
