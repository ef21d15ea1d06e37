"""One of the processes that `train` starts for itself: python -m interviewmate_utils.training PARAMETERS ROOT."""

import sys
from pathlib import Path

from .. import config
from . import train_here

config.ROOT = Path(sys.argv[2])
train_here(config.TrainLora.model_validate_json(sys.argv[1]))
